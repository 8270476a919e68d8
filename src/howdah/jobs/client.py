"""The producer's side: jobs submitted, their results awaited, whoever runs them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..criteria import And, In, Null
from ..engines.base import Engine, innermost
from ..errors import Closed, Error, InvalidInput, JobNotFound, Timeout, TransactionError
from ..stores.common import Duration
from ..stores.job import Job, JobStatus
from ..stores.queue import AsyncQueue
from ..values import seconds
from .failures import error_of

log = logging.getLogger("howdah")
POLL = 1.0
PAUSE = 4e-6


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """How far a job is: 0 to 100, a message, details."""

    progress: float
    message: str
    details: Any


class AsyncJobClient:
    """Submits jobs to a queue and waits for their results. One reader serves all who wait, however many."""

    def __init__(self, queue: AsyncQueue) -> None:
        if not isinstance(queue, AsyncQueue):
            raise InvalidInput(f"AsyncJobClient takes a queue, got {type(queue).__name__}")
        self._queue = queue
        self._engine: Engine = queue._engine
        self._waiting: dict[str, tuple[asyncio.Future[Job | None], int]] = {}
        self._task: asyncio.Task[None] | None = None

    async def submit(self, input: Any, **options: Any) -> AsyncJobHandle:
        """Add a job (``options`` are those of ``queue.add``); a handle on it."""
        return AsyncJobHandle(self, await self._queue.add(input, **options))

    async def submit_many(self, inputs: Iterable[Any], **options: Any) -> list[AsyncJobHandle]:
        """Add many jobs, all or none; their handles in order."""
        return [AsyncJobHandle(self, id) for id in await self._queue.add_many(inputs, **options)]

    async def attach(self, id: str) -> AsyncJobHandle:
        """A handle on a job that is there already; ``JobNotFound`` if it is not."""
        if await self._queue.get(id) is None:
            raise JobNotFound(f"queue {self._queue.name!r} has no job {id}")
        return AsyncJobHandle(self, id)

    async def _finished(self, id: str) -> Job | None:
        """The job once it has finished, or ``None`` once it is gone."""
        if innermost(self._engine) is not None:
            raise TransactionError("results are waited for outside of transactions: end the transaction first")
        found, count = self._waiting.get(id) or (asyncio.get_running_loop().create_future(), 0)
        self._waiting[id] = found, count + 1
        try:
            if count == 0:
                job = await self._queue.get(id)  # it may have ended before anybody asked
                if job is None or job.finished:
                    self._resolve(id, job)
                elif self._task is None or self._task.done():
                    self._task = asyncio.get_running_loop().create_task(self._read(), context=contextvars.Context())
            return await asyncio.shield(found)
        finally:
            left = self._waiting.get(id)
            if left is not None and left[0] is found:
                self._waiting[id] = found, left[1] - 1
                if left[1] == 1:
                    del self._waiting[id]

    async def _read(self) -> None:
        """Look which awaited jobs have finished, whenever something has changed."""
        checked = time.monotonic()
        try:
            while self._waiting:
                try:
                    mark = await self._engine.changed(self._queue._ops, None, 0)
                    # Now and then each is looked at: one may have been deleted.
                    whole = time.monotonic() - checked > POLL
                    checked = time.monotonic() if whole else checked
                    await self._look(sorted(self._waiting), all_states=whole)
                    if self._waiting:
                        await self._engine.changed(self._queue._ops, mark, POLL)
                        await asyncio.sleep(len(self._waiting) * PAUSE)  # many who wait are served many at a time
                except Closed:
                    raise
                except Error as error:
                    log.warning("results will be looked for again: %s", error)
                    await asyncio.sleep(POLL)
        except Exception as error:
            self._fail(error)

    async def _look(self, ids: list[str], *, all_states: bool) -> None:
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            if all_states:
                found = await self._queue.get_many(some)
                for id in some:
                    job = found.get(id)
                    if job is None or job.finished:
                        self._resolve(id, job)
                continue
            where = And((In("id", tuple(some)), Null("completed_at", negated=True)))
            for row in await self._queue._table.query(where).all():
                self._resolve(row["id"], self._queue._job(row))

    def _resolve(self, id: str, job: Job | None) -> None:
        waiter, _ = self._waiting.pop(id, (None, 0))
        if waiter is not None and not waiter.done():
            waiter.set_result(job)

    def _fail(self, error: Exception) -> None:
        for id in list(self._waiting):
            waiter, _ = self._waiting.pop(id)
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # whoever still waits gets it; nobody else misses it


class AsyncJobHandle:
    """A job that was submitted."""

    def __init__(self, client: AsyncJobClient, id: str) -> None:
        self._client = client
        self._id = id

    @property
    def id(self) -> str:
        """The job's id."""
        return self._id

    async def result(self, *, timeout: Duration | None = None) -> Any:
        """The job's output once it is completed; raises its error when it failed.

        ``JobAborted``, ``JobDisabled``, ``JobNotFound`` (it was deleted) and ``Timeout`` are the other outcomes.
        """
        try:
            wait = None if timeout is None else seconds(timeout, "timeout", zero=True)
            job = await asyncio.wait_for(self._client._finished(self._id), wait)
        except TimeoutError as error:
            raise Timeout(f"job {self._id} has not finished within {timeout} seconds") from error
        if job is None:
            raise JobNotFound(f"job {self._id} is gone: it was deleted, or not kept")
        if job.status is JobStatus.COMPLETED:
            return job.output
        raise error_of(job)

    async def abort(self) -> bool:
        """Stop the job; ``False`` when it has finished."""
        return await self._client._queue.abort(self._id)

    async def progress(self) -> AsyncIterator[ProgressUpdate]:
        """The latest progress, then each that follows, until the job has finished."""
        queue, last = self._client._queue, None
        while True:
            mark = await queue._engine.changed(queue._ops, None, 0)
            job = await queue.get(self._id)
            if job is None:
                raise JobNotFound(f"job {self._id} is gone: it was deleted, or not kept")
            found = ProgressUpdate(job.progress, job.progress_message, job.progress_details)
            if found != last:
                last = found
                yield found
            if job.finished:
                return
            await queue._engine.changed(queue._ops, mark, POLL)

    async def on_progress(self, fn: Callable[[ProgressUpdate], Any]) -> Callable[[], None]:
        """Call ``fn`` with the latest progress and each that follows; the function returned ends it."""
        if not callable(fn):
            raise InvalidInput(f"fn={fn!r:.60}: expected a function")

        async def follow() -> None:
            try:
                async for update in self.progress():
                    fn(update)
            except JobNotFound:
                return
            except Exception:
                log.exception("a listener failed on the progress of job %s", self._id)

        task = asyncio.get_running_loop().create_task(follow(), context=contextvars.Context())
        _following.add(task)
        task.add_done_callback(_following.discard)

        def end() -> None:
            task.cancel()

        return end

    async def stream(self, *, since: int = 0) -> AsyncIterator[Any]:
        """The events that the job emits, from number ``since`` on, until it has finished."""
        async for event in self._client._queue.stream(self._id, since=since):
            yield event


_following: set[asyncio.Task[None]] = set()
