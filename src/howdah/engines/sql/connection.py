"""A SQLite connection as Howdah needs it: settings, collation, functions, errors in our words, running an operation."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from typing import Any, TypeVar, cast

import apsw

from ...errors import (
    BackendError,
    Closed,
    Corrupt,
    DuplicateKey,
    Error,
    InvalidFilter,
    LimitExceeded,
    MissingTable,
    StartupError,
    Timeout,
)
from ...values import simple_fold
from ..base import Op, Rows, Stmt
from .table import STALE

T = TypeVar("T")


def open_connection(uri: str, *, busy_timeout: float, memory: bool) -> apsw.Connection:
    """A connection with full durability, or ``StartupError`` saying why the file cannot be opened."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    try:
        connection = apsw.Connection(uri, flags=flags, statementcachesize=400)
    except apsw.Error as error:
        raise StartupError(f"{_shown(uri)}: cannot be opened: {error}{_why(uri)}") from error
    try:
        # A quoted name that is no column is a mistake, never text.
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
        connection.set_busy_timeout(int(busy_timeout * 1000))
        connection.create_collation("howdah_decimal", _compare_decimals)
        connection.create_scalar_function("howdah_fold", cast("Any", _fold), 1, deterministic=True)
        connection.create_scalar_function("howdah_json_at", cast("Any", _json_at), 2, deterministic=True)
        connection.create_aggregate_function("howdah_decimal_sum", cast("Any", _DecimalSum), 1)
        connection.execute("PRAGMA case_sensitive_like = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536")
        connection.execute(f"PRAGMA synchronous = {'OFF' if memory else 'FULL'}; PRAGMA mmap_size = 1073741824")
    except apsw.Error as error:
        connection.close()
        raise translate(error, _shown(uri)) from error
    return connection


def _shown(uri: str) -> str:
    return uri.removeprefix("file:").split("?")[0]


def _why(uri: str) -> str:
    path = _shown(uri)
    parent = os.path.dirname(os.path.abspath(path)) or "/"
    if os.path.isdir(path):
        return "; it is a directory: name a file"
    if not os.path.isdir(parent):
        return f"; the directory {parent} does not exist: create it first"
    if not os.access(parent, os.W_OK):
        return f"; the directory {parent} is not writable"
    return ""


def _compare_decimals(left: str, right: str) -> int:
    a, b = Decimal(left), Decimal(right)
    return (a > b) - (a < b)


def _fold(value: Any) -> Any:
    return simple_fold(value) if isinstance(value, str) else value


def _json_at(text: str | None, path: str) -> str | None:
    if text is None:
        return None
    found: Any = json.loads(text)
    for part in json.loads(path):
        key: Any = part
        in_list = isinstance(key, int) and isinstance(found, list) and key < len(found)
        if not in_list and not (isinstance(key, str) and isinstance(found, dict) and key in found):
            return None
        found = found[key]
    return json.dumps(found, ensure_ascii=False)


class _DecimalSum:
    def __init__(self) -> None:
        self.total: Decimal | None = None

    def step(self, value: str | None) -> None:
        if value is not None:
            self.total = Decimal(value) + (self.total or 0)

    def final(self) -> str | None:
        return None if self.total is None else format(self.total, "f")


def translate(error: apsw.Error, place: str) -> Error:
    """The Howdah error for a driver's error."""
    text = str(error).removeprefix(type(error).__name__).lstrip(": ")
    if "no such table" in text or STALE in text:
        return MissingTable(f"{place}: {text}")
    if isinstance(error, apsw.ConstraintError):
        if "UNIQUE" in text or "PRIMARY KEY" in text:
            columns = tuple(part.rpartition(".")[2].strip() for part in text.partition("failed:")[2].split(","))
            return DuplicateKey(f"another row already has this value of {', '.join(columns)}", index=columns)
        return BackendError(f"{place}: {text}")
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Timeout(f"{place}: another program keeps the database locked")
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        return Corrupt(f"{place}: not a readable SQLite database: {text}; restore it from a backup")
    if isinstance(error, apsw.FullError):
        return BackendError(f"{place}: the disk is full; nothing was changed")
    if isinstance(error, apsw.ReadOnlyError):
        return BackendError(
            f"{place}: the database cannot be written; check the permissions of the file and its directory"
        )
    if isinstance(error, apsw.CantOpenError):
        return StartupError(f"{place}: cannot be opened{_why(place)}")
    if isinstance(error, apsw.ConnectionClosedError):
        return Closed("the store is closed")
    if isinstance(error, apsw.TooBigError):
        return LimitExceeded(f"{place}: a value or statement is larger than SQLite takes")
    if "LIKE or GLOB pattern too complex" in text:
        return InvalidFilter("the pattern of a like is too long: at most 50,000 bytes")
    return BackendError(f"{place}: {text}")


def run(connection: apsw.Connection, op: Op[T], place: str) -> T:
    """Drive an operation to its end on this connection."""
    try:
        statement = next(op)
        while True:
            try:
                rows = _execute(connection, statement)
            except apsw.Error as error:
                wrapped = translate(error, place)
                wrapped.__cause__ = error
                statement = op.throw(wrapped)
            else:
                statement = op.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # the generator's return value


def _execute(connection: apsw.Connection, statement: Stmt) -> Rows:
    if statement.many:
        connection.executemany(statement.sql, statement.params)
        return []
    return connection.execute(statement.sql, statement.params or None).fetchall()
