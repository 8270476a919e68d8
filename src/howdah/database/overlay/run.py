"""Runs planned statements: base rows are bound, written rows are promoted first, new keys are looked up in the base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ...errors import LimitExceeded, SerializationFailure, Unsupported
from ..rows import Row, Rows
from ..session import Session
from . import base, filters
from .binding import bind
from .planner import Plan
from .tiered import Snapshot, Tiered

MOST = 2_000_000
"""Base rows that one statement may bind."""
PROMOTED = 100_000
"""Base rows that one write may bring back to the heap."""
LOCK = 1752


async def locked(session: Session, tiered: Tiered, *, repeatable: bool) -> Snapshot:
    """The base that counts until the transaction ends: a flush waits for it. To a transaction whose snapshot is older than the
    last flush the server says that it must be run again (40001)."""
    await session.command(f"SELECT pg_advisory_xact_lock_shared({LOCK}, {tiered.oid - 2**31})")
    return await current(session, tiered, " FOR SHARE" if repeatable else "")


async def current(session: Session, tiered: Tiered, lock: str = "") -> Snapshot:
    """The base that this transaction's snapshot names."""
    rows = await session.query(
        f"SELECT metadata, generation, max_key FROM howdah.tiers WHERE rel = $1::oid{lock}", (tiered.oid,), None
    )
    if not rows:
        raise SerializationFailure(f"{tiered.table} is not tiered any more: run the statement again", sqlstate="40001")
    return Snapshot(rows[0]["metadata"], rows[0]["generation"], rows[0]["max_key"])


async def _bound(
    session: Session, tiered: Tiered, snapshot: Snapshot, mentions: list[list[filters.Condition]], params: Sequence[Any]
) -> int:
    """Bind what any mention of a table may need of its base."""
    condition = None
    for number, conditions in enumerate(mentions):
        found = filters.expression(tiered, conditions, params)
        if found is None:
            condition = None
            break
        condition = found if number == 0 else base.library().expressions.Or(condition, found)
    rows = await asyncio.to_thread(base.read, snapshot.metadata, condition)
    if rows is not None and rows.num_rows > MOST:
        raise LimitExceeded(
            f"{tiered.table}: the statement needs {rows.num_rows:,} rows from object storage; at most {MOST:,} are bound:"
            " say more in WHERE about its key or time"
        )
    return await bind(session, tiered, rows)


async def run(session: Session, plan: Plan, params: Sequence[Any], timeout: float | None) -> Rows:
    """Run a planned statement inside the open transaction."""
    await prepare(session, plan, params)
    if plan.kind in ("read", "mixed"):
        return await session.query(plan.sql, params, timeout)
    assert plan.target is not None
    if plan.kind in ("update", "delete"):
        return await session.query(plan.sql, params, timeout)
    return await _insert(session, plan, plan.target, params, timeout)


async def stream(
    session: Session, plan: Plan, params: Sequence[Any], chunk: int, timeout: float | None
) -> AsyncIterator[Row]:
    """The rows of a planned read."""
    if plan.kind not in ("read", "mixed"):
        raise Unsupported("stream() of a write to a tiered table is not supported: use query()")
    await prepare(session, plan, params)
    async for row in session.stream(plan.sql, params, chunk, timeout):
        yield row


async def prepare(session: Session, plan: Plan, params: Sequence[Any]) -> None:
    """Bind the base rows of every table, and bring back to the heap what is to be written."""
    isolation = (await session.query("SELECT current_setting('transaction_isolation')", (), None))[0][0]
    if isolation == "serializable":
        raise Unsupported("a serializable transaction over tiered tables is not supported: use repeatable read")
    for tiered in sorted({*plan.uses, *([plan.target] if plan.target else [])}, key=lambda t: t.oid):
        repeatable = isolation == "repeatable read"
        if plan.kind == "read" and repeatable:
            snapshot = await current(session, tiered)
        else:
            snapshot = await locked(session, tiered, repeatable=repeatable)
        mentions = plan.uses.get(tiered)
        count = 0 if mentions is None else await _bound(session, tiered, snapshot, mentions, params)
        if tiered is plan.target and plan.kind in ("update", "delete") and count:
            await _promote(session, plan, tiered, params)


async def _promote(session: Session, plan: Plan, tiered: Tiered, params: Sequence[Any]) -> None:
    """Bring the bound rows that the statement may touch back to the heap."""
    name = '"' + plan.alias.replace('"', '""') + '"'
    where = "true" if plan.where is None else f"({plan.where})"
    given = [params[n - 1] for n in plan.where_params] if plan.where is not None else []
    await promoted(session, tiered, f"SELECT {name}.* FROM {tiered.loaded} AS {name} WHERE {where}", given)


