"""What a database and an open transaction have in common: running statements, streams and bulk copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal

from ..errors import InvalidInput, QueryError, Unsupported
from ..values import check_text, seconds
from . import copying
from .overlay.manage import Tiers, is_gate
from .overlay.planner import Plan
from .overlay.run import run, stream
from .rows import Executed, Row, Rows
from .session import Session, controls, split

Duration = float | timedelta
CHUNK = 500


def check_sql(sql: object) -> str:
    """A statement's text."""
    if not isinstance(sql, str) or not sql.strip():
        raise InvalidInput(f"expected a SQL statement, got {sql!r:.60}")
    return check_text(sql, "the statement")


class AsyncStatements:
    """Statements over a session that ``_using`` lends."""

    _timeout: float | None
    _tiers: Tiers

    def _using(self, *, block: bool = False, repeatable: bool = False) -> AbstractAsyncContextManager[Session]:
        """A session for one call; with ``block`` a transaction is open on it, ``repeatable`` if it is only for this call."""
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
        if self._tiers.active and (plan := self._planned(text)) is not None:
            if exact:
                raise Unsupported("exact=True over a tiered table is not supported")
            return await self._tiered(plan, params, limit)
        try:
            return await self._straight(text, params, limit, exact)
        except QueryError as error:
            if not is_gate(error):
                raise
            return await self._tiered(await self._plan_again(text, error), params, limit)

    def _planned(self, sql: str) -> Plan | None:
        """The plan of a statement that touches a tiered table."""
        return self._tiers.plan(sql)

    async def _plan_again(self, sql: str, error: QueryError) -> Plan:
        """A statement met the gate: a table became tiered elsewhere, or a view or function hides one."""
        async with self._using() as session:
            await self._tiers.load(session)
        plan = self._tiers.plan(sql)
        if plan is None:
            raise Unsupported(f"a view, function or script reaches a tiered table: {error}") from error
        return plan

    async def _tiered(self, plan: Plan, params: tuple[Any, ...], limit: float | None) -> Rows:
        async with self._using(block=True, repeatable=plan.kind == "read") as session:
            return await run(session, plan, params, limit)

    async def _straight(self, text: str, params: tuple[Any, ...], limit: float | None, exact: bool) -> Rows:
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
        if self._tiers.active:
            parts = split(text)
            plans = [self._planned(p) for p in parts]
            if any(plans):
                return await self._script(parts, plans, limit)
        async with self._using() as session:
            return await session.execute(text, limit)

    async def _script(self, parts: list[str], plans: list[Plan | None], limit: float | None) -> Executed:
        """Statements of which some touch tiered tables, one by one in a transaction."""
        if any(map(controls, parts)):
            raise Unsupported("a script with BEGIN or COMMIT over tiered tables is not supported: use transaction()")
        async with self._using(block=True) as session:
            for part, plan in zip(parts, plans, strict=True):
                await (session.query(part, (), limit) if plan is None else run(session, plan, (), limit))
        return Executed(len(parts))

    async def stream(
        self, sql: str, *params: Any, chunk: int = CHUNK, timeout: Duration | None = None
    ) -> AsyncIterator[Row]:
        """The rows of a statement, fetched ``chunk`` at a time: bounded memory, whatever there is. All from one snapshot."""
        text, limit = check_sql(sql), self._limit(timeout)
        if type(chunk) is not int or not 1 <= chunk <= 100_000:
            raise InvalidInput(f"chunk={chunk!r}: expected an integer from 1 to 100,000")
        plan = self._planned(text) if self._tiers.active else None
        async with self._using(block=True, repeatable=plan is not None) as session:
            rows = (
                session.stream(text, params, chunk, limit)
                if plan is None
                else stream(session, plan, params, chunk, limit)
            )
            async for row in rows:
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
        if self._tiers.active and self._planned(f"INSERT INTO {table} DEFAULT VALUES") is not None:
            raise Unsupported(f"copy_in to the tiered table {table} is not supported: insert the rows")
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
