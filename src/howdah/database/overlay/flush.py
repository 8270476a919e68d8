"""Moves rows that have cooled from the heap to the base: written first, then cut in one Postgres transaction."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import TierError
from ..copying import arrow_library
from ..session import Session
from . import base, commits, filters, uniques
from .binding import take
from .columns import arrow_schema, finite, quoted, selection
from .counting import LOCK, current, named
from .texts import encoded
from .tiered import Snapshot, Tiered

TEXT = 6
"""Which part of the memory the text of the rows has that move at once: they are there in several forms."""
LEASE = 1753
TRIES = 20
LONGEST = 60
"""Bytes of a text that may name a folder: rows with a longer one in a column that partitions as it is stay hot."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush moved: of how many tables, rows, new files and their bytes, and the last snapshot."""

    tables: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    snapshot: int | None = None

    def __add__(self, other: Flushed) -> Flushed:
        return Flushed(
            self.tables + other.tables,
            self.rows + other.rows,
            self.files + other.files,
            self.bytes + other.bytes,
            self.snapshot if other.snapshot is None else other.snapshot,
        )


def cooled_at(tiered: Tiered) -> str:
    """The moment at which a hot row, ``t``, has cooled; null when that is long ago."""
    return f"{_moment(tiered)} + {_age(tiered)}"


def eligible(tiered: Tiered) -> str:
    """The condition that a hot row, ``t``, has cooled."""
    old = f"{_moment(tiered)} <= now() - {_age(tiered)}"
    # A row whose commit time the server has forgotten is old.
    known = old if tiered.policy["time_column"] is not None else f"coalesce({old}, true)"
    short = [
        f"octet_length(t.{quoted(column)}) <= {LONGEST}"
        for column, transform, _ in base.partition_fields(tiered.policy["partition_by"])
        if transform == "identity" and tiered.column(column).type in ("text", "varchar")
    ]
    fits = "".join(f" AND ({test}) IS NOT FALSE" for test in short)
    return f"({known}) AND {finite(tiered.columns)}{fits}"


def _moment(tiered: Tiered) -> str:
    column = tiered.policy["time_column"]
    return f"t.{quoted(column)}" if column is not None else "pg_xact_commit_timestamp(t.xmin)"


def _age(tiered: Tiered) -> str:
    return f"make_interval(secs => {float(tiered.policy['hot_for'])})"


@asynccontextmanager
async def lease(session: Session, tiered: Tiered) -> AsyncIterator[bool]:
    """Whether this session alone may change the table's base for now; errors are noted in the table's status."""
    mine = await session.query(f"SELECT pg_try_advisory_lock({LEASE}, {tiered.oid - 2**31}) AS mine", (), None)
    if not mine[0]["mine"]:
        yield False
        return
    try:
        yield True
    except BaseException as error:
        if not session.is_closed() and isinstance(error, Exception):
            await session.query(
                "UPDATE howdah.tiers SET last_error = $2 WHERE rel = $1::oid", (tiered.oid, str(error)[:1000]), None
            )
        raise
    finally:
        if not session.is_closed():
            await session.command(f"SELECT pg_advisory_unlock({LEASE}, {tiered.oid - 2**31})")


async def flush(session: Session, tiered: Tiered) -> Flushed:
    """Move every row that has cooled; the caller holds the lease."""
    total = Flushed()
    text = f"SELECT avg(octet_length(t::text)) FROM (SELECT * FROM ONLY {tiered.table} t WHERE {eligible(tiered)} LIMIT 200) t"
    width = (await session.query(text, (), None))[0][0]
    most = int(tiered.policy["batch_rows"])
    most = most if width is None else max(1, min(most, int(session.means.memory / TEXT / float(width))))
    while True:
        moved, more = await _batch(session, tiered, most)
        total += moved
        if not more:
            return total if not total.rows else total + Flushed(tables=1)


async def _batch(session: Session, tiered: Tiered, most: int) -> tuple[Flushed, bool]:
    """One commit of the base and the cut that makes it count; what it moved, and whether there may be more."""
    await session.command("BEGIN ISOLATION LEVEL REPEATABLE READ")
    try:
        snapshot = await current(session, tiered, (tiered.table,))
        order = ", ".join(f"t.{quoted(c)}" for c in tiered.policy["sort_by"] or tiered.key)
        rows, xmins = await take(session, tiered, eligible(tiered), order, most)
        dead = await _dead(session, tiered)
    finally:
        if not session.is_closed():
            await session.command("ROLLBACK")
    if not rows.num_rows:
        return Flushed(), False
    made = await _written(tiered, snapshot, rows, dead)
    for attempt in range(TRIES):
        try:
            moved = await _cut(session, tiered, snapshot, rows, xmins, dead, made)
            break
        except TierError:
            raise
        except Exception as error:
            if getattr(error, "sqlstate", "") != "55P03":  # lock_timeout
                raise
            if attempt == TRIES - 1:
                raise TierError(f"{tiered.table}: rows cannot move now: {await _holders(session, tiered)}") from error
            await asyncio.sleep(0.02 * (attempt + 1))
    return Flushed(0, moved, made.files, made.bytes, made.snapshot), rows.num_rows == most and moved > 0


