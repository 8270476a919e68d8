"""Runs planned statements: base rows are bound, written rows are promoted first, new keys are looked up in the base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from ...errors import Error, LimitExceeded, TierError, Unsupported
from ..rows import Row, Rows
from ..session import Session
from . import base, filters
from .binding import bind
from .planner import Plan
from .tiered import SHAPE, Snapshot, Tiered

MOST = 2_000_000
"""Base rows that one statement may bind."""
PROMOTED = 100_000
"""Base rows that one write may bring back to the heap."""
LOCK = 1752


class Stale(Unsupported):
    """What was planned does not fit any more: the table was untiered, or its name means another one here."""


async def locked(session: Session, tiered: Tiered, names: Sequence[str] = (), *, repeatable: bool) -> Snapshot:
    """The base that counts until the transaction ends: a flush waits for it. To a transaction whose snapshot is older than the
    last flush the server says that it must be run again (40001)."""
    await session.command(f"SELECT pg_advisory_xact_lock_shared({LOCK}, {tiered.oid - 2**31})")
    return await current(session, tiered, names, " FOR SHARE" if repeatable else "")


async def current(session: Session, tiered: Tiered, names: Sequence[str] = (), lock: str = "") -> Snapshot:
    """The base that this transaction's snapshot names, for a table that is still what was planned."""
    rows = await session.query(
        f"SELECT metadata, generation, max_key, shape, {SHAPE.format(rel='t.rel')} AS now,"
        " (SELECT coalesce(bool_and(to_regclass(x) = t.rel), true) FROM unnest($2::text[]) x) AS meant"
        f" FROM howdah.tiers t WHERE rel = $1::oid{lock}",
        (tiered.oid, list(names)),
        None,
    )
    if not rows or not rows[0]["meant"]:
        why = "is not tiered any more" if not rows else "is not what its name means here"
        raise Stale(f"{tiered.table} {why}: run the statement again")
    if rows[0]["now"] != rows[0]["shape"]:
        raise TierError(f"{tiered.table}: its columns were changed after it was tiered: untier it, then tier it again")
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
    """Run a planned statement inside the open transaction, which cannot be committed after an error."""
    if timeout is not None:  # what is done around the statement counts, too
        await session.command(f"SET LOCAL statement_timeout = {max(1, int(timeout * 1000))}")
    try:
        await prepare(session, plan, params)
        if plan.kind == "insert":
            assert plan.target is not None
            rows = await _insert(session, plan, plan.target, params)
        else:
            rows = await session.query(plan.sql, params, None)
    except asyncio.CancelledError:
        session.terminate()
        raise
    except BaseException:
        if not session.is_closed():
            with suppress(Error):
                await session.command("DO $$ BEGIN RAISE EXCEPTION 'abort'; END $$")
        raise
    if timeout is not None:
        await session.command("SET LOCAL statement_timeout TO DEFAULT")
    return rows


async def read(session: Session, plan: Plan, params: Sequence[Any]) -> None:
    """Bind what a query needs; its ``sql`` is for the caller to run."""
    if plan.kind != "read":
        raise Unsupported("a statement that writes cannot be copied from")
    await prepare(session, plan, params)


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
    isolation, readonly = tuple(
        (
            await session.query(
                "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')", (), None
            )
        )[0]
    )
    if readonly == "on":
        raise Unsupported("a read-only transaction over tiered tables is not supported: leave readonly= out")
    if isolation == "serializable":
        raise Unsupported("a serializable transaction over tiered tables is not supported: use repeatable read")
    for tiered in sorted({*plan.uses, *([plan.target] if plan.target else [])}, key=lambda t: t.oid):
        repeatable = isolation == "repeatable read"
        if plan.kind == "read" and repeatable:
            snapshot = await current(session, tiered, plan.names.get(tiered, ()))
        else:
            snapshot = await locked(session, tiered, plan.names.get(tiered, ()), repeatable=repeatable)
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


async def _insert(session: Session, plan: Plan, tiered: Tiered, params: Sequence[Any]) -> Rows:
    snapshot = await current(session, tiered)
    for name in (tiered.written, tiered.probe):
        columns = f"AS SELECT {tiered.keys()} FROM ONLY {tiered.table} WITH NO DATA"
        shape = (
            f"(LIKE {tiered.table} INCLUDING DEFAULTS INCLUDING IDENTITY) ON COMMIT DELETE ROWS"
            if name == tiered.probe
            else f"ON COMMIT DELETE ROWS {columns}"
        )
        await session.command(f"CREATE TEMP TABLE IF NOT EXISTS {name.partition('.')[2]} {shape}; TRUNCATE {name}")
    if plan.probe is not None and snapshot.metadata is not None:
        await _relaxed(session, tiered)
        await session.query(plan.probe, params, None)
        keys = await _keys(session, tiered, tiered.probe)
        if keys:
            rows = await asyncio.to_thread(base.read, snapshot.metadata, filters.keys_in(tiered, keys))
            if await bind(session, tiered, rows):
                await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", ())
    await session.command("SET LOCAL howdah.gate = 'open'")
    found = await session.query(plan.sql, params, None)
    await session.command("SET LOCAL howdah.gate = 'closed'")
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
