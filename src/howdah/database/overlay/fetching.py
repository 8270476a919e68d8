"""Fetches what a statement needs of a base: its rows, the first of them, or what they sum up to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from ..session import Session
from . import filters, partials
from .asking import ASKED, MOST, OURS, PROMOTED, past_of, told, worked_out
from .binding import bind
from .call import EVERY, Call
from .columns import selection
from .plans import Plan, Summary
from .reaching import reached
from .tiered import Snapshot, Tiered

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


async def bound(
    session: Session,
    plan: Plan,
    tiered: Tiered,
    snapshot: Snapshot,
    call: Call,
    *,
    steady: bool,
) -> int:
    """Bind what any mention of a table may need of its base; how many rows. ``steady``: the transaction sees the same all the
    time."""
    mentions = plan.uses.get(tiered)
    if mentions is None:
        return 0
    known = await told(session, mentions, call.params, steady=steady and plan.kind == "read")
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
    if plan.limited is not None and (steady or call.checked):
        given = (plan.limited, tiered, snapshot, condition, columns, call, past, tiers)
        if (count := await reached(session, *given)) is not None:
            return count
    return await call.bind(session, tiered, snapshot, condition, columns, most=MOST, past=past, tiers=tiers)


async def summed(
    session: Session, summary: Summary, snapshot: Snapshot, call: Call
) -> tuple[str, Sequence[Any]] | None:
    """The query over what the base sums up to, and its parameters; ``None`` if its rows must be bound after all. The dead
    rows are asked for before the query runs; if a transaction may see more of them then, that is looked at afterwards."""
    tiered = summary.tiered
    if snapshot.metadata is None or len(call.params) != summary.given:
        return None
    ours, zone = tuple((await session.query(f"SELECT {OURS}, current_setting('TimeZone')", (), None))[0])
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
    if call.checked:
        call.relied[tiered] = len(dead)
    tiers = frozenset(ASKED[""])
    asked = (snapshot.metadata, condition, groups, summary.parts, tiered.key, dead)
    work = partial(partials.summed, *asked, archive=snapshot.archive, tiers=tiers, means=session.means)
    found = await call.within(tiered, work)
    if found.columns is None:
        return None
    call.told(found)
    if found.skipped:
        call.reading.skipped |= EVERY - tiers
    return summary.sql, [*call.params, *found.columns]


async def _wanted(session: Session, plan: Plan, call: Call) -> list[tuple[Any, ...]] | None:
    """The keys that a MERGE may meet; ``None`` if some are of another type than those of the base."""
    assert plan.lookup is not None and plan.target is not None
    types = [type_ for _, type_ in await session.columns(plan.lookup)]
    # What is padded or folded when it is compared is not told by its text.
    if any(t not in ("int2", "int4", "int8", "text", "varchar", "uuid") for t in types):
        return None
    rows = await session.query(plan.lookup, [call.params[n - 1] for n in plan.lookup_params], None)
    keys = [tuple(row) for row in rows if None not in tuple(row)]
    kinds = [int if c.type.startswith("int") else UUID if c.type == "uuid" else str for c in plan.target.key_columns]
    fit = all(isinstance(v, kind) for key in keys for v, kind in zip(key, kinds, strict=True))
    return keys if fit and len(keys) <= PROMOTED else None
