"""One execution of a job: the handler under its deadlines, and what follows from how it ended."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ClaimLost, JobDisabled
from ..stores.claim import ABORTED, LATE, AsyncClaim
from ..stores.job import Retry
from ..values import encode_json
from .context import JobContext
from .failures import retry_moment, worth_retrying

if TYPE_CHECKING:
    from .server import AsyncJobServer

Handler = Callable[[Any, JobContext], Any]


class Ended(NamedTuple):
    """How an execution ended: ``completed`` with an output, else what was done about it."""

    kind: str
    output: Any = None
    error: BaseException | None = None


class Attempt:
    """A job that runs here."""

    def __init__(self, server: AsyncJobServer, claim: AsyncClaim, token: Any) -> None:
        self._server = server
        self.claim = claim
        self.token = token
        self.began = asyncio.get_running_loop().time()
        self.why: str | None = None
        self.lost = False
        handler = server._handler
        self._coroutine = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
        )
        self.context = JobContext(claim, asyncio.get_running_loop(), server._tell_soon, threaded=not self._coroutine)
        self._work: asyncio.Future[Any] | None = None

    def stop(self, why: str) -> None:
        """Ask the handler to stop: a coroutine is cancelled, a plain one sees ``ctx.aborted``."""
        if self.why is None:
            self.why = why
            self.context._aborted = True
            if self._work is not None:
                self._work.cancel()

    async def run(self) -> Ended:
        """Run the handler; the claim is settled, but for a success, which the server writes together with others."""
        try:
            output = await self._handle()
            encode_json(output, "output")
        except asyncio.CancelledError:
            if self.why is None:
                raise
            return await self._stopped()
        except JobDisabled:
            await self.claim.disable()
            return Ended("disabled")
        except Exception as error:
            if self.why is not None:
                return await self._stopped()
            return await self._failed(error)
        if self.lost:
            return Ended("lost")
        await self.context._progress.save(now=True)
        return Ended("completed", output)

    async def _handle(self) -> Any:
        claim, server = self.claim, self._server
        limit, late = server._attempt_timeout, None
        if claim.has_deadline and claim.job.deadline_at is not None:
            late = claim.job.deadline_at.timestamp() - server._queue._engine.now()
        work = self._call(server._threads())
        self._work = work
        try:
            async with asyncio.timeout(limit if late is None else late if limit is None else min(late, limit)):
                return await work
        except TimeoutError:
            if not work.done() or work.cancelled():
                self.context._aborted = True
                if late is not None and (limit is None or late <= limit):
                    self.why = LATE
            raise

    def _call(self, threads: Executor) -> asyncio.Future[Any]:
        loop, handler = asyncio.get_running_loop(), self._server._handler
        if self._coroutine:
            return loop.create_task(handler(self.claim.input, self.context))
        return loop.run_in_executor(threads, handler, self.claim.input, self.context)

    async def _stopped(self) -> Ended:
        """The handler did not end by itself."""
        if self.lost:
            return Ended("lost")
        if self.why == ABORTED:
            await self.claim.fail("aborted", code=ABORTED)
            return Ended("aborted")
        if self.why == LATE:
            await self.claim.fail("the deadline passed while the job ran", code=LATE)
            return Ended("error", error=TimeoutError("the deadline passed"))
        await self.claim.release()
        return Ended("released")

    async def _failed(self, error: Exception) -> Ended:
        if self.lost or isinstance(error, ClaimLost):
            return Ended("lost")
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
