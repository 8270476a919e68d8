"""Postgres' parse trees: walking them, conditions on single columns, and parts of a statement as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import postgast

from .columns import quoted
from .filters import Condition

_OPS = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""Operators that prune, and what they are from the other side."""
_STABLE = (
    "now",
    "date_trunc",
    "make_date",
    "make_interval",
    "make_timestamp",
    "make_timestamptz",
    "to_timestamp",
    "date",
)
_PLAIN_TYPES = ("timestamptz", "timestamp", "date", "interval", "int2", "int4", "int8", "text", "uuid")
_PARTS = ("Node", "A_Const", "Integer", "Float", "String", "Boolean", "TypeCast", "SQLValueFunction")
"""What a constant that the server works out may be made of."""


@lru_cache(2000)
def parsed(sql: str) -> Any:
    """The parse tree of a text, or ``None``: the server will say what is wrong."""
    try:
        tree = postgast.parse(sql)
    except postgast.PgQueryError:
        return None
    return tree


def fields(message: Any) -> Iterator[tuple[str, Any]]:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if descriptor.is_repeated else [value]:
            yield descriptor.name, item


def columns_named(tree: Any, columns: Callable[[Any], set[str] | None]) -> set[str] | None:
    """The names of columns that a tree could mean; ``None`` where that may be all: by a star, a row as one value (``t.f`` may be
    ``f(t)``), a natural join or other names. ``columns`` are those of a table that matters."""
    names: set[str] = set()
    tables: set[str] = set()
    rows: dict[str, list[set[str]]] = {}
    parts: set[tuple[str, str]] = set()
    for message in walk(tree):
        kind = type(message).__name__
        if kind == "A_Star" or (kind == "JoinExpr" and message.is_natural):
            return None
        if kind in ("RangeVar", "JoinExpr") and message.HasField("alias"):
            if message.alias.colnames:
                return None
            tables.add(message.alias.aliasname)
        if kind == "RangeVar":
            tables.add(message.relname)
            if (known := columns(message)) is not None:
                called = message.alias.aliasname if message.HasField("alias") else message.relname
                rows.setdefault(called, []).append(known)
        elif kind == "JoinExpr":
            names.update(n.string.sval for n in message.using_clause)
            if message.HasField("alias"):
                rows.setdefault(message.alias.aliasname, []).append(set())
        elif kind == "ColumnRef":
            names.add(message.fields[-1].string.sval)
            if len(message.fields) > 1:
                parts.add((message.fields[-2].string.sval, message.fields[-1].string.sval))
    if names & tables or any(name not in known for table, name in parts for known in rows.get(table, ())):
        return None
    return names


def range_vars(message: Any) -> Iterator[Any]:
    if type(message).__name__ == "RangeVar":
        yield message
    for _, child in fields(message):
        yield from range_vars(child)


def walk(message: Any) -> Iterator[Any]:
    yield message
    for _, child in fields(message):
        yield from walk(child)


def comparison(expr: Any) -> tuple[str, Condition] | None:
    """A column compared with constants, and the table's name that was written."""
    name = expr.name[0].string.sval if len(expr.name) == 1 else ""  # another schema's may be anything
    kinds = {1: "op", 2: "any", 7: "in", 8: "like", 11: "between"}  # AEXPR_OP, _OP_ANY, _IN, _LIKE, _BETWEEN
    kind = kinds.get(expr.kind)
    left, right = expr.lexpr, expr.rexpr
    if kind == "op" and name in _OPS:
        if left.WhichOneof("node") != "column_ref":
            left, right, name = right, left, _OPS[name]
        column, value = column_of(left), _constant(right)
        return None if column is None or value is None else (column[0], Condition(column[1], name, (value,)))
    column = column_of(left)
    if column is None:
        return None
    if kind == "any" and name == "=":
        value = _constant(right)
        return None if value is None or value[0] != "p" else (column[0], Condition(column[1], "any", (value,)))
    if kind == "like" and name == "~~":
        value = _constant(right)
        return None if value is None else (column[0], Condition(column[1], "like", (value,)))
    if kind in ("in", "between") and right.WhichOneof("node") == "list" and name in ("=", "BETWEEN"):
        values = [_constant(v) for v in right.list.items]
        if all(v is not None for v in values):
            return column[0], Condition(column[1], kind, tuple(v for v in values if v is not None))
    return None


def conjuncts(condition: Any) -> Iterator[Any]:
    """The parts of a condition that hold wherever it does."""
    waiting = [condition]
    while waiting:
        node = waiting.pop()
        if node.WhichOneof("node") == "bool_expr" and node.bool_expr.boolop == 1:  # AND
            waiting.extend(node.bool_expr.args)
        else:
            yield node


def column_of(node: Any) -> tuple[str, str] | None:
    """Table ("" if none was written) and name of a column."""
    return column_of_ref(node.column_ref) if node.WhichOneof("node") == "column_ref" else None


def column_of_ref(reference: Any) -> tuple[str, str] | None:
    """The same of a reference; ``None`` for a row, or a name of three parts."""
    names = [f.string.sval for f in reference.fields if f.WhichOneof("node") == "string"]
    if len(names) != len(reference.fields) or not 1 <= len(names) <= 2:
        return None
    return ("", names[0]) if len(names) == 1 else (names[0], names[1])


