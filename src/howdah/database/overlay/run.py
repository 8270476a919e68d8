"""Runs planned statements: base rows are bound, written rows are promoted first, new keys are looked up in the base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from ...errors import Error, UndefinedTable, Unsupported
from ..rows import Row, Rows
from ..session import Session
from .altering import altered, check_type, dropped, emptied, looked_at, loosened, verify
from .asking import ASKED, changing
from .call import Call
from .counting import LOCK, Stale, current, locked
from .explaining import explained, shown
from .fetching import bound, summed
from .plans import Plan, Promotion
from .tiered import Tiered
from .writing import check_new, insert, noted_keys, promote, promote_free

_ALONE = ("truncate", "drop", "alter")
"""Statements that have a table for themselves."""


async def run(session: Session, plan: Plan, call: Call) -> Rows:
    """Run a planned statement inside the open transaction, which cannot be committed after an error."""
    if call.timeout is not None:  # what is done around the statement counts, too
        await session.command(f"SET LOCAL statement_timeout = {max(1, int(call.timeout * 1000))}")
    call.checked = plan.kind == "read"
    try:
        sql, params = await prepare(session, plan, call)
        others = [tiered for tiered in plan.inserted if tiered != plan.target]
        for tiered in others:
            await noted_keys(session, tiered)
        before = [await looked_at(session, plan, tiered, call) for tiered in plan.uses] if plan.kind == "alter" else []
        if plan.target is not None and (plan.kind in ("insert", "merge") or plan.rekey):
            rows = await insert(session, plan, plan.target, call)
        else:
            rows = await session.query(sql, params, None)
            if await call.moved(session):  # somebody has promoted rows between two of its snapshots
                call = Call(call.params, call.timeout, call.as_of)
                sql, params = await prepare(session, plan, call)
                rows = await session.query(sql, params, None)
        if plan.explains:
            lines = [row[0] for row in rows] + shown(await explained(session, plan, call), call.reading)
            rows = await session.query('SELECT x AS "QUERY PLAN" FROM unnest($1::text[]) x', (lines,), None)
        for tiered in others:
            await check_new(session, tiered, await current(session, tiered), call)
        for tiered in before:
            await verify(session, plan, tiered)
            await altered(session, tiered)
    except asyncio.CancelledError:
        session.terminate()
        raise
    except BaseException:
        if not session.is_closed():
            with suppress(Error):
                await session.command("DO $$ BEGIN RAISE EXCEPTION 'abort'; END $$")
        raise
    if call.timeout is not None:
        await session.command("SET LOCAL statement_timeout TO DEFAULT")
    return rows.told(call.reading)


async def read(session: Session, plan: Plan, call: Call) -> tuple[str, Sequence[Any]]:
    """Bind what a query needs; what is for the caller to run, and its parameters."""
    if plan.kind != "read":
        raise Unsupported("a statement that writes cannot be copied from")
    return await prepare(session, plan, call)


async def stream(session: Session, plan: Plan, call: Call, chunk: int) -> AsyncIterator[Row]:
    """The rows of a planned read."""
    if plan.kind not in ("read", "mixed") or plan.inserted:
        raise Unsupported("stream() of a write to a tiered table is not supported: use query()")
    sql, params = await prepare(session, plan, call)
    async for row in session.stream(sql, params, chunk, call.timeout):
        yield row


# Before the statement ---------------------------------------------------------------------------------------------


async def prepare(session: Session, plan: Plan, call: Call) -> tuple[str, Sequence[Any]]:
    """Bind the base rows of every table, and bring back to the heap what is to be written; the statement to run, and its
    parameters."""
    await _held(session, plan)
    if plan.text and plan.kind not in _ALONE:
        await session.checked(plan.text)
    isolation, readonly = tuple(
        (
            await session.query(
                "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')", (), None
            )
        )[0]
    )
    call.readonly = readonly == "on"
    await _unchanged(session, plan)
    await _steady(session, plan)
    if plan.kind == "type":
        await check_type(session, plan.of_type)
    call.reading.tiers = ASKED[plan.mode] if plan.kind == "read" else ASKED["all"]
    count: dict[Tiered, int] = {}
    for tiered in sorted(_tables(plan), key=lambda t: t.oid):
        repeatable = isolation != "read committed"
        names = plan.names.get(tiered, ())
        if plan.kind in _ALONE:
            await session.command(f"SELECT pg_advisory_xact_lock({LOCK}, {tiered.oid - 2**31})")
            before = {"truncate": emptied, "drop": dropped, "alter": loosened}[plan.kind]
            await before(session, tiered, names)
            continue
        if plan.kind == "read" and repeatable:
            snapshot = await current(session, tiered, names)
        else:
            snapshot = await locked(session, tiered, names, repeatable=repeatable)
        call.checked = call.checked and not repeatable
        few = repeatable or call.checked
        if plan.summary is not None and few and (sums := await summed(session, plan.summary, snapshot, call)):
            return sums
        count[tiered] = await bound(session, plan, tiered, snapshot, call, steady=repeatable)
    promotions = list(plan.also)
    if plan.target is not None and plan.kind in ("update", "delete", "merge"):
        promotions.append((plan.target, Promotion(plan.alias, plan.where, plan.where_params)))
    if plan.nowait:
        before = (await session.query("SELECT current_setting('lock_timeout')", (), None))[0][0]
        await session.command("SET LOCAL lock_timeout = '10ms'")
    for tiered, promotion in promotions:  # the conditions may ask every other table
        if count[tiered]:
            await (promote_free if plan.skips else promote)(session, tiered, promotion, call.params)
    if plan.nowait:
        await session.query("SELECT set_config('lock_timeout', $1, true)", (before,), None)
    return plan.sql, call.params


def _tables(plan: Plan) -> set[Tiered]:
    """The tiered tables that a statement concerns."""
    return {*plan.uses, *plan.inserted, *([plan.target] if plan.target else [])}


async def _held(session: Session, plan: Plan) -> None:
    """Keep the tables as they are, before the first snapshot: a TRUNCATE or change of columns is seen by older ones, too. Whoever
    takes a table's advisory lock has this lock before."""
    mode = "ACCESS EXCLUSIVE" if plan.kind in _ALONE else "ACCESS SHARE"
    tables = sorted({t.table for t in _tables(plan)})
    if not tables:
        return
    try:
        await session.command(f"LOCK TABLE {', '.join(f'ONLY {table}' for table in tables)} IN {mode} MODE")
    except UndefinedTable as error:
        raise Stale(f"{' or '.join(tables)} is not there any more: run the statement again") from error


async def _steady(session: Session, plan: Plan) -> None:
    """What is asked twice must not answer differently."""
    if plan.functions or plan.tables:
        found = await changing(session, plan.functions, plan.tables)
        if found is not None:
            raise Unsupported(
                f"a MERGE into a tiered table whose rows come from {found}, which may give others when it is asked again, is not"
                " supported: put the rows into a temporary table first"
            )


async def _unchanged(session: Session, plan: Plan) -> None:
    """Views must still be what they were when the statement was planned."""
    for name, view in plan.views.items():
        rows = await session.query(
            "SELECT to_regclass($1)::oid = $2::oid AND howdah.view_text($2::oid) = $3 AS same",
            (name, view.oid, view.sql),
            None,
        )
        if not rows[0]["same"]:
            raise Stale(f"view {name} is not what it was: run the statement again")
