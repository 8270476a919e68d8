"""Conditions of a statement that the base's statistics can use, and nothing that Postgres would decide otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from .base import library
from .columns import TierColumn
from .tiered import Tiered


class Condition(NamedTuple):
    """A column compared with constants (``("c", value)``) or parameters (``("p", number)``)."""

    column: str
    op: str
    values: tuple[tuple[str, Any], ...]


def expression(tiered: Tiered, conditions: Sequence[Condition], params: Sequence[Any]) -> Any:
    """The conditions as one expression of PyIceberg; what it cannot say is left out: more rows, never fewer."""
    parts = [e for c in conditions if (e := _one(tiered.column(c.column), c, params)) is not None]
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole = library().expressions.And(whole, part)
    return whole


def _one(column: TierColumn, condition: Condition, params: Sequence[Any]) -> Any:
    ex = library().expressions
    given = [v if kind == "c" else params[v - 1] for kind, v in condition.values if kind == "c" or v <= len(params)]
    if len(given) < len(condition.values):
        return None
    if condition.op == "any":
        if not isinstance(given[0], (list, tuple)):
            return None
        given = list(given[0])
    values = [_value(column, v) for v in given]
    if any(v is None for v in values) or not column.prunable:
        return None
    name = column.name
    if condition.op in ("in", "any"):
        return ex.In(name, set(values)) if values else None
    if column.type in ("text", "varchar") and condition.op != "=":
        return None  # its order is the collation's, not that of bytes
    if condition.op == "between":
        return ex.And(ex.GreaterThanOrEqual(name, values[0]), ex.LessThanOrEqual(name, values[1]))
    kinds = {
        "=": ex.EqualTo,
        "<": ex.LessThan,
        "<=": ex.LessThanOrEqual,
        ">": ex.GreaterThan,
        ">=": ex.GreaterThanOrEqual,
    }
    return kinds[condition.op](name, values[0])


def _value(column: TierColumn, value: Any) -> Any:
    """A value as the base has it; ``None`` when only Postgres could say."""
    if column.type in ("int2", "int4", "int8"):
        limit = 2 ** {"int2": 15, "int4": 31, "int8": 63}[column.type]
        return value if type(value) is int and -limit <= value < limit else None
    if column.type in ("text", "varchar"):
        return value if type(value) is str else None
    if column.type == "timestamptz":
        return value.astimezone(UTC).isoformat() if type(value) is datetime and value.tzinfo is not None else None
    if column.type == "timestamp":
        return value.isoformat() if type(value) is datetime and value.tzinfo is None else None
    if column.type == "date":
        return value.isoformat() if type(value) is date else None
    return None


def keys_in(tiered: Tiered, keys: Sequence[Sequence[Any]]) -> Any:
    """The expression that a base row has one of these keys (values as the base has them)."""
    ex = library().expressions
    if len(tiered.key) == 1:
        return ex.In(tiered.key[0], {k[0] for k in keys})
    parts: list[Any] = []
    for key in keys:
        same: Any = ex.AlwaysTrue()
        for name, value in zip(tiered.key, key, strict=True):
            same = ex.And(same, ex.EqualTo(name, value))
        parts.append(same)
    while len(parts) > 1:  # in halves: a chain would be as deep as there are keys
        parts = [ex.Or(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0] if parts else ex.AlwaysFalse()
