"""One table in SQL, either dialect: every write as a generator of statements that keeps the table's indexes in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ...criteria import Criteria
from ...schema import Schema
from ..base import Once, Op, Rows, Stmt, Work
from .changes import ChangeLog
from .compile import SqlDialect
from .dialect import Params, quote
from .readable import BATCH, DOC, STALE, DriverRow, Key, version_column
from .taking import TakingTable
from .text import Document

if TYPE_CHECKING:
    from .migrating import Migrating

__all__ = ["BATCH", "DOC", "STALE", "DriverRow", "Key", "SqlTable", "version_column"]


class SqlTable(TakingTable):
    """Operations on one table. Rows go in and come out in driver form, columns in declared order."""

    migrating: Migrating

    def __init__(self, dialect: SqlDialect, schema: Schema, physical: str, now: Callable[[], float]) -> None:
        super().__init__(dialect, schema, physical, now)
        self.log = ChangeLog(self)
        self.plain = not self.hidden and not (schema.ttl and schema.unique)
        """Whether a write touches the table alone."""

    # Writing -----------------------------------------------------------------------------------------------------

    def put_one(self, row: DriverRow) -> Work[Any]:
        """Insert or replace one row; a single statement if the table is ``plain``."""
        return Once(self._upsert_one, row) if self.plain else lambda: self.put([row])

    def put(self, rows: Sequence[DriverRow]) -> Op[None]:
        """Insert or replace rows with different keys."""
        yield from self._make_room()
        if len(rows) > 1:  # in one order for everybody, so that batches do not lock each other out
            rows = sorted(rows, key=itemgetter(*self.key_places))
        if self.hidden:
            yield from self._put_indexed(rows)
        elif len(rows) == 1:
            yield Stmt(self._upsert_one, rows[0])
        else:
            for start in range(0, len(rows), BATCH):
                yield self._many(self._upsert_many, rows[start : start + BATCH])

    def _many(self, sql: str, rows: Sequence[Sequence[Any]]) -> Stmt:
        if self.dialect.name == "postgres":
            return Stmt(sql, [list(column) for column in zip(*rows, strict=True)])
        return Stmt(sql, rows, many=True)

    def _make_room(self) -> Op[None]:
        """An expired row must not stand in the way of a unique value."""
        if self.schema.ttl and self.schema.unique:
            yield from self.sweep(None)

    def create(self, row: DriverRow) -> Op[bool]:
        """Insert a row whose key is free; an expired row counts as absent."""
        yield from self._make_room()
        if not self.hidden:
            made = yield Stmt(
                self._create, (*row, self.moment()) if self.schema.ttl and self._create != self._insert_one else row
            )
            return bool(made)
        if self.schema.ttl:
            key = tuple(row[i] for i in self.key_places)
            params = Params(self.dialect)
            test = self.keys_test([key], params)
            gone = f"t.{quote(self.schema.ttl)} <= {params.add(self.moment(), 'timestamp')}"
            yield from self._delete(f" WHERE {test} AND {gone}", params)
        return (yield from self._insert_new([row])) == {tuple(row[i] for i in self.key_places)}

    def insert_generated(
        self, rows: Sequence[DriverRow], place: int, wrap: Callable[[int], Any]
    ) -> Op[list[DriverRow]]:
        """Insert rows whose integer key at ``place`` is generated; a taken number is passed over."""
        yield from self._make_room()
        yield from self.numbers.guard()
        done: list[DriverRow] = []
        for start in range(0, len(rows), BATCH):
            waiting = [list(r) for r in rows[start : start + BATCH]]
            batch = list(waiting)
            while waiting:
                for row, number in zip(waiting, (yield from self.numbers.allocate(len(waiting))), strict=True):
                    row[place] = wrap(number)
                made = yield from self._insert_new(waiting)
                waiting = [r for r in waiting if tuple(r[i] for i in self.key_places) not in made]
            done.extend(batch)
        return done

    def _insert_new(self, rows: Sequence[DriverRow]) -> Op[set[Key]]:
        """Insert the rows whose keys are free; their keys."""
        full = rows
        if self.hidden:
            full = yield from self._number(rows, {})
        if self.dialect.name == "postgres":
            made = {tuple(r) for r in (yield self._many(self._insert_many, full))}
        else:
            made = set()
            for row in full:
                made.update(tuple(r) for r in (yield Stmt(self._insert_one, row)))
        if self.text:
            width = len(self.schema.columns)
            fresh = [r for r in full if tuple(r[i] for i in self.key_places) in made]
            added = [(r[width], self._texts(r)) for r in fresh if r[width] is not None]
            if added:
                parts = yield from self.numbers.allocate(2)
                yield from self.text.change([], sorted(added, key=lambda d: d[0]), parts)
        return made

    def _texts(self, row: Sequence[Any]) -> tuple[str | None, ...]:
        assert self.text is not None
        return tuple(row[self.schema.names.index(c)] for c in self.text.columns)

    def _old(self, keys: Sequence[Key]) -> Op[dict[Key, Sequence[Any]]]:
        """Key, hidden numbers and indexed values of the rows there are, locked."""
        watched = [
            *self.schema.key,
            *self.hidden,
            *(self.text.columns if self.text else ()),
            *(c.name for c in self.versioned),
        ]
        chosen = ", ".join(f"t.{quote(n)}" for n in watched)
        order = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        size = len(self.schema.key)
        found: dict[Key, Sequence[Any]] = {}
        step = BATCH if size == 1 else 500
        for start in range(0, len(keys), step):
            params = Params(self.dialect)
            test = self.keys_test(keys[start : start + step], params)
            rows = yield Stmt(
                f"SELECT {chosen} FROM {self.name} t WHERE {test} ORDER BY {order}{self._for_update}", params.values
            )
            found.update((tuple(r[:size]), r[size:]) for r in rows)
        return found

    def _number(self, rows: Sequence[DriverRow], old: dict[Key, Sequence[Any]]) -> Op[list[DriverRow]]:
        """Rows with their hidden numbers: as they were where text or vector is unchanged, new where not."""
        texts = len(self.text.columns) if self.text else 0
        first = 1 if self.text else 0
        full: list[DriverRow] = []
        wanted: list[tuple[DriverRow, int]] = []
        width = len(self.schema.columns)
        for row in rows:
            made = [*row, *([None] * len(self.hidden))]
            before = old.get(tuple(row[i] for i in self.key_places))
            if self.text:
                same = before is not None and tuple(before[len(self.hidden) : len(self.hidden) + texts]) == self._texts(
                    row
                )
                if same and before is not None and before[0] is not None:
                    made[width] = before[0]
                elif any(self._texts(row)):
                    wanted.append((made, width))
            for number, column in enumerate(self.versioned):
                value = row[self.schema.names.index(column.name)]
                if value is None:
                    continue
                if before is not None and before[len(self.hidden) + texts + number] == value:
                    made[width + first + number] = before[first + number]
                else:
                    wanted.append((made, width + first + number))
            full.append(made)
        if wanted:
            for (made, place), value in zip(wanted, (yield from self.numbers.allocate(len(wanted))), strict=True):
                made[place] = value
        return full

    def _put_indexed(self, rows: Sequence[DriverRow]) -> Op[None]:
        for start in range(0, len(rows), BATCH):
            waiting = list(rows[start : start + BATCH])
            while waiting:
                waiting = yield from self._put_batch(waiting)

    def _put_batch(self, rows: Sequence[DriverRow]) -> Op[list[DriverRow]]:
        """Replace the rows there are and insert the others; the rows that another writer inserted meanwhile."""
        keys = [tuple(r[i] for i in self.key_places) for r in rows]
        old = yield from self._old(keys)
        fresh = [r for r, k in zip(rows, keys, strict=True) if k not in old]
        known = [r for r, k in zip(rows, keys, strict=True) if k in old]
        if known:
            full = yield from self._number(known, old)
            yield self._many(self._upsert_many, full)
            if self.text:
                width = len(self.schema.columns)
                removed: list[Document] = []
                added: list[Document] = []
                for row in full:
                    before = old[tuple(row[i] for i in self.key_places)]
                    if before[0] == row[width]:
                        continue
                    if before[0] is not None:
                        size = len(self.hidden)
                        removed.append((before[0], tuple(before[size : size + len(self.text.columns)])))
                    if row[width] is not None:
                        added.append((row[width], self._texts(row)))
                if removed or added:
                    parts = yield from self.numbers.allocate(2)
                    yield from self.text.change(sorted(removed, key=_first), sorted(added, key=_first), parts)
        if not fresh:
            return []
        made = yield from self._insert_new(fresh)
        return [r for r in fresh if tuple(r[i] for i in self.key_places) not in made]

    def update(
        self, keys: Sequence[Key] | None, where: Criteria | None, patch: dict[str, Any], names: Sequence[str]
    ) -> Op[Rows]:
        """Change the columns in ``patch`` of the rows with ``keys`` that match; the rows as they are now.

        A version column that is not among them grows by one."""
        counts = None if self.schema.version in patch else self.schema.version
        if any(n in patch for index in self.schema.unique for n in index):
            yield from self._make_room()
        indexed = {*(self.text.columns if self.text else ()), *(c.name for c in self.versioned)}
        returning = ", ".join(quote(n) for n in names)
        if not indexed & patch.keys():
            params = Params(self.dialect)
            sets = ", ".join(f"{quote(n)} = {params.add(v, self.schema.by_name[n].kind)}" for n, v in patch.items())
            if counts is not None:
                sets += f", {quote(counts)} = t.{quote(counts)} + 1"
            more = [self.keys_test(keys, params)] if keys is not None else []
            condition = self.condition(where, params, *more)
            return (yield Stmt(f"UPDATE {self.name} AS t SET {sets}{condition} RETURNING {returning}", params.values))
        params = Params(self.dialect)
        more = [self.keys_test(keys, params)] if keys is not None else []
        order = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        condition = self.condition(where, params, *more)
        rows = yield Stmt(
            f"SELECT {self._selection} FROM {self.name} t{condition} ORDER BY {order}{self._for_update}", params.values
        )
        changed = []
        for row in rows:
            made = list(row)
            for name, value in patch.items():
                made[self.schema.names.index(name)] = value
            if counts is not None:
                made[self.schema.names.index(counts)] += 1
            changed.append(made)
        yield from self._put_indexed(changed)
        places = [self.schema.names.index(n) for n in names]
        return [tuple(r[p] for p in places) for r in changed]

    def first_key(self, where: Criteria | None) -> Op[Key | None]:
        """Key of the first matching row in key order, locked."""
        params = Params(self.dialect)
        key = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        condition = self.condition(where, params)
        sql = f"SELECT {key} FROM {self.name} t{condition} ORDER BY {key} LIMIT 1"
        while True:
            rows = yield Stmt(sql + self._for_update, params.values)
            if rows or not self._for_update:
                return tuple(rows[0]) if rows else None
            # The row that was waited for no longer matches; another one may.
            if not (yield Stmt(sql, params.values)):
                return None

    def update_one(self, where: Criteria | None, patch: dict[str, Any]) -> Op[Sequence[Any] | None]:
        """Compare and set: change the first matching row in key order."""
        key = yield from self.first_key(where)
        if key is None:
            return None
        rows = yield from self.update([key], None, patch, self.schema.names)
        return rows[0] if rows else None

    def upsert(
        self, row: DriverRow, on: Sequence[str], generate: Callable[[], Op[DriverRow]]
    ) -> Op[tuple[DriverRow, bool]]:
        """Overwrite the row with the same unique value in place, or insert; whether it was inserted."""
        yield from self._make_room()
        counts = self.schema.version
        columns = (*self.schema.key, *(() if counts is None else (counts,)))
        chosen = ", ".join(f"t.{quote(n)}" for n in columns)
        places = [self.schema.names.index(n) for n in columns]
        while True:
            params = Params(self.dialect)
            same = " AND ".join(
                f"t.{quote(n)} = {params.add(row[self.schema.names.index(n)], self.schema.by_name[n].kind)}" for n in on
            )
            rows = yield Stmt(f"SELECT {chosen} FROM {self.name} t WHERE {same}{self._for_update}", params.values)
            if rows:
                for place, value in zip(places, rows[0], strict=True):
                    row[place] = value
                if counts is not None:
                    row[places[-1]] += 1
                yield from self.put([row])
                return row, False
            fresh = yield from generate()
            if counts is not None:
                fresh[places[-1]] = 1
            if (yield from self._insert_unless(fresh, on)):
                return fresh, True

    def _insert_unless(self, row: DriverRow, on: Sequence[str]) -> Op[bool]:
        """Insert unless the unique value is taken."""
        full = (yield from self._number([row], {})) if self.hidden else [row]
        head, _, tail = self._insert_one.rpartition(" ON CONFLICT (")
        columns = ", ".join(map(quote, on))
        made = yield Stmt(f"{head} ON CONFLICT ({columns}{tail[tail.index(')') :]}", full[0])
        if made and self.text:
            width = len(self.schema.columns)
            if full[0][width] is not None:
                parts = yield from self.numbers.allocate(2)
                yield from self.text.change([], [(full[0][width], self._texts(full[0]))], parts)
        return bool(made)

    def delete(self, keys: Sequence[Key]) -> Op[int]:
        """Delete by key; how many live rows went."""
        total = 0
        keys = sorted(keys)
        for start in range(0, len(keys), BATCH):
            params = Params(self.dialect)
            test = self.keys_test(keys[start : start + BATCH], params)
            total += yield from self._delete(self.condition(None, params, test), params)
        return total

    def delete_where(self, where: Criteria | None) -> Op[int]:
        """Delete every match."""
        params = Params(self.dialect)
        return (yield from self._delete(self.condition(where, params), params))

    def _delete(self, condition: str, params: Params) -> Op[int]:
        if self.text is None:
            rows = yield Stmt(f"DELETE FROM {self.name} AS t{condition} RETURNING 1", params.values)
            return len(rows)
        columns = ", ".join(map(quote, (DOC, *self.text.columns)))
        rows = yield Stmt(f"DELETE FROM {self.name} AS t{condition} RETURNING {columns}", params.values)
        removed = sorted(((r[0], tuple(r[1:])) for r in rows if r[0] is not None), key=_first)
        if removed:
            yield from self.text.change(removed, [], (yield from self.numbers.allocate(2)))
        return len(rows)

    def sweep(self, most: int | None) -> Op[int]:
        """Delete expired rows, at most ``most`` of them."""
        assert self.schema.ttl is not None
        params = Params(self.dialect)
        column = f"t.{quote(self.schema.ttl)}"
        expired = f"{column} <= {params.add(self.moment(), 'timestamp')}"
        if most is None:
            return (yield from self._delete(f" WHERE {expired}", params))
        key = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        skip = " FOR UPDATE SKIP LOCKED" if self._for_update else ""
        inner = f"SELECT {key} FROM {self.name} t WHERE {expired} LIMIT {most}{skip}"
        return (yield from self._delete(f" WHERE ({key}) IN ({inner})", params))

    def clear(self) -> Op[int]:
        """Delete every row; how many live ones there were."""
        if self.text and self.dialect.name == "postgres":
            # Rows and postings must be the same ones, whatever other writers and merges are under way.
            yield Stmt(f"LOCK TABLE {self.name}, {self.text.post}, {self.text.stat} IN SHARE ROW EXCLUSIVE MODE")
        total = yield from self.count(None)
        yield Stmt(f"DELETE FROM {self.name}")
        if self.text:
            yield from self.text.clear()
        return total


def _first(document: Document) -> int:
    return document[0]
