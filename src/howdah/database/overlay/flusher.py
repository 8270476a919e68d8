"""The flusher: looks at every tiered table in the background, and moves and tidies what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ...errors import Closed, Error
from ..session import Session
from .flush import Flushed, flush, lease
from .tiered import Tiered
from .upkeep import upkeep

log = logging.getLogger("howdah")
LOOK = 1.0
"""Seconds between two looks."""


async def flushed(session: Session, tables: Sequence[Tiered]) -> Flushed:
    """Flush tables and do the upkeep of their bases; those that another process is at are left out."""
    total = Flushed()
    for tiered in tables:
        async with lease(session, tiered) as mine:
            if mine:
                total += await flush(session, tiered)
                await upkeep(session, tiered)
    return total


class Flusher:
    """Flushes what is due, again and again, in a task of its own; what fails is logged, noted in the status and tried again."""

    def __init__(self, work: Callable[[], Awaitable[Flushed]]) -> None:
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
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                self.done += await self._work()
            except Closed:
                return
            except Error as error:
                log.warning("the flusher will try again: %s", error)
