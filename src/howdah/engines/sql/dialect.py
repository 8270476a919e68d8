"""What differs between SQLite's and Postgres' SQL: types, placeholders, JSON access, patterns, column codecs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import numpy as np

from ...check import DTYPES
from ...errors import Unsupported
from ...schema import Column
from ...values import decode_json, from_micros, json_for_jsonb, json_from_jsonb, to_micros

Codec = Callable[[Any], Any] | None


def quote(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    """A quoted SQL string."""
    return "'" + text.replace("'", "''") + "'"


def derived_name(table: str, kind: str, *parts: str) -> str:
    """Name of an index or side table: readable, unique, within Postgres' 63 bytes."""
    digest = hashlib.sha256("\0".join((table, kind, *parts)).encode()).hexdigest()[:8]
    return f"{table[:40]}_{kind}_{digest}"


class Params:
    """Collects the parameters of one statement and hands out their placeholders."""

    __slots__ = ("dialect", "values")

    def __init__(self, dialect: Dialect, values: Sequence[Any] = ()) -> None:
        self.dialect = dialect
        self.values: list[Any] = list(values)

    def add(self, value: Any, kind: str) -> str:
        """Placeholder for a value that is in the column kind's stored form already."""
        self.values.append(value)
        return self.dialect.placeholder(len(self.values), kind)


class Dialect(Protocol):
    """The differences, in one place."""

    name: str

    def placeholder(self, number: int, kind: str) -> str: ...
    def column_type(self, column: Column) -> str: ...
    def encode(self, column: Column) -> Codec: ...
    def decode(self, column: Column) -> Codec: ...
    def qualify(self, table: str) -> str: ...
    def in_test(self, expression: str, params: Params, values: list[Any], kind: str, *, negated: bool) -> str: ...
    def json_kind(self, column: str, path: Sequence[str | int]) -> str: ...
    def json_get(self, column: str, path: Sequence[str | int]) -> str: ...
    def json_typed(self, column: str, path: Sequence[str | int], kind: str) -> str: ...
    def json_has(self, column: str, path: Sequence[str | int], value: str, kind: str) -> str: ...
    def fold(self, expression: str) -> str: ...
    def position(self, expression: str, value: str) -> str: ...
    def order(self, expression: str, descending: bool, nullable: bool) -> str: ...


def _path_text(path: Sequence[str | int]) -> str:
    return "$" + "".join(f"[{p}]" if isinstance(p, int) else f'."{p}"' for p in path)


