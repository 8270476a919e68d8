"""Cached tables: quick, bounded, and never another process's past beyond the stated age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import howdah
from howdah import InvalidInput, Store
from tests.conftest import PERSISTENT, open_store

ITEMS = {
    "title": "items",
    "properties": {"id": {"type": "integer"}, "note": {"type": "string"}, "meta": {"type": "object"}},
    "required": ["id"],
}


def items(store: Store) -> Any:
    return store.table(ITEMS, key="id", unique=["note"])


@pytest.fixture
def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keys that were read from the table."""
    reads: list[Any] = []
    engine: Any = store._async._engine
    plain = engine.get

    async def get(table: Any, key: Any, names: Any) -> Any:
        if len(names) == 3:
            reads.append(key[0])
        return await plain(table, key, names)

    monkeypatch.setattr(engine, "get", get)
    return reads


def test_rows_are_read_once_absence_too(store: Store, counted: list[Any]) -> None:
    table = items(store)
    table.put({"id": 1, "note": "a", "meta": {"x": [1]}})
    cache = table.cached()
    for _ in range(3):
        row = cache.get(1)
        assert row == {"id": 1, "note": "a", "meta": {"x": [1]}}
        row["meta"]["x"].append("changed")  # what comes out is the caller's
        assert cache.get(2) is None
    assert counted == [1, 2]
    assert cache.get_many([2, 1, 3, 1]) == {1: {"id": 1, "note": "a", "meta": {"x": [1]}}}
    assert cache.get_many([]) == {}
    assert cache.count() == 1
    assert cache.query({"note": "a"}).all() == cache.page().items
    assert cache.get({"id": 1}) == cache.get(1)
    cache.close()
    with pytest.raises(howdah.Closed):
        cache.get(1)


def test_its_own_writes_are_seen_at_once(store: Store) -> None:
    cache = items(store).cached()
    assert cache.get(1) is None
    cache.put({"id": 1, "note": "a"})
    assert cache.get(1)["note"] == "a"
    cache.put_many([{"id": 1, "note": "b"}, {"id": 2, "note": "c"}])
    assert [cache.get(i)["note"] for i in (1, 2)] == ["b", "c"]
    cache.merge({"id": 1, "meta": {}})
    assert cache.get(1) == {"id": 1, "note": "b", "meta": {}}
    cache.update_one({"id": 1}, {"note": "d"})
    assert cache.get(1)["note"] == "d"
    cache.update_where({"id": 2}, {"note": "e"})
    assert cache.get(2)["note"] == "e"
    cache.upsert({"id": 9, "note": "e", "meta": {"u": 1}}, on="note")
    assert cache.get(2)["meta"] == {"u": 1}
    assert cache.create({"id": 3, "note": "f"})["id"] == 3
    assert cache.create({"id": 3, "note": "g"}) is None
    assert cache.get(3)["note"] == "f"
    assert cache.delete(3)
    assert cache.get(3) is None
    assert cache.delete_many([2]) == 1
    assert cache.get(2) is None
    assert cache.delete_where({"id": 1}) == 1
    assert cache.get(1) is None
    cache.put({"id": 5, "note": "z"})
    assert cache.get(5)
    assert cache.clear() == 1
    assert cache.get(5) is None
    cache.close()


