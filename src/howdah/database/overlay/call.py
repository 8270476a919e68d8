"""One call of a planned statement: its parameters, when it must have ended, what it has read; base rows are fetched by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from ...errors import InvalidInput, LimitExceeded, QueryTimeout
from ..rows import Reading
from ..session import Session
from . import partials, scan
from .binding import bind
from .columns import TierColumn
from .first import First
from .tiered import Snapshot, Tiered

T = TypeVar("T")
EVERY = frozenset(("warm", "cold"))
"""The tiers that a base has."""


@dataclass(slots=True)
class Call:
    """One call of a planned statement: its parameters, when it must have ended, what it has read."""

    params: Sequence[Any] = ()
    timeout: float | None = None
    as_of: datetime | int | None = None
    readonly: bool = False
    checked: bool = False
    """Whether it is looked at, once the statement has run, if what was relied on still held."""
    relied: dict[Tiered, int] = field(default_factory=dict)
    """How many dead keys there were when base rows were chosen that only these make the right ones. There can only become more."""
    reading: Reading = field(default_factory=Reading)
    began: float = field(default_factory=time.monotonic)

    async def bind(
        self,
        session: Session,
        tiered: Tiered,
        snapshot: Snapshot,
        condition: Any,
        columns: Sequence[TierColumn] | None = None,
        **how: Any,
    ) -> int:
        """Bind the base rows that may fit a condition, as they come; how many."""
        names = None if columns is None else [c.name for c in columns]
        source = scan.Scan(
            snapshot.metadata, condition, archive=snapshot.archive, columns=names, means=session.means, **how
        )
        first = await self.within(tiered, source.take)
        self.told(source)
        if source.skipped:
            self.reading.skipped |= EVERY - source.tiers
        rows = None if first is None else self._taken(tiered, source, first)
        return await bind(session, tiered, rows, columns, readonly=self.readonly)

    async def _taken(self, tiered: Tiered, source: scan.Scan, rows: Any) -> AsyncIterator[Any]:
        while rows is not None:
            yield rows
            rows = await self.within(tiered, source.take)

    async def within(self, tiered: Tiered, work: Callable[[], T]) -> T:
        """Read a base, within the time that is left."""
        left = None if self.timeout is None else self.timeout - (time.monotonic() - self.began)
        try:
            found = await asyncio.wait_for(asyncio.to_thread(work), None if left is None else max(0.001, left))
        except TimeoutError:
            raise QueryTimeout(
                f"{tiered.table}: object storage did not answer within {self.timeout} seconds", timeout=self.timeout
            ) from None
        except LimitExceeded as error:
            raise LimitExceeded(
                f"{tiered.table}: the statement needs {error} from object storage: say more in WHERE about its key or time"
            ) from None
        return found

    async def moved(self, session: Session) -> bool:
        """Whether more keys have died than were relied on."""
        for tiered, count in self.relied.items():
            if (await session.query(f"SELECT count(*) FROM {tiered.shadow}", (), None))[0][0] != count:
                return True
        return False

    def told(self, found: scan.Scan | partials.Summed | First) -> None:
        """Say that what was read is used."""
        self.reading.files += found.files
        self.reading.bytes += found.bytes


def check_as_of(as_of: object) -> datetime | int | None:
    """A snapshot's id, or an aware moment."""
    if as_of is None or (isinstance(as_of, int) and not isinstance(as_of, bool)):
        return as_of
    if isinstance(as_of, datetime) and as_of.tzinfo is not None:
        return as_of
    raise InvalidInput(f"as_of={as_of!r:.60}: expected an aware datetime or the id of a snapshot")
