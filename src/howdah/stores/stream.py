"""Live streams of jobs: numbered events that are replayed and followed, and go soon after the job's end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from ..criteria import And, Compare, Null, Order
from ..engines.base import Engine, Op, innermost
from ..errors import LimitExceeded
from ..naming import store_table
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from .common import moment

MOST = 8 * 1024 * 1024
AFTER = 30.0
Ended = Callable[[], Awaitable[datetime | None]]
"""When a job has ended, if it has."""
BATCH = 500
AHEAD = 1000
"""Events that a writer may be ahead of a reader in its process before it waits for it."""
PATIENCE = 10.0
"""Seconds that a reader is waited for: one that reads no more must not stop the job."""
COLUMNS = (
    Column("job", "text"),
    Column("seq", "integer"),
    Column("event", "json", nullable=True),
    Column("total", "integer"),
    Column("expires_at", "timestamp", nullable=True),
)


class _Reader:
    """How far somebody in this process has read a job's events."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.given_up: int | None = None
        """Where it was when it was waited for in vain; it counts again once it has read on."""

    def behind(self, seq: int) -> bool:
        """Whether it is to be waited for."""
        return seq - self.at > AHEAD and self.given_up != self.at


_readers: dict[tuple[int, str, str], list[_Reader]] = {}


class Streams:
    """The events of a queue's jobs: at most 8 MiB a job, 30 seconds beyond its end."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        physical = store_table("queuestream", name)
        schema = build(physical, COLUMNS, key=("job", "seq"), ttl="expires_at", tell=("expires_at",), internal=True)
        self.table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, COLUMNS, dict, None), physical)
        self._ops = self.table._ops

    async def ready(self) -> None:
        """Make the table if it is not there."""
        await self.table._ensure()

    def add(self, job: str, text: str) -> Op[int]:
        """Add an event; its number. The caller holds the job's row, so that nobody adds another one meanwhile."""
        where = Compare("job", "=", job)
        last = yield from self._ops.select(where, (Order("seq", True),), names=("seq", "total"), limit=1)
        seq, total = (last[0][0], last[0][1]) if last else (0, 0)
        size = total + len(text.encode())
        yield from self._ops.put([self._ops.encode([job, seq + 1, text, size, None])])
        if size > MOST:
            yield from self._ops.delete_where(And((where, Compare("total", "<=", size - MOST))))
        return int(seq) + 1

    def end(self, job: str) -> Op[None]:
        """Let the events go in a while."""
        due = self._ops.encode_value("expires_at", moment(self._engine.now() + AFTER))
        yield from self._ops.update(None, Compare("job", "=", job), {"expires_at": due}, ("seq",))

    def tidy(self, alive: Callable[[list[str]], Op[set[str]]]) -> Op[None]:
        """Let the events go whose jobs have finished or are gone, however that came about."""
        rows = yield from self._ops.select(Null("expires_at"), (), names=("job",), limit=BATCH)
        jobs = sorted({row[0] for row in rows})
        if jobs:
            kept = yield from alive(jobs)
            for job in jobs:
                if job not in kept:
                    yield from self.end(job)

    async def follow(self, job: str, since: int, ended: Ended) -> AsyncIterator[Any]:
        """Events after number ``since``, then those that come, until the job has ended and none is left."""
        await self.ready()
        reader, place = _Reader(since), self._place(job)
        _readers.setdefault(place, []).append(reader)
        try:
            async for event in self._events(job, reader, ended):
                yield event
        finally:
            _readers[place].remove(reader)
            if not _readers[place]:
                del _readers[place]

    def _place(self, job: str) -> tuple[int, str, str]:
        return id(self._engine), self._ops.physical, job

    async def keep_pace(self, job: str, seq: int) -> None:
        """Wait while a reader in this process is far behind; not in a transaction, whose events it cannot see yet."""
        readers, waited = _readers.get(self._place(job)), 0.0
        if readers is None or innermost(self._engine) is not None:
            return
        while slow := [r for r in readers if r.behind(seq)]:
            if waited >= PATIENCE:
                for reader in slow:
                    reader.given_up = reader.at
                return
            await self._engine.pause(0.005)
            waited += 0.005

    async def _events(self, job: str, reader: _Reader, ended: Ended) -> AsyncIterator[Any]:
        since = reader.at
        while True:
            mark = await self._engine.changed(self._ops, None, 0)
            over = await ended()
            where = And((Compare("job", "=", job), Compare("seq", ">", since)))
            rows = await self.table.query(where, order_by="seq", limit=BATCH).all()
            for row in rows:
                if row["seq"] != since + 1:
                    raise LimitExceeded(
                        f"job {job}: events {since + 1} to {row['seq'] - 1} are no longer kept (8 MiB are)"
                    )
                since = reader.at = row["seq"]
                yield row["event"]
            if not rows:
                if over is not None:
                    if over <= moment(self._engine.now() - AFTER):
                        raise LimitExceeded(f"job {job} ended at {over}: events are kept for {AFTER:.0f} seconds")
                    return
                await self._engine.changed(self._ops, mark, 1.0)
