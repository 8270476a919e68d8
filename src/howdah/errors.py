"""Every error Howdah raises: one root, a small tree, a stable ``code`` on each."""

from __future__ import annotations

import re
from datetime import datetime
from typing import ClassVar


def _code(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Error(Exception):
    """Root of all Howdah errors. ``code`` is a stable machine-readable name; ``__cause__`` the backend's error."""

    code: ClassVar[str] = "error"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = _code(cls.__name__)


class InvalidInput(Error, ValueError):
    """A bad argument; nothing was changed."""


class InvalidName(InvalidInput):
    """A table, column or store name breaks the naming rules."""


class InvalidKey(InvalidInput):
    """A key is malformed, of the wrong type or too long."""


class InvalidValue(InvalidInput):
    """A column or store cannot hold the value."""


class DimensionMismatch(InvalidValue):
    """A vector has another length than its column."""


class InvalidFilter(InvalidInput):
    """Malformed criteria."""


class EmptyCriteria(InvalidFilter):
    """An empty mapping was given where criteria were expected."""


class UnfilteredDelete(InvalidInput):
    """The criteria exclude nothing, so the whole table would go."""


class InvalidLimit(InvalidInput):
    """A limit, offset or page size is out of range."""


class InvalidCursor(InvalidInput):
    """A cursor is broken or belongs to another table, filter or order."""


class InvalidPath(InvalidInput):
    """A path is malformed or leads outside its root."""


class UnknownColumn(InvalidInput):
    """A column that the table does not have."""


class QuerySyntaxError(InvalidInput):
    """A search query that cannot be parsed."""


class NotFound(Error):
    """A thing that must exist does not."""


class Ignored(NotFound):
    """A document exists on disk but a rule hides it."""


class UnknownCollection(NotFound):
    """A collection that the corpus does not have."""


class JobNotFound(NotFound):
    """A job that the queue does not have."""


class BackendError(Error):
    """The database or bucket failed."""


class Corrupt(BackendError):
    """Stored data cannot be read as what it should be."""


class MissingTable(BackendError):
    """A table was dropped by another handle or process; tables make it anew and go on."""


class StartupError(BackendError):
    """An embedded server could not be started or a database could not be opened."""


class Timeout(Error, TimeoutError):
    """An operation took longer than allowed."""


class Conflict(Error):
    """A race was lost, or something is in the wrong state."""


class DuplicateKey(Error):
    """A unique index refuses a row. ``index`` names its columns."""

    def __init__(self, message: str, *, index: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.index = index


class Unsupported(Error):
    """The engine truly cannot do this."""


class LimitExceeded(Error):
    """A size or quota limit was passed."""


class NoCoveringIndex(Error):
    """``covering=True`` was asked and no index can serve the query alone."""


class SetupRequired(Error):
    """The schema is missing or does not fit, and automatic set-up is off. ``findings`` lists each deviation."""

    def __init__(self, message: str, *, findings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


class JobError(Error):
    """A job's own error. ``code`` is what the worker stored; ``retryable`` whether another try makes sense, if known."""

    retryable: bool | None = None

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code  # type: ignore[misc]  # the worker's code stands for the class'


class RetryableJobError(JobError):
    """Try again: at ``retry_at`` (an aware moment), or after the usual wait."""

    retryable = True

    def __init__(self, message: str = "", *, retry_at: datetime | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_at = retry_at


class PermanentJobError(JobError):
    """Do not try again."""

    retryable = False


class JobDisabled(JobError):
    """The job ends as ``DISABLED``: neither an error nor tried again."""


class JobAborted(JobError):
    """The job was asked to stop."""


class ClaimLost(Error):
    """A claim is no longer this worker's: its lease went to another one, or the job was finished or deleted."""


class Lagged(Error):
    """Changes were lost to a reader that came too late. ``cursor`` is where it can go on after reading the rows again."""

    def __init__(self, message: str, *, cursor: str) -> None:
        super().__init__(message)
        self.cursor = cursor


class Closed(Error):
    """The store was closed before the call."""


class TransactionError(Error):
    """A transaction is used where or after it may not be."""


class Locked(Error):
    """Secrets are locked: give the passphrase first."""


class WrongPassphrase(Error):
    """The passphrase, or key, does not open what is stored."""


class Ambiguous(Error):
    """A reference fits several things. ``candidates`` lists them."""

    def __init__(self, message: str, *, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.candidates = candidates


class ModelUnavailable(Error):
    """An embedding model is needed and cannot be used here."""


class EmbeddingMismatch(Error):
    """Stored vectors were made by another model than the one in use."""


class Untrusted(Error):
    """Something that came with a foreign settings file was not approved."""


class QueryError(Error):
    """A SQL statement failed on the server: its ``sqlstate``, the first 100 characters of ``sql``, and the 1-based
    ``position`` of the mistake in it, if the server told. Parameters are never in it."""

    def __init__(self, message: str, *, sqlstate: str = "", sql: str = "", position: int | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.sql = sql[:100]
        self.position = position


class SqlSyntaxError(QueryError):
    """The server's parser refuses the statement."""


class UndefinedTable(QueryError):
    """A table, view or sequence that is not there."""


class UndefinedColumn(QueryError):
    """A column that is not there."""


class TypeMismatch(QueryError):
    """A value or expression of the wrong type."""


class NotNullViolation(QueryError):
    """A null where none may be."""


class CheckViolation(QueryError):
    """A CHECK constraint refuses a row."""


class ForeignKeyViolation(QueryError):
    """A row refers to one that is not there, or is referred to."""


class UniqueViolation(QueryError, DuplicateKey):
    """A unique constraint refuses a row. ``index`` names its columns."""

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str = "",
        sql: str = "",
        position: int | None = None,
        index: tuple[str, ...] = (),
    ) -> None:
        QueryError.__init__(self, message, sqlstate=sqlstate, sql=sql, position=position)
        self.index = index


class SerializationFailure(QueryError, Conflict):
    """Another transaction got in between: run the transaction again."""


class QueryTimeout(Timeout):
    """A statement took longer than ``timeout`` seconds; the server has cancelled it."""

    def __init__(self, message: str, *, timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout


class TierError(BackendError):
    """A tiered table's base cannot be read or written as it must."""


class SnapshotExpired(Error):
    """The version of a tiered table's base that was asked for is not kept any more."""


class TieringRefused(Error):
    """A table that cannot be tiered, and why."""
