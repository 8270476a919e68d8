"""What writes do beside their statement: base rows are promoted before it, new keys are looked up in the base after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

from ...errors import LimitExceeded, QueryError, Unsupported
from ..rows import Rows
from ..session import Session
from . import filters, uniques
from .asking import PROMOTED, changing
from .call import Call
from .columns import finite, quoted, selection
from .counting import current
from .filters import alone
from .plans import GIVEN, Once, Plan, Promotion
from .reaching import count_of
from .tiered import Snapshot, Tiered


def inserted(plan: Plan, rows: Rows) -> Rows:
    """What a write whose keys are noted gives: the rows it returns, or how many there were."""
    tag = {"insert": "INSERT 0", "merge": "MERGE"}.get(plan.kind, "UPDATE")
    if plan.returning:
        return Rows(rows, lambda: rows.columns, f"{tag} {len(rows)}", rows.elapsed)
    return Rows([], lambda: (), f"{tag} {rows[0]['n']}", rows.elapsed)


async def promote(session: Session, tiered: Tiered, wanted: Promotion, params: Sequence[Any]) -> int:
    """Bring the bound rows that a write may touch back to the heap; how many came."""
    source, given, most = _touched(tiered, wanted, params)
    return await promoted(session, tiered, source if most is None else f"{source} LIMIT {most}", given)


def _touched(tiered: Tiered, wanted: Promotion, params: Sequence[Any]) -> tuple[str, list[Any], int | None]:
    """The query for the bound rows that a write may touch, its parameters, and how many of them are wanted (``None``: all). Its
    condition is left out where a parameter of it may mean something else by itself."""
    name = quoted(wanted.alias)
    # What is dead is left out before the condition is asked: it may not even fit it.
    live = f"SELECT {name}.* FROM (SELECT * FROM {tiered.loaded} b WHERE {tiered.live('b')} OFFSET 0) AS {name}"
    if not all(n <= len(params) and alone(params[n - 1]) for n in wanted.shared):
        return f"{live} WHERE true", [], None
    where = "true" if wanted.where is None else f"({wanted.where})"
    most = None if wanted.limit is None else count_of(wanted.limit, wanted.offset, params)
    return f"{live} WHERE {where}{wanted.order}", [params[n - 1] for n in wanted.params], most


async def promote_free(session: Session, tiered: Tiered, wanted: Promotion, params: Sequence[Any]) -> None:
    """Bring the bound rows back that nobody else brings back at this moment, as SKIP LOCKED has it, no more than are wanted."""

    async def tried(work: Callable[[], Awaitable[int]]) -> int | None:
        try:
            async with session.savepoint():
                before = (await session.query("SELECT current_setting('lock_timeout')", (), None))[0][0]
                await session.command("SET LOCAL lock_timeout = '10ms'")
                moved = await work()
                await session.query("SELECT set_config('lock_timeout', $1, true)", (before,), None)
        except QueryError as error:
            if error.sqlstate != "55P03":
                raise
            return None
        return moved

    if await tried(lambda: promote(session, tiered, wanted, params)) is not None:
        return
    source, given, most = _touched(tiered, wanted, params)
    keys = await session.query(f"SELECT {tiered.keys('q')} FROM ({source}) q", given, None)
    name, count = quoted(wanted.alias), 0
    test = " AND ".join(f"{name}.{quoted(k)} = ${i + 1}" for i, k in enumerate(tiered.key))
    numbers = tuple(range(1, len(tiered.key) + 1))
    for key in keys:
        one = Promotion(wanted.alias, test, numbers)
        count += await tried(partial(promote, session, tiered, one, tuple(key))) or 0
        if most is not None and count >= most:
            break


async def promoted(
    session: Session,
    tiered: Tiered,
    source: str,
    params: Sequence[Any],
    *,
    most: int | None = PROMOTED,
    among: Collection[str] | None = None,
) -> int:
    """Bring live base rows back to the heap: their keys are shadowed, which is also what keeps two of us apart. ``among``: the
    columns that they have, if not all. How many came."""
    names = [c.name for c in tiered.columns if not c.generated and (among is None or c.name in among)]
    # No trigger, rule or cascade sees rows that only change their place.
    await session.command("SET LOCAL session_replication_role = replica")
    moved = await session.query(
        f"WITH b AS (SELECT * FROM ({source}) b WHERE {tiered.live('b')}),"
        f" s AS (INSERT INTO {tiered.shadow} SELECT {tiered.keys('b')} FROM b ORDER BY {tiered.keys('b')}"
        f" ON CONFLICT DO NOTHING RETURNING {tiered.keys()}){uniques.take_out(tiered, 'b', 's')}"
        f" INSERT INTO {tiered.table} ({', '.join(map(quoted, names))}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(f'b.{quoted(n)}' for n in names)} FROM b JOIN s USING ({tiered.keys()})",
        params,
        None,
    )
    await session.command("SET LOCAL session_replication_role = origin")
    if most is not None and moved.affected > most:
        raise LimitExceeded(
            f"{tiered.table}: the statement touches {moved.affected:,} rows on object storage; at most {most:,} at once:"
            " do it in parts"
        )
    return int(moved.affected)


async def insert(session: Session, plan: Plan, tiered: Tiered, call: Call) -> Rows:
    """Run a write that makes new keys, and look these up in the base."""
    snapshot = await current(session, tiered)
    await noted_keys(session, tiered)
    sql, params, probed = plan.sql, call.params, plan.probe is not None and snapshot.metadata is not None
    if plan.probe is not None and probed:
        # It has the defaults of this moment, and holds a sequence: it goes at once.
        name = tiered.probe.partition(".")[2]
        await session.command(f"CREATE TEMP TABLE {name} (LIKE {tiered.table} INCLUDING DEFAULTS) ON COMMIT DROP")
        await _relaxed(session, tiered)
        await session.query(plan.probe, [call.params[n - 1] for n in plan.probe_params], None)
        keys = await _keys(session, tiered, tiered.probe)
        for unique in tiered.uniques:
            keys += await _keys(session, tiered, uniques.clashing(tiered, unique, tiered.probe))
        if keys:
            if await call.bind(session, tiered, snapshot, filters.keys_in(tiered, keys)):
                await promoted(session, tiered, f"SELECT * FROM {tiered.loaded}", ())
        if plan.once is not None and await _once(session, plan.once, call):
            shown = ", ".join(map(quoted, await _given(session, plan.once, tiered)))
            sql, params = plan.once.sql.replace(GIVEN, shown), [call.params[n - 1] for n in plan.once.params]
    if sql is plan.sql:
        sql = await _noted(session, plan, tiered)
    rows = await session.query(sql, params, None)
    if probed:
        await session.command(f"DROP TABLE {tiered.probe}")
    await check_new(session, tiered, snapshot, call)
    return inserted(plan, rows)


async def _once(session: Session, once: Once, call: Call) -> bool:
    """Whether the rows of an upsert that were made are put in: not where a parameter could mean something else by itself. Then they
    are made again, if they come out the same."""
    if all(n <= len(call.params) and alone(call.params[n - 1]) for n in once.shared):
        return True
    found = "sub-selects" if once.must else await changing(session, once.functions, once.tables)
    if found is None:
        return False
    raise Unsupported(
        f"an upsert into a tiered table whose rows come from {found}, with a parameter that is there more than once, is not supported:"
        " give it under two numbers"
    )


async def _given(session: Session, once: Once, tiered: Tiered) -> list[str]:
    """The columns that rows which were made beside a table are put into it with: all but those that it fills in by itself, and these
    where the rows have values for them."""
    rows = await session.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND (attidentity <> '' OR attgenerated <> '')",
        (tiered.oid,),
        None,
    )
    own = [row["attname"] for row in rows]
    there = set(own if once.given is None else once.given)
    if once.given is None and own:
        raise Unsupported(
            f"an upsert of * into {tiered.table}, which fills in {own[0]}, is not supported: name the columns"
        )
    return [c.name for c in tiered.columns if c.name not in own or c.name in there]


async def noted_keys(session: Session, tiered: Tiered) -> None:
    """Make the place for the keys of new rows, or empty it."""
    await session.command(
        f"CREATE TEMP TABLE IF NOT EXISTS {tiered.written.partition('.')[2]} ON COMMIT DELETE ROWS AS"
        f" SELECT {tiered.keys()} FROM ONLY {tiered.table} WITH NO DATA; DELETE FROM {tiered.written}"
    )


async def _noted(session: Session, plan: Plan, tiered: Tiered) -> str:
    """The statement of a write, with what notes its new keys."""
    if plan.noting is None:
        return plan.sql
    names = [name for name, _ in await session.columns(plan.sql)] if plan.returning else []
    mine = [f"c{number}" for number in range(len(names))]
    keys = [f"k{number}" for number in range(len(tiered.key))]
    shown = ", ".join(f"{c} AS {quoted(name)}" for c, name in zip(mine, names, strict=True))
    return (
        f"{plan.noting.replace('{columns}', ', '.join([*mine, *keys, 'did']), 1)},"
        f" howdah_keys AS (INSERT INTO {tiered.written} SELECT {', '.join(keys)} FROM howdah_new WHERE did = 'INSERT')"
        f" SELECT {shown if plan.returning else 'count(*) AS n'} FROM howdah_new"
    )


async def _relaxed(session: Session, tiered: Tiered) -> None:
    """The probe takes rows without what the heap would fill in."""
    rows = await session.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND attnotnull",
        (tiered.probe,),
        None,
    )
    for row in rows:
        await session.command(f"ALTER TABLE {tiered.probe} ALTER COLUMN {quoted(row['attname'])} DROP NOT NULL")


async def _keys(session: Session, tiered: Tiered, table: str) -> list[tuple[Any, ...]]:
    """Keys in the form that the base has them."""
    shown = selection(tiered.key_columns)
    whole = " AND ".join(f"{quoted(k)} IS NOT NULL" for k in tiered.key)
    sql = f"SELECT DISTINCT {shown} FROM (SELECT * FROM {table}) t WHERE {whole} AND {finite(tiered.key_columns)}"
    return [tuple(r) for r in await session.query(sql, (), None)]


async def check_new(session: Session, tiered: Tiered, snapshot: Snapshot, call: Call) -> None:
    """A key that lives in the base is taken: the server says so, as it does for one that lives in the heap."""
    if snapshot.metadata is None:
        return
    keys = await _keys(session, tiered, tiered.written)
    largest = snapshot.max_key
    if largest is not None and tiered.ranked and all(tiered.rank(k[0]) > largest for k in keys):
        return
    if not keys or not await call.bind(session, tiered, snapshot, filters.keys_in(tiered, keys)):
        return
    # Whoever deletes such a row at this moment is waited for, and so is asked who did since this snapshot was taken.
    taken = await session.query(
        f"INSERT INTO {tiered.shadow} SELECT {tiered.keys('b')} FROM {tiered.loaded} b JOIN {tiered.written} w"
        f" USING ({tiered.keys()}) WHERE {tiered.live('b')} ON CONFLICT DO NOTHING",
        (),
        None,
    )
    if taken.affected:
        await session.query(
            "SELECT howdah.refuse($1, $2, $3, $4, $5)",
            (
                "23505",
                f'duplicate key value violates unique constraint "{tiered.constraint}"',
                tiered.constraint,
                tiered.name,
                tiered.schema,
            ),
            None,
        )
