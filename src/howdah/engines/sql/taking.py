"""What queues need of a SQL table: plain inserts, rows taken by exactly one of many takers, many rows changed at once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, TypeVar

from ..base import Op, Patches, Rows, Stmt, Take
from .dialect import Params, derived_name, quote, text_literal
from .readable import BATCH, DriverRow, ReadableTable

T = TypeVar("T")


class TakingTable(ReadableTable):
    """A table whose rows are taken, worked on and marked."""

    _planned_for = ""

    @property
    def at_once(self) -> bool:
        """Whether an ``exchange``, and an ``insert`` of a thousand rows, is one statement."""
        return self.dialect.name == "postgres"

    def alone(self, what: str) -> Op[None]:
        """Until the transaction ends, nobody else is ``alone`` with the same thing. On SQLite writers always are."""
        if self.dialect.name == "postgres":
            yield Stmt("SELECT pg_advisory_xact_lock(hashtextextended($1, 1751))", (f"{self.name}:{what}",))

    def by_indexes(self, work: Op[T]) -> Op[T]:
        """The same work by indexes. Postgres keeps a plan that it made while the table was empty: to read all of it. What is
        taken and patched later is planned anew when the table has become eight times as large."""
        if self.dialect.name != "postgres":
            return (yield from work)
        asked = f"SELECT pg_relation_size({text_literal(self.name)}), current_setting('enable_seqscan')"
        ((size, before, _),) = yield Stmt(f"{asked}, set_config('enable_seqscan', 'off', true)")
        self._planned_for = f"/* {int(size).bit_length() // 3} */ "
        found = yield from work
        yield Stmt("SELECT set_config('enable_seqscan', $1, true)", (before,))
        return found

    def insert(self, rows: Sequence[DriverRow], *, ahead: bool = False) -> Op[None]:
        """Insert rows with fresh keys; if others follow, on Postgres while these are made."""
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            if len(batch) == 1:
                yield Stmt(self._insert_one, batch[0])
            elif self.dialect.name == "postgres":
                yield self._insert_batch(batch)._replace(ahead=ahead)
            else:
                # With RETURNING, SQLite's driver would stop at the first row.
                yield Stmt(self._insert_one.rpartition(" RETURNING ")[0], batch, many=True)

    def _insert_batch(self, batch: Sequence[DriverRow]) -> Stmt:
        """One statement for many rows. What is the same in all of them goes once: the driver takes its time for each item."""
        params = Params(self.dialect)
        names, values = [], []
        given = _Given(self, params)
        for name, column in zip(self.schema.names, zip(*batch, strict=True), strict=True):
            if column.count(None) < len(column):
                names.append(quote(name))
                values.append(given.add(name, column))
        return Stmt(
            f"INSERT INTO {self.name} ({', '.join(names)}) SELECT {', '.join(values)} FROM {given.source(len(batch))}",
            params.values,
        )

    def insert_unless(self, row: DriverRow, on: Sequence[str], present: str) -> Op[bool]:
        """Insert a row unless another has its values of a sparse unique index, whose column ``present`` is not null."""
        head = self._insert_one.rpartition(" ON CONFLICT (")[0]
        columns, key = (", ".join(map(quote, names)) for names in (on, self.schema.key))
        target = f"ON CONFLICT ({columns}) WHERE {quote(present)} IS NOT NULL DO NOTHING"
        return bool((yield Stmt(f"{head} {target} RETURNING {key}", row)))

    def take(self, wanted: Take) -> Op[Rows]:
        """Take rows; whoever takes at the same time gets others. The rows as they are now, in order."""
        params = Params(self.dialect)
        sets = self._sets(wanted, params)
        rows = yield Stmt(f"{self._taking(wanted, sets, params)} RETURNING {self._told(wanted.names)}", params.values)
        return self._in_order(rows, wanted.names)

    def _taking(self, wanted: Take, sets: str, params: Params) -> str:
        """The update that takes rows."""
        assert self.schema.line is not None
        (key,) = map(quote, self.schema.key)
        scope, at = params.add(wanted.scope, "text"), params.add(wanted.at, "timestamp")
        if self.dialect.name == "postgres":
            rank, due, last = wanted.behind or (None, None, None)
            behind = f"{params.add(rank, 'integer')}, {params.add(due, 'timestamp')}, {params.add(last, 'text')}"
            chosen = f"{self.dialect.qualify(self.next_name)}({scope}, {at}, {wanted.limit}, {behind})"
            # Not a join: while a table looks small, it would read all of it.
            return f"{self._planned_for}UPDATE {self.name} AS u SET {sets} WHERE u.{key} = ANY(ARRAY(SELECT {chosen}))"
        chosen = self.next_sql(scope, at, str(wanted.limit))
        return f"UPDATE {self.name} AS u SET {sets} WHERE {key} IN ({chosen})"

    def next_sql(self, scope: str, at: str, limit: str, more: str = "") -> str:
        """The statement that finds the next keys in the line; ``more`` is a further condition."""
        line = self.schema.line
        assert line is not None
        key = ", ".join(f"t.{quote(k)}" for k in self.schema.key)
        order = ", ".join(f"t.{quote(c)}" for c in line.order)
        ends = f"t.{quote(line.ends)}"
        return (
            f"SELECT {key} FROM {self.name} t WHERE t.{quote(line.scope)} = {scope} AND t.{quote(line.due)} <= {at}"
            f" AND ({ends} IS NULL OR {ends} > {at}){more} ORDER BY {order} LIMIT {limit}"
        )

    @property
    def next_name(self) -> str:
        """Name of the function that locks the next rows on Postgres."""
        return derived_name(self.physical, "next")

    def _sets(self, wanted: Take, params: Params) -> str:
        sets = [f"{quote(n)} = {params.add(v, self.schema.by_name[n].kind)}" for n, v in wanted.patch.items()]
        sets += [f"{quote(n)} = u.{quote(n)} + 1" for n in wanted.bump]
        return ", ".join(sets)

    def _told(self, names: Sequence[str]) -> str:
        alias = "u." if self.dialect.name == "postgres" else ""
        return ", ".join(f"{alias}{quote(n)}" for n in names)

    def _in_order(self, rows: Rows, names: Sequence[str]) -> Rows:
        assert self.schema.line is not None
        return sorted(rows, key=itemgetter(*map(names.index, self.schema.line.kept)))

    def patch_each(self, patches: Patches) -> Op[set[Any]]:
        """Change each row by itself; the first match column (the key) of those that did match."""
        if self.dialect.name == "postgres":
            params = Params(self.dialect)
            rows = yield Stmt(self._patch_sql(patches, params), params.values)
            return {r[0] for r in rows}
        p, by_name, first = self.dialect.placeholder, self.schema.by_name, len(patches.match) + 1
        same = " AND ".join(f"{quote(n)} = {p(i, by_name[n].kind)}" for i, n in enumerate(patches.match, 1))
        names = (*patches.columns, *patches.fixed)
        sets = ", ".join(f"{quote(n)} = {p(i, by_name[n].kind)}" for i, n in enumerate(names, first))
        fixed = tuple(patches.fixed.values())
        sql = f"UPDATE {self.name} SET {sets} WHERE {same} RETURNING {quote(patches.match[0])}"
        done: set[Any] = set()
        for row in patches.rows:
            done.update(r[0] for r in (yield Stmt(sql, (*row, *fixed))))
        return done

    def _patch_sql(self, patches: Patches, params: Params) -> str:
        given = _Given(self, params)
        columns = list(zip(*patches.rows, strict=True))
        same = [f"p.{quote(n)} = {given.add(n, columns[i])}" for i, n in enumerate(patches.match)]
        changed = columns[len(patches.match) :]
        sets = [f"{quote(n)} = {given.add(n, c)}" for n, c in zip(patches.columns, changed, strict=True)]
        sets += [f"{quote(n)} = {params.add(v, self.schema.by_name[n].kind)}" for n, v in patches.fixed.items()]
        source = f" FROM {given.source(len(patches.rows))}"
        if (keys := given.only) is not None and same[0].endswith(" = v.c1"):
            same[0], source = f"p.{quote(patches.match[0])} = ANY({keys})", ""
        return (
            f"{self._planned_for}UPDATE {self.name} AS p SET {', '.join(sets)}{source}"
            f" WHERE {' AND '.join(same)} RETURNING p.{quote(patches.match[0])}"
        )

    def exchange(self, patches: Patches, wanted: Take) -> Op[tuple[set[Any], Rows]]:
        """Change some rows and take others, in one round trip where there is one to save."""
        if not patches.rows:
            return set(), (yield from self.take(wanted))
        if self.dialect.name == "sqlite":
            done = yield from self.patch_each(patches)
            return done, (yield from self.take(wanted))
        params = Params(self.dialect)
        changed = self._patch_sql(patches, params)
        taking = self._taking(wanted, self._sets(wanted, params), params)
        # What was changed stands in the first row only: in each it would cost the square of what there is to tell.
        first = f"CASE WHEN row_number() OVER () = 1 THEN (SELECT array_agg({quote(patches.match[0])}) FROM d) END"
        sql = (
            f"WITH d AS ({changed}), taken AS ({taking} RETURNING {self._told(wanted.names)})"
            f" SELECT taken.*, {first} FROM (SELECT 1) one LEFT JOIN taken ON true"
        )
        rows = yield Stmt(sql, params.values)
        place = wanted.names.index(self.schema.key[0])
        taken = [r for r in rows if r[place] is not None]
        return set(rows[0][-1] or ()), self._in_order(taken, wanted.names)


class _Given:
    """Columns of values for one Postgres statement: an array each, or one value where all rows have the same."""

    def __init__(self, table: TakingTable, params: Params) -> None:
        self._table = table
        self._params = params
        self._arrays: list[str] = []

    def add(self, name: str, values: Sequence[Any]) -> str:
        """The expression of a column whose values, one a row, are these."""
        kind = self._table._array_type(name)
        first = values[0]
        # Numbers may be equal and not the same: -0.0 and 0.0.
        alike = values.count(first) == len(values) if isinstance(first, (str, int)) else len(set(map(id, values))) == 1
        self._params.values.append(first if alike else list(values))
        place = f"${len(self._params.values)}::{kind}"
        if alike:
            return place
        # The driver looks up types that it does not know, as arrays of JSON, once on each connection.
        json = kind == "jsonb"
        self._arrays.append(f"{place.removesuffix('jsonb')}text[]" if json else f"{place}[]")
        return f"v.c{len(self._arrays)}{'::jsonb' if json else ''}"

    @property
    def only(self) -> str | None:
        """The array, if there is one."""
        return self._arrays[0] if len(self._arrays) == 1 else None

    def source(self, count: int) -> str:
        """The rows, for FROM."""
        if not self._arrays:
            return f"generate_series(1, {count}) AS v(c1)"
        names = ", ".join(f"c{i}" for i in range(1, len(self._arrays) + 1))
        return f"unnest({', '.join(self._arrays)}) AS v({names})"
