"""Rows between Postgres and Arrow: by CSV, which every type's own input and output functions read and write."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import asyncpg

from ...errors import TierError, Unsupported
from ..failures import DRIVER_ERRORS, explain
from ..session import Session
from .columns import TierColumn, arrow_schema, selection
from .texts import as_text, decoded, encoded
from .tiered import Tiered

FORMAT = (
    "SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL timezone = 'UTC'; SET LOCAL intervalstyle = 'postgres';"
    " SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'"
)
BLOCK, LARGEST = 8 * 1024 * 1024, 2**30
"""Bytes of CSV that are made rows at a time, and at most: one row may be long."""
XMIN = "howdah xmin"


def _csv(rows: Any, columns: Sequence[TierColumn]) -> Iterator[bytes]:
    """CSV of Arrow rows: what is quoted is a value, what is empty is null."""
    import pyarrow as pa
    import pyarrow.csv as csv

    options = csv.WriteOptions(include_header=False, quoting_style="all_valid")
    for batch in encoded(rows, columns).to_batches(max_chunksize=50_000):
        out = io.BytesIO()
        csv.write_csv(pa.Table.from_batches([batch]), out, options)
        yield out.getvalue()


class _Rows:
    """The CSV of rows as they come, and how many there were."""

    def __init__(self, tiered: Tiered, rows: AsyncIterator[Any], columns: Sequence[TierColumn]) -> None:
        self._tiered = tiered
        self._rows = rows
        self._columns = columns
        self._names = [c.name for c in columns]
        self.count = 0
        self.error: Exception | None = None
        """Why they ended early: the server says only that they did."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for rows in self._rows:
                if not set(self._names) <= set(rows.column_names):
                    raise TierError(
                        f"{self._tiered.table}: its base has other columns than it has: untier it, then tier it again"
                    )
                self.count += rows.num_rows
                for piece in _csv(rows.select(self._names), self._columns):
                    yield piece
        except Exception as error:
            self.error = error
            raise


def bindable(tiered: Tiered) -> str:
    """What makes the place for base rows."""
    name = tiered.loaded.partition(".")[2]
    return (
        f"CREATE TEMP TABLE IF NOT EXISTS {name} ON COMMIT DELETE ROWS AS"
        f" SELECT {tiered.names()} FROM ONLY {tiered.table} WITH NO DATA"
    )


async def bind(
    session: Session,
    tiered: Tiered,
    rows: AsyncIterator[Any] | None,
    columns: Sequence[TierColumn] | None = None,
    *,
    readonly: bool = False,
) -> int:
    """Put base rows (Arrow tables) where the statement finds them; how many. Before it, the table there is empty. A read-only
    transaction may write to a temporary table that is there, and make none. ``columns``: those that count, if not all."""
    if readonly:
        there = await session.query("SELECT to_regclass($1) IS NOT NULL AS there", (tiered.loaded,), None)
        if not there[0]["there"]:
            raise Unsupported(
                f"{tiered.table} in a transaction that was made read-only by SET, or before it was tiered:"
                " begin it by transaction(readonly=True)"
            )
    await session.command(f"{'' if readonly else f'{bindable(tiered)}; '}DELETE FROM {tiered.loaded}")
    if rows is None:
        return 0
    wanted = tiered.columns if columns is None else columns
    source = _Rows(tiered, rows, wanted)
    try:
        await session.connection.copy_to_table(
            tiered.loaded.partition(".")[2],
            schema_name="pg_temp",
            source=source,
            columns=[c.name for c in wanted],
            format="csv",
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if source.error is not None:
            raise source.error from None
        if isinstance(error, asyncpg.QueryCanceledError):
            raise explain(error, f"COPY {tiered.loaded}", session.place) from error
        raise TierError(f"{tiered.table}: rows of the base cannot be bound: {error}") from error
    return source.count


async def take(session: Session, tiered: Tiered, where: str, order: str, limit: int) -> tuple[Any, list[str]]:
    """Hot rows as Arrow, with the ``xmin`` of each."""
    sql = f"SELECT {{columns}}, xmin::text FROM ONLY {tiered.table} t WHERE {where} ORDER BY {order} LIMIT {limit}"
    found = await fetch(session, tiered.columns, sql, (XMIN,))
    return found.select([c.name for c in tiered.columns]), found.column(XMIN).to_pylist()


async def fetch(session: Session, columns: Sequence[TierColumn], sql: str, more: Sequence[str] = ()) -> Any:
    """The rows of a query as Arrow: ``{columns}`` in it stands for these columns, ``more`` are texts behind them."""
    import pyarrow as pa

    schema = arrow_schema(pa, columns)
    for name in more:
        schema = schema.append(pa.field(name, pa.string()))
    waiting = bytearray()
    found = [schema.empty_table()]

    async def arrived(rows: bytes) -> None:
        waiting.extend(rows)  # the server sends whole rows
        if len(waiting) >= BLOCK:
            found.append(await asyncio.to_thread(_read, bytes(waiting), schema, columns))
            waiting.clear()

    await session.command(FORMAT)
    try:
        text = sql.replace("{columns}", selection(columns), 1)
        await session.connection.copy_from_query(text, output=arrived, format="csv", force_quote=True)
    except asyncio.CancelledError:
        session.terminate()  # data may still be on its way
        raise
    except (*DRIVER_ERRORS, TimeoutError) as error:
        raise explain(error, sql, session.place) from error
    if waiting:
        found.append(_read(bytes(waiting), schema, columns))
    return pa.concat_tables(found)


def _read(text: bytes, schema: Any, columns: Sequence[TierColumn]) -> Any:
    """Rows of CSV."""
    import pyarrow as pa
    import pyarrow.csv as csv

    try:
        found = csv.read_csv(
            pa.BufferReader(text),
            # All of it at once, so that no row is cut.
            read_options=csv.ReadOptions(column_names=schema.names, block_size=min(len(text) + 1, LARGEST)),
            parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types={f.name: f.type for f in as_text(schema, columns)},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
    except pa.ArrowInvalid as error:
        raise Unsupported(f"a value that only Postgres has, such as infinity or a decimal NaN: {error}") from error
    return decoded(found, columns).cast(schema)