class SqliteDialect:
    """SQLite 3.45 or later, with Howdah's collation and functions registered on the connection."""

    name = "sqlite"

    def placeholder(self, number: int, kind: str) -> str:
        return f"?{number}"

    def column_type(self, column: Column) -> str:
        # A REAL column would drop the sign of minus zero; without a type, a float stays as it is.
        return {
            "text": "TEXT",
            "integer": "INTEGER",
            "real": "",
            "boolean": "INTEGER",
            "timestamp": "INTEGER",
            "uuid": "BLOB",
            "decimal": "TEXT COLLATE howdah_decimal",
            "bytes": "BLOB",
            "json": "TEXT",
            "vector": "BLOB",
            "sparse": "BLOB",
        }[column.kind]

    def encode(self, column: Column) -> Codec:
        codecs: dict[str, Any] = {
            "boolean": int,
            "timestamp": to_micros,
            "uuid": lambda value: value.bytes,
            "decimal": str,
            "vector": lambda value: value.tobytes(),
            "sparse": lambda value: value[0].astype("<u4").tobytes() + value[1].astype("<f4").tobytes(),
        }
        return codecs.get(column.kind)

    def decode(self, column: Column) -> Codec:
        if column.vector is not None and column.kind == "vector":
            dtype = DTYPES[column.vector.dtype]
            return lambda value: np.frombuffer(value, dtype).copy()
        codecs: dict[str, Any] = {
            "boolean": bool,
            "timestamp": from_micros,
            "uuid": lambda value: UUID(bytes=value),
            "decimal": Decimal,
            "json": decode_json,
            "sparse": _sparse_from_blob,
        }
        return codecs.get(column.kind)

    def matrix(self, column: Column, values: Sequence[bytes]) -> np.ndarray:
        """Stored vectors of a column as rows of double precision."""
        assert column.vector is not None
        numbers = np.frombuffer(b"".join(values), DTYPES[column.vector.dtype])
        return numbers.reshape(len(values), -1).astype(np.float64)

    def qualify(self, table: str) -> str:
        return quote(table)

    def in_test(self, expression: str, params: Params, values: list[Any], kind: str, *, negated: bool) -> str:
        """``expression [NOT] IN values``; ``values`` is not empty and in driver form."""
        word = "NOT IN" if negated else "IN"
        if len(values) <= 4:
            return f"{expression} {word} ({','.join(params.add(v, kind) for v in values)})"
        item = "value"
        if kind in ("uuid", "bytes"):
            values, item = [v.hex() for v in values], "unhex(value)"
        return f"{expression} {word} (SELECT {item} FROM json_each({params.add(json.dumps(values), 'text')}))"

    def json_get(self, column: str, path: Sequence[str | int]) -> str:
        if any(isinstance(p, str) and ('"' in p or "\\" in p) for p in path):
            return f"json_extract(howdah_json_at({column}, {text_literal(json.dumps(list(path)))}), '$')"
        return f"json_extract({column}, {text_literal(_path_text(path))})"

    def json_kind(self, column: str, path: Sequence[str | int]) -> str:
        if any(isinstance(p, str) and ('"' in p or "\\" in p) for p in path):
            return f"json_type(howdah_json_at({column}, {text_literal(json.dumps(list(path)))}))"
        return f"json_type({column}, {text_literal(_path_text(path))})"

    def json_typed(self, column: str, path: Sequence[str | int], kind: str) -> str:
        kinds = {"number": "('integer','real')", "string": "('text')", "boolean": "('true','false')"}[kind]
        return f"CASE WHEN {self.json_kind(column, path)} IN {kinds} THEN {self.json_get(column, path)} END"

    def json_has(self, column: str, path: Sequence[str | int], value: str, kind: str) -> str:
        kinds = {
            "number": "('integer','real')",
            "string": "('text')",
            "boolean": "('true','false')",
            "null": "('null')",
        }[kind]
        same = "" if kind == "null" else f" AND j.value = {value}"
        each = f"json_each({column}, {text_literal(_path_text(path))})"
        return (
            f"CASE WHEN {self.json_kind(column, path)} = 'array' "
            f"THEN EXISTS (SELECT 1 FROM {each} j WHERE j.type IN {kinds}{same}) ELSE 0 END"
        )

    def fold(self, expression: str) -> str:
        return f"howdah_fold({expression})"

    def position(self, expression: str, value: str) -> str:
        return f"instr({expression}, {value}) > 0"

    def like(self, expression: str, pattern: str) -> str:
        return f"({expression} LIKE {pattern} ESCAPE '\\')"

    def order(self, expression: str, descending: bool, nullable: bool) -> str:
        return f"{expression} DESC" if descending else expression


