"""Turns checked criteria, orders and cursors into SQL conditions for either dialect."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ...criteria import And, Compare, Constant, Contains, Criteria, In, Like, Not, Null, Or, Order, Path, Prefix
from ...schema import Schema
from ...values import simple_fold
from .dialect import Params, PostgresDialect, SqliteDialect, quote

SqlDialect = SqliteDialect | PostgresDialect
_FALSE = {"sqlite": "0", "postgres": "false"}
_TRUE = {"sqlite": "1", "postgres": "true"}


class Compiler:
    """Compiles for one table, whose alias prefixes every column."""

    def __init__(self, dialect: SqlDialect, schema: Schema, alias: str = "t") -> None:
        self.dialect = dialect
        self.schema = schema
        self.alias = alias
        self.false = _FALSE[dialect.name]
        self.true = _TRUE[dialect.name]
        self._encoders = {c.name: dialect.encode(c) for c in schema.columns}

    def column(self, name: str) -> str:
        """A column, qualified by the alias."""
        return f"{self.alias}.{quote(name)}"

    def value(self, name: str, value: Any) -> Any:
        """A checked value in the driver's form."""
        encode = self._encoders[name]
        return value if encode is None or value is None else encode(value)

    def where(self, criteria: Criteria, params: Params) -> str:
        """SQL of ``criteria``, in parentheses where needed."""
        if isinstance(criteria, (And, Or)):
            if not criteria.parts:
                return self.true if isinstance(criteria, And) else self.false
            word = " AND " if isinstance(criteria, And) else " OR "
            return "(" + word.join(self.where(p, params) for p in criteria.parts) + ")"
        if isinstance(criteria, Not):
            return f"(NOT {self.where(criteria.part, params)})"
        if isinstance(criteria, Constant):
            return self.true if criteria.value else self.false
        column = self.column(criteria.column)
        if isinstance(criteria, Null):
            return self._null(criteria, column)
        if criteria.path:
            return self._json(criteria, column, params)
        kind = self.schema.column(criteria.column).kind
        if isinstance(criteria, Compare):
            op = "<>" if criteria.op == "!=" else criteria.op
            return f"{column} {op} {params.add(self.value(criteria.column, criteria.value), kind)}"
        if isinstance(criteria, In):
            return self._in(criteria, column, kind, params)
        if isinstance(criteria, Contains) and kind == "json":
            return self._json(criteria, column, params)
        return self._text(criteria, column, params)

    def _null(self, criteria: Null, column: str) -> str:
        if not criteria.path:
            return f"({column} IS {'NOT ' if criteria.negated else ''}NULL)"
        kind = self.dialect.json_kind(column, criteria.path)
        yes, no = f"coalesce({kind}, 'null') = 'null'", f"coalesce({kind}, 'null') <> 'null'"
        if criteria.only == "null":
            yes, no = f"coalesce({kind}, '') = 'null'", f"coalesce({kind}, '') <> 'null'"
        elif criteria.only == "missing":
            yes, no = f"{kind} IS NULL", f"{kind} IS NOT NULL"
        return f"({no if criteria.negated else yes})"

    def _in(self, criteria: In, column: str, kind: str, params: Params) -> str:
        if criteria.negated and criteria.has_null:
            return self.false
        if not criteria.values:
            return self.true if criteria.negated else self.false
        values = [self.value(criteria.column, v) for v in criteria.values]
        return f"({self.dialect.in_test(column, params, values, kind, negated=criteria.negated)})"

    def _text(self, criteria: Criteria, column: str, params: Params) -> str:
        if isinstance(criteria, Like):
            if criteria.fold:
                pattern = params.add(simple_fold(criteria.pattern), "text")
                return self.dialect.like(self.dialect.fold(column), pattern)
            return self.dialect.like(column, params.add(criteria.pattern, "text"))
        if isinstance(criteria, Prefix):
            return self._prefix(criteria.prefix, column, params)
        assert isinstance(criteria, Contains)
        return f"({self.dialect.position(column, params.add(criteria.value, 'text'))})"

    def _prefix(self, prefix: str, column: str, params: Params) -> str:
        if not prefix:
            return f"({column} IS NOT NULL)"
        low = f"{column} >= {params.add(prefix, 'text')}"
        stop = prefix_end(prefix)
        return f"({low})" if stop is None else f"({low} AND {column} < {params.add(stop, 'text')})"

    def _json(self, criteria: Criteria, column: str, params: Params) -> str:
        path: Path = criteria.path  # type: ignore[union-attr]  # only nodes with a path come here
        dialect = self.dialect
        if isinstance(criteria, (Like, Prefix)):
            return self._text(criteria, f"({dialect.json_typed(column, path, 'string')})", params)
        if isinstance(criteria, Contains):
            kind, value = _json_scalar(criteria.value)
            placeholder = params.add(self._number(value), _json_param(kind)) if kind != "null" else ""
            has = dialect.json_has(column, path, placeholder, kind)
            if kind == "string":
                text = f"({dialect.json_typed(column, path, 'string')})"
                inside = dialect.position(text, params.add(value, "text"))
                return f"({has} OR coalesce({inside}, {self.false}))"
            return f"({has})"
        if isinstance(criteria, In):
            if criteria.negated and criteria.has_null:
                return self.false
            if not criteria.values:
                return self.true if criteria.negated else self.false
            parts = [self._json_compare(column, path, "=", v, params) for v in criteria.values]
            one = "(" + " OR ".join(parts) + ")"
            return f"(NOT {one})" if criteria.negated else one
        assert isinstance(criteria, Compare)
        return self._json_compare(column, path, criteria.op, criteria.value, params)

    def _json_compare(self, column: str, path: Path, op: str, value: Any, params: Params) -> str:
        kind, plain = _json_scalar(value)
        placeholder = params.add(self._number(plain), _json_param(kind))
        typed = f"({self.dialect.json_typed(column, path, kind)})"
        if op in ("=", "!="):
            # A value of another type is unlike, not unknown; only null and absent are unknown.
            sql, other = ("<>", self.true) if op == "!=" else ("=", self.false)
            found = self.dialect.json_kind(column, path)
            return (
                f"(CASE WHEN coalesce({found}, 'null') = 'null' THEN NULL "
                f"ELSE coalesce({typed} {sql} {placeholder}, {other}) END)"
            )
        return f"({typed} {op} {placeholder})"

    def _number(self, value: Any) -> Any:
        if self.dialect.name == "postgres" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return Decimal(repr(value))
        return int(value) if isinstance(value, bool) and self.dialect.name == "sqlite" else value

    def sort_key(self, order: Order) -> tuple[str, bool]:
        """Expression of a sort key and whether it can be null."""
        column = self.schema.column(order.column)
        expression = self.column(column.name)
        if order.path:
            return f"coalesce(({self.dialect.json_typed(expression, order.path, 'number')}), 0)", False
        return expression, column.nullable

    def order_by(self, orders: Sequence[Order]) -> str:
        """The ORDER BY list."""
        parts = []
        for order in orders:
            expression, nullable = self.sort_key(order)
            parts.append(self.dialect.order(expression, order.descending, nullable))
        return ", ".join(parts)

    def after(self, orders: Sequence[Order], values: Sequence[Any], params: Params) -> str:
        """The rows behind a cursor: strictly greater than ``values`` (driver form) in ``orders``."""
        keys = [self.sort_key(order) for order in orders]
        kinds = ["number" if o.path else self.schema.column(o.column).kind for o in orders]
        descending = {o.descending for o in orders}
        if len(descending) == 1 and not any(nullable for _, nullable in keys):
            left = ", ".join(expression for expression, _ in keys)
            right = ", ".join(params.add(v, k) for v, k in zip(values, kinds, strict=True))
            return f"(({left}) {'<' if descending.pop() else '>'} ({right}))"
        options: list[str] = []
        equal: list[str] = []
        for (expression, nullable), order, value, kind in zip(keys, orders, values, kinds, strict=True):
            if value is None:
                beyond = self.false if order.descending else f"{expression} IS NOT NULL"
                same = f"{expression} IS NULL"
            else:
                placeholder = params.add(value, kind)
                beyond = f"{expression} {'<' if order.descending else '>'} {placeholder}"
                if order.descending and nullable:
                    beyond = f"({beyond} OR {expression} IS NULL)"
                same = f"{expression} = {placeholder}"
            options.append("(" + " AND ".join([*equal, beyond]) + ")")
            equal.append(same)
        return "(" + " OR ".join(options) + ")"


def prefix_end(prefix: str) -> str | None:
    """The least text greater than every text with ``prefix``; ``None`` when there is none."""
    points = [ord(c) for c in prefix]
    while points:
        points[-1] += 1
        if points[-1] == 0xD800:
            points[-1] = 0xE000
        if points[-1] <= 0x10FFFF:
            return "".join(map(chr, points))
        points.pop()
    return None


def _json_scalar(value: Any) -> tuple[str, Any]:
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "boolean", value
    return ("string", value) if isinstance(value, str) else ("number", value)


def _json_param(kind: str) -> str:
    return {"number": "number", "string": "text", "boolean": "boolean"}[kind]
