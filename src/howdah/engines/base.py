"""What a table asks of an engine: operations as I/O-free generators, run alone or inside a transaction."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from ..migrations import Migration
from ..schema import Schema

T = TypeVar("T")


class Stmt(NamedTuple):
    """One statement for the driver; with ``many`` the parameters are a list of rows and there is no result. That of one
    that runs ``ahead`` is empty, too: an engine may let the operation go on while it works, and tell of its failure later."""

    sql: str
    params: Sequence[Any] = ()
    many: bool = False
    ahead: bool = False


Rows = list[tuple[Any, ...]]
Op = Generator[Stmt, Rows, T]
"""A generator that yields statements, is sent their rows, and returns the operation's result."""
Work = Callable[[], Op[T]]
"""Makes a fresh ``Op``; an engine may call it again after a serialization failure."""


class Once:
    """A write of one statement; an engine may run it without going through the generator."""

    __slots__ = ("params", "sql")

    def __init__(self, sql: str, params: Sequence[Any]) -> None:
        self.sql = sql
        self.params = params

    def __call__(self) -> Op[Rows]:
        return (yield Stmt(self.sql, self.params))


class Take(NamedTuple):
    """At most ``limit`` rows of a scope that are due ``at`` a moment (driver form), first in the schema's line: ``patch`` is
    set on them and ``bump`` columns grow by 1; their columns ``names`` are told. ``behind`` (rank, due moment and key) is a
    place in the line in front of which nobody is known to wait, but for higher ranks: an engine may begin to look there."""

    scope: str
    at: Any
    limit: int
    patch: Mapping[str, Any]
    bump: Sequence[str]
    names: Sequence[str]
    behind: tuple[int, Any, str] | None = None


class Patches(NamedTuple):
    """New values of ``columns`` for rows that have the given values of ``match``, which begins with the key; all get the
    ``fixed`` values."""

    match: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    fixed: Mapping[str, Any] = {}


class Node:
    """One open transaction or savepoint. ``after`` runs when the outermost one has committed."""

    __slots__ = ("after", "depth", "done", "engine", "lock", "parent", "session")

    def __init__(self, engine: Engine, parent: Node | None, session: Any, lock: Any) -> None:
        self.engine = engine
        self.parent = parent
        self.session = session
        self.lock = lock
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.done = False
        self.after: list[Callable[[], None]] = []


current: ContextVar[Node | None] = ContextVar("howdah_transaction", default=None)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do natively; a ``False`` here and an ``Unsupported`` on the call always agree."""

    ttl: str = "native"
    filter: str = "native"
    batch: bool = True
    mutate: str = "native"
    changes: bool = True
    transactions: bool = True
    dense: bool = True
    sparse: bool = True
    hybrid: bool = True
    fusion: tuple[str, ...] = ("rrf", "dbsf")
    consistency: str = "strong"


@dataclass(slots=True)
class Status:
    """Where an engine's data is: name and version of the database, place without secrets, size in bytes."""

    engine: str
    version: str
    place: str
    size: int
    details: dict[str, Any] = field(default_factory=dict)


class Snapshot(Protocol):
    """Reads of one state of the data."""

    async def read(self, work: Work[T]) -> T:
        """Run a read."""

    async def close(self) -> None:
        """Let go of the state."""


class Engine(Protocol):
    """An engine as the layers above see it."""

    name: str
    durable: bool
    scope: str
    inline: bool
    creates: bool
    ids: Callable[[], UUID] | None
    """What makes generated keys and the ids of jobs; ``None`` for UUIDs of version 7."""
    users: set[Any]
    """What works on this engine in the background and has ``stop()``; the store's ``close`` stops it first."""
    capabilities: Capabilities

    def table(self, schema: Schema, physical: str, migrations: tuple[Migration, ...] = ()) -> Any:
        """Operations on one table, which declared migrations bring into its shape."""

    async def ensure(self, table: Any) -> None:
        """Create or grow the table; ``SetupRequired`` when it may not."""

    async def drop(self, table: Any) -> None:
        """Remove a table with its data."""

    async def catalog(self) -> dict[str, dict[str, Any]]:
        """The specifications of the tables there are, by physical name."""

    async def script(self, tables: Sequence[Any]) -> list[str]:
        """The statements that would create or grow the tables; empty when they are as declared."""

    def watch(self, table: Any) -> None:
        """A write happened that may need upkeep soon."""

    async def changed(self, table: Any, mark: int | None, timeout: float) -> int:
        """Wait until the table may have been written since ``mark``, at most ``timeout`` seconds; a mark for next time.

        With ``None`` for a mark nothing is waited for."""

    async def get(self, table: Any, key: tuple[Any, ...], names: tuple[str, ...]) -> Any:
        """One row by key, by the shortest way."""

    async def read(self, work: Work[T], *, heavy: bool = False, snapshot: bool = False) -> T:
        """Run a read; ``heavy`` ones leave the event loop, with ``snapshot`` all statements see one state."""

    async def write(self, work: Work[T], *, single: bool = False) -> T:
        """Run a write atomically and durably; ``single`` promises that it is one statement."""

    async def begin(self, *, isolation: str | None = None) -> Node:
        """Open a transaction, or a savepoint inside the current one."""

    async def end(self, node: Node, *, commit: bool) -> None:
        """Commit or roll back what ``begin`` opened."""

    async def pause(self, delay: float) -> None:
        """Wait ``delay`` seconds without holding anything."""

    async def snapshot(self) -> Snapshot:
        """Reads that all see the state of one moment."""

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""

    def now(self) -> float:
        """Seconds since 1970 by the store's one clock."""

    async def status(self) -> Status:
        """Where the data is and how much there is."""

    async def background(self) -> bool:
        """Do one piece of waiting upkeep (merging, sweeping, index building); ``False`` when there is none."""

    async def close(self) -> None:
        """Release everything the engine opened."""


def innermost(engine: Engine) -> Node | None:
    """The open transaction of ``engine`` in this context, if any."""
    node = current.get()
    while node is not None and (node.engine is not engine or node.done):
        node = node.parent
    return node
