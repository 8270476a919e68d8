"""What is asked of a MERGE's source, on its parse tree: whether it has a row for one of the table's, and the keys it names."""

from __future__ import annotations

from typing import Any

import postgast

from .tiered import Tiered
from .tree import column_of, column_of_ref, conjuncts, expression_text, renumber, walk


def from_source(write: Any, shown: str, where: Any) -> tuple[str, tuple[int, ...]]:
    """A query of a MERGE's source, and its parameters."""
    tree = postgast.parse(f"SELECT DISTINCT {shown} FROM x WHERE true" if where is None else f"SELECT {shown} FROM x")
    select = tree.stmts[0].stmt.select_stmt
    select.from_clause[0].CopyFrom(write.source_relation)
    select.ClearField("where_clause")
    if where is not None:
        select.where_clause.CopyFrom(where)
    if write.HasField("with_clause"):
        select.with_clause.CopyFrom(write.with_clause)
    numbers = renumber(tree)
    return str(postgast.deparse(tree)), numbers


def keys_of(condition: Any, alias: str, target: Tiered) -> str | None:
    """What a source must have for the key's columns, as the base has them: a list of expressions."""
    found: dict[str, str] = {}
    for expr in conjuncts(condition):
        if any(type(m).__name__ == "CollateClause" for m in walk(expr)):
            continue
        if expr.WhichOneof("node") != "a_expr" or expr.a_expr.kind != 1 or expr.a_expr.name[-1].string.sval != "=":
            continue
        for left, right in ((expr.a_expr.lexpr, expr.a_expr.rexpr), (expr.a_expr.rexpr, expr.a_expr.lexpr)):
            column = column_of(left)
            others = [column_of_ref(m) for m in walk(right) if type(m).__name__ == "ColumnRef"]
            foreign = bool(others) and all(o is not None and o[0] not in ("", alias) for o in others)
            # By itself a parameter may have another type.
            foreign = foreign and not any(type(m).__name__ == "ParamRef" for m in walk(right))
            if column is not None and column[0] == alias and column[1] in target.key and foreign:
                text = expression_text(right)
                found[column[1]] = text if target.column(column[1]).native else f"({text})::text"
    return ", ".join(found[k] for k in target.key) if set(found) == set(target.key) else None
