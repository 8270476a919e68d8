"""The tiered tables of a database: set up, listed, brought back; and the plans of statements over them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ...errors import InvalidInput, QueryError, TierError, TieringRefused, UndefinedTable
from ...values import seconds
from ..copying import table_name
from ..rows import Row
from ..session import Session
from . import base, objects, place, scan
from .binding import bind, bindable
from .columns import finite, quoted
from .counting import LOCK, current
from .flush import cooled_at, eligible
from .planner import plan
from .plans import Plan
from .tiered import SHAPE, TIERS, VIEWS, Known, Tiered, View, described
from .writing import promoted

log = logging.getLogger("howdah")
KEPT = 2000
_UNKNOWN: Any = object()
NAMED = (
    "SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)"
)
"""The table that a name means on this connection."""
ELSEWHERE = (
    "it came with a dump, and its rows on object storage belong to where that was made; Database.backup brings them"
)
Tier = Literal["hot", "warm", "cold", "all"]


@dataclass(frozen=True, slots=True)
class TierPart:
    """The rows of one tier, dead ones included: how many, in how many files (hot: in Postgres) of so many bytes, and their first and
    last moment, if the table has a time column."""

    rows: int
    files: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class TierStatus:
    """One tiered table: where its base is; how many rows are hot, due to move, and in the base, whose files and bytes are
    those of its ``snapshot``; ``lag`` is for how many seconds the oldest row that is due has been so. ``metadata`` is the Iceberg
    metadata file by which other engines read the base as it is; ``parts`` are the tiers ``hot``, ``warm`` and ``cold``, the latter two
    if object storage answers."""

    table: str
    location: str
    hot_rows: int
    due_rows: int
    warm_rows: int
    shadowed: int
    files: int
    bytes: int
    snapshot: int | None
    lag: float
    flushed_at: datetime | None
    last_error: str | None
    flush_rows: int
    flush_every: float
    metadata: str | None
    parts: dict[str, TierPart]


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """A version of a base that can still be read: ``query(…, as_of=snapshot.id)``."""

    id: int
    at: datetime
    rows: int
    files: int
    bytes: int


class Tiers:
    """What this process knows of tiered tables."""

    def __init__(self) -> None:
        self._known = Known()
        self._plans: OrderedDict[tuple[str, str], Plan | None] = OrderedDict()
        self._elsewhere: set[int] = set()

    @property
    def active(self) -> bool:
        """Whether there is any tiered table."""
        return bool(self._known.tables)

    def plan(self, sql: str, mode: str = "") -> Plan | None:
        """The plan of a statement, kept by its text; ``None`` when it touches no tiered table."""
        asked = (sql, mode)
        if asked in self._plans:
            self._plans.move_to_end(asked)
            return self._plans[asked]
        made = self._plans[asked] = plan(sql, self._known, mode)
        if len(self._plans) > KEPT:
            self._plans.popitem(last=False)
        return made

    def untouched(self, sql: str) -> bool:
        """Whether a statement is known to touch no tiered table."""
        return self._plans.get((sql, ""), _UNKNOWN) is None

    async def load(self, session: Session) -> None:
        """Read which tables are tiered."""
        found = Known()
        there = "SELECT to_regclass('howdah.tiers') IS NOT NULL, to_regprocedure('howdah.view_text(oid)') IS NOT NULL"
        tables, views = tuple((await session.query(there, (), None))[0])
        if tables:
            for row in await session.query(TIERS, (), None):
                if not row["mine"]:
                    if row["oid"] not in self._elsewhere:
                        self._elsewhere.add(row["oid"])
                        log.warning("table %s.%s: %s", row["schema"], row["name"], ELSEWHERE)
                    continue
                tiered = await self._described(session, row)
                found.tables[row["schema"], row["name"]] = tiered
                if row["visible"]:
                    found.tables["", row["name"]] = tiered
            for row in await session.query(VIEWS, (), None) if found.tables and views else ():
                view = View(row["oid"], row["sql"])
                found.views[row["schema"], row["name"]] = view
                if row["visible"]:
                    found.views["", row["name"]] = view
        old = self._known
        if found != old or any(t.policy != old.tables[name].policy for name, t in found.tables.items()):
            self._plans.clear()
        self._known = found

    async def _described(self, session: Session, row: Row) -> Tiered:
        """A table as it is; as it was known, if nothing of it has changed."""
        names = (row["oid"], row["schema"], row["name"])
        known = self._known.table(row["schema"], row["name"])
        said = (known.oid, known.location, known.shape) if known is not None else None
        if known is None or said != (row["oid"], row["location"], row["shape"]) or row["now"] != row["shape"]:
            known = await described(session, *names, row["location"], row["policy"], row["shape"])
        return replace(known, policy=row["policy"], triggers=row["triggers"])

    def bindable(self) -> str:
        """What a transaction runs before it becomes read-only."""
        return "".join(f"; {bindable(tiered)}" for tiered in self.each())

    def one(self, table: str) -> Tiered:
        """A tiered table by name."""
        schema, name = table_name(table)
        found = self._known.table(schema or "", name)
        if found is None:
            raise InvalidInput(f"{table} is not tiered")
        return found

    def named(self, schema: str, name: str) -> Tiered | None:
        """The tiered table of a schema ("" for the search path) and name."""
        return self._known.table(schema, name)

    def viewed(self, schema: str, name: str) -> bool:
        """Whether it is a view over a tiered table."""
        return (schema, name) in self._known.views

    def each(self) -> list[Tiered]:
        """Every tiered table."""
        return list({t.oid: t for t in self._known.tables.values()}.values())


async def ordinary(session: Session, schema: str, name: str) -> Tiered:
    """An ordinary table as if it were tiered: its columns and key."""
    spelled = quoted(name) if not schema else f"{quoted(schema)}.{quoted(name)}"
    rows = await session.query(NAMED, (spelled,), None)
    if not rows:
        raise UndefinedTable(f"relation {spelled} does not exist", sqlstate="42P01")
    return await described(session, rows[0]["oid"], rows[0]["schema"], rows[0]["name"])


def policy_of(
    *,
    hot_for: float | timedelta,
    flush_rows: int,
    flush_every: float | timedelta,
    time_column: str | None,
    partition_by: Any,
    sort_by: Any,
    archive_after: float | timedelta | None,
    archive_location: Any,
    allow_hot_only: bool,
    foreign_keys: str | None,
    retries: int,
    retry_delay: float | timedelta,
    batch_rows: int,
) -> dict[str, Any]:
    """A checked policy, as ``howdah.tiers`` has it."""
    if type(allow_hot_only) is not bool:
        raise InvalidInput(f"allow_hot_only={allow_hot_only!r:.40}: expected True or False")
    if foreign_keys not in (None, "hot only"):
        raise InvalidInput(f"foreign_keys={foreign_keys!r:.40}: expected None or 'hot only'")
    for name, number, least in (("flush_rows", flush_rows, 1), ("retries", retries, 0), ("batch_rows", batch_rows, 1)):
        if type(number) is not int or number < least:
            raise InvalidInput(f"{name}={number!r}: expected an integer >= {least}")
    if archive_after is None and archive_location is not None:
        raise InvalidInput("archive_location= needs archive_after=: when files move there")
    if archive_after is not None and time_column is None:
        raise InvalidInput("archive_after= needs a time_column=: files are archived by the time of their rows")
    if partition_by is None:
        partition_by = [f"day({time_column})"] if time_column is not None else []
    base.partition_fields(partition_by)
    order = [sort_by] if isinstance(sort_by, str) else sort_by
    if order is not None and (not isinstance(order, (list, tuple)) or not all(isinstance(c, str) for c in order)):
        raise InvalidInput(f"sort_by={sort_by!r:.60}: expected names of columns")
    return {
        "hot_for": seconds(hot_for, "hot_for", zero=True),
        "flush_rows": flush_rows,
        "flush_every": seconds(flush_every, "flush_every"),
        "time_column": time_column,
        "partition_by": [partition_by] if isinstance(partition_by, str) else list(partition_by),
        "sort_by": list(order) if order else None,
        "archive_after": None if archive_after is None else seconds(archive_after, "archive_after", zero=True),
        "archive_location": None if archive_location is None else place.recorded(archive_location),
        "allow_hot_only": allow_hot_only,
        "foreign_keys": foreign_keys,
        "retries": retries,
        "retry_delay": seconds(retry_delay, "retry_delay", zero=True),
        "batch_rows": batch_rows,
    }


async def tier(session: Session, table: str, location: Any, policy: dict[str, Any], beside: Path | None = None) -> None:
    """Set a policy: a new one makes the table tiered, another changes when rows move. A base without a location is below
    ``beside``, if there is such a place."""
    schema, name = table_name(table)
    base.library()
    given = None if location is None else place.recorded(location)
    spelled = quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
    async with session.transaction("BEGIN; SELECT pg_advisory_xact_lock(1751, 2)"):
        rows = await session.query(NAMED, (spelled,), None)
        if not rows:
            raise InvalidInput(f"{table}: there is no such table")
        oid = rows[0]["oid"]
        await session.command(objects.SYSTEM)
        sql = "SELECT location, policy, made_as = rel::oid AS mine FROM howdah.tiers WHERE rel = $1::oid"
        known = await session.query(sql, (oid,), None)
        if known and not known[0]["mine"]:
            raise TieringRefused(f"{table}: {ELSEWHERE}")
        if given is None and not known and beside is None:
            raise InvalidInput(f"{table}: say location=: a directory that every client sees, or s3://bucket/prefix")
        own = place.of_table(place.recorded(beside), rows[0]["schema"], rows[0]["name"]) if beside is not None else ""
        where = given or (known[0]["location"] if known else own)
        if policy["archive_after"] is not None and policy["archive_location"] is None:
            policy = {**policy, "archive_location": f"{where}.archive"}
        shape = (await session.query(f"SELECT {SHAPE.format(rel='$1::oid')} AS shape", (oid,), None))[0]["shape"]
        tiered = await described(session, oid, rows[0]["schema"], rows[0]["name"], "", policy, shape)
        if known:
            _changed(table, where, policy, known[0]["location"], known[0]["policy"])
            objects.check_shape(tiered, policy)
            await _check_all(session, tiered, _foreign(policy))
            if policy["archive_location"] != known[0]["policy"]["archive_location"]:
                await _check_places(session, oid, where, policy, new=False)
            await session.query("UPDATE howdah.tiers SET policy = $2 WHERE rel = $1::oid", (oid, policy), None)
            if policy["allow_hot_only"] != known[0]["policy"]["allow_hot_only"]:
                for statement in objects.gate(tiered):
                    await session.command(statement)
            return
        await _check(session, tiered, policy)
        await _check_places(session, oid, where, policy, new=True)
        await begin(session, replace(tiered, location=where))


async def begin(session: Session, tiered: Tiered) -> None:
    """Make a table tiered, as yet without a base."""
    for statement in objects.create(tiered):
        await session.command(statement)
    await session.query(
        "INSERT INTO howdah.tiers (rel, made_as, location, policy, generation, shape) VALUES ($1::oid, $1::oid, $2, $3, 1, $4)",
        (tiered.oid, tiered.location, tiered.policy, tiered.shape),
        None,
    )


def _changed(table: str, where: str, policy: dict[str, Any], location: str, old: dict[str, Any]) -> None:
    """Refuse what a new policy cannot change."""
    if where != location:
        raise InvalidInput(f"{table} is tiered at {location}: untier it first to move it")
    if policy["partition_by"] != old["partition_by"]:
        raise InvalidInput(f"{table} is partitioned by {old['partition_by']}: untier it first to change that")
    if old["archive_location"] not in (None, policy["archive_location"]):
        raise InvalidInput(f"{table} is archived at {old['archive_location']}: untier it first to change that")


async def _check_places(session: Session, oid: int, where: str, policy: dict[str, Any], *, new: bool) -> None:
    """Refuse places that are not a table's own: files that nobody names are deleted there."""
    archive = policy["archive_location"]
    mine = [("location", where)] if new else []
    mine += [("archive_location", archive)] if archive is not None else []
    others = await session.query(
        "SELECT location, policy->>'archive_location' AS archive FROM howdah.tiers WHERE rel <> $1::oid", (oid,), None
    )
    taken = [p for row in others for p in (row["location"], row["archive"]) if p is not None]
    for name, one in mine:
        rest = [*taken, *([where] if name == "archive_location" else [])]
        for other in rest:
            if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
                raise InvalidInput(f"{name}={one!r}: expected a place of its own, outside of {other}")
    for _, one in mine:
        await asyncio.to_thread(place.check, one)