def test_a_transaction_drops_what_it_touched(store: Store) -> None:
    cache = items(store).cached()
    cache.put({"id": 1, "note": "a"})
    cache.get(1)
    with suppress(ZeroDivisionError), store.transaction():
        cache.put({"id": 1, "note": "b"})
        assert cache.get(1)["note"] == "b"
        raise ZeroDivisionError
    assert cache.get(1)["note"] == "a"
    with store.transaction():
        cache.put({"id": 1, "note": "c"})
    assert cache.get(1)["note"] == "c"
    cache.close()


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_others_writes_drop_the_entry(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store, open_store(engine, url) as other:
        cache = items(store).cached(max_age=3600)
        theirs = items(other)
        theirs.put({"id": 1, "note": "a"})
        assert cache.get(1)["note"] == "a"
        for note in ("b", "c"):
            theirs.put({"id": 1, "note": note})
            deadline = time.monotonic() + 10
            while cache.get(1)["note"] != note and time.monotonic() < deadline:
                time.sleep(0.005)
            assert cache.get(1)["note"] == note
        theirs.delete(1)
        deadline = time.monotonic() + 10
        while cache.get(1) is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert cache.get(1) is None
        cache.close()


def test_age_and_number_are_bounded(store: Store, counted: list[Any]) -> None:
    table = items(store)
    table.put_many([{"id": i, "note": str(i)} for i in range(20)])
    cache = table.cached(max_rows=5, max_age=1.5)
    for i in range(20):
        cache.get(i)
    assert len(cache._async._rows) == 5
    cache.get(19)
    cache.get(0)
    assert counted == [*range(20), 0]
    time.sleep(1.6)
    cache.get(19)
    assert counted[-1] == 19
    cache.invalidate()
    cache.get(19)
    assert counted[-2:] == [19, 19]
    cache.close()
    wrong: Any
    for wrong in (0, -1, 1.5, None):
        with pytest.raises(InvalidInput):
            table.cached(max_rows=wrong)
    with pytest.raises(InvalidInput):
        table.cached(max_age=0)


def test_preloading_knows_absence(store: Store, counted: list[Any]) -> None:
    table = items(store)
    table.put_many([{"id": i, "note": str(i)} for i in range(20)])
    cache = table.cached(preload=True)
    assert cache.get(3)["note"] == "3"
    assert cache.get(77) is None
    assert counted == []
    cache.put({"id": 77, "note": "new"})
    assert cache.get(77)["note"] == "new"
    assert cache.refresh() == 21
    cache.close()
    with pytest.raises(howdah.LimitExceeded):
        table.cached(max_rows=5, preload=True).get(1)
    cache.close()


def test_many_threads(store: Store) -> None:
    cache = items(store).cached(max_rows=30)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(60):
                id = (seed * 7 + step) % 40
                cache.put({"id": id, "note": f"{id}:{seed}.{step}"})
                row = cache.get(id)
                assert row is None or row["note"].startswith(f"{id}:")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    table = items(store)
    for id in range(40):
        assert cache.get(id) == table.get(id)
    cache.close()


@dataclass
class Row:
    id: int
    until: datetime


def test_expired_rows_are_gone_from_the_cache_too(engine: str, url_for: Callable[[str], str]) -> None:
    with open_store(engine, url_for(engine)) as store:
        table = store.table(Row, key="id", ttl="until")
        cache = table.cached(max_age=3600)
        table.put(Row(1, datetime.now(UTC) + timedelta(seconds=1)))
        assert cache.get(1) is not None
        time.sleep(1.05)
        assert cache.get(1) is None
        cache.close()


def test_what_was_preloaded_answers_queries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = items(store)
    table.put_many([{"id": i, "note": str(i), "meta": {"k": i % 3}} for i in range(20)])
    cache = table.cached(preload=True)
    assert cache.get(1) is not None
    wanted = {"note": ("in", ["3", "5", "x"])}
    asked: list[str] = []

    def noted(name: str) -> Any:
        plain = getattr(type(cache._async._inner), name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if self is cache._async._inner:
                asked.append(name)
            return plain(self, *arguments, **options)

        return call

    for name in ("query", "page", "count"):
        monkeypatch.setattr(type(cache._async._inner), name, noted(name))
    assert [r["id"] for r in cache.query(wanted, order_by="-id")] == [5, 3]
    assert cache.count(table.c.meta["k"] == 1) == 7
    page = cache.page(order_by="id", limit=15)
    assert [r["id"] for r in cache.page(order_by="id", limit=15, cursor=page.next_cursor).items] == [15, 16, 17, 18, 19]
    assert asked == []
    cache.put({"id": 99, "note": "new"})
    assert cache.count() == 21  # a write is seen at once, from the table
    assert asked == ["count"]
    deadline = time.monotonic() + 10
    while asked[-1:] == ["count"] and time.monotonic() < deadline:  # soon from memory again
        asked.clear()
        assert cache.count() == 21
        time.sleep(0.02)
    assert asked == []
    cache.close()


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_preloaded_rows_follow_other_processes(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store, open_store(engine, url) as other:
        cache = items(store).cached(max_age=3600, preload=True)
        assert cache.count() == 0
        items(other).put_many([{"id": i, "note": str(i)} for i in range(5)])
        deadline = time.monotonic() + 10
        while cache.count({"note": "4"}) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [r["note"] for r in cache.query(order_by="id")] == list("01234")
        cache.close()
