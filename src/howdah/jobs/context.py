"""What a handler may do with the job it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ..stores.claim import AsyncClaim, check_progress
from ..stores.common import Duration
from ..stores.job import Job

SAVE_EVERY = 1.0


class Progress:
    """The latest progress of a job, saved at most once a second, the last always."""

    def __init__(self, claim: AsyncClaim) -> None:
        self._claim = claim
        self.waiting: tuple[float, str, Any] | None = None
        self._saved = 0.0

    def note(self, progress: float, message: str, details: Any) -> None:
        """Remember a progress."""
        check_progress(progress, message, details)
        self.waiting = (progress, message, details)

    async def save(self, *, now: bool = False) -> None:
        """Save what was noted, if it is time."""
        if self.waiting is None or (not now and time.monotonic() - self._saved < SAVE_EVERY):
            return
        (progress, message, details), self.waiting = self.waiting, None
        self._saved = time.monotonic()
        await self._claim.progress(progress, message, details=details)


class JobContext:
    """Given to a handler beside the input. A plain handler, which runs in a thread, uses the same methods without ``await``."""

    def __init__(
        self, claim: AsyncClaim, loop: asyncio.AbstractEventLoop, tell: Callable[..., None], *, threaded: bool
    ) -> None:
        self._claim = claim
        self._loop = loop
        self._tell = tell
        self._threaded = threaded
        self._aborted = False
        self._progress = Progress(claim)

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self._claim.job

    @property
    def aborted(self) -> bool:
        """Whether the job was asked to stop, or lost. A plain handler should look now and then, and return."""
        return self._aborted

    def _do(self, coroutine: Any) -> Any:
        """The coroutine for ``await``, or in a thread its result."""
        if not self._threaded:
            return coroutine
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def progress(self, progress: float, message: str = "", *, details: Any = None) -> Any:
        """Say how far the job is: 0 to 100, a message, any JSON. It is saved at most once a second, the last always."""
        self._progress.note(progress, message, details)
        self._tell("job_progress", self._claim.id, progress, message, details)
        return self._do(self._progress.save())

    def emit(self, event: Any) -> Any:
        """Add an event to the job's live stream; its number."""
        self._tell("job_stream", self._claim.id, event)
        return self._do(self._claim.emit(event))

    def extend(self, lease: Duration) -> Any:
        """Hold the job for so many seconds from now on."""
        return self._do(self._claim.extend(lease))
