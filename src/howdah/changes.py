"""Changes of a table: committed inserts, updates and deletes, whoever made them, in commit order, from any cursor on."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar

from .criteria import Criteria
from .engines.base import Engine, Op, Work, innermost
from .errors import Closed, Error, InvalidCursor, InvalidInput, Lagged, MissingTable, SetupRequired, TransactionError
from .pages import binding, check_limit, decode_cursor, encode_cursor
from .values import seconds

R = TypeVar("R")
log = logging.getLogger("howdah")
BATCH = 1000
MOST_BEHIND = 10_000
KEEP_EVERY = 3600.0
POLL = 1.0


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
    """One committed change of a row. ``old`` is there on updates and deletes, ``new`` on inserts and updates.

    ``EXPIRE`` is a row that the sweep deleted; ``RESYNC``, in callbacks only and without rows, means that changes were
    lost: read again. ``cursor`` goes on after this change, with ``changes(since=…)``.
    """

    type: Literal["INSERT", "UPDATE", "DELETE", "EXPIRE", "RESYNC"]
    key: Any
    old: R | None
    new: R | None
    at: datetime
    cursor: str


class _Table(Protocol):
    _engine: Engine
    _ops: Any

    async def _write(self, work: Work[Any]) -> Any: ...
    async def reading(self, work: Work[Any], *, heavy: bool = False, snapshot: bool = False) -> Any: ...
    def _row(self, driver: Sequence[Any]) -> Any: ...
    def _public_key(self, key: Sequence[Any]) -> Any: ...


class AsyncChanges(Generic[R]):
    """A place in a table's changes, made by ``table.changes(…)``: iterate for ever, or ``poll`` for what there is.

    It begins with ``start``, else with the first step of the iteration. Every reader has its own place.
    """

    def __init__(self, table: _Table, where: Criteria | None, since: str | None) -> None:
        self._table = table
        self._engine = table._engine
        self._log = table._ops.log
        self._where = where
        self._since = since
        self._bound = binding("changes", table._ops.physical)
        if since is not None:
            self._decode(since)
        self._generation: str | None = None
        self._position: list[Any] = []
        self._live = False
        self._kept = 0.0
        self._every = POLL
        self._convert: Callable[[Change[Any]], Change[Any]] | None = None

    def mapped(self, convert: Callable[[Change[Any]], Change[Any]]) -> AsyncChanges[Any]:
        """The same changes, each through ``convert``; for stores."""
        self._convert = convert
        return self

    def polled(self, every: float | timedelta) -> AsyncChanges[R]:
        """The same changes, looked for at least every so many seconds; for subscriptions."""
        self._every = seconds(every, "poll")
        return self

    def _decode(self, cursor: str) -> tuple[str, list[Any]]:
        generation, position = decode_cursor(cursor, self._bound, 2)
        if not isinstance(generation, str) or not isinstance(position, list):
            raise InvalidCursor("the cursor is not one of a change: pass a change's cursor, unchanged")
        return generation, position

    @property
    def cursor(self) -> str:
        """Where this reader is; ``changes(since=cursor)`` goes on from here."""
        if self._generation is None:
            raise InvalidInput("the changes have no place yet: start() them first")
        return self._cursor(self._position)

    def _cursor(self, position: list[Any]) -> str:
        return encode_cursor([self._generation, position], self._bound)

    async def start(self) -> str:
        """Begin: changes committed from now on (or since the cursor) will be seen. The cursor of this place.

        Raises ``Lagged`` when changes since the cursor are no longer kept (24 hours are), ``SetupRequired`` with
        ``create=False`` where nobody else watches the table.
        """
        if self._generation is not None:
            return self.cursor
        if innermost(self._engine) is not None:
            raise TransactionError("changes are read outside of transactions: end the transaction first")
        if not self._engine.creates and await self._table.reading(self._log.generation) is None:
            raise SetupRequired("changes need a log beside the table, and create=False: watch it from a store that may")
        generation: str = await self._table._write(self._log.open)
        self._kept = time.monotonic()
        end: list[Any] = await self._table.reading(self._log.end)
        self._generation, self._position = generation, end
        if self._since is not None:
            since, position = self._decode(self._since)
            if since != generation or await self._table.reading(lambda: self._log.forgotten(position)):
                raise Lagged("changes since this cursor are no longer kept: read the rows again", cursor=self.cursor)
            self._position = position
        return self.cursor

    async def poll(self, *, timeout: float | timedelta | None = 0, limit: int = BATCH) -> list[Change[R]]:
        """Changes that wait, at most ``limit``; when there are none, wait for some up to ``timeout`` seconds (``None``:
        for ever). Raises ``Lagged`` when more than 10,000 wait for a reader that had caught up."""
        wait = None if timeout is None else seconds(timeout, "timeout", zero=True)
        check_limit(limit, least=1)
        await self.start()
        deadline = None if wait is None else time.monotonic() + wait
        while True:
            mark = await self._engine.changed(self._table._ops, None, 0)
            found = await self._read(limit)
            left = self._every if deadline is None else min(self._every, deadline - time.monotonic())
            if found or left <= 0:
                return found
            await self._engine.changed(self._table._ops, mark, left)

    async def _read(self, limit: int) -> list[Change[R]]:
        if time.monotonic() - self._kept > KEEP_EVERY:
            await self._table._write(self._log.keep)
            self._kept = time.monotonic()
        try:
            window = await self._table.reading(lambda: self._step(limit), snapshot=not self._engine.inline)
        except MissingTable:
            window = None
        if window is None:
            self._generation, self._since, self._live = None, None, False
            raise Lagged("the table changed its shape, or was dropped: read the rows again", cursor=await self.start())
        self._position = window.position
        self._live = self._live or not window.more
        changes = [self._change(e) for e in window.entries]
        return changes if self._convert is None else [self._convert(c) for c in changes]

    def _step(self, limit: int) -> Op[Any]:
        if (yield from self._log.generation()) != self._generation:
            return None
        position = self._position
        window = yield from self._log.read(position, self._where, limit)
        if window.more and self._live and (yield from self._log.behind(position, MOST_BEHIND + 1)) > MOST_BEHIND:
            self._position = yield from self._log.end()
            raise Lagged(f"more than {MOST_BEHIND:,} changes wait: read the rows again", cursor=self.cursor)
        return window

    def _change(self, entry: Any) -> Change[R]:
        table = self._table
        row = entry.old if entry.new is None else entry.new
        return Change(
            entry.type,
            table._public_key([row[i] for i in table._ops.key_places]),
            None if entry.old is None else table._row(entry.old),
            None if entry.new is None else table._row(entry.new),
            datetime.fromtimestamp(entry.at, UTC),
            self._cursor(entry.position),
        )

    async def __aiter__(self) -> AsyncIterator[Change[R]]:
        """Changes as they are committed, for ever."""
        while True:
            for change in await self.poll(timeout=None):
                yield change

    def resync(self, error: Lagged) -> Change[R]:
        """The change that tells a callback to read again."""
        return Change("RESYNC", None, None, None, datetime.fromtimestamp(self._engine.now(), UTC), error.cursor)


async def subscribe(feed: AsyncChanges[Any], callback: Callable[[Change[Any]], Any]) -> Callable[[], None]:
    """Call ``callback`` with every change, in a task of its own; the function returned ends it at once."""
    if not callable(callback):
        raise InvalidInput(f"callback={callback!r:.60}: expected a function of one change")
    await feed.start()
    ended = asyncio.Event()
    task = asyncio.get_running_loop().create_task(_deliver(feed, callback, ended), context=contextvars.Context())
    _running.add(task)
    task.add_done_callback(_running.discard)

    def end() -> None:
        ended.set()  # a wait that comes to its end at this moment may swallow the cancellation (CPython 3.11)
        task.cancel()

    return end


_running: set[asyncio.Task[None]] = set()
"""Tasks of subscriptions; the event loop alone would let them go."""


async def _deliver(feed: AsyncChanges[Any], callback: Callable[[Change[Any]], Any], ended: asyncio.Event) -> None:
    while not ended.is_set():
        try:
            changes = await feed.poll(timeout=None)
        except Lagged as error:
            changes = [feed.resync(error)]
        except Closed:
            return
        except Error as error:
            log.warning("changes will be looked for again: %s", error)
            await asyncio.sleep(POLL)
            continue
        for change in changes:
            if ended.is_set():
                return
            try:
                result = callback(change)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("a subscriber failed on %s of %r", change.type, change.key)
