"""What statements give: rows with their columns, counts, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Any
"""One row, a driver's record: ``row["name"]``, ``row[0]``, ``row.items()``, ``dict(row)``."""


@dataclass(slots=True)
class Reading:
    """What a statement over tiered tables has read."""

    tiers: tuple[str, ...] = ("hot",)
    files: int = 0
    bytes: int = 0
    skipped: frozenset[str] = frozenset()


_PLAIN = Reading(())


class Rows(list[Row]):
    """The rows of one statement, in the server's order."""

    __slots__ = ("_columns", "_reading", "elapsed", "status")

    def __init__(
        self, rows: Sequence[Row], columns: Callable[[], tuple[str, ...]], status: str, elapsed: float
    ) -> None:
        super().__init__(rows)
        self._columns = columns
        self._reading = _PLAIN
        self.status = status
        """The command tag, such as ``INSERT 0 3``."""
        self.elapsed = elapsed
        """Seconds from sending the statement to its last row."""

    def told(self, reading: Reading) -> Rows:
        """The same rows with what was read for them."""
        self._reading = reading
        return self

    @property
    def affected(self) -> int:
        """How many rows the statement returned or changed."""
        number = self.status.rpartition(" ")[2]
        return int(number) if number.isdigit() else 0

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers of tiered tables that were asked, of ``hot``, ``warm`` and ``cold``."""
        return self._reading.tiers

    @property
    def files_read(self) -> int:
        """How many files of object storage were opened for it."""
        return self._reading.files

    @property
    def bytes_read(self) -> int:
        """Their size in bytes."""
        return self._reading.bytes

    @property
    def skipped(self) -> tuple[str, ...]:
        """The tiers that could hold more rows and were not asked."""
        return tuple(sorted(self._reading.skipped))

    @property
    def complete(self) -> bool:
        """Whether every row that could match was looked at."""
        return not self._reading.skipped

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, for results without rows, too."""
        return self._columns()


@dataclass(frozen=True, slots=True)
class Executed:
    """What a script did."""

    statements: int


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What a checkpoint did; ``lsn`` is the log position that it covers."""

    lsn: str
    tables: int = 0
    rows: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Where a database is, what runs it, its size in bytes."""

    place: str
    version: str
    database: str
    size: int
    connections: int
    extensions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notification:
    """A message that came through ``LISTEN``."""

    channel: str
    payload: str
    pid: int


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """What a statement would open of a tiered table: so many files of ``of_files``, their bytes at most; ``conditions`` are those
    that choose them, for each time that the statement names the table."""

    table: str
    files: int
    of_files: int
    bytes: int
    conditions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """What a statement would do: ``kind`` is ``"plain"`` when it touches no tiered table; ``heap_first`` whether a row that is
    hot is found without opening a file."""

    kind: str
    tiers: tuple[str, ...]
    heap_first: bool
    tables: tuple[PlannedTable, ...]


Metric = Literal["cosine", "l2", "ip", "l1"]


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index over vectors: ``hnsw`` or ``ivfflat``, its metric, whether it holds ``"half"`` or ``"binary"`` copies, and if so
    whether a search ranks by the originals; its size in bytes."""

    name: str
    method: str
    metric: str
    quantize: str | None
    rerank: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class VectorStats:
    """A column of vectors in Postgres (of a tiered table: in its hot rows): how many there are, of how many dimensions, their
    bytes, and the indexes over them."""

    column: str
    type: str
    dimensions: int | None
    rows: int
    bytes: int
    indexes: tuple[VectorIndex, ...]

    @property
    def bytes_per_vector(self) -> float:
        """Stored bytes of a vector, its indexes included; 0.0 when there is none."""
        return (self.bytes + sum(i.bytes for i in self.indexes)) / self.rows if self.rows else 0.0
