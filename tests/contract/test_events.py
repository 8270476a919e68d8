"""Events: local calls after the commit, that cannot break a write."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import howdah
from howdah import Store

ITEMS = {
    "title": "items",
    "properties": {"id": {"type": "integer"}, "kind": {"type": "string"}},
    "required": ["id", "kind"],
}


def record(handle: Any, *names: str) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    for name in names:
        handle.on(name, lambda *arguments, name=name: seen.append((name, *arguments)))
    return seen


def test_key_value_events(store: Store) -> None:
    kv = store.kv("e")
    kv.put("before", 1)
    seen = record(kv, "put", "get", "get_many", "delete", "clear")
    kv.put("a", {"x": 1})
    kv.put_many({"b": 2, "c": 3})
    kv.put_many({})
    kv.get("a")
    kv.get("nowhere", default=5)
    kv.get_many(["b", "nowhere"])
    kv.get_many([])
    kv.delete("nowhere")
    kv.delete_many(["b"])
    kv.clear()
    assert seen == [
        ("put", "a", {"x": 1}),
        ("put", "b", 2),
        ("put", "c", 3),
        ("get", "a", {"x": 1}),
        ("get", "nowhere", None),
        ("get_many", ["b", "nowhere"], {"b": 2}),
        ("delete", "nowhere"),
        ("delete", "b"),
        ("clear",),
    ]


def test_table_events(store: Store) -> None:
    table = store.table(ITEMS, key="id", unique=["kind"])
    table.put({"id": 0, "kind": "z"})
    seen = record(table, "put", "get", "get_many", "query", "delete", "clear", "rollback")
    a, b = {"id": 1, "kind": "a"}, {"id": 2, "kind": "b"}
    table.put(a)
    table.put_many([a, b, b])
    table.create({"id": 3, "kind": "c"})
    table.create({"id": 3, "kind": "d"})
    table.upsert({"id": 9, "kind": "c"}, on="kind")
    table.update_one({"id": 3}, {"kind": "e"})
    table.update_where({"id": 3}, {"kind": "f"})
    table.merge({"id": 3, "kind": "g"})
    table.get(1)
    table.get(77)
    table.get_many([2, 77])
    table.query({"kind": "a"}).all()
    list(table.query(limit=1))
    table.delete(77)
    table.delete_many([1, 78])
    table.delete_where(table.c.id <= 2)
    with pytest.raises(howdah.DuplicateKey):
        table.put_many([{"id": 50, "kind": "x"}, {"id": 51, "kind": "g"}])
    table.clear()
    rollback = next(e for e in seen if e[0] == "rollback")
    assert rollback[1] == "put"
    assert isinstance(rollback[2], howdah.DuplicateKey)
    queries = [e for e in seen if e[0] == "query"]
    assert [q[2] for q in queries] == [[a], None]
    assert [e for e in seen if e[0] not in ("query", "rollback")] == [
        ("put", a),
        ("put", a),
        ("put", b),
        ("put", {"id": 3, "kind": "c"}),
        ("put", {"id": 3, "kind": "c"}),
        ("put", {"id": 3, "kind": "e"}),
        ("put", {"id": 3, "kind": "f"}),
        ("put", {"id": 3, "kind": "g"}),
        ("get", 1, a),
        ("get", 77, None),
        ("get_many", [2, 77], {2: b}),
        ("delete", 77),
        ("delete", 1),
        ("delete", 78),
        ("delete", 0),
        ("delete", 2),
        ("clear",),
    ]


def test_search_events(store: Store) -> None:
    vectors = store.table(
        "v",
        {"properties": {"id": {"type": "integer"}, "text": {"type": "string"}}, "required": ["id", "text"]},
        key="id",
        text=["text"],
    )
    vectors.put({"id": 1, "text": "hello world"})
    seen = record(vectors, "search")
    hits = vectors.search(text="hello")
    assert seen == [("search", None, hits)]


def test_events_wait_for_the_commit_and_vanish_with_a_rollback(store: Store) -> None:
    kv = store.kv("e")
    seen = record(kv, "put")
    with store.transaction():
        kv.put("a", 1)
        with suppress(ZeroDivisionError), store.transaction():
            kv.put("b", 2)
            raise ZeroDivisionError
        with store.transaction():
            kv.put("c", 3)
        assert seen == []
    assert seen == [("put", "a", 1), ("put", "c", 3)]
    with suppress(ZeroDivisionError), store.transaction():
        kv.put("d", 1)
        raise ZeroDivisionError
    assert len(seen) == 2


def test_a_failing_listener_harms_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    kv = store.kv("e")
    order: list[int] = []

    def first(key: str, value: Any) -> None:
        order.append(1)
        raise RuntimeError("listener one is broken")

    kv.on("put", first)
    kv.on("put", lambda key, value: order.append(2))
    kv.put("a", 1)
    assert kv.get("a") == 1
    assert order == [1, 2]
    assert "listener one is broken" in caplog.text


def test_a_listener_cannot_change_what_is_stored(store: Store) -> None:
    kv = store.kv("e")
    kv.on("put", lambda key, value: value.clear())
    kv.on("get", lambda key, value: value.clear())
    mine = {"x": 1}
    kv.put("a", mine)
    assert mine == {"x": 1}
    assert kv.get("a") == {"x": 1}
    table = store.table(ITEMS, key="id")
    table.on("put", lambda row: row.clear())
    assert table.put({"id": 1, "kind": "a"}) == {"id": 1, "kind": "a"}
    assert table.get(1) == {"id": 1, "kind": "a"}


def test_once_off_and_names(store: Store) -> None:
    kv = store.kv("e")
    seen: list[str] = []

    def again(key: str, value: Any) -> None:
        seen.append(f"once {key}")
        if key == "a":
            kv.once("put", again)

    kv.once("put", again)
    end = kv.on("put", lambda key, value: seen.append(key))
    kv.put_many({"a": 1, "b": 2, "c": 3})
    assert seen == ["once a", "a", "b", "once b", "c"]
    end()
    end()
    kv.put("d", 1)
    kv.on("put", lambda key, value: seen.append("x"))
    kv.off("put")
    kv.put("e", 1)
    assert len(seen) == 5
    wrong: Any = None
    for bad in ("putt", "", wrong):
        with pytest.raises(howdah.InvalidInput):
            kv.on(bad, print)
    with pytest.raises(howdah.InvalidInput):
        kv.on("put", wrong)
    with pytest.raises(howdah.InvalidInput):
        kv.once("put", wrong)


def test_wait_for(store: Store) -> None:
    kv = store.kv("e")
    writer = threading.Timer(0.1, lambda: kv.put("k", 7))
    writer.start()
    assert kv.wait_for("put", timeout=10) == ("k", 7)
    writer.join()
    with pytest.raises(howdah.Timeout):
        kv.wait_for("put", timeout=0.01)
    with pytest.raises(TimeoutError):
        kv.wait_for("delete", timeout=0.01)
    with pytest.raises(howdah.InvalidInput):
        kv.wait_for("nothing", timeout=0.01)


def test_coroutine_listeners_run_as_tasks(store: Store, url_for: Callable[[str], str], engine: str) -> None:
    done = threading.Event()

    async def listener(key: str, value: Any) -> None:
        await asyncio.sleep(0)
        done.set()

    kv = store.kv("e")
    kv.on("put", listener)
    kv.put("a", 1)
    assert done.wait(10)

    async def main() -> None:
        async with await howdah.connect_async(url_for(engine)) as other:
            finished = asyncio.Event()
            handle = other.kv("e")

            async def happened(key: str, value: Any) -> None:
                finished.set()

            handle.on("put", happened)
            waiting = asyncio.ensure_future(handle.wait_for("put", timeout=10))
            await asyncio.sleep(0)
            await handle.put("b", 2)
            await asyncio.wait_for(finished.wait(), 10)
            assert await waiting == ("b", 2)

    asyncio.run(main())


def test_each_handle_has_its_own(store: Store) -> None:
    one, two = store.kv("e"), store.kv("e")
    seen = record(one, "put")
    two.put("a", 1)
    time.sleep(0.02)
    assert seen == []


def test_off_finds_what_once_was_given(store: Store) -> None:
    kv = store.kv("e")
    seen: list[str] = []

    def listener(key: str, value: Any) -> None:
        seen.append(key)

    kv.once("put", listener)
    kv.off("put", listener)
    kv.put("a", 1)
    assert seen == []
    wrong: Any = "x"
    with pytest.raises(howdah.InvalidInput):
        kv.wait_for("put", timeout=wrong)
    assert kv._async._listeners is None
