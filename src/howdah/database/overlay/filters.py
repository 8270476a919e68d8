"""Conditions of a statement that the base's statistics can use, and nothing that Postgres would decide otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from ...engines.sql.dialect import text_literal
from ...errors import TierError
from .base import library
from .columns import TIMES, TierColumn
from .tiered import Tiered

SAME = 2**24
"""Whole numbers below it are the same in every type of number."""
_PREFIX = re.compile(r"(?:[^\\%_]|\\.)+", re.DOTALL)


class Condition(NamedTuple):
    """A column compared with constants (``("c", value)``), parameters (``("p", number)``; ``("q", number)`` where the statement
    has it more than once), expressions whose value the server has told (``("e", text)``), or all values of a query
    (``("k", query)``)."""

    column: str
    op: str
    values: tuple[tuple[str, Any], ...]


def expressions(mentions: Sequence[Sequence[Condition]]) -> list[str]:
    """What the server is to work out."""
    return sorted({v for conditions in mentions for c in conditions for kind, v in c.values if kind == "e"})


def queries(mentions: Sequence[Sequence[Condition]]) -> list[Any]:
    """The queries for values that the server is to run."""
    return list(dict.fromkeys(v for conditions in mentions for c in conditions for kind, v in c.values if kind == "k"))


def expression(tiered: Tiered, conditions: Sequence[Condition], params: Sequence[Any], known: Mapping[Any, Any]) -> Any:
    """The conditions as one expression of PyIceberg; what it cannot say is left out: more rows, never fewer. ``known`` are the
    values of the expressions."""
    parts = [e for c in conditions if (e := _one(tiered.column(c.column), c, params, known)) is not None]
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole = library().expressions.And(whole, part)
    return whole


def says_all(tiered: Tiered, conditions: Sequence[Condition], params: Sequence[Any], known: Mapping[Any, Any]) -> bool:
    """Whether ``expression`` leaves none of the conditions out."""
    return all(_one(tiered.column(c.column), c, params, known) is not None for c in conditions)


def any_of(
    tiered: Tiered, mentions: Sequence[Sequence[Condition]], params: Sequence[Any], known: Mapping[Any, Any]
) -> Any:
    """What a row that any mention of a table may need fulfils; ``None`` if that may be every row."""
    whole = None
    for number, conditions in enumerate(mentions):
        found = expression(tiered, conditions, params, known)
        if found is None:
            return None
        whole = found if number == 0 else library().expressions.Or(whole, found)
    return whole


def by_server(column: TierColumn, condition: Condition) -> Condition:
    """A condition whose moments the server reads: what they say depends on its settings."""
    if column.type not in TIMES:
        return condition
    values = [
        ("e", f"{text_literal(v)}::{column.type}") if (k, type(v)) == ("c", str) else (k, v)
        for k, v in condition.values
    ]
    return condition._replace(values=tuple(values))


def _one(column: TierColumn, condition: Condition, params: Sequence[Any], known: Mapping[Any, Any]) -> Any:
    ex = library().expressions
    if condition.op in ("null", "there"):
        askable = column.native and not column.nested
        return {"null": ex.IsNull, "there": ex.NotNull}[condition.op](column.name) if askable else None
    given = []
    for kind, value in condition.values:
        if kind in "pq":
            if value > len(params):
                return None
            found = params[value - 1]
            # Compared by itself a small whole number is the same in every type of number.
            if kind == "q" and not all(
                alone(v) or (type(v) is int and abs(v) < SAME) for v in (found if type(found) is list else [found])
            ):
                return None
            given.append(found)
        else:
            given.append(known.get(value) if kind in "ek" else value)
    if condition.op == "any":
        if not isinstance(given[0], (list, tuple)):
            return None
        given = list(given[0])
    values = [_value(column, v) for v in given]
    if any(v is None for v in values) or not column.prunable:
        return None
    name = column.name
    if condition.op == "like":
        prefix = _prefix(values[0]) if column.type in ("text", "varchar") else ""
        return ex.StartsWith(name, prefix) if prefix else None
    if condition.op in ("in", "any"):
        empty = ex.AlwaysFalse() if condition.values[0][0] == "k" else None
        return ex.In(name, set(values)) if values else empty
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


def alone(value: Any) -> bool:
    """Whether a parameter's value is the same whatever type a part of the statement gives it, or an error in one."""
    if type(value) is list:
        return all(map(alone, value))
    return value is None or isinstance(value, (UUID, str, bool))


def _prefix(pattern: str) -> str:
    """What every text begins with that is LIKE a pattern."""
    found = _PREFIX.match(pattern)
    return re.sub(r"\\(.)", r"\1", found[0], flags=re.DOTALL) if found else ""


def _value(column: TierColumn, value: Any) -> Any:
    """A value as the base has it; ``None`` when only Postgres could say."""
    if column.type in ("int2", "int4", "int8"):
        limit = 2 ** {"int2": 15, "int4": 31, "int8": 63}[column.type]
        return value if type(value) is int and -limit <= value < limit else None
    if column.type in ("text", "varchar"):
        return value if type(value) is str else None
    if column.type == "uuid":
        return _uuid(value)
    if column.type == "timestamptz":
        if type(value) is not datetime or value.tzinfo is None:
            return None
        try:
            return value.astimezone(UTC).isoformat()
        except OverflowError:
            return None
    if column.type == "timestamp":
        return value.isoformat() if type(value) is datetime and value.tzinfo is None else None
    if column.type == "date":
        return value.isoformat() if type(value) is date else None
    return None


def _uuid(value: Any) -> UUID | None:
    try:
        return value if isinstance(value, UUID) else UUID(value) if type(value) is str else None
    except ValueError:
        return None


def keys_in(tiered: Tiered, keys: Sequence[Sequence[Any]]) -> Any:
    """The expression that a base row has one of these keys (values as the base has them; one that it cannot have is in none)."""
    ex = library().expressions
    known = [tuple(map(_value, tiered.key_columns, key)) for key in keys]
    # A whole number may be larger than its column; of other types every value that a base has is known.
    odd = [c for key in known for c, value in zip(tiered.key_columns, key, strict=True) if value is None]
    if any(not column.type.startswith("int") for column in odd):
        raise TierError(f"{tiered.table}: a key that no base can have")
    known = [key for key in known if None not in key]
    if len(tiered.key) == 1:
        return ex.In(tiered.key[0], {k[0] for k in known}) if known else ex.AlwaysFalse()
    parts: list[Any] = []
    for key in known:
        same: Any = ex.AlwaysTrue()
        for name, value in zip(tiered.key, key, strict=True):
            same = ex.And(same, ex.EqualTo(name, value))
        parts.append(same)
    while len(parts) > 1:  # in halves: a chain would be as deep as there are keys
        parts = [ex.Or(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0] if parts else ex.AlwaysFalse()
