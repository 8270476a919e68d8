"""Runs planned statements: base rows are bound, written rows are promoted first, new keys are looked up in the base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from ...errors import (
    Error,
    LimitExceeded,
    QueryError,
    SnapshotExpired,
    UndefinedTable,
    Unsupported,
)
from ..rows import Row, Rows
from ..session import Session
from . import filters, partials, uniques
from .altering import altered, dropped, emptied, loosened
from .binding import bind
from .call import EVERY, Call
from .columns import quoted, selection
from .counting import LOCK, Stale, current, locked
from .plans import Plan, Promotion, Summary
from .tiered import Snapshot, Tiered

MOST = 2_000_000
"""Base rows that one statement may bind."""
PROMOTED = 100_000
"""Base rows that one write may bring back to the heap."""
_EVEN = """
WITH d AS (SELECT d, extract(timezone FROM d) AS off, lead(extract(timezone FROM d)) OVER (ORDER BY d) AS next
  FROM generate_series(timestamptz '1990-01-01Z', timestamptz '2040-01-01Z', interval '24 hours') d)
SELECT current_setting('TimeZone') !~ ',' AND NOT EXISTS (SELECT 1 FROM d WHERE off % 900 <> 0) AND NOT EXISTS (
  SELECT 1 FROM d, generate_series(d, d + interval '24 hours', interval '15 minutes') q
  WHERE off <> next AND extract(timezone FROM q) <> extract(timezone FROM q + interval '899.999999 seconds'))
"""
"""Whether the session's time zone, one with a name, has the same offset in all of any quarter of an hour, and a multiple of one."""
_even: dict[str, bool] = {}
"""What is known of zones by their names."""
_OURS = (
    "SELECT (SELECT s FROM unnest(current_schemas(true)) s WHERE s !~ '^pg_temp' LIMIT 1) = 'pg_catalog',"
    " current_setting('TimeZone')"
)
"""Whether functions and operators are Postgres' own before anybody else's, and the session's time zone."""
_ALONE = ("truncate", "drop", "alter")
"""Statements that have a table for themselves."""
ASKED = {"": ("hot", "warm"), "hot": ("hot",), "warm": ("warm",), "cold": ("cold",), "all": ("hot", "warm", "cold"),
         "past": ("warm", "cold")}  # fmt: skip
"""The tiers that are asked, by mode."""


async def run(session: Session, plan: Plan, call: Call) -> Rows:
    """Run a planned statement inside the open transaction, which cannot be committed after an error."""
    if call.timeout is not None:  # what is done around the statement counts, too
        await session.command(f"SET LOCAL statement_timeout = {max(1, int(call.timeout * 1000))}")
    try:
        sql, params = await prepare(session, plan, call)
        others = [tiered for tiered in plan.inserted if tiered != plan.target]
        for tiered in others:
            await _noted_keys(session, tiered)
        if plan.target is not None and (plan.kind in ("insert", "merge") or plan.rekey):
            rows = await _insert(session, plan, plan.target, call)
        else:
            rows = await session.query(sql, params, None)
        for tiered in others:
            await _check_new(session, tiered, await current(session, tiered), call)
        if plan.kind == "alter":
            for tiered in plan.uses:
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


