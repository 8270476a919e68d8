"""A claim: what a worker holds of a job, and the only way to finish it. A token that every claim raises fences old ones off."""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..criteria import And, Compare, Criteria, Null
from ..engines.base import Op
from ..errors import ClaimLost, InvalidInput, InvalidValue
from ..values import check_text, encode_json, seconds
from .common import Duration, moment
from .job import CLAIMED, COLUMNS, Job, JobStatus, Retry

if TYPE_CHECKING:
    from .queue import AsyncQueue
    from .settling import Letter

MAX_TRACEBACK = 48_000
MAX_CAUSES = 8
EXHAUSTED, ABORTED, LATE, NEEDED = "AttemptsExhausted", "Aborted", "DeadlineExceeded", "NeededJobFailed"
ID, TOKEN, ATTEMPTS, INPUT, DEADLINE_AT = map(CLAIMED.index, ("id", "token", "attempts", "input", "deadline_at"))
NOTHING: dict[str, Any] = dict.fromkeys(c.name for c in COLUMNS)
FREE: dict[str, Any] = {"lease_owner": None, "lease_expires_at": None}
FINISHED: dict[str, Any] = {**FREE, "due_at": None, "ends_at": None, "blocked_at": None, "unique_key": None}


def failed(now: float, error: str, code: str, traceback: str | None = None) -> dict[str, Any]:
    """Values of a job that has failed."""
    patch = {"status": JobStatus.FAILED.value, "completed_at": moment(now), "error": error, "error_code": code}
    return {**FINISHED, **patch, "traceback": traceback}


def waiting(job: Job, due: float | None) -> dict[str, Any]:
    """Values of a job that waits again, from ``due`` on or at its old place."""
    at = job.visible_at if due is None else moment(due)
    patch = {"status": JobStatus.PENDING.value, "due_at": at, "visible_at": at, "ends_at": job.deadline_at}
    return {**FREE, **patch, "progress": 0.0, "progress_message": "", "progress_details": None}


def describe(error: BaseException | str, code: str | None) -> tuple[str, str, str | None]:
    """Message, code and traceback of an error as they are stored: causes to a depth of 8, 48,000 characters."""
    if code is not None and not isinstance(code, str):
        raise InvalidInput(f"code={code!r:.60}: expected text")
    if isinstance(error, str):
        return _plain(error), _plain(code or "JobError"), None
    if not isinstance(error, BaseException):
        raise InvalidInput(f"error {error!r:.60}: expected an exception or text")
    shown = tracebacks.TracebackException.from_exception(error)
    chain: tracebacks.TracebackException | None = shown
    for _ in range(MAX_CAUSES - 1):
        chain = chain and (chain.__cause__ or chain.__context__)
    if chain is not None:
        chain.__cause__ = chain.__context__ = None
    text = _plain("".join(shown.format()))
    given = code or getattr(error, "code", None)
    name = given if isinstance(given, str) and given else type(error).__name__
    try:
        said = str(error)
    except Exception as bad:  # an error that cannot say what it is
        said = f"{type(error).__name__}, whose text cannot be made: {type(bad).__name__}"
    return _plain(said or type(error).__name__), _plain(name), text[-MAX_TRACEBACK:]