def _sparse_from_blob(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    half = len(value) // 2
    return np.frombuffer(value[:half], "<u4").astype(np.int64), np.frombuffer(value[half:], "<f4").copy()


# pgvector's binary forms: vector and halfvec are u16 length, u16 zero, numbers; sparsevec is i32 dimensions,
# i32 count, i32 zero, indices from 0, values; all big-endian.
def _sparse_to_pgvector(dim: int, value: tuple[np.ndarray, np.ndarray]) -> bytes:
    head = np.array([dim, len(value[0]), 0], ">i4").tobytes()
    return head + value[0].astype(">i4").tobytes() + value[1].astype(">f4").tobytes()


def _sparse_from_pgvector(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    count = int.from_bytes(value[4:8], "big")
    indices = np.frombuffer(value, ">i4", count, 12).astype(np.int64)
    return indices, np.frombuffer(value, ">f4", count, 12 + 4 * count).astype(np.float32)


_PG_TYPES = {
    "text": "text",
    "integer": "bigint",
    "real": "double precision",
    "boolean": "boolean",
    "timestamp": "timestamptz",
    "uuid": "uuid",
    "decimal": "numeric",
    "bytes": "bytea",
    "json": "jsonb",
    "number": "numeric",
}


class PostgresDialect:
    """Postgres 16 or later with pgvector; ``schema`` holds the tables."""

    name = "postgres"

    def __init__(self, schema: str, vector_schema: str = "public") -> None:
        self.schema = schema
        self.vector_schema = vector_schema
        self.version = 18

    def vector_type(self, column: Column) -> str:
        """pgvector's type for a vector column, without its length."""
        assert column.vector is not None
        name = "sparsevec" if column.kind == "sparse" else "vector" if column.vector.dtype == "float32" else "halfvec"
        return f"{quote(self.vector_schema)}.{name}"

    def type_name(self, column: Column) -> str:
        """The bare type, as a cast or an array element."""
        return self.vector_type(column) if column.vector is not None else _PG_TYPES[column.kind]

    def placeholder(self, number: int, kind: str) -> str:
        cast = _PG_TYPES.get(kind)
        return f"${number}::{cast}" if cast else f"${number}"

    def column_type(self, column: Column) -> str:
        if column.vector is not None:
            return f"{self.vector_type(column)}({column.vector.dim})"
        return 'text COLLATE "C"' if column.kind == "text" else _PG_TYPES[column.kind]

    def encode(self, column: Column) -> Codec:
        if column.vector is None:
            return json_for_jsonb if column.kind == "json" else None
        if column.kind == "sparse":
            dim = column.vector.dim
            return lambda value: _sparse_to_pgvector(dim, value)
        number = ">f4" if column.vector.dtype == "float32" else ">f2"
        head = column.vector.dim.to_bytes(2, "big") + b"\0\0"
        return lambda value: head + value.astype(number).tobytes()

    def decode(self, column: Column) -> Codec:
        if column.kind == "vector":
            assert column.vector is not None
            number = ">f4" if column.vector.dtype == "float32" else ">f2"
            dtype = DTYPES[column.vector.dtype]
            return lambda value: np.frombuffer(value, number, offset=4).astype(dtype)
        codecs: dict[str, Any] = {
            # asyncpg gives the first and last moment there is without their zone.
            "timestamp": lambda value: value if value.tzinfo else value.replace(tzinfo=UTC),
            "uuid": lambda value: UUID(int=value.int),
            "json": json_from_jsonb,
            "sparse": _sparse_from_pgvector,
        }
        return codecs.get(column.kind)

    def matrix(self, column: Column, values: Sequence[bytes]) -> np.ndarray:
        """Stored vectors of a column as rows of double precision."""
        assert column.vector is not None
        numbers = np.frombuffer(b"".join([v[4:] for v in values]), ">f4" if column.vector.dtype == "float32" else ">f2")
        return numbers.reshape(len(values), -1).astype(np.float64)

    def qualify(self, table: str) -> str:
        return f"{quote(self.schema)}.{quote(table)}"

    def in_test(self, expression: str, params: Params, values: list[Any], kind: str, *, negated: bool) -> str:
        """``expression [NOT] IN values``; ``values`` is not empty and in driver form."""
        params.values.append(values)
        word = "<> ALL" if negated else "= ANY"
        return f"{expression} {word} (${len(params.values)}::{_PG_TYPES[kind]}[])"

    def json_get(self, column: str, path: Sequence[str | int]) -> str:
        steps = "".join(f" -> {p}" if isinstance(p, int) else f" -> {text_literal(p)}" for p in path)
        return f"({column}{steps})"

    def json_kind(self, column: str, path: Sequence[str | int]) -> str:
        return f"jsonb_typeof({self.json_get(column, path)})"

    def json_typed(self, column: str, path: Sequence[str | int], kind: str) -> str:
        cast = {"number": "::numeric", "string": ' COLLATE "C"', "boolean": "::boolean"}[kind]
        got = self.json_get(column, path)
        return f"CASE WHEN jsonb_typeof({got}) = '{kind}' THEN ({got} #>> '{{}}'){cast} END"

    def json_has(self, column: str, path: Sequence[str | int], value: str, kind: str) -> str:
        item = "'null'::jsonb" if kind == "null" else f"to_jsonb({value})"
        got = self.json_get(column, path)
        return (
            f"CASE WHEN jsonb_typeof({got}) = 'array' "
            f"THEN EXISTS (SELECT 1 FROM jsonb_array_elements({got}) j WHERE j.value = {item}) ELSE false END"
        )

    def fold(self, expression: str) -> str:
        if self.version < 18:
            raise Unsupported("ilike needs Postgres 18, whose case folding is Unicode's; this server is older")
        return f'casefold(({expression}) COLLATE "pg_c_utf8") COLLATE "C"'

    def position(self, expression: str, value: str) -> str:
        return f"strpos({expression}, {value}) > 0"

    def like(self, expression: str, pattern: str) -> str:
        return f"({expression} LIKE {pattern} ESCAPE '\\')"

    def order(self, expression: str, descending: bool, nullable: bool) -> str:
        if not nullable:
            return f"{expression} DESC" if descending else expression
        return f"{expression} DESC NULLS LAST" if descending else f"{expression} ASC NULLS FIRST"
