"""What a database and an open transaction have in common: running statements, streams and bulk copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal

from ..errors import InvalidInput
from ..values import check_text, seconds
from . import copying
from .rows import Executed, Row, Rows
from .session import Session

Duration = float | timedelta
CHUNK = 500


def check_sql(sql: object) -> str:
    """A statement's text."""
    if not isinstance(sql, str) or not sql.strip():
        raise InvalidInput(f"expected a SQL statement, got {sql!r:.60}")
    return check_text(sql, "the statement")


class Statements:
    """Statements over a session that ``_using`` lends."""

    _timeout: float | None

    def _using(self, *, block: bool = False) -> AbstractAsyncContextManager[Session]:
        """A session for one call; with ``block`` a transaction is open on it."""
        raise AssertionError("a database or a transaction says where statements run")

    def _limit(self, timeout: Duration | None) -> float | None:
        return self._timeout if timeout is None else seconds(timeout, "timeout")

    async def query(self, sql: str, *params: Any, timeout: Duration | None = None, exact: bool = False) -> Rows:
        """Run one statement with parameters ``$1``, ``$2``, …; its rows, with ``.columns`` and ``.affected``.

        Parameters have the statement's own types: lists for arrays, any JSON value for ``json`` and ``jsonb``, lists or
        arrays for vectors. Several statements at once are allowed without parameters; the rows are the last one's.
        ``timeout`` (seconds) cancels it on the server; ``exact=True`` uses no vector index. Raises a ``QueryError`` with
        SQLSTATE and position, ``QueryTimeout``, or ``InvalidInput`` for parameters that do not fit.
        """
        text, limit = check_sql(sql), self._limit(timeout)
        async with self._using(block=exact) as session:
            if not exact:
                return await session.query(text, params, limit)
            await session.command(
                "SAVEPOINT exact; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"
            )
            # Plans are kept by their text, and a kept one would not see the setting.
            rows = await session.query(f"{text}\n-- exact", params, limit)
            await session.command("RESET enable_indexscan; RESET enable_bitmapscan; RELEASE exact")
            return rows

    async def execute(self, script: str, *, timeout: Duration | None = None) -> Executed:
        """Run a script of statements without rows: all or nothing, unless it holds its own transactions."""
        text, limit = check_sql(script), self._limit(timeout)
        async with self._using() as session:
            return await session.execute(text, limit)

    async def stream(
        self, sql: str, *params: Any, chunk: int = CHUNK, timeout: Duration | None = None
    ) -> AsyncIterator[Row]:
        """The rows of a statement, fetched ``chunk`` at a time: bounded memory, whatever there is. All from one snapshot."""
        text, limit = check_sql(sql), self._limit(timeout)
        if type(chunk) is not int or not 1 <= chunk <= 100_000:
            raise InvalidInput(f"chunk={chunk!r}: expected an integer from 1 to 100,000")
        async with self._using(block=True) as session:
            async for row in session.stream(text, params, chunk, limit):
                yield row

    async def copy_in(
        self,
        table: str,
        source: Any,
        *,
        columns: Sequence[str] | None = None,
        format: Literal["csv", "text", "binary"] = "csv",
        header: bool = False,
        delimiter: str | None = None,
        null: str | None = None,
        timeout: Duration | None = None,
    ) -> int:
        """Load rows in bulk (``COPY``), all or none; how many.

        ``source`` is a path, a file, bytes or an (async) iterable of bytes in the given ``format``; or rows: an iterable of
        tuples in the order of ``columns``, or a pyarrow table, batch or reader.
        """
        async with self._using() as session:
            return await copying.load(
                session, table, source, columns, format, header, delimiter, null, self._limit(timeout)
            )

    async def copy_out(
        self,
        sql: str,
        target: Any,
        *params: Any,
        format: Literal["csv", "text", "binary"] = "csv",
        header: bool = False,
        delimiter: str | None = None,
        null: str | None = None,
        timeout: Duration | None = None,
    ) -> int:
        """Write the rows of a query, or of the table so named, to a path, a file, or a function of bytes; how many."""
        async with self._using() as session:
            return await copying.unload(
                session, check_sql(sql), target, params, format, header, delimiter, null, self._limit(timeout)
            )

    async def arrow(self, sql: str, *params: Any, timeout: Duration | None = None) -> Any:
        """The rows of a query as a pyarrow table, with the types of the query's columns (``howdah[tiering]``)."""
        text, limit = check_sql(sql), self._limit(timeout)
        async with self._using() as session:
            return await copying.as_arrow(session, text, params, limit)


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Run something that blocks off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def path_of(value: Any) -> str | None:
    """The path that a value is, if it is one."""
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
