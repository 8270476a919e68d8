"""Binds only as many base rows as the LIMIT of a query can reach: the first in its order, and more while too few of them count."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import QueryError
from ..session import Session
from . import filters
from .asking import MOST, OURS, worked_out
from .binding import bind
from .call import EVERY, Call
from .columns import TierColumn, quoted
from .filters import alone
from .first import First, first
from .limited import Limited
from .tiered import Snapshot, Tiered

LONGEST = 100_000
"""Rows of a LIMIT that is looked at so."""
FEW = 1000
"""Dead keys that are simply fetched along."""
_SINGLE = f"""
SELECT coalesce(bool_and(prokind = 'f' AND NOT proretset AND (provolatile <> 'v' OR proname <> ALL($2::text[]))), true) AND {OURS}
FROM pg_proc WHERE proname = ANY($1::text[])
"""
"""Whether a query's functions give one value for one row, some of them the same again; and operators are Postgres' own."""


async def reached(
    session: Session,
    limited: Limited,
    tiered: Tiered,
    snapshot: Snapshot,
    condition: Any,
    columns: Sequence[TierColumn] | None,
    call: Call,
    past: int | None,
    tiers: frozenset[str],
) -> int | None:
    """Bind the base rows that a limited query can reach; how many. ``None`` if it must have all that fit its conditions."""
    number, to = count_of(limited.limit, limited.offset, call.params), _vector(limited, call.params)
    if snapshot.metadata is None or number is None or (limited.orders and limited.orders[0].metric and to is None):
        return None
    if number == 0:
        return await bind(session, tiered, None, readonly=call.readonly)
    single = await session.query(_SINGLE, (sorted(limited.functions), sorted(limited.twice)), None)
    if not single[0][0]:
        return None
    dead = 0 if past is not None else (await session.query(f"SELECT count(*) FROM {tiered.shadow}", (), None))[0][0]
    if call.checked and past is None:
        call.relied[tiered] = dead
    known = await worked_out(session, filters.expressions([limited.conditions]))
    asked = limited.asked and filters.says_all(tiered, limited.conditions, call.params, known) and dead <= FEW
    if not asked and not all(n <= len(call.params) and alone(call.params[n - 1]) for n in limited.shared):
        return None
    names = None if columns is None else [c.name for c in columns]
    for count in [number + dead] if asked else [4 * number + FEW, 128 * number + 32 * FEW]:
        given = (snapshot.metadata, condition, limited.orders, limited.whole, count, names, to)
        work = partial(first, *given, past=past, archive=snapshot.archive, tiers=tiers, most=MOST, means=session.means)
        found = await call.within(tiered, work)
        if found is None:
            return None
        bound = await bind(session, tiered, _once(found), columns, readonly=call.readonly)
        if asked or found.all or await _enough(session, limited, tiered, call, number, live=past is None):
            call.told(found)
            call.reading.skipped |= EVERY - tiers if found.skipped else frozenset()
            return bound
    return None


async def _once(found: First) -> AsyncIterator[Any]:
    if found.rows is not None:
        yield found.rows


async def _enough(session: Session, limited: Limited, tiered: Tiered, call: Call, number: int, *, live: bool) -> bool:
    """Whether so many of the bound rows count. Where the condition fails for one of them the statement itself will say so, or
    need not ask it."""
    test = tiered.live("b") if live else "true"
    rows = f"SELECT * FROM {tiered.loaded} b WHERE {test} OFFSET 0"
    where = "" if limited.where is None else f" WHERE {limited.where}"
    sql = f"SELECT count(*) FROM (SELECT 1 FROM ({rows}) AS {quoted(limited.alias)}{where} LIMIT {number}) x"
    try:
        async with session.savepoint():
            found = await session.query(sql, [call.params[n - 1] for n in limited.params], None)
    except QueryError:
        return False
    return int(found[0][0]) >= number


def count_of(limit: tuple[str, Any], offset: tuple[str, Any] | None, params: Sequence[Any]) -> int | None:
    """How many rows a LIMIT reaches."""
    total = 0
    for kind, value in (limit, *([offset] if offset else [])):
        if kind == "p" and value > len(params):
            return None
        number = params[value - 1] if kind == "p" else value
        if type(number) is not int or not 0 <= number <= LONGEST:
            return None
        total += number
    return total if total <= LONGEST else None


def _vector(limited: Limited, params: Sequence[Any]) -> Any:
    """The vector that distances are measured to."""
    order = limited.orders[0] if limited.orders else None
    if order is None or order.to is None or (order.to[0] == "p" and order.to[1] > len(params)):
        return None
    value = params[order.to[1] - 1] if order.to[0] == "p" else order.to[1]
    try:
        found = np.asarray(json.loads(value) if isinstance(value, str) else value, dtype=np.float32)
    except (ValueError, TypeError):
        return None
    return found.astype(np.float64) if found.ndim == 1 and len(found) and np.isfinite(found).all() else None
