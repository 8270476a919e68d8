"""Key-values: a table ``(key, value, expires_at, version)``. Blocking twin of ``howdah.stores.kv``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from ..events import Listener
from ..stores.common import Duration, Versioned
from ..stores.kv import AsyncKV, Key
from .query import Query
from .runner import Runner
from .subscription import waited
from .table import Table


class KV:
    """Values under text or integer keys. Opened by ``store.kv(name)``."""

    def __init__(self, inner: AsyncKV, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def table(self) -> Table[Any]:
        """The table underneath, for criteria and aggregates; a scope does not confine it."""
        return Table(self._async.table, self._run)

    def put(self, key: Key, value: Any, *, ttl: Duration | None = None) -> None:
        """Store a value, replacing value and expiry. ``ttl`` is seconds or a ``timedelta``, above 0."""
        return self._run(self._async.put(key, value, ttl=ttl))

    def put_many(self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, ttl: Duration | None = None) -> None:
        """Store many, all or none; of equal keys the last wins."""
        return self._run(self._async.put_many(items, ttl=ttl))

    def create(self, key: Key, value: Any, *, ttl: Duration | None = None) -> bool:
        """Store a value only if the key is free; ``True`` for exactly one of any number of racing callers."""
        return self._run(self._async.create(key, value, ttl=ttl))

    def get(self, key: Key, default: Any = None) -> Any:
        """The value, else ``default``."""
        return self._run(self._async.get(key, default))

    def has(self, key: Key) -> bool:
        """Whether the key is there; does not read the value."""
        return self._run(self._async.has(key))

    def get_many(self, keys: Iterable[Key]) -> dict[Any, Any]:
        """The values found, by key, in the order asked."""
        return self._run(self._async.get_many(keys))

    def get_versioned(self, key: Key) -> Versioned[Any]:
        """The value with its version and expiry."""
        return self._run(self._async.get_versioned(key))

    def put_versioned(self, key: Key, value: Any, *, version: str | None, ttl: Duration | None = None) -> bool:
        """Write only if the version still holds (``None``: the key is absent); ``howdah.DELETE`` deletes."""
        return self._run(self._async.put_versioned(key, value, version=version, ttl=ttl))

    def increment(self, key: Key, by: int | float = 1, *, ttl: Duration | None = None) -> int | float:
        """Add ``by`` to a number, atomically; an absent key counts as 0. ``ttl`` renews the expiry, else it stays."""
        return self._run(self._async.increment(key, by, ttl=ttl))

    def touch(self, key: Key, ttl: Duration | None) -> bool:
        """Give a key a new expiry, or none; whether it was there."""
        return self._run(self._async.touch(key, ttl))

    def scan(
        self,
        prefix: str = "",
        *,
        start: Key | None = None,
        stop: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Query[tuple[Any, Any]]:
        """Pairs in key order, streamed: literal prefix, ``start`` included, ``stop`` not; ``.all()`` makes a list."""
        return Query(self._async.scan(prefix, start=start, stop=stop, reverse=reverse, limit=limit), self._run)

    def keys(
        self,
        prefix: str = "",
        *,
        start: Key | None = None,
        stop: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Query[Any]:
        """Keys in order, streamed, without their values."""
        return Query(self._async.keys(prefix, start=start, stop=stop, reverse=reverse, limit=limit), self._run)

    def count(self) -> int:
        """How many keys there are."""
        return self._run(self._async.count())

    def delete(self, key: Key) -> bool:
        """Delete a key; whether it was there."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete keys, all in one transaction; how many were there."""
        return self._run(self._async.delete_many(keys))

    def clear(self) -> int:
        """Delete every key of this store; how many there were."""
        return self._run(self._async.clear())

    def sweep(self) -> int:
        """Delete expired rows now instead of in the background; how many."""
        return self._run(self._async.sweep())

    def on(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at every event ``name``, after the commit; the function returned ends it.

        Listeners are called in the order they were added. One that fails is logged and harms nobody; what a coroutine
        function returns runs as a task.
        """
        return self._async.on(name, fn)

    def once(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at the next event ``name`` only; the function returned takes it back."""
        return self._async.once(name, fn)

    def off(self, name: str, fn: Listener | None = None) -> None:
        """End a listener of an event; without ``fn`` all of them."""
        return self._async.off(name, fn)

    def wait_for(self, name: str, *, timeout: float | timedelta | None = None) -> tuple[Any, ...]:
        """The arguments of the next event ``name``; ``Timeout`` when none comes in ``timeout`` seconds."""
        return waited(self._async, name, timeout)
