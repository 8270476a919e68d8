"""Errors of jobs: whether another try makes sense, and how the producer gets back what the worker raised."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from datetime import datetime

from ..errors import InvalidInput, JobAborted, JobDisabled, JobError, PermanentJobError, RetryableJobError
from ..stores.claim import ABORTED
from ..stores.job import Job, JobStatus, Retry

Factory = Callable[[str, str], BaseException]
_factories: dict[str, Factory] = {}


def register_error_code(prefix: str, factory: Factory) -> None:
    """Rebuild errors whose code begins with ``prefix`` by ``factory(message, code)``; the longest prefix counts."""
    if not isinstance(prefix, str) or not prefix or not callable(factory):
        raise InvalidInput("register_error_code takes a prefix that is not empty and a function of message and code")
    _factories[prefix] = factory


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def worth_retrying(error: BaseException, retry: Retry) -> bool:
    """Whether to try again: as the error itself or one it wraps declares by ``retryable``, else as ``retry`` says."""
    for each in causes(error):
        declared = getattr(each, "retryable", None)
        if isinstance(declared, bool):
            return declared
    return retry.worth(error)


def retry_moment(error: BaseException) -> datetime | None:
    """When the error wants to be tried again, if it says."""
    for each in causes(error):
        at = getattr(each, "retry_at", None)
        if isinstance(at, datetime) and at.tzinfo is not None:
            return at
    return None


def error_of(job: Job) -> BaseException:
    """The error of a job that did not complete, as near as possible to what the worker raised, with its traceback."""
    message, code = job.error or f"job {job.id} has failed", job.error_code or "JobError"
    if job.status is JobStatus.DISABLED:
        return JobDisabled(f"job {job.id} is disabled")
    error = _rebuilt(message, code)
    if job.traceback:
        error.add_note(f"On the worker:\n{job.traceback}")
    return error


def _rebuilt(message: str, code: str) -> BaseException:
    if code == ABORTED:
        return JobAborted(message, code=code)
    found = getattr(builtins, code, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(message)
        except TypeError:  # UnicodeDecodeError and its kin want more
            return JobError(message, code=code)
    for prefix in sorted(_factories, key=len, reverse=True):
        if code.startswith(prefix):
            return _factories[prefix](message, code)
    for ours in (RetryableJobError, PermanentJobError):
        if code == ours.code:
            return ours(message)
    return JobError(message, code=code)
