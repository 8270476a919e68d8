"""Scans through DuckDB: the base's files as they are, with the hot rows and without the dead ones, all of one moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ...engines.sql.dialect import text_literal
from ...errors import (
    InvalidInput,
    QueryError,
    QueryTimeout,
    SqlSyntaxError,
    StartupError,
    TierError,
    UndefinedTable,
    Unsupported,
)
from ..session import Session
from . import base, place, scan
from .binding import fetch
from .columns import TierColumn, quoted
from .counting import current
from .manage import Tiers, ordinary
from .tiered import Tiered

_CASTS = {
    "json": "JSON",
    "jsonb": "JSON",
    "numeric": "DOUBLE",
    "halfvec": "FLOAT[]",
}
"""DuckDB's types of columns that the base has as text; what is not here stays text."""


_TYPES = {
    "long": "BIGINT",
    "string": "VARCHAR",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "binary": "BLOB",
    "uuid": "UUID",
}
"""DuckDB's names of Iceberg's types, where they are others."""


def library() -> Any:
    """DuckDB, or an error that names what to install."""
    try:
        import duckdb
    except ImportError as error:
        raise StartupError("analyze() needs DuckDB: pip install 'howdah[analytics]'") from error
    return duckdb


async def analyze(session: Session, tiers: Tiers, sql: str, params: Sequence[Any], timeout: float | None) -> Any:
    """The rows of a query in DuckDB's SQL, as an Arrow table; a repeatable-read transaction is open."""
    connection = library().connect()
    try:
        async with asyncio.timeout(timeout):
            zone = (await session.query("SELECT current_setting('TimeZone') AS zone", (), None))[0]["zone"]
            await _prepare(session, connection, tiers, sql)
            work = asyncio.ensure_future(asyncio.to_thread(_run, connection, sql, params, zone))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                connection.interrupt()
                with suppress(Exception):
                    await work
                raise
    except TimeoutError:
        raise QueryTimeout(f"the analysis took longer than {timeout} seconds", timeout=timeout) from None
    finally:
        connection.close()


async def _prepare(session: Session, connection: Any, tiers: Tiers, sql: str) -> None:
    """Let DuckDB see the tables that a query names, and nothing else."""
    with _told(sql):
        paths: list[str] = []
        for schema, name, hidden in _tables(connection, sql):
            try:
                paths += await _load(session, connection, tiers, schema, name)
            except UndefinedTable:
                if not hidden:
                    raise
        # A query reads its tables, and no other file of this machine, nor this program's variables.
        connection.execute("SET python_enable_replacements = false")
        connection.execute(f"SET allowed_paths = {_texts(paths)}")
        connection.execute("SET enable_external_access = false")


def _tables(connection: Any, sql: str) -> list[tuple[str, str, bool]]:
    """The tables that a query names: schema ("" for the search path), name, and whether it may be that of a common table
    expression."""
    told = json.loads(connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()[0][0])
    if told["error"]:
        if told["error_type"] == "parser":
            raise SqlSyntaxError(told["error_message"], sql=sql)
        raise Unsupported(f"analyze() reads: {told['error_message']}")
    if len(told["statements"]) != 1:
        raise InvalidInput("analyze() takes one query")
    hidden = {entry["key"] for node in _nodes(told) for entry in node.get("cte_map", {}).get("map", ())}
    named = {(n["schema_name"], n["table_name"]) for n in _nodes(told) if n.get("type") == "BASE_TABLE"}
    if len({(schema.lower(), name.lower()) for schema, name in named}) < len(named):
        raise Unsupported("analyze(): DuckDB takes names that differ by case only as one")
    return sorted((schema, name, not schema and name in hidden) for schema, name in named)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(child)


def _shown(column: TierColumn) -> str:
    if column.native or column.type not in _CASTS:
        return quoted(column.name)
    return f"CAST({quoted(column.name)} AS {_CASTS[column.type]}) AS {quoted(column.name)}"


