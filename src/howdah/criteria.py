"""Criteria: which rows, written as expressions over columns or as a mapping, checked against a schema, free of I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Union

from .check import check_decimal, check_real, checker
from .errors import EmptyCriteria, InvalidFilter, InvalidInput, InvalidValue
from .schema import UNSORTABLE, Column, Schema
from .values import INT_MAX, INT_MIN, MISSING, NULL, check_text

Path = tuple[str | int, ...]
OPERATORS: Final = ("=", "!=", "<", "<=", ">", ">=", "in", "not in")


class _Combine:
    __slots__ = ()

    def __and__(self, other: Criteria) -> And:
        return And((_expect(self), _expect(other)))

    def __or__(self, other: Criteria) -> Or:
        return Or((_expect(self), _expect(other)))

    def __invert__(self) -> Not:
        return Not(_expect(self))

    def __bool__(self) -> bool:
        raise InvalidFilter("criteria have no truth value: combine them with & | ~, not with and, or, not")


@dataclass(frozen=True, slots=True)
class Compare(_Combine):
    """``column <op> value``; inside JSON when ``path`` is not empty."""

    column: str
    op: str
    value: Any
    path: Path = ()


@dataclass(frozen=True, slots=True)
class In(_Combine):
    """``column in values`` or not in; ``has_null`` when the list held ``None``."""

    column: str
    values: tuple[Any, ...]
    negated: bool = False
    has_null: bool = False
    path: Path = ()


@dataclass(frozen=True, slots=True)
class Null(_Combine):
    """Null (or, inside JSON, absent). ``only`` narrows it to JSON null or to absent."""

    column: str
    negated: bool = False
    path: Path = ()
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Like(_Combine):
    """``%`` any text, ``_`` one character, ``\\`` escapes; ``fold`` by Unicode simple case folding."""

    column: str
    pattern: str
    fold: bool = False
    path: Path = ()


@dataclass(frozen=True, slots=True)
class Prefix(_Combine):
    """Text that starts with ``prefix``, literally."""

    column: str
    prefix: str
    path: Path = ()


@dataclass(frozen=True, slots=True)
class Contains(_Combine):
    """Text that contains ``value``, or a JSON list with ``value`` as an element."""

    column: str
    value: Any
    path: Path = ()


@dataclass(frozen=True, slots=True)
class And(_Combine):
    """All of ``parts``."""

    parts: tuple[Criteria, ...]


@dataclass(frozen=True, slots=True)
class Or(_Combine):
    """Any of ``parts``."""

    parts: tuple[Criteria, ...]


@dataclass(frozen=True, slots=True)
class Not(_Combine):
    """Not ``part``; unknown (null) stays unknown, as in SQL."""

    part: Criteria


@dataclass(frozen=True, slots=True)
class Constant(_Combine):
    """True or false for every row."""

    value: bool


Criteria = Union[Compare, In, Null, Like, Prefix, Contains, And, Or, Not, Constant]
Where = Union[Criteria, Mapping[str, Any]]
_NODES: Final = (Compare, In, Null, Like, Prefix, Contains, And, Or, Not, Constant)


def _expect(part: object) -> Criteria:
    if not isinstance(part, _NODES):
        raise InvalidFilter(f"{part!r:.80} is not a criterion; compare a column first, e.g. t.c.age >= 18")
    return part


@dataclass(frozen=True, slots=True)
class Order:
    """One sort key. Inside JSON (``path``) it is the number there, absent or no number counting as 0."""

    column: str
    descending: bool = False
    path: Path = ()


class ColumnRef:
    """A column in an expression: compare it, index into JSON with ``[…]``, or ask it for an order."""

    __slots__ = ("_name", "_path")

    def __init__(self, name: str, path: Path = ()) -> None:
        self._name = name
        self._path = path

    def __getitem__(self, part: str | int) -> ColumnRef:
        if isinstance(part, bool) or not isinstance(part, (str, int)) or (isinstance(part, int) and part < 0):
            raise InvalidFilter(f"JSON path part {part!r}: expected a key or a position >= 0")
        return ColumnRef(self._name, (*self._path, part))

    def _compare(self, op: str, value: Any) -> Criteria:
        return condition(self._name, op, value, self._path)

    def __eq__(self, value: object) -> Criteria:  # type: ignore[override]  # a criterion, not a bool
        return self._compare("=", value)

    def __ne__(self, value: object) -> Criteria:  # type: ignore[override]  # a criterion, not a bool
        return self._compare("!=", value)

    __hash__ = None  # type: ignore[assignment]  # == makes a criterion

    def __lt__(self, value: Any) -> Criteria:
        return self._compare("<", value)

    def __le__(self, value: Any) -> Criteria:
        return self._compare("<=", value)

    def __gt__(self, value: Any) -> Criteria:
        return self._compare(">", value)

    def __ge__(self, value: Any) -> Criteria:
        return self._compare(">=", value)

    def in_(self, values: Iterable[Any]) -> Criteria:
        """Equal to one of ``values``; an empty list matches nothing."""
        return self._compare("in", values)

    def not_in(self, values: Iterable[Any]) -> Criteria:
        """Equal to none of ``values``; a null never matches a list that is not empty."""
        return self._compare("not in", values)

    def between(self, low: Any, high: Any) -> Criteria:
        """``low <= column <= high``."""
        return And((self._compare(">=", low), self._compare("<=", high)))

    def is_null(self) -> Criteria:
        """Null; inside JSON also absent."""
        return Null(self._name, path=self._path)

    def is_not_null(self) -> Criteria:
        """Neither null nor absent."""
        return Null(self._name, negated=True, path=self._path)

    def like(self, pattern: str) -> Criteria:
        """SQL pattern, case-sensitive."""
        return Like(self._name, _pattern(pattern), path=self._path)

    def ilike(self, pattern: str) -> Criteria:
        """SQL pattern, by Unicode simple case folding."""
        return Like(self._name, _pattern(pattern), fold=True, path=self._path)

    def startswith(self, prefix: str) -> Criteria:
        """Literal prefix."""
        if not isinstance(prefix, str):
            raise InvalidFilter(f"startswith({prefix!r}): expected text")
        return Prefix(self._name, check_text(prefix, "prefix"), self._path)

    def contains(self, value: Any) -> Criteria:
        """Literal substring of text, or element of a JSON list."""
        return Contains(self._name, value, self._path)

    def asc(self) -> Order:
        """Ascending sort key, nulls first."""
        return Order(self._name, False, self._path)

    def desc(self) -> Order:
        """Descending sort key, nulls last."""
        return Order(self._name, True, self._path)

    def __repr__(self) -> str:
        return f"c.{self._name}" + "".join(f"[{p!r}]" for p in self._path)


class Columns:
    """``t.c``: the columns of a table, as attributes or by ``["name"]``."""

    __slots__ = ("_schema",)

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def __getattr__(self, name: str) -> ColumnRef:
        if name.startswith("__"):
            raise AttributeError(name)
        return ColumnRef(self._schema.column(name).name)

    __getitem__ = __getattr__

    def __dir__(self) -> list[str]:
        return list(self._schema.names)


def _pattern(pattern: object) -> str:
    if not isinstance(pattern, str):
        raise InvalidFilter(f"pattern {pattern!r}: expected text")
    body = pattern.replace("\\\\", "")
    if body.endswith("\\"):
        raise InvalidFilter(f"pattern {pattern!r} ends with the escape character; write \\\\ for a backslash")
    return check_text(pattern, "pattern")


def condition(column: str, op: object, value: Any, path: Path = ()) -> Criteria:
    """The criterion ``column op value``; nulls and lists in their own node."""
    if op not in OPERATORS:
        raise InvalidFilter(f"operator {op!r} on {column!r}: expected one of {' '.join(OPERATORS)}")
    if op in ("in", "not in"):
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise InvalidFilter(f"{column!r} {op} needs a list, got {type(value).__name__}")
        values = tuple(value)
        given = tuple(v for v in values if v is not None)
        return In(column, given, op == "not in", len(given) < len(values), path)
    if value is None or value is NULL or value is MISSING:
        if op not in ("=", "!="):
            raise InvalidFilter(f"{column!r} {op} None: only = and != compare with null")
        only = ("null" if value is NULL else "missing" if value is MISSING else None) if path else None
        return Null(column, op == "!=", path, only)
    return Compare(column, str(op), value, path)


def from_mapping(where: Mapping[str, Any], json_column: str | None = None) -> Criteria:
    """``{"a": 1, "n": ("<", 9)}``, ANDed. With ``json_column`` the names are its top-level fields."""
    if not where:
        raise EmptyCriteria("empty criteria {}: leave them out to mean every row")
    parts: list[Criteria] = []
    for name, value in where.items():
        if not isinstance(name, str):
            raise InvalidFilter(f"criteria: {name!r} is not a name")
        op: object = "="
        if isinstance(value, tuple):
            if len(value) != 2:
                raise InvalidFilter(f"{name!r}: expected a value or (operator, value), got {value!r:.80}")
            op, value = value
        if json_column is None:
            parts.append(condition(name, op, value))
            continue
        if "." in name:
            raise InvalidFilter(f"{name!r}: a mapping names top-level fields; for a path use c.{json_column}[…]")
        if isinstance(value, (dict, list)) and op not in ("in", "not in"):
            raise InvalidFilter(f"{name!r}: expected a scalar or (operator, value), got {type(value).__name__}")
        parts.append(condition(json_column, op, value, (name,)))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def resolve(where: Where | None, schema: Schema, json_column: str | None = None) -> Criteria | None:
    """Checked criteria of ``where``: columns exist, values fit. ``None`` stays ``None``."""
    if where is None:
        return None
    if isinstance(where, Mapping):
        return check(from_mapping(where, json_column), schema)
    return check(_expect(where), schema)


def excludes_nothing(where: Criteria) -> bool:
    """True when the criteria are nothing but empty exclusions."""
    if isinstance(where, In):
        return where.negated and not where.values and not where.has_null
    return isinstance(where, And) and all(map(excludes_nothing, where.parts))


def check(where: Criteria, schema: Schema) -> Criteria:
    """The criteria with every value in its column's stored form; raises what is wrong."""
    if isinstance(where, And):
        return And(tuple(check(p, schema) for p in where.parts))
    if isinstance(where, Or):
        return Or(tuple(check(p, schema) for p in where.parts))
    if isinstance(where, Not):
        return Not(check(where.part, schema))
    if isinstance(where, Constant):
        return where
    column = schema.column(where.column)
    if column.sealed is not None and not (isinstance(where, Null) and not where.path):
        raise InvalidFilter(f"column {column.name!r} is encrypted: it can only be compared with null")
    if where.path and column.kind != "json":
        raise InvalidFilter(f"column {column.name!r} is {column.kind}; only JSON columns have paths")
    for part in where.path:
        if isinstance(part, str):
            check_text(part, f"path into {column.name!r}")
    if isinstance(where, Null):
        return where
    if isinstance(where, (Like, Prefix)):
        if column.kind != "text" and not where.path:
            raise InvalidFilter(f"column {column.name!r} is {column.kind}; patterns work on text")
        return where
    if isinstance(where, Contains):
        return _check_contains(where, column)
    if where.path:
        values = where.values if isinstance(where, In) else (where.value,)
        for value in values:
            _check_scalar(value, f"{column.name!r}{list(where.path)}")
            if isinstance(value, bool) and isinstance(where, Compare) and where.op not in ("=", "!="):
                raise InvalidFilter(f"{column.name!r}{list(where.path)}: {where.op} does not order booleans")
        return where
    if column.kind in UNSORTABLE and not (column.kind == "bytes" and isinstance(where, (In, Compare))):
        raise InvalidFilter(
            f"column {column.name!r} is {column.describe()} and cannot be compared; use a path or search"
        )
    if isinstance(where, In):
        found = [_fit(column, "=", value) for value in where.values]
        return In(
            column.name, tuple(f.value for f in found if isinstance(f, Compare)), where.negated or False, where.has_null
        )
    return _fit(column, where.op, where.value)


