"""What TRUNCATE, DROP TABLE and ALTER TABLE do to a base: columns change by Iceberg's own evolution, and no file is written anew.

The caller has the table for itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import TierError, TieringRefused, Unsupported
from ..copying import arrow_library
from ..session import Session
from . import base, commits, uniques
from .asking import MOST
from .call import Call
from .columns import TierColumn, arrow_schema, arrow_type, quoted
from .counting import current, named
from .objects import check_shape, drop, guard, unguard
from .plans import Plan
from .tiered import SHAPE, Tiered, described

_BOUND = re.compile(r"\((\d+)\)")
_SAME = {
    *((t, t) for t in ("varchar", "bpchar", "timestamp", "timestamptz", "time", "timetz", "interval")),
    *((t, "text") for t in ("varchar", "json", "text")),
    *(("text", "varchar"), ("json", "jsonb"), ("int2", "int4")),
}
"""Types whose values the base has in the same form, where the second's bound is none or as wide."""
_USED = """
WITH RECURSIVE used(rel, name, type) AS (
  SELECT t.rel::text, a.attname, a.atttypid FROM howdah.tiers t JOIN pg_attribute a ON a.attrelid = t.rel AND attnum > 0 AND NOT attisdropped
  UNION SELECT u.rel, u.name, v.type FROM used u JOIN pg_type y ON y.oid = u.type CROSS JOIN LATERAL (
    SELECT unnest(ARRAY[y.typelem, y.typbasetype, (SELECT rngsubtype FROM pg_range WHERE rngtypid = y.oid)]) AS type
    UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped) v
  WHERE v.type <> 0)
SELECT rel, name FROM used WHERE type = to_regtype($1) LIMIT 1
"""
"""A column of a tiered table that has a type, or one of what that is made of."""
_WIDER = {("int32", "int64"), ("float", "double")}


async def emptied(session: Session, tiered: Tiered, names: Sequence[str]) -> None:
    """Forget the base's rows; older versions can still be read."""
    snapshot = await current(session, tiered, names, " FOR UPDATE")
    if snapshot.metadata is None:
        return
    for table in (tiered.shadow, *(tiered.beside(unique) for unique in tiered.uniques)):
        await session.command(f"DELETE FROM {table}")  # a TRUNCATE would reach into older snapshots
    await session.query("UPDATE howdah.tiers SET rows = 0 WHERE rel = $1::oid", (tiered.oid,), None)
    made = await asyncio.to_thread(commits.empty, tiered.location, snapshot.metadata)
    if made is not None:
        await named(session, tiered, made, snapshot.metadata)


async def dropped(session: Session, tiered: Tiered, names: Sequence[str]) -> None:
    """Forget that a table is tiered. The files of its base stay."""
    await current(session, tiered, names)
    for statement in drop(tiered):
        await session.command(statement)


async def loosened(session: Session, tiered: Tiered, names: Sequence[str]) -> None:
    """Take away what would hold on to the columns."""
    await current(session, tiered, names)
    await session.command(unguard(tiered))


async def looked_at(session: Session, plan: Plan, tiered: Tiered, call: Call) -> Tiered:
    """A table as it is before it is changed, its types under the names that they have now; its base rows are bound where the change
    demands something of each."""
    snapshot = await current(session, tiered)
    if plan.verified:
        await call.bind(session, tiered, snapshot, None, most=MOST)
    return await described(
        session, tiered.oid, tiered.schema, tiered.name, tiered.location, tiered.policy, tiered.shape
    )


async def verify(session: Session, plan: Plan, tiered: Tiered) -> None:
    """The error of a change that demands of each row what one of the base does not fulfil."""
    for wanted in plan.verified:
        there = {c.name for c in tiered.columns}
        fresh = "".join(f", NULL AS {quoted(name)}" for name in sorted(wanted.columns - there))
        rows = await session.query(
            f"SELECT EXISTS (SELECT FROM (SELECT *{fresh} FROM {tiered.loaded} b WHERE {tiered.live('b')} OFFSET 0) AS {quoted(tiered.name)}"
            f" WHERE NOT ({wanted.condition}))",
            (),
            None,
        )
        if rows[0][0]:
            given = (wanted.state, wanted.text, wanted.constraint, tiered.name, tiered.schema)
            await session.query("SELECT howdah.refuse($1, $2, $3, $4, $5)", given, None)


async def check_type(session: Session, name: str) -> None:
    """Refuse to change a type that columns of tiered tables have, within others, too."""
    rows = await session.query(_USED, (name,), None)
    if rows:
        raise Unsupported(
            f"a change of {name} is not supported: rows on object storage have its values as text, in the column"
            f" {rows[0]['name']} of {rows[0]['rel']}: untier that first"
        )


