"""What the joins of a query, and its sub-selects in IN, say of a tiered table's columns: conditions in ON, and values that only rows
of other tables can give. Those are asked of the server first, so that of the base only what can join is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import postgast

from .filters import Condition
from .tiered import Tiered
from .tree import column_of, comparison, conjuncts, copied, functions_of, name_of, range_vars, renumber, spelled, walk

_INNER, _LEFT, _RIGHT = 1, 2, 4
_ANY_SUBLINK, _EXPR_SUBLINK = 3, 5


class KeyQuery(NamedTuple):
    """A query for values, in its one column; which of the statement's parameters it has, those of them that it has more than once;
    the functions that it calls and the tables that it reads, which must answer the same when they are asked again."""

    sql: str
    params: tuple[int, ...]
    shared: tuple[int, ...]
    functions: tuple[str, ...]
    tables: tuple[str, ...]


@dataclass(slots=True)
class _On:
    """A join: what it is, the names on its sides, and what must hold of a pair."""

    kind: int
    left: set[str]
    right: set[str]
    parts: list[Any] = field(default_factory=list)
    using: list[str] = field(default_factory=list)

    def binds(self, name: str) -> bool:
        """Whether a row of this name counts only where the pair holds."""
        sides = {_INNER: self.left | self.right, _LEFT: self.right, _RIGHT: self.left}
        return name in sides.get(self.kind, set())


class Joined:
    """The joins of one query."""

    def __init__(self, select: Any, ordinary: Callable[[Any], bool]) -> None:
        self._ordinary = ordinary
        self._items: dict[str, Any] = {}
        """Ordinary tables, by the names that they have here."""
        self._names: list[str] = []
        self._ons: list[_On] = []
        for item in select.from_clause:
            self._item(item)
        self._where = list(conjuncts(select.where_clause)) if select.HasField("where_clause") else []

    def _item(self, node: Any) -> set[str]:
        """Note an item of FROM; the names that are in it."""
        kind = node.WhichOneof("node")
        if kind == "join_expr" and node.join_expr.HasField("alias"):  # which hides the names in it
            self._names.append(node.join_expr.alias.aliasname)
            return {node.join_expr.alias.aliasname}
        if kind == "join_expr":
            join = node.join_expr
            found = _On(join.jointype, self._item(join.larg), self._item(join.rarg))
            if join.is_natural:
                found.kind = 0
            if join.HasField("quals"):
                found.parts = list(conjuncts(join.quals))
            found.using = [n.string.sval for n in join.using_clause]
            self._ons.append(found)
            return found.left | found.right
        name = ""
        if kind == "range_var":
            relation = node.range_var
            name = name_of(relation)
            if self._ordinary(relation) and not (relation.HasField("alias") and relation.alias.colnames):
                self._items[name] = copied(node)
        elif kind in ("range_subselect", "range_function") and getattr(node, kind).HasField("alias"):
            name = getattr(node, kind).alias.aliasname
        self._names.append(name)
        return {name}

    def about(self, tiered: Tiered, name: str) -> list[tuple[str, Condition]]:
        """What is said of the table that is called so."""
        if self._names.count(name) != 1:
            return []
        found: list[tuple[str, Condition]] = []
        columns = {c.name for c in tiered.columns}
        for node in self._where:
            found += self._sublink(node, name, columns)
        for on in self._ons:
            if on.binds(name):
                for node in on.parts:
                    if node.WhichOneof("node") == "a_expr" and (said := comparison(node.a_expr)) is not None:
                        found += [said] if said[0] == name else []
        for column, other, theirs, parts in self._pairs(name, columns):
            found.append((name, Condition(column, "any", (("k", self._asked(other, theirs, parts)),))))
        return found

    def _pairs(self, name: str, columns: set[str]) -> Iterator[tuple[str, str, str, list[Any]]]:
        """The columns that must be equal to those of ordinary tables: column, table, its column, and what else holds then."""
        for parts, using, theirs in (
            (self._where, [], set(self._names)),
            *((on.parts, on.using, on.left | on.right) for on in self._ons if on.binds(name)),
        ):
            every = self._strict() if parts is self._where else [*self._strict(), *parts]
            for node in parts:
                for mine, other in _equal(node):
                    alone = len(self._names) == 2 and not other[0] and other[1] not in columns
                    them = next((n for n in self._names if n != name), "") if alone else other[0]
                    if mine[0] in (name, "") and mine[1] in columns and self._one(them) and them != name:
                        yield mine[1], them, other[1], every
            for column in using:
                for them in theirs - {name}:
                    if len(theirs) == 2 and column in columns and self._one(them):
                        yield column, them, column, every

    def _one(self, name: str) -> bool:
        """Whether one ordinary table is called so, and nothing else."""
        return name in self._items and self._names.count(name) == 1

    def _strict(self) -> list[Any]:
        """The parts of WHERE that rows of tables alone fail if they fail them here: with outer joins a row that is left out below
        may leave nulls here, which could fulfil others."""
        if all(on.kind == _INNER for on in self._ons):
            return self._where
        return [n for n in self._where if n.WhichOneof("node") == "a_expr" and comparison(n.a_expr) is not None]

    def _asked(self, table: str, column: str, parts: list[Any]) -> KeyQuery:
        """The query for the values of a table's column, under the conditions that are on this table alone."""
        tree = postgast.parse("SELECT a.b FROM x WHERE true")
        select = tree.stmts[0].stmt.select_stmt
        select.from_clause[0].CopyFrom(self._items[table])
        for part, value in zip(select.target_list[0].res_target.val.column_ref.fields, (table, column), strict=True):
            part.string.sval = value
        mine = [node for node in parts if _only(node, table)]
        select.ClearField("where_clause")
        if mine:
            example = postgast.parse("SELECT 1 WHERE true AND true").stmts[0].stmt.select_stmt.where_clause
            del example.bool_expr.args[:]
            example.bool_expr.args.extend(mine)
            select.where_clause.CopyFrom(example if len(mine) > 1 else mine[0])
        return _query(tree)

    def _sublink(self, node: Any, name: str, columns: set[str]) -> list[tuple[str, Condition]]:
        """``column IN (SELECT …)`` and ``column = (SELECT …)`` of ordinary tables. A query that runs by itself means the same
        within another."""
        kind = node.WhichOneof("node")
        if (
            kind == "sub_link"
            and node.sub_link.sub_link_type == _ANY_SUBLINK
            and [n.string.sval for n in node.sub_link.oper_name] in ([], ["="])
        ):
            column, inner = column_of(node.sub_link.testexpr), node.sub_link.subselect
        elif kind == "a_expr" and node.a_expr.kind == 1 and [n.string.sval for n in node.a_expr.name] == ["="]:
            one, other = node.a_expr.lexpr, node.a_expr.rexpr
            if one.WhichOneof("node") == "sub_link":
                one, other = other, one
            if other.WhichOneof("node") != "sub_link" or other.sub_link.sub_link_type != _EXPR_SUBLINK:
                return []
            column, inner = column_of(one), other.sub_link.subselect
        else:
            return []
        alone = len(self._names) == 1
        if column is None or column[0] not in (name, *[""] * alone) or column[1] not in columns:
            return []
        if not all(self._ordinary(r) for r in range_vars(inner)) or wavers(inner):
            return []
        tree = postgast.parse("SELECT 1")
        tree.stmts[0].stmt.CopyFrom(inner)
        return [(column[0], Condition(column[1], "any", (("k", _query(tree)),)))]


