"""Limiters: what they let in is exact, whoever asks, from however many processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import howdah
from howdah import InvalidInput, InvalidValue, Limiter, Permit, Store
from tests.conftest import PERSISTENT, Clock, open_store


@pytest.fixture
def limiter(store: Store) -> Limiter:
    return store.limiter("l", limit=3, per=10)


def at(clock: Clock, more: float = 0) -> datetime:
    return datetime.fromtimestamp(clock.now + more, UTC)


def test_a_window_lets_in_so_many_in_any_interval(limiter: Limiter, clock: Clock) -> None:
    begin = clock.now
    for step in (0, 1, 2):
        clock.now = begin + step
        assert limiter.available_at() == at(clock)
        assert limiter.try_acquire() is not None
    assert limiter.try_acquire() is None
    assert limiter.count() == 3
    assert limiter.available_at().timestamp() == begin + 10
    clock.now = begin + 9.999
    assert limiter.try_acquire() is None
    clock.now = begin + 10
    assert limiter.try_acquire() is not None
    assert limiter.try_acquire() is None
    assert limiter.available_at().timestamp() == begin + 11
    assert limiter.count(since=at(clock, -9)) == 2


def test_release_undoes_one_start_by_its_identity(limiter: Limiter, clock: Clock) -> None:
    permits = [limiter.try_acquire() for _ in range(3)]
    assert all(permits)
    first = permits[0]
    assert first is not None
    assert limiter.release(first)
    assert not limiter.release(first)
    assert limiter.count() == 2
    assert limiter.try_acquire() is not None
    clock.now += 20
    assert limiter.count() == 0


def test_weights(limiter: Limiter) -> None:
    assert limiter.try_acquire(2) is not None
    assert limiter.try_acquire(2) is None
    assert limiter.try_acquire(1) is not None
    wrong: Any
    for wrong in (0, 4, -1, 1.5, True, None):
        with pytest.raises(InvalidInput):
            limiter.try_acquire(wrong)


def test_blocking_is_for_everybody_and_only_ever_later(store: Store, limiter: Limiter, clock: Clock) -> None:
    limiter.block_until(at(clock, 30))
    limiter.block_until(at(clock, 5))
    other = store.limiter("l", limit=3, per=10)
    assert other.try_acquire() is None
    assert other.available_at() == at(clock, 30)
    clock.now += 30
    assert other.try_acquire() is not None
    limiter.block_until(at(clock, 30))
    limiter.clear()
    assert limiter.try_acquire() is not None
    wrong: Any
    for wrong in (datetime(2030, 1, 1), 5, None):
        with pytest.raises(InvalidInput):
            limiter.block_until(wrong)


def test_scopes_never_share_a_window(store: Store) -> None:
    a, b = (store.limiter("l", limit=1, per=60, scope={"user": u}) for u in "ab")
    assert a.try_acquire() is not None
    assert a.try_acquire() is None
    assert b.try_acquire() is not None
    a.clear()
    assert b.try_acquire() is None
    assert store.scoped("t").limiter("l", limit=1, per=60).try_acquire() is not None


def test_a_bucket_fills_by_time(store: Store, clock: Clock) -> None:
    bucket = store.limiter("b", rate=2, burst=5)
    assert [bucket.try_acquire() is not None for _ in range(6)] == [True] * 5 + [False]
    assert bucket.available_at() == at(clock, 0.5)
    clock.now += 0.5
    permit = bucket.try_acquire()
    assert permit is not None
    assert bucket.try_acquire() is None
    assert bucket.release(permit)
    assert not bucket.release(permit)
    assert bucket.try_acquire() is not None
    clock.now += 100
    assert bucket.count() == 0
    assert bucket.try_acquire(5) is not None
    bucket.block_until(at(clock, 60))
    clock.now += 30
    assert bucket.try_acquire() is None


def test_acquire_waits(store: Store, engine: str, url_for: Callable[[str], str]) -> None:
    with open_store(engine, url_for(engine)) as timed:
        limiter = timed.limiter("l", limit=2, per=0.2)
        began = time.monotonic()
        for _ in range(5):
            limiter.acquire(timeout=5)
        assert time.monotonic() - began >= 0.39
        with pytest.raises(howdah.Timeout):
            timed.limiter("long", limit=1, per=60).acquire() and timed.limiter("long", limit=1, per=60).acquire(
                timeout=0.05
            )
        full = timed.limiter("full", limit=1, per=3600)
        permit = full.acquire()
        giver = threading.Timer(0.1, lambda: full.release(permit))
        giver.start()
        assert isinstance(full.acquire(timeout=10), Permit)
        giver.join()


def test_threads_get_no_more_than_there_is(store: Store) -> None:
    limiter = store.limiter("l", limit=7, per=3600)
    let_in: list[Permit] = []

    def ask() -> None:
        for _ in range(10):
            permit = limiter.try_acquire()
            if permit is not None:
                let_in.append(permit)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 7 == limiter.count()


ASK = """
import sys, howdah
with howdah.connect(sys.argv[1]) as store:
    limiter = store.limiter("l", limit=20, per=3600)
    print(sum(limiter.try_acquire() is not None for _ in range(15)))