def _foreign(policy: dict[str, Any]) -> Sequence[tuple[str, str]]:
    return objects.FOREIGN_KEYS if policy["foreign_keys"] is None else ()


async def _check_all(session: Session, tiered: Tiered, checks: Sequence[tuple[str, str]]) -> None:
    for sql, why in checks:
        if await session.query(sql, (tiered.oid,), None):
            raise TieringRefused(f"{tiered.table}: {why}")


async def _check(session: Session, tiered: Tiered, policy: dict[str, Any]) -> None:
    await _check_all(session, tiered, (*objects.CHECKS, *_foreign(policy)))
    objects.check_shape(tiered, policy)
    if policy["sort_by"]:
        order = ", ".join(map(quoted, policy["sort_by"]))
        try:
            await session.query(f"SELECT FROM ONLY {tiered.table} ORDER BY {order} LIMIT 0", (), None)
        except QueryError as error:
            raise TieringRefused(f"{tiered.table}: sort_by={policy['sort_by']}: {error}") from error
    if policy["time_column"] is None:
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
    async with session.transaction():
        await session.command(
            f"SET LOCAL lock_timeout = '30s'; LOCK TABLE ONLY {tiered.table} IN ACCESS EXCLUSIVE MODE;"
            f" SELECT pg_advisory_xact_lock({LOCK}, {tiered.oid - 2**31})"
        )
        before = await current(session, tiered, (tiered.table,), strict=False)
        count = 0 if before.metadata is None else await _back(session, tiered, before.metadata)
        for statement in objects.drop(tiered):
            await session.command(statement)
    return count


