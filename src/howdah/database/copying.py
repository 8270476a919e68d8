"""Bulk copies: files, bytes, rows and Arrow into tables and out of queries."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from ..errors import InvalidInput, NotFound, StartupError, Unsupported
from .failures import DRIVER_ERRORS, explain
from .session import Session

_NAME: Final = re.compile(r'(?:("(?:[^"]|"")+"|[A-Za-z_][\w$]*)\.)?("(?:[^"]|"")+"|[A-Za-z_][\w$]*)')
BATCH: Final = 10_000


def arrow_library() -> Any:
    """pyarrow, or an error that names what to install."""
    try:
        import pyarrow
    except ImportError as error:
        raise StartupError("Arrow needs a library: pip install 'howdah[tiering]'") from error
    return pyarrow


def table_name(table: object) -> tuple[str | None, str]:
    """Schema and name of a table, as SQL spells them."""
    found = _NAME.fullmatch(table.strip()) if isinstance(table, str) else None
    if found is None:
        raise InvalidInput(f'table {table!r:.80}: expected a name such as events or app."Events"')
    return (None if found[1] is None else _folded(found[1])), _folded(found[2])


def is_name(sql: str) -> bool:
    """Whether this is the name of a table, and no query."""
    return _NAME.fullmatch(sql.strip()) is not None


def _folded(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def columns_of(source: Any) -> list[str] | None:
    """The columns that a source names itself."""
    return arrow_columns(source) if is_arrow(source) else None


def is_arrow(source: Any) -> bool:
    """Whether a source is a table, batch or reader of pyarrow."""
    return type(source).__module__.startswith("pyarrow") and hasattr(source, "schema")


def _count(status: str) -> int:
    number = status.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def _options(format: str, header: bool, delimiter: str | None, null: str | None) -> dict[str, Any]:
    if format not in ("csv", "text", "binary"):
        raise InvalidInput(f"format={format!r}: expected 'csv', 'text' or 'binary'")
    given: dict[str, Any] = {"header": header or None, "delimiter": delimiter, "null": null}
    if format == "binary" and any(v is not None for v in given.values()):
        raise InvalidInput("format='binary' takes no header=, delimiter= or null=")
    return {"format": format, **{n: v for n, v in given.items() if v is not None}}


async def load(
    session: Session,
    table: str,
    source: Any,
    columns: Sequence[str] | None,
    format: str,
    header: bool,
    delimiter: str | None,
    null: str | None,
    timeout: float | None,
) -> int:
    """COPY … FROM; how many rows."""
    schema, name = table_name(table)
    about = {"schema_name": schema, "timeout": timeout}
    connection, names = session.connection, None if columns is None else list(columns)
    options = _options(format, header, delimiter, null)
    # The driver would take a table's column types from its cache, whatever has become of the table.
    cache = getattr(connection, "_stmt_cache", None)
    if cache is not None:
        cache.clear()
    try:
        if is_arrow(source):
            given = arrow_columns(source) if names is None else names
            rows = arrow_rows(source, given)
            return _count(await connection.copy_records_to_table(name, records=rows, columns=given, **about))
        if isinstance(source, (str, os.PathLike)):
            if not os.path.exists(source):
                raise NotFound(f"{os.fspath(source)}: no such file")
            source = os.fspath(source)
        elif isinstance(source, (bytes, bytearray)):
            source = _chunks([bytes(source)])
        elif not hasattr(source, "read") and not isinstance(source, AsyncIterable):
            return await _load_items(connection, name, source, names, options, about)
        return _count(await connection.copy_to_table(name, source=source, columns=names, **options, **about))
    except asyncio.CancelledError:
        session.terminate()
        raise
    except (*DRIVER_ERRORS, TimeoutError, ValueError, TypeError, OverflowError, LookupError) as error:
        if isinstance(error, InvalidInput):
            raise
        if isinstance(error, IndexError):
            raise InvalidInput(f"copy_in: a row has fewer values than {table} has columns: say columns=[…]") from error
        raise explain(error, f"COPY {table} FROM", session.place, timeout) from error


async def _load_items(
    connection: Any, name: str, source: Any, names: list[str] | None, options: dict[str, Any], about: dict[str, Any]
) -> int:
    """Rows, or pieces of bytes: the first item tells."""
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise InvalidInput(f"copy_in: expected a path, a file, bytes or rows, got {type(source).__name__}")
    items = iter(source)
    first = next(items, None)
    if first is None:  # nothing, into a table that must be there
        return _count(await connection.copy_records_to_table(name, records=[], columns=names, **about))
    whole = chain([first], items)
    if isinstance(first, (bytes, bytearray)):
        status = await connection.copy_to_table(name, source=_chunks(whole), columns=names, **options, **about)
    else:
        status = await connection.copy_records_to_table(name, records=map(_row, whole), columns=names, **about)
    return _count(status)


def _row(row: Any) -> Sequence[Any]:
    if isinstance(row, (str, bytes, Mapping)) or not isinstance(row, Sequence):
        raise InvalidInput(f"copy_in: a row is a tuple of values, got {type(row).__name__}")
    return row


async def _chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def arrow_columns(source: Any) -> list[str]:
    """Names of the columns of a pyarrow table, batch or reader."""
    return list(source.schema.names)


def arrow_rows(source: Any, names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    """Rows of a pyarrow table, batch or reader."""
    pa = arrow_library()
    if isinstance(source, pa.RecordBatch):
        batches: Iterable[Any] = [source]
    else:
        batches = source.to_batches(max_chunksize=BATCH) if isinstance(source, pa.Table) else source
    for batch in batches:
        yield from zip(*(batch.column(n).to_pylist() for n in names), strict=True)


async def unload(
    session: Session,
    sql: str,
    target: Any,
    params: Sequence[Any],
    format: str,
    header: bool,
    delimiter: str | None,
    null: str | None,
    timeout: float | None,
) -> int:
    """COPY … TO; how many rows."""
    options = {**_options(format, header, delimiter, null), "timeout": timeout}
    path = os.fspath(target) if isinstance(target, (str, os.PathLike)) else None
    if path is None:
        write = target if callable(target) and not hasattr(target, "write") else getattr(target, "write", None)
        if write is None:
            raise InvalidInput(f"copy_out: expected a path, a file or a function of bytes, got {type(target).__name__}")
        return await _unload(session, sql, _Sink(write), params, options, timeout)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise NotFound(f"{folder}: no such directory")
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            count = await _unload(session, sql, _Sink(file.write), params, options, timeout)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return count


async def _unload(
    session: Session, sql: str, sink: _Sink, params: Sequence[Any], options: dict[str, Any], timeout: float | None
) -> int:
    connection = session.connection
    try:
        if _NAME.fullmatch(sql.strip()):
            schema, name = table_name(sql)
            status = await connection.copy_from_table(name, schema_name=schema, output=sink.take, **options)
        else:
            status = await connection.copy_from_query(sql, *params, output=sink.take, **options)
    except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
        raise explain(error, sql, session.place, timeout) from error
    except asyncio.CancelledError:
        session.terminate()  # data may still be on its way
        raise
    if sink.error is not None:
        raise sink.error
    return _count(status)


class _Sink:
    """Where copied bytes go. After it failed the rest is let pass: the driver cannot stop in the middle."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self.error: Exception | None = None

    async def take(self, data: bytes) -> None:
        """Write a piece."""
        if self.error is None:
            try:
                found = self._write(bytes(data))
                if asyncio.iscoroutine(found):
                    await found
            except Exception as error:
                self.error = error


