"""A table whose rows by key are kept in memory: read through, bounded, and kept honest by the change feed. Blocking twin of ``howdah.cached``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

from ..cached import AsyncCached, R
from ..criteria import Where
from ..pages import Page
from .query import Query
from .runner import Runner


class Cached(Generic[R]):
    """Made by ``table.cached(…)``. ``get`` and ``get_many`` answer from memory where they can, absence too; writes go to the
    table first; other processes' writes drop what they touch through the change feed, at the latest after ``max_age``. Inside
    a transaction reads go to the table. Close it to end the feed."""

    def __init__(self, inner: AsyncCached[R], run: Runner) -> None:
        self._async = inner
        self._run = run

    def close(self) -> None:
        """End the feed and forget everything."""
        return self._run(self._async.close())

    def get(self, key: Any) -> R | None:
        """The row with this key, or ``None``; from memory if it is there and young enough."""
        return self._run(self._async.get(key))

    def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The rows found, by key, in the order asked; those that are not in memory are read at once."""
        return self._run(self._async.get_many(keys))

    def query(
        self,
        where: Where | None = None,
        *,
        order_by: Any = None,
        limit: int | None = None,
        offset: int = 0,
        select: Sequence[str] | None = None,
    ) -> Query[R]:
        """Rows that match: from memory when everything is there (``preload=True``), else from the table."""
        return Query(self._async.query(where, order_by=order_by, limit=limit, offset=offset, select=select), self._run)

    def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page: from memory when everything is there, else from the table."""
        return self._run(self._async.page(where, order_by=order_by, limit=limit, cursor=cursor))

    def count(self, where: Where | None = None) -> int:
        """How many rows match: from memory when everything is there, else from the table."""
        return self._run(self._async.count(where))

    def invalidate(self) -> None:
        """Forget everything; the next reads go to the table."""
        return self._async.invalidate()

    def refresh(self) -> int:
        """Read every row anew, so that absence is known, too; how many. ``LimitExceeded`` when there are more than
        ``max_rows``."""
        return self._run(self._async.refresh())

    def put(self, row: R | Mapping[str, Any]) -> R:
        """As the table's ``put``."""
        return self._run(self._async.put(row))

    def put_many(self, rows: Iterable[R | Mapping[str, Any]]) -> list[R]:
        """As the table's ``put_many``."""
        return self._run(self._async.put_many(rows))

    def create(self, row: R | Mapping[str, Any]) -> R | None:
        """As the table's ``create``."""
        return self._run(self._async.create(row))

    def upsert(self, row: R | Mapping[str, Any], on: str | Sequence[str]) -> tuple[R, bool]:
        """As the table's ``upsert``."""
        return self._run(self._async.upsert(row, on))

    def merge(self, row: Mapping[str, Any]) -> R:
        """As the table's ``merge``."""
        return self._run(self._async.merge(row))

    def update_one(self, where: Where, patch: Mapping[str, Any]) -> R | None:
        """As the table's ``update_one``."""
        return self._run(self._async.update_one(where, patch))

    def update_where(self, where: Where, patch: Mapping[str, Any]) -> int:
        """As the table's ``update_where``; forgets everything."""
        return self._run(self._async.update_where(where, patch))

    def delete(self, key: Any) -> bool:
        """As the table's ``delete``."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[Any]) -> int:
        """As the table's ``delete_many``."""
        return self._run(self._async.delete_many(keys))

    def delete_where(self, where: Where) -> int:
        """As the table's ``delete_where``; forgets everything."""
        return self._run(self._async.delete_where(where))

    def clear(self) -> int:
        """As the table's ``clear``."""
        return self._run(self._async.clear())
