"""Key-values on a table that is there already: one column of a row is the value, its primary key the key. Blocking twin of ``howdah.stores.keyed``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..stores.keyed import AsyncKeyed
from .query import Query
from .runner import Runner
from .table import Table


class Keyed:
    """The face of a key-value store on a table. Opened by ``store.kv_on(table, value)``. Values have the column's type; a
    write keeps a row's other columns, and a new row has their defaults."""

    def __init__(self, inner: AsyncKeyed, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def table(self) -> Table[Any]:
        """The table underneath."""
        return Table(self._async.table, self._run)

    def put(self, key: Any, value: Any) -> None:
        """Store a value."""
        return self._run(self._async.put(key, value))

    def put_many(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        """Store many, all or none; of equal keys the last wins."""
        return self._run(self._async.put_many(items))

    def create(self, key: Any, value: Any) -> bool:
        """Store a value only if the key is free; whether it was."""
        return self._run(self._async.create(key, value))

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        return self._run(self._async.get(key, default))

    def has(self, key: Any) -> bool:
        """Whether the key is there."""
        return self._run(self._async.has(key))

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """The values found, by key, in the order asked."""
        return self._run(self._async.get_many(keys))

    def scan(
        self, prefix: str = "", *, start: Any = None, stop: Any = None, reverse: bool = False, limit: int | None = None
    ) -> Query[tuple[Any, Any]]:
        """Pairs in key order, streamed: literal prefix of text keys, ``start`` included, ``stop`` not."""
        return Query(self._async.scan(prefix, start=start, stop=stop, reverse=reverse, limit=limit), self._run)

    def keys(
        self, prefix: str = "", *, start: Any = None, stop: Any = None, reverse: bool = False, limit: int | None = None
    ) -> Query[Any]:
        """Keys in order, streamed."""
        return Query(self._async.keys(prefix, start=start, stop=stop, reverse=reverse, limit=limit), self._run)

    def count(self) -> int:
        """How many keys there are."""
        return self._run(self._async.count())

    def delete(self, key: Any) -> bool:
        """Delete a key with its row; whether it was there."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete keys with their rows, all in one transaction; how many were there."""
        return self._run(self._async.delete_many(keys))

    def clear(self) -> int:
        """Delete every row; how many there were."""
        return self._run(self._async.clear())
