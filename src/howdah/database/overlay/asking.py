"""What a statement asks of the server before base rows are chosen: values of expressions, versions as of a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from ...errors import InvalidInput, QueryError, SnapshotExpired
from ..session import Session
from . import filters
from .joined import KeyQuery, wavers
from .tiered import Tiered
from .tree import functions_of, parsed, range_vars, spelled

MOST = 2_000_000
"""Base rows that one statement may bind."""
PROMOTED = 100_000
"""Base rows that one write may bring back to the heap."""
ASKED = {"": ("hot", "warm"), "hot": ("hot",), "warm": ("warm",), "cold": ("cold",), "all": ("hot", "warm", "cold"),
         "past": ("warm", "cold")}  # fmt: skip
"""The tiers that are asked, by mode."""


MOST_KEYS, MOST_ROWS = 10_000, 100_000
"""Values of a query that choose files and rows of a base, and rows that it may have."""
_KEYS = ("int2", "int4", "int8", "text", "varchar", "uuid", "date", "timestamp", "timestamptz")
_VOLATILE = "SELECT proname FROM pg_proc WHERE provolatile = 'v' AND proname = ANY($1::text[]) LIMIT 1"
_KINDS = """
SELECT x AS name, c.relkind::text AS kind, CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END AS text
FROM unnest($1::text[]) x JOIN pg_class c ON c.oid = to_regclass(x)
"""
OURS = "(SELECT s FROM unnest(current_schemas(true)) s WHERE s !~ '^pg_temp' LIMIT 1) = 'pg_catalog'"
"""Whether functions and operators are Postgres' own before anybody else's."""
_FOLDED = "SELECT EXISTS (SELECT FROM pg_collation WHERE NOT collisdeterministic)"


async def told(
    session: Session, mentions: Sequence[Sequence[filters.Condition]], params: Sequence[Any], *, steady: bool
) -> dict[Any, Any]:
    """What the server says of the conditions of a table's mentions: values of expressions and, where the transaction sees the same
    all the time (``steady``), of queries."""
    known: dict[Any, Any] = await worked_out(session, filters.expressions(mentions))
    for query in filters.queries(mentions) if steady else ():
        known[query] = await _values(session, query, params)
    return known


async def _values(session: Session, query: KeyQuery, params: Sequence[Any]) -> list[Any] | None:
    """The values of a query; ``None`` if they are too many, or may be others when they are asked for again, or equal to some that look
    otherwise. An error is the statement's to tell."""
    if any(n > len(params) for n in query.params) or not all(filters.alone(params[n - 1]) for n in query.shared):
        return None
    if await changing(session, query.functions, query.tables) is not None:
        return None
    try:
        async with session.savepoint():
            types = [type_ for _, type_ in await session.columns(query.sql)]
            if len(types) != 1 or types[0] not in _KEYS:
                return None
            if types[0] in ("text", "varchar") and (await session.query(_FOLDED, (), None))[0][0]:
                return None
            some = f"SELECT array_agg(DISTINCT k), count(*) FROM ({query.sql} LIMIT {MOST_ROWS + 1}) AS x(k)"
            values, count = tuple((await session.query(some, [params[n - 1] for n in query.params], None))[0])
    except (QueryError, InvalidInput):
        return None
    found = [value for value in values or () if value is not None]
    return found if count <= MOST_ROWS and len(found) <= MOST_KEYS else None


async def changing(session: Session, functions: Iterable[str], tables: Iterable[str]) -> str | None:
    """What of a query may answer otherwise when it is asked again of the same snapshot: a volatile function, a view that has one or
    takes some rows, a table of another server."""
    names, waiting, seen = set(functions), set(tables), set[str]()
    while waiting:
        asked, waiting = waiting, set()
        seen |= asked
        for row in await session.query(_KINDS, (sorted(asked),), None):
            if row["kind"] == "f":
                return str(row["name"])
            tree = parsed(row["text"]) if row["kind"] == "v" else None
            if row["kind"] == "v" and (tree is None or wavers(tree)):
                return str(row["name"])
            names |= functions_of(tree) if tree is not None else set()
            waiting |= {spelled(r) for r in range_vars(tree)} if tree is not None else set()
        waiting -= seen
    found = await session.query(_VOLATILE, (sorted(names),), None) if names else []
    return f"{found[0][0]}()" if found else None


async def worked_out(session: Session, expressions: Sequence[str]) -> dict[str, Any]:
    """The values of expressions without columns; none if one fails: the statement itself will say why, or need not."""
    if not expressions:
        return {}
    try:
        async with session.savepoint():
            values = tuple((await session.query(f"SELECT {', '.join(expressions)}", (), None))[0])
    except QueryError:
        return {}
    return dict(zip(expressions, values, strict=True))


async def past_of(session: Session, tiered: Tiered, as_of: datetime | int | None) -> int:
    """The version of a base as of a time, or the one that is named."""
    test = "snapshot_id = $2::bigint" if isinstance(as_of, int) else "at <= $2::timestamptz"
    rows = await session.query(
        f"SELECT snapshot_id FROM howdah.tier_snapshots WHERE rel = $1::oid AND {test} ORDER BY at DESC LIMIT 1",
        (tiered.oid, as_of),
        None,
    )
    if not rows:
        what = f"snapshot {as_of}" if isinstance(as_of, int) else f"snapshot as of {as_of}"
        raise SnapshotExpired(
            f"{tiered.table}: there is no {what}, or it has expired; snapshots() lists those there are"
        )
    return int(rows[0]["snapshot_id"])