async def _holders(session: Session, tiered: Tiered) -> str:
    """Who keeps rows where they are."""
    rows = await session.query(
        "SELECT a.pid, a.application_name AS name, extract(epoch FROM now() - a.xact_start)::int AS age FROM pg_locks l"
        " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.classid = $1::oid AND l.objid = $2::oid"
        " AND l.granted AND l.pid <> pg_backend_pid() ORDER BY a.xact_start LIMIT 1",
        (LOCK, (tiered.oid - 2**31) % 2**32),
        None,
    )
    if not rows:
        return "others have the table locked"
    name = f", {rows[0]['name']}" if rows[0]["name"] else ""
    return f"a transaction that read or wrote the table has been open for {rows[0]['age']} s (process {rows[0]['pid']}{name})"


async def _written(tiered: Tiered, snapshot: Snapshot, rows: Any, dead: list[tuple[Any, ...]]) -> commits.Commit:
    """The new version of the base; storage that is busy is asked again."""
    schema = arrow_schema(arrow_library(), tiered.columns)
    gone = filters.keys_in(tiered, dead) if dead else None
    fields = base.partition_fields(tiered.policy["partition_by"])
    tries, delay = tiered.policy["retries"], tiered.policy["retry_delay"]
    for wait in (*(delay * 2**n for n in range(tries)), None):
        try:
            return await asyncio.to_thread(
                commits.commit, tiered.location, snapshot.metadata, schema, fields, rows, gone
            )
        except TierError:
            if wait is None:
                raise
            await asyncio.sleep(wait * random.uniform(0.5, 1))
    raise AssertionError("the last try returns or raises")


async def _dead(session: Session, tiered: Tiered) -> list[tuple[Any, ...]]:
    """Keys whose base rows are dead, as the base has them."""
    shown = selection(tiered.key_columns)
    return [tuple(r) for r in await session.query(f"SELECT {shown} FROM {tiered.shadow}", (), None)]


def _given(tiered: Tiered, *more: str) -> str:
    """Key columns k0, k1, … from text arrays, the first parameters, and more such columns."""
    names = [*(f"k{i}" for i in range(len(tiered.key))), *more]
    return f"unnest({', '.join(f'${i}::text[]' for i in range(1, len(names) + 1))}) AS m({', '.join(names)})"


async def _cut(
    session: Session,
    tiered: Tiered,
    snapshot: Snapshot,
    rows: Any,
    xmins: list[str],
    dead: list[tuple[Any, ...]],
    made: commits.Commit,
) -> int:
    """Everything that makes the new base count, in one transaction: what moved leaves the heap unless it changed meanwhile, or
    is locked; how many rows did."""
    typed = [f"m.k{i}::{tiered.column(k).spelled}" for i, k in enumerate(tiered.key)]

    def same(alias: str) -> str:
        return " AND ".join(f"{alias}.{quoted(k)} = {v}" for k, v in zip(tiered.key, typed, strict=True))

    shown = ", ".join(f"t.{quoted(name)}" for name in uniques.columns(tiered))
    keys = encoded(rows.select(tiered.key), tiered.key_columns)
    async with session.transaction():
        await session.command(
            f"SET LOCAL lock_timeout = '100ms'; LOCK TABLE ONLY {tiered.table} IN ROW EXCLUSIVE MODE;"
            f" SELECT pg_advisory_xact_lock({LOCK}, {tiered.oid - 2**31});"
            " SET LOCAL lock_timeout = 0; SET LOCAL session_replication_role = replica"
        )
        found = await current(session, tiered, (tiered.table,))
        if found.generation != snapshot.generation:
            raise TierError(f"{tiered.table}: its base was changed by somebody else during a flush")
        if dead:
            given = [[str(key[i]) for key in dead] for i in range(len(tiered.key))]
            await session.query(f"DELETE FROM {tiered.shadow} s USING {_given(tiered)} WHERE {same('s')}", given, None)
        gone = await session.query(
            f"WITH m AS (SELECT * FROM {_given(tiered, 'x')}),"
            f" locked AS (SELECT t.ctid AS at FROM ONLY {tiered.table} t JOIN m ON {same('t')} AND t.xmin = m.x::xid"
            f" FOR UPDATE OF t SKIP LOCKED),"
            f" gone AS (DELETE FROM ONLY {tiered.table} t USING locked WHERE t.ctid = locked.at RETURNING {shown}),"
            f" stayed AS (INSERT INTO {tiered.shadow} SELECT {', '.join(typed)} FROM m WHERE NOT EXISTS"
            f" (SELECT 1 FROM gone g WHERE {same('g')}) ON CONFLICT DO NOTHING){uniques.put_in(tiered, 'gone')}"
            " SELECT count(*) AS moved FROM gone",
            [*([str(v) for v in keys.column(k).to_pylist()] for k in tiered.key), xmins],
            None,
        )
        largest = tiered.rank(max(rows.column(tiered.key[0]).to_pylist())) if tiered.ranked else None
        if largest is not None:  # before anything of this can be seen
            await session.query(
                f"SELECT setval('{tiered.largest}', greatest($1::bigint, last_value)) FROM {tiered.largest}",
                (largest,),
                None,
            )
        await session.query(
            "UPDATE howdah.tiers SET rows = rows + $2, max_key = greatest(max_key, $3::bigint), flushed_at = now(),"
            " last_error = NULL WHERE rel = $1::oid",
            (tiered.oid, rows.num_rows - len(dead), largest),
            None,
        )
        await named(session, tiered, made, snapshot.metadata)
    return int(gone[0]["moved"])
