"""Gives the rows that are there already a value in a new column."""

from __future__ import annotations

from typing import Any

from ...check import checker
from ...criteria import Order
from ..base import Op, Stmt
from .dialect import quote
from .table import BATCH, SqlTable


def fill_default(table: SqlTable, name: str, default: Any) -> Op[None]:
    """Set a column of every row; encrypted values row by row, or one could see that they are the same."""
    column = table.schema.by_name[name]
    check, p = checker(column), table.dialect.placeholder
    change = f"UPDATE {table.name} SET {quote(name)} = {p(1, column.kind)}"
    if column.sealed is None:
        yield Stmt(change, (table.encode_value(name, check(default)),))
        return
    key = table.schema.key
    same = " AND ".join(f"{quote(k)} = {p(i, table.schema.by_name[k].kind)}" for i, k in enumerate(key, 2))
    orders, after = [Order(k) for k in key], None
    while True:
        rows = yield from table.select(None, orders, names=key, limit=BATCH, after=after)
        if rows:
            yield Stmt(f"{change} WHERE {same}", [(check(default), *row) for row in map(tuple, rows)], many=True)
        if len(rows) < BATCH:
            return
        after = list(rows[-1])