async def _back(session: Session, tiered: Tiered, metadata: str) -> int:
    """Bring every live row of a base back; how many."""
    there = await asyncio.to_thread(base.columns, metadata)
    # Columns that somebody has added past Howdah get their defaults.
    among = [c for c in tiered.columns if c.name in there]
    await bind(session, tiered, scan.Scan(metadata).each(), among)
    live = await session.query(f"SELECT count(*) FROM {tiered.loaded} b WHERE {tiered.live('b')}", (), None)
    await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", (), most=None, among=[c.name for c in among])
    return int(live[0][0])


async def status(session: Session, tiered: Tiered) -> TierStatus:
    """Where a table's rows are."""
    due = f"FROM ONLY {tiered.table} t WHERE {eligible(tiered)}"
    column = tiered.policy["time_column"]
    ends = [
        f"(SELECT {f}(t.{quoted(column)}) FROM ONLY {tiered.table} t WHERE {finite((tiered.column(column),))})::timestamptz"
        if column is not None
        else "NULL::timestamptz"
        for f in ("min", "max")
    ]
    row = (
        await session.query(
            f"SELECT t.*, (SELECT count(*) FROM ONLY {tiered.table}) AS hot, (SELECT count(*) {due}) AS due,"
            f" (SELECT extract(epoch FROM now() - min({cooled_at(tiered)})) {due})::float8 AS lag,"
            f" (SELECT count(*) FROM {tiered.shadow}) AS shadowed, {ends[0]} AS oldest, {ends[1]} AS newest,"
            f" pg_total_relation_size({tiered.oid}::oid::regclass) AS size FROM howdah.tiers t WHERE rel = $1::oid",
            (tiered.oid,),
            None,
        )
    )[0]
    return TierStatus(
        f"{tiered.schema}.{tiered.name}", row["location"], row["hot"], row["due"], row["rows"], row["shadowed"],
        row["files"], row["bytes"], row["snapshot_id"], max(0.0, row["lag"] or 0.0), row["flushed_at"], row["last_error"],
        tiered.policy["flush_rows"], tiered.policy["flush_every"], row["metadata"],
        {"hot": TierPart(row["hot"], 0, row["size"], row["oldest"], row["newest"]), **await _parts(tiered, row["metadata"])},
    )  # fmt: skip


