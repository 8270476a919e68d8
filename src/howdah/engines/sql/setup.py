"""Bookkeeping in the database: which tables there are, in which shape, and the numbered changes that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...criteria import Order
from ...errors import SetupRequired
from ...values import MISSING
from ..base import Op, Stmt
from . import ddl
from .compile import SqlDialect
from .dialect import SqliteDialect, quote, text_literal
from .filling import fill_default
from .table import BATCH, DOC, SqlTable, version_column


def system_ddl(dialect: SqlDialect) -> list[str]:
    """Statements that create the bookkeeping tables."""
    if isinstance(dialect, SqliteDialect):
        return [
            "CREATE TABLE IF NOT EXISTS _howdah_tables (name TEXT PRIMARY KEY, version INTEGER NOT NULL, spec TEXT NOT NULL)",
            "CREATE TABLE IF NOT EXISTS _howdah_migrations (component TEXT, version INTEGER, description TEXT NOT NULL,"
            " statements TEXT NOT NULL, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (component, version))",
            "CREATE TABLE IF NOT EXISTS _howdah_counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
            "CREATE TABLE IF NOT EXISTS _howdah_segments (file TEXT PRIMARY KEY, name TEXT NOT NULL, low INTEGER NOT NULL,"
            " high INTEGER NOT NULL, size INTEGER NOT NULL)",
            "CREATE TABLE IF NOT EXISTS _howdah_watches (name TEXT PRIMARY KEY, generation TEXT NOT NULL, columns TEXT NOT NULL,"
            " seen REAL NOT NULL, pruned REAL NOT NULL)",
        ]
    q = dialect.qualify
    return [
        f"CREATE SCHEMA IF NOT EXISTS {quote(dialect.schema)}",
        f"CREATE TABLE IF NOT EXISTS {q('_howdah_tables')} (name text PRIMARY KEY, version integer NOT NULL, spec text NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {q('_howdah_migrations')} (component text, version integer, description text NOT NULL,"
        " statements text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (component, version))",
        f"CREATE TABLE IF NOT EXISTS {q('_howdah_watches')} (name text PRIMARY KEY, generation text NOT NULL, columns text NOT NULL,"
        " seen float8 NOT NULL, pruned float8 NOT NULL)",
    ]


class Setup:
    """Brings the database into the shape that the code declares, once, under a lock."""

    def __init__(self, dialect: SqlDialect, *, create: bool) -> None:
        self.dialect = dialect
        self.create = create
        q = dialect.qualify
        self.tables, self.migrations = q("_howdah_tables"), q("_howdah_migrations")

    def ready(self, table: SqlTable) -> Op[bool]:
        """Whether the table is there as declared, without a change log that nobody reads."""
        if not (yield from self._covers(table)):
            return False
        if table.migrating.migrations and (yield from table.migrating.pending()):
            return False
        return not self.create or not (yield from table.log.abandoned())

    def _covers(self, table: SqlTable) -> Op[bool]:
        p = self.dialect.placeholder(1, "text")
        rows = yield Stmt(f"SELECT spec FROM {self.tables} WHERE name = {p}", (table.physical,))
        return bool(rows) and ddl.covers(json.loads(rows[0][0]), table.schema.spec())

    def plan(self, table: SqlTable) -> Op[tuple[ddl.Plan, dict[str, Any] | None, int]]:
        """What is to be done for a table, its recorded specification and version."""
        p = self.dialect.placeholder(1, "text")
        rows = yield Stmt(f"SELECT spec, version FROM {self.tables} WHERE name = {p}", (table.physical,))
        wanted = table.schema.spec()
        if not rows:
            return ddl.Plan(ddl.create(table)), None, 0
        stored = json.loads(rows[0][0])
        if ddl.covers(stored, wanted):
            return ddl.Plan(), stored, int(rows[0][1])
        return ddl.grow(table, stored, wanted), stored, int(rows[0][1])

    def ensure(self, table: SqlTable) -> Op[None]:
        """Create or grow a table; the caller holds the set-up lock and a transaction."""
        if (yield from self._migrated(table)):
            return
        plan, stored, version = yield from self.plan(table)
        wanted = table.schema.spec()
        if stored is not None and ddl.covers(stored, wanted):
            if (yield from table.log.abandoned()):
                for statement in table.log.drop():
                    yield Stmt(statement)
            return
        if not self.create:
            what = plan.statements or ["its recorded declaration"]
            raise SetupRequired(
                f"table {table.schema.name!r} is {'missing' if stored is None else 'older than its declaration'} and"
                " create=False: run `howdah migrate`, or apply what `howdah migrate --sql` prints",
                findings=tuple(what),
            )
        if plan.backfill:  # whoever watches begins anew, on a log that has the new columns
            for statement in table.log.drop():
                yield Stmt(statement)
        for statement in plan.statements:
            yield Stmt(statement)
        for column, default in plan.backfill:
            if default is not MISSING and default is not None:
                yield from fill_default(table, column.name, default)
        if plan.fill_text or plan.backfill:
            yield from _refill(table, fill_text=plan.fill_text)
        yield from self._record(table, stored, wanted, version + 1, plan.statements)
        if stored is None:
            for migration in (yield from table.migrating.pending()):
                yield from table.migrating.record(migration, [])

    def _migrated(self, table: SqlTable) -> Op[bool]:
        """Apply the next declared migration, if there is one and the table is not new; whether there was."""
        p = self.dialect.placeholder
        rows = yield Stmt(f"SELECT spec FROM {self.tables} WHERE name = {p(1, 'text')}", (table.physical,))
        waiting = (yield from table.migrating.pending()) if rows else []
        if not waiting:
            return False
        if not self.create:
            names = tuple(f"{table.migrating.component} {m.version} {m.description}".rstrip() for m in waiting)
            raise SetupRequired(
                f"table {table.schema.name!r} waits for migrations and create=False: {names}", findings=names
            )
        spec = yield from table.migrating.apply(waiting[0], json.loads(rows[0][0]))
        text = json.dumps(spec, sort_keys=True)
        yield Stmt(
            f"UPDATE {self.tables} SET spec = {p(1, 'text')}, version = version + 1 WHERE name = {p(2, 'text')}",
            (text, table.physical),
        )
        return True

    def _record(
        self,
        table: SqlTable,
        stored: dict[str, Any] | None,
        wanted: dict[str, Any],
        version: int,
        statements: list[str],
    ) -> Op[None]:
        p = self.dialect.placeholder
        spec = json.dumps(wanted if stored is None else ddl.merged(stored, wanted), sort_keys=True)
        yield Stmt(
            f"INSERT INTO {self.tables} (name, version, spec) VALUES ({p(1, 'text')}, {p(2, '')}, {p(3, 'text')})"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version, spec = excluded.spec",
            (table.physical, version, spec),
        )
        yield Stmt(
            f"INSERT INTO {self.migrations} (component, version, description, statements)"
            f" VALUES ({p(1, 'text')}, {p(2, '')}, {p(3, 'text')}, {p(4, 'text')})",
            (f"shape:{table.physical}", version, "create" if stored is None else "grow", ";\n".join(statements)),
        )

    def script(self, tables: Sequence[SqlTable]) -> Op[list[str]]:
        """The statements that would create or grow the tables, ready for a SQL prompt."""
        if self.dialect.name == "sqlite":
            there = yield Stmt("SELECT 1 FROM sqlite_master WHERE name = '_howdah_migrations'")
        else:
            there = yield Stmt("SELECT 1 WHERE to_regclass($1) IS NOT NULL", (self.migrations,))
        lines = [] if there else system_ddl(self.dialect)
        if self.dialect.name == "postgres":
            has = yield Stmt("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
            if not has and any(t.schema.vectors or t.schema.sparse_vectors for t in tables):
                lines.append("CREATE EXTENSION IF NOT EXISTS vector")
        for table in tables:
            plan, stored, version = ddl.Plan(ddl.create(table)), None, 0
            if there:
                plan, stored, version = yield from self.plan(table)
            if not plan:
                continue
            wanted = table.schema.spec()
            spec = json.dumps(wanted if stored is None else ddl.merged(stored, wanted), sort_keys=True)
            lines += plan.statements
            lines.append(
                f"INSERT INTO {self.tables} (name, version, spec)"
                f" VALUES ({text_literal(table.physical)}, {version + 1}, {text_literal(spec)})"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version, spec = excluded.spec"
            )
            if stored is None:  # a table that is made anew has no past
                component = text_literal(table.migrating.component)
                lines += [
                    f"INSERT INTO {self.migrations} (component, version, description, statements)"
                    f" VALUES ({component}, {m.version}, {text_literal(m.description)}, '')"
                    for m in table.migrating.migrations
                ]
        return lines

    def forget(self, table: SqlTable) -> Op[None]:
        """Drop the table and its records."""
        p = self.dialect.placeholder(1, "text")
        for statement in (*table.log.drop(), *ddl.drop(table)):
            yield Stmt(statement)
        yield Stmt(f"DELETE FROM {self.tables} WHERE name = {p}", (table.physical,))
        for component in (f"shape:{table.physical}", table.migrating.component):
            yield Stmt(f"DELETE FROM {self.migrations} WHERE component = {p}", (component,))

    def catalog(self) -> Op[dict[str, dict[str, Any]]]:
        """The specifications of the tables there are, by physical name."""
        return {name: json.loads(spec) for name, spec in (yield Stmt(f"SELECT name, spec FROM {self.tables}"))}


def _refill(table: SqlTable, *, fill_text: bool) -> Op[None]:
    """Give existing rows their hidden numbers and postings, in key order and in batches."""
    wanted = [*((DOC,) if fill_text else ()), *(version_column(c.name) for c in table.versioned)]
    if not wanted:
        return
    schema = table.schema
    after: list[Any] | None = None
    orders = [Order(k) for k in schema.key]
    p = table.dialect.placeholder
    while True:
        rows = yield from table.select(None, orders, names=schema.names, limit=BATCH, after=after)
        if not rows:
            return
        keys = [tuple(r[i] for i in table.key_places) for r in rows]
        after = list(keys[-1])
        if fill_text:
            assert table.text is not None
            numbers = yield from table.numbers.allocate(len(rows) + 2)
            yield from table.text.change(
                [], [(n, table._texts(r)) for n, r in zip(numbers, rows, strict=False)], numbers[-2:]
            )
            yield from _set_hidden(table, DOC, keys, numbers, p)
        for column in table.versioned:
            place = schema.names.index(column.name)
            filled = [k for k, r in zip(keys, rows, strict=True) if r[place] is not None]
            if filled:
                numbers = yield from table.numbers.allocate(len(filled))
                yield from _set_hidden(table, version_column(column.name), filled, numbers, p)
        if len(rows) < BATCH:
            return


def _set_hidden(table: SqlTable, name: str, keys: list[tuple[Any, ...]], numbers: list[int], p: Any) -> Op[None]:
    kinds = [table.schema.by_name[k].kind for k in table.schema.key]
    same = " AND ".join(
        f"{quote(k)} = {p(i, d)}" for i, (k, d) in enumerate(zip(table.schema.key, kinds, strict=True), 2)
    )
    sql = f"UPDATE {table.name} SET {quote(name)} = {p(1, 'integer')} WHERE {same}"
    yield Stmt(sql, [(n, *k) for n, k in zip(numbers, keys, strict=False)], many=True)
