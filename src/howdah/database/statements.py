"""What a database and an open transaction have in common: running statements, streams and bulk copies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Literal

from ..errors import Error, InvalidInput, Unsupported
from ..values import check_text, seconds
from . import copying
from .failures import Gated
from .overlay.manage import Tiers
from .overlay.planner import Plan
from .overlay.run import Stale, read, run, stream
from .rows import Executed, Row, Rows
from .session import Session, controls, split

Duration = float | timedelta
CHUNK = 500
_CONTROL = ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE")


def check_sql(sql: object) -> str:
    """A statement's text; one that begins or ends a transaction is refused: the connection is lent for one call."""
    if not isinstance(sql, str) or not sql.strip():
        raise InvalidInput(f"expected a SQL statement, got {sql!r:.60}")
    if sql.split(None, 1)[0].rstrip(";").upper() in _CONTROL and ";" not in sql.strip().rstrip(";"):
        raise InvalidInput(f"{sql.strip()[:40]}: use transaction(), its savepoints and rollback()")
    return check_text(sql, "the statement")


class AsyncStatements:
    """Statements over a session that ``_using`` lends."""

    _timeout: float | None
    _tiers: Tiers

    def _using(
        self, *, block: bool = False, repeatable: bool = False, stream: bool = False
    ) -> AbstractAsyncContextManager[Session]:
        """A session for one call; with ``block`` a transaction is open on it, ``repeatable`` if it is only for this call, which
        is a ``stream`` if its caller goes on while it is held."""
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
        for again in (False, True):
            try:
                plan = await self._planned(text)
                if plan is None:
                    return await self._straight(text, params, limit, exact)
                if exact:
                    raise Unsupported("exact=True over a tiered table is not supported")
                return await self._tiered(plan, params, limit)
            except (Gated, Stale) as error:
                if again or not await self._look_again(text, error):
                    raise
        raise AssertionError("the loop returns or raises")

    async def _planned(self, sql: str) -> Plan | None:
        """The plan of a statement that touches a tiered table."""
        await self._begun()
        return self._tiers.plan(sql) if self._tiers.active else None

    async def _begun(self) -> None:
        """Know which tables are tiered."""

    async def _look_again(self, sql: str, error: Error) -> bool:
        """After a statement met what this process did not know: whether it may go otherwise now. Not in a transaction."""
        return False

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
        await self._begun()
        if self._tiers.active:
            parts = split(text)
            plans = [self._tiers.plan(p) for p in parts]
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
        plan = await self._planned(text)
        async with self._using(block=True, repeatable=plan is not None, stream=True) as session:
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
        if await self._planned(f"INSERT INTO {table} DEFAULT VALUES") is not None:
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
        text, limit = check_sql(sql), self._limit(timeout)
        whole = copying.is_name(text)
        plan = await self._planned(f"SELECT * FROM {text}" if whole else text)
        async with self._using(block=plan is not None, repeatable=True) as session:
            if plan is not None:
                await read(session, plan, params)
                text = plan.sql
            return await copying.unload(session, text, target, params, format, header, delimiter, null, limit)

    async def arrow(self, sql: str, *params: Any, timeout: Duration | None = None) -> Any:
        """The rows of a query as a pyarrow table, with the types of the query's columns (``howdah[tiering]``)."""
        text, limit = check_sql(sql), self._limit(timeout)
        plan = await self._planned(text)
        async with self._using(block=plan is not None, repeatable=True) as session:
            if plan is not None:
                await read(session, plan, params)
                text = plan.sql
            return await copying.as_arrow(session, text, params, limit)


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Run something that blocks off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def path_of(value: Any) -> str | None:
    """The path that a value is, if it is one."""
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
