"""Moves rows that have cooled from the heap to the base: written first, then cut in one Postgres transaction."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ...errors import TierError
from ..copying import arrow_library
from ..session import Session
from . import base, filters
from .binding import take
from .columns import arrow_schema, finite, quoted
from .run import LOCK, current
from .tiered import Tiered

BATCH = 200_000
LEASE = 1753
TRIES = 20


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush moved."""

    tables: int = 0
    rows: int = 0

    def __add__(self, other: Flushed) -> Flushed:
        return Flushed(self.tables + other.tables, self.rows + other.rows)


def eligible(tiered: Tiered) -> str:
    """The condition that a hot row, ``t``, has cooled."""
    column = tiered.policy["time_column"]
    age = f"make_interval(secs => {float(tiered.policy['hot_for'])})"
    moment = f"t.{quoted(column)}" if column is not None else "pg_xact_commit_timestamp(t.xmin)"
    old = f"{moment} <= now() - {age}"
    return f"({old if column is not None else f'coalesce({old}, true)'}) AND {finite(tiered.columns)}"


async def flush(session: Session, tiered: Tiered) -> Flushed:
    """Move every row that has cooled; nothing when somebody else is at it."""
    mine = await session.query(f"SELECT pg_try_advisory_lock({LEASE}, {tiered.oid - 2**31}) AS mine", (), None)
    if not mine[0]["mine"]:
        return Flushed()
    try:
        total = 0
        while True:
            moved, more = await _batch(session, tiered)
            total += moved
            if not more:
                return Flushed(1 if total else 0, total)
    except BaseException as error:
        if not session.is_closed() and isinstance(error, Exception):
            await session.query(
                "UPDATE howdah.tiers SET last_error = $2 WHERE rel = $1::oid", (tiered.oid, str(error)[:1000]), None
            )
        raise
    finally:
        if not session.is_closed():
            await session.command(f"SELECT pg_advisory_unlock({LEASE}, {tiered.oid - 2**31})")


async def _batch(session: Session, tiered: Tiered) -> tuple[int, bool]:
    """One commit of the base and the cut that makes it count; the rows moved, and whether there may be more."""
    await session.command("BEGIN ISOLATION LEVEL REPEATABLE READ")
    try:
        snapshot = await current(session, tiered)
        rows, xmins = await take(session, tiered, eligible(tiered), tiered.keys("t"), BATCH)
        dead = await _dead(session, tiered)
    finally:
        await session.command("ROLLBACK")
    if not rows.num_rows:
        return 0, False
    schema = arrow_schema(arrow_library(), tiered.columns)
    gone = filters.keys_in(tiered, dead) if dead else None
    metadata, number = await asyncio.to_thread(base.commit, tiered.location, snapshot.metadata, schema, rows, gone)
    for attempt in range(TRIES):
        try:
            await _cut(session, tiered, snapshot.generation, rows, xmins, dead, metadata, number)
            break
        except TierError:
            raise
        except Exception as error:
            if getattr(error, "sqlstate", "") != "55P03" or attempt == TRIES - 1:  # lock_timeout
                raise
            await asyncio.sleep(0.02 * (attempt + 1))
    return rows.num_rows, rows.num_rows == BATCH


async def _dead(session: Session, tiered: Tiered) -> list[tuple[Any, ...]]:
    shown = ", ".join(quoted(k) if tiered.column(k).native else f"{quoted(k)}::text" for k in tiered.key)
    return [tuple(r) for r in await session.query(f"SELECT {shown} FROM {tiered.shadow}", (), None)]


def _arrays(tiered: Tiered, first: int) -> str:
    """Key columns from text arrays, as typed columns k0, k1, …"""
    arrays = ", ".join(f"${first + i}::text[]" for i in range(len(tiered.key)))
    names = ", ".join(f"k{i}" for i in range(len(tiered.key)))
    return f"unnest({arrays}) AS m({names})"


def _columns(tiered: Tiered, rows: Any) -> list[list[str]]:
    return [[str(v) for v in rows.column(k).to_pylist()] for k in tiered.key]


async def _cut(
    session: Session,
    tiered: Tiered,
    generation: int,
    rows: Any,
    xmins: list[str],
    dead: list[tuple[Any, ...]],
    metadata: str,
    number: int,
) -> None:
    """Everything that makes the new base count, in one transaction: what moved leaves the heap unless it changed meanwhile."""
    typed = [f"m.k{i}::{tiered.column(k).spelled}" for i, k in enumerate(tiered.key)]
    same = " AND ".join(f"t.{quoted(k)} = {v}" for k, v in zip(tiered.key, typed, strict=True))
    gone_same = " AND ".join(f"g.{quoted(k)} = {v}" for k, v in zip(tiered.key, typed, strict=True))
    dead_same = " AND ".join(f"s.{quoted(k)} = {v}" for k, v in zip(tiered.key, typed, strict=True))
    keys = _columns(tiered, rows)
    marks = ", ".join(f"${i + 1}::text[]" for i in range(len(keys)))
    names = ", ".join(f"k{i}" for i in range(len(keys)))
    await session.command("BEGIN")
    try:
        await session.command(
            f"SET LOCAL lock_timeout = '100ms'; SELECT pg_advisory_xact_lock({LOCK}, {tiered.oid - 2**31});"
            " SET LOCAL lock_timeout = 0; SET LOCAL session_replication_role = replica"
        )
        found = await current(session, tiered)
        if found.generation != generation:
            raise TierError(f"{tiered.table}: its base was changed by somebody else during a flush")
        if dead:
            given = [[str(key[i]) for key in dead] for i in range(len(tiered.key))]
            await session.query(
                f"DELETE FROM {tiered.shadow} s USING {_arrays(tiered, 1)} WHERE {dead_same}", given, None
            )
        await session.query(
            f"WITH m AS (SELECT * FROM unnest({marks}, ${len(keys) + 1}::text[]) AS m({names}, x)),"
            f" locked AS (SELECT t.ctid AS at FROM ONLY {tiered.table} t JOIN m ON {same} AND t.xmin = m.x::xid"
            f" FOR UPDATE OF t SKIP LOCKED),"
            f" gone AS (DELETE FROM ONLY {tiered.table} t USING locked WHERE t.ctid = locked.at RETURNING {tiered.keys('t')})"
            f" INSERT INTO {tiered.shadow} SELECT {', '.join(typed)} FROM m WHERE NOT EXISTS"
            f" (SELECT 1 FROM gone g WHERE {gone_same}) ON CONFLICT DO NOTHING",
            [*keys, xmins],
            None,
        )
        one = tiered.column(tiered.key[0])
        whole = len(tiered.key) == 1 and one.type in ("int2", "int4", "int8")
        largest = max(rows.column(tiered.key[0]).to_pylist()) if whole else None
        await session.query(
            "UPDATE howdah.tiers SET metadata = $2, snapshot_id = $3, generation = generation + 1, rows = rows + $4,"
            " max_key = greatest(max_key, $5::bigint), flushed_at = now(), last_error = NULL WHERE rel = $1::oid",
            (tiered.oid, metadata, number, rows.num_rows - len(dead), largest),
            None,
        )
        await session.command("COMMIT")
    except BaseException:
        if not session.is_closed():
            await session.command("ROLLBACK")
        raise
