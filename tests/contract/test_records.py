"""Records on every engine."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

import howdah
from howdah import (
    Conflict,
    EmptyCriteria,
    InvalidCursor,
    InvalidFilter,
    InvalidInput,
    InvalidKey,
    InvalidLimit,
    InvalidValue,
    Store,
)
from tests.conftest import Clock


def keys(page: Any) -> list[str]:
    return [e.key for e in page.items]


def test_put_keeps_created_and_clears_expiry(store: Store, clock: Clock) -> None:
    records = store.records("r")
    records.put("a", {"n": 1}, ttl=100)
    (first,) = records.list().items
    assert first.created_at == first.updated_at == datetime.fromtimestamp(clock.now, UTC)
    assert first.expires_at == datetime.fromtimestamp(clock.now + 100, UTC)
    clock.now += 5
    records.put("a", {"n": 2})
    (second,) = records.list().items
    assert second.created_at == first.created_at
    assert (second.updated_at - first.updated_at).total_seconds() == 5
    assert second.expires_at is None
    records.put("b", {}, ttl=1)
    clock.now += 2
    records.put("b", {})
    assert records.list("b").items[0].created_at == datetime.fromtimestamp(clock.now, UTC)


def test_values_must_be_objects(store: Store) -> None:
    records = store.records()
    bad: Any
    for bad in ([], "x", 1, None, {"a": float("nan")}, {"a": {1: 2}}, {"a": b"x"}, {"a": "\0"}, {"a": 2**63}):
        with pytest.raises(InvalidValue):
            records.put("a", bad)
    for bad in ("", 5, "a\0", "x" * 1025):
        with pytest.raises(InvalidKey):
            records.put(bad, {})
    with pytest.raises(InvalidValue):
        records.put_many([("a", {}), ("b", [])])  # type: ignore[list-item]
    assert records.list().items == []


def test_batches(store: Store) -> None:
    records = store.records()
    records.put_many([("a", {"n": 1}), ("b", {"n": 2}), ("a", {"n": 3})])
    assert records.get_many(["b", "zz", "a", "b"]) == {"b": {"n": 2}, "a": {"n": 3}}
    assert records.get_many([]) == {}
    records.put_many({})
    assert records.create("c", {}) is True
    assert records.create("c", {"x": 1}) is False
    assert records.delete_many(["a", "b", "zz"]) == 2
    assert records.delete("c") is True
    assert records.delete("c") is False
    assert records.get("c") is None


def test_list_by_literal_prefix(store: Store) -> None:
    records = store.records()
    names = ["a/1", "a/2", "a%x", "a_x", "a\\x", "b", "é/1"]
    records.put_many({n: {"name": n} for n in names})
    assert keys(records.list("a/")) == ["a/1", "a/2"]
    assert keys(records.list("a%")) == ["a%x"]
    assert keys(records.list("a_")) == ["a_x"]
    assert keys(records.list("a\\")) == ["a\\x"]
    assert keys(records.list()) == sorted(names)
    assert [e.key for e in records.scan("a")] == sorted(n for n in names if n.startswith("a"))


def test_pages_filter_before_the_limit(store: Store) -> None:
    records = store.records()
    records.put_many({f"k{i:04}": {"even": i % 2 == 0, "n": i} for i in range(250)})
    page = records.list(where={"even": True}, limit=100)
    assert len(page.items) == 100
    following = records.list(where={"even": True}, limit=100, cursor=page.next_cursor)
    assert len(following.items) == 25
    assert following.next_cursor is None
    assert len(records.list().items) == 100
    assert len(records.list(limit=None).items) == 250
    assert records.list(limit=0) == howdah.Page([], None)
    records.delete(page.items[-1].key)
    assert keys(records.list(where={"even": True}, limit=100, cursor=page.next_cursor)) == keys(following)
    with pytest.raises(InvalidCursor):
        records.list(limit=100, cursor=page.next_cursor)
    with pytest.raises(InvalidCursor):
        records.list("k", where={"even": True}, cursor=page.next_cursor)
    with pytest.raises(InvalidLimit):
        records.list(limit=-1)


def test_filters_are_strict_about_types(store: Store) -> None:
    records = store.records()
    rows: dict[str, Any] = {
        "int": {"v": 1},
        "float": {"v": 1.0},
        "text": {"v": "1"},
        "true": {"v": True},
        "null": {"v": None},
        "none": {},
        "meta": {"key": "x", "active": 1},
    }
    records.put_many(rows)

    def match(where: Any) -> set[str]:
        return set(keys(records.list(where=where)))

    assert match({"v": 1}) == {"int", "float"}
    assert match({"v": "1"}) == {"text"}
    assert match({"v": True}) == {"true"}
    assert match({"v": None}) == {"null", "none", "meta"}
    assert match({"v": howdah.NULL}) == {"null"}
    assert match({"v": howdah.MISSING}) == {"none", "meta"}
    assert match({"v": ("!=", 1)}) == {"text", "true"}
    assert match({"v": ("in", [1, "1"])}) == {"int", "float", "text"}
    assert match({"key": "x", "active": 1}) == {"meta"}
    assert match(records.c.value["v"] == 1) == {"int", "float"}
    for bad in ({"v": [1]}, {"v": {"a": 1}}, {"a.b": 1}, {"v": (1, 2, 3)}):
        with pytest.raises(InvalidFilter):
            records.list(where=bad)
    with pytest.raises(EmptyCriteria):
        records.list(where={})


def test_orders_are_total(store: Store, clock: Clock) -> None:
    records = store.records()
    stamps = {"a": 5, "b": 7.5, "c": "9", "d": None, "e": 5, "f": -1}
    for key, value in stamps.items():
        records.put(key, {"updatedAt": value} if value is not None else {})
        clock.now += 1
    records.put("a", {"updatedAt": 5})
    assert keys(records.list(order_by="-updated_at")) == ["a", "f", "e", "d", "c", "b"]
    assert keys(records.list(order_by="-value.updatedAt")) == ["b", "a", "e", "c", "d", "f"]
    found, cursor = [], None
    while True:
        page = records.list(order_by="-value.updatedAt", limit=2, cursor=cursor)
        found += keys(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ["b", "a", "e", "c", "d", "f"]
    with pytest.raises(InvalidInput):
        records.list(order_by="nope")


def test_scan_sees_one_snapshot(store: Store, engine: str) -> None:
    records = store.records()
    records.put_many({f"k{i:05}": {"n": i} for i in range(1500)})
    seen = []
    for number, entry in enumerate(records.scan()):
        seen.append(entry.key)
        if number == 10:
            records.put("k00500x", {})
            records.delete("k01400")
    assert seen == [f"k{i:05}" for i in range(1500)]


def test_expiry(store: Store, clock: Clock) -> None:
    records = store.records()
    records.put("a", {"n": 1}, ttl=0.5)
    clock.now += 0.4995
    assert records.get("a") == {"n": 1}
    clock.now += 0.001
    assert records.get("a") is None
    assert records.list().items == []
    assert list(records.scan()) == []
    assert records.get_versioned("a").version is None
    assert records.create("a", {"n": 2}, ttl=1)
    clock.now += 2
    assert records.sweep() == 1
    assert records.sweep() == 0


def test_compare_and_set(store: Store) -> None:
    records = store.records()
    assert records.put_versioned("a", {"n": 1}, version=None)
    seen = records.get_versioned("a")
    assert seen.value == {"n": 1}
    assert records.put_versioned("a", {"n": 2}, version=seen.version)
    assert not records.put_versioned("a", {"n": 3}, version=seen.version)
    assert not records.put_versioned("a", howdah.DELETE, version=seen.version)
    assert records.put_versioned("a", howdah.DELETE, version=records.get_versioned("a").version)
    assert records.get("a") is None
    assert not records.put_versioned("a", {}, version=seen.version)


def test_mutate(store: Store) -> None:
    records = store.records()
    assert records.mutate("a", lambda v: {"n": 1} if v is None else v) == {"n": 1}
    assert records.mutate("a", lambda v: {"n": v["n"] + 1} if v else None) == {"n": 2}
    assert records.mutate("a", lambda v: howdah.KEEP) == {"n": 2}

    def boom(value: Any) -> Any:
        value["n"] = 99
        raise KeyError("no")

    with pytest.raises(KeyError):
        records.mutate("a", boom)
    assert records.get("a") == {"n": 2}
    assert records.mutate("a", lambda v: howdah.DELETE) is None
    assert records.get("a") is None
    with pytest.raises(InvalidValue):
        records.mutate("a", lambda v: 5)
    with pytest.raises(InvalidValue):
        records.mutate("a", lambda v: {}, attempts=0)


def test_mutate_loses_nothing_between_threads(store: Store) -> None:
    records = store.records()

    def work() -> None:
        for _ in range(25):
            records.mutate("n", lambda v: {"n": (v or {"n": 0})["n"] + 1})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.get("n") == {"n": 100}


def test_of_racing_creates_one_wins(store: Store) -> None:
    records = store.records()
    records.get("warm")
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if records.create("k", {"i": i}) else None) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert records.get("k") == {"i": won[0]}


def test_async_mutate_runs_again_after_a_race(store: Store) -> None:
    records = store.records()
    records.put("k", {"n": 0})
    runs: list[int] = []

    async def change(value: Any) -> Any:
        runs.append(1)
        if len(runs) < 3:
            other.put("k", {"n": 10 * len(runs)})
        return {"n": value["n"] + 1}

    other = store.records()
    if not store._async._engine.inline:
        pytest.skip("a blocking call cannot be made from inside the store's own loop")
    assert records.mutate("k", change) == {"n": 21}
    runs.clear()

    async def never(value: Any) -> Any:
        other.put("k", {"n": 0})
        return value

    with pytest.raises(Conflict):
        records.mutate("k", never, attempts=2)


def test_scoped_records_and_capabilities(store: Store) -> None:
    a = store.scoped("a").records()
    a.put("k", {"n": 1})
    store.scoped("ab").records().put("k", {"n": 2})
    assert [e.key for e in a.list().items] == ["k"]
    assert list(a.get_many(["k"])) == ["k"]
    assert a.capabilities.ttl == "native"
    assert keys(store.records().list()) == ["a:k", "ab:k"]
