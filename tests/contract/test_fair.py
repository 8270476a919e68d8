"""Fair turns: a claim over many scopes takes from each in turn, and everything else works over all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import howdah
from howdah import AsyncStore, InvalidInput, InvalidName, JobStatus, Queue, Retry, Store
from howdah.jobs import AsyncJobServer, JobContext
from tests.conftest import Clock, open_store


def tenant(store: Store, name: str) -> Queue:
    return store.queue("work", scope={"tenant": name})


def scopes(queue: Queue, limit: int) -> list[str]:
    return [str(claim.job.scope["tenant"]) for claim in queue.claim_many("w", limit=limit)]


def test_scopes_take_turns(store: Store) -> None:
    tenant(store, "big").add_many(range(100))
    tenant(store, "small").add_many(range(2))
    tenant(store, "tiny").add("one")
    store.queue("work", scope={"other": 1}).add("not of a tenant")
    store.queue("work").add("without a scope")
    store.scoped("s").queue("work", scope={"tenant": "elsewhere"}).add("of another store")
    whole = store.queue("work", fair_by="tenant")
    assert Counter(scopes(whole, 7)) == {"big": 4, "small": 2, "tiny": 1}
    assert scopes(whole, 3) == ["big"] * 3
    tenant(store, "aaa").add_many(range(3))
    tenant(store, "zzz").add_many(range(3))
    turns = [scopes(whole, 1)[0] for _ in range(9)]
    assert turns[:6] in (["zzz", "aaa", "big"] * 2, ["aaa", "big", "zzz"] * 2)
    assert Counter(turns) == {"aaa": 3, "big": 3, "zzz": 3}
    assert scopes(whole, 1000) == ["big"] * 90
    assert whole.claim("w") is None


def test_a_claim_is_as_good_as_any(store: Store, clock: Clock) -> None:
    a, b = tenant(store, "a"), tenant(store, "b")
    ids = [a.add({"n": 1}, max_attempts=1), b.add({"n": 2}), b.add({"n": 3}, priority=9)]
    whole = store.queue("work", fair_by="tenant")
    first, second, third = whole.claim_many("w", limit=3, lease=10)
    assert [c.input["n"] for c in (first, second, third)] == [1, 3, 2]
    first.fail("no", code="Bad")
    second.ack("done")
    third.retry(delay=5)
    assert [j.error_code for j in a.get_many([ids[0]]).values()] == ["Bad"]
    assert b.output_for({"n": 3}) == "done"
    assert whole.claim("w") is None
    clock.now += 6
    again = whole.claim("w", lease=10)
    assert again is not None
    assert again.id == ids[1]
    clock.now += 11  # the lease of another tenant's job is looked after, too
    last = whole.claim("w")
    assert last is not None
    assert last.id == ids[1]
    with pytest.raises(howdah.ClaimLost):
        again.ack()
    last.release()
    assert whole.get(ids[1]) == b.get(ids[1])
    counts = whole.counts()
    assert [counts[s] for s in (JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED)] == [1, 1, 1]
    assert [j.id for j in whole.dead_letters()] == [ids[0]]
    assert whole.redrive() == 1
    assert whole.abort(ids[0])
    assert whole.purge("FAILED") == 1
    assert whole.clear() == 2


def test_paused_tenants_and_schedules(store: Store, clock: Clock) -> None:
    a, b = tenant(store, "a"), tenant(store, "b")
    a.add_many(range(3))
    b.schedule("* * * * *", "tick")
    a.pause()
    whole = store.queue("work", fair_by="tenant")
    assert whole.claim("w") is None
    clock.now += 60
    assert scopes(whole, 9) == ["b"]
    a.resume()
    clock.now += 1
    assert scopes(whole, 9) == ["a"] * 3


def test_several_columns(store: Store) -> None:
    for user in "xy":
        store.queue("work", scope={"tenant": "t", "user": user}).add_many(range(3))
    tenant(store, "t").add("has no user")
    claims = store.queue("work", fair_by=("tenant", "user")).claim_many("w", limit=4)
    assert Counter(c.job.scope["user"] for c in claims) == {"x": 2, "y": 2}
    assert len(store.queue("work", fair_by="tenant").claim_many("w", limit=9)) == 3


def test_what_needs_one_scope_is_refused(store: Store) -> None:
    whole = store.queue("work", fair_by="tenant")
    for call in (
        lambda: whole.add(1),
        lambda: whole.add_many([1]),
        lambda: whole.schedule("* * * * *", 1),
        whole.schedules,
        lambda: whole.unschedule("x"),
        whole.pause,
        whole.resume,
    ):
        with pytest.raises(InvalidInput, match="of one"):
            call()
    with pytest.raises(InvalidInput):
        store.queue("work", scope={"tenant": "a"}, fair_by="tenant")
    for wrong in ("", "no column", 5, [7]):
        with pytest.raises((InvalidInput, InvalidName)):
            store.queue("work", fair_by=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        store.queue("work", fair_by=())


def test_a_scoped_store_sees_its_own_only(store: Store) -> None:
    inside = store.scoped("s")
    inside.queue("work", scope={"tenant": "a"}).add("in")
    tenant(store, "a").add("out")
    assert inside.queue("work").count(scope={}) == 1
    whole = inside.queue("work", fair_by="tenant")
    assert [c.input for c in whole.claim_many("w", limit=5)] == ["in"]
    assert store.queue("work").count("PROCESSING", scope={}) == 1


@pytest.mark.parametrize("kind", ["memory", "sqlite", "pg"])
def test_servers_serve_every_tenant(kind: str, url_for: Callable[[str], str]) -> None:
    done: list[tuple[Any, int]] = []

    async def handle(value: int, ctx: JobContext) -> int:
        done.append((ctx.job.scope["tenant"], value))
        if value == 7:
            raise ValueError("seven")
        return value

    async def main() -> None:
        async with await howdah.connect_async(url_for(kind)) as store:
            await check(store)

    async def check(store: AsyncStore) -> None:
        tenants = [store.queue("work", scope={"tenant": t}) for t in "abc"]
        for queue in tenants:
            await queue.add_many(range(10), max_attempts=1)
        letters = store.queue("letters")
        whole = store.queue("work", fair_by="tenant")
        server = AsyncJobServer(whole, handle, workers=3, dead_letter_to=letters, retry=Retry(delay=0.001))
        async with server:
            await whole.drain(timeout=30)
        assert sorted(done) == [(t, n) for t in "abc" for n in range(10)]
        assert {t for t, _ in done[:6]} == {"a", "b", "c"}
        assert (await whole.counts())[JobStatus.COMPLETED] == 27
        assert len(await letters.peek()) == 3

    asyncio.run(main())


def test_scopes_that_give_nothing_are_passed_over(engine: str, url_for: Callable[[str], str]) -> None:
    if engine not in ("pg", "server"):
        pytest.skip("writers take turns")
    url = url_for(engine)
    with howdah.connect(url) as one, howdah.connect(url) as two:
        assert one.queue("work", fair_by="tenant").claim("w") is None  # makes the tables
        tenant(one, "a").add("a1")
        tenant(one, "b").add("b1")
        with one.transaction():
            first = one.queue("work", fair_by="tenant").claim("w1")
            second = two.queue("work", fair_by="tenant").claim("w2")
        assert first is not None
        assert second is not None
        assert (first.input, second.input) == ("a1", "b1")


def test_telemetry_odd_prefixes_and_dead_letters(engine: str, url_for: Callable[[str], str]) -> None:
    spans: list[str] = []

    def hook(name: str, attributes: Any) -> Any:
        spans.append(name)
        return contextlib.nullcontext()

    with open_store(engine, url_for(engine)) as store:
        store.scoped("{x").queue("work", scope={"tenant": "b"}).add(1)
        tenant(store, "a").add(2)
        whole = store.queue("work", fair_by="tenant")
        assert [c.input for c in whole.claim_many("w", limit=5)] == [2]
    if engine == "memory":
        with howdah.connect("memory:", telemetry=hook) as traced:
            traced.queue("w", fair_by="t").claim("w")
        assert "howdah.queue.claim" in spans

    async def main() -> None:
        async with await howdah.connect_async("memory:") as mine:
            with pytest.raises(InvalidInput, match="dead_letter_to"):
                AsyncJobServer(mine.queue("q"), max, dead_letter_to=mine.queue("l", fair_by="t"))

    asyncio.run(main())


def test_streams_of_what_time_has_ended_are_tidied(store: Store, clock: Clock) -> None:
    whole = store.queue("work", fair_by="tenant")
    tenant(store, "a").add(1, max_attempts=1)
    claim = whole.claim("w", lease=10)
    assert claim is not None
    claim.emit("event")
    table = whole._async._streams.table
    for _ in range(6):
        clock.now += 15
        assert whole.claim("w") is None
    assert whole._run(table.count()) == 0
