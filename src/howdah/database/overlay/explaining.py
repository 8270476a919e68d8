"""What a statement over tiered tables would open, and by which conditions; nothing is read for it but lists of files."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from ...engines.sql.dialect import text_literal
from ..rows import PlannedTable, QueryPlan, Reading
from ..session import Session
from . import base, filters
from .asking import ASKED, past_of, told
from .call import EVERY, Call
from .counting import current
from .filters import Condition
from .plans import Plan


async def explained(session: Session, plan: Plan, call: Call) -> QueryPlan:
    """What a plan would do; a repeatable-read transaction is open."""
    tables = []
    for tiered, mentions in sorted(plan.uses.items(), key=lambda use: use[0].table):
        snapshot = await current(session, tiered, plan.names.get(tiered, ()))
        known = await told(session, mentions, call.params, steady=plan.kind == "read")
        condition = filters.any_of(tiered, mentions, call.params, known)
        version = await past_of(session, tiered, call.as_of) if plan.mode == "past" else None
        files: list[Any] = []
        every = 0
        if snapshot.metadata is not None and plan.mode != "hot":
            tiers = frozenset(ASKED[plan.mode]) if plan.kind == "read" else EVERY
            chosen = (snapshot.metadata, condition, version, snapshot.archive, tiers)
            files = (await asyncio.to_thread(base.chosen, *chosen))[0]
            every = len(base.files(snapshot.metadata, version))
        said = tuple(tuple(map(_shown, conditions)) for conditions in mentions)
        tables.append(PlannedTable(tiered.table, len(files), every, sum(f.file_size_in_bytes for f in files), said))
    tiers_read = ASKED[plan.mode] if plan.kind == "read" else ASKED["all"]
    return QueryPlan(plan.kind, tiers_read, plan.quick is not None, tuple(tables))


def shown(plan: QueryPlan, reading: Reading) -> list[str]:
    """What EXPLAIN says of bases, below what Postgres says."""
    lines = []
    for table in plan.tables:
        lines.append(
            f"Base of {table.table}: {table.files} of {table.of_files} files may hold rows, {table.bytes} bytes"
        )
        lines += [f"  Condition: {' AND '.join(conditions)}" for conditions in table.conditions if conditions]
    left = f", left out: {', '.join(sorted(reading.skipped))}" if reading.skipped else ""
    return [*lines, f"Tiers: {', '.join(reading.tiers)}{left}; files read: {reading.files}, {reading.bytes} bytes"]


def _shown(condition: Condition) -> str:
    """A condition as one would write it."""
    words = {"null": "IS NULL", "there": "IS NOT NULL"}
    if condition.op in words:
        return f"{condition.column} {words[condition.op]}"
    values = [
        f"${value}" if kind in "pq" else text_literal(value) if isinstance(value, str) and kind == "c" else str(value)
        for kind, value in condition.values
    ]
    if condition.values[0][0] == "k":
        query = condition.values[0][1]  # which numbers its parameters by itself
        text = re.sub(r"\$(\d+)", lambda found: f"${query.params[int(found[1]) - 1]}", query.sql)
        return f"{condition.column} IN ({text})"
    if condition.op == "between":
        return f"{condition.column} BETWEEN {values[0]} AND {values[1]}"
    if condition.op == "in":
        return f"{condition.column} IN ({', '.join(values)})"
    return f"{condition.column} {'= ANY' if condition.op == 'any' else condition.op.upper()} {values[0]}"