def _equal(node: Any) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Both ways of an equality of two columns."""
    if (
        node.WhichOneof("node") != "a_expr"
        or node.a_expr.kind != 1
        or [n.string.sval for n in node.a_expr.name] != ["="]
    ):
        return
    one, other = column_of(node.a_expr.lexpr), column_of(node.a_expr.rexpr)
    if one is not None and other is not None:
        yield one, other
        yield other, one


def _only(node: Any, table: str) -> bool:
    """Whether a condition is on one table alone, and can be asked by itself."""
    columns = [_table_of(m) for m in walk(node) if type(m).__name__ == "ColumnRef"]
    return (
        bool(columns)
        and all(c == table for c in columns)
        and not any(type(m).__name__ == "SubLink" for m in walk(node))
    )


def _table_of(reference: Any) -> str:
    """The table that a reference names; "" for none."""
    names = [f.string.sval for f in reference.fields if f.WhichOneof("node") == "string"]
    return names[0] if len(names) == 2 == len(reference.fields) else ""


def wavers(node: Any) -> bool:
    """Whether a query may give other rows when it is asked again: it takes some of them, or a sample."""
    found = list(walk(node))
    selects = [m for m in found if type(m).__name__ == "SelectStmt"]
    return any(type(m).__name__ == "RangeTableSample" for m in found) or any(
        s.HasField("limit_count") or any(d.WhichOneof("node") for d in s.distinct_clause) for s in selects
    )


def _query(tree: Any) -> KeyQuery:
    tables = tuple(sorted({spelled(r) for r in range_vars(tree)}))
    functions = tuple(sorted(functions_of(tree)))
    numbers = renumber(tree)
    return KeyQuery(str(postgast.deparse(tree)), numbers, (), functions, tables)
