"""Applies declared migrations to a SQL table: statements from the recorded shape, one migration a transaction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...check import checker
from ...criteria import Order
from ...errors import InvalidInput, SetupRequired
from ...migrations import (
    AddColumn,
    AddIndex,
    Backfill,
    DropColumn,
    DropIndex,
    Migration,
    MigrationProgress,
    Operation,
    RenameColumn,
)
from ...schema import Schema, from_spec
from ...values import DELETE, MISSING
from ..base import Op, Stmt
from . import ddl
from .dialect import derived_name, quote
from .filling import fill_default
from .table import SqlTable

Spec = dict[str, Any]
Make = Callable[[Schema, str], SqlTable]


class Migrating:
    """The migrations of one table."""

    def __init__(self, table: SqlTable, migrations: tuple[Migration, ...], make: Make) -> None:
        self.table = table
        self.migrations = migrations
        self.make = make
        self.component = next((m.component for m in migrations if m.component), f"table:{table.physical}")
        self.declared = True
        """Whether code declares the table; a shape that was read from somewhere knows nothing of migrations."""
        self.on_progress: Callable[[MigrationProgress], None] | None = None
        self._records = table.dialect.qualify("_howdah_migrations")

    def pending(self) -> Op[list[Migration]]:
        """What has not been applied; ``SetupRequired`` when the database is newer than the code."""
        if not self.declared:
            return []
        p = self.table.dialect.placeholder(1, "text")
        rows = yield Stmt(f"SELECT version FROM {self._records} WHERE component = {p}", (self.component,))
        done = {int(r[0]) for r in rows}
        last = self.migrations[-1].version if self.migrations else 0
        if done and max(done) > last:
            raise SetupRequired(
                f"table {self.table.schema.name!r}: the database is at migration {max(done)}, this code knows {last}:"
                " run the newer code",
                findings=(f"{self.component} is at {max(done)}",),
            )
        return [m for m in self.migrations if m.version not in done]

    def record(self, migration: Migration, statements: list[str]) -> Op[None]:
        """Write down that a migration was applied."""
        p = self.table.dialect.placeholder
        yield Stmt(
            f"INSERT INTO {self._records} (component, version, description, statements)"
            f" VALUES ({p(1, 'text')}, {p(2, '')}, {p(3, 'text')}, {p(4, 'text')})",
            (self.component, migration.version, migration.description, ";\n".join(statements)),
        )

    def apply(self, migration: Migration, spec: Spec) -> Op[Spec]:
        """Apply one migration to a table of this shape; the shape it has then."""
        self._tell(migration, "starting", 0.0)
        statements: list[str] = []
        try:
            for number, operation in enumerate(migration.operations):
                spec = json.loads(json.dumps(spec))

                def tell(part: float, number: int = number) -> None:
                    self._tell(migration, "running", (number + part) / len(migration.operations))

                if isinstance(operation, Backfill):
                    yield from self._backfill(operation, spec, tell)
                else:
                    made = self._statements(operation, spec)
                    for statement in made:
                        yield Stmt(statement)
                    statements += made
                    if isinstance(operation, AddColumn) and operation.default is not MISSING:
                        yield from self._fill(operation, spec)
                tell(1.0)
            yield from self.record(migration, statements)
        except BaseException as error:
            self._tell(migration, "failed", 0.0, error)
            raise
        self._tell(migration, "completed", 1.0)
        return spec

    def _tell(self, migration: Migration, phase: Any, fraction: float, error: BaseException | None = None) -> None:
        if self.on_progress is not None:
            self.on_progress(MigrationProgress(self.component, migration.version, phase, fraction, error))

    # Shape -------------------------------------------------------------------------------------------------------

    def _statements(self, operation: Operation, spec: Spec) -> list[str]:
        """The statements of an operation; ``spec`` is changed to what they make."""
        if isinstance(operation, AddColumn):
            return self._add_column(operation, spec)
        if isinstance(operation, DropColumn):
            return self._drop_column(operation.name, spec)
        if isinstance(operation, RenameColumn):
            return self._rename_column(operation.old, operation.new, spec)
        if isinstance(operation, AddIndex):
            kind = "unique" if operation.unique else "indexes"
            if list(operation.columns) in spec[kind]:
                return []
            for name in operation.columns:
                self._column(name, spec)
            spec[kind].append(list(operation.columns))
            return [ddl.index(self._made(spec), operation.columns, unique=operation.unique)]
        assert isinstance(operation, DropIndex)
        found = [k for k in ("indexes", "unique") if list(operation.columns) in spec[k]]
        if not found:
            raise InvalidInput(f"drop_index({operation.columns!r}): {self.table.schema.name} has no such index")
        return self._drop_index(operation.columns, found[0], spec)

    def _made(self, spec: Spec) -> SqlTable:
        """Operations on a table of this shape."""
        schema = from_spec(self.table.schema.name, spec)
        declared = self.table.schema.by_name
        columns = tuple(
            replace(c, sealed=declared[c.name].sealed) if c.encrypted and c.name in declared else c
            for c in schema.columns
        )
        return self.make(replace(schema, columns=columns), self.table.physical)

    def _column(self, name: str, spec: Spec) -> Spec:
        found = next((c for c in spec["columns"] if c["name"] == name), None)
        if found is None:
            raise InvalidInput(f"migration of {self.table.schema.name}: there is no column {name!r}")
        return dict(found)

    def _add_column(self, operation: AddColumn, spec: Spec) -> list[str]:
        name = operation.column.name
        if any(c["name"] == name for c in spec["columns"]):
            return []
        declared = self.table.schema.by_name.get(name, operation.column)
        if declared.vector is not None:
            raise InvalidInput(f"add_column({name!r}): vector columns are added by declaring them")
        shape = Schema("x", (declared,), (name,)).spec()["columns"][0]
        spec["columns"].append(shape)
        kind = self.table.dialect.column_type(declared)
        return [f"ALTER TABLE {self.table.name} ADD COLUMN {quote(name)} {kind}".rstrip()]

    def _refuse_special(self, what: str, name: str, spec: Spec) -> None:
        if (
            name in spec["key"]
            or name == spec["ttl"]
            or name in spec["text"]
            or self._column(name, spec)["dim"] is not None
        ):
            raise InvalidInput(
                f"{what}({name!r}): it is in the key, the text index, the expiry or a vector index;"
                " copy the rows into a new table instead"
            )

    def _drop_column(self, name: str, spec: Spec) -> list[str]:
        self._column(name, spec)
        self._refuse_special("drop_column", name, spec)
        made = []
        for kind in ("indexes", "unique"):
            for columns in [tuple(c) for c in spec[kind] if name in c]:
                made += self._drop_index(columns, kind, spec)
        spec["columns"] = [c for c in spec["columns"] if c["name"] != name]
        return [*self.table.log.drop(), *made, f"ALTER TABLE {self.table.name} DROP COLUMN {quote(name)}"]

    def _rename_column(self, old: str, new: str, spec: Spec) -> list[str]:
        self._column(old, spec)
        self._refuse_special("rename_column", old, spec)
        if self._column(old, spec).get("encrypted"):
            raise InvalidInput(
                f"rename_column({old!r}): its values are encrypted under its name: add a column, backfill it, and drop this one"
            )
        if any(c["name"] == new for c in spec["columns"]):
            raise InvalidInput(f"rename_column({old!r}, {new!r}): there is a column {new!r} already")
        made: list[str] = []
        again: list[tuple[str, list[str]]] = []
        for kind in ("indexes", "unique"):
            for names in [tuple(c) for c in spec[kind] if old in c]:
                made += self._drop_index(names, kind, spec)
                again.append((kind, [new if c == old else c for c in names]))
        for column in spec["columns"]:
            if column["name"] == old:
                column["name"] = new
        made = [*self.table.log.drop(), *made]
        made.append(f"ALTER TABLE {self.table.name} RENAME COLUMN {quote(old)} TO {quote(new)}")
        for kind, columns in again:
            spec[kind].append(columns)
            made.append(ddl.index(self._made(spec), tuple(columns), unique=kind == "unique"))
        return made

    def _drop_index(self, columns: tuple[str, ...], kind: str, spec: Spec) -> list[str]:
        spec[kind].remove(list(columns))
        name = derived_name(self.table.physical, "uq" if kind == "unique" else "ix", *columns)
        return [f"DROP INDEX IF EXISTS {self.table.dialect.qualify(name)}"]

    # Rows --------------------------------------------------------------------------------------------------------

    def _fill(self, operation: AddColumn, spec: Spec) -> Op[None]:
        yield from fill_default(self._made(spec), operation.column.name, operation.default)

    def _backfill(self, operation: Backfill, spec: Spec, tell: Callable[[float], None]) -> Op[None]:
        table = self._made(spec)
        schema = table.schema
        total = max(1, (yield from table.count(None)))
        orders, seen = [Order(k) for k in schema.key], 0
        after: list[Any] | None = None
        read, checks = table.reader(schema.names), {c.name: checker(c) for c in schema.columns}
        while True:
            rows = yield from table.select(
                None, orders, names=schema.names, limit=operation.batch, after=after, sort_keys=True
            )
            changed, gone = [], []
            for driver in rows:
                key = tuple(driver[i] for i in table.key_places)
                old = read(driver)
                new = operation.fn(read(driver))
                if new is DELETE:
                    gone.append(key)
                elif new is not None:
                    made = self._encoded(table, checks, old, new)
                    if made != self._encoded(table, checks, old, old):
                        changed.append(made)
            if changed:
                yield from table.put(changed)
            if gone:
                yield from table.delete(gone)
            seen += len(rows)
            tell(seen / total)
            if len(rows) < operation.batch:
                return
            after = list(rows[-1][len(schema.names) :])

    def _encoded(self, table: SqlTable, checks: dict[str, Any], old: dict[str, Any], new: Any) -> list[Any]:
        names = table.schema.names
        if (
            not isinstance(new, dict)
            or set(new) - set(names)
            or any(new.get(k, old[k]) != old[k] for k in table.schema.key)
        ):
            raise InvalidInput(
                f"backfill of {table.schema.name}: expected a row with the same key and columns of {', '.join(names)},"
                f" None or howdah.DELETE, got {new!r:.80}"
            )
        merged = {**old, **new}
        return table.encode([None if merged[n] is None else checks[n](merged[n]) for n in names])