async def altered(session: Session, old: Tiered) -> None:
    """Let the base follow what has become of a table's columns."""
    where = "FROM howdah.tiers t JOIN pg_class c ON c.oid = t.rel JOIN pg_namespace n ON n.oid = c.relnamespace"
    sql = f"SELECT n.nspname, c.relname, t.metadata, {SHAPE.format(rel='t.rel')} AS shape {where} WHERE t.rel = $1::oid"
    schema, name, metadata, shape = tuple((await session.query(f"{sql} FOR UPDATE OF t", (old.oid,), None))[0])
    new = await described(session, old.oid, schema, name, old.location, old.policy, shape)
    work, policy = _evolution(old, new), _renamed(old, new)
    check_shape(new, policy)
    known = {c.number for c in old.columns}
    filled = await session.query(
        "SELECT a.attname FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid WHERE a.attrelid = $1::oid"
        " AND a.attnum = ANY($2::int[]) AND (a.atthasmissing OR y.typdefault IS NOT NULL OR y.typnotnull)",
        (old.oid, [c.number for c in new.columns if c.number not in known]),
        None,
    )
    if filled:
        raise TieringRefused(
            f"{old.table}: the new column {filled[0][0]} has a default or a domain's rule, which rows on object storage would not have"
        )
    await session.query(
        "UPDATE howdah.tiers SET shape = $2, policy = $3 WHERE rel = $1::oid", (old.oid, shape, policy), None
    )
    for statement in (*uniques.alter(old, new), guard(new)):
        await session.command(statement)
    if work is not None and metadata is not None:
        made = await asyncio.to_thread(commits.change, old.location, metadata, work)
        if not await named(session, old, made, metadata):
            raise TierError(f"{old.table}: its base was changed by somebody else meanwhile: run the statement again")


def _renamed(old: Tiered, new: Tiered) -> dict[str, Any]:
    """The policy under the columns' new names."""
    now = {c.number: c.name for c in new.columns}
    names = {c.name: now.get(c.number, c.name) for c in old.columns}
    policy = dict(old.policy)
    parts = base.partition_fields(policy["partition_by"])
    policy["time_column"] = names.get(policy["time_column"], policy["time_column"])
    policy["sort_by"] = policy["sort_by"] and [names.get(c, c) for c in policy["sort_by"]]
    policy["partition_by"] = [base.partition_text(names.get(c, c), transform, of) for c, transform, of in parts]
    return policy


def _evolution(old: Tiered, new: Tiered) -> Callable[[Any], None] | None:
    """What makes a base have a table's new columns; ``None`` if it has them. ``TieringRefused`` for what Iceberg cannot do."""
    before, after = ({c.number: c for c in t.columns} for t in (old, new))
    if [(before[n].name, before[n].type) for n in _keys(old)] != [(after[n].name, after[n].type) for n in _keys(new)]:
        raise TieringRefused(f"{old.table}: its key cannot be changed: untier it first")
    steps: list[tuple[str, str, Any]] = []
    for number, column in before.items():
        found = after.get(number)
        if found is None:
            steps.append(("drop", column.name, None))
            continue
        if _widened(old, column, found):
            steps.append(("widen", column.name, _type(found)))
        if found.name != column.name:
            steps.append(("rename", column.name, found.name))
    more = [c for number, c in after.items() if number not in before]
    steps += [("add", c.name, arrow_schema(arrow_library(), [c])) for c in more]
    if not steps:
        return None

    def work(table: Any) -> None:
        from .versions import evolve

        evolve(table, steps)

    return work


def _keys(tiered: Tiered) -> list[int]:
    return [c.number for c in tiered.key_columns]


def _type(column: TierColumn) -> Any:
    return arrow_type(arrow_library(), column)


def _widened(tiered: Tiered, old: TierColumn, new: TierColumn) -> bool:
    """Whether a column's type in the base changes; refuses what would not fit the rows that are there."""
    if (old.spelled, old.exact, old.native) == (new.spelled, new.exact, new.native):
        return False
    was, becomes = str(_type(old)), str(_type(new))
    if was == becomes:
        bounds = [_BOUND.search(c.spelled) for c in (old, new)]
        wider = bounds[1] is None or (bounds[0] is not None and int(bounds[1][1]) >= int(bounds[0][1]))
        if wider and (old.type, new.type) in _SAME:
            return False
        if old.type == new.type == "numeric" and new.spelled == "numeric":
            return False
    elif (was, becomes) in _WIDER:
        return True
    elif old.digits is not None and new.digits is not None:
        if old.digits[1] == new.digits[1] and old.digits[0] <= new.digits[0]:
            return True
    raise TieringRefused(
        f"{tiered.table}: column {old.name} cannot become {new.spelled} from {old.spelled}: rows on object storage can only be"
        " widened; untier it first"
    )
