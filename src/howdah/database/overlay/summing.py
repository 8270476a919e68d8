"""Plans aggregates over one tiered table whose base rows are summed up where they are, instead of being bound one by one.

The query is asked of partial rows, each for some rows that are alike in every column that the query looks at: those of the heap,
which Postgres sums up, and those of the base (``partials.py``). Only what comes out the same is planned so; the rest is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import postgast

from .columns import TIMES, TierColumn, quoted
from .filters import Condition
from .plans import Part, Summary
from .reading import said
from .tiered import Tiered
from .tree import column_of_ref, conjuncts, expression_text, fields, walk

_CLAUSES = (
    "target_list",
    "from_clause",
    "where_clause",
    "group_clause",
    "having_clause",
    "sort_clause",
    "limit_count",
    "limit_offset",
)
_ASKED = ("target_list", "group_clause", "having_clause", "sort_clause")
_TYPES = (
    *("Node", "ResTarget", "ColumnRef", "A_Const", "ParamRef", "A_Expr", "TypeCast", "String", "Integer", "Float", "Boolean"),
    *("BoolExpr", "NullTest", "BooleanTest", "List", "TypeName", "SortBy", "CoalesceExpr", "FuncCall"),
)  # fmt: skip
"""What the parts of such a query may consist of."""
_WHOLE = ("int2", "int4", "int8")
_FLOATS = ("float4", "float8")
_GROUPS = (*_WHOLE, *TIMES, "bool", "uuid", "text", "varchar")
_PLAIN = ("abs", "lower", "upper", "length", "round", "floor", "ceil", "to_char")
"""Functions of single rows."""
_PIECES = ("date_trunc", "date_part", "extract")
_DAYS = ("day", "dow", "doy", "isodow", "week", "month", "quarter", "year", "isoyear", "decade", "century")
"""Pieces of time that are the same in all of a day."""
QUARTER = 15
"""Minutes of which a time zone is some off, if it is even."""
MOST_DIGITS = 28
"""Digits of decimal numbers of which ten thousand million can be added up."""
_COLLATIONS = {0: "", 100: "", 950: ' COLLATE "C"'}
"""The collations that text may have: none, the database's own, bytes; by oid."""


class _NotSo(Exception):
    """The query is not one that can be summed up."""


def summary(select: Any, tiered: Tiered, name: str, about: Sequence[Condition]) -> Summary | None:
    """How a query of one table, called ``name``, is summed up; ``about`` is what its WHERE says. The query is left as it is."""
    if any(clause not in _CLAUSES for clause, _ in fields(select)) or select.op != 1:
        return None
    limits = [m for name, child in fields(select) if name.startswith("limit_") for m in walk(child)]
    if any(type(m).__name__ not in _TYPES or type(m).__name__ in ("FuncCall", "ColumnRef") for m in limits):
        return None
    # A parameter is what its first mention makes of it, and the WHERE would come first.
    asked, rest = (
        _parameters(select, ("where_clause",)),
        _parameters(select, [c for c in _CLAUSES if c != "where_clause"]),
    )
    if asked & rest:
        return None
    if select.HasField("where_clause") and (
        len(list(conjuncts(select.where_clause))) != len(said(select.where_clause))
        or len(said(select.where_clause)) != len(about)
        or any(c.op == "like" for c in about)
    ):
        return None
    copy = type(select)()
    copy.CopyFrom(select)
    try:
        return _Summing(tiered, name).plan(copy, list(about))
    except _NotSo:
        return None


