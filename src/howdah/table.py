"""``Table``, the one primitive: typed rows under a key, with criteria, pages, aggregates and search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from .cached import AsyncCached
from .changes import AsyncChanges, Change, subscribe
from .criteria import And, Columns, Compare, Order, Where, resolve_order
from .engines.base import Engine, Op, innermost
from .errors import Conflict, InvalidInput, InvalidValue
from .fused import Searching
from .hits import Hits, Leg
from .listing import Listing
from .migrations import Migration
from .pages import check_limit
from .query import AsyncQuery
from .rows import RowType
from .schema import Schema
from .search.fusion import Fusion
from .values import INT_MAX, MISSING, as_list

R = TypeVar("R")
T = TypeVar("T")
Driver = list[Any]
BATCH = 500


class AsyncTable(Listing[R]):
    """Rows of one type. Opened by ``store.table(…)``; made or grown in the database on first use."""

    EVENTS = ("put", "get", "get_many", "query", "delete", "clear", "rollback", "search")

    def __init__(
        self,
        engine: Engine,
        schema: Schema,
        rows: RowType,
        physical: str,
        *,
        mapping_column: str | None = None,
        migrations: tuple[Migration, ...] = (),
    ) -> None:
        super().__init__(engine, schema, rows, physical, mapping_column, migrations)
        self._searching = Searching(schema, self._ops)
        self._c = Columns(schema)

    @property
    def name(self) -> str:
        """The table's name."""
        return self._schema.name

    @property
    def c(self) -> Columns:
        """The columns, for criteria: ``t.c.age >= 18``."""
        return self._c

    @property
    def schema(self) -> Schema:
        """The declaration, checked."""
        return self._schema

    # Writing -----------------------------------------------------------------------------------------------------

    async def put(self, row: R | Mapping[str, Any]) -> R:
        """Insert a row, or replace the whole row with the same key. Returns it as stored, with a generated key.

        With a version column, version 0 inserts and any other replaces the row that still has it, else ``Conflict``.
        Raises ``InvalidValue`` for a bad row and ``DuplicateKey`` when a unique index refuses it.
        """
        return (await self.put_many([row]))[0]

    async def put_many(self, rows: Iterable[R | Mapping[str, Any]]) -> list[R]:
        """Put many rows at once, all or none; ``result[i]`` belongs to ``rows[i]``. Of equal keys the last wins."""
        if isinstance(rows, (str, bytes, Mapping)):
            raise InvalidInput(f"{self._schema.name}: put_many takes an iterable of rows, got {type(rows).__name__}")
        stored = [self._stored(row, f"row {i}") for i, row in enumerate(as_list(rows, "put_many"))]
        if not stored:
            return []
        driver = await self.put_stored(stored)
        if self._listeners is not None:
            for last in {tuple(d[i] for i in self._ops.key_places): d for d in driver}.values():
                self._emit("put", self._row(last))
        return [self._row(d) for d in driver]

    def _told(self, driver: Sequence[Any]) -> R:
        """A row as it is stored now, after telling the listeners."""
        if self._listeners is not None:
            self._emit("put", self._row(driver))
        return self._row(driver)

    async def put_stored(
        self, stored: Sequence[list[Any]], *, also: Callable[[], Op[None]] | None = None
    ) -> list[Driver]:
        """Put checked rows, and do something ``also`` in the same write; the rows in driver form, one for each given."""
        ops, places = self._ops, self._ops.key_places
        generated = self._generates
        fresh: list[Driver] = []
        unique: dict[tuple[Any, ...], Driver] = {}
        slots: list[Any] = []
        place = -1
        if generated and self._schema.auto is not None:
            place = self._schema.names.index(self._schema.auto.name)
        for values in stored:
            if generated and values[place] is MISSING:
                row = ops.encode([None if v is MISSING else v for v in values])
                fresh.append(row)
                slots.append(row)
                continue
            row = ops.encode(values)
            key = tuple(row[i] for i in places)
            unique[key] = row
            slots.append(key)
        rows = list(unique.values())
        seen = self._count_up(rows)
        self._count_up(fresh, 0)
        single = not fresh and ops.plain and len(rows) == 1 and not generated and also is None and not seen

        def work() -> Op[list[Driver]]:
            made: list[Driver] = []
            if rows:
                if seen:
                    yield from self._replacing(rows, seen)
                else:
                    yield from ops.put(rows)
                if generated:
                    yield from ops.numbers.raise_to(max(r[place] for r in rows))
            if fresh:
                made = yield from ops.insert_generated(fresh, place, _same)
            if also is not None:
                yield from also()
            return made

        made = iter(await self._counted(work, single=single, operation="put"))
        return [next(made) if isinstance(slot, list) else unique[slot] for slot in slots]

    def _count_up(self, rows: Sequence[Driver], begin: int | None = None) -> list[int]:
        """The versions that rows were read with, or ``begin``, each now one higher; none without a version column."""
        if self._schema.version is None:
            return []
        place = self._schema.names.index(self._schema.version)
        seen = [row[place] if begin is None else begin for row in rows]
        if any(n >= INT_MAX for n in seen):
            raise InvalidValue(f"{self._schema.name}: column {self._schema.version!r}: a version below {INT_MAX}")
        for row, number in zip(rows, seen, strict=True):
            row[place] = number + 1
        return seen

    def _replacing(self, rows: Sequence[Driver], seen: Sequence[int]) -> Op[None]:
        """Replace the rows that still have the versions seen; insert those of version 0."""
        names, places, version = self._schema.names, self._ops.key_places, self._schema.version
        for key, row, number in sorted((tuple(r[i] for i in places), r, n) for r, n in zip(rows, seen, strict=True)):
            # Rows from before there were versions have none, which is 0.
            if number == 0 and (yield from self._ops.create(row)):
                continue
            patch = {n: v for n, v in zip(names, row, strict=True) if n not in self._schema.key}
            if not (yield from self._ops.update([key], Compare(str(version), "=", number), patch, self._schema.key)):
                raise _Lost(key, number)

    async def _counted(self, work: Callable[[], Op[T]], **how: Any) -> T:
        """A write that versions may refuse, which the engine must not try again: it would be refused again."""
        try:
            return await self._write(work, **how)  # type: ignore[no-any-return]  # what the work gives
        except _Lost as lost:
            key = self._public_key(lost.key)
            what = f"no longer has version {lost.seen}" if lost.seen else "is there already"
            raise Conflict(f"{self._schema.name}: row {key!r} {what}: read it and change it again") from None

    async def reencrypt(self) -> int:
        """Encrypt anew, under the keyring's current key, what is encrypted under another; how many rows. Safe to run while
        others write, and again after it was cut short."""
        if all(c.sealed is None for c in self._schema.columns):
            raise InvalidInput(f"{self._schema.name}: no column is encrypted")
        orders = [Order(k) for k in self._schema.key]
        after: list[Any] | None = None
        total = 0
        while True:
            rows, after = await self._page(None, orders, BATCH, after)
            total += int(await self._write(partial(self._resealing, rows), operation="reencrypt"))
            if after is None:
                return total

    def _resealing(self, rows: Sequence[Sequence[Any]]) -> Op[int]:
        """Seal anew what is under another key, in rows that are still as they were read."""
        total = 0
        sealed = [(i, c.name, c.sealed) for i, c in enumerate(self._schema.columns) if c.sealed is not None]
        for row in rows:
            old = {n: (s, row[i]) for i, n, s in sealed if row[i] is not None and not s.current(row[i])}
            if old:
                key = tuple(row[i] for i in self._ops.key_places)
                same = And(tuple(Compare(n, "=", v) for n, (_, v) in old.items()))
                new = {n: s.reseal(v) for n, (s, v) in old.items()}
                if (count := self._schema.version) is not None:  # what the row says does not change
                    new[count] = row[self._schema.names.index(count)]
                    same = And((same, Compare(count, "=", new[count])))
                total += len((yield from self._ops.update([key], same, new, self._schema.key)))
        return total

    async def create(self, row: R | Mapping[str, Any]) -> R | None:
        """Insert a row only if its key is free (an expired row counts as absent); ``None`` if it is not.

        Of any number of racing callers exactly one gets the row. Raises ``DuplicateKey`` for a unique index.
        """
        values = self._stored(row)
        if MISSING in values:
            return (await self.put_many([row]))[0]
        driver = self._ops.encode(values)
        plain = self._ops.plain and not self._generates
        made = await self._write(lambda: self._creating(driver), single=plain, operation="create")
        return self._told(driver) if made else None

    def _creating(self, driver: Driver) -> Op[bool]:
        """Insert if the key is free; a generated key is never handed out after a caller's own that is as large."""
        if self._schema.version is not None:
            driver[self._schema.names.index(self._schema.version)] = 1
        made: bool = yield from self._ops.create(driver)
        if made and self._generates and self._schema.auto is not None:
            yield from self._ops.numbers.raise_to(driver[self._schema.names.index(self._schema.auto.name)])
        return made

    async def upsert(self, row: R | Mapping[str, Any], on: str | Sequence[str]) -> tuple[R, bool]:
        """Overwrite in place the row with the same value of the unique index ``on``, else insert.

        Returns the stored row, which keeps its primary key, and whether it was inserted. ``on`` names exactly one
        declared unique index, its columns in any order; a null among them is ``InvalidInput``.
        """
        wanted = (on,) if isinstance(on, str) else tuple(on)
        index = next((u for u in self._schema.unique if sorted(u) == sorted(wanted)), None)
        if index is None:
            known = ", ".join(str(u) for u in self._schema.unique) or "none"
            raise InvalidInput(f"{self._schema.name}: on={on!r} is no declared unique index; there are: {known}")
        values = self._stored(row)
        for name in index:
            if values[self._schema.names.index(name)] is None:
                raise InvalidInput(f"{self._schema.name}: on={on!r}: {name!r} is null, and nulls are never equal")
        ops, auto = self._ops, self._schema.auto

        def work() -> Op[tuple[Driver, bool]]:
            driver = ops.encode([None if v is MISSING else v for v in values])

            def generate() -> Op[Driver]:
                made = list(driver)
                if MISSING in values and auto is not None:
                    yield from ops.numbers.guard()
                    made[self._schema.names.index(auto.name)] = (yield from ops.numbers.allocate(1))[0]
                return made

            result: tuple[Driver, bool] = yield from ops.upsert(list(driver), index, generate)
            if result[1] and self._generates and auto is not None:
                yield from ops.numbers.raise_to(result[0][self._schema.names.index(auto.name)])
            return result

        driver, inserted = await self._write(work, operation="upsert")
        return self._told(driver), bool(inserted)

    async def update_one(self, where: Where, patch: Mapping[str, Any]) -> R | None:
        """Compare and set: give the first matching row in key order the values of ``patch``; the row, or ``None``.

        Of two racing calls with the same match exactly one succeeds.
        """
        found, change = self._required(where), self._patch(patch)
        row = await self._write(lambda: self._ops.update_one(found, change), operation="update_one")
        return None if row is None else self._told(row)

    async def update_where(self, where: Where, patch: Mapping[str, Any]) -> int:
        """Give every matching row the values of ``patch``, in one transaction; how many there were."""
        found, change = self._required(where), self._patch(patch)
        names = self._schema.key if self._listeners is None else self._schema.names
        rows = await self._write(lambda: self._ops.update(None, found, change, names), operation="update_where")
        if names is not self._schema.key:
            for row in rows:
                self._told(row)
        return len(rows)

    async def merge(self, row: Mapping[str, Any]) -> R:
        """Change the given columns of the row with this key and keep the others, or insert it; the row as stored.

        A version among them must be the row's, else ``Conflict``.
        """
        if not isinstance(row, Mapping):
            raise InvalidInput(f"{self._schema.name}: merge takes a mapping of columns, got {type(row).__name__}")
        key = self._driver_key(row)
        version = self._schema.version
        change = {n: v for n, v in row.items() if n not in (*self._schema.key, version)}
        patch = self._patch(change) if change else {}
        seen = None if version is None or version not in row else self._by_name[version](row[version])
        same = None if version is None or seen is None else Compare(version, "=", seen)

        def work() -> Op[Any]:
            while True:
                if patch:
                    rows = yield from self._ops.update([key], same, patch, self._schema.names)
                else:
                    found = yield from self._ops.get_many([key], self._schema.names)
                    rows = [r for r in found if seen is None or r[self._schema.names.index(str(version))] == seen]
                if rows:
                    return rows[0]
                fresh = None if seen else self._ops.encode(self._stored(row))
                if fresh is not None and (yield from self._creating(fresh)):
                    return fresh
                if seen is not None:
                    raise _Lost(key, seen)

        return self._told(await self._counted(work, operation="merge"))

    async def delete(self, key: Any) -> bool:
        """Delete by key (or row); whether it was there."""
        found = self._driver_key(key)
        gone = await self._write(lambda: self._ops.delete([found]), single=self._ops.text is None, operation="delete")
        self._gone([found])
        return bool(gone)

    def _gone(self, keys: Iterable[Sequence[Any]]) -> None:
        if self._listeners is not None:
            for key in keys:
                self._emit("delete", self._public_key(key))

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete by keys, all in one transaction; how many were there."""
        found = list(dict.fromkeys(self._driver_key(k) for k in as_list(keys, "delete_many")))
        total = int(await self._write(lambda: self._ops.delete(found), operation="delete_many")) if found else 0
        self._gone(found)
        return total

    async def delete_where(self, where: Where) -> int:
        """Delete every match, in one transaction; how many there were.

        Raises ``EmptyCriteria`` for none and ``UnfilteredDelete`` for criteria that exclude nothing.
        """
        found = self._required(where)
        if self._listeners is None:
            return int(await self._write(lambda: self._ops.delete_where(found), operation="delete_where"))
        orders = [Order(k) for k in self._schema.key]

        def work() -> Op[list[tuple[Any, ...]]]:
            found_keys = yield from self._ops.select(found, orders, names=self._schema.key, limit=None)
            keys = [tuple(k) for k in found_keys]
            yield from self._ops.delete(keys)
            return keys

        rows = await self._write(work, operation="delete_where")
        self._gone(rows)
        return len(rows)

    async def clear(self) -> int:
        """Delete all rows; table, indexes and bookkeeping stay. How many there were."""
        inside = self._criteria(None)
        work = self._ops.clear if inside is None else lambda: self._ops.delete_where(inside)
        total = int(await self._write(work, operation="clear"))
        if self._listeners is not None:
            self._emit("clear")
        return total

    async def drop(self) -> None:
        """Remove the table with its data and indexes."""
        await self._engine.drop(self._ops)
        self._ready = False

    # Reading -----------------------------------------------------------------------------------------------------

    async def get(self, key: Any) -> R | None:
        """The row with this key, or ``None``."""
        wanted = self._driver_key(key)
        row = await self._get(wanted, self._schema.names)
        if self._listeners is not None:
            self._emit("get", self._public_key(wanted), None if row is None else self._row(row))
        return None if row is None else self._row(row)

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The rows found, by key value (or tuple), in the order asked."""
        wanted = list(dict.fromkeys(self._driver_key(k) for k in as_list(keys, "get_many")))
        if not wanted:
            return {}
        rows = await self.reading(lambda: self._ops.get_many(wanted, self._schema.names))
        found = {tuple(r[i] for i in self._ops.key_places): r for r in rows}
        result = {self._public_key(k): self._row(found[k]) for k in wanted if k in found}
        if self._listeners is not None:
            self._emit("get_many", [self._public_key(k) for k in wanted], dict(result))
        return result

    def query(
        self,
        where: Where | None = None,
        *,
        order_by: Any = None,
        limit: int | None = None,
        offset: int = 0,
        select: Sequence[str] | None = None,
        covering: bool = False,
    ) -> AsyncQuery[R]:
        """Rows that match, in order: iterate to stream them, or call ``all()`` or ``first()``.

        ``where`` is criteria or a mapping; ``order_by`` a column name, ``-name``, ``col.desc()`` or a list of them, key
        columns breaking ties; ``select`` gives dicts of just those columns; ``covering=True`` insists that an index
        serves the query alone, else ``NoCoveringIndex``. A stream reads in batches and holds no connection between.
        """
        return AsyncQuery(
            self,
            self._criteria(where),
            resolve_order(order_by, self._schema, self._mapping_column),
            explicit=0 if order_by is None else len(order_by) if isinstance(order_by, (list, tuple)) else 1,
            limit=check_limit(limit),
            offset=check_limit(offset, "offset") or 0,
            select=select,
            covering=covering,
        )

    def scoped(self, **columns: Any) -> AsyncTable[R]:
        """The same table confined to rows with these values: they are written into every row and part of every filter.

        The key must contain the columns; key arguments leave them out.
        """
        missing = [n for n in columns if n not in self._schema.key]
        if missing or not columns or len(columns) == len(self._schema.key):
            raise InvalidInput(
                f"{self._schema.name}: scope {sorted(columns)}: some, not all, of the key {self._schema.key}"
            )
        view: AsyncTable[R] = copy(self)
        view._listeners = None
        view._fixed = {**self._fixed, **{n: self._by_name[n](v) for n, v in columns.items()}}
        return view

    def changes(self, where: Where | None = None, *, since: str | None = None) -> AsyncChanges[R]:
        """Committed changes of rows that match ``where`` (before or after), from every process, in commit order.

        ``async for change in table.changes()`` goes on for ever; ``since`` is the ``cursor`` of an earlier change, kept for
        24 hours. A table that nobody has watched for a day pays nothing.
        """
        return AsyncChanges(self, self._criteria(where), since)

    async def subscribe(
        self, callback: Callable[[Change[R]], Any], *, where: Where | None = None, poll: float | timedelta = 1
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change from now on; the function returned ends it at once.

        A failing callback is logged. Where nothing is pushed, other processes' changes come at most ``poll`` seconds late.
        """
        return await subscribe(self.changes(where).polled(poll), callback)

    def cached(
        self, *, max_rows: int = 10_000, max_age: float | timedelta = 60, preload: bool = False
    ) -> AsyncCached[R]:
        """This table with rows by key kept in memory: at most ``max_rows``, no older than ``max_age`` seconds, dropped when
        another process changes them. ``preload`` reads all of them at first, so that absence is known, too."""
        return AsyncCached(self, max_rows=max_rows, max_age=max_age, preload=preload)

    async def search(
        self,
        dense: Any = None,
        *,
        sparse: Any = None,
        text: str | None = None,
        legs: Sequence[Leg] | None = None,
        limit: int | None = 10,
        where: Where | None = None,
        min_score: float | None = None,
        fusion: str | Fusion = "rrf",
        weights: Mapping[str, float] | None = None,
        exact: bool = False,
        ef: int | None = None,
        explain: bool = False,
    ) -> Hits[R]:
        """The best rows by vector, sparse vector, text, or several of them fused; filters act inside the search.

        A vector hit's score is its similarity (cosine −1 … 1), a text hit's its BM25, a fused one is in [0, 1]; ties go
        by key. Never fewer hits than exist. ``hits.plan`` tells how each leg was answered, ``explain`` each leg's share.
        Raises ``Unsupported`` for a leg the table has no data for, ``DimensionMismatch`` for a vector of another length.
        """
        plan = self._searching.plan(dense, sparse, text, legs, check_limit(limit), min_score, fusion, weights, ef)
        criteria = self._criteria(where)
        if plan.limit == 0:
            return Hits([], {})
        private = innermost(self._engine) is not None
        found = await self.reading(
            lambda: self._searching.run(plan, criteria, exact=exact, private=private),
            heavy=True,
            snapshot=any(leg.column is None for leg in plan.legs) or len(plan.legs) > 1 or ef is not None,
        )
        hits: Hits[R] = self._searching.hits(found, plan, self._row, self._public_key, explain=explain)
        if self._listeners is not None:
            self._emit("search", dense, hits)
        return hits


def _same(number: int) -> int:
    return number


class _Lost(Exception):
    """A row that has another version than the one that was read."""

    def __init__(self, key: Sequence[Any], seen: int) -> None:
        super().__init__()
        self.key = key
        self.seen = seen
