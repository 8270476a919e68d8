"""Callers' rows, keys, criteria and patches brought into the form that an engine stores, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from .check import Checker, checker
from .criteria import And, Compare, Criteria, Where, excludes_nothing, resolve
from .engines.base import Engine
from .errors import EmptyCriteria, InvalidInput, InvalidKey, InvalidValue, UnfilteredDelete
from .ids import new_id
from .migrations import Migration
from .rows import RowType
from .schema import Schema
from .values import MISSING

R = TypeVar("R")


class Prepared(Generic[R]):
    """What a table knows of its rows."""

    def __init__(
        self,
        engine: Engine,
        schema: Schema,
        rows: RowType,
        physical: str,
        mapping_column: str | None,
        migrations: tuple[Migration, ...] = (),
    ) -> None:
        self._engine = engine
        self._schema = schema
        self._rows = rows
        self._ops = engine.table(schema, physical, migrations)
        self._mapping_column = mapping_column
        self._fixed: dict[str, Any] = {}
        limited = {n for index in (schema.key, *schema.unique) for n in index}
        self._checkers: list[tuple[str, Checker]] = [
            (c.name, checker(c, key=c.name in limited)) for c in schema.columns
        ]
        self._by_name = dict(self._checkers)
        self._read: Callable[[Sequence[Any]], dict[str, Any]] = self._ops.reader(schema.names)
        self._read_key: Callable[[Sequence[Any]], dict[str, Any]] = self._ops.reader(schema.key)

    @property
    def _generates(self) -> bool:
        """Whether the key is a generated integer."""
        return self._schema.auto is not None and self._schema.auto.kind == "integer"

    def _stored(self, row: Any, where: str = "row") -> list[Any]:
        """The row's values in declared order, checked; ``MISSING`` for a key that is to be generated."""
        try:
            found = {**self._rows.to_dict({**row, **self._fixed} if isinstance(row, dict) else row), **self._fixed}
            values = []
            for column, (name, check) in zip(self._schema.columns, self._checkers, strict=True):
                value = found.pop(name, MISSING)
                if value is MISSING and not column.auto:
                    value = column.default if column.default is not MISSING else None
                    if value is None and not column.nullable:
                        raise InvalidValue(f"column {name!r} is required ({column.describe()})")
                if column.auto and (value is None or value is MISSING or self._schema.client_keys == "never"):
                    if self._schema.client_keys == "always":
                        raise InvalidInput(f"column {name!r}: a key is required (client_keys='always')")
                    value = self._generated(column.kind)
                elif value is not None:
                    value = check(value)
                elif not column.nullable:
                    raise InvalidValue(f"column {name!r} must not be null ({column.describe()})")
                values.append(value)
            if found:
                unknown = ", ".join(repr(n) for n in found)
                raise InvalidValue(f"no column {unknown}; the table has {', '.join(self._schema.names)}")
        except InvalidInput as error:
            raise type(error)(f"{self._schema.name}: {where}: {error}") from error.__cause__
        return values

    def _generated(self, kind: str) -> Any:
        if kind == "integer":
            return MISSING
        made = new_id(self._engine.ids, self._engine.now())
        return made if kind == "uuid" else str(made)

    def key_of(self, key: Any) -> tuple[Any, ...]:
        """A key argument (value, tuple in declared order, mapping or row) as a checked tuple."""
        names = self._schema.key
        if self._fixed:
            key = self._whole_key(key)
        if isinstance(key, Mapping):
            missing = [n for n in names if n not in key]
            if missing:
                raise InvalidKey(f"{self._schema.name}: the key lacks {', '.join(missing)}")
            values = tuple(key[n] for n in names)
        elif isinstance(key, tuple):
            values = key
        elif len(names) > 1 or (hasattr(key, names[0]) and not isinstance(key, (str, bytes, int, float))):
            try:
                values = tuple(getattr(key, n) for n in names)
            except AttributeError:
                raise InvalidKey(
                    f"{self._schema.name}: the key is ({', '.join(names)}), got {type(key).__name__}"
                ) from None
        else:
            values = (key,)
        if len(values) != len(names):
            raise InvalidKey(f"{self._schema.name}: the key is ({', '.join(names)}), got {len(values)} values")
        try:
            return tuple(self._by_name[n](v) for n, v in zip(names, values, strict=True))
        except InvalidInput as error:
            raise InvalidKey(f"{self._schema.name}: key: {error}") from error

    def _whole_key(self, key: Any) -> Any:
        """A key argument of a scoped table with the scope's columns filled in."""
        rest = [n for n in self._schema.key if n not in self._fixed]
        if isinstance(key, Mapping):
            return {**key, **self._fixed}
        if isinstance(key, tuple) or len(rest) == 1:
            values = key if isinstance(key, tuple) else (key,)
            if len(values) == len(rest) and not hasattr(values[0], self._schema.key[0]):
                given = dict(zip(rest, values, strict=True))
                return tuple(self._fixed.get(n, given.get(n)) for n in self._schema.key)
        if hasattr(key, rest[0]):
            return tuple(self._fixed.get(n, getattr(key, n, None)) for n in self._schema.key)
        raise InvalidKey(f"{self._schema.name}: the key within this scope is ({', '.join(rest)})")

    def _driver_key(self, key: Any) -> tuple[Any, ...]:
        return tuple(self._ops.encode_value(n, v) for n, v in zip(self._schema.key, self.key_of(key), strict=True))

    def _public_key(self, key: Sequence[Any]) -> Any:
        """A driver key as callers see it: the value, or a tuple."""
        if len(key) == 1:
            return self._read_key(key)[self._schema.key[0]]
        return tuple(self._read_key(key).values())

    def _row(self, driver: Sequence[Any]) -> R:
        found = self._read(driver)
        return found if self._rows.from_dict is None else self._rows.from_dict(found)  # type: ignore[return-value]

    def _criteria(self, where: Where | None) -> Criteria | None:
        found = resolve(where, self._schema, self._mapping_column)
        if not self._fixed:
            return found
        inside = tuple(Compare(n, "=", v) for n, v in self._fixed.items())
        return And(inside if found is None else (*inside, found))

    def _required(self, where: Where | None) -> Criteria:
        given = resolve(where, self._schema, self._mapping_column)
        found = self._criteria(where) if given is not None and not excludes_nothing(given) else given
        if found is None:
            raise EmptyCriteria(f"{self._schema.name}: criteria are required here; to mean every row, use clear()")
        if excludes_nothing(found):
            raise UnfilteredDelete(f"{self._schema.name}: the criteria exclude nothing; to mean every row, use clear()")
        return found

    def _patch(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(patch, Mapping) or not patch:
            raise InvalidInput(f"{self._schema.name}: patch {patch!r:.80}: expected a mapping of columns to new values")
        found: dict[str, Any] = {}
        for name, value in patch.items():
            column = self._schema.column(name)
            if name in self._schema.key:
                raise InvalidInput(f"{self._schema.name}: patch: {name!r} is part of the key and cannot change")
            if name == self._schema.version:
                raise InvalidInput(f"{self._schema.name}: patch: {name!r} is the version, which the store counts")
            if value is None:
                if not column.nullable:
                    raise InvalidValue(f"{self._schema.name}: patch: column {name!r} must not be null")
                found[name] = None
            else:
                found[name] = self._ops.encode_value(name, self._by_name[name](value))
        return found