def inserted(plan: Plan, rows: Rows) -> Rows:
    """What a write whose keys are noted gives: the rows it returns, or how many there were."""
    tag = {"insert": "INSERT 0", "merge": "MERGE"}.get(plan.kind, "UPDATE")
    if plan.returning:
        return Rows(rows, lambda: rows.columns, f"{tag} {len(rows)}", rows.elapsed)
    return Rows([], lambda: (), f"{tag} {rows[0]['n']}", rows.elapsed)


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
    call.reading.tiers = ASKED[plan.mode] if plan.kind == "read" else ASKED["all"]
    bound: dict[Tiered, int] = {}
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
        if plan.summary is not None and repeatable and (summed := await _summed(session, plan.summary, snapshot, call)):
            return summed
        mentions = plan.uses.get(tiered)
        bound[tiered] = 0 if mentions is None else await _bound(session, plan, tiered, snapshot, mentions, call)
    promotions = list(plan.also)
    if plan.target is not None and plan.kind in ("update", "delete", "merge"):
        promotions.append((plan.target, Promotion(plan.alias, plan.where, plan.where_params)))
    if plan.nowait:
        await session.command("SET LOCAL lock_timeout = '10ms'")
    for tiered, promotion in promotions:  # the conditions may ask every other table
        if bound[tiered]:
            await _promote(session, tiered, promotion, call.params)
    if plan.nowait:
        await session.command("SET LOCAL lock_timeout TO DEFAULT")
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
    if plan.functions:
        sql = "SELECT proname FROM pg_proc WHERE provolatile = 'v' AND proname = ANY($1::text[]) LIMIT 1"
        found = await session.query(sql, (sorted(plan.functions),), None)
        if found:
            raise Unsupported(
                f"an upsert or MERGE into a tiered table whose rows come from the volatile function {found[0][0]}() is not"
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


async def _bound(
    session: Session,
    plan: Plan,
    tiered: Tiered,
    snapshot: Snapshot,
    mentions: list[list[filters.Condition]],
    call: Call,
) -> int:
    """Bind what any mention of a table may need of its base."""
    known = await worked_out(session, filters.expressions(mentions))
    condition = filters.any_of(tiered, mentions, call.params, known)
    if tiered is plan.target and plan.lookup is not None and (keys := await _wanted(session, plan, call)) is not None:
        condition = filters.keys_in(tiered, keys)
    if plan.mode == "hot":
        if snapshot.metadata is not None:
            call.reading.skipped |= EVERY if snapshot.archive else {"warm"}
        return await bind(session, tiered, None, readonly=call.readonly)
    if plan.mode in ("warm", "cold"):
        hot = await session.query(f"SELECT EXISTS (SELECT 1 FROM ONLY {tiered.table})", (), None)
        call.reading.skipped |= {"hot"} if hot[0][0] else set()
    past = None if plan.mode != "past" else await past_of(session, tiered, call.as_of)
    tiers = frozenset(ASKED[plan.mode]) if plan.kind == "read" else EVERY
    columns = None
    if plan.kind == "read" and plan.columns is not None:
        columns = [c for c in tiered.columns if c.name in plan.columns or c.name in tiered.key]
    return await call.bind(session, tiered, snapshot, condition, columns, most=MOST, past=past, tiers=tiers)


async def _summed(
    session: Session, summary: Summary, snapshot: Snapshot, call: Call
) -> tuple[str, Sequence[Any]] | None:
    """The query over what the base sums up to, and its parameters; ``None`` if its rows must be bound after all. Only where a
    transaction sees the same all the time: the dead rows are asked for before the query runs."""
    tiered = summary.tiered
    if snapshot.metadata is None or len(call.params) != summary.given:
        return None
    ours, zone = tuple((await session.query(_OURS, (), None))[0])
    if not ours:
        return None
    known = await worked_out(session, filters.expressions([summary.conditions]))
    if not filters.says_all(tiered, summary.conditions, call.params, known):
        return None
    condition = filters.expression(tiered, summary.conditions, call.params, known)
    groups = summary.groups
    if any(minutes > 1 and tiered.column(name).type == "timestamptz" for name, minutes in groups):
        if zone not in _even:
            _even[zone] = (await session.query(_EVEN, (), None))[0][0]
        if not _even[zone]:
            groups = tuple((name, 0) for name, _ in groups)
    keys = f"SELECT {selection(tiered.key_columns)} FROM {tiered.shadow} LIMIT {PROMOTED + 1}"
    dead = [tuple(row) for row in await session.query(keys, (), None)]
    if len(dead) > PROMOTED:
        return None
    tiers = frozenset(ASKED[""])
    asked = (snapshot.metadata, condition, groups, summary.parts, tiered.key, dead)
    work = partial(partials.summed, *asked, archive=snapshot.archive, tiers=tiers)
    found = await call.within(tiered, work)
    if found.columns is None:
        return None
    call.told(found)
    if found.skipped:
        call.reading.skipped |= EVERY - tiers
    return summary.sql, [*call.params, *found.columns]


async def worked_out(session: Session, expressions: Sequence[str]) -> dict[str, Any]:
    """The values of expressions without columns; none if one fails: the statement itself will say why, or need not."""
    if not expressions:
        return {}
    await session.command("SAVEPOINT howdah_values")
    try:
        values = tuple((await session.query(f"SELECT {', '.join(expressions)}", (), None))[0])
        await session.command("RELEASE howdah_values")
    except QueryError:
        await session.command("ROLLBACK TO howdah_values; RELEASE howdah_values")
        return {}
    return dict(zip(expressions, values, strict=True))


async def _wanted(session: Session, plan: Plan, call: Call) -> list[tuple[Any, ...]] | None:
    """The keys that a MERGE may meet; ``None`` if some are of another type than those of the base."""
    assert plan.lookup is not None and plan.target is not None
    types = [type_ for _, type_ in await session.columns(plan.lookup)]
    # What is padded or folded when it is compared is not told by its text.
    if any(t not in ("int2", "int4", "int8", "text", "varchar") for t in types):
        return None
    rows = await session.query(plan.lookup, [call.params[n - 1] for n in plan.lookup_params], None)
    keys = [tuple(row) for row in rows if None not in tuple(row)]
    kinds = [int if c.type.startswith("int") else str for c in plan.target.key_columns]
    fit = all(type(v) is kind for key in keys for v, kind in zip(key, kinds, strict=True))
    return keys if fit and len(keys) <= PROMOTED else None


async def past_of(session: Session, tiered: Tiered, as_of: datetime | int | None) -> int:
    """The version of a base as of a time, or the one that is named."""
    test = "snapshot_id = $2::bigint" if isinstance(as_of, int) else "at <= $2::timestamptz"
    rows = await session.query(
        f"SELECT snapshot_id FROM howdah.tier_snapshots WHERE rel = $1::oid AND {test} ORDER BY at DESC LIMIT 1",
        (tiered.oid, as_of),
        None,
    )
    if not rows:
        what = f"snapshot {as_of}" if isinstance(as_of, int) else f"snapshot as of {as_of}"
        raise SnapshotExpired(
            f"{tiered.table}: there is no {what}, or it has expired; snapshots() lists those there are"
        )
    return int(rows[0]["snapshot_id"])


# Writing ----------------------------------------------------------------------------------------------------------


async def _promote(session: Session, tiered: Tiered, wanted: Promotion, params: Sequence[Any]) -> None:
    """Bring the bound rows that a write may touch back to the heap."""
    name = quoted(wanted.alias)
    where = "true" if wanted.where is None else f"({wanted.where})"
    given = [params[n - 1] for n in wanted.params] if wanted.where is not None else []
    # What is dead is left out before the condition is asked: it may not even fit it.
    live = f"(SELECT * FROM {tiered.loaded} b WHERE {tiered.live('b')} OFFSET 0)"
    await promoted(session, tiered, f"SELECT {name}.* FROM {live} AS {name} WHERE {where}", given)


async def promoted(
    session: Session,
    tiered: Tiered,
    source: str,
    params: Sequence[Any],
    *,
    most: int | None = PROMOTED,
    among: Collection[str] | None = None,
) -> None:
    """Bring live base rows back to the heap: their keys are shadowed, which is also what keeps two of us apart. ``among``: the
    columns that they have, if not all."""
    names = [c.name for c in tiered.columns if not c.generated and (among is None or c.name in among)]
    # No trigger, rule or cascade sees rows that only change their place.
    await session.command("SET LOCAL session_replication_role = replica")
    moved = await session.query(
        f"WITH b AS (SELECT * FROM ({source}) b WHERE {tiered.live('b')}),"
        f" s AS (INSERT INTO {tiered.shadow} SELECT {tiered.keys('b')} FROM b ORDER BY {tiered.keys('b')}"
        f" ON CONFLICT DO NOTHING RETURNING {tiered.keys()}){uniques.take_out(tiered, 'b', 's')}"
        f" INSERT INTO {tiered.table} ({', '.join(map(quoted, names))}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(f'b.{quoted(n)}' for n in names)} FROM b JOIN s USING ({tiered.keys()})",
        params,
        None,
    )
    await session.command("SET LOCAL session_replication_role = origin")
    if most is not None and moved.affected > most:
        raise LimitExceeded(
            f"{tiered.table}: the statement touches {moved.affected:,} rows on object storage; at most {most:,} at once:"
            " do it in parts"
        )


async def _insert(session: Session, plan: Plan, tiered: Tiered, call: Call) -> Rows:
    """Run a write that makes new keys, and look these up in the base."""
    snapshot = await current(session, tiered)
    await _noted_keys(session, tiered)
    if plan.probe is not None and snapshot.metadata is not None:
        # It has the defaults of this moment, and holds a sequence: it goes at once.
        name = tiered.probe.partition(".")[2]
        await session.command(f"CREATE TEMP TABLE {name} (LIKE {tiered.table} INCLUDING DEFAULTS) ON COMMIT DROP")
        await _relaxed(session, tiered)
        await session.query(plan.probe, [call.params[n - 1] for n in plan.probe_params], None)
        keys = await _keys(session, tiered, tiered.probe)
        for unique in tiered.uniques:
            keys += await _keys(session, tiered, uniques.clashing(tiered, unique, tiered.probe))
        await session.command(f"DROP TABLE {tiered.probe}")
        if keys:
            if await call.bind(session, tiered, snapshot, filters.keys_in(tiered, keys)):
                await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", ())
    rows = await session.query(await _noted(session, plan, tiered), call.params, None)
    await _check_new(session, tiered, snapshot, call)
    return inserted(plan, rows)


async def _noted_keys(session: Session, tiered: Tiered) -> None:
    """Make the place for the keys of new rows, or empty it."""
    await session.command(
        f"CREATE TEMP TABLE IF NOT EXISTS {tiered.written.partition('.')[2]} ON COMMIT DELETE ROWS AS"
        f" SELECT {tiered.keys()} FROM ONLY {tiered.table} WITH NO DATA; DELETE FROM {tiered.written}"
    )


async def _noted(session: Session, plan: Plan, tiered: Tiered) -> str:
    """The statement of a write, with what notes its new keys."""
    if plan.noting is None:
        return plan.sql
    names = [name for name, _ in await session.columns(plan.sql)] if plan.returning else []
    mine = [f"c{number}" for number in range(len(names))]
    keys = [f"k{number}" for number in range(len(tiered.key))]
    shown = ", ".join(f"{c} AS {quoted(name)}" for c, name in zip(mine, names, strict=True))
    return (
        f"{plan.noting.replace('{columns}', ', '.join([*mine, *keys, 'did']), 1)},"
        f" howdah_keys AS (INSERT INTO {tiered.written} SELECT {', '.join(keys)} FROM howdah_new WHERE did = 'INSERT')"
        f" SELECT {shown if plan.returning else 'count(*) AS n'} FROM howdah_new"
    )


async def _relaxed(session: Session, tiered: Tiered) -> None:
    """The probe takes rows without what the heap would fill in."""
    rows = await session.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND attnotnull",
        (tiered.probe,),
        None,
    )
    for row in rows:
        await session.command(f"ALTER TABLE {tiered.probe} ALTER COLUMN {quoted(row['attname'])} DROP NOT NULL")


