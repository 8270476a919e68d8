"""Changes: every committed row change, once, in order, from every process, from any cursor on."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

import howdah
from howdah import Change, Store
from tests.conftest import PERSISTENT, Clock, open_store

THINGS = {
    "title": "things",
    "properties": {
        "id": {"type": "integer"},
        "kind": {"type": "string"},
        "size": {"type": "number"},
        "meta": {"type": "object"},
        "data": {"type": "string", "contentEncoding": "blob"},
    },
    "required": ["id", "kind"],
}


def things(store: Store, **options: Any) -> howdah.Table[Any]:
    return store.table(THINGS, key="id", **options)


def new(change: Change[Any]) -> dict[str, Any]:
    assert change.new is not None
    return change.new  # type: ignore[no-any-return]  # a row of no declared type


def short(changes: list[Change[Any]]) -> list[tuple[str, Any]]:
    return [(c.type, c.key) for c in changes]


def test_old_and_new_rows_as_they_were_stored(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    feed.start()
    first = table.put({"id": 1, "kind": "a", "size": 1.0, "meta": {"n": 1e16, "z": -0.0}, "data": b"\0\xff"})
    second = table.put({"id": 1, "kind": "b", "size": None})
    table.delete(1)
    insert, update, delete = feed.poll()
    assert (insert.type, insert.key, insert.old, insert.new) == ("INSERT", 1, None, first)
    assert repr(insert.new) == repr(first)
    assert (update.type, update.old, update.new) == ("UPDATE", first, second)
    assert (delete.type, delete.old, delete.new) == ("DELETE", second, None)
    assert insert.at.tzinfo is not None
    assert feed.poll() == []


def test_every_write_once_batches_and_clear_included(store: Store) -> None:
    table = things(store, unique=[("kind",)])
    table.put({"id": 100, "kind": "before"})
    feed = table.changes()
    feed.start()
    table.put_many([{"id": i, "kind": f"k{i}"} for i in range(5)])
    table.create({"id": 5, "kind": "k5"})
    table.create({"id": 5, "kind": "again"})
    table.upsert({"id": 9, "kind": "k0", "size": 2.0}, on="kind")
    table.update_one({"id": 1}, {"size": 3.0})
    table.update_where(table.c.id < 2, {"size": 4.0})
    table.merge({"id": 2, "size": 5.0})
    table.delete_many([3, 77])
    table.delete(78)
    table.delete_where({"id": 4})
    table.clear()
    changes = short(feed.poll())
    assert changes[:-5] == [
        *(("INSERT", i) for i in range(6)),
        ("UPDATE", 0),
        ("UPDATE", 1),
        ("UPDATE", 0),
        ("UPDATE", 1),
        ("UPDATE", 2),
        ("DELETE", 3),
        ("DELETE", 4),
    ]
    assert sorted(changes[-5:]) == [("DELETE", i) for i in (0, 1, 2, 5, 100)]


def test_a_write_that_changes_nothing_is_no_change(store: Store) -> None:
    table = things(store)
    row = {"id": 1, "kind": "a", "size": 1.5, "meta": {"x": [1]}, "data": b"x"}
    table.put(row)
    feed = table.changes()
    feed.start()
    table.put(row)
    table.update_where({"id": 1}, {"kind": "a"})
    table.delete(2)
    assert feed.poll() == []


def test_transactions_show_at_the_commit_and_not_at_all_when_rolled_back(store: Store) -> None:
    table, records = things(store), store.records("r")
    feed = table.changes()
    feed.start()
    with suppress(ZeroDivisionError), store.transaction():
        table.put({"id": 1, "kind": "a"})
        raise ZeroDivisionError
    with store.transaction():
        table.put({"id": 2, "kind": "a"})
        with suppress(ZeroDivisionError), store.transaction():
            table.put({"id": 3, "kind": "a"})
            raise ZeroDivisionError
        records.put("x", {})
        with pytest.raises(howdah.TransactionError):
            table.changes().start()
    assert short(feed.poll()) == [("INSERT", 2)]


def test_where_sees_rows_that_match_before_or_after(store: Store) -> None:
    table = things(store)
    feed = table.changes((table.c.kind == "a") & (table.c.size > 1))
    feed.start()
    nulls = table.changes({"size": None})
    nulls.start()
    table.put_many([{"id": i, "kind": "ab"[i % 2], "size": float(i)} for i in range(6)])
    table.update_one({"id": 2}, {"kind": "b"})
    table.update_one({"id": 1}, {"kind": "a", "size": 9.0})
    table.update_one({"id": 3}, {"size": 7.0})
    table.delete_many([4, 5])
    assert short(feed.poll()) == [("INSERT", 2), ("INSERT", 4), ("UPDATE", 2), ("UPDATE", 1), ("DELETE", 4)]
    assert nulls.poll() == []
    table.put({"id": 50, "kind": "x"})
    assert short(nulls.poll()) == [("INSERT", 50)]


def test_a_scope_sees_its_own(store: Store) -> None:
    table = store.table(
        "notes",
        {
            "properties": {"tenant": {"type": "string"}, "id": {"type": "integer"}, "text": {"type": "string"}},
            "required": ["tenant", "id"],
        },
        key=("tenant", "id"),
        text=["text"],
    )
    feed = table.scoped(tenant="a").changes()
    feed.start()
    table.put_many([{"tenant": t, "id": 1, "text": f"hello {t}"} for t in "ab"])
    table.scoped(tenant="b").clear()
    table.put({"tenant": "a", "id": 1, "text": "other words"})
    assert short(feed.poll()) == [("INSERT", ("a", 1)), ("UPDATE", ("a", 1))]


def test_vectors_in_changes(store: Store) -> None:
    vectors = store.vectors("v", dim=2, sparse_dim=5)
    feed = vectors.table.changes()
    feed.start()
    vectors.put(howdah.Vector("a", dense=[1, 2], sparse=([1], [0.5])))
    vectors.put(howdah.Vector("a", dense=[1, 2], sparse=([1], [0.5])))
    vectors.put(howdah.Vector("a", dense=[1, 3], sparse=([1], [0.5])))
    insert, update = feed.poll()
    rows: list[Any] = [insert.new, update.old, update.new]
    assert [list(row.dense) for row in rows] == [[1, 2], [1, 2], [1, 3]]


def test_expiry(store: Store, clock: Clock) -> None:
    records = store.records("r")
    feed = records.changes("job:")
    feed.start()
    records.put("job:1", {"n": 1}, ttl=60)
    records.put("job:2", {"n": 2}, ttl=60)
    records.put("other", {"n": 3})
    clock.now += 61
    records.put("job:1", {"n": 4})
    records.sweep()
    changes = feed.poll()
    assert short(changes) == [("INSERT", "job:1"), ("INSERT", "job:2"), ("INSERT", "job:1"), ("EXPIRE", "job:2")]
    assert changes[2].old is None
    assert changes[3].old == {"n": 2}
    assert abs((changes[3].at - datetime.fromtimestamp(clock.now, UTC)).total_seconds()) < 30


def _same(changes: list[Change[Any]], others: list[Change[Any]]) -> bool:
    """Equal but for their moments: the clock of these tests stands still, the database's goes on."""
    return [replace(c, at=o.at) for c, o in zip(changes, others, strict=True)] == others


