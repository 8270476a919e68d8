"""What a database and an open transaction have in common: running statements, streams and bulk copies."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from ..errors import Error, InvalidInput, QueryError, Unsupported
from ..values import check_text, seconds
from . import copying
from .failures import Gated
from .overlay.call import Call, check_as_of
from .overlay.calling import Called, called
from .overlay.columns import quoted
from .overlay.counting import Stale
from .overlay.explaining import explained
from .overlay.manage import Tier, Tiers
from .overlay.plans import Plan
from .overlay.run import read, run, stream
from .overlay.tiered import Tiered
from .overlay.writing import inserted
from .rows import Executed, QueryPlan, Reading, Row, Rows
from .session import Session, controls, shapes, split

Duration = float | timedelta
CHUNK = 500
log = logging.getLogger("howdah")
_CONTROL = ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE")


def check_sql(sql: object) -> str:
    """A statement's text; one that begins or ends a transaction is refused: the connection is lent for one call."""
    if not isinstance(sql, str) or not sql.strip():
        raise InvalidInput(f"expected a SQL statement, got {sql!r:.60}")
    return _checked(sql)


@lru_cache(1000)
def _checked(sql: str) -> str:
    if sql.split(None, 1)[0].rstrip(";").upper() in _CONTROL and ";" not in sql.strip().rstrip(";"):
        raise InvalidInput(f"{sql.strip()[:40]}: use transaction(), its savepoints and rollback()")
    return check_text(sql, "the statement")


@lru_cache(1000)
def _read(sql: str) -> tuple[str, Called | None]:
    """A statement's text, and the call of ours that it is."""
    text = check_sql(sql)
    return text, called(text)


def _mode(tier: object, as_of: object) -> str:
    """The planner's word for the tiers that are asked for."""
    if check_as_of(as_of) is not None:
        if tier is not None:
            raise InvalidInput("give either tier= or as_of=: as_of reads the base")
        return "past"
    if tier not in (None, "hot", "warm", "cold", "all"):
        raise InvalidInput(f"tier={tier!r:.40}: expected 'hot', 'warm', 'cold' or 'all'")
    return "" if tier is None else str(tier)