class _Summing:
    def __init__(self, tiered: Tiered, name: str) -> None:
        self._tiered = tiered
        self._name = name
        self._columns = {c.name: c for c in tiered.columns}
        self._groups: dict[str, int] = {}
        """By column, the minutes in all of which the query sees the same; 0 if it looks closer."""
        self._parts: list[Part] = []
        self._results: set[str] = set()
        self._distinct = False

    def plan(self, select: Any, about: list[Condition]) -> Summary:
        where = f" WHERE {expression_text(select.where_clause)}" if select.HasField("where_clause") else ""
        self._results = {item.res_target.name for item in select.target_list}
        for item in select.target_list:
            _keep_name(item.res_target)
        for clause, item in list(fields(select)):
            if clause in _ASKED:
                self._visit(item)
        if not (self._parts or self._distinct or select.group_clause):
            raise _NotSo  # it is for single rows
        if select.group_clause and not self._groups:
            raise _NotSo  # by a constant: no row, no group
        groups = [self._columns[g] for g in self._groups]
        if any(
            (c.type not in _GROUPS and c.digits is None) or not c.exact or c.collation not in _COLLATIONS
            for c in groups
        ):
            raise _NotSo
        me = quoted(self._name)
        shown = [f"{me}.{quoted(g)}" for g in self._groups]
        shown += [f"{_sql(p, me)} AS {_called(i)}" for i, p in enumerate(self._parts)]
        grouped = f" GROUP BY {', '.join(str(i + 1) for i in range(len(groups)))}" if groups else ""
        hot = f"SELECT {', '.join(shown)} FROM ONLY {self._tiered.table} AS {me}{where}{grouped}"
        kinds = [f"c{i}::{c.spelled}{_COLLATIONS[c.collation]}" for i, c in enumerate(groups)]
        kinds += [f"c{i}::{self._type(p)}" for i, p in enumerate(self._parts, len(groups))]
        given = max((m.number for m in walk(select) if type(m).__name__ == "ParamRef"), default=0)
        arrays = ", ".join(f"${given + i}::text[]" for i in range(1, len(kinds) + 1))
        names = ", ".join(f"c{i}" for i in range(len(kinds)))
        base = f"SELECT {', '.join(kinds)} FROM unnest({arrays}) AS x({names})"
        select.ClearField("where_clause")
        tree = postgast.parse(f"SELECT 1 FROM ({hot} UNION ALL {base}) AS {me}")
        select.from_clause[0].CopyFrom(tree.stmts[0].stmt.select_stmt.from_clause[0])
        tree.stmts[0].stmt.select_stmt.CopyFrom(select)
        sql = str(postgast.deparse(tree))
        return Summary(self._tiered, sql, given, tuple(self._groups.items()), tuple(self._parts), tuple(about))

    def _visit(self, message: Any) -> None:
        """Replace the aggregates in an expression, and note the columns beside them."""
        kind = type(message).__name__
        if kind not in _TYPES:
            raise _NotSo
        if kind == "Node" and message.WhichOneof("node") == "func_call":
            self._call(message)
            return
        if kind == "TypeCast" and message.type_name.names[-1].string.sval == "date" and self._piece(message.arg, "day"):
            return
        if kind == "ColumnRef":
            self._column(message)
        for _, child in fields(message):
            self._visit(child)

    def _column(self, reference: Any) -> None:
        found = column_of_ref(reference)
        if found is None or found[0] not in ("", self._name):
            raise _NotSo
        if found[1] in self._columns:
            self._groups[found[1]] = 0
        elif found[0] or found[1] not in self._results:
            raise _NotSo

    def _piece(self, node: Any, unit: str) -> bool:
        """Whether this is a time of which a piece is enough; noted."""
        found = column_of_ref(node.column_ref) if node.WhichOneof("node") == "column_ref" else None
        if found is None or found[0] not in ("", self._name) or found[1] not in self._columns:
            return False
        type_ = self._columns[found[1]].type
        if type_ not in ("timestamp", "timestamptz") or unit not in ("minute", "hour", *_DAYS):
            return False
        # A day begins where its time zone says.
        minutes = 1 if unit == "minute" else QUARTER if type_ == "timestamptz" else 60 if unit == "hour" else 1440
        self._groups[found[1]] = min(minutes, self._groups.get(found[1], minutes))
        return True

    def _call(self, node: Any) -> None:
        call = node.func_call
        name = call.funcname[-1].string.sval
        if (
            call.agg_order
            or call.HasField("agg_filter")
            or call.HasField("over")
            or call.agg_within_group
            or call.func_variadic
        ):
            raise _NotSo
        if [f.string.sval for f in call.funcname[:-1]] not in ([], ["pg_catalog"]):
            raise _NotSo
        if name in _PIECES and len(call.args) >= 2:
            unit = call.args[0].a_const.sval.sval if call.args[0].WhichOneof("node") == "a_const" else ""
            if len(call.args) == 2 and self._piece(call.args[1], unit):
                return
        if name in (*_PLAIN, *_PIECES):
            for arg in call.args:
                self._visit(arg)
            return
        only = call.agg_distinct or call.agg_star
        if name not in ("count", "sum", "min", "max", "avg") or (only and name != "count"):
            raise _NotSo
        column = None
        if not call.agg_star:
            found = (
                column_of_ref(call.args[0].column_ref)
                if len(call.args) == 1 and call.args[0].WhichOneof("node") == "column_ref"
                else None
            )
            if found is None or found[0] not in ("", self._name) or found[1] not in self._columns:
                raise _NotSo
            column = self._columns[found[1]]
        if call.agg_distinct:
            self._distinct = True
            self._column(call.args[0].column_ref)
            return
        node.CopyFrom(_expression(self._instead(name, column)))

    def _instead(self, name: str, column: TierColumn | None) -> str:
        """What an aggregate is of partial rows."""
        if name == "count":
            return f"coalesce(sum({self._part('count', column)}), 0)::bigint"
        assert column is not None
        whole = column.type in _WHOLE
        if name in ("min", "max"):
            if not whole and column.type not in (*TIMES, *_FLOATS) and column.digits is None:
                raise _NotSo
            return f"{name}({self._part(name, column)})"
        if column.type in _FLOATS:  # added up in another order, as Postgres does when it likes
            total = f"sum({self._part('sum', column)})"
            if name == "sum":
                return f"{total}::{column.type}"
            return f"{total} / nullif(sum({self._part('count', column)}), 0)::float8"
        if not whole and (column.digits is None or column.digits[0] > MOST_DIGITS):
            raise _NotSo
        total = f"sum({self._part('sum', column)})"
        if name == "sum":
            return f"{total}::bigint" if column.type in ("int2", "int4") else total
        return f"{total} / nullif(sum({self._part('count', column)}), 0)"

    def _part(self, function: str, column: TierColumn | None) -> str:
        part = Part(function, None if column is None else column.name)
        if part not in self._parts:
            self._parts.append(part)
        return f"{quoted(self._name)}.{_called(self._parts.index(part))}"

    def _type(self, part: Part) -> str:
        if part.function == "count":
            return "bigint"
        assert part.column is not None
        column = self._columns[part.column]
        if part.function == "sum":
            if column.type in _FLOATS:
                return "float8"
            return "bigint" if column.type in ("int2", "int4") else "numeric"
        return column.spelled


def _parameters(select: Any, clauses: Sequence[str]) -> set[int]:
    """The parameters that some clauses mention."""
    found = [m for name, child in fields(select) if name in clauses for m in walk(child)]
    return {m.number for m in found if type(m).__name__ == "ParamRef"}


def _called(number: int) -> str:
    """The name of a partial sum."""
    return quoted(f"howdah part {number}")


def _sql(part: Part, me: str) -> str:
    return f"{part.function}({'*' if part.column is None else f'{me}.{quoted(part.column)}'})"


def _expression(text: str) -> Any:
    return postgast.parse(f"SELECT ({text})").stmts[0].stmt.select_stmt.target_list[0].res_target.val


def _keep_name(target: Any) -> None:
    """A result without a name has that of its aggregate."""
    inner = target.val
    while inner.WhichOneof("node") == "type_cast":
        inner = inner.type_cast.arg
    if not target.name and inner.WhichOneof("node") == "func_call":
        target.name = inner.func_call.funcname[-1].string.sval