def test_since_goes_on_after_a_change(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    begin = feed.start()
    table.put_many([{"id": i, "kind": "a"} for i in range(30)])
    with store.transaction():
        table.put({"id": 99, "kind": "a"})
        table.delete(0)
    everything = feed.poll()
    assert len(everything) == 32
    for place in (0, 7, 29, 30, 31):
        assert _same(table.changes(since=everything[place].cursor).poll(), everything[place + 1 :])
    assert _same(table.changes(since=begin).poll(limit=3), everything[:3])
    again = table.changes(since=begin)
    assert _same([c for _ in range(11) for c in again.poll(limit=3)], everything)
    assert table.changes(since=feed.cursor).poll() == []
    with pytest.raises(howdah.InvalidCursor):
        table.changes(since="x")
    with pytest.raises(howdah.InvalidCursor):
        store.kv("other").table.changes(since=begin)


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_a_cursor_outlives_the_store(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store:
        table = things(store)
        cursor = table.changes().start()
        table.put({"id": 1, "kind": "a"})
    with open_store(engine, url) as store:
        table = things(store)
        table.put({"id": 2, "kind": "a"})
        assert short(table.changes(since=cursor).poll()) == [("INSERT", 1), ("INSERT", 2)]


def test_two_readers_both_see_everything(store: Store) -> None:
    table = things(store)
    fast, slow = table.changes(), table.changes()
    fast.start()
    slow.start()
    seen = []
    for number in range(5):
        table.put({"id": number, "kind": "a"})
        seen += fast.poll()
    assert short(seen) == short(slow.poll()) == [("INSERT", i) for i in range(5)]


def test_polling_waits_for_a_change(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    feed.start()
    writer = threading.Timer(0.1, lambda: table.put({"id": 1, "kind": "a"}))
    writer.start()
    assert short(feed.poll(timeout=10)) == [("INSERT", 1)]
    assert feed.poll(timeout=0.05) == []
    writer.join()


def test_iterating(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    feed.start()
    table.put_many([{"id": i, "kind": "a"} for i in range(3)])
    found = []
    for change in feed:
        found.append(change.key)
        if len(found) == 3:
            break
    assert found == [0, 1, 2]


def test_subscribers_are_called_and_end_at_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    table = things(store)
    seen: list[Any] = []
    told = threading.Event()

    def failing(change: Change[Any]) -> None:
        raise ValueError("this listener fails")

    def listener(change: Change[Any]) -> None:
        seen.append(change.key)
        told.set()

    ends = [table.subscribe(failing), table.subscribe(listener, where={"kind": "a"})]
    table.put({"id": 1, "kind": "b"})
    table.put({"id": 2, "kind": "a"})
    assert told.wait(10)
    assert seen == [2]
    deadline = time.monotonic() + 10
    while "this listener fails" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "this listener fails" in caplog.text
    for end in ends:
        end()
    table.put({"id": 3, "kind": "a"})
    time.sleep(0.05)
    assert seen == [2]
    with pytest.raises(howdah.InvalidInput):
        table.subscribe(None)  # type: ignore[arg-type]  # the mistake under test


def test_who_falls_behind_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.changes.MOST_BEHIND", 20)
    table = things(store)
    feed = table.changes()
    start = feed.start()
    table.put({"id": 0, "kind": "a"})
    assert len(feed.poll()) == 1
    table.put_many([{"id": i, "kind": "a"} for i in range(1, 30)])
    with pytest.raises(howdah.Lagged) as caught:
        feed.poll(limit=5)
    table.put({"id": 100, "kind": "a"})
    assert short(feed.poll()) == [("INSERT", 100)]
    assert short(table.changes(since=caught.value.cursor).poll()) == [("INSERT", 100)]
    assert len(table.changes(since=start).poll()) == 31  # what is asked for since a cursor is all there


def test_a_subscriber_that_lost_changes_is_told_to_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = things(store)
    seen: list[str] = []
    told = threading.Event()

    def listener(change: Change[Any]) -> None:
        seen.append(change.type)
        if change.type == "RESYNC":
            told.set()

    end = table.subscribe(listener)
    table.drop()
    things(store).put({"id": 1, "kind": "a"})
    assert told.wait(10)
    end()
    assert seen[-1] == "RESYNC"


def test_a_table_that_grew_begins_a_new_log(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    cursor = feed.start()
    properties: Any = {**THINGS["properties"], "more": {"type": "string"}}  # type: ignore[dict-item]  # a schema's parts
    grown = store.table({**THINGS, "properties": properties}, key="id")
    grown.put({"id": 1, "kind": "a", "more": "x"})
    with pytest.raises(howdah.Lagged):
        feed.poll()
    with pytest.raises(howdah.Lagged):
        grown.changes(since=cursor).start()
    later = grown.changes()
    later.start()
    grown.put({"id": 1, "kind": "a", "more": "y"})
    assert [new(c)["more"] for c in later.poll()] == ["y"]


def _sql(store: Store, statement: str) -> None:
    from howdah.engines.base import Stmt

    engine = store._async._engine

    def work() -> Any:
        yield Stmt(statement.format(q=engine.dialect.qualify))  # type: ignore[attr-defined]  # the SQL engines'

    store._run(engine.write(work))


def test_old_entries_are_forgotten_and_late_cursors_told(store: Store) -> None:
    table = things(store)
    ops = table._async._ops
    feed = table.changes()
    start = feed.start()
    table.put_many([{"id": i, "kind": "a"} for i in range(3)])
    assert len(feed.poll()) == 3
    _sql(store, f"UPDATE {ops.log.name} SET at = at - 100000")
    store._run(table._async._write(ops.log.keep))
    _sql(store, "UPDATE {q}".replace("{q}", ops.log.watches) + " SET pruned = pruned + 100001")
    with pytest.raises(howdah.Lagged):
        table.changes(since=start).start()
    table.put({"id": 9, "kind": "a"})
    assert short(feed.poll()) == [("INSERT", 9)]


def test_a_table_that_nobody_watches_pays_nothing(store: Store, engine: str, url_for: Callable[[str], str]) -> None:
    table = things(store)
    log = table._async._ops.log
    cursor = table.changes().start()
    _sql(store, f"UPDATE {log.watches} SET seen = seen - 90000")
    table.put({"id": 1, "kind": "a"})  # a day has passed: no longer logged
    feed = table.changes()
    feed.start()
    table.put({"id": 2, "kind": "a"})
    assert short(feed.poll()) == [("INSERT", 2)]
    with pytest.raises(howdah.Lagged):
        table.changes(since=cursor).start()
    _sql(store, f"UPDATE {log.watches} SET seen = seen - 100000")
    things(store).put({"id": 3, "kind": "a"})  # opening the table anew takes the log away
    with pytest.raises(howdah.BackendError):
        store._run(
            store._async._engine.read(
                lambda: log.read(["1:1:", None, 0, 0.0] if engine in ("pg", "server") else [0, 0.0], None, 1)
            )
        )


def test_without_create_a_log_must_be_there(engine: str, url_for: Callable[[str], str]) -> None:
    if engine == "memory":
        pytest.skip("memory is always made")
    url = url_for(engine)
    with open_store(engine, url) as store:
        table = things(store)
        table.put({"id": 1, "kind": "a"})
        with open_store(engine, url, create=False) as other:
            with pytest.raises(howdah.SetupRequired):
                things(other).changes().start()
            table.changes().start()
            feed = things(other).changes()
            feed.start()
            table.delete(1)
            assert short(feed.poll()) == [("DELETE", 1)]


OTHER = """
import sys, howdah
with howdah.connect(sys.argv[1]) as store:
    table = store.table({"title": "things", "properties": {"id": {"type": "integer"}, "kind": {"type": "string"}, "size": {"type": "number"},
        "meta": {"type": "object"}, "data": {"type": "string", "contentEncoding": "blob"}}, "required": ["id", "kind"]}, key="id")
    for number in range(20):
        table.put({"id": 1, "kind": str(number)})
"""


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_writes_of_other_processes_are_seen_each(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store:
        table = things(store)
        feed = table.changes()
        feed.start()
        done = subprocess.run([sys.executable, "-c", OTHER, url], check=True, timeout=60)
        assert done.returncode == 0
        assert [new(c)["kind"] for c in feed.poll(timeout=10)] == [str(n) for n in range(20)]


@pytest.mark.parametrize("engine", ["server"], indirect=True)
def test_an_open_transaction_elsewhere_hides_nothing(engine: str, url_for: Callable[[str], str], servers: Any) -> None:
    """Sequence numbers are not given out in the order of commits: a late commit of an early number must not be missed."""

    async def main() -> None:
        url = url_for(engine)
        async with await howdah.connect_async(url) as store, await howdah.connect_async(url) as late:
            table = store.table(THINGS, key="id")
            feed = table.changes()
            await feed.start()
            holder = await asyncpg.connect(servers.server())
            await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT txid_current()")
            async with late.transaction():
                await late.table(THINGS, key="id").put({"id": 1, "kind": "early"})
                await table.put({"id": 2, "kind": "late"})
                assert [c.key for c in await feed.poll()] == [2]
            assert [c.key for c in await feed.poll()] == [1]
            await holder.close()

    asyncio.run(main())


def test_order_of_one_key_over_random_transactions(store: Store) -> None:
    """Against a plain model: replaying the changes gives the table, whatever was committed or rolled back."""
    rng = random.Random(7)
    table = things(store)
    feed = table.changes()
    feed.start()
    model: dict[int, Any] = {}
    replayed: dict[int, Any] = {}
    for step in range(60):
        keep = rng.random() < 0.7
        before = dict(model)
        with suppress(ZeroDivisionError), store.transaction():
            for _ in range(rng.randrange(1, 4)):
                key = rng.randrange(6)
                if rng.random() < 0.3:
                    table.delete(key)
                    model.pop(key, None)
                else:
                    model[key] = table.put({"id": key, "kind": str(step), "size": rng.random()})
            if not keep:
                model = before
                raise ZeroDivisionError
        if rng.random() < 0.4:
            _replay(replayed, feed.poll(limit=rng.randrange(1, 5)))
    while changes := feed.poll(limit=7):
        _replay(replayed, changes)
    assert replayed == model == {r["id"]: r for r in table.query().all()}


def _replay(rows: dict[int, Any], changes: list[Change[Any]]) -> None:
    for change in changes:
        assert change.old == rows.get(change.key)
        if change.new is None:
            del rows[change.key]
        else:
            rows[change.key] = change.new


def test_concurrent_writers_replay_to_the_table(store: Store) -> None:
    table = things(store)
    feed = table.changes()
    feed.start()
    replayed: dict[int, Any] = {}

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for step in range(25):
            key = rng.randrange(5)
            if rng.random() < 0.3:
                table.delete(key)
            else:
                table.put({"id": key, "kind": f"{seed}.{step}"})

    threads = [threading.Thread(target=write, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        _replay(replayed, feed.poll(limit=10))
    for thread in threads:
        thread.join()
    while changes := feed.poll():
        _replay(replayed, changes)
    assert replayed == {r["id"]: r for r in table.query().all()}


def test_async_subscriptions_await_their_callbacks(url_for: Callable[[str], str], engine: str) -> None:
    async def main() -> None:
        async with await howdah.connect_async(url_for(engine)) as store:
            records = store.records("r")
            seen: asyncio.Queue[Any] = asyncio.Queue()

            async def listener(change: Change[Any]) -> None:
                await seen.put((change.key, change.new))

            end = await records.subscribe(listener, prefix="a", poll=0.5)
            await records.put_many({"b1": {}, "a1": {"n": 1}})
            assert await asyncio.wait_for(seen.get(), 10) == ("a1", {"n": 1})
            end()
            await records.put("a2", {})
            await asyncio.sleep(0.05)
            assert seen.empty()

    asyncio.run(main())


def test_no_wake_up_is_lost_between_looking_and_waiting(store: Store, engine: str) -> None:
    """A change that comes after the mark was taken and before the wait begins ends the wait at once."""
    table = things(store)
    table.put({"id": 1, "kind": "a"})
    ops, own = table._async._ops, store._async._engine

    async def late() -> float:
        mark = await own.changed(ops, None, 0)
        await table._async.put({"id": 2, "kind": "a"})
        await own.pause(0.05)
        began = time.monotonic()
        await own.changed(ops, mark, 5)
        return time.monotonic() - began

    assert store._run.wait(late()) < 2
