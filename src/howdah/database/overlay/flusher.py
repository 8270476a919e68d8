"""The flusher: looks at every tiered table in the background, and moves and tidies what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import count

from ...errors import Closed, QueryError
from ..session import Session
from .flush import Flushed, flush, lease
from .tiered import Tiered
from .upkeep import upkeep

log = logging.getLogger("howdah")
LOOK = 1.0
"""Seconds between two looks."""
TIDY = 60
"""Looks from one upkeep of all tables to the next."""
MANY = 50_000
"""Rows that have left a heap which is then cleaned at once."""
STEPS = 20
"""Pieces of upkeep at once."""


async def flushed(session: Session, tables: Sequence[Tiered]) -> Flushed:
    """Flush tables and do the upkeep of their bases."""

    async def work(tiered: Tiered) -> Flushed:
        moved = await flush(session, tiered)
        if moved.rows >= MANY:
            await _cleaned(session, tiered)
        await _tidied(session, tiered)
        return moved

    return await _each(session, tables, work)


async def tended(session: Session, tables: Sequence[Tiered]) -> None:
    """Do the upkeep of tables of which nothing is due."""

    async def work(tiered: Tiered) -> Flushed:
        await _tidied(session, tiered)
        return Flushed()

    await _each(session, tables, work)


async def _each(session: Session, tables: Sequence[Tiered], work: Callable[[Tiered], Awaitable[Flushed]]) -> Flushed:
    """Do a work on tables but for those that another process is at. One that fails keeps none of the others."""
    total = Flushed()
    failures: list[Exception] = []
    for tiered in tables:
        try:
            async with lease(session, tiered) as mine:
                if mine:
                    total += await work(tiered)
        except Exception as error:
            if session.is_closed():
                raise
            failures.append(error)
    if failures:
        raise failures[0]
    return total


async def _cleaned(session: Session, tiered: Tiered) -> None:
    """Clean a heap that many rows have left: the server would do so later, and until then each read of it passes them all."""
    await session.command("SET lock_timeout = '3s'")  # the server's own cleaning gives way after one
    try:
        await session.command(f"VACUUM {tiered.table}")
    except QueryError as error:
        if error.sqlstate != "55P03":  # somebody has locked it: later, then
            raise
    finally:
        if not session.is_closed():
            await session.command("RESET lock_timeout")


async def _tidied(session: Session, tiered: Tiered) -> None:
    for _ in range(STEPS):
        if not await upkeep(session, tiered):
            break


class Flusher:
    """Flushes what is due, again and again, in a task of its own; what fails is logged, noted in the status and tried again."""

    def __init__(self, work: Callable[[bool], Awaitable[Flushed]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self.done = Flushed()
        """What was moved so far."""

    def start(self) -> None:
        """Begin; a second call changes nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what is under way is cut short, which loses nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        for number in count():
            await asyncio.sleep(LOOK)
            try:
                self.done += await self._work(number % TIDY == TIDY - 1)
            except Closed:
                return
            except Exception as error:  # of one table, of storage, of the server: it may be better next time
                log.warning("the flusher will try again: %s: %s", type(error).__name__, error)
