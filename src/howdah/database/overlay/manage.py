"""The tiered tables of a database: set up, listed, flushed, brought back; and the plans of statements over them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import InvalidInput, TieringRefused
from ...values import seconds
from ..copying import table_name
from ..session import Session
from . import base, objects
from .binding import bind
from .columns import TierColumn, quoted
from .flush import Flushed, eligible, flush
from .planner import Plan, plan
from .run import LOCK, current, promoted
from .tiered import COLUMNS, KEY, SHAPE, TIERS, Tiered

KEPT = 2000


@dataclass(frozen=True, slots=True)
class TierStatus:
    """One tiered table: where its base is, how many rows are hot, due to move, and in the base."""

    table: str
    location: str
    hot_rows: int
    due_rows: int
    warm_rows: int
    shadowed: int
    flushed_at: datetime | None
    last_error: str | None
    flush_rows: int
    flush_every: float


class Tiers:
    """What this process knows of tiered tables."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Tiered] = {}
        self._plans: OrderedDict[str, Plan | None] = OrderedDict()

    @property
    def active(self) -> bool:
        """Whether there is any tiered table."""
        return bool(self._known)

    def plan(self, sql: str) -> Plan | None:
        """The plan of a statement, kept by its text; ``None`` when it touches no tiered table."""
        if sql in self._plans:
            self._plans.move_to_end(sql)
            return self._plans[sql]
        made = self._plans[sql] = plan(sql, lambda schema, name: self._known.get((schema, name)))
        if len(self._plans) > KEPT:
            self._plans.popitem(last=False)
        return made

    async def load(self, session: Session) -> None:
        """Read which tables are tiered."""
        found: dict[tuple[str, str], Tiered] = {}
        if (await session.query("SELECT to_regclass('howdah.tiers') IS NOT NULL AS there", (), None))[0]["there"]:
            for row in await session.query(TIERS, (), None):
                tiered = await _tiered(
                    session, row["oid"], row["schema"], row["name"], row["location"], row["policy"], row["shape"]
                )
                found[row["schema"], row["name"]] = tiered
                if row["visible"]:
                    found["", row["name"]] = tiered
        if found != self._known:
            self._plans.clear()
        self._known = found

    def one(self, table: str) -> Tiered:
        """A tiered table by name."""
        schema, name = table_name(table)
        found = self._known.get((schema or "", name))
        if found is None:
            raise InvalidInput(f"{table} is not tiered")
        return found

    def each(self) -> list[Tiered]:
        """Every tiered table."""
        return list({t.oid: t for t in self._known.values()}.values())


async def _tiered(
    session: Session, oid: int, schema: str, name: str, location: str, policy: dict[str, Any], shape: str
) -> Tiered:
    columns = tuple(TierColumn(**dict(r)) for r in await session.query(COLUMNS, (oid,), None))
    key = (await session.query(KEY, (oid,), None))[0]
    return Tiered(oid, schema, name, columns, tuple(key["key"] or ()), key["constraint"] or "", location, shape, policy)


