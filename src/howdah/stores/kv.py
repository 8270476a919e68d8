"""Key-values: a table ``(key, value, expires_at, version)``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from random import getrandbits
from typing import Any

import pydantic

from ..criteria import And, Compare, Criteria, Prefix
from ..engines.base import Engine, Op
from ..errors import InvalidInput, InvalidKey, InvalidValue
from ..events import Emitting
from ..naming import store_table
from ..pages import check_limit
from ..query import AsyncQuery
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from ..values import DELETE, INT_MAX, INT_MIN, as_list, check_json, decode_json, encode_json
from .common import Duration, Versioned, check_key, expiry, new_version, put_if, read_version, show_version

Key = str | int


def kv_columns(key: type) -> tuple[Column, ...]:
    """The columns of a key-value table."""
    return (
        Column("key", "text" if key is str else "integer"),
        Column("value", "json", nullable=True),
        Column("expires_at", "timestamp", nullable=True),
        Column("version", "integer"),
    )


class AsyncKV(Emitting):
    """Values under text or integer keys. Opened by ``store.kv(name)``."""

    EVENTS = ("put", "get", "get_many", "delete", "clear")

    def __init__(self, engine: Engine, name: str, *, key: type = str, value: Any = None, prefix: str = "") -> None:
        if key not in (str, int):
            raise InvalidInput(f"key={key!r}: keys are str or int")
        if prefix and key is int:
            raise InvalidInput("a scoped store has text keys only")
        self._engine = engine
        self._name = name
        self._int = key is int
        self._prefix = prefix
        self._adapter: pydantic.TypeAdapter[Any] | None = None if value is None else pydantic.TypeAdapter(value)
        columns = kv_columns(key)
        physical = store_table("kvi" if self._int else "kv", name)
        schema = build(physical, columns, key="key", ttl="expires_at", internal=True)
        self._table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, columns, dict, None), physical)
        self._ops = self._table._ops
        self._from_text = self._ops.decoders["value"]

    @property
    def table(self) -> AsyncTable[Any]:
        """The table underneath, for criteria and aggregates; a scope does not confine it."""
        return self._table

    def _key(self, key: Any) -> Key:
        if self._int:
            if type(key) is not int or not INT_MIN <= key <= INT_MAX:
                raise InvalidKey(f"key {key!r:.80}: this store has 64-bit integer keys")
            return key
        if type(key) is str and len(key) < 256 and key.isascii() and "\0" not in key:
            return self._prefix + key
        return self._prefix + check_key(key, empty=True)

    def _row(self, key: Any, value: Any, ttl: Duration | None) -> list[Any]:
        return [self._key(key), self._text(value), expiry(ttl, self._engine.now()), new_version()]

    def _text(self, value: Any) -> str:
        if self._adapter is not None:
            try:
                value = self._adapter.dump_python(self._adapter.validate_python(value, strict=True), mode="json")
            except pydantic.ValidationError as error:
                raise InvalidValue(f"value: {error.errors(include_url=False)[0]['msg']}") from error
        return encode_json(value)

    def _value(self, text: Any) -> Any:
        value = self._from_text(text) if self._from_text is not None else decode_json(text)
        return value if self._adapter is None else self._adapter.validate_python(value)

    def _public(self, key: Any) -> Any:
        return key[len(self._prefix) :] if self._prefix else key

    def _within(self, prefix: str = "", start: Any = None, stop: Any = None) -> Criteria | None:
        parts: list[Criteria] = []
        if self._int:
            if prefix:
                raise InvalidInput("integer keys have no prefix; use start and stop")
        elif self._prefix or prefix:
            parts.append(Prefix("key", self._prefix + check_key(prefix, empty=True)))
        if start is not None:
            parts.append(Compare("key", ">=", self._key(start)))
        if stop is not None:
            parts.append(Compare("key", "<", self._key(stop)))
        return And(tuple(parts)) if parts else None

    async def put(self, key: Key, value: Any, *, ttl: Duration | None = None) -> None:
        """Store a value, replacing value and expiry. ``ttl`` is seconds or a ``timedelta``, above 0."""
        ops = self._ops
        await self._table._write(ops.put_one(ops.encode(self._row(key, value, ttl))), single=True)
        if self._listeners is not None:
            self._emit("put", key, deepcopy(value))

    async def put_many(
        self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, ttl: Duration | None = None
    ) -> None:
        """Store many, all or none; of equal keys the last wins."""
        pairs = as_list(items.items() if isinstance(items, Mapping) else items, "put_many")
        if any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
            raise InvalidInput("put_many takes a mapping or (key, value) pairs")
        ops, check, encode, random = self._ops, self._key, self._text, getrandbits
        due = ops.encode_value("expires_at", expiry(ttl, self._engine.now()))
        rows = {(found := check(k)): [found, encode(v), due, random(63)] for k, v in pairs}
        if rows:
            put, driver = ops.put, list(rows.values())
            if ops.encodes("value"):
                for row in driver:
                    row[1] = ops.encode_value("value", row[1])
            await self._table._write(lambda: put(driver), single=len(driver) == 1)
            if self._listeners is not None:
                for key, value in pairs:
                    self._emit("put", key, deepcopy(value))

    async def create(self, key: Key, value: Any, *, ttl: Duration | None = None) -> bool:
        """Store a value only if the key is free; ``True`` for exactly one of any number of racing callers."""
        driver = self._ops.encode(self._row(key, value, ttl))
        return bool(await self._table._write(lambda: self._ops.create(driver), single=True))

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value, else ``default``."""
        found = self._key(key)
        row = await self._table._get((found,), ("value",))
        if self._listeners is not None:
            self._emit("get", key, None if row is None else self._value(row[0]))
        return default if row is None else self._value(row[0])

    async def has(self, key: Key) -> bool:
        """Whether the key is there; does not read the value."""
        found = self._key(key)
        return await self._table._get((found,), ("key",)) is not None

    async def get_many(self, keys: Iterable[Key]) -> dict[Any, Any]:
        """The values found, by key, in the order asked."""
        wanted = list(dict.fromkeys(self._key(k) for k in as_list(keys, "get_many")))
        if not wanted:
            return {}
        rows = await self._table.reading(lambda: self._ops.get_many([(k,) for k in wanted], ("key", "value")))
        found = {r[0]: r[1] for r in rows}
        result = {self._public(k): self._value(found[k]) for k in wanted if k in found}
        if self._listeners is not None:
            self._emit("get_many", [self._public(k) for k in wanted], dict(result))
        return result

    async def get_versioned(self, key: Key) -> Versioned[Any]:
        """The value with its version and expiry."""
        found = self._key(key)
        row = await self._table._get((found,), ("value", "version", "expires_at"))
        if row is None:
            return Versioned(None, None, None)
        due = self._ops.reader(("expires_at",))(row[2:])["expires_at"]
        return Versioned(self._value(row[0]), show_version(row[1]), due)

    async def put_versioned(self, key: Key, value: Any, *, version: str | None, ttl: Duration | None = None) -> bool:
        """Write only if the version still holds (``None``: the key is absent); ``howdah.DELETE`` deletes."""
        number = read_version(version)
        found = self._key(key)
        row = None if value is DELETE else self._row(key, value, ttl)
        return bool(await self._table._write(lambda: put_if(self._ops, (found,), number, row)))

    async def increment(self, key: Key, by: int | float = 1, *, ttl: Duration | None = None) -> int | float:
        """Add ``by`` to a number, atomically; an absent key counts as 0. ``ttl`` renews the expiry, else it stays."""
        if isinstance(by, bool) or not isinstance(by, (int, float)):
            raise InvalidValue(f"by={by!r}: expected a number")
        found = self._key(key)

        def work() -> Op[Any]:
            while True:
                row = yield from self._ops.locked((found,), ("value", "expires_at"))
                before = 0 if row is None else self._value(row[0])
                if isinstance(before, bool) or not isinstance(before, (int, float)):
                    raise InvalidValue(f"key {key!r} holds {type(before).__name__}, not a number")
                after = before + by
                check_json(after)
                driver = self._ops.encode([found, encode_json(after), expiry(ttl, self._engine.now()), new_version()])
                if row is not None:
                    if ttl is None:
                        driver[2] = row[1]
                    yield from self._ops.put([driver])
                    return after
                if (yield from self._ops.create(driver)):
                    return after

        return await self._table._write(work)  # type: ignore[no-any-return]  # a number

    async def touch(self, key: Key, ttl: Duration | None) -> bool:
        """Give a key a new expiry, or none; whether it was there."""
        due = expiry(ttl, self._engine.now())
        found = self._key(key)
        patch = {"expires_at": None if due is None else self._ops.encode_value("expires_at", due)}
        rows = await self._table._write(lambda: self._ops.update([(found,)], None, patch, ("key",)), single=True)
        return bool(rows)

    def scan(
        self,
        prefix: str = "",
        *,
        start: Key | None = None,
        stop: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncQuery[tuple[Any, Any]]:
        """Pairs in key order, streamed: literal prefix, ``start`` included, ``stop`` not; ``.all()`` makes a list."""
        return self._scan(("key", "value"), prefix, start, stop, reverse, limit).mapped(
            ("key", "value"), lambda row: (self._public(row[0]), self._value(row[1]))
        )

    def keys(
        self,
        prefix: str = "",
        *,
        start: Key | None = None,
        stop: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncQuery[Any]:
        """Keys in order, streamed, without their values."""
        return self._scan(("key",), prefix, start, stop, reverse, limit).mapped(
            ("key",), lambda row: self._public(row[0])
        )

    def _scan(
        self, names: tuple[str, ...], prefix: str, start: Any, stop: Any, reverse: bool, limit: int | None
    ) -> AsyncQuery[Any]:
        where = self._within(prefix, start, stop)
        return self._table.query(where, order_by="-key" if reverse else "key", limit=check_limit(limit), select=names)

    async def count(self) -> int:
        """How many keys there are."""
        return await self._table.count(self._within())

    async def delete(self, key: Key) -> bool:
        """Delete a key; whether it was there."""
        found = self._key(key)
        gone = await self._table._write(lambda: self._ops.delete([(found,)]), single=True)
        if self._listeners is not None:
            self._emit("delete", key)
        return bool(gone)

    async def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete keys, all in one transaction; how many were there."""
        found = list(dict.fromkeys((self._key(k),) for k in as_list(keys, "delete_many")))
        gone = int(await self._table._write(lambda: self._ops.delete(found))) if found else 0
        if self._listeners is not None:
            for (key,) in found:
                self._emit("delete", self._public(key))
        return gone

    async def clear(self) -> int:
        """Delete every key of this store; how many there were."""
        within = self._within()
        gone = await self._table.clear() if within is None else await self._table.delete_where(within)
        if self._listeners is not None:
            self._emit("clear")
        return gone

    async def sweep(self) -> int:
        """Delete expired rows now instead of in the background; how many."""
        return int(await self._table._write(lambda: self._ops.sweep(None)))
