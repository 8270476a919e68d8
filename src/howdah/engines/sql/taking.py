"""What queues need of a SQL table: plain inserts, rows taken by exactly one of many takers, many rows changed at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..base import Op, Patches, Rows, Stmt, Take
from .dialect import Params, derived_name, quote
from .readable import BATCH, DriverRow, ReadableTable


class TakingTable(ReadableTable):
    """A table whose rows are taken, worked on and marked."""

    @property
    def at_once(self) -> bool:
        """Whether an ``exchange``, and an ``insert`` of a thousand rows, is one statement."""
        return self.dialect.name == "postgres"

    def alone(self, what: str) -> Op[None]:
        """Until the transaction ends, nobody else is ``alone`` with the same thing. On SQLite writers always are."""
        if self.dialect.name == "postgres":
            yield Stmt("SELECT pg_advisory_xact_lock(hashtextextended($1, 1751))", (f"{self.name}:{what}",))

    def insert(self, rows: Sequence[DriverRow]) -> Op[None]:
        """Insert rows with fresh keys."""
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            if len(batch) == 1:
                yield Stmt(self._insert_one, batch[0])
            elif self.dialect.name == "postgres":
                yield Stmt(self._insert_many, [list(column) for column in zip(*batch, strict=True)])
            else:
                # With RETURNING, SQLite's driver would stop at the first row.
                yield Stmt(self._insert_one.rpartition(" RETURNING ")[0], batch, many=True)

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
        rows = yield Stmt(f"{self._taking(wanted, sets, params)} RETURNING {self._plain_selection()}", params.values)
        return self._in_order(rows)

    def _taking(self, wanted: Take, sets: str, params: Params) -> str:
        """The update that takes rows."""
        assert self.schema.line is not None
        (key,) = map(quote, self.schema.key)
        scope, at = params.add(wanted.scope, "text"), params.add(wanted.at, "timestamp")
        if self.dialect.name == "postgres":
            rank, due = wanted.behind or (None, None)
            behind = f"{params.add(rank, 'integer')}, {params.add(due, 'timestamp')}"
            chosen = f"{self.dialect.qualify(self.next_name)}({scope}, {at}, {wanted.limit}, {behind})"
            return f"UPDATE {self.name} AS u SET {sets} FROM {chosen} AS c(taken) WHERE u.{key} = c.taken"
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

    def _plain_selection(self) -> str:
        alias = "u." if self.dialect.name == "postgres" else ""
        return ", ".join(f"{alias}{quote(n)}" for n in self.schema.names)

    def _in_order(self, rows: Rows) -> Rows:
        assert self.schema.line is not None
        places = [self.schema.names.index(c) for c in self.schema.line.kept]
        return sorted(rows, key=lambda row: tuple(row[p] for p in places))

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
        names = [f"m{i}" for i in range(len(patches.match))] + [f"c{i}" for i in range(len(patches.columns))]
        arrays = []
        for place, column in enumerate((*patches.match, *patches.columns)):
            params.values.append([row[place] for row in patches.rows])
            arrays.append(f"${len(params.values)}::{self._array_type(column)}[]")
        sets = ", ".join(
            [f"{quote(n)} = v.c{i}" for i, n in enumerate(patches.columns)]
            + [f"{quote(n)} = {params.add(v, self.schema.by_name[n].kind)}" for n, v in patches.fixed.items()]
        )
        same = " AND ".join(f"p.{quote(n)} = v.m{i}" for i, n in enumerate(patches.match))
        return (
            f"UPDATE {self.name} AS p SET {sets} FROM unnest({', '.join(arrays)}) AS v({', '.join(names)})"
            f" WHERE {same} RETURNING p.{quote(patches.match[0])}"
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
        sql = (
            f"WITH d AS ({changed}), taken AS ({taking} RETURNING {self._plain_selection()})"
            f" SELECT (SELECT array_agg({quote(patches.match[0])}) FROM d), taken.* FROM (SELECT 1) one LEFT JOIN taken ON true"
        )
        rows = yield Stmt(sql, params.values)
        place = 1 + self.key_places[0]
        taken = [tuple(r)[1:] for r in rows if r[place] is not None]
        return set(rows[0][0] or ()), self._in_order(taken)