async def _keys(session: Session, tiered: Tiered, table: str) -> list[tuple[Any, ...]]:
    """Keys in the form that the base has them."""
    shown = selection(tiered.key_columns)
    whole = " AND ".join(f"{quoted(k)} IS NOT NULL" for k in tiered.key)
    return [tuple(r) for r in await session.query(f"SELECT DISTINCT {shown} FROM {table} WHERE {whole}", (), None)]


async def _check_new(session: Session, tiered: Tiered, snapshot: Snapshot, call: Call) -> None:
    """A key that lives in the base is taken: the server says so, as it does for one that lives in the heap."""
    if snapshot.metadata is None:
        return
    keys = await _keys(session, tiered, tiered.written)
    largest = snapshot.max_key
    if largest is not None and tiered.ranked and all(tiered.rank(k[0]) > largest for k in keys):
        return
    if not keys or not await call.bind(session, tiered, snapshot, filters.keys_in(tiered, keys)):
        return
    # Whoever deletes such a row at this moment is waited for, and so is asked who did since this snapshot was taken.
    taken = await session.query(
        f"INSERT INTO {tiered.shadow} SELECT {tiered.keys('b')} FROM {tiered.loaded} b JOIN {tiered.written} w"
        f" USING ({tiered.keys()}) WHERE {tiered.live('b')} ON CONFLICT DO NOTHING",
        (),
        None,
    )
    if taken.affected:
        await session.query(
            "SELECT howdah.refuse($1, $2, $3, $4, $5)",
            (
                "23505",
                f'duplicate key value violates unique constraint "{tiered.constraint}"',
                tiered.constraint,
                tiered.name,
                tiered.schema,
            ),
            None,
        )
