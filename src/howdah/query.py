"""A query that has not run yet: iterate over it to stream, or ask for all rows or the first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .criteria import And, Compare, Criteria, In, Null, Order, Prefix
from .engines.base import Engine, Work, innermost
from .errors import InvalidInput, NoCoveringIndex
from .schema import Schema

R = TypeVar("R")
BATCH = 500


class _Table(Protocol):
    _engine: Engine
    _schema: Schema
    _ops: Any

    async def _ensure(self) -> None: ...
    async def reading(self, work: Work[Any]) -> Any: ...
    def _row(self, driver: Sequence[Any]) -> Any: ...
    def _emit(self, name: str, *arguments: Any) -> None: ...
    @property
    def _listeners(self) -> Any: ...


class AsyncQuery(Generic[R]):
    """Rows of a table, described by ``table.query(…)``."""

    def __init__(
        self,
        table: _Table,
        where: Criteria | None,
        orders: tuple[Order, ...],
        *,
        explicit: int,
        limit: int | None,
        offset: int,
        select: Sequence[str] | None,
        covering: bool,
    ) -> None:
        self._table = table
        self._where = where
        self._orders = orders
        self._limit = limit
        self._offset = offset
        self._names: tuple[str, ...] = table._schema.names
        self._convert: Callable[[Sequence[Any]], Any] = table._row
        if select is not None:
            if isinstance(select, str) or not select:
                raise InvalidInput(f"select={select!r}: expected a list of column names")
            self._names = tuple(dict.fromkeys(table._schema.column(n).name for n in select))
            self._convert = table._ops.reader(self._names)
        if covering:
            check_covering(table._schema, where, orders[:explicit], self._names)

    def mapped(self, names: Sequence[str], convert: Callable[[Sequence[Any]], Any]) -> AsyncQuery[Any]:
        """The same rows, of these columns, each through ``convert``; for stores."""
        self._names = tuple(names)
        self._convert = convert
        return self

    async def all(self) -> list[R]:
        """Every row, from one snapshot."""
        return await self._fetch(self._limit)

    async def first(self) -> R | None:
        """The first row, or ``None``."""
        found = await self._fetch(1 if self._limit is None else min(1, self._limit))
        return found[0] if found else None

    async def _fetch(self, limit: int | None) -> list[R]:
        if limit == 0:
            return []
        table = self._table
        rows = await table.reading(
            lambda: table._ops.select(self._where, self._orders, names=self._names, limit=limit, offset=self._offset)
        )
        convert = self._convert
        found = [convert(r) for r in rows]
        if table._listeners is not None:
            table._emit("query", self._where, list(found))
        return found

    def __aiter__(self) -> AsyncIterator[R]:
        return self._stream(self._table.reading)

    async def stream_snapshot(self) -> AsyncIterator[R]:
        """Stream from one snapshot, which is held until the end; inside a transaction, from that."""
        await self._table._ensure()
        engine = self._table._engine
        if innermost(engine) is not None:
            async for row in self._stream(engine.read):
                yield row
            return
        snapshot = await engine.snapshot()
        try:
            async for row in self._stream(snapshot.read):
                yield row
        finally:
            await snapshot.close()

    async def _stream(self, read: Callable[..., Any]) -> AsyncIterator[R]:
        left = self._limit
        if left == 0:
            return
        table, width = self._table, len(self._names)
        if table._listeners is not None:
            table._emit("query", self._where, None)
        await table._ensure()
        after: list[Any] | None = None
        offset = self._offset
        while left is None or left > 0:
            size = BATCH if left is None else min(BATCH, left)
            rows = await read(self._batch(size, offset, after))
            for row in rows:
                yield self._convert(row[:width])
            if len(rows) < size:
                return
            after, offset = list(rows[-1][width:]), 0
            if left is not None:
                left -= len(rows)

    def _batch(self, size: int, offset: int, after: list[Any] | None) -> Work[Any]:
        return lambda: self._table._ops.select(
            self._where, self._orders, names=self._names, limit=size, offset=offset, after=after, sort_keys=True
        )


def _columns(where: Criteria | None) -> set[str] | None:
    """The columns that the criteria compare, if they are nothing but comparisons joined by AND."""
    if where is None:
        return set()
    if isinstance(where, And):
        parts = [_columns(p) for p in where.parts]
        return None if any(p is None for p in parts) else {n for p in parts if p for n in p}
    if isinstance(where, (Compare, In, Null, Prefix)) and not where.path:
        return {where.column}
    return None


def check_covering(schema: Schema, where: Criteria | None, orders: Sequence[Order], names: Sequence[str]) -> None:
    """Raise ``NoCoveringIndex`` unless an index alone can serve the query.

    Its first columns are those of the criteria, in any order, then those of the order, all in one direction; every
    selected column is in the index or the key.
    """
    compared = _columns(where)
    sorts = [o.column for o in orders if compared is None or o.column not in compared]
    one_way = len({o.descending for o in orders if o.column in sorts}) <= 1
    for index in (schema.key, *schema.indexes, *schema.unique):
        if compared is None or not one_way or any(o.path for o in orders):
            break
        head = index[: len(compared)]
        rest = (*index[len(compared) :], *(k for k in schema.key if k not in index))
        if set(head) == compared and list(rest[: len(sorts)]) == sorts and set(names) <= {*index, *schema.key}:
            return
    needed = sorted(compared or ()) + sorts
    raise NoCoveringIndex(
        f"{schema.name}: no index serves this query alone; it needs one that begins with {needed} and holds {list(names)};"
        f" there are {[list(i) for i in (schema.key, *schema.indexes, *schema.unique)]}"
    )
