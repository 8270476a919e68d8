"""The driver's errors in Howdah's words, with SQLSTATE and position, and never a parameter."""

from __future__ import annotations

import re

import asyncpg

from ..engines.sql.pool import DRIVER_ERRORS
from ..errors import (
    BackendError,
    CheckViolation,
    Error,
    ForeignKeyViolation,
    InvalidInput,
    LimitExceeded,
    NotNullViolation,
    QueryError,
    QueryTimeout,
    SerializationFailure,
    SqlSyntaxError,
    StartupError,
    TransactionError,
    TypeMismatch,
    UndefinedColumn,
    UndefinedTable,
    UniqueViolation,
    Unsupported,
)

__all__ = ["DRIVER_ERRORS", "Gated", "explain"]

# https://www.postgresql.org/docs/18/errcodes-appendix.html
_BY_STATE: dict[str, type[QueryError]] = {
    "42601": SqlSyntaxError,
    "42P01": UndefinedTable,
    "42703": UndefinedColumn,
    "42804": TypeMismatch,
    "42883": TypeMismatch,
    "42846": TypeMismatch,
    "23502": NotNullViolation,
    "23514": CheckViolation,
    "23503": ForeignKeyViolation,
    "40001": SerializationFailure,
    "40P01": SerializationFailure,
}
# The driver shows the value that it cannot send.
_ARGUMENT = re.compile(r"(query argument \$\d+): .* \((.*)\)$", re.DOTALL)
_BY_CLASS: dict[str, type[QueryError]] = {"22": TypeMismatch}


class Gated(QueryError, Unsupported):
    """A statement met the gate of a tiered table: in a way that the planner did not see, or did not know of."""


def explain(error: BaseException, sql: str, place: str, timeout: float | None = None) -> Error:
    """The Howdah error for what the driver raised while it ran ``sql``."""
    text = _ARGUMENT.sub(r"\1: \2", str(error).strip()) or type(error).__name__
    if isinstance(error, TimeoutError):
        return QueryTimeout(
            f"{place}: the statement took longer than {timeout} seconds and was cancelled", timeout=timeout
        )
    if isinstance(error, asyncpg.DataError) and getattr(error, "sqlstate", None) is None:
        return TypeMismatch(text, sql=sql)
    if isinstance(error, asyncpg.PostgresError):
        return _told(error, text, sql, place)
    if isinstance(error, (ValueError, TypeError, OverflowError)) and not isinstance(error, asyncpg.InterfaceError):
        return TypeMismatch(text, sql=sql)  # a value that its column's type cannot hold
    if isinstance(error, asyncpg.InternalClientError):
        return StartupError(f"{place}: the connection was lost while it was used: {text}")
    if isinstance(error, asyncpg.InterfaceError):
        if "number of query arguments cannot exceed" in text:
            return LimitExceeded(f"{place}: {text}; send arrays and unnest() them")
        if "server expects" in text or "was not able to deduce" in text or "could not determine data type" in text:
            return InvalidInput(text)
        if "closed" in text:
            return StartupError(f"{place}: the connection was lost: {text}")
    return BackendError(f"{place}: {text}")


def _told(error: asyncpg.PostgresError, text: str, sql: str, place: str) -> Error:
    state = str(error.sqlstate or "")
    shown = text.split("\n")[0] + (f" ({error.hint})" if getattr(error, "hint", None) else "")
    about = {"sqlstate": state, "sql": sql}
    position = getattr(error, "position", None)
    where = int(position) if position else None
    if state == "23505":
        detail = str(getattr(error, "detail", "") or "")
        inside = detail.partition("(")[2].partition(")=")[0]
        columns = tuple(c.strip().strip('"') for c in inside.split(",")) if inside else ()
        return UniqueViolation(shown, **about, position=where, index=columns)
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return SerializationFailure(
            f"a table changed its shape meanwhile: run it again: {shown}", sqlstate=state, sql=sql
        )
    if state == "HW001":
        return Gated(f"a view, function or script reaches a tiered table: {shown}", sqlstate=state, sql=sql)
    if state == "25P02":
        return TransactionError(f"an earlier statement of this transaction failed; it can only be rolled back: {text}")
    if state == "57014":
        return QueryTimeout(f"{place}: {text}")
    if state[:2] in ("08", "28", "3D") or state in ("57P01", "57P02", "57P03"):
        return StartupError(f"{place}: {text}")
    kind = _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or QueryError
    return kind(shown, **about, position=where)
