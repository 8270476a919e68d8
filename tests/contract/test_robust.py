"""What must not happen: cancelled tasks, forks, stale handles, drops, nested writes and many writers break nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest

import howdah
from howdah import (
    Closed,
    Error,
    InvalidInput,
    InvalidValue,
    SetupRequired,
    Store,
    TransactionError,
    Vector,
)
from howdah.engines.base import Op, Stmt
from howdah.errors import MissingTable
from tests.conftest import Clock, open_store


@dataclass
class Doc:
    id: int
    a: str
    b: str = ""


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_statements_that_run_ahead_fail_the_operation(where: str, url_for: Callable[[str], str]) -> None:
    bad, good = Stmt("INSERT INTO no_such_table VALUES (1)", ahead=True), Stmt("SELECT 1")

    def then_another() -> Op[None]:
        yield bad
        yield good

    def at_the_end() -> Op[None]:
        yield bad

    def with_an_error() -> Op[None]:
        yield good._replace(ahead=True)
        raise InvalidValue("an error of its own")

    async def main() -> None:
        async with await howdah.connect_async(url_for(where)) as store:
            kv = store.kv()
            await kv.put("a", 0)
            for single in (False, True):
                for work, expected in (
                    (then_another, MissingTable),
                    (at_the_end, MissingTable),
                    (with_an_error, InvalidValue),
                ):
                    with pytest.raises(expected):
                        await store._engine.write(work, single=single)
                    async with store.transaction():
                        await kv.put("a", 1)
                        with pytest.raises(expected):
                            await store._engine.write(work)
                        await kv.put("b", 2)
                    assert await kv.get_many(["a", "b"]) == {"a": 1, "b": 2}

    asyncio.run(main())


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_cancelled_tasks_leave_the_store_usable(where: str, url_for: Callable[[str], str]) -> None:
    async def main() -> None:
        async with await howdah.connect_async(url_for(where)) as store:
            kv = store.kv()
            await kv.put("a", 0)

            async def change() -> None:
                async with store.transaction():
                    await kv.put("t", 1)
                    await kv.put_many({f"k{i}": i for i in range(300)})

            async def hold() -> None:
                async with store.transaction():
                    await asyncio.sleep(0.2)

            holder = asyncio.create_task(hold())
            await asyncio.sleep(0.01)
            with suppress(TimeoutError):  # Postgres lets both be open
                async with asyncio.timeout(0.05):
                    async with store.transaction():
                        await kv.put("never", 1)
            await holder
            for number in range(30):
                task = asyncio.create_task(change())
                await asyncio.sleep(0.0007 * (number % 10))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await asyncio.wait_for(kv.put("z", 1), 10)
            assert await kv.get("z") == 1
            assert await kv.get("never") == (1 if where == "pg" else None)
            assert (await kv.get("t") is None) == (await kv.get("k299") is None)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_a_forked_child_is_told_to_connect_again(where: str, url_for: Callable[[str], str]) -> None:
    with open_store(where, url_for(where)) as store:
        kv = store.kv()
        kv.put("n", 0)
        pid = os.fork()
        if pid == 0:
            wrong = 0
            for call in (
                lambda: kv.get("n"),
                lambda: kv.put("n", 1),
                lambda: kv.increment("n"),
                lambda: store.kv("x").put("a", 1),
            ):
                try:
                    call()
                except Closed as error:
                    wrong += "fork" not in str(error)
                except BaseException:
                    wrong += 1
                else:
                    wrong += 1
            os._exit(wrong)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert kv.get("n") == 0


def test_handles_of_an_older_declaration_are_refused(store: Store) -> None:
    old = store.table("docs", Doc, key="id")
    old.put(Doc(1, "apple"))
    new = store.table("docs", Doc, key="id", text=["b"])
    new.put(Doc(2, "x", "banana"))
    writes: list[Callable[[], Any]] = [
        lambda: old.put(Doc(3, "x", "cherry")),
        lambda: old.put(Doc(2, "x", "changed")),
        lambda: old.update_one({"id": 2}, {"b": "z"}),
    ]
    for write in writes:
        with pytest.raises(SetupRequired):
            write()
    assert [h.key for h in new.search(text="banana")] == [2]
    wider = store.table("docs", Doc, key="id", text=["a", "b"])
    assert [h.key for h in wider.search(text="apple")] == [1]
    new.put(Doc(4, "date", "elder"))
    assert [h.key for h in new.search(text="elder")] == [4]


def test_a_dropped_table_is_made_anew(store: Store) -> None:
    one, two = store.table("docs", Doc, key="id", text=["a"]), store.table("docs", Doc, key="id", text=["a"])
    one.put(Doc(1, "x"))
    assert two.get(1) == Doc(1, "x")
    one.drop()
    two.put(Doc(2, "y"))
    assert two.query().all() == [Doc(2, "y")]
    one.drop()
    assert two.count() == 0
    assert two.search(text="y") == []


def test_vectors_after_a_drop_are_the_new_ones(store: Store) -> None:
    @dataclass
    class V:
        id: int
        v: Annotated[Any, howdah.vector(4)]

    table = store.table(V, key="id")
    table.put_many([V(i, [i, 1, 0, 0]) for i in range(100)])
    table.search([1, 1, 1, 1])
    table.drop()
    table.put_many([V(i, [-i, 0, 1, i % 3]) for i in range(100)])
    for query in ([1, 0, 1, 0], [-5, 0, 1, 2]):
        assert [h.key for h in table.search(query)] == [h.key for h in table.search(query, exact=True)]


def test_a_write_inside_a_write_is_refused(store: Store) -> None:
    if not store._async._engine.inline:
        pytest.skip("a blocking call from inside the store's own loop is refused by the runner")
    records, kv = store.records(), store.kv()

    def careless(value: Any) -> Any:
        kv.put("log", 1)
        return {"n": 1}

    with pytest.raises(TransactionError):
        records.mutate("a", careless)
    with store.transaction(), pytest.raises(TransactionError):
        store.maintain()
    kv.put("log", 2)
    assert records.get("a") is None


def test_batches_in_any_order_do_not_lock_each_other_out(store: Store) -> None:
    import random

    kv = store.kv()
    keys = [f"k{i}" for i in range(200)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        try:
            for _ in range(3):
                kv.put_many([(k, seed) for k in random_.sample(keys, len(keys))])
                kv.delete_many(random_.sample(keys, 50))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_clearing_while_others_write_keeps_rows_and_index_together(store: Store) -> None:
    table = store.table("docs", Doc, key="id", text=["a"])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            table.put(Doc(number, "cherry"))

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(5):
        time.sleep(0.05)
        table.clear()
    stop.set()
    thread.join()
    assert {h.key for h in table.search(text="cherry", limit=None)} == {d.id for d in table.query()}


def test_generated_keys_stay_above_every_clients_key(store: Store) -> None:
    @dataclass
    class Row:
        id: Annotated[int | None, howdah.Auto]
        name: str

    table = store.table(Row, key="id", unique=["name"])
    table.create(Row(100, "a"))
    assert table.put(Row(None, "b")).id == 101
    table.upsert(Row(200, "c"), on="name")
    assert table.put(Row(None, "d")).id == 201
    table.merge({"id": 300, "name": "e"})
    assert table.put(Row(None, "f")).id == 301


def test_an_expired_row_does_not_hold_a_unique_value(store: Store, clock: Clock) -> None:
    @dataclass
    class Row:
        id: int
        e: str
        until: datetime | None = None

    table = store.table(Row, key="id", unique=["e"], ttl="until")
    table.put_many([Row(1, "a", datetime.fromtimestamp(clock.now + 1, UTC)), Row(2, "b")])
    clock.now += 2
    assert table.update_one({"id": 2}, {"e": "a"}) == Row(2, "a")


def test_vector_stores_survive_rollback_and_late_vectors(store: Store) -> None:
    one = store.vectors("free")
    with pytest.raises(KeyError), store.transaction():
        one.put(Vector("a", [1, 2]))
        raise KeyError
    store.vectors("free").put(Vector("a", [1, 2, 3]))
    assert one.search([1, 2, 3])[0].key == "a"
    late = store.vectors("late", text=["content"])
    late.put(Vector("t", content="hello"))
    late.put(Vector("d", [1.0, 0.0]))
    assert [h.key for h in late.search(text="hello")] == ["t"]
    assert [h.key for h in late.search([1, 0])] == ["d"]
    plain = store.vectors("plain", dim=2, index=None)
    plain.put(Vector("a", [1, 0]))
    indexed = store.vectors("plain", dim=2)
    indexed.put(Vector("b", [0, 1]))
    plain.put(Vector("c", [1, 1]))
    assert {h.key for h in indexed.search([1, 0])} == {"a", "b", "c"}


def test_long_lists_of_any_kind(store: Store) -> None:
    schema = {
        "properties": {
            "id": {"x-type": "uuid"},
            "d": {"x-type": "decimal"},
            "r": {"type": "number"},
            "b": {"x-type": "bytes"},
        },
        "required": ["id"],
    }
    table = store.table("lists", schema, key="id")
    ids = [UUID(int=i) for i in range(50)]
    table.put_many([{"id": u, "d": Decimal(i) / 4, "r": i / 8, "b": bytes([i])} for i, u in enumerate(ids)])
    assert len(table.get_many([*ids, *(uuid4() for _ in range(6000))])) == 50
    c = table.c
    assert table.count(c.d.in_([Decimal(i) / 4 for i in range(-3000, 20)])) == 20
    assert table.count(c.r.in_([i / 8 for i in range(-3000, 20)])) == 20
    assert table.count(c.b.in_([bytes([i, 1]) for i in range(200)] + [b"\x05"])) == 1
    assert table.count(c.d.not_in([Decimal(i) / 4 for i in range(20)])) == 30


def test_sums_beyond_a_double_are_told(store: Store) -> None:
    table = store.table(
        "sums", {"properties": {"id": {"type": "integer"}, "r": {"type": "number"}}, "required": ["id"]}, key="id"
    )
    table.put_many([{"id": i, "r": 1e308} for i in range(3)])
    with pytest.raises(InvalidValue):
        table.aggregate(s=howdah.sum_("r"))
    huge = store.vectors("huge", dim=2)
    huge.put(Vector("a", [1e20, 1e20]))
    assert huge.search([1e20, 1e20])[0].score == pytest.approx(1)


def test_scans_do_not_starve_other_reads(url_for: Callable[[str], str]) -> None:
    with howdah.connect(url_for("pg"), pool_size=1) as store:
        records = store.records()
        records.put_many({f"k{i}": {"n": i} for i in range(20)})
        assert [records.get(e.key) for e in records.scan()] == [{"n": int(e.key[1:])} for e in records.scan()]


def test_threads_close_what_they_opened(url_for: Callable[[str], str]) -> None:
    with howdah.connect(url_for("sqlite")) as store:
        kv = store.kv()
        kv.put("a", 1)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            thread = threading.Thread(target=lambda: kv.get("a"))
            thread.start()
            thread.join()
        assert len(os.listdir("/proc/self/fd")) < before + 10


def test_closing_during_a_transaction_of_another_task_waits(url_for: Callable[[str], str]) -> None:
    async def main() -> None:
        store = await howdah.connect_async(url_for("sqlite"))
        table = store.table("docs", Doc, key="id", text=["a"])
        await table.put(Doc(1, "x"))

        async def hold() -> None:
            async with store.transaction():
                await asyncio.sleep(0.8)
                await store.kv().put("a", 1)

        task = asyncio.create_task(hold())
        await asyncio.sleep(0.1)
        await asyncio.wait_for(store.close(), 20)
        with suppress(Error):
            await task

    asyncio.run(main())


def test_wrong_containers_are_told(store: Store) -> None:
    table, kv, records = store.table("docs", Doc, key="id"), store.kv(), store.records()
    bad: Any
    for bad in (5, None, "text", b"x"):
        for call in (
            kv.put_many,
            kv.get_many,
            kv.delete_many,
            records.put_many,
            records.get_many,
            records.delete_many,
            table.put_many,
            table.get_many,
            table.delete_many,
        ):
            with pytest.raises(InvalidInput):
                call(bad)