class AsyncStatements:
    """Statements over a session that ``_using`` lends."""

    _timeout: float | None
    _tiers: Tiers
    _alone = False
    """Whether each statement is a transaction of its own."""

    def _using(
        self, sql: str = "", *, block: bool = False, repeatable: bool = False, stream: bool = False
    ) -> AbstractAsyncContextManager[Session]:
        """A session for one call, that of a caller's ``sql``; with ``block`` a transaction is open on it, ``repeatable`` if it is
        only for this call, which is a ``stream`` if its caller goes on while it is held."""
        raise AssertionError("a database or a transaction says where statements run")

    def _limit(self, timeout: Duration | None) -> float | None:
        return self._timeout if timeout is None else seconds(timeout, "timeout")

    async def query(
        self,
        sql: str,
        *params: Any,
        timeout: Duration | None = None,
        exact: bool = False,
        tier: Tier | None = None,
        as_of: datetime | int | None = None,
    ) -> Rows:
        """Run one statement with parameters ``$1``, ``$2``, …; its rows, with ``.columns`` and ``.affected``.

        Parameters have the statement's own types: lists for arrays, any JSON value for ``json`` and ``jsonb``, lists or
        arrays for vectors. Several statements at once are allowed without parameters; the rows are the last one's.
        ``timeout`` (seconds) cancels it on the server; ``exact=True`` uses no vector index. Of tiered tables ``tier`` reads
        the ``"hot"``, ``"warm"`` or ``"cold"`` rows alone, or ``"all"`` (default: hot and warm), and ``as_of`` the base as
        of a moment or snapshot. Raises a ``QueryError`` with SQLSTATE and position, ``QueryTimeout``, or ``InvalidInput``
        for parameters that do not fit.
        """
        text, call = _read(sql) if isinstance(sql, str) else (check_sql(sql), None)
        limit = self._timeout if timeout is None else seconds(timeout, "timeout")
        mode = "" if tier is None and as_of is None else _mode(tier, as_of)
        if call is not None:
            if exact or mode or timeout is not None:
                raise InvalidInput(f"CALL howdah.{call.method} takes no timeout=, tier=, as_of= or exact=")
            await self._call(call, params)
            return Rows([], lambda: (), "CALL", 0.0)
        if shapes(text):  # the server lets through what changes a table that this process does not know to be tiered
            await self._refreshed()
        for again in (False, True):
            try:
                known = not mode and (self._plain or self._tiers.untouched(text))
                plan = None if known else await self._planned(text, mode)
                if plan is None:
                    found = await (self._exactly(text, params, limit) if exact else self._run(text, params, limit))
                    if shapes(text):  # and so may what this statement made
                        await self._refreshed()
                    return found
                if exact:
                    raise Unsupported("exact=True over a tiered table is not supported")
                if (
                    plan.quick is not None
                    and (rows := await self._quickly(plan, plan.quick, params, limit)) is not None
                ):
                    return rows
                async with self._using(text, block=True, repeatable=plan.kind == "read") as session:
                    return await self._ran(session, plan, Call(params, limit, as_of))
            except (Gated, Stale) as error:
                if again or not await self._look_again(text, error):
                    raise
        raise AssertionError("the loop returns or raises")

    async def plan(
        self, sql: str, *params: Any, tier: Tier | None = None, as_of: datetime | int | None = None
    ) -> QueryPlan:
        """What ``query`` would do for a statement: the tiers and files that it would open of each tiered table, and by which
        conditions. The statement is not run; ``EXPLAIN`` says what Postgres would do."""
        text, mode = check_sql(sql), _mode(tier, as_of)
        await self._refreshed()
        found = await self._planned(text, mode)
        if found is None:
            if len(split(text)) == 1:
                async with self._using(text, block=True) as session:
                    await session.columns(text)  # the server says what is wrong with it
            return QueryPlan("plain", ("hot",), True, ())
        async with self._using(text, block=True, repeatable=True) as session:
            return await explained(session, found, Call(params, None, as_of))

    async def _planned(self, sql: str, mode: str = "") -> Plan | None:
        """The plan of a statement that touches a tiered table."""
        await self._begun()
        try:
            found = self._tiers.plan(sql, mode) if self._tiers.active else None
        except Unsupported:  # it may not be tiered any more
            await self._refreshed()
            found = self._tiers.plan(sql, mode)
        if found is None and mode in ("warm", "cold", "past"):
            raise InvalidInput("tier= and as_of= are for statements over tiered tables")
        return found

    async def _ran(self, session: Session, plan: Plan, call: Call) -> Rows:
        before = session.changes
        rows = await run(session, plan, call)
        if session.changes != before:  # what follows may mean another table
            await self._tiers.load(session)
        return rows

    async def _quickly(self, plan: Plan, sql: str, params: tuple[Any, ...], limit: float | None) -> Rows | None:
        """What the heap alone gives for a key, if that is all there is."""
        if plan.kind != "insert":
            rows = await self._run(sql, params, limit, plan.text)
            return rows.told(Reading()) if rows.affected else None
        if not self._alone:
            return None
        try:
            return inserted(plan, await self._run(sql, params, limit, plan.text)).told(Reading())
        except QueryError as error:
            # The key may be in the base; or the table is not tiered any more, which the long way will see.
            if error.sqlstate != "HW002" and not (error.sqlstate == "42P01" and "howdah." in str(error)):
                raise
            return None

    @property
    def _plain(self) -> bool:
        """Whether it is known that no table is tiered."""
        return not self._tiers.active

    async def _refreshed(self) -> None:
        """Know which tables are tiered at this moment: what is said in bulk is not said twice."""
        async with self._using() as session:
            await self._tiers.load(session)

    async def _begun(self) -> None:
        """Know which tables are tiered."""

    async def _look_again(self, sql: str, error: Error) -> bool:
        """After a statement met what this process did not know: whether it may go otherwise now. Not in a transaction."""
        return False

    async def _exactly(self, text: str, params: tuple[Any, ...], limit: float | None) -> Rows:
        async with self._using(text, block=True) as session:
            await session.command(
                "SAVEPOINT exact; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"
            )
            # Plans are kept by their text, and a kept one would not see the setting.
            rows = await session.query(f"{text}\n-- exact", params, limit)
            await session.command("RESET enable_indexscan; RESET enable_bitmapscan; RELEASE exact")
            return rows

    async def _call(self, call: Called, params: tuple[Any, ...]) -> None:
        raise Unsupported(f"CALL howdah.{call.method} in a transaction is not supported: it has several of its own")

    async def _run(self, text: str, params: tuple[Any, ...], limit: float | None, written: str = "") -> Rows:
        """Run a statement, which may have been ``written`` otherwise."""
        async with self._using(text) as session:
            if written:
                await session.checked(written)
            return await session.query(text, params, limit)

    async def execute(self, script: str, *, timeout: Duration | None = None) -> Executed:
        """Run a script of statements without rows: all or nothing, unless it holds its own transactions."""
        text, limit = check_sql(script), self._limit(timeout)
        if (call := called(text)) is not None:
            if timeout is not None:
                raise InvalidInput(f"CALL howdah.{call.method} takes no timeout=")
            await self._call(call, ())
            return Executed(1)
        await self._refreshed()
        parts = split(text) if self._tiers.active else []
        # After a change of shape what follows may mean something else.
        shaping = len(parts) > 1 and shapes(text) and not any(map(controls, parts))
        if shaping or any(map(self._tiers.plan, parts)):
            return await self._script(text, parts, limit)
        async with self._using(text) as session:
            done = await session.execute(text, limit)
        if shapes(text):
            await self._refreshed()
        return done

    async def _script(self, text: str, parts: list[str], limit: float | None) -> Executed:
        """Statements of which some touch tiered tables, one by one in a transaction."""
        if any(map(controls, parts)):
            raise Unsupported("a script with BEGIN or COMMIT over tiered tables is not supported: use transaction()")
        async with self._using(text, block=True) as session:
            for part in parts:
                plan, before = self._tiers.plan(part), session.changes
                await (session.query(part, (), limit) if plan is None else run(session, plan, Call((), limit)))
                if session.changes != before:
                    await self._tiers.load(session)
        return Executed(len(parts))

    async def stream(
        self,
        sql: str,
        *params: Any,
        chunk: int = CHUNK,
        timeout: Duration | None = None,
        tier: Tier | None = None,
        as_of: datetime | int | None = None,
    ) -> AsyncIterator[Row]:
        """The rows of a statement, fetched ``chunk`` at a time: bounded memory, whatever there is. All from one snapshot. ``tier``
        and ``as_of`` are as for ``query``; a warning in the log says if rows were left out."""
        text, limit = check_sql(sql), self._limit(timeout)
        if type(chunk) is not int or not 1 <= chunk <= 100_000:
            raise InvalidInput(f"chunk={chunk!r}: expected an integer from 1 to 100,000")
        await self._refreshed()
        plan = await self._planned(text, _mode(tier, as_of))
        async with self._using(text, block=True, repeatable=plan is not None, stream=True) as session:
            call = Call(params, limit, as_of)
            rows = session.stream(text, params, chunk, limit) if plan is None else stream(session, plan, call, chunk)
            told = False
            async for row in rows:
                if not told:
                    _warn(plan, call)
                    told = True
                yield row
            if not told:
                _warn(plan, call)

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
        await self._refreshed()
        plan = await self._planned(f"INSERT INTO {table} DEFAULT VALUES")
        how = (format, header, delimiter, null, self._limit(timeout))
        if plan is not None and plan.target is not None:
            return await self._copy_tiered(plan.target, source, columns, *how)
        async with self._using() as session:
            return await copying.load(session, table, source, columns, *how)

    async def _copy_tiered(self, tiered: Tiered, source: Any, columns: Sequence[str] | None, *how: Any) -> int:
        """Load rows beside a tiered table, then insert them."""
        given = columns or copying.columns_of(source) or [c.name for c in tiered.columns if not c.generated]
        names = ", ".join(map(quoted, given))
        beside = f"pg_temp.howdah_copy_{tiered.oid}"
        async with self._using(block=True) as session:
            await session.command(f"DROP TABLE IF EXISTS {beside}")
            await session.command(
                f"CREATE TEMP TABLE {beside.partition('.')[2]} ON COMMIT DROP AS"
                f" SELECT {names} FROM ONLY {tiered.table} WITH NO DATA"
            )
            count = await copying.load(session, beside, source, list(given), *how)
            made = self._tiers.plan(
                f"INSERT INTO {tiered.table} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM {beside}"
            )
            assert made is not None
            await run(session, made, Call((), how[-1]))
        return count

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
        tier: Tier | None = None,
    ) -> int:
        """Write the rows of a query, or of the table so named, to a path, a file, or a function of bytes; how many.

        A table is written whole, its archived rows, too, unless ``tier`` says which; of a query archived rows are left out, as
        ``query`` does, with a warning in the log if there could be some."""
        text, limit = check_sql(sql), self._limit(timeout)
        whole, mode = copying.is_name(text), _mode(tier, None)
        await self._refreshed()
        if whole and (found := await self._planned(f"SELECT * FROM {text}", mode)) is not None:
            names = [c for tiered in found.uses for c in tiered.columns if not c.generated]
            shown = ", ".join(quoted(c.name) for c in names) if len(found.uses) == 1 and not found.views else "*"
            text, mode = f"SELECT {shown} FROM {text}", mode or "all"
            whole = False
        plan = None if whole else await self._planned(text, mode)
        async with self._using(text, block=plan is not None, repeatable=True) as session:
            given: Sequence[Any] = params
            if plan is not None:
                text, given = await self._read(session, plan, Call(params, limit))
            return await copying.unload(session, text, target, given, format, header, delimiter, null, limit)

    async def arrow(self, sql: str, *params: Any, timeout: Duration | None = None, tier: Tier | None = None) -> Any:
        """The rows of a query as a pyarrow table, with the types of the query's columns (``howdah[tiering]``). ``tier`` is as for
        ``query``; a warning in the log says if rows were left out."""
        text, limit = check_sql(sql), self._limit(timeout)
        await self._refreshed()
        plan = await self._planned(text, _mode(tier, None))
        async with self._using(text, block=plan is not None, repeatable=True) as session:
            given: Sequence[Any] = params
            if plan is not None:
                text, given = await self._read(session, plan, Call(params, limit))
            return await copying.as_arrow(session, text, given, limit)

    async def _read(self, session: Session, plan: Plan, call: Call) -> tuple[str, Sequence[Any]]:
        """Bind what a query needs whose result cannot say what was left out; what is to be run."""
        made = await read(session, plan, call)
        _warn(plan, call)
        return made


def _warn(plan: Plan | None, call: Call) -> None:
    if plan is not None and not plan.mode and call.reading.skipped:
        left = " and ".join(sorted(call.reading.skipped))
        log.warning("%s rows that could match were left out: say tier='all', or which tier", left)