async def promoted(
    session: Session, tiered: Tiered, source: str, params: Sequence[Any], *, most: int | None = PROMOTED
) -> None:
    """Bring live base rows back to the heap: their keys are shadowed, which is also what keeps two of us apart."""
    columns = ", ".join('"' + c.name.replace('"', '""') + '"' for c in tiered.columns if not c.generated)
    mine = ", ".join('b."' + c.name.replace('"', '""') + '"' for c in tiered.columns if not c.generated)
    # No trigger, rule or cascade sees rows that only change their place.
    await session.command("SET LOCAL session_replication_role = replica")
    moved = await session.query(
        f"WITH b AS (SELECT * FROM ({source}) b WHERE {tiered.live('b')}),"
        f" s AS (INSERT INTO {tiered.shadow} SELECT {tiered.keys('b')} FROM b ORDER BY {tiered.keys('b')}"
        f" ON CONFLICT DO NOTHING RETURNING {tiered.keys()})"
        f" INSERT INTO {tiered.table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {mine} FROM b JOIN s USING ({tiered.keys()})",
        params,
        None,
    )
    await session.command("SET LOCAL session_replication_role = origin")
    if most is not None and moved.affected > most:
        raise LimitExceeded(
            f"{tiered.table}: the statement touches {moved.affected:,} rows on object storage; at most {most:,} at once:"
            " do it in parts"
        )


async def _insert(session: Session, plan: Plan, tiered: Tiered, params: Sequence[Any], timeout: float | None) -> Rows:
    snapshot = await current(session, tiered)
    for name in (tiered.written, tiered.probe):
        columns = f"AS SELECT {tiered.keys()} FROM ONLY {tiered.table} WITH NO DATA"
        shape = (
            f"(LIKE {tiered.table}) ON COMMIT DELETE ROWS"
            if name == tiered.probe
            else f"ON COMMIT DELETE ROWS {columns}"
        )
        await session.command(f"CREATE TEMP TABLE IF NOT EXISTS {name.partition('.')[2]} {shape}; TRUNCATE {name}")
    if plan.probe is not None and snapshot.metadata is not None:
        await _relaxed(session, tiered)
        await session.query(plan.probe, params, timeout)
        keys = await _keys(session, tiered, tiered.probe)
        if keys:
            rows = await asyncio.to_thread(base.read, snapshot.metadata, filters.keys_in(tiered, keys))
            if await bind(session, tiered, rows):
                await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", ())
    found = await session.query(plan.sql, params, timeout)
    await _check_new(session, tiered, snapshot)
    if plan.returning:
        return Rows(found, lambda: found.columns, f"INSERT 0 {len(found)}", found.elapsed)
    return Rows([], lambda: (), f"INSERT 0 {found[0]['n']}", found.elapsed)


async def _relaxed(session: Session, tiered: Tiered) -> None:
    """The probe takes rows without what the heap would fill in."""
    rows = await session.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND attnotnull",
        (tiered.probe,),
        None,
    )
    for row in rows:
        quoted = '"' + row["attname"].replace('"', '""') + '"'
        await session.command(f"ALTER TABLE {tiered.probe} ALTER COLUMN {quoted} DROP NOT NULL")


async def _keys(session: Session, tiered: Tiered, table: str) -> list[tuple[Any, ...]]:
    """Keys in the form that the base has them."""
    shown = ", ".join(
        f'"{k}"' if tiered.column(k).native else f'"{k}"::text' for k in (n.replace('"', '""') for n in tiered.key)
    )
    whole = " AND ".join('"' + k.replace('"', '""') + '" IS NOT NULL' for k in tiered.key)
    return [tuple(r) for r in await session.query(f"SELECT DISTINCT {shown} FROM {table} WHERE {whole}", (), None)]


async def _check_new(session: Session, tiered: Tiered, snapshot: Snapshot) -> None:
    """A key that lives in the base is taken: the server says so, as it does for one that lives in the heap."""
    if snapshot.metadata is None:
        return
    keys = await _keys(session, tiered, tiered.written)
    if snapshot.max_key is not None and len(tiered.key) == 1 and all(k[0] > snapshot.max_key for k in keys):
        return
    rows = await asyncio.to_thread(base.read, snapshot.metadata, filters.keys_in(tiered, keys)) if keys else None
    if not rows:
        return
    await bind(session, tiered, rows)
    taken = await session.query(
        f"SELECT {tiered.keys('b')} FROM {tiered.loaded} b JOIN {tiered.written} w USING ({tiered.keys()})"
        f" WHERE {tiered.live('b')} LIMIT 1",
        (),
        None,
    )
    if taken:
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