def _plain(text: str) -> str:
    """Text that every engine can hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Outcome(NamedTuple):
    """A claim and what its job came to."""

    claim: AsyncClaim
    output: Any


class AsyncClaim:
    """A job that this worker holds until ``lease_expires_at``. Each method is one write, guarded by the claim's token: when
    the lease was lost to another worker, or the job deleted, it raises ``ClaimLost`` and changes nothing."""

    def __init__(self, queue: AsyncQueue, row: Sequence[Any], held: Mapping[str, Any]) -> None:
        self._queue = queue
        self._row = row
        self._lease = held
        self._id: str = row[ID]
        self._token: int = row[TOKEN]
        self._emitted: bool = row[ATTEMPTS] > 1
        self._job: Job | None = None

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        if self._job is None:
            found = self._queue._read_claimed(self._row)
            status = JobStatus.PROCESSING.value
            self._job = self._queue._job(
                {**NOTHING, **found, **self._lease, "status": status, "tags": self._queue.scope}
            )
        return self._job

    @property
    def id(self) -> str:
        """The job's id."""
        return self._id

    @property
    def input(self) -> Any:
        """The job's input."""
        if self._job is not None:
            return self._job.input
        text = self._row[INPUT]
        return None if text is None else self._queue._ops.decoders["input"](text)

    @property
    def token(self) -> int:
        """The fencing token: larger with each claim of the job."""
        return self._token

    @property
    def has_deadline(self) -> bool:
        """Whether the job must end by a moment."""
        return self._row[DEADLINE_AT] is not None

    def _held(self) -> Criteria:
        same = (Compare("id", "=", self.id), Compare("token", "=", self._token))
        return And((*same, Compare("status", "=", JobStatus.PROCESSING.value)))

    async def _change(self, patch: dict[str, Any], *, unless_aborted: bool = False) -> None:
        queue, ops, held = self._queue, self._queue._ops, self._held()
        if self._emitted:
            await queue._streams.ready()
        letters = queue._letters_to is not None and patch["status"] == JobStatus.FAILED.value
        if letters and patch["error_code"] != ABORTED:
            await queue._ready()
            patch["letter_due"] = patch["completed_at"]
        encoded = queue._encoded(patch)
        aborted = queue._encoded(failed(queue._engine.now(), "aborted", ABORTED))

        def work() -> Op[list[Letter]]:
            where = And((held, Null("abort_requested_at"))) if unless_aborted else held
            rows = yield from ops.update(None, where, encoded, ("id",))
            if not rows and unless_aborted:
                rows = yield from ops.update(None, held, aborted, ("id",))
            if not rows:
                raise self._lost()
            if self._emitted and "completed_at" in patch:
                yield from queue._streams.end(self.id)
            return (yield from queue._letters()) if "letter_due" in patch else []

        await queue._send(await queue._table._write(work))
        queue._behind = None

    def _lost(self) -> ClaimLost:
        return ClaimLost(f"job {self.id}: the lease was lost, or the job deleted; nothing was changed")

    async def ack(self, output: Any = None) -> None:
        """Complete the job: ``COMPLETED``, progress 100, ``output`` (any JSON value) kept."""
        encode_json(output, "output")
        if self.id not in await self._queue.complete([Outcome(self, output)]):
            raise self._lost()

    async def fail(self, error: BaseException | str, *, code: str | None = None) -> None:
        """End the job as ``FAILED`` with a message, a code and, of an exception, its traceback."""
        await self._change(failed(self._queue._engine.now(), *describe(error, code)))

    async def retry(
        self, *, delay: Duration | None = None, error: BaseException | str | None = None, code: str | None = None
    ) -> None:
        """Let the job run again ``delay`` seconds from now (default: exponential back-off with jitter), keeping ``error``.

        On its last attempt it becomes ``FAILED`` instead; one that is asked to stop becomes ``FAILED``, code ``Aborted``.
        """
        now = self._queue._engine.now()
        kept = (
            {} if error is None else dict(zip(("error", "error_code", "traceback"), describe(error, code), strict=True))
        )
        if self.job.attempts >= self.job.max_attempts:
            told = kept or {"error": "no attempt is left", "error_code": EXHAUSTED}
            patch = {**failed(now, "", ""), **told}
        else:
            wait = Retry().wait(self.job.attempts) if delay is None else seconds(delay, "delay", zero=True)
            patch = {**waiting(self.job, now + wait), **kept}
        await self._change(patch, unless_aborted=True)

    async def disable(self) -> None:
        """End the job as ``DISABLED``: no error, no retry."""
        at = moment(self._queue._engine.now())
        patch = {"status": JobStatus.DISABLED.value, "completed_at": at, "progress": 0.0, "progress_message": ""}
        await self._change({**FINISHED, **patch, "progress_details": None, "error": None, "error_code": None})

    async def release(self) -> None:
        """Give the job back as if it had not been claimed: its place is the old one, the attempt does not count."""
        await self._change({**waiting(self.job, None), "attempts": self.job.attempts - 1}, unless_aborted=True)

    async def extend(self, lease: Duration = 30) -> bool:
        """Hold the job for ``lease`` seconds from now on; whether it has been asked to stop."""
        due = moment(self._queue._engine.now() + seconds(lease, "lease", zero=True))
        patch, held = self._queue._encoded({"lease_expires_at": due}), self._held()
        rows = await self._queue._table._write(
            lambda: self._queue._ops.update(None, held, patch, ("id", "abort_requested_at")), single=True
        )
        if not rows:
            raise self._lost()
        return rows[0][1] is not None

    async def progress(self, progress: float, message: str = "", *, details: Any = None) -> None:
        """Say how far the job is: 0 to 100 (cut to that), a message, any JSON as details. Readable everywhere."""
        patch = self._queue._encoded(check_progress(progress, message, details))
        held = self._held()
        work = self._queue._ops.update
        if not await self._queue._table._write(lambda: work(None, held, patch, ("id",)), single=True):
            raise self._lost()

    async def emit(self, event: Any) -> int:
        """Add an event (any JSON value) to the job's live stream; its number, from 1 without gaps over all attempts.

        Waits for a reader in this process that is 1,000 events behind."""
        text = encode_json(event, "event")
        await self._queue._streams.ready()
        self._emitted = True

        def work() -> Op[int]:
            held = yield from self._queue._ops.locked((self.id,), ("token", "status"))
            if held is None or tuple(held) != (self._token, JobStatus.PROCESSING.value):
                raise self._lost()
            return (yield from self._queue._streams.add(self.id, text))

        seq = int(await self._queue._table._write(work))
        await self._queue._streams.keep_pace(self.id, seq)
        return seq


def check_progress(progress: float, message: str, details: Any) -> dict[str, Any]:
    """Values of a job's progress, checked."""
    if isinstance(progress, bool) or not isinstance(progress, (int, float)) or progress != progress:
        raise InvalidValue(f"progress={progress!r}: expected a number from 0 to 100")
    if not isinstance(message, str):
        raise InvalidInput(f"message={message!r:.60}: expected text")
    check_text(message, "message")
    made = None if details is None else encode_json(details, "details")
    return {
        "progress": float(min(100, max(0, progress))),
        "progress_message": message,
        "progress_details": made,
    }
