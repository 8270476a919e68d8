"""Transactions over several stores on every engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import howdah
from howdah import Conflict, DuplicateKey, InvalidInput, InvalidValue, Store, TransactionError


@dataclass
class Row:
    id: str
    n: int = 0


def test_commit_and_rollback_over_stores(store: Store) -> None:
    kv, records, table = store.kv(), store.records(), store.table(Row, key="id", unique=["n"])
    kv.put("before", 1)
    with store.transaction() as tx:
        tx.kv().put("a", 1)
        records.put("a", {"n": 1})
        table.put(Row("a", 1))
        assert kv.get("a") == 1
        assert kv.get("before") == 1
    assert (kv.get("a"), records.get("a"), table.get("a")) == (1, {"n": 1}, Row("a", 1))
    with pytest.raises(ZeroDivisionError), store.transaction():
        kv.put("b", 1)
        records.delete("a")
        table.clear()
        _ = 1 / 0
    assert (kv.get("b"), records.get("a"), table.get("a")) == (None, {"n": 1}, Row("a", 1))


def test_savepoints(store: Store) -> None:
    kv = store.kv()
    with store.transaction():
        kv.put("a", 1)
        with pytest.raises(KeyError), store.transaction():
            kv.put("b", 1)
            with store.transaction():
                kv.put("c", 1)
            assert kv.get("c") == 1
            raise KeyError
        assert kv.keys().all() == ["a"]
        with store.transaction():
            kv.put("d", 1)
    assert kv.keys().all() == ["a", "d"]


def test_a_failed_write_leaves_the_transaction_usable(store: Store) -> None:
    table = store.table(Row, key="id", unique=["n"])
    table.put(Row("x", 5))
    with store.transaction():
        table.put(Row("a", 1))
        with pytest.raises(DuplicateKey):
            table.put_many([Row("b", 2), Row("c", 5)])
        with pytest.raises(InvalidValue):
            table.put({"id": "d", "n": "x"})
        table.put(Row("e", 3))
    assert [r.id for r in table.query()] == ["a", "e", "x"]


def test_tables_made_in_a_rolled_back_transaction_are_made_again(store: Store) -> None:
    table = store.table(Row, key="id")
    with pytest.raises(KeyError), store.transaction():
        table.put(Row("a"))
        raise KeyError
    assert table.count() == 0
    table.put(Row("b"))
    assert table.count() == 1


def test_others_stay_outside_and_see_nothing_uncommitted(store: Store) -> None:
    kv = store.kv()
    kv.put("a", 0)
    seen: list[Any] = []
    done = threading.Event()

    def outside() -> None:
        seen.append(kv.get("a"))
        done.set()

    with store.transaction():
        kv.put("a", 1)
        thread = threading.Thread(target=outside)
        thread.start()
        assert done.wait(10)
    thread.join()
    assert seen == [0]
    assert kv.get("a") == 1


def test_transact_returns_and_retries(store: Store) -> None:
    kv = store.kv()
    calls: list[int] = []

    def work(tx: Any) -> int:
        calls.append(1)
        tx.kv().put("a", len(calls))
        if len(calls) < 3:
            raise Conflict("again")
        return 7

    assert store.transact(work) == 7
    assert kv.get("a") == 3
    calls.clear()

    def never(tx: Any) -> None:
        calls.append(1)
        raise Conflict("always")

    with pytest.raises(Conflict):
        store.transact(never, retries=2)
    assert len(calls) == 3


def test_misuse_is_told(store: Store) -> None:
    transaction = store.transaction()
    with transaction, pytest.raises(TransactionError), transaction:
        pass
    with store.transaction(), pytest.raises(TransactionError):
        store.close()
    assert store.kv().get("a") is None


def test_isolation_is_checked(store: Store, engine: str) -> None:
    if engine in ("pg", "server"):
        with pytest.raises(InvalidInput), store.transaction(isolation="chaos"):  # type: ignore[arg-type]
            pass
        with store.transaction(isolation="serializable"):
            store.kv().put("a", 1)
    assert store.kv().get("a") == (1 if engine in ("pg", "server") else None)


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_async_tasks_inside_join_and_those_outside_do_not(where: str, url_for: Callable[[str], str]) -> None:
    async def main() -> None:
        async with await howdah.connect_async(url_for(where)) as store:
            kv = store.kv()
            await kv.put("zero", 0)
            started, release = asyncio.Event(), asyncio.Event()

            async def outsider() -> Any:
                await started.wait()
                seen = await kv.get("a")
                release.set()
                await kv.put("outside", 1)
                return seen

            task = asyncio.create_task(outsider())
            with pytest.raises(KeyError):
                async with store.transaction():
                    await asyncio.gather(*(kv.put(f"t{i}", i) for i in range(20)))
                    await kv.put("a", 1)
                    started.set()
                    await release.wait()
                    assert len(await kv.keys("t").all()) == 20

                    async def nested(number: int) -> None:
                        async with store.transaction():
                            await kv.put(f"n{number}", 1)

                    await asyncio.gather(*(nested(i) for i in range(5)))
                    raise KeyError
            assert await task is None
            assert sorted([k async for k in kv.keys()]) == ["outside", "zero"]

    asyncio.run(main())


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_many_concurrent_async_writers(where: str, url_for: Callable[[str], str]) -> None:
    async def main() -> None:
        async with await howdah.connect_async(url_for(where)) as store:
            kv = store.kv()
            await asyncio.gather(*(kv.increment("n") for _ in range(100)), *(kv.put(f"k{i}", i) for i in range(200)))
            assert await kv.get("n") == 100
            assert await kv.count() == 201
            results = await asyncio.gather(
                *(kv.put(f"x{i}", float("nan") if i == 5 else i) for i in range(10)), return_exceptions=True
            )
            assert [isinstance(r, Exception) for r in results] == [i == 5 for i in range(10)]

    asyncio.run(main())


@pytest.mark.parametrize("engine", ["pg", "server"])
def test_a_transaction_cut_short_while_it_begins_takes_nothing_along(
    engine: str, url_for: Callable[[str], str]
) -> None:
    async def main() -> None:
        async with await howdah.connect_async(url_for(engine), pool_size=1) as store:
            kv = store.kv("k")
            await kv.put("first", 0)

            async def block() -> None:
                async with store.transaction():
                    await asyncio.sleep(1)

            async def write() -> None:
                await kv.put_many({f"m{n}": n for n in range(3)})

            for n in range(30):
                task = asyncio.create_task(block() if n % 2 else write())
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                await kv.put(str(n), n)
            assert {str(n) for n in range(30)} <= {k async for k in kv.keys()}

    asyncio.run(main())
