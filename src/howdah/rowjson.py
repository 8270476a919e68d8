"""Values of columns as JSON values and back: moments are ISO 8601 in UTC, bytes and vectors (little-endian) base64, decimals
and UUIDs text, sparse vectors ``[indices, values]``; what JSON has stays as it is."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from .check import DTYPES
from .schema import Column

Codec = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


_OUT: dict[str, Codec] = {
    "timestamp": lambda v: v.isoformat(timespec="microseconds"),
    "uuid": str,
    "decimal": str,
    "bytes": lambda v: base64.b64encode(v).decode(),
    "vector": lambda v: base64.b64encode(v.astype(v.dtype.newbyteorder("<")).tobytes()).decode(),
    "sparse": lambda v: [v[0].tolist(), [float(x) for x in v[1]]],
}
_IN: dict[str, Codec] = {
    "timestamp": datetime.fromisoformat,
    "uuid": UUID,
    "decimal": lambda v: _decimal(v),
    "bytes": lambda v: base64.b64decode(v, validate=True),
    "real": float,
    "sparse": lambda v: (v[0], v[1]),
}


def _decimal(value: Any) -> Decimal:
    """A float has lost its digits already."""
    if not isinstance(value, str):
        raise ValueError('a decimal is text, such as "1.50"')
    return Decimal(value)


def writer(column: Column) -> Codec:
    """The function from a column's Python value, not null, to its JSON value."""
    return _OUT.get(column.kind, _same)


def reader(column: Column) -> Codec:
    """The function back; what it makes is still to be checked. It raises whatever a malformed value causes."""
    if column.kind == "vector" and column.vector is not None:
        dtype = np.dtype(DTYPES[column.vector.dtype]).newbyteorder("<")
        return lambda v: np.frombuffer(base64.b64decode(v, validate=True), dtype)
    return _IN.get(column.kind, _same)
