"""Joins two tables of one database: rows side by side, matched by equal columns, in a total order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...criteria import Criteria, Order
from ..base import Op, Rows, Stmt
from .compile import Compiler
from .dialect import Params, quote
from .table import SqlTable


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """A checked join. ``orders`` pairs each sort key with whether it is the right side's."""

    on: Mapping[str, str]
    left_join: bool
    where: Criteria | None
    right_where: Criteria | None
    orders: Sequence[tuple[bool, Order]]
    limit: int | None
    offset: int


def join(left: SqlTable, right: SqlTable, plan: JoinPlan) -> Op[Rows]:
    """Driver rows: the left columns, then the right ones, all null where a left join found none."""
    params = Params(left.dialect)
    sides = (Compiler(left.dialect, left.schema, "l"), Compiler(right.dialect, right.schema, "r"))
    chosen = [f"l.{quote(n)}" for n in left.schema.names] + [f"r.{quote(n)}" for n in right.schema.names]
    matched = [f"l.{quote(a)} = r.{quote(b)}" for a, b in plan.on.items()]
    matched += [_live(right, "r", params)] if right.schema.ttl else []
    matched += [sides[1].where(plan.right_where, params)] if plan.right_where is not None else []
    kept = [_live(left, "l", params)] if left.schema.ttl else []
    kept += [sides[0].where(plan.where, params)] if plan.where is not None else []
    order = []
    for is_right, item in plan.orders:
        expression, nullable = sides[is_right].sort_key(item)
        order.append(left.dialect.order(expression, item.descending, nullable or (is_right and plan.left_join)))
    sql = f"SELECT {', '.join(chosen)} FROM {left.name} l {'LEFT ' if plan.left_join else ''}JOIN {right.name} r"
    sql += f" ON {' AND '.join(matched)}"
    sql += f" WHERE {' AND '.join(kept)}" if kept else ""
    sql += f" ORDER BY {', '.join(order)}"
    if plan.limit is not None:
        sql += f" LIMIT {plan.limit}"
    elif plan.offset and left.dialect.name == "sqlite":
        sql += " LIMIT -1"
    if plan.offset:
        sql += f" OFFSET {plan.offset}"
    return (yield Stmt(sql, params.values))


def _live(table: SqlTable, alias: str, params: Params) -> str:
    column = f"{alias}.{quote(table.schema.ttl or '')}"
    return f"({column} IS NULL OR {column} > {params.add(table.moment(), 'timestamp')})"
