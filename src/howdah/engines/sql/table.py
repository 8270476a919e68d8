"""One table in SQL, either dialect: every operation as a generator of statements compiled when the table is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from ...criteria import Criteria, Order
from ...errors import BackendError
from ...schema import Schema
from ..base import Op, Rows, Stmt
from .compile import Compiler, SqlDialect
from .dialect import Params, quote
from .ids import Numbers
from .text import Document, TextIndex

DriverRow = list[Any]
Key = tuple[Any, ...]
BATCH = 5000
DOC = "_doc"
STALE = "written by an older declaration of the table"


def version_column(vector: str) -> str:
    """Hidden column that numbers the vectors of a column, where the engine keeps its own vector index."""
    return f"_v_{vector}"


class SqlTable:
    """Operations on one table. Rows go in and come out in driver form, columns in declared order."""

    def __init__(self, dialect: SqlDialect, schema: Schema, physical: str, now: Callable[[], float]) -> None:
        self.dialect = dialect
        self.schema = schema
        self.physical = physical
        self.now = now
        self.name = dialect.qualify(physical)
        self.compiler = Compiler(dialect, schema)
        self.numbers = Numbers(dialect, physical, "seq")
        self.text = TextIndex(dialect, physical, dict(schema.text)) if schema.text else None
        self.versioned = schema.vectors if dialect.name == "sqlite" else ()
        self.hidden = ((DOC,) if self.text else ()) + tuple(version_column(c.name) for c in self.versioned)
        self._encoding = [(i, e) for i, c in enumerate(schema.columns) if (e := dialect.encode(c)) is not None]
        self.decoders = {c.name: dialect.decode(c) for c in schema.columns}
        self.key_places = [schema.names.index(k) for k in schema.key]
        self._for_update = " FOR UPDATE" if dialect.name == "postgres" else ""
        self._compile()

    def _compile(self) -> None:
        schema, q = self.schema, quote
        stored = [*schema.names, *self.hidden]
        kinds = [c.kind for c in schema.columns] + ["integer"] * len(self.hidden)
        self._stored, self._kinds = stored, kinds
        columns = ", ".join(map(q, stored))
        key = ", ".join(map(q, schema.key))
        marks = ", ".join(self.dialect.placeholder(i, k) for i, k in enumerate(kinds, 1))
        rest = [c for c in stored if c not in schema.key]
        sets = ", ".join(f"{q(c)} = {self._kept(c)}" for c in rest)
        conflict = f"ON CONFLICT ({key}) DO UPDATE SET {sets}" if rest else f"ON CONFLICT ({key}) DO NOTHING"
        source = f"VALUES ({marks})"
        if self.dialect.name == "postgres":
            arrays = ", ".join(f"${i}::{self._array_type(c)}[]" for i, c in enumerate(stored, 1))
            many = f"SELECT * FROM unnest({arrays})"
        else:
            many = source
        into = f"INSERT INTO {self.name} AS t ({columns})"
        self._upsert_one, self._upsert_many = f"{into} {source} {conflict}", f"{into} {many} {conflict}"
        self._insert_many = f"{into} {many} ON CONFLICT ({key}) DO NOTHING RETURNING {key}"
        self._insert_one = f"{into} {source} ON CONFLICT ({key}) DO NOTHING RETURNING {key}"
        self._create = self._insert_one
        if schema.ttl and rest:
            now = self.dialect.placeholder(len(stored) + 1, "timestamp")
            self._create = f"{into} {source} ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE t.{q(schema.ttl)} <= {now} RETURNING {key}"
        self._selection = ", ".join(f"t.{q(n)}" for n in schema.names)
        single = schema.by_name[schema.key[0]]
        live = ""
        if schema.ttl:
            live = f" AND (t.{q(schema.ttl)} IS NULL OR t.{q(schema.ttl)} > {self.dialect.placeholder(len(schema.key) + 1, 'timestamp')})"
        same = " AND ".join(
            f"t.{q(k)} = {self.dialect.placeholder(i, schema.by_name[k].kind)}" for i, k in enumerate(schema.key, 1)
        )
        self._get = {schema.names: f"SELECT {self._selection} FROM {self.name} t WHERE {same}{live}"}
        self._same, self._live, self._single_kind = same, live, single.kind

    def _kept(self, column: str) -> str:
        """What a replacement writes into a column."""
        moment = self.schema.kept.get(column)
        if moment is None:
            return f"excluded.{quote(column)}"
        ttl = quote(self.schema.ttl or "")
        return f"CASE WHEN t.{ttl} <= excluded.{quote(moment)} THEN excluded.{quote(column)} ELSE t.{quote(column)} END"

    def _array_type(self, stored: str) -> str:
        column = self.schema.by_name.get(stored)
        if column is None:
            return "bigint"
        assert self.dialect.name == "postgres"
        return self.dialect.type_name(column)  # type: ignore[union-attr]  # the Postgres dialect

    # Values ------------------------------------------------------------------------------------------------------

    def encode(self, row: Sequence[Any]) -> DriverRow:
        """A checked row in driver form."""
        made = list(row)
        for place, encode in self._encoding:
            if made[place] is not None:
                made[place] = encode(made[place])
        return made

    def encode_value(self, name: str, value: Any) -> Any:
        """One checked value in driver form."""
        return self.compiler.value(name, value)

    def reader(self, names: Sequence[str]) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """The function from a driver row of ``names`` to a dict of Python values."""
        decoders = [(i, d) for i, n in enumerate(names) if (d := self.decoders[n]) is not None]
        fixed = tuple(names)

        def read(row: Sequence[Any]) -> dict[str, Any]:
            found = dict(zip(fixed, row, strict=False))
            for place, decode in decoders:
                value = row[place]
                if value is not None:
                    try:
                        found[fixed[place]] = decode(value)
                    except (ValueError, TypeError) as error:
                        raise BackendError(
                            f"{self.schema.name}.{fixed[place]}: stored value cannot be read: {error}"
                        ) from error
            return found

        return read

    def moment(self) -> Any:
        """Now, in driver form."""
        if self.dialect.name == "sqlite":
            return int(self.now() * 1_000_000)
        return datetime.fromtimestamp(self.now(), UTC)

    # Reading -----------------------------------------------------------------------------------------------------

    def get_sql(self, names: tuple[str, ...]) -> str:
        """The statement that reads ``names`` by key; parameters: the key, then now if rows expire."""
        sql = self._get.get(names)
        if sql is None:
            chosen = ", ".join(f"t.{quote(n)}" for n in names)
            sql = self._get[names] = f"SELECT {chosen} FROM {self.name} t WHERE {self._same}{self._live}"
        return sql

    def get(self, key: Key, names: tuple[str, ...]) -> Op[Sequence[Any] | None]:
        """One row by key."""
        rows = yield Stmt(self.get_sql(names), (*key, self.moment()) if self.schema.ttl else key)
        return rows[0] if rows else None

    def live(self, params: Params) -> str:
        """The condition that a row has not expired, or empty."""
        if not self.schema.ttl:
            return ""
        column = f"t.{quote(self.schema.ttl)}"
        return f"({column} IS NULL OR {column} > {params.add(self.moment(), 'timestamp')})"

    def condition(self, where: Criteria | None, params: Params, *more: str) -> str:
        """`` WHERE …`` of criteria, liveness and further conditions; empty when there are none."""
        parts = [self.live(params), self.compiler.where(where, params) if where is not None else "", *more]
        parts = [p for p in parts if p]
        return " WHERE " + " AND ".join(parts) if parts else ""

    def keys_test(self, keys: Sequence[Key], params: Params) -> str:
        """The condition that a row's key is one of ``keys``."""
        schema = self.schema
        if len(schema.key) == 1:
            kind = schema.by_name[schema.key[0]].kind
            return self.dialect.in_test(f"t.{quote(schema.key[0])}", params, [k[0] for k in keys], kind, negated=False)
        left = ", ".join(f"t.{quote(k)}" for k in schema.key)
        kinds = [schema.by_name[k].kind for k in schema.key]
        if self.dialect.name == "sqlite":
            rows = ", ".join(
                "(" + ", ".join(params.add(v, d) for v, d in zip(k, kinds, strict=True)) + ")" for k in keys
            )
            return f"({left}) IN (VALUES {rows})"
        arrays = []
        for place, name in enumerate(schema.key):
            params.values.append([k[place] for k in keys])
            arrays.append(f"${len(params.values)}::{self._array_type(name)}[]")
        return f"({left}) IN (SELECT * FROM unnest({', '.join(arrays)}))"

    def locked(self, key: Key, names: tuple[str, ...]) -> Op[Sequence[Any] | None]:
        """One row by key, locked until the transaction ends."""
        rows = yield Stmt(self.get_sql(names) + self._for_update, (*key, self.moment()) if self.schema.ttl else key)
        return rows[0] if rows else None

    def get_many(self, keys: Sequence[Key], names: tuple[str, ...]) -> Op[Rows]:
        """Rows by key, in any order."""
        found: Rows = []
        chosen = ", ".join(f"t.{quote(n)}" for n in names)
        for start in range(0, len(keys), BATCH):
            params = Params(self.dialect)
            test = self.keys_test(keys[start : start + BATCH], params)
            sql = f"SELECT {chosen} FROM {self.name} t{self.condition(None, params, test)}"
            found.extend((yield Stmt(sql, params.values)))
        return found

    def select(
        self,
        where: Criteria | None,
        orders: Sequence[Order],
        *,
        names: Sequence[str],
        limit: int | None,
        offset: int = 0,
        after: Sequence[Any] | None = None,
        sort_keys: bool = False,
    ) -> Op[Rows]:
        """Rows in order; with ``sort_keys`` each ends with the values that a cursor needs."""
        params = Params(self.dialect)
        more = [self.compiler.after(orders, after, params)] if after is not None else []
        condition = self.condition(where, params, *more)
        chosen = [f"t.{quote(n)}" for n in names]
        if sort_keys:
            chosen.extend(self.compiler.sort_key(o)[0] for o in orders)
        sql = f"SELECT {', '.join(chosen)} FROM {self.name} t{condition} ORDER BY {self.compiler.order_by(orders)}"
        # The limit is part of the text: as a parameter, Postgres plans for a tenth of the table.
        if limit is not None:
            sql += f" LIMIT {limit}"
        elif offset and self.dialect.name == "sqlite":
            sql += " LIMIT -1"
        if offset:
            sql += f" OFFSET {offset}"
        return (yield Stmt(sql, params.values))

    def count(self, where: Criteria | None) -> Op[int]:
        """How many rows match."""
        params = Params(self.dialect)
        rows = yield Stmt(f"SELECT count(*) FROM {self.name} t{self.condition(where, params)}", params.values)
        return int(rows[0][0])

    def count_to(self, where: Criteria | None, most: int) -> Op[int]:
        """How many rows match, at most ``most``."""
        params = Params(self.dialect)
        inner = f"SELECT 1 FROM {self.name} t{self.condition(where, params)} LIMIT {most}"
        rows = yield Stmt(f"SELECT count(*) FROM ({inner}) s", params.values)
        return int(rows[0][0])

    # Writing -----------------------------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Whether a write touches the table alone."""
        return not self.hidden and not (self.schema.ttl and self.schema.unique)

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
        """Change the columns in ``patch`` of the rows with ``keys`` that match; the rows as they are now."""
        if any(n in patch for index in self.schema.unique for n in index):
            yield from self._make_room()
        indexed = {*(self.text.columns if self.text else ()), *(c.name for c in self.versioned)}
        returning = ", ".join(quote(n) for n in names)
        if not indexed & patch.keys():
            params = Params(self.dialect)
            sets = ", ".join(f"{quote(n)} = {params.add(v, self.schema.by_name[n].kind)}" for n, v in patch.items())
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
        key = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        while True:
            params = Params(self.dialect)
            same = " AND ".join(
                f"t.{quote(n)} = {params.add(row[self.schema.names.index(n)], self.schema.by_name[n].kind)}" for n in on
            )
            rows = yield Stmt(f"SELECT {key} FROM {self.name} t WHERE {same}{self._for_update}", params.values)
            if rows:
                for place, value in zip(self.key_places, rows[0], strict=True):
                    row[place] = value
                yield from self.put([row])
                return row, False
            fresh = yield from generate()
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
