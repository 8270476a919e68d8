"""Aggregates in SQL, arranged so that both dialects give the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from typing import Any

from ...aggregates import Aggregate
from ...criteria import Criteria
from ...errors import InvalidValue
from ..base import Op, Stmt
from .dialect import Params, quote
from .table import SqlTable

_CONTEXT = Context(prec=40)


def aggregate(
    table: SqlTable, groups: Sequence[str], wanted: Mapping[str, Aggregate], where: Criteria | None
) -> Op[list[dict[str, Any]]]:
    """One dict a group, in group order."""
    params = Params(table.dialect)
    condition = table.condition(where, params)
    chosen = [f"t.{quote(g)}" for g in groups]
    for item in wanted.values():
        chosen.extend(_expressions(table, item))
    sql = f"SELECT {', '.join(chosen) or '1'} FROM {table.name} t{condition}"
    if groups:
        order = ", ".join(table.dialect.order(f"t.{quote(g)}", False, table.schema.by_name[g].nullable) for g in groups)
        sql += f" GROUP BY {', '.join(f't.{quote(g)}' for g in groups)} ORDER BY {order}"
    rows = yield Stmt(sql, params.values)
    read = table.reader(groups)
    result = []
    for row in rows:
        found = read(row[: len(groups)])
        place = len(groups)
        for name, item in wanted.items():
            width = len(_expressions(table, item))
            found[name] = _value(table, item, row[place : place + width])
            place += width
        result.append(found)
    return result


def _expressions(table: SqlTable, item: Aggregate) -> list[str]:
    if item.column is None:
        return ["count(*)"]
    column = f"t.{quote(item.column)}"
    kind = table.schema.by_name[item.column].kind
    sqlite = table.dialect.name == "sqlite"
    if item.function == "count":
        return [f"count({column})"]
    if item.function in ("min", "max"):
        if sqlite or kind not in ("boolean", "uuid"):
            return [f"{item.function}({column})"]
        direction = "" if item.function == "min" else " DESC"
        return [f"(array_agg({column} ORDER BY {column}{direction}) FILTER (WHERE {column} IS NOT NULL))[1]"]
    if kind == "decimal":
        total = f"howdah_decimal_sum({column})" if sqlite else f"sum({column})"
        return [total, f"count({column})"]
    if kind == "integer" and sqlite:
        # SQLite's sum stops at 64 bits: add the halves apart.
        return [f"sum({column} >> 32)", f"sum({column} & 4294967295)", f"count({column})"]
    return [f"sum({column})", f"count({column})"]


def _value(table: SqlTable, item: Aggregate, values: Sequence[Any]) -> Any:
    if item.function == "count":
        return int(values[0])
    assert item.column is not None
    column = table.schema.by_name[item.column]
    if item.function in ("min", "max"):
        decode = table.decoders[item.column]
        return values[0] if decode is None or values[0] is None else decode(values[0])
    *parts, count = values
    if not count:
        return None
    if column.kind == "integer":
        total = int(parts[0]) if len(parts) == 1 else (int(parts[0]) << 32) + int(parts[1])
        return total if item.function == "sum" else total / int(count)
    if column.kind == "decimal":
        exact = Decimal(parts[0])
        return exact if item.function == "sum" else _CONTEXT.divide(exact, Decimal(int(count)))
    total_real = float(parts[0])
    if not math.isfinite(total_real):
        raise InvalidValue(f"the sum of {item.column!r} is beyond the range of a double")
    return total_real if item.function == "sum" else total_real / int(count)
