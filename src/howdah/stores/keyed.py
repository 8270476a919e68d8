"""Key-values on a table that is there already: one column of a row is the value, its primary key the key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..criteria import And, Compare, Criteria, Prefix
from ..engines.base import Op
from ..errors import InvalidInput
from ..pages import check_limit
from ..query import AsyncQuery
from ..table import AsyncTable
from ..values import MISSING, as_list


class AsyncKeyed:
    """The face of a key-value store on a table. Opened by ``store.kv_on(table, value)``. Values have the column's type; a
    write keeps a row's other columns, and a new row has their defaults."""

    def __init__(self, table: AsyncTable[Any], value: str) -> None:
        schema = table.schema
        if len(schema.key) != 1:
            raise InvalidInput(f"table {schema.name!r}: key-values need a primary key of one column")
        column = schema.column(value)
        if value in schema.key or column.vector is not None:
            raise InvalidInput(
                f"table {schema.name!r}: column {value!r} is {column.describe()} and cannot be the value"
            )
        needed = [
            c.name for c in schema.columns
            if c.name not in (value, *schema.key) and not c.nullable and c.default is MISSING
        ]  # fmt: skip
        if needed:
            raise InvalidInput(
                f"table {schema.name!r}: column {needed[0]!r} is required, and a key and a value leave it out"
            )
        self._table = table
        self._key = schema.key[0]
        self._value = value
        self._ops = table._ops
        self._names = (self._key, value)
        self._read = self._ops.reader(self._names)

    @property
    def table(self) -> AsyncTable[Any]:
        """The table underneath."""
        return self._table

    async def put(self, key: Any, value: Any) -> None:
        """Store a value."""
        await self.put_many([(key, value)])

    async def put_many(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Store many, all or none; of equal keys the last wins."""
        pairs = as_list(items.items() if isinstance(items, Mapping) else items, "put_many")
        if any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
            raise InvalidInput("put_many takes a mapping or (key, value) pairs")
        rows = []
        for key, value in pairs:
            row = {self._key: key, self._value: value}
            rows.append(
                (self._table._driver_key(key), self._table._patch({self._value: value}), self._table._stored(row))
            )

        def work() -> Op[None]:
            for key, patch, stored in rows:
                while not (yield from self._ops.update([key], None, patch, (self._key,))):
                    if (yield from self._table._creating(self._ops.encode(stored))):
                        break

        if rows:
            await self._table._write(work)

    async def create(self, key: Any, value: Any) -> bool:
        """Store a value only if the key is free; whether it was."""
        return await self._table.create({self._key: key, self._value: value}) is not None

    async def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        row = await self._table._get(self._table._driver_key(key), self._names)
        return default if row is None else self._read(row)[self._value]

    async def has(self, key: Any) -> bool:
        """Whether the key is there."""
        return await self._table._get(self._table._driver_key(key), (self._key,)) is not None

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """The values found, by key, in the order asked."""
        wanted = {self._table._driver_key(k): k for k in as_list(keys, "get_many")}
        if not wanted:
            return {}
        rows = await self._table.reading(lambda: self._ops.get_many(list(wanted), self._names))
        found = {row[0]: self._read(row) for row in map(tuple, rows)}
        return {found[k[0]][self._key]: found[k[0]][self._value] for k in wanted if k[0] in found}

    def scan(
        self, prefix: str = "", *, start: Any = None, stop: Any = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncQuery[tuple[Any, Any]]:
        """Pairs in key order, streamed: literal prefix of text keys, ``start`` included, ``stop`` not."""
        query = self._within(prefix, start, stop, reverse, limit, self._names)
        return query.mapped(self._names, lambda row: tuple(self._read(row).values()))

    def keys(
        self, prefix: str = "", *, start: Any = None, stop: Any = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncQuery[Any]:
        """Keys in order, streamed."""
        read = self._ops.reader((self._key,))
        query = self._within(prefix, start, stop, reverse, limit, (self._key,))
        return query.mapped((self._key,), lambda row: read(row)[self._key])

    def _within(
        self, prefix: str, start: Any, stop: Any, reverse: bool, limit: int | None, names: tuple[str, ...]
    ) -> AsyncQuery[Any]:
        parts: list[Criteria] = []
        if prefix:
            if self._table.schema.column(self._key).kind != "text":
                raise InvalidInput("only text keys have a prefix; use start and stop")
            parts.append(Prefix(self._key, prefix))
        parts += [Compare(self._key, op, v) for op, v in ((">=", start), ("<", stop)) if v is not None]
        order = f"-{self._key}" if reverse else self._key
        where = And(tuple(parts)) if parts else None
        return self._table.query(where, order_by=order, limit=check_limit(limit), select=names)

    async def count(self) -> int:
        """How many keys there are."""
        return await self._table.count()

    async def delete(self, key: Any) -> bool:
        """Delete a key with its row; whether it was there."""
        return await self._table.delete(key)

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete keys with their rows, all in one transaction; how many were there."""
        return await self._table.delete_many(keys)

    async def clear(self) -> int:
        """Delete every row; how many there were."""
        return await self._table.clear()
