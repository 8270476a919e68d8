"""What a statement asks of the server before base rows are chosen: values of expressions, versions as of a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ...errors import InvalidInput, QueryError, SnapshotExpired
from ..session import Session
from . import filters
from .joined import KeyQuery
from .tiered import Tiered

MOST = 2_000_000
"""Base rows that one statement may bind."""
PROMOTED = 100_000
"""Base rows that one write may bring back to the heap."""
ASKED = {"": ("hot", "warm"), "hot": ("hot",), "warm": ("warm",), "cold": ("cold",), "all": ("hot", "warm", "cold"),
         "past": ("warm", "cold")}  # fmt: skip
"""The tiers that are asked, by mode."""


MOST_KEYS = 10_000
"""Values of a query that choose files and rows of a base."""
_KEYS = ("int2", "int4", "int8", "text", "varchar", "uuid", "date", "timestamp", "timestamptz")
_VOLATILE = "SELECT EXISTS (SELECT FROM pg_proc WHERE provolatile = 'v' AND proname = ANY($1::text[]))"
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
    """The values of a query; ``None`` if they are too many, or may be equal to others that look otherwise. An error is the
    statement's to tell."""
    await session.command("SAVEPOINT howdah_keys")
    try:
        given = [params[n - 1] for n in query.params]
        if query.functions and (await session.query(_VOLATILE, (list(query.functions),), None))[0][0]:
            return None
        types = [type_ for _, type_ in await session.columns(query.sql)]
        if len(types) != 1 or types[0] not in _KEYS:
            return None
        if types[0] in ("text", "varchar") and (await session.query(_FOLDED, (), None))[0][0]:
            return None
        some = f"SELECT DISTINCT k FROM ({query.sql} LIMIT {MOST_KEYS + 1}) AS x(k)"
        rows = await session.query(some, given, None)
    except (QueryError, InvalidInput, IndexError):
        await session.command("ROLLBACK TO howdah_keys")
        return None
    finally:
        if not session.is_closed():
            await session.command("RELEASE howdah_keys")
    found = [row[0] for row in rows if row[0] is not None]
    return found if len(rows) <= MOST_KEYS else None


async def worked_out(session: Session, expressions: Sequence[str]) -> dict[str, Any]:
    """The values of expressions without columns; none if one fails: the statement itself will say why, or need not."""
    if not expressions:
        return {}
    await session.command("SAVEPOINT howdah_values")
    try:
        values = tuple((await session.query(f"SELECT {', '.join(expressions)}", (), None))[0])
        await session.command("RELEASE howdah_values")
    except QueryError:
        await session.command("ROLLBACK TO howdah_values; RELEASE howdah_values")
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
