"""The reading half of a SQL table: its statements, compiled when the table is opened, values in driver form, look-ups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ...criteria import Criteria, Order
from ...errors import BackendError
from ...schema import Schema
from ..base import Op, Rows, Stmt
from .compile import Compiler, SqlDialect
from .dialect import Params, quote
from .ids import Numbers
from .text import TextIndex

DriverRow = list[Any]
Key = tuple[Any, ...]
BATCH = 5000
DOC = "_doc"
STALE = "written by an older declaration of the table"


def version_column(vector: str) -> str:
    """Hidden column that numbers the vectors of a column, where the engine keeps its own vector index."""
    return f"_v_{vector}"


class ReadableTable:
    """What is compiled and read of one table. Rows come out in driver form, columns in declared order."""

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
        self.decoders = {c.name: dialect.decode(c) if c.sealed is None else c.sealed.open for c in schema.columns}
        self.key_places = [schema.names.index(k) for k in schema.key]
        self._for_update = " FOR UPDATE" if dialect.name == "postgres" else ""
        self._compile()

    def _compile(self) -> None:
        schema, q = self.schema, quote
        stored = [*schema.names, *self.hidden]
        kinds = [c.kind for c in schema.columns] + ["integer"] * len(self.hidden)
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
        live = ""
        if schema.ttl:
            live = f" AND (t.{q(schema.ttl)} IS NULL OR t.{q(schema.ttl)} > {self.dialect.placeholder(len(schema.key) + 1, 'timestamp')})"
        same = " AND ".join(
            f"t.{q(k)} = {self.dialect.placeholder(i, schema.by_name[k].kind)}" for i, k in enumerate(schema.key, 1)
        )
        self._get = {schema.names: f"SELECT {self._selection} FROM {self.name} t WHERE {same}{live}"}
        self._same, self._live = same, live

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

    def encodes(self, name: str) -> bool:
        """Whether a column's driver form differs from the checked one."""
        return any(self.schema.names[place] == name for place, _ in self._encoding)

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
        sql = f"SELECT {', '.join(chosen)} FROM {self.name} t{condition}"
        if orders:
            sql += f" ORDER BY {self.compiler.order_by(orders)}"
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
