"""Which blobs the rows of tables own: columns that hold a blob's key or URI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..criteria import In, Order
from ..engines.base import Engine, Op
from ..errors import InvalidInput
from ..table import AsyncTable

Owner = tuple[Any, str]


class Owners:
    """The columns that may name a blob."""

    def __init__(self, engine: Engine, given: Any) -> None:
        pairs = given if isinstance(given, list) else [given]
        self._columns: list[tuple[AsyncTable[Any], str]] = []
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidInput("owner: expected (table, 'column'), or a list of them")
            table = getattr(pair[0], "_async", pair[0])
            if not isinstance(table, AsyncTable) or table._engine is not engine:
                raise InvalidInput("owner: expected a table of the same store, and the name of its column")
            if table.schema.column(pair[1]).kind != "text":
                raise InvalidInput(
                    f"owner: column {pair[1]!r} of {table.name} is not text; it holds keys or URIs of blobs"
                )
            self._columns.append((table, pair[1]))

    async def ensure(self) -> None:
        """Make the tables if they are not there yet."""
        for table, _ in self._columns:
            await table._ensure()

    def ownerless(self, names: Mapping[str, str]) -> Op[list[str]]:
        """Of blobs by key and URI, the keys that no row names."""
        wanted = (*names.keys(), *names.values())
        owned: set[str] = set()
        for table, column in self._columns:
            ops = table._ops
            orders = [Order(k) for k in table.schema.key]
            rows = yield from ops.select(In(column, wanted), orders, names=(column,), limit=None)
            owned.update(row[0] for row in rows)
        return [key for key, uri in names.items() if key not in owned and uri not in owned]