async def _parts(tiered: Tiered, metadata: str | None) -> dict[str, TierPart]:
    """The tiers of a base; none where it cannot be read, which a query will say."""
    if metadata is None:
        return {}

    def counted() -> dict[str, TierPart]:
        found = {}
        with base.told(metadata, "the base cannot be read"):
            for tier in ("warm", "cold"):
                files, _ = base.chosen(metadata, None, None, tiered.archive, frozenset((tier,)))
                ends = base.ends(metadata, files, tiered.policy["time_column"])
                rows, size = (sum(getattr(f, what) for f in files) for what in ("record_count", "file_size_in_bytes"))
                found[tier] = TierPart(rows, len(files), size, *ends)
        return found

    try:
        return await asyncio.to_thread(counted)
    except TierError as error:
        log.warning("%s: %s", tiered.table, error)
        return {}


async def is_due(session: Session, tiered: Tiered) -> bool:
    """Whether the policy says that rows are to move now: enough of them are due, or some are and it is time."""
    most = tiered.policy["flush_rows"]
    rows = await session.query(
        f"SELECT (SELECT count(*) FROM (SELECT 1 FROM ONLY {tiered.table} t WHERE {eligible(tiered)} LIMIT {most}) x) AS due,"
        " flushed_at IS NULL OR now() >= flushed_at + make_interval(secs => $2) AS late FROM howdah.tiers WHERE rel = $1::oid",
        (tiered.oid, float(tiered.policy["flush_every"])),
        None,
    )
    return bool(rows and (rows[0]["due"] >= most or (rows[0]["due"] and rows[0]["late"])))


async def snapshots(session: Session, tiered: Tiered) -> list[TierSnapshot]:
    """The versions of a base that can be read, the newest first."""
    rows = await session.query(
        "SELECT snapshot_id AS id, at, rows, files, bytes FROM howdah.tier_snapshots WHERE rel = $1::oid ORDER BY at DESC",
        (tiered.oid,),
        None,
    )
    return [TierSnapshot(**dict(row)) for row in rows]