"""


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_processes_get_no_more_than_there_is(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store:
        assert store.limiter("l", limit=20, per=3600).shared
        asking = [
            subprocess.Popen([sys.executable, "-c", ASK, url], stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        assert sum(int(process.communicate(timeout=60)[0]) for process in asking) == 20


def test_bad_settings(store: Store) -> None:
    wrong: Any
    for wrong in (
        {}, {"limit": 1}, {"per": 1}, {"rate": 1}, {"limit": 1, "per": 1, "rate": 1, "burst": 1}, {"limit": 0, "per": 1},
        {"limit": 1.5, "per": 1}, {"rate": 0, "burst": 1}, {"rate": 1, "burst": 0}, {"rate": float("nan"), "burst": 1},
        {"limit": True, "per": 1},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            store.limiter("l", **wrong)
    with pytest.raises(InvalidValue):
        store.limiter("l", limit=1, per=0)
    limiter = store.limiter("l", limit=1, per=timedelta(seconds=1))
    thing: Any = "no permit"
    with pytest.raises(InvalidInput):
        limiter.release(thing)


def test_history_does_not_grow(store: Store, clock: Clock) -> None:
    limiter = store.limiter("l", limit=5, per=10)
    for _ in range(50):
        clock.now += 3
        limiter.try_acquire()
    assert limiter._async._table is not None
    rows = store._run(limiter._async._table.count())
    assert rows <= 6


def test_several_at_once_or_none(store: Store, clock: Clock) -> None:
    user, team = store.limiter("user", limit=2, per=10), store.limiter("team", rate=1, burst=3, scope={"team": 1})
    first = store.try_acquire_all([user, team])
    assert first is not None
    assert [p.permits for p in first] == [1, 1]
    assert store.try_acquire_all([team, user], permits=2) is None
    assert (user.count(), team.count()) == (1, 1)
    assert user.try_acquire() is not None
    assert store.try_acquire_all([team, user]) is None
    assert team.count() == 1
    with pytest.raises(howdah.Timeout, match="'user', 'team'"):
        store.acquire_all([user, team], timeout=0)
    assert user.release(first[0])
    assert len(store.acquire_all([user, team], timeout=0)) == 2
    for wrong in ([], [user, user], [user, 5], [user, howdah.connect("memory:").limiter("x", limit=1, per=1)]):
        with pytest.raises(InvalidInput):
            store.try_acquire_all(wrong)
    with pytest.raises(InvalidInput):
        store.try_acquire_all([user, team], permits=3)


def test_racing_for_several_in_any_order(engine: str, url_for: Callable[[str], str]) -> None:
    with open_store(engine, url_for(engine)) as store:
        a, b = store.limiter("a", limit=20, per=3600), store.limiter("b", limit=30, per=3600)
        won: list[Any] = []

        def work(order: list[Limiter]) -> None:
            for _ in range(10):
                won.append(store.try_acquire_all(order))

        threads = [threading.Thread(target=work, args=([a, b] if i % 2 else [b, a],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(w is not None for w in won) == a.count() == b.count() == 20


def test_waiting_for_several(engine: str, url_for: Callable[[str], str]) -> None:
    with open_store(engine, url_for(engine)) as store:
        a, b = store.limiter("a", limit=1, per=0.3), store.limiter("b", limit=5, per=60)
        began = time.monotonic()
        store.acquire_all([a, b])
        store.acquire_all([b, a], timeout=20)
        assert time.monotonic() - began >= 0.29
        assert b.count() == 2
