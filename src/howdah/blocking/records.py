"""Records: JSON objects under text keys, with times, filters, pages, compare-and-set. Blocking twin of ``howdah.stores.records``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from ..changes import Change
from ..criteria import Columns, Where
from ..engines.base import Capabilities
from ..pages import Page
from ..stores.common import (
    Duration,
    Versioned,
)
from ..stores.records import AsyncRecords, Entry
from .changes import Changes
from .runner import Runner, iterate
from .subscription import subscribed
from .table import Table


class Records:
    """JSON objects under text keys. Opened by ``store.records(name)``."""

    def __init__(self, inner: AsyncRecords, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def table(self) -> Table[Any]:
        """The table underneath; a scope does not confine it."""
        return Table(self._async.table, self._run)

    @property
    def c(self) -> Columns:
        """Columns for criteria: ``records.c.value["field"] > 3``."""
        return self._async.c

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return self._async.capabilities

    def get(self, key: str) -> dict[str, Any] | None:
        """The value, or ``None``. Reading never writes."""
        return self._run(self._async.get(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records found, by key, in the order asked."""
        return self._run(self._async.get_many(keys))

    def put(self, key: str, value: dict[str, Any], *, ttl: Duration | None = None) -> None:
        """Create or overwrite. Without ``ttl`` an earlier expiry is cleared; ``created_at`` stays."""
        return self._run(self._async.put(key, value, ttl=ttl))

    def put_many(
        self, items: Mapping[str, dict[str, Any]] | Iterable[tuple[str, dict[str, Any]]], *, ttl: Duration | None = None
    ) -> None:
        """Create or overwrite many, all or none; of equal keys the last wins."""
        return self._run(self._async.put_many(items, ttl=ttl))

    def create(self, key: str, value: dict[str, Any], *, ttl: Duration | None = None) -> bool:
        """Write only if no live record is there; ``True`` for exactly one of any number of racing callers."""
        return self._run(self._async.create(key, value, ttl=ttl))

    def delete(self, key: str) -> bool:
        """Delete; whether it was there."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[str]) -> int:
        """Delete many in one transaction; how many were there."""
        return self._run(self._async.delete_many(keys))

    def list(
        self,
        prefix: str = "",
        *,
        limit: int | None = 100,
        cursor: str | None = None,
        where: Where | None = None,
        order_by: Any = "key",
    ) -> Page[Entry]:
        """One page of entries under a literal prefix; filters act before the limit, so only the last page is short.

        ``where={"field": value}`` names top-level fields of the value. ``order_by`` is ``"key"``, ``"-updated_at"``,
        ``"-value.field"`` (a number in the value) or any column; ties go by key.
        """
        return self._run(self._async.list(prefix, limit=limit, cursor=cursor, where=where, order_by=order_by))

    def scan(self, prefix: str = "", *, where: Where | None = None, order_by: Any = "key") -> Iterator[Entry]:
        """Every match, streamed in order from one snapshot, in bounded memory."""
        return iterate(self._run, self._async.scan(prefix, where=where, order_by=order_by), ahead=True)

    def mutate(
        self,
        key: str,
        fn: Callable[[dict[str, Any] | None], Any] | Callable[[dict[str, Any] | None], Awaitable[Any]],
        *,
        attempts: int = 8,
        ttl: Duration | None = None,
    ) -> dict[str, Any] | None:
        """Read, change and write without losing an update: ``fn`` gets the value or ``None`` and returns the new value,
        ``howdah.DELETE`` or ``howdah.KEEP``; the result is what is stored.

        A plain function runs while the record is held. A coroutine function runs again when another write came between,
        up to ``attempts`` times, then ``Conflict``. An exception in ``fn`` changes nothing.
        """
        return self._run(self._async.mutate(key, fn, attempts=attempts, ttl=ttl))

    def get_versioned(self, key: str) -> Versioned[dict[str, Any]]:
        """The value with its version and expiry."""
        return self._run(self._async.get_versioned(key))

    def put_versioned(self, key: str, value: Any, *, version: str | None, ttl: Duration | None = None) -> bool:
        """Write only if the version still holds (``None``: absent); ``howdah.DELETE`` deletes; ``False`` when it lost."""
        return self._run(self._async.put_versioned(key, value, version=version, ttl=ttl))

    def changes(self, prefix: str = "", *, since: str | None = None) -> Changes[dict[str, Any]]:
        """Committed changes of the records under a prefix, from every process, in commit order; values as ``old`` and ``new``.

        ``since`` is the ``cursor`` of an earlier change, kept for 24 hours.
        """
        return Changes(self._async.changes(prefix, since=since), self._run)

    def subscribe(
        self, callback: Callable[[Change[dict[str, Any]]], Any], *, prefix: str = "", poll: float | timedelta = 1
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change under a prefix from now on; the function returned ends it at once."""
        return subscribed(self.changes(prefix=prefix), callback, poll)

    def sweep(self) -> int:
        """Delete expired records now instead of in the background; how many."""
        return self._run(self._async.sweep())