def expression_text(node: Any) -> str:
    """An expression as text."""
    tree = postgast.parse("SELECT 1")
    tree.stmts[0].stmt.select_stmt.target_list[0].res_target.val.CopyFrom(node)
    return str(postgast.deparse(tree)).removeprefix("SELECT ")


def null_test(test: Any) -> tuple[str, Condition] | None:
    """A column that is to be null, or not, and the table's name that was written."""
    column = column_of(test.arg)
    return (
        None if column is None else (column[0], Condition(column[1], "null" if test.nulltesttype == 1 else "there", ()))
    )


def _constant(node: Any) -> tuple[str, Any] | None:
    """A parameter's number, a constant, or an expression that gives the same in all of a transaction."""
    inner = node.WhichOneof("node")
    if inner == "param_ref":
        return "p", node.param_ref.number
    if inner == "a_const" and not node.a_const.isnull:
        kind = node.a_const.WhichOneof("val")
        if kind in ("ival", "sval"):
            return "c", int(node.a_const.ival.ival) if kind == "ival" else node.a_const.sval.sval
    if inner in ("a_expr", "type_cast", "func_call", "sqlvalue_function") and all(map(_stable, walk(node))):
        return "e", expression_text(node)
    return None


def _stable(message: Any) -> bool:
    """Whether a part of an expression, none of which is a column, gives the same when it is asked twice in a transaction."""
    kind = type(message).__name__
    if kind == "FuncCall":
        return [part.string.sval for part in message.funcname][-1] in _STABLE and len(message.funcname) == 1
    if kind == "TypeName":
        return message.names[-1].string.sval in _PLAIN_TYPES and not message.setof
    if kind == "A_Expr":
        return [part.string.sval for part in message.name] in (["+"], ["-"], ["*"], ["/"])
    return kind in _PARTS


def deparsed(kind: str, statement: Any) -> str:
    tree = postgast.parse("SELECT 1")
    tree.stmts[0].stmt.Clear()
    getattr(tree.stmts[0].stmt, kind).CopyFrom(statement)
    return str(postgast.deparse(tree))


def returned(write: Any) -> Any:
    """Where a write's RETURNING list is: it moved with Postgres 18."""
    return (
        write.returning_clause.exprs if "returning_clause" in write.DESCRIPTOR.fields_by_name else write.returning_list
    )


def returned_text(write: Any) -> str | None:
    """The RETURNING list as text."""
    items = returned(write)
    if not items:
        return None
    tree = postgast.parse("SELECT 1")
    select = tree.stmts[0].stmt.select_stmt
    del select.target_list[:]
    select.target_list.extend(items)
    return str(postgast.deparse(tree)).removeprefix("SELECT ")


def return_all(write: Any) -> None:
    example = postgast.parse("INSERT INTO t SELECT 1 RETURNING *").stmts[0].stmt.insert_stmt
    items = returned(write)
    del items[:]
    items.extend(returned(example))


def condition(statement: Any) -> tuple[str | None, tuple[int, ...], bool]:
    """The condition of a statement on one table as text, its parameters, and whether it cannot be asked of single rows."""
    whole = (
        bool(getattr(statement, "using_clause", None))
        or (type(statement).__name__ == "UpdateStmt" and bool(statement.from_clause))
        or statement.HasField("with_clause")
        # What is asked twice may answer differently.
        or any(type(m).__name__ in ("SubLink", "FuncCall") for m in walk(statement.where_clause))
    )
    if whole or not statement.HasField("where_clause"):
        return None, (), whole
    return (*text_of_where(statement.where_clause), False)


def text_of_where(where: Any) -> tuple[str, tuple[int, ...]]:
    """A condition as text with parameters from $1 on, and which ones they were."""
    tree = postgast.parse("SELECT 1 WHERE true")
    tree.stmts[0].stmt.select_stmt.where_clause.CopyFrom(where)
    numbers = renumber(tree)
    return str(postgast.deparse(tree)).partition(" WHERE ")[2], numbers


def renumber(*trees: Any) -> tuple[int, ...]:
    """Number the parameters of trees from $1 on; which ones they were."""
    numbers: list[int] = []
    for message in (m for tree in trees for m in walk(tree)):
        if type(message).__name__ == "ParamRef":
            if message.number not in numbers:
                numbers.append(message.number)
            message.number = numbers.index(message.number) + 1
    return tuple(numbers)


def functions_of(*messages: Any) -> set[str]:
    """The names of the functions that are called."""
    parts = (m for message in messages for m in walk(message))
    return {m.funcname[-1].string.sval for m in parts if type(m).__name__ == "FuncCall"}


def name_of(relation: Any) -> str:
    """What a table is called in its statement."""
    return str(relation.alias.aliasname if relation.HasField("alias") else relation.relname)


def spelled(relation: Any) -> str:
    """A table's name as it is written, quoted."""
    return ".".join(quoted(n) for n in (relation.schemaname, relation.relname) if n)


def copied(message: Any) -> Any:
    """The same again."""
    made = type(message)()
    made.CopyFrom(message)
    return made
