"""A table's change log: filled by triggers while somebody watches, read by position, in commit order for each key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from ...criteria import Criteria
from ..base import Op, Stmt
from .dialect import Params, derived_name, quote, text_literal
from .readable import ReadableTable

DAY = 86400
SLACK = 3600
"""A transaction may commit this long after it wrote; older entries stay that much longer."""
CHANNEL = "howdah"
CLOSE = 60
"""Clocks this many seconds apart are the same clock."""
Position = list[Any]


class Entry(NamedTuple):
    """One logged change: rows in driver form, the moment in seconds since 1970, the position behind it, whose last
    element is that moment by the database's clock."""

    type: str
    at: float
    old: Sequence[Any] | None
    new: Sequence[Any] | None
    position: Position


class Window(NamedTuple):
    """Some entries after a position, the position to go on from, and whether more wait there."""

    entries: list[Entry]
    position: Position
    more: bool


class ChangeLog:
    """The log of one table. Writers pay for it only while it has been watched within a day."""

    def __init__(self, table: ReadableTable) -> None:
        self.table = table
        self.dialect = table.dialect
        self.physical = derived_name(table.physical, "log")
        self.name = self.dialect.qualify(self.physical)
        self.watches = self.dialect.qualify("_howdah_watches")
        self._postgres = self.dialect.name == "postgres"
        self._own = text_literal(table.physical)
        fresh = f"extract(epoch FROM now()) - {DAY}" if self._postgres else f"unixepoch() - {DAY}"
        self._alive = f"(SELECT seen FROM {self.watches} WHERE name = {self._own}) > {fresh}"

    # Watching ----------------------------------------------------------------------------------------------------

    def open(self) -> Op[str]:
        """Make sure that changes are logged; the log's generation, which is new whenever entries may be missing."""
        found = yield from self.generation()
        if found is None and self._postgres:
            yield Stmt("SELECT pg_advisory_xact_lock(1751, 1)")
            found = yield from self.generation()
        if found is not None:
            recent = f"{self._clock()} - 600"
            yield Stmt(f"UPDATE {self.watches} SET seen = {self._clock()} WHERE name = {self._own} AND seen < {recent}")
            return found
        for statement in (*self.drop(), *self._create()):
            yield Stmt(statement)
        generation = uuid4().hex[:16]
        columns = text_literal(json.dumps(list(self.table.schema.names)))
        yield Stmt(
            f"INSERT INTO {self.watches} (name, generation, columns, seen, pruned)"
            f" VALUES ({self._own}, '{generation}', {columns}, {self._clock()}, 0)"
        )
        return generation

    def generation(self) -> Op[str | None]:
        """The generation of a log that runs and has all columns of this declaration, or ``None``."""
        rows = yield Stmt(
            f"SELECT generation, columns FROM {self.watches} WHERE name = {self._own} AND seen > {self._clock()} - {DAY}"
        )
        if rows and set(self.table.schema.names) <= set(json.loads(rows[0][1])):
            return str(rows[0][0])
        return None

    def _clock(self) -> str:
        return "extract(epoch FROM clock_timestamp())::float8" if self._postgres else "unixepoch('subsec')"

    def keep(self) -> Op[None]:
        """Say that somebody watches, and forget entries that are older than a day."""
        yield Stmt(f"UPDATE {self.watches} SET seen = {self._clock()} WHERE name = {self._own}")
        rows = yield Stmt(f"SELECT max(at) FROM {self.name} WHERE at < {self._clock()} - {DAY + SLACK}")
        if rows[0][0] is not None:
            edge = repr(float(rows[0][0]))
            yield Stmt(f"DELETE FROM {self.name} WHERE at <= {edge}")
            yield Stmt(f"UPDATE {self.watches} SET pruned = {edge} WHERE name = {self._own}")

    def forgotten(self, position: Position) -> Op[bool]:
        """Whether entries behind this position may have been forgotten."""
        rows = yield Stmt(f"SELECT pruned FROM {self.watches} WHERE name = {self._own}")
        edge = float(rows[0][0]) + (SLACK if self._postgres else 0)
        return bool(rows[0][0]) and float(position[-1]) < edge

    def abandoned(self) -> Op[bool]:
        """Whether there is a log that nobody has read for more than a day."""
        stale = f"seen <= {self._clock()} - {DAY + SLACK}"
        return bool((yield Stmt(f"SELECT 1 FROM {self.watches} WHERE name = {self._own} AND {stale}")))

    # The log's table and triggers --------------------------------------------------------------------------------

    def _field(self, side: str, column: str) -> str:
        name = f"{side}_{column}"
        return quote(name if len(name) <= 63 else f"{side}_{hashlib.sha256(column.encode()).hexdigest()[:20]}")

    def _fields(self, side: str) -> str:
        return ", ".join(self._field(side, c) for c in self.table.schema.names)

    def _create(self) -> list[str]:
        types = [(c.name, self.dialect.column_type(c)) for c in self.table.schema.columns]
        fields = ", ".join(f"{self._field(side, n)} {t}".rstrip() for side in "on" for n, t in types)
        return self._create_postgres(fields) if self._postgres else self._create_sqlite(fields)

    def _insert(self, kind: str, sides: str) -> str:
        rows = {"o": "OLD", "n": "NEW"}
        names = ", ".join(self._fields(s) for s in sides)
        values = ", ".join(f"{rows[s]}.{quote(c)}" for s in sides for c in self.table.schema.names)
        return f"INSERT INTO {self.name} (type, at, {names}) VALUES ('{kind}', {self._clock()}, {values})"

    def _create_sqlite(self, fields: str) -> list[str]:
        names = self.table.schema.names
        changed = " OR ".join(f"NEW.{quote(c)} IS NOT OLD.{quote(c)}" for c in names)
        made = [
            f"CREATE TABLE {self.name} (seq INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, at REAL NOT NULL, {fields})"
        ]
        for kind, sides, when in (("INSERT", "n", ""), ("UPDATE", "on", f"({changed}) AND "), ("DELETE", "o", "")):
            made.append(
                f"CREATE TRIGGER {quote(f'{self.physical}_{kind[0].lower()}')} AFTER {kind} ON {self.table.name}"
                f" WHEN {when}{self._alive} BEGIN {self._insert(kind, sides)}; END"
            )
        return made

    def _create_postgres(self, fields: str) -> list[str]:
        changed = []
        for column in self.table.schema.columns:
            cast = "::text" if column.vector is not None else ""  # pgvector's operators may be out of sight
            changed.append(f"NEW.{quote(column.name)}{cast} IS DISTINCT FROM OLD.{quote(column.name)}{cast}")
        function = self.dialect.qualify(f"{self.physical}_fn")
        tell = self.dialect.qualify(f"{self.physical}_tell")
        return [
            f"CREATE TABLE {self.name} (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            f" xid xid8 NOT NULL DEFAULT pg_current_xact_id(), type text NOT NULL, at float8 NOT NULL, {fields})",
            f"CREATE INDEX {quote(f'{self.physical}_xid')} ON {self.name} (xid)",
            f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $log$ BEGIN"
            f" IF NOT coalesce({self._alive}, true) THEN RETURN NULL; END IF;"
            f" IF TG_OP = 'INSERT' THEN {self._insert('INSERT', 'n')};"
            f" ELSIF TG_OP = 'DELETE' THEN {self._insert('DELETE', 'o')};"
            f" ELSIF {' OR '.join(changed)} THEN {self._insert('UPDATE', 'on')}; END IF; RETURN NULL; END $log$",
            f"CREATE TRIGGER {quote(f'{self.physical}_row')} AFTER INSERT OR UPDATE OR DELETE ON {self.table.name}"
            f" FOR EACH ROW EXECUTE FUNCTION {function}()",
            f"CREATE FUNCTION {tell}() RETURNS trigger LANGUAGE plpgsql AS $log$ BEGIN"
            f" PERFORM pg_notify('{CHANNEL}', {text_literal(self.table.name)}); RETURN NULL; END $log$",
            f"CREATE TRIGGER {quote(f'{self.physical}_tell')} AFTER INSERT OR UPDATE OR DELETE ON {self.table.name}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {tell}()",
        ]

    def drop(self) -> list[str]:
        """Statements that take the log and its triggers away; the table itself may be gone."""
        forget = f"DELETE FROM {self.watches} WHERE name = {self._own}"
        if not self._postgres:
            triggers = [f"DROP TRIGGER IF EXISTS {quote(f'{self.physical}_{kind}')}" for kind in "iud"]
            return [*triggers, f"DROP TABLE IF EXISTS {self.name}", forget]
        functions = [self.dialect.qualify(f"{self.physical}_{kind}") for kind in ("fn", "tell")]
        return [
            *(f"DROP FUNCTION IF EXISTS {f}() CASCADE" for f in functions),
            f"DROP TABLE IF EXISTS {self.name}",
            forget,
        ]

    # Reading -----------------------------------------------------------------------------------------------------

    def end(self) -> Op[Position]:
        """The position behind everything committed so far."""
        if self._postgres:
            rows = yield Stmt(f"SELECT pg_current_snapshot()::text, {self._clock()}")
            return [rows[0][0], None, 0, rows[0][1]]
        rows = yield Stmt(f"SELECT max(seq), {self._clock()} FROM sqlite_sequence WHERE name = ?1", (self.physical,))
        return [rows[0][0] or 0, rows[0][1]]

    def read(self, position: Position, where: Criteria | None, limit: int) -> Op[Window]:
        """At most ``limit`` entries after a position that concern rows matching ``where``, old or new."""
        params = Params(self.dialect)
        if self._postgres:
            return (yield from self._read_postgres(position, where, limit, params))
        test = self._matches(where, params)
        rows = yield Stmt(
            f"SELECT type, at, seq, {self._fields('o')}, {self._fields('n')} FROM {self.name} l"
            f" WHERE seq > {params.add(position[0], 'integer')}{test} ORDER BY seq LIMIT {limit}",
            params.values,
        )
        end = yield from self.end()  # of the same snapshot: behind what the filter passed over, too
        away = self._away(end)
        entries = [self._entry(r[0], r[1], away, r[3:], [r[2], r[1]]) for r in rows]
        if len(rows) == limit:
            return Window(entries, entries[-1].position, more=True)
        return Window(entries, end, more=False)

    def _away(self, end: Position) -> float:
        """How far the store's clock, which may be a caller's own, is from the database's, in seconds."""
        away: float = self.table.now() - end[-1]
        return away if abs(away) > CLOSE else 0.0

    def _read_postgres(self, position: Position, where: Criteria | None, limit: int, params: Params) -> Op[Window]:
        start, stop, seq, _ = position
        end = yield from self.end()
        away = self._away(end)
        if stop is None:
            stop = end[0]
            # Numbers below this were seen: only a transaction that was still open can have lower ones.
            low = yield Stmt(
                f"SELECT min(seq) FROM {self.name} WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot)", (start,)
            )
            if low[0][0] is None:
                return Window([], end, more=False)
            seq = low[0][0] - 1
        before, after = (f"{params.add(s, 'text')}::pg_snapshot" for s in (start, stop))
        test = self._matches(where, params)
        rows = yield Stmt(
            f"SELECT type, at, seq, {self._fields('o')}, {self._fields('n')} FROM {self.name} l"
            f" WHERE seq > {params.add(seq, 'integer')} AND NOT pg_visible_in_snapshot(l.xid, {before})"
            f" AND pg_visible_in_snapshot(l.xid, {after}){test} ORDER BY seq LIMIT {limit}",
            params.values,
        )
        entries = [self._entry(r[0], r[1], away, tuple(r)[3:], [start, stop, r[2], r[1]]) for r in rows]
        if len(rows) == limit:
            return Window(entries, entries[-1].position, more=True)
        return Window(entries, [stop, None, 0, end[-1]], more=False)

    def behind(self, position: Position, most: int) -> Op[int]:
        """How many entries wait after a position, at most ``most``; criteria do not count."""
        params = Params(self.dialect)
        if self._postgres:
            mark = f"{params.add(position[0], 'text')}::pg_snapshot"
            waiting = f"xid >= pg_snapshot_xmin({mark}) AND NOT pg_visible_in_snapshot(xid, {mark})"
        else:
            waiting = f"seq > {params.add(position[0], 'integer')}"
        inner = f"SELECT 1 FROM {self.name} WHERE {waiting} LIMIT {most}"
        rows = yield Stmt(f"SELECT count(*) FROM ({inner}) s", params.values)
        return int(rows[0][0])

    def _matches(self, where: Criteria | None, params: Params) -> str:
        if where is None:
            return ""
        tests = []
        for side, other in (("n", "DELETE"), ("o", "INSERT")):
            row = ", ".join(f"l.{self._field(side, c)} AS {quote(c)}" for c in self.table.schema.names)
            test = self.table.compiler.where(where, params)
            tests.append(f"(l.type <> '{other}' AND EXISTS (SELECT 1 FROM (SELECT {row}) t WHERE {test}))")
        return f" AND ({' OR '.join(tests)})"

    def _entry(self, kind: str, at: float, away: float, values: Sequence[Any], position: Position) -> Entry:
        width = len(self.table.schema.names)
        old = None if kind == "INSERT" else values[:width]
        new = None if kind == "DELETE" else values[width:]
        ttl = self.table.schema.ttl
        if old is not None and ttl is not None:
            due = old[self.table.schema.names.index(ttl)]
            if due is not None and _seconds(due) <= at + away:
                # To readers the row had gone already.
                kind, old = ("EXPIRE", old) if new is None else ("INSERT", None)
        return Entry(kind, at + away, old, new, position)


def _seconds(due: Any) -> float:
    return float(due.timestamp()) if isinstance(due, datetime) else due / 1_000_000
