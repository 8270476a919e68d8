"""Plans queries of one tiered table that end in LIMIT: of the base only the first rows in their order are needed.

An order is one of plain columns, or of the distance of vectors. What the base cannot order as Postgres does ends it: then the first
column alone counts, and every row that ties with the last one is needed, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import postgast

from .columns import TIMES, TierColumn
from .filters import Condition
from .tiered import Tiered
from .tree import column_of, conjuncts, copied, fields, functions_of, text_of_where, walk

_CLAUSES = ("target_list", "from_clause", "where_clause", "sort_clause", "limit_count", "limit_offset")
WITH_TIES = 3
_DESCENDING, _USING = 3, 4
_FIRST, _LAST = 2, 3
METRICS = {"<->": "l2", "<=>": "cosine", "<#>": "ip", "<+>": "l1"}
_ORDERED = ("int2", "int4", "int8", "float4", "float8", "bool", "uuid", *TIMES)
_WORDS = frozenset(
    [
        "array",
        "case",
        "coalesce",
        "current_catalog",
        "current_date",
        "current_role",
        "current_schema",
        "current_time",
        "current_timestamp",
        "current_user",
        "exists",
        "greatest",
        "grouping",
        "json_array",
        "json_arrayagg",
        "json_exists",
        "json_object",
        "json_objectagg",
        "json_query",
        "json_scalar",
        "json_serialize",
        "json_value",
        "least",
        "localtime",
        "localtimestamp",
        "merge_action",
        "normalize",
        "nullif",
        "overlay",
        "row",
        "session_user",
        "system_user",
        "user",
        "xmlconcat",
        "xmlelement",
        "xmlforest",
        "xmlparse",
        "xmlpi",
        "xmlroot",
        "xmlserialize",
    ]
)
"""What results without a name may be called that have none of theirs in their text."""
_BYTES = (950, 951)
"""The collations that order text by its bytes: C and POSIX."""


class Order(NamedTuple):
    """A column to order by; by ``metric``, the distance of its vectors to one that is a constant or parameter."""

    column: str
    descending: bool
    nulls_first: bool
    metric: str | None = None
    to: tuple[str, Any] | None = None


class Limited(NamedTuple):
    """What a query needs of a base: as many rows as the numbers in ``limit`` and ``offset`` (constants or parameters) say,
    the first by ``orders``; with those that tie with the last, unless ``whole`` says that this is all of the order. A row counts
    if it fulfils ``where``, which has some ``params`` of the statement, ``shared`` with other parts of it; ``conditions`` are what a base can be asked of that, and
    ``asked`` whether they are all of it. No function of ``functions`` may give several rows or sum some up; none of ``twice`` may
    be volatile."""

    orders: tuple[Order, ...]
    whole: bool
    limit: tuple[str, Any]
    offset: tuple[str, Any] | None
    alias: str
    where: str | None
    params: tuple[int, ...]
    shared: tuple[int, ...]
    conditions: tuple[Condition, ...]
    asked: bool
    functions: frozenset[str]
    twice: frozenset[str]


def limited(select: Any, tiered: Tiered, alias: str, about: list[Condition]) -> Limited | None:
    """How a query of one table, called ``alias``, is limited; ``about`` is what its WHERE says. ``None`` if it is not."""
    if select.op != 1 or any(clause not in _CLAUSES for clause, _ in fields(select)):
        return None
    if not select.HasField("limit_count") or select.limit_option == WITH_TIES:
        return None
    limit = number_of(select.limit_count)
    offset = number_of(select.limit_offset) if select.HasField("limit_offset") else None
    if limit is None or (select.HasField("limit_offset") and offset is None):
        return None
    if any(type(m).__name__ == "SubLink" for m in walk(select.where_clause)):
        return None
    if any("Agg" in type(m).__name__ for m in walk(select)):  # such as JSON_ARRAYAGG, which is no function
        return None
    columns = {c.name: c for c in tiered.columns}
    found = [_order(item.sort_by, select, alias, columns) for item in select.sort_clause]
    orders = tuple(order for order in found if order is not None)
    if found and found[0] is None:
        return None
    whole = len(orders) == len(found) and not any(order.metric for order in orders)
    there = select.HasField("where_clause")
    where, params = text_of_where(select.where_clause) if there else (None, ())
    parts = list(conjuncts(select.where_clause)) if there else []
    return Limited(
        orders if whole else orders[:1],
        whole,
        limit,
        offset,
        alias,
        where,
        params,
        (),
        tuple(about),
        len(parts) == len(about) and not any(c.op == "like" for c in about),
        frozenset(functions_of(select)),
        frozenset(functions_of(select.where_clause)),
    )


def number_of(node: Any) -> tuple[str, Any] | None:
    """A constant or parameter."""
    kind = node.WhichOneof("node")
    if kind == "param_ref":
        return "p", node.param_ref.number
    if kind == "a_const" and not node.a_const.isnull and node.a_const.WhichOneof("val") == "ival":
        return "c", node.a_const.ival.ival
    return None


def _order(by: Any, select: Any, alias: str, columns: Mapping[str, TierColumn]) -> Order | None:
    """One part of an order; ``None`` if a base cannot order so."""
    if by.sortby_dir == _USING:
        return None
    node = meant(by.node, select)
    descending = by.sortby_dir == _DESCENDING
    nulls_first = by.sortby_nulls == _FIRST or (descending and by.sortby_nulls != _LAST)
    if node is None:
        return None
    if (column := _column(node, alias, columns)) is not None:
        text = column.type in ("text", "varchar") and column.collation in _BYTES
        if column.type in _ORDERED or column.digits is not None or text:
            return Order(column.name, descending, nulls_first)
        return None
    if descending or nulls_first or node.WhichOneof("node") != "a_expr":
        return None
    expression = node.a_expr
    metric = (
        METRICS.get(expression.name[-1].string.sval) if expression.kind == 1 and len(expression.name) == 1 else None
    )
    for one, other in ((expression.lexpr, expression.rexpr), (expression.rexpr, expression.lexpr)):
        column, value = _column(one, alias, columns), _vector(other)
        if metric is not None and column is not None and column.type == "vector" and value is not None:
            return Order(column.name, False, False, metric, value)
    return None


def meant(node: Any, select: Any) -> Any:
    """The expression that a part of ORDER BY means: its own, or one of the query's results."""
    kind = node.WhichOneof("node")
    if kind == "a_const":
        position = node.a_const.ival.ival if node.a_const.WhichOneof("val") == "ival" else 0
        before = list(select.target_list)[:position]
        if not 1 <= position <= len(select.target_list) or any(_star(item) for item in before):
            return None
        return before[-1].res_target.val
    found = column_of(node)
    if found is not None and not found[0]:
        named = [t.res_target.val for t in select.target_list if t.res_target.name == found[1]]
        if named:
            return named[0] if len(named) == 1 else None
        # What has no name of its own may take this one from within, as ts::date does.
        unnamed = [t.res_target.val for t in select.target_list if not t.res_target.name]
        if any(column_of(val) is None and _implied(val, found[1]) for val in unnamed):
            return None
    return node