# Types of Postgres by name, as Arrow's; what is not here travels as text.
_ARROW: Final = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "float4": "float32",
    "float8": "float64",
    "bool": "bool_",
    "text": "string",
    "varchar": "string",
    "bpchar": "string",
    "name": "string",
    "json": "string",
    "jsonb": "string",
    "bytea": "binary",
    "date": "date32",
}


def arrow_type(pa: Any, type_: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The Arrow type of a driver's type, and what makes its values fit."""
    name = type_.name
    if name.endswith("[]"):
        inner, convert = arrow_type(pa, _Named(name[:-2]))
        return pa.list_(inner), None if convert is None else lambda v: [None if x is None else convert(x) for x in v]
    if name in ("timestamptz", "timestamp"):
        return pa.timestamp("us", tz="UTC" if name == "timestamptz" else None), None
    if name == "time":
        return pa.time64("us"), None
    if name in ("vector", "halfvec"):
        return pa.list_(pa.float32() if name == "vector" else pa.float16()), None
    if name == "numeric":
        return pa.string(), str
    if name in ("uuid", "inet", "cidr"):
        return pa.string(), str
    kind = _ARROW.get(name)
    if kind is None:
        return pa.string(), _only_text
    if name in ("json", "jsonb"):
        from ..values import encode_json

        return pa.string(), encode_json
    return getattr(pa, kind)(), None


def _only_text(value: Any) -> str:
    """A value of a type that Arrow does not know, if the driver has it as text, as it has enums."""
    if not isinstance(value, str):
        raise TypeError(f"Arrow has no such type as {type(value).__name__}")
    return value


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


async def as_arrow(session: Session, sql: str, params: Sequence[Any], timeout: float | None) -> Any:
    """The rows of a query as a pyarrow table."""
    pa = arrow_library()
    try:
        statement = await session.connection.prepare(sql, timeout=timeout)
        attributes = statement.get_attributes()
        rows = await statement.fetch(*params, timeout=timeout)
    except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
        raise explain(error, sql, session.place, timeout) from error
    arrays, fields = [], []
    for place, attribute in enumerate(attributes):
        kind, convert = arrow_type(pa, attribute.type)
        values = [row[place] for row in rows]
        try:
            if convert is not None:
                values = [None if v is None else convert(v) for v in values]
            arrays.append(pa.array(values, kind))
        except (TypeError, ValueError, OverflowError) as error:
            what = f"column {attribute.name} ({attribute.type.name})"
            raise Unsupported(
                f"{what} cannot be a column of Arrow: {error}; cast it, {attribute.name}::text"
            ) from error
        fields.append(pa.field(attribute.name, kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
