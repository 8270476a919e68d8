"""Exchanges whose caller may be cancelled meanwhile: what was taken for it is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ..errors import Error
from .claim import AsyncClaim

Exchanged = tuple[set[str], list[AsyncClaim]]
_tasks: set[asyncio.Task[Any]] = set()


async def whole(work: Coroutine[Any, Any, Exchanged]) -> Exchanged:
    """Run an exchange to its end, outside of transactions, even when its caller is cancelled."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        _tasks.add(task)
        task.add_done_callback(_unwanted)
        raise


def _unwanted(task: asyncio.Task[Exchanged]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and task.exception() is None:
        giving = task.get_loop().create_task(_give_back(task.result()[1]))
        _tasks.add(giving)
        giving.add_done_callback(_tasks.discard)


async def _give_back(claims: list[AsyncClaim]) -> None:
    for claim in claims:
        with suppress(Error):  # its lease will end
            await claim.release()
