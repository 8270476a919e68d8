"""Aggregates of a table: count, sum, average, least and greatest, by group."""

from __future__ import annotations

from dataclasses import dataclass

from .criteria import ColumnRef
from .errors import InvalidInput
from .schema import UNSORTABLE, Schema


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate: ``count``, ``sum``, ``avg``, ``min`` or ``max`` of a column; ``count`` of ``None`` counts rows."""

    function: str
    column: str | None = None


def _name(column: ColumnRef | str | None) -> str | None:
    if isinstance(column, ColumnRef):
        if column._path:
            raise InvalidInput("aggregates take columns, not paths into JSON")
        return column._name
    return column


def count_(column: ColumnRef | str | None = None) -> Aggregate:
    """Number of rows, or of non-null values of ``column``."""
    return Aggregate("count", _name(column))


def sum_(column: ColumnRef | str) -> Aggregate:
    """Sum of a numeric column; ``None`` without values."""
    return Aggregate("sum", _name(column))


def avg_(column: ColumnRef | str) -> Aggregate:
    """Mean of a numeric column, a float (a Decimal for decimals); ``None`` without values."""
    return Aggregate("avg", _name(column))


def min_(column: ColumnRef | str) -> Aggregate:
    """Least value; ``None`` without values."""
    return Aggregate("min", _name(column))


def max_(column: ColumnRef | str) -> Aggregate:
    """Greatest value; ``None`` without values."""
    return Aggregate("max", _name(column))


def check(name: str, found: object, schema: Schema) -> Aggregate:
    """``found`` if it is an aggregate that fits the schema."""
    if not isinstance(found, Aggregate):
        raise InvalidInput(
            f"aggregate {name!r}: expected count_(), sum_(…), avg_(…), min_(…) or max_(…), got {found!r:.60}"
        )
    if found.column is None:
        return found
    column = schema.column(found.column)
    kind, shown = column.kind, column.describe()
    if found.function in ("sum", "avg") and kind not in ("integer", "real", "decimal"):
        raise InvalidInput(f"aggregate {name!r}: {found.function} needs a number column, {found.column!r} is {shown}")
    if found.function in ("min", "max") and kind in UNSORTABLE:
        raise InvalidInput(f"aggregate {name!r}: {found.column!r} is {shown} and has no order")
    return found
