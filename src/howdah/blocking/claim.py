"""A claim: what a worker holds of a job, and the only way to finish it. A token that every claim raises fences old ones off. Blocking twin of ``howdah.stores.claim``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from typing import Any

from ..stores.claim import AsyncClaim
from ..stores.common import Duration
from ..stores.job import Job
from .runner import Runner


class Claim:
    """A job that this worker holds until ``lease_expires_at``. Each method is one write, guarded by the claim's token: when
    the lease was lost to another worker, or the job deleted, it raises ``ClaimLost`` and changes nothing."""

    def __init__(self, inner: AsyncClaim, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self._async.job

    @property
    def id(self) -> str:
        """The job's id."""
        return self._async.id

    @property
    def input(self) -> Any:
        """The job's input."""
        return self._async.input

    @property
    def token(self) -> int:
        """The fencing token: larger with each claim of the job."""
        return self._async.token

    @property
    def has_deadline(self) -> bool:
        """Whether the job must end by a moment."""
        return self._async.has_deadline

    def ack(self, output: Any = None) -> None:
        """Complete the job: ``COMPLETED``, progress 100, ``output`` (any JSON value) kept."""
        return self._run(self._async.ack(output))

    def fail(self, error: BaseException | str, *, code: str | None = None) -> None:
        """End the job as ``FAILED`` with a message, a code and, of an exception, its traceback."""
        return self._run(self._async.fail(error, code=code))

    def retry(
        self, *, delay: Duration | None = None, error: BaseException | str | None = None, code: str | None = None
    ) -> None:
        """Let the job run again ``delay`` seconds from now (default: exponential back-off with jitter), keeping ``error``.

        On its last attempt it becomes ``FAILED`` instead; one that is asked to stop becomes ``FAILED``, code ``Aborted``.
        """
        return self._run(self._async.retry(delay=delay, error=error, code=code))

    def disable(self) -> None:
        """End the job as ``DISABLED``: no error, no retry."""
        return self._run(self._async.disable())

    def release(self) -> None:
        """Give the job back as if it had not been claimed: its place is the old one, the attempt does not count."""
        return self._run(self._async.release())

    def extend(self, lease: Duration = 30) -> bool:
        """Hold the job for ``lease`` seconds from now on; whether it has been asked to stop."""
        return self._run(self._async.extend(lease))

    def progress(self, progress: float, message: str = "", *, details: Any = None) -> None:
        """Say how far the job is: 0 to 100 (cut to that), a message, any JSON as details. Readable everywhere."""
        return self._run(self._async.progress(progress, message, details=details))

    def emit(self, event: Any) -> int:
        """Add an event (any JSON value) to the job's live stream; its number, from 1 without gaps over all attempts.

        Waits for a reader in this process that is 1,000 events behind."""
        return self._run(self._async.emit(event))
