"""A table whose rows by key are kept in memory: read through, bounded, and kept honest by the change feed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .criteria import Where
from .engines.base import innermost
from .errors import Closed, Conflict, Error, InvalidInput, Lagged, LimitExceeded
from .pages import Page
from .query import AsyncQuery
from .registry import opener
from .urls import parse
from .values import as_list, seconds

if TYPE_CHECKING:
    from .table import AsyncTable

R = TypeVar("R")
log = logging.getLogger("howdah")
SLICE = 0.2


class AsyncCached(Generic[R]):
    """Made by ``table.cached(…)``. ``get`` and ``get_many`` answer from memory where they can, absence too; writes go to the
    table first; other processes' writes drop what they touch through the change feed, at the latest after ``max_age``. Inside
    a transaction reads go to the table. Close it to end the feed."""

    def __init__(
        self, table: AsyncTable[R], *, max_rows: int, max_age: float | timedelta, preload: bool = False
    ) -> None:
        if type(max_rows) is not int or max_rows < 1:
            raise InvalidInput(f"max_rows={max_rows!r}: expected an integer >= 1")
        self._inner = table
        self._engine = table._engine
        self._most = max_rows
        self._age = seconds(max_age, "max_age")
        self._preload = preload
        self._single = len(table._schema.key) == 1 and not table._fixed
        self._rows: OrderedDict[Any, tuple[Any, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._epoch = 0
        self._complete_until = 0.0
        self._copy: AsyncTable[R] | None = None
        self._older: AsyncTable[R] | None = None
        """What a query may still be reading."""
        self._state = "new"
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    # The feed ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self._state == "closed":
            raise Closed("this cache is closed; its table is not")
        if self._state != "new" or innermost(self._engine) is not None:
            return
        feed = self._inner.changes()
        await feed.start()
        with self._lock:
            if self._state != "new":
                return  # another first call was quicker
            self._state = "open"
        if self._engine.inline:
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._follow(feed)), name="howdah-cache", daemon=True
            )
            self._thread.start()
        else:
            self._task = asyncio.get_running_loop().create_task(self._follow(feed), context=contextvars.Context())
        if self._preload:
            try:
                await self.refresh()
            except BaseException:
                await self.close()
                raise

    async def _follow(self, feed: Any) -> None:
        while self._state == "open":
            try:
                changes = await feed.poll(timeout=SLICE)
                for change in changes:
                    self._drop([change.key if self._single else tuple(change.key)])
                if self._preload and self._state == "open" and (changes or self._complete_until <= time.monotonic()):
                    await self.refresh()
            except Lagged:
                self.invalidate()
            except LimitExceeded as error:
                self._preload = False
                self.invalidate()
                log.warning("a cache of %s keeps only what is asked for from now on: %s", self._inner.name, error)
            except Closed:
                return
            except Error as error:
                self.invalidate()
                log.warning(
                    "a cache of %s reads from the table until changes are seen again: %s", self._inner.name, error
                )
                await asyncio.sleep(1)

    async def close(self) -> None:
        """End the feed and forget everything."""
        self._state = "closed"
        copies, self._copy, self._older = (self._copy, self._older), None, None
        for copy in copies:
            if copy is not None:
                await copy._engine.close()
        if self._task is not None:
            self._task.cancel()
        self.invalidate()

    # Reading -----------------------------------------------------------------------------------------------------

    def _key(self, key: Any) -> Any:
        """The key under which a row is kept."""
        if self._single and (type(key) is str or type(key) is int):
            return key
        found = self._inner._public_key(self._inner._driver_key(key))
        return found if self._single else tuple(found)

    async def get(self, key: Any) -> R | None:
        """The row with this key, or ``None``; from memory if it is there and young enough."""
        if self._state != "open":
            await self._start()
        name = self._key(key)
        entry = self._rows.get(name)
        if entry is not None and entry[1] > time.monotonic() and innermost(self._engine) is None:
            with self._lock:
                if name in self._rows:
                    self._rows.move_to_end(name)
            return None if entry[0] is None else self._inner._row(entry[0])
        if self._complete_until > time.monotonic() and innermost(self._engine) is None:
            return None
        epoch = self._epoch
        driver = await self._inner._get(self._inner._driver_key(key), self._inner._schema.names)
        self._keep(name, driver, epoch)
        return None if driver is None else self._inner._row(driver)

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The rows found, by key, in the order asked; those that are not in memory are read at once."""
        names = {self._key(k): k for k in as_list(keys, "get_many")}
        if not names:
            return {}
        await self._start()
        now, inside = time.monotonic(), innermost(self._engine) is not None
        found: dict[Any, Any] = {}
        missing = []
        for name, key in names.items():
            entry = None if inside else self._rows.get(name)
            if entry is not None and entry[1] > now:
                found[name] = entry[0]
            elif inside or self._complete_until <= now:
                missing.append((name, self._inner._driver_key(key)))
        if missing:
            epoch, table = self._epoch, self._inner
            rows = await table.reading(lambda: table._ops.get_many([k for _, k in missing], table._schema.names))
            by_key = {tuple(r[i] for i in table._ops.key_places): r for r in rows}
            for name, driver_key in missing:
                found[name] = by_key.get(driver_key)
                self._keep(name, found[name], epoch)
        return {name: self._inner._row(found[name]) for name in names if found.get(name) is not None}

    def _keep(self, name: Any, driver: Any, epoch: int) -> None:
        """Remember a row, unless something was dropped since it was read: it may be a past one."""
        if innermost(self._engine) is not None or self._state != "open":
            return
        age = self._age if driver is None or self._inner._schema.ttl is None else min(self._age, self._left(driver))
        with self._lock:
            if epoch != self._epoch:
                return
            self._rows[name] = (driver, time.monotonic() + age)
            self._rows.move_to_end(name)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)
                self._complete_until = 0.0

    def _left(self, driver: Any) -> float:
        """Seconds until a row expires."""
        table = self._inner
        due = table._read(driver)[table._schema.ttl or ""]
        return float("inf") if due is None else float(due.timestamp() - self._engine.now())

    def query(
        self,
        where: Where | None = None,
        *,
        order_by: Any = None,
        limit: int | None = None,
        offset: int = 0,
        select: Sequence[str] | None = None,
    ) -> AsyncQuery[R]:
        """Rows that match: from memory when everything is there (``preload=True``), else from the table."""
        return self._source().query(where, order_by=order_by, limit=limit, offset=offset, select=select)

    async def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page: from memory when everything is there, else from the table."""
        return await self._source().page(where, order_by=order_by, limit=limit, cursor=cursor)

    async def count(self, where: Where | None = None) -> int:
        """How many rows match: from memory when everything is there, else from the table."""
        return await self._source().count(where)

    def _source(self) -> AsyncTable[R]:
        """What answers queries now."""
        whole = self._complete_until > time.monotonic() and innermost(self._engine) is None
        return self._copy if whole and self._copy is not None else self._inner

    async def _copied(self, rows: Sequence[Any]) -> AsyncTable[R]:
        """A table in memory with these rows (driver form)."""
        table, url = self._inner, parse("memory:")
        options = {"clock": self._engine.now, "create": True}
        engine = await opener(url)(url, inline=self._engine.inline, options=options)
        copy = type(table)(
            engine,
            replace(table._schema, version=None),  # rows that were counted where they came from
            table._rows,
            table._ops.physical,
            mapping_column=table._mapping_column,
        )
        copy._fixed = dict(table._fixed)
        await copy.put_stored([copy._stored(table._read(row)) for row in rows])
        return copy

    # Forgetting --------------------------------------------------------------------------------------------------

    def _drop(self, names: Iterable[Any]) -> None:
        with self._lock:
            self._epoch += 1
            self._complete_until = 0.0
            for name in names:
                self._rows.pop(name, None)

    def _touched(self, names: list[Any] | None) -> None:
        """Forget rows that were written: now, and in a transaction once more when it has committed."""
        forget = self.invalidate if names is None else lambda: self._drop(names)
        forget()
        node = innermost(self._engine)
        if node is not None:
            node.after.append(forget)

    def invalidate(self) -> None:
        """Forget everything; the next reads go to the table."""
        with self._lock:
            self._epoch += 1
            self._complete_until = 0.0
            self._rows.clear()

    async def refresh(self) -> int:
        """Read every row anew, so that absence is known, too; how many. ``LimitExceeded`` when there are more than
        ``max_rows``."""
        await self._start()
        self.invalidate()
        epoch, table = self._epoch, self._inner
        ops = table._ops
        rows = await table.reading(
            lambda: ops.select(table._criteria(None), (), names=table._schema.names, limit=self._most + 1)
        )
        if len(rows) > self._most:
            raise LimitExceeded(f"{table.name} has more rows than a cache of {self._most:,} can keep; raise max_rows")
        for row in rows:
            key = table._public_key([row[i] for i in ops.key_places])
            self._keep(key if self._single else tuple(key), row, epoch)
        copy = await self._copied(rows) if self._preload else None
        with self._lock:
            if epoch == self._epoch and self._state == "open":
                self._complete_until = time.monotonic() + self._age
                copy, self._older, self._copy = self._older, self._copy, copy
        if copy is not None:
            await copy._engine.close()
        return len(rows)

    # Writing -----------------------------------------------------------------------------------------------------

    def _names(self, rows: Iterable[Any]) -> list[Any]:
        return [self._key(row) for row in rows]

    async def put(self, row: R | Mapping[str, Any]) -> R:
        """As the table's ``put``."""
        return (await self.put_many([row]))[0]

    async def put_many(self, rows: Iterable[R | Mapping[str, Any]]) -> list[R]:
        """As the table's ``put_many``."""
        given = as_list(rows, "put_many")
        try:
            made = await self._inner.put_many(given)
        except Conflict:  # what is kept here is not what is there
            self._touched(self._names(row for row in given if self._keyed(row)))
            raise
        self._touched(self._names(made))
        return made

    def _keyed(self, row: Any) -> bool:
        """Whether a row has its key already."""
        try:
            self._key(row)
        except InvalidInput:
            return False
        return True

    async def create(self, row: R | Mapping[str, Any]) -> R | None:
        """As the table's ``create``."""
        made = await self._inner.create(row)
        self._touched(self._names([row if made is None else made]))
        return made

    async def upsert(self, row: R | Mapping[str, Any], on: str | Sequence[str]) -> tuple[R, bool]:
        """As the table's ``upsert``."""
        made, inserted = await self._inner.upsert(row, on)
        self._touched(self._names([made]))
        return made, inserted

    async def merge(self, row: Mapping[str, Any]) -> R:
        """As the table's ``merge``."""
        try:
            made = await self._inner.merge(row)
        except Conflict:
            self._touched(self._names([row]))
            raise
        self._touched(self._names([made]))
        return made

    async def update_one(self, where: Where, patch: Mapping[str, Any]) -> R | None:
        """As the table's ``update_one``."""
        made = await self._inner.update_one(where, patch)
        self._touched([] if made is None else self._names([made]))
        return made

    async def update_where(self, where: Where, patch: Mapping[str, Any]) -> int:
        """As the table's ``update_where``; forgets everything."""
        count = await self._inner.update_where(where, patch)
        self._touched(None)
        return count

    async def delete(self, key: Any) -> bool:
        """As the table's ``delete``."""
        gone = await self._inner.delete(key)
        self._touched([self._key(key)])
        return gone

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """As the table's ``delete_many``."""
        wanted = as_list(keys, "delete_many")
        gone = await self._inner.delete_many(wanted)
        self._touched(self._names(wanted))
        return gone

    async def delete_where(self, where: Where) -> int:
        """As the table's ``delete_where``; forgets everything."""
        gone = await self._inner.delete_where(where)
        self._touched(None)
        return gone

    async def clear(self) -> int:
        """As the table's ``clear``."""
        gone = await self._inner.clear()
        self._touched(None)
        return gone