def _check_contains(where: Contains, column: Column) -> Contains:
    if column.kind == "text" or isinstance(where.value, str):
        if not isinstance(where.value, str):
            raise InvalidFilter(f"{column.name!r}.contains({where.value!r:.60}): expected text")
        check_text(where.value, "contains")
    if column.kind not in ("text", "json"):
        raise InvalidFilter(f"column {column.name!r} is {column.kind}; contains works on text and JSON lists")
    if column.kind == "json" and where.value is not None:
        _check_scalar(where.value, f"{column.name!r}.contains")
    return where


def _check_scalar(value: Any, where: str) -> None:
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidValue(f"{where}: integer {value} is beyond 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValue(f"{where}: {value} is not a finite number")
    else:
        raise InvalidFilter(f"{where}: expected text, a number, a boolean or None, got {type(value).__name__}")


def _fit(column: Column, op: str, value: Any) -> Criteria:
    """``column op value`` with the value as stored; a fraction against integers becomes the whole-number bound."""
    if isinstance(value, ColumnRef):
        raise InvalidFilter(f"{column.name!r} {op} {value!r}: a column is compared with a value, not with a column")
    if column.kind == "integer" and isinstance(value, float):
        check_real(value, f"column {column.name!r}")
        whole = math.floor(value)
        if whole == value and INT_MIN <= whole <= INT_MAX:
            return Compare(column.name, op, whole)
        if op in ("=", "!="):
            return _never_null(column.name, op == "!=")
        bound = min(max(whole, INT_MIN - 1), INT_MAX)
        if op in ("<", "<="):
            return _never_null(column.name, False) if bound < INT_MIN else Compare(column.name, "<=", bound)
        return _never_null(column.name, False) if bound == INT_MAX else Compare(column.name, ">=", bound + 1)
    if column.kind == "decimal" and isinstance(value, float):
        value = check_decimal(Decimal(value), f"column {column.name!r}")
    return Compare(column.name, op, checker(column)(value))


def _never_null(column: str, value: bool) -> Criteria:
    """``value`` for rows where the column is not null, unknown for the others."""
    return (
        Or((Compare(column, "=", 0), Compare(column, "!=", 0)))
        if value
        else And((Compare(column, "=", 0), Compare(column, "!=", 0)))
    )


def resolve_order(order_by: Any, schema: Schema, json_column: str | None = None) -> tuple[Order, ...]:
    """Sort keys of ``order_by`` (name, ``-name``, ``col.asc()``, or a list), then the key columns it lacks."""
    given = [] if order_by is None else list(order_by) if isinstance(order_by, (list, tuple)) else [order_by]
    orders: list[Order] = []
    for item in given:
        if isinstance(item, ColumnRef):
            item = item.asc()
        if isinstance(item, str):
            item = Order(item.removeprefix("-"), item.startswith("-"))
            head, dot, rest = item.column.partition(".")
            if dot and head == json_column:
                item = Order(head, item.descending, tuple(rest.split(".")))
        if not isinstance(item, Order):
            raise InvalidInput(f"order_by: {item!r:.80}: expected a column name, -name, col.asc() or col.desc()")
        column = schema.column(item.column)
        if column.kind in UNSORTABLE and not (item.path and column.kind == "json"):
            raise InvalidInput(f"order_by: column {column.name!r} is {column.describe()} and has no order")
        if (item.column, item.path) not in {(o.column, o.path) for o in orders}:
            orders.append(item)
    named = {o.column for o in orders if not o.path}
    orders.extend(Order(name) for name in schema.key if name not in named)
    return tuple(orders)
