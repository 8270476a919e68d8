"""Records: JSON objects under text keys, with times, filters, pages, compare-and-set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ..changes import AsyncChanges, Change, subscribe
from ..criteria import And, Columns, Criteria, Prefix, Where
from ..engines.base import Capabilities, Engine
from ..errors import InvalidInput, InvalidValue
from ..naming import store_table
from ..pages import Page
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from ..values import DELETE, as_list, encode_json
from .common import (
    Duration,
    Versioned,
    check_key,
    expiry,
    moment,
    mutate,
    new_version,
    put_if,
    read_version,
    show_version,
)

COLUMNS = (
    Column("key", "text"),
    Column("value", "json"),
    Column("created_at", "timestamp"),
    Column("updated_at", "timestamp"),
    Column("expires_at", "timestamp", nullable=True),
    Column("version", "integer"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with its times."""

    key: str
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None


class AsyncRecords:
    """JSON objects under text keys. Opened by ``store.records(name)``."""

    def __init__(self, engine: Engine, name: str, *, prefix: str = "") -> None:
        self._engine = engine
        self._prefix = prefix
        physical = store_table("rec", name)
        schema = build(
            physical,
            COLUMNS,
            key="key",
            indexes=["updated_at"],
            ttl="expires_at",
            kept={"created_at": "updated_at"},
            internal=True,
        )
        self._table: AsyncTable[Any] = AsyncTable(
            engine, schema, RowType(None, COLUMNS, dict, None), physical, mapping_column="value"
        )
        self._ops = self._table._ops

    @property
    def table(self) -> AsyncTable[Any]:
        """The table underneath; a scope does not confine it."""
        return self._table

    @property
    def c(self) -> Columns:
        """Columns for criteria: ``records.c.value["field"] > 3``."""
        return self._table.c

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return self._engine.capabilities

    def _key(self, key: Any) -> str:
        return self._prefix + check_key(key, empty=False)

    def _row(self, key: Any, value: Any, ttl: Duration | None) -> list[Any]:
        if type(value) is not dict:
            raise InvalidValue(f"record {key!r:.80}: expected a JSON object (dict), got {type(value).__name__}")
        now = self._engine.now()
        at = moment(now)
        return [self._key(key), encode_json(value), at, at, expiry(ttl, now), new_version()]

    def _decode(self, text: Any) -> Any:
        return self._ops.decoders["value"](text)

    def _entry(self, row: Mapping[str, Any]) -> Entry:
        key = row["key"][len(self._prefix) :]
        return Entry(key, row["value"], row["created_at"], row["updated_at"], row["expires_at"])

    def _where(self, prefix: str, where: Where | None) -> Criteria | None:
        if not isinstance(prefix, str):
            raise InvalidInput(f"prefix={prefix!r}: expected text")
        found = self._table._criteria(where)
        parts = [found] if found is not None else []
        if self._prefix or prefix:
            parts.append(Prefix("key", self._prefix + check_key(prefix, empty=True)))
        return And(tuple(parts)) if parts else None

    async def get(self, key: str) -> dict[str, Any] | None:
        """The value, or ``None``. Reading never writes."""
        found = self._key(key)
        row = await self._table._get((found,), ("value",))
        return None if row is None else self._decode(row[0])

    async def get_many(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records found, by key, in the order asked."""
        wanted = list(dict.fromkeys(self._key(k) for k in as_list(keys, "get_many")))
        if not wanted:
            return {}
        rows = await self._table.reading(lambda: self._ops.get_many([(k,) for k in wanted], ("key", "value")))
        found = {r[0]: r[1] for r in rows}
        return {k[len(self._prefix) :]: self._decode(found[k]) for k in wanted if k in found}

    async def put(self, key: str, value: dict[str, Any], *, ttl: Duration | None = None) -> None:
        """Create or overwrite. Without ``ttl`` an earlier expiry is cleared; ``created_at`` stays."""
        driver = self._ops.encode(self._row(key, value, ttl))
        await self._table._write(self._ops.put_one(driver), single=True)

    async def put_many(
        self, items: Mapping[str, dict[str, Any]] | Iterable[tuple[str, dict[str, Any]]], *, ttl: Duration | None = None
    ) -> None:
        """Create or overwrite many, all or none; of equal keys the last wins."""
        pairs = as_list(items.items() if isinstance(items, Mapping) else items, "put_many")
        if any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
            raise InvalidInput("put_many takes a mapping or (key, value) pairs")
        rows = {row[0]: row for row in (self._row(k, v, ttl) for k, v in pairs)}
        driver = [self._ops.encode(r) for r in rows.values()]
        if driver:
            await self._table._write(lambda: self._ops.put(driver))

    async def create(self, key: str, value: dict[str, Any], *, ttl: Duration | None = None) -> bool:
        """Write only if no live record is there; ``True`` for exactly one of any number of racing callers."""
        driver = self._ops.encode(self._row(key, value, ttl))
        return bool(await self._table._write(lambda: self._ops.create(driver), single=True))

    async def delete(self, key: str) -> bool:
        """Delete; whether it was there."""
        found = self._key(key)
        return bool(await self._table._write(lambda: self._ops.delete([(found,)]), single=True))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Delete many in one transaction; how many were there."""
        found = list(dict.fromkeys((self._key(k),) for k in as_list(keys, "delete_many")))
        return int(await self._table._write(lambda: self._ops.delete(found))) if found else 0

    async def list(
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
        page = await self._table.page(self._where(prefix, where), order_by=order_by, limit=limit, cursor=cursor)
        return Page([self._entry(r) for r in page.items], page.next_cursor)

    async def scan(
        self, prefix: str = "", *, where: Where | None = None, order_by: Any = "key"
    ) -> AsyncIterator[Entry]:
        """Every match, streamed in order from one snapshot, in bounded memory."""
        query = self._table.query(self._where(prefix, where), order_by=order_by)
        await self._table._ensure()
        async for row in query.stream_snapshot():
            yield self._entry(row)

    async def mutate(
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
        found = self._key(key)
        return await mutate(  # type: ignore[no-any-return]  # what fn made
            self._engine, self._table, (found,), fn, self._decode, lambda value: self._row(key, value, ttl), attempts
        )

    async def get_versioned(self, key: str) -> Versioned[dict[str, Any]]:
        """The value with its version and expiry."""
        found = self._key(key)
        row: Sequence[Any] | None = await self._table._get((found,), ("value", "version", "expires_at"))
        if row is None:
            return Versioned(None, None, None)
        due = self._ops.reader(("expires_at",))(row[2:])["expires_at"]
        return Versioned(self._decode(row[0]), show_version(row[1]), due)

    async def put_versioned(self, key: str, value: Any, *, version: str | None, ttl: Duration | None = None) -> bool:
        """Write only if the version still holds (``None``: absent); ``howdah.DELETE`` deletes; ``False`` when it lost."""
        number = read_version(version)
        found = self._key(key)
        row = None if value is DELETE else self._row(key, value, ttl)
        return bool(await self._table._write(lambda: put_if(self._ops, (found,), number, row)))

    def changes(self, prefix: str = "", *, since: str | None = None) -> AsyncChanges[dict[str, Any]]:
        """Committed changes of the records under a prefix, from every process, in commit order; values as ``old`` and ``new``.

        ``since`` is the ``cursor`` of an earlier change, kept for 24 hours.
        """
        return AsyncChanges[Any](self._table, self._where(prefix, None), since).mapped(self._change)

    def _change(self, change: Change[Any]) -> Change[Any]:
        old, new = (None if row is None else row["value"] for row in (change.old, change.new))
        return replace(change, key=change.key[len(self._prefix) :], old=old, new=new)

    async def subscribe(
        self, callback: Callable[[Change[dict[str, Any]]], Any], *, prefix: str = "", poll: float | timedelta = 1
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change under a prefix from now on; the function returned ends it at once."""
        return await subscribe(self.changes(prefix).polled(poll), callback)

    async def sweep(self) -> int:
        """Delete expired records now instead of in the background; how many."""
        return int(await self._table._write(lambda: self._ops.sweep(None)))
