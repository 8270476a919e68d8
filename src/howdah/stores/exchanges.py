"""Exchanges of a queue that wait at the same time in one process go together, as one statement: one commit for all of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engines.base import innermost
from ..errors import Error
from .claim import AsyncClaim, Outcome
from .job import CLAIMED

if TYPE_CHECKING:
    from .queue import AsyncQueue

FLYING = 2
"""Statements on their way at once: while one is, the next gathers."""
MOST = 2000
"""Jobs that one statement takes or completes for several."""
Result = tuple[set[str], list[AsyncClaim]]


@dataclass(slots=True, eq=False)
class _Call:
    """One exchange that somebody waits for."""

    outcomes: Sequence[Outcome]
    worker: str
    size: int
    lease: float
    answer: asyncio.Future[Result]


class Exchanges:
    """The exchanges of one handle of a queue."""

    def __init__(self, queue: AsyncQueue) -> None:
        self._queue = queue
        self._waiting: list[_Call] = []
        self._flying = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._called = False

    async def exchange(self, outcomes: Sequence[Outcome], worker: str, size: int, lease: float) -> Result:
        """Complete some jobs and take others, together with whoever else waits. Who is cancelled meanwhile gives back what was
        taken for it."""
        loop = asyncio.get_running_loop()
        call = _Call(outcomes, worker, size, lease, loop.create_future())
        self._waiting.append(call)
        if not self._called:  # those who were answered together ask together
            self._called = True
            loop.call_soon(self._go)
        try:
            return await call.answer
        except asyncio.CancelledError:
            if call.answer.done() and not call.answer.cancelled() and call.answer.exception() is None:
                self._start(self._give_back(call.answer.result()[1]))  # it was answered, and then cancelled
            raise

    async def alone(self, work: Coroutine[Any, Any, Result]) -> Result:
        """An exchange that goes by itself; who is cancelled meanwhile gives back what was taken."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody can cancel it
            return await work
        if innermost(self._queue._engine) is not None:  # undone with the transaction
            return await work
        task = loop.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._tasks.add(task)
            task.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is None:
            self._start(self._give_back(task.result()[1]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the callers: a transaction of theirs, which there is none of now, must not be met later."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _go(self) -> None:
        self._called = False
        while self._waiting and self._flying < FLYING:
            calls = self._next()
            if calls:
                self._flying += 1
                self._start(self._fly(calls))

    def _next(self) -> list[_Call]:
        """The calls that go together; who is gone already goes with none."""
        calls: list[_Call] = []
        rest: list[_Call] = []
        jobs, ids = 0, set[str]()
        for call in self._waiting:
            mine = {o.claim.id for o in call.outcomes}
            size = max(call.size, len(mine))
            fits = not calls or (call.lease == calls[0].lease and jobs + size <= MOST and not mine & ids)
            if call.answer.done():
                continue
            if fits:
                calls.append(call)
                jobs, ids = jobs + size, ids | mine
            else:
                rest.append(call)
        self._waiting = rest
        return calls

    async def _fly(self, calls: Sequence[_Call]) -> None:
        try:
            await self._answer(calls)
        except BaseException as error:
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error) if isinstance(error, Exception) else call.answer.cancel()
            if not isinstance(error, Exception):
                raise
        finally:
            self._flying -= 1
            self._go()

    async def _answer(self, calls: Sequence[_Call]) -> None:
        outcomes = [o for call in calls for o in call.outcomes]
        owners = [(call.worker, call.size) for call in calls]
        done, rows = await self._queue._exchanged(outcomes, owners, calls[0].lease)
        given: dict[str, list[Any]] = {}
        for row in rows:
            given.setdefault(row[len(CLAIMED)] if len(calls) > 1 else calls[0].worker, []).append(row)
        for call in calls:
            mine = given.get(call.worker, [])
            taken, given[call.worker] = mine[: call.size], mine[call.size :]
            held = self._queue._held(call.worker, self._queue._engine.now(), call.lease)
            claims = [AsyncClaim(self._queue, row, held) for row in taken]
            if not call.answer.done():
                call.answer.set_result(({o.claim.id for o in call.outcomes} & done, claims))
            else:
                self._start(self._give_back(claims))

    async def _give_back(self, claims: Sequence[AsyncClaim]) -> None:
        for claim in claims:
            with suppress(Error):  # its lease will end
                await claim.release()