async def tier(
    session: Session,
    table: str,
    location: str,
    *,
    hot_for: Any,
    flush_rows: int,
    flush_every: Any,
    time_column: str | None,
) -> None:
    """Set a policy: a new one makes the table tiered, another changes when rows move."""
    schema, name = table_name(table)
    if type(flush_rows) is not int or flush_rows < 1:
        raise InvalidInput(f"flush_rows={flush_rows!r}: expected an integer >= 1")
    policy = {
        "hot_for": seconds(hot_for, "hot_for", zero=True),
        "flush_rows": flush_rows,
        "flush_every": seconds(flush_every, "flush_every"),
        "time_column": time_column,
    }
    base.library()
    spelled = quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
    await session.command("BEGIN; SELECT pg_advisory_xact_lock(1751, 2)")
    try:
        rows = await session.query(
            "SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)",
            (spelled,),
            None,
        )
        if not rows:
            raise InvalidInput(f"{table}: there is no such table")
        oid = rows[0]["oid"]
        await session.command(objects.SYSTEM)
        known = await session.query("SELECT location FROM howdah.tiers WHERE rel = $1::oid", (oid,), None)
        if known:
            if location is not None and base_path(location) != known[0]["location"]:
                raise InvalidInput(f"{table} is tiered at {known[0]['location']}: untier it first to move it")
            await session.query("UPDATE howdah.tiers SET policy = $2 WHERE rel = $1::oid", (oid, policy), None)
        else:
            shape = (await session.query(f"SELECT {SHAPE.format(rel='$1::oid')} AS shape", (oid,), None))[0]["shape"]
            tiered = await _tiered(session, oid, rows[0]["schema"], rows[0]["name"], "", policy, shape)
            await _check(session, tiered, time_column)
            where = await asyncio.to_thread(base.check_location, location)
            for statement in objects.create(tiered):
                await session.command(statement)
            await session.query(
                "INSERT INTO howdah.tiers (rel, location, policy, generation, shape) VALUES ($1::oid, $2, $3, 1, $4)",
                (oid, where, policy, shape),
                None,
            )
        await session.command("COMMIT")
    except BaseException:
        if not session.is_closed():
            await session.command("ROLLBACK")
        raise


def base_path(location: str) -> str:
    """A location as it is recorded."""
    return str(Path(location).expanduser().absolute())


async def _check(session: Session, tiered: Tiered, time_column: str | None) -> None:
    for sql, why in objects.CHECKS:
        if await session.query(sql, (tiered.oid,), None):
            raise TieringRefused(f"{tiered.table}: {why}")
    objects.check_shape(tiered, time_column)
    if time_column is None:
        on = (await session.query("SELECT current_setting('track_commit_timestamp')", (), None))[0][0]
        if on != "on":
            raise TieringRefused(
                f"{tiered.table}: name a time_column=, or set track_commit_timestamp = on and restart the server"
            )
    may = "SELECT has_parameter_privilege('session_replication_role', 'SET') AS may"
    if not (await session.query(may, (), None))[0]["may"]:
        raise TieringRefused(
            "this role may not move rows unseen: GRANT SET ON PARAMETER session_replication_role TO it"
        )


async def untier(session: Session, tiered: Tiered) -> int:
    """Bring every row back to the heap and forget the policy; how many came back."""
    await session.command("BEGIN")
    try:
        await session.command(
            f"SET LOCAL lock_timeout = '30s'; SELECT pg_advisory_xact_lock({LOCK}, {tiered.oid - 2**31})"
        )
        before = await current(session, tiered)
        rows = await asyncio.to_thread(base.read, before.metadata, None)
        await bind(session, tiered, rows)
        count = (await session.query(f"SELECT count(*) FROM {tiered.loaded} b WHERE {tiered.live('b')}", (), None))[0][
            0
        ]
        await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", (), most=None)
        for statement in objects.drop(tiered):
            await session.command(statement)
        await session.command("COMMIT")
    except BaseException:
        if not session.is_closed():
            await session.command("ROLLBACK")
        raise
    return int(count)


async def status(session: Session, tiered: Tiered) -> TierStatus:
    """Where a table's rows are."""
    row = (
        await session.query(
            f"SELECT t.*, (SELECT count(*) FROM ONLY {tiered.table}) AS hot,"
            f" (SELECT count(*) FROM ONLY {tiered.table} t WHERE {eligible(tiered)}) AS due,"
            f" (SELECT count(*) FROM {tiered.shadow}) AS shadowed FROM howdah.tiers t WHERE rel = $1::oid",
            (tiered.oid,),
            None,
        )
    )[0]
    return TierStatus(
        f"{tiered.schema}.{tiered.name}", row["location"], row["hot"], row["due"], row["rows"], row["shadowed"],
        row["flushed_at"], row["last_error"], tiered.policy["flush_rows"], tiered.policy["flush_every"],
    )  # fmt: skip


__all__ = ["Flushed", "TierStatus", "Tiers", "flush", "status", "tier", "untier"]
