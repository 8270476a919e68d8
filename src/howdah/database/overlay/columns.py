"""Columns of a tiered table: which have a twin in Iceberg, and which travel as Postgres' text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

# Postgres' types with a twin; every other type is text in the base and is read back by its own input function.
_TWINS: Final = {
    "int2": "int32",
    "int4": "int32",
    "int8": "int64",
    "float4": "float32",
    "float8": "float64",
    "bool": "bool_",
    "text": "string",
    "varchar": "string",
    "date": "date32",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "time": "time64",
    "bytea": "binary",
    "uuid": "uuid",
    "vector": "list",
}
_ELEMENTS: Final = ("int2", "int4", "int8", "float4", "float8", "bool", "text", "varchar")
"""Types whose arrays have a twin."""
UNSORTED: Final = ("float4", "float8", "time", "bytea", "uuid", "vector")
"""Those that no base is partitioned by."""
TIMES: Final = ("date", "timestamp", "timestamptz")
KEYS: Final = ("int2", "int4", "int8", "text", "varchar", "uuid", *TIMES)
"""Types whose text says all of a key."""


_DECIMAL: Final = re.compile(r"numeric\((\d+),(\d+)\)")
MOST_DIGITS: Final = 38
"""Iceberg's longest decimal numbers."""


@dataclass(frozen=True, slots=True)
class TierColumn:
    """One column: its number, which it keeps, its name, Postgres' type by name and as it is spelled, and what matters to a base."""

    number: int
    name: str
    type: str
    spelled: str
    generated: bool
    exact: bool
    """Whether equal text is the same text: a deterministic collation."""
    collation: int = 0
    """The oid of its collation."""
    dims: int = 0
    """How many dimensions it was declared with, if it is an array."""

    @property
    def native(self) -> bool:
        """Whether the base has a type for it."""
        return self.type in _TWINS or self.digits is not None or self.element is not None

    @property
    def element(self) -> str | None:
        """The type of an array's elements, if the base has it as a list."""
        return self.type[1:] if self.dims < 2 and self.type[:1] == "_" and self.type[1:] in _ELEMENTS else None

    @property
    def nested(self) -> bool:
        """Whether the base has it as a list, of which Iceberg asks nothing."""
        return self.type == "vector" or self.element is not None

    @property
    def digits(self) -> tuple[int, int] | None:
        """Precision and scale of a decimal number that the base has as such."""
        found = _DECIMAL.fullmatch(self.spelled)
        if found is None or not int(found[2]) <= int(found[1]) <= MOST_DIGITS:
            return None
        return int(found[1]), int(found[2])

    @property
    def prunable(self) -> bool:
        """Whether the base's statistics can rule values out."""
        odd = ("float4", "float8", "time", "bytea", "bool", "numeric")
        return self.native and not self.nested and self.type not in odd and self.exact


def arrow_schema(pa: Any, columns: Sequence[TierColumn]) -> Any:
    """The Arrow schema of the base: columns that it has as text say what they are in Postgres."""
    notes = [None if c.native else {"doc": c.spelled} for c in columns]
    return pa.schema([pa.field(c.name, arrow_type(pa, c), metadata=n) for c, n in zip(columns, notes, strict=True)])


def arrow_type(pa: Any, column: TierColumn) -> Any:
    """A column's type in Arrow."""
    if column.digits is not None:
        return pa.decimal128(*column.digits)
    if column.element is not None:
        return pa.list_(pa.field("element", getattr(pa, _TWINS[column.element])()))
    twin = _TWINS.get(column.type, "string")
    if twin == "uuid":
        return pa.binary(16)  # the only type of that form
    if twin.startswith("timestamp"):
        return pa.timestamp("us", "UTC" if twin == "timestamptz" else None)
    if twin == "time64":
        return pa.time64("us")
    if twin == "list":
        return pa.list_(pa.field("element", pa.float32()))
    return getattr(pa, twin)()


def selection(columns: Sequence[TierColumn]) -> str:
    """What COPY reads of a heap: the columns, text where there is no twin."""
    return ", ".join(quoted(c.name) if c.native else f"{quoted(c.name)}::text" for c in columns)


def finite(columns: tuple[TierColumn, ...]) -> str:
    """The condition that every value has a twin: infinity, years before 1 and after 9999, 24 o'clock, decimal numbers that are
    none and arrays of other arrays or from another index on have no one, so such rows stay hot."""
    tests = [
        f"(t.{quoted(c.name)} IS NULL OR t.{quoted(c.name)} BETWEEN '0001-01-02' AND '9999-12-30')"
        for c in columns
        if c.type in TIMES
    ]
    odd = [(c.name, "NaN") for c in columns if c.digits is not None]
    odd += [(c.name, "24:00") for c in columns if c.type == "time"]
    tests += [f"(t.{quoted(name)} IS NULL OR t.{quoted(name)} <> '{value}')" for name, value in odd]
    for name in (f"t.{quoted(c.name)}" for c in columns if c.element is not None):
        tests.append(f"coalesce(array_ndims({name}) = 1 AND array_lower({name}, 1) = 1, true)")
    return " AND ".join(tests) or "true"


def quoted(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'
