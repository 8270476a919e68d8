"""Checks a value against its column and brings it into the one form that every engine stores."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy as np

from .errors import DimensionMismatch, InvalidValue
from .schema import Column, VectorType
from .values import INT_MAX, INT_MIN, check_text, encode_json

Checker = Callable[[Any], Any]
MAX_KEY_BYTES: Final = 2000
MAX_VALUE_BYTES: Final = 256 * 1024 * 1024
DTYPES: Final = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
Sparse = tuple[np.ndarray, np.ndarray]


def _wrong(where: str, value: object, expected: str) -> InvalidValue:
    return InvalidValue(f"{where}: expected {expected}, got {type(value).__name__} {value!r:.80}")


def check_real(value: Any, where: str) -> float:
    """A finite float; integers count as the float they equal."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(where, value, "a number")
        try:
            value = float(value)
        except OverflowError:
            raise InvalidValue(f"{where}: {value!r:.40} is beyond the range of a double") from None
    if not math.isfinite(value):
        raise InvalidValue(f"{where}: {value} is not a finite number")
    return float(value)


def check_decimal(value: Any, where: str) -> Decimal:
    """A finite decimal of at most 1,000 digits on either side, written without an exponent; minus zero is zero."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise _wrong(where, value, "a Decimal")
    value = Decimal(value)
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise InvalidValue(f"{where}: {value} is not a finite number")
    if value.adjusted() > 1000 or exponent < -1000:
        raise InvalidValue(f"{where}: a decimal takes at most 1,000 digits on either side of the point")
    plain = Decimal(format(value, "f"))
    return plain.copy_abs() if plain.is_zero() else plain


def check_moment(value: Any, where: str) -> datetime:
    """An aware moment, in UTC."""
    if not isinstance(value, datetime):
        raise _wrong(where, value, "an aware datetime")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidValue(f"{where}: {value!r} has no time zone; use an aware datetime, e.g. datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidValue(f"{where}: {value!r} is outside the years 1 to 9999 in UTC") from None


def check_vector(value: Any, kind: VectorType, where: str) -> np.ndarray:
    """A copy of ``value`` as a contiguous array of the column's dtype; right length, finite numbers."""
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise InvalidValue(f"{where}: not a vector: {error}") from None
    if found.dtype.kind not in "fiu" or found.ndim != 1:
        if found.ndim == 1 and found.size == 0:
            raise DimensionMismatch(f"{where}: the vector has 0 dimensions, the column {kind.dim}")
        raise _wrong(where, value, f"a flat list or array of {kind.dim} numbers")
    if found.shape[0] != kind.dim:
        raise DimensionMismatch(f"{where}: the vector has {found.shape[0]} dimensions, the column {kind.dim}")
    if kind.dtype == "int8":
        if not ((found >= -128) & (found <= 127) & (np.floor(found) == found)).all():
            raise InvalidValue(f"{where}: an int8 vector holds whole numbers from -128 to 127")
        return found.astype(np.int8)
    with np.errstate(over="ignore"):
        made = found.astype(DTYPES[kind.dtype])
    if not np.isfinite(made).all():
        place = int(np.flatnonzero(~np.isfinite(made))[0])
        raise InvalidValue(f"{where}[{place}]: {found[place]} is not a finite {kind.dtype}")
    return made


def check_sparse(value: Any, kind: VectorType, where: str) -> Sparse:
    """``(indices, values)`` sorted by index: unique indices in range, finite float32 values, at least one."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise _wrong(where, value, "(indices, values)")
    raw, numbers = np.asarray(value[0]), np.asarray(value[1])
    if raw.ndim != 1 or numbers.ndim != 1 or raw.shape != numbers.shape or raw.size == 0:
        raise InvalidValue(f"{where}: indices and values must be flat, equally long and not empty")
    if raw.dtype.kind not in "iu" or numbers.dtype.kind not in "fiu":
        raise InvalidValue(f"{where}: indices must be integers and values numbers")
    indices = raw.astype(np.int64)
    if indices.min() < 0 or indices.max() >= kind.dim:
        bad = int(indices[(indices < 0) | (indices >= kind.dim)][0])
        raise InvalidValue(f"{where}: index {bad} is outside 0 … {kind.dim - 1}")
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    if (indices[1:] == indices[:-1]).any():
        raise InvalidValue(f"{where}: index {int(indices[1:][indices[1:] == indices[:-1]][0])} appears twice")
    with np.errstate(over="ignore"):
        made = numbers.astype(np.float32)[order]
    if not np.isfinite(made).all():
        raise InvalidValue(f"{where}: values must be finite")
    return indices, made


def checker(column: Column, *, key: bool = False) -> Checker:
    """The function that checks one non-null value of ``column``. JSON comes out as its text, the rest as Python values.

    ``key`` limits text to 2,000 bytes of UTF-8, as key and unique columns do on every engine.
    """
    if column.sealed is not None:
        return column.sealed.check
    where, kind = f"column {column.name!r}", column.kind
    if kind == "text":

        def text(value: Any) -> str:
            if not isinstance(value, str):
                raise _wrong(where, value, "text")
            check_text(value, where)
            if key and len(value) * 4 > MAX_KEY_BYTES and len(value.encode()) > MAX_KEY_BYTES:
                raise InvalidValue(
                    f"{where}: {len(value.encode())} bytes; a key or unique text takes at most {MAX_KEY_BYTES}"
                )
            if len(value) > MAX_VALUE_BYTES // 4 and len(value.encode()) > MAX_VALUE_BYTES:
                raise InvalidValue(f"{where}: text is over {MAX_VALUE_BYTES // 2**20} MiB; put it in a blob store")
            return value

        return text
    if kind == "integer":

        def integer(value: Any) -> int:
            if type(value) is not int:
                raise _wrong(where, value, "an integer")
            if not INT_MIN <= value <= INT_MAX:
                raise InvalidValue(f"{where}: integer {value} is beyond 64 bits")
            return value

        return integer
    if kind == "real":
        return lambda value: check_real(value, where)
    if kind == "boolean":

        def boolean(value: Any) -> bool:
            if type(value) is not bool:
                raise _wrong(where, value, "True or False")
            return value

        return boolean
    if kind == "timestamp":
        return lambda value: check_moment(value, where)
    if kind == "uuid":

        def uuid(value: Any) -> UUID:
            if not isinstance(value, UUID):
                raise _wrong(where, value, "a UUID")
            return value if type(value) is UUID else UUID(int=value.int)

        return uuid
    if kind == "decimal":
        return lambda value: check_decimal(value, where)
    if kind == "bytes":

        def binary(value: Any) -> bytes:
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise _wrong(where, value, "bytes")
            if len(value) > MAX_VALUE_BYTES:
                raise InvalidValue(f"{where}: bytes are over {MAX_VALUE_BYTES // 2**20} MiB; put them in a blob store")
            return bytes(value)

        return binary
    if kind == "json":

        def json(value: Any) -> str:
            text = encode_json(value, where)
            if len(text) > MAX_VALUE_BYTES // 4 and len(text.encode()) > MAX_VALUE_BYTES:
                raise InvalidValue(f"{where}: JSON is over {MAX_VALUE_BYTES // 2**20} MiB; put it in a blob store")
            return text

        return json
    vector = column.vector
    assert vector is not None
    if kind == "sparse":
        return lambda value: check_sparse(value, vector, where)
    return lambda value: check_vector(value, vector, where)
