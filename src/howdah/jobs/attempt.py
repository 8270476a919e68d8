"""One execution of a job: the handler under its deadlines, and what follows from how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ClaimLost, Error, JobDisabled, PermanentJobError
from ..stores.claim import ABORTED, LATE, AsyncClaim
from ..stores.job import Retry
from ..values import encode_json
from .context import JobContext
from .failures import retry_moment, worth_retrying

if TYPE_CHECKING:
    from .server import AsyncJobServer

log = logging.getLogger("howdah")
Handler = Callable[[Any, JobContext], Any]
LOST, TIMEOUT = "lost", "timeout"


class Ended(NamedTuple):
    """How an execution ended: ``completed`` with an output, else what was done about it."""

    kind: str
    output: Any = None
    error: BaseException | None = None


def _plain(handler: Handler, input: Any, context: JobContext) -> tuple[Any, BaseException | None]:
    """Call a plain handler; what it raises is a result, too, whatever it is."""
    try:
        return handler(input, context), None
    except BaseException as error:
        return None, error


async def _awaited(handler: Handler, input: Any, context: JobContext) -> tuple[Any, BaseException | None]:
    """Run a coroutine handler; ``SystemExit`` and its kin must not end the event loop."""
    try:
        return await handler(input, context), None
    except BaseException as error:
        return None, error


class Attempt:
    """A job that runs here."""

    def __init__(self, server: AsyncJobServer, claim: AsyncClaim, token: Any) -> None:
        self._server = server
        self.claim = claim
        self.token = token
        self.key = claim.id, claim.token
        self.began = time.monotonic()
        self.why: str | None = None
        self._coroutine = server._coroutine
        self.context = JobContext(claim, asyncio.get_running_loop(), server._tell_soon, threaded=not self._coroutine)
        self._task: asyncio.Task[Any] | None = None
        self._work: asyncio.Future[tuple[Any, BaseException | None]] | None = None

    def stop(self, why: str) -> None:
        """Ask the handler to stop: a coroutine is cancelled, a plain one sees ``ctx.aborted``."""
        if self.why is None:
            self.why = why
            self.context._aborted = True
            work = self._task or self._work
            if self._coroutine and work is not None:
                work.cancel()

    async def run(self) -> Ended:
        """Run the handler; the claim is settled, but for a success, which the server writes together with others."""
        if self._coroutine and self._server._attempt_timeout is None and not self.claim.has_deadline:
            output, error = await self._here()
        else:
            output, error = await self._watched()
        if self.why == TIMEOUT:
            return await self._failed(TimeoutError("the attempt took longer than attempt_timeout"))
        if self.why is not None:
            return await self._stopped()
        if error is None:
            try:
                encode_json(output, "output")
            except Exception as bad:
                error = bad
        if isinstance(error, JobDisabled):
            await self.claim.disable()
            return Ended("disabled")
        if error is not None:
            return await self._failed(error)
        if self.context._progress.waiting is not None:
            try:
                await self.context._progress.save(now=True)
            except ClaimLost:
                return Ended(LOST)
            except Error as failure:  # what was done counts more than how far it was said to be
                log.warning("the last progress of job %s could not be saved: %s", self.claim.id, failure)
        return Ended("completed", output)

    async def _watched(self) -> tuple[Any, BaseException | None]:
        """What the handler gave or raised, once it has ended: a thread cannot be stopped, so it keeps its place."""
        claim, server = self.claim, self._server
        limit, late = server._attempt_timeout, None
        if claim.has_deadline and claim.job.deadline_at is not None:
            late = max(0.0, claim.job.deadline_at.timestamp() - server._queue._engine.now())
        shortest = min((t for t in (limit, late) if t is not None), default=None)
        handler, given, context = server._handler, claim.input, self.context
        if self._coroutine:
            self._work = asyncio.get_running_loop().create_task(_awaited(handler, given, context))
        else:
            self._work = server._threads.submit(lambda: contextvars.Context().run(_plain, handler, given, context))
        work = self._work
        try:
            done, _ = await asyncio.wait({work}, timeout=shortest)
            if not done:
                self.stop(LATE if late is not None and late == shortest else TIMEOUT)
                await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            raise
        if work.cancelled():
            return None, asyncio.CancelledError("the handler was cancelled")
        return work.result()

    async def _here(self) -> tuple[Any, BaseException | None]:
        """Run a coroutine handler in this task: without a time limit nobody has to watch it."""
        task = asyncio.current_task()
        assert task is not None
        if self.why is not None:
            return None, asyncio.CancelledError("the handler was not begun")
        self._task = task
        output, error = await _awaited(self._server._handler, self.claim.input, self.context)
        self._task = None
        if self.why is not None:  # what stopped the handler must not stop what follows
            task.uncancel()
        elif isinstance(error, asyncio.CancelledError) and task.cancelling():
            if self._server.ending:
                raise error
            while task.cancelling():  # the handler cancelled itself: it has failed, and the rest goes on
                task.uncancel()
        return output, error

    async def _stopped(self) -> Ended:
        """The handler ended because it was asked to."""
        if self.why == LOST:
            return Ended(LOST)
        if self.why == ABORTED:
            await self.claim.fail("aborted", code=ABORTED)
            return Ended("aborted")
        if self.why == LATE:
            await self.claim.fail("the deadline passed while the job ran", code=LATE)
            return Ended("error", error=TimeoutError("the deadline passed"))
        await self.claim.release()
        return Ended("released")

    async def _failed(self, error: BaseException) -> Ended:
        if isinstance(error, ClaimLost):
            return Ended(LOST)
        if not isinstance(error, Exception):
            ended = PermanentJobError(f"the handler ended by {type(error).__name__}: {error}")
            ended.__cause__ = error
            error = ended
        retry: Retry = self._server._retry
        job = self.claim.job
        most = job.max_attempts if retry.attempts is None else min(retry.attempts, job.max_attempts)
        if not worth_retrying(error, retry):
            await self.claim.fail(error)
            return Ended("error", error=error)
        if job.attempts >= most:
            await self.claim.fail(error)
            return Ended("exhausted", error=error)
        at = retry_moment(error)
        now = self._server._queue._engine.now()
        delay = retry.wait(job.attempts) if at is None else max(0.0, at.astimezone(UTC).timestamp() - now)
        await self.claim.retry(delay=delay, error=error)
        return Ended("retry", error=error)
