"""Jobs of a queue: what they are, how they are stored, and when a failed one is tried again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from ..errors import InvalidInput
from ..schema import Column, Line, SparseIndex
from ..values import check_json, check_name, check_text, seconds


class JobStatus(StrEnum):
    """Where a job is in its life."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    DISABLED = "DISABLED"


PAUSED = "paused"
"""Status and id (with the scope behind it) of a row that stands for a pause; no job has either."""
ACTIVE = (JobStatus.PENDING.value, JobStatus.PROCESSING.value)

# ``due_at`` and ``ends_at`` are there while a job waits, ``blocked_at`` while it waits for others, ``letter_due``
# when time has made it fail and no dead letter was sent, ``lease_expires_at`` while it runs, ``unique_key`` until it has
# finished, ``completed_at`` from then on: an index on one of them holds those jobs only, however many others there are.
# ``fingerprint_hash`` stands for scope and fingerprint in indexes, whose entries at random places cost what they are wide.
COLUMNS = (
    Column("id", "text"),
    Column("scope", "text"),
    Column("tags", "json", nullable=True),
    Column("run_id", "text", nullable=True),
    Column("status", "text"),
    Column("rank", "integer"),
    Column("due_at", "timestamp", nullable=True),
    Column("visible_at", "timestamp"),
    Column("after", "json", nullable=True),
    Column("blocked_at", "timestamp", nullable=True),
    Column("created_at", "timestamp"),
    Column("ends_at", "timestamp", nullable=True),
    Column("deadline_at", "timestamp", nullable=True),
    Column("attempts", "integer"),
    Column("max_attempts", "integer"),
    Column("token", "integer"),
    Column("lease_owner", "text", nullable=True),
    Column("lease_expires_at", "timestamp", nullable=True),
    Column("last_attempted_at", "timestamp", nullable=True),
    Column("completed_at", "timestamp", nullable=True),
    Column("letter_due", "timestamp", nullable=True),
    Column("abort_requested_at", "timestamp", nullable=True),
    Column("fingerprint", "text"),
    Column("fingerprint_hash", "integer"),
    Column("unique_key", "text", nullable=True),
    Column("progress", "real"),
    Column("progress_message", "text"),
    Column("progress_details", "json", nullable=True),
    Column("input", "json", nullable=True),
    Column("output", "json", nullable=True),
    Column("error", "text", nullable=True),
    Column("error_code", "text", nullable=True),
    Column("traceback", "text", nullable=True),
)
SPARSE = (
    SparseIndex(("scope", "rank", "due_at", "id"), "due_at"),
    SparseIndex(("lease_expires_at",), "lease_expires_at"),
    SparseIndex(("ends_at",), "ends_at"),
    SparseIndex(("blocked_at", "id"), "blocked_at"),
    SparseIndex(("status", "completed_at"), "completed_at"),
    SparseIndex(("fingerprint_hash", "completed_at"), "completed_at"),
    SparseIndex(("fingerprint_hash",), "due_at"),
    SparseIndex(("run_id",), "run_id"),
    SparseIndex(("scope", "letter_due"), "letter_due"),
    SparseIndex(("scope", "unique_key"), "unique_key", unique=True),
)
CLAIMED = (
    *(
        "id",
        "run_id",
        "rank",
        "visible_at",
        "created_at",
        "deadline_at",
        "attempts",
        "max_attempts",
        "token",
        "fingerprint",
    ),
    *("progress", "progress_message", "progress_details", "input", "error", "error_code", "traceback", "after"),
)
"""What a worker is told of a job that it takes; the rest it knows, or it is null."""
LINE = Line("scope", "due_at", "ends_at", ("rank", "due_at", "id"), ("rank", "visible_at", "id"))
TELL = ("completed_at", "abort_requested_at", "progress_message")


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it was when it was read. ``attempts`` counts executions begun; ``progress`` goes from 0 to 100."""

    id: str
    run_id: str
    queue: str
    input: Any
    output: Any
    error: str | None
    error_code: str | None
    traceback: str | None
    fingerprint: str
    status: JobStatus
    priority: int
    attempts: int
    max_attempts: int
    created_at: datetime
    visible_at: datetime
    deadline_at: datetime | None
    last_attempted_at: datetime | None
    completed_at: datetime | None
    progress: float
    progress_message: str
    progress_details: Any
    lease_owner: str | None
    lease_expires_at: datetime | None
    abort_requested_at: datetime | None
    scope: Mapping[str, Any]
    after: tuple[str, ...] = ()

    @property
    def aborting(self) -> bool:
        """Whether a running job has been asked to stop."""
        return self.status is JobStatus.PROCESSING and self.abort_requested_at is not None

    @property
    def finished(self) -> bool:
        """Whether the job has come to an end."""
        return self.status.value not in ACTIVE


_SAME = [f for f in Job.__dataclass_fields__ if f not in ("queue", "run_id", "status", "priority", "scope", "after")]


def read_job(queue: str, row: Mapping[str, Any]) -> Job:
    """The job of a row."""
    return Job(
        queue=queue,
        run_id=row["run_id"] or row["id"],
        status=JobStatus(row["status"]),
        priority=-row["rank"],
        scope=row["tags"] or {},
        after=tuple(row["after"] or ()),
        **{name: row[name] for name in _SAME},
    )


@dataclass(frozen=True, slots=True)
class Retry:
    """When something that failed is tried again.

    ``attempts`` caps executions (``None``: the job's own cap). The wait before execution n + 1 is a random part of
    ``delay · 2^(n − 1)`` (``backoff="exponential"``, with full jitter), ``delay · n`` (``"linear"``) or ``delay``
    (``"constant"``), at most ``max_delay``; durations are seconds or ``timedelta``. ``on`` lists the exceptions worth another
    try when they do not say so themselves (default: ``ConnectionError``, ``TimeoutError``).
    """

    attempts: int | None = None
    delay: float | timedelta = 1
    backoff: Literal["exponential", "linear", "constant"] = "exponential"
    max_delay: float | timedelta = 600
    on: tuple[type[BaseException], ...] | None = None

    def __post_init__(self) -> None:
        if self.attempts is not None and (type(self.attempts) is not int or self.attempts < 1):
            raise InvalidInput(f"attempts={self.attempts!r}: expected an integer >= 1, or None")
        if self.backoff not in ("exponential", "linear", "constant"):
            raise InvalidInput(f"backoff={self.backoff!r}: 'exponential', 'linear' or 'constant'")
        seconds(self.delay, "delay", zero=True)
        seconds(self.max_delay, "max_delay", zero=True)

    def wait(self, attempt: int, chance: float | None = None) -> float:
        """Seconds to wait after execution ``attempt``; ``chance`` in [0, 1] stands for the random part."""
        delay, most = seconds(self.delay, "delay", zero=True), seconds(self.max_delay, "max_delay", zero=True)
        if self.backoff == "constant":
            return min(delay, most)
        if self.backoff == "linear":
            return min(delay * attempt, most)
        full = min(most, delay * 2.0 ** min(attempt - 1, 60))
        return full * (random.random() if chance is None else chance)

    def worth(self, error: BaseException) -> bool:
        """Whether an error that declares nothing is worth another try."""
        kinds = (ConnectionError, TimeoutError) if self.on is None else self.on
        return isinstance(error, kinds)


def check_id(id: object) -> str:
    """Text that may be the id of a job or run."""
    if not isinstance(id, str):
        raise InvalidInput(f"id {id!r:.60} is {type(id).__name__}; expected text")
    return check_text(id, "id")


def check_scope(scope: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of a scope: names with text, integers or booleans."""
    if scope is None:
        return {}
    if not isinstance(scope, Mapping) or not scope:
        raise InvalidInput(f"scope={scope!r:.60}: expected a mapping of column names to values, or None")
    for name, value in scope.items():
        check_name(name, "scope column")
        if value is None or type(value) not in (str, int, bool):
            raise InvalidInput(f"scope column {name!r}: expected text, an integer or a boolean, got {value!r:.40}")
    check_json(dict(scope), "scope")
    return dict(scope)