def _implied(node: Any, name: str) -> bool:
    """Whether a result that is not named may be called so, as Postgres' FigureColname has it."""
    kind = node.WhichOneof("node")
    if name in _WORDS:
        return True
    if kind in ("a_expr", "bool_expr", "a_const", "null_test"):
        return False
    if kind == "sub_link" and len(node.sub_link.subselect.select_stmt.target_list):
        inner = node.sub_link.subselect.select_stmt.target_list[0].res_target
        return bool(inner.name == name if inner.name else _implied(inner.val, name))
    return any(type(m).__name__ == "String" and m.sval == name for m in walk(node))


def _star(item: Any) -> bool:
    return any(type(m).__name__ == "A_Star" for m in walk(item))


def _column(node: Any, alias: str, columns: Mapping[str, TierColumn]) -> TierColumn | None:
    found = column_of(node)
    return columns.get(found[1]) if found is not None and found[0] in ("", alias) else None


def _vector(node: Any) -> tuple[str, Any] | None:
    """A vector's text, or a parameter."""
    if node.WhichOneof("node") == "type_cast" and node.type_cast.type_name.names[-1].string.sval == "vector":
        node = node.type_cast.arg
    kind = node.WhichOneof("node")
    if kind == "param_ref":
        return "p", node.param_ref.number
    if kind == "a_const" and node.a_const.WhichOneof("val") == "sval":
        return "c", node.a_const.sval.sval
    return None


def tail_of(select: Any) -> tuple[str, Any, Any] | None:
    """The ORDER BY of a query of one table as text, and its LIMIT and OFFSET; ``None`` where it has no LIMIT that is a number, or is
    ordered by what has parameters."""
    limit = number_of(select.limit_count) if select.HasField("limit_count") else None
    offset = number_of(select.limit_offset) if select.HasField("limit_offset") else None
    if limit is None or (select.HasField("limit_offset") and offset is None) or select.limit_option == WITH_TIES:
        return None
    tree = postgast.parse("SELECT 1 FROM x ORDER BY 1")
    made = tree.stmts[0].stmt.select_stmt
    del made.sort_clause[:]
    for item in select.sort_clause:
        node = meant(item.sort_by.node, select)
        if node is None or any(type(m).__name__ in ("ParamRef", "SubLink", "FuncCall") for m in walk(node)):
            return None
        by = copied(item)
        by.sort_by.node.CopyFrom(node)
        made.sort_clause.append(by)
    text = str(postgast.deparse(tree)).partition(" FROM x")[2]
    return text, limit, offset


def ordered_by(select: Any) -> set[str]:
    """The names of the columns that a query is ordered by."""
    nodes = [meant(item.sort_by.node, select) for item in select.sort_clause]
    parts = [m for node in nodes if node is not None for m in walk(node)]
    return {m.fields[-1].string.sval for m in parts if type(m).__name__ == "ColumnRef"}