async def _load(session: Session, connection: Any, tiers: Tiers, schema: str, name: str) -> list[str]:
    """Let DuckDB see a table of Postgres under its name; the files that it may read for that."""
    tiered = tiers.named(schema, name) or tiers.named(schema.lower(), name.lower())
    if tiered is None and tiers.viewed(schema.lower(), name.lower()):
        raise Unsupported(f"analyze(): {name} is a view over a tiered table: name the tables that it reads")
    table = tiered or await _plain(session, schema, name)
    if not table.columns:
        raise Unsupported(f"analyze(): {table.table} has no columns, which DuckDB does not know")
    if len({c.name.lower() for c in table.columns}) < len(table.columns):
        raise Unsupported(f"analyze(): {table.table} has columns that differ by case only, which DuckDB takes as one")
    number = f"{table.oid}"
    heap = await fetch(
        session,
        table.columns,
        f"SELECT {{columns}} FROM ONLY {table.table} t" if tiered else f"SELECT {{columns}} FROM {table.table} t",
    )
    connection.register(f"hot_{number}", heap)
    # Arrow has UUIDs as bytes.
    uuids = [quoted(c.name) for c in table.columns if c.type == "uuid"]
    shown = ", ".join(f"CAST(lower(hex({c})) AS UUID) AS {c}" for c in uuids)
    every = f"* REPLACE ({shown})" if uuids else "*"
    parts = [f"SELECT {every} FROM hot_{number}"]
    paths: list[str] = []
    if tiered is not None:
        snapshot = await current(session, tiered)
        with base.told(tiered.location, "the base cannot be read"):
            found = () if snapshot.metadata is None else await asyncio.to_thread(base.files, snapshot.metadata)
        if found and snapshot.metadata is not None:
            where = ""
            dead = await fetch(session, tiered.key_columns, f"SELECT {{columns}} FROM {tiered.shadow} t")
            if dead.num_rows:
                connection.register(f"dead_{number}", dead)
                keys = ", ".join(
                    f"CAST(lower(hex({k})) AS UUID) AS {k}" if k in uuids else k for k in map(quoted, tiered.key)
                )
                gone = f"(SELECT {keys} FROM dead_{number})"
                where = f" WHERE NOT EXISTS (SELECT 1 FROM {gone} s WHERE {tiered.same_key('s', 'b')})"
            # DuckDB reads files of directories by itself, those of buckets through pyarrow, or loaded where columns have changed.
            source, of_base = f"base_{number}", every
            if not any(place.remote(file.file_path) for file in found):
                paths, of_base = [place.files(file.file_path)[1] for file in found], "*"
                source = (
                    f"read_parquet({_texts(paths)}, hive_partitioning = false, schema = {_schema(snapshot.metadata)})"
                )
            elif base.evolved(snapshot.metadata):
                connection.register(source, await asyncio.to_thread(scan.table, snapshot.metadata, found))
            else:
                connection.register(source, scan.dataset(snapshot.metadata, found))
            cold = f"SELECT * FROM (SELECT {of_base} FROM {source}) b{where}"
            parts = [cold, *(parts if heap.num_rows else [])]
    columns = ", ".join(map(_shown, table.columns))
    if schema:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
    spelled = f"{quoted(schema)}.{quoted(name)}" if schema else quoted(name)
    connection.execute(f"CREATE VIEW {spelled} AS SELECT {columns} FROM ({' UNION ALL '.join(parts)})")
    return paths


def _schema(metadata: str) -> str:
    """A base's columns by their field ids, which files have too, in DuckDB's SQL."""
    fields = ", ".join(
        f"{field.field_id}: {{name: {text_literal(field.name)}, type: {text_literal(_type(field.field_type))},"
        " default_value: NULL}"
        for field in base.opened(metadata).schema().fields
    )
    return f"MAP {{{fields}}}"


def _type(of: Any) -> str:
    """DuckDB's name of a type of Iceberg."""
    return f"{_type(of.element_type)}[]" if hasattr(of, "element_type") else _TYPES.get(str(of), str(of))


def _texts(values: Sequence[str]) -> str:
    """A list of texts in DuckDB's SQL."""
    return f"[{', '.join(map(text_literal, values))}]"


async def _plain(session: Session, schema: str, name: str) -> Tiered:
    """A table that is not tiered, by its name as written or, if there is none, folded as Postgres does."""
    try:
        return await ordinary(session, schema, name)
    except UndefinedTable:
        if (schema.lower(), name.lower()) == (schema, name):
            raise
        return await ordinary(session, schema.lower(), name.lower())


@contextmanager
def _told(sql: str) -> Iterator[None]:
    """DuckDB's errors in Howdah's words."""
    duckdb = library()
    try:
        yield
    except duckdb.IOException as error:
        raise TierError(f"a file of the base is missing or cannot be read: {error}") from error
    except duckdb.Error as error:
        raise QueryError(f"DuckDB: {error}", sql=sql) from error


def _run(connection: Any, sql: str, params: Sequence[Any], zone: str) -> Any:
    with _told(sql):
        connection.execute(f"SET TimeZone = '{zone}'")
        return connection.sql(sql, params=list(params)).to_arrow_table()
