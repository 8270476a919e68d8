"""Queues: every job is held by one worker at most, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import howdah
from howdah import Claim, ClaimLost, InvalidInput, InvalidValue, Job, JobNotFound, JobStatus, Queue, Store
from howdah.stores.claim import AsyncClaim, Outcome
from tests.conftest import Clock, open_store


@pytest.fixture
def queue(store: Store) -> Queue:
    return store.queue("work")


def take(queue: Queue, worker: str = "w", **options: Any) -> Claim:
    claim = queue.claim(worker, **options)
    assert claim is not None
    return claim


def look(queue: Queue, id: str) -> Job:
    job = queue.get(id)
    assert job is not None
    return job


def inputs(claims: list[Claim]) -> list[Any]:
    return [c.input for c in claims]


def test_a_job_from_adding_to_completion(queue: Queue, clock: Clock) -> None:
    given: Any = {"n": 1e16, "list": [1, None, True]}
    id = queue.add(given, priority=3, timeout=60, max_attempts=4, run_id="run")
    given["n"] = "changed"
    now = datetime.fromtimestamp(clock.now, UTC)
    job = look(queue, id)
    assert (job.status, job.attempts, job.progress, job.priority, job.max_attempts) == (JobStatus.PENDING, 0, 0, 3, 4)
    assert (job.created_at, job.visible_at, job.deadline_at) == (now, now, now + timedelta(seconds=60))
    assert repr(job.input) == repr({"n": 1e16, "list": [1, None, True]})
    assert job.fingerprint == howdah.fingerprint(job.input)
    assert (job.queue, job.run_id) == ("work", "run")
    clock.now += 1
    claim = take(queue, "me", lease=10)
    running = look(queue, id)
    assert claim.job == running
    assert (running.status, running.attempts, running.lease_owner) == (JobStatus.PROCESSING, 1, "me")
    assert running.lease_expires_at == now + timedelta(seconds=11)
    assert running.last_attempted_at == now + timedelta(seconds=1)
    clock.now += 1
    claim.ack({"answer": 42})
    done = look(queue, id)
    assert (done.status, done.output, done.progress) == (JobStatus.COMPLETED, {"answer": 42}, 100)
    assert done.completed_at == now + timedelta(seconds=2)
    assert (done.lease_owner, done.lease_expires_at, done.error) == (None, None, None)
    assert done.finished
    assert queue.claim("me") is None


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, 1.5, "text"])
def test_falsy_inputs_and_outputs_are_as_good_as_others(queue: Queue, value: Any) -> None:
    id = queue.add(value)
    claim = take(queue)
    assert repr(claim.input) == repr(value)
    assert queue.completed_for(value) is None
    claim.ack(value)
    assert repr(look(queue, id).output) == repr(value)
    found = queue.completed_for(value)
    assert found is not None
    assert found.id == id
    assert repr(queue.output_for(value)) == repr(value)
    assert queue.output_for("something else") is None


def test_order_is_priority_then_due_then_age(queue: Queue, clock: Clock) -> None:
    queue.add("late", delay=10)
    queue.add("first")
    queue.add("second")
    queue.add("urgent", priority=5)
    queue.add("low", priority=-5)
    queue.add("urgent and late", priority=5, delay=10)
    assert inputs(queue.claim_many("w", limit=10)) == ["urgent", "first", "second", "low"]
    clock.now += 9.5
    assert queue.claim("w") is None
    clock.now += 0.5
    assert inputs(queue.claim_many("w", limit=10)) == ["urgent and late", "late"]


def test_add_many(queue: Queue) -> None:
    ids = queue.add_many([{"n": i} for i in range(2500)], priority=1)
    assert len(set(ids)) == 2500
    assert [j.input["n"] for j in queue.get_many(ids[:50]).values()] == list(range(50))
    assert queue.add_many([]) == []
    with pytest.raises(InvalidValue):
        queue.add_many([1, 2, float("nan")])
    with pytest.raises(InvalidValue):
        queue.add_many([*range(1800), float("nan")])
    with pytest.raises(TypeError):
        queue.add_many([1], fingerprint="one for all")  # type: ignore[call-arg]  # the mistake under test
    assert queue.count() == 2500
    assert [c.input["n"] for c in queue.claim_many("w", limit=3000)] == list(range(2500))


def test_adding_takes_part_in_a_transaction(store: Store, queue: Queue) -> None:
    records = store.records("r")
    with suppress(ZeroDivisionError), store.transaction():
        queue.add("gone")
        records.put("gone", {})
        raise ZeroDivisionError
    with store.transaction():
        queue.add("kept")
        records.put("kept", {})
    assert inputs(queue.claim_many("w", limit=5)) == ["kept"]
    assert records.get("gone") is None


def test_bad_arguments_are_refused(store: Store, queue: Queue) -> None:
    wrong: Any
    for wrong in ({"delay": -1}, {"delay": float("nan")}, {"timeout": 0}, {"timeout": True}):
        with pytest.raises(InvalidValue):
            queue.add(1, **wrong)
    for wrong in (
        {"priority": 1.5}, {"priority": True}, {"max_attempts": 0}, {"max_attempts": "3"}, {"run_id": ""}, {"run_id": 7},
        {"fingerprint": ""}, {"fingerprint": "x" * 2000},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            queue.add(1, **wrong)
    for wrong in (object(), {1: 2}, {"a": {1, 2}}, b"x", "\0", float("inf"), 2**70):
        with pytest.raises(InvalidValue):
            queue.add(wrong)
    for wrong in (-1, float("inf"), float("nan"), "5", None):
        with pytest.raises(InvalidValue):
            queue.claim("w", lease=wrong)
    for wrong in ("", None, 5):
        with pytest.raises(InvalidInput):
            queue.claim(wrong)
    for wrong in (0, -1, None, 1.5):
        with pytest.raises(InvalidInput):
            queue.claim_many("w", limit=wrong)
    for wrong in ("RUNNING", "", None):
        with pytest.raises(InvalidInput):
            queue.count(wrong)
    for wrong in ({}, {"a": None}, {"a": 1.5}, {"a b": 1}, 5):
        with pytest.raises(InvalidInput):
            store.queue("q", scope=wrong)
    assert sum(queue.counts().values()) == 0
    assert queue.get("no such job") is None
    assert queue.get_many([]) == {}


def test_an_expired_lease_frees_the_job_at_its_old_place(queue: Queue, clock: Clock) -> None:
    queue.add("a")
    clock.now += 1
    queue.add("b")
    slow = take(queue, "slow", lease=5)
    assert slow.input == "a"
    clock.now += 5
    quick = take(queue, "quick", lease=5)
    assert (quick.input, quick.job.attempts) == ("a", 2)
    assert quick.token > slow.token
    for late in (
        lambda: slow.ack(1),
        lambda: slow.fail("x"),
        lambda: slow.retry(),
        lambda: slow.disable(),
        lambda: slow.release(),
        lambda: slow.extend(5),
        lambda: slow.progress(5),
        lambda: slow.emit(1),
    ):
        with pytest.raises(ClaimLost):
            late()
    job = look(queue, quick.id)
    assert (job.status, job.lease_owner, job.progress, job.output) == (JobStatus.PROCESSING, "quick", 0, None)
    quick.ack("done")
    with pytest.raises(ClaimLost):
        quick.ack("again")
    assert look(queue, quick.id).output == "done"


def test_a_lease_of_zero_is_over_at_once(queue: Queue, clock: Clock) -> None:
    queue.add("a")
    first = take(queue, lease=0)
    second = take(queue)
    assert second.id == first.id
    with pytest.raises(ClaimLost):
        first.ack()


def test_extending_keeps_the_job(queue: Queue, clock: Clock) -> None:
    queue.add("a")
    claim = take(queue, lease=10)
    for _ in range(5):
        clock.now += 9
        assert claim.extend(10) is False
    assert queue.claim("other") is None
    claim.ack()


def test_the_last_lost_lease_makes_a_dead_letter(queue: Queue, clock: Clock) -> None:
    id = queue.add("a", max_attempts=2)
    take(queue, lease=1).retry(delay=0, error=ValueError("the real reason"))
    take(queue, lease=1)
    clock.now += 2
    assert queue.claim("w") is None
    job = look(queue, id)
    assert (job.status, job.error_code, job.error, job.attempts) == (
        JobStatus.FAILED, "AttemptsExhausted", "the real reason", 2,
    )  # fmt: skip
    assert [j.id for j in queue.dead_letters()] == [id]


def test_fail_keeps_message_code_and_traceback(queue: Queue) -> None:
    class Odd(Exception):
        code = "E42"

    ids = queue.add_many([1, 2, 3, 4])
    claims = queue.claim_many("w", limit=4)
    outer = ValueError("outer \0 \ud800")
    outer.__cause__ = KeyError("inner")
    claims[0].fail(outer)
    assert outer.__cause__ is not None
    claims[1].fail(Odd("odd"))
    claims[2].fail("only text")
    claims[3].fail("text", code="MINE")
    jobs = [look(queue, id) for id in ids]
    assert [(j.status, j.error_code) for j in jobs] == [
        (JobStatus.FAILED, "ValueError"), (JobStatus.FAILED, "E42"), (JobStatus.FAILED, "JobError"), (JobStatus.FAILED, "MINE"),
    ]  # fmt: skip
    assert jobs[0].error is not None
    assert jobs[0].error.startswith("outer ")
    assert "KeyError: 'inner'" in str(jobs[0].traceback)
    assert jobs[2].traceback is None
    assert len(queue.dead_letters()) == 4


def test_retry_waits_and_keeps_the_error(queue: Queue, clock: Clock) -> None:
    id = queue.add("a", max_attempts=3)
    take(queue).retry(delay=5, error="first", code="C1")
    job = look(queue, id)
    assert (job.status, job.error, job.error_code, job.attempts) == (JobStatus.PENDING, "first", "C1", 1)
    assert queue.claim("w") is None
    clock.now += 5
    take(queue).retry(error="second")
    later = look(queue, id).visible_at
    assert timedelta(0) <= later - datetime.fromtimestamp(clock.now, UTC) <= timedelta(seconds=2)
    clock.now += 600
    take(queue).retry(delay=0, error=RuntimeError("third"))
    job = look(queue, id)
    assert (job.status, job.error, job.error_code, job.attempts) == (JobStatus.FAILED, "third", "RuntimeError", 3)
    assert queue.redrive([id]) == 1
    claim = take(queue)
    assert (claim.job.attempts, claim.job.error) == (1, None)
    claim.ack("fine")
    assert look(queue, id).error is None


def test_release_gives_the_attempt_back(queue: Queue, clock: Clock) -> None:
    id = queue.add("a", max_attempts=1)
    queue.add("b")
    for _ in range(3):
        claim = take(queue)
        assert (claim.input, claim.job.attempts) == ("a", 1)
        claim.progress(50, "half")
        claim.release()
        job = look(queue, id)
        assert (job.status, job.attempts, job.progress, job.lease_owner) == (JobStatus.PENDING, 0, 0, None)


def test_disable_ends_without_error(queue: Queue) -> None:
    id = queue.add("a")
    claim = take(queue)
    claim.progress(20)
    claim.disable()
    job = look(queue, id)
    assert (job.status, job.error, job.progress) == (JobStatus.DISABLED, None, 0)
    assert queue.dead_letters() == []
    with pytest.raises(ClaimLost):
        claim.retry()


def test_abort(queue: Queue, clock: Clock) -> None:
    waiting, running, retried, released, reclaimed, done = queue.add_many(["w", "r", "t", "l", "c", "d"])
    assert queue.abort(waiting)
    job = look(queue, waiting)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "Aborted")
    claims = {c.id: c for c in queue.claim_many("w", limit=9, lease=10)}
    claims[done].ack("out")
    assert not queue.abort(done)
    assert not queue.abort("unknown")
    assert not queue.abort(waiting)
    for id in (running, retried, released, reclaimed):
        assert queue.abort(id)
        assert look(queue, id).aborting
        assert claims[id].extend(10) is True
    claims[running].fail("stopped", code="Aborted")
    claims[retried].retry(delay=0)
    claims[released].release()
    clock.now += 11
    assert queue.claim("w") is None
    for id in (running, retried, released, reclaimed):
        job = look(queue, id)
        assert (job.status, job.error_code) == (JobStatus.FAILED, "Aborted")
    assert look(queue, done).output == "out"
    assert queue.dead_letters() == []


def test_abort_of_a_run(queue: Queue) -> None:
    ids = queue.add_many(range(120), run_id="r1")
    other = queue.add("other", run_id="r2")
    alone = queue.add("alone")
    claims = queue.claim_many("w", limit=110)
    assert queue.abort_run("r1") == 120
    assert all(claim.extend() for claim in claims)
    assert queue.counts()[JobStatus.FAILED] == 10
    assert [j.id for j in queue.by_run("r1")] == ids
    assert [j.id for j in queue.by_run("r2")] == [other]
    assert [j.id for j in queue.by_run(alone)] == [alone]
    assert queue.by_run("nothing") == []


def test_deadlines(queue: Queue, clock: Clock) -> None:
    late = queue.add("late", timeout=5)
    retried = queue.add("retried", timeout=20)
    clock.now += 6
    claim = take(queue)
    assert claim.input == "retried"
    assert queue.claim("w") is None
    job = look(queue, late)
    assert (job.status, job.error_code, job.attempts) == (JobStatus.FAILED, "DeadlineExceeded", 0)
    claim.retry(delay=1)
    clock.now += 20
    assert queue.claim("w") is None
    assert look(queue, retried).error_code == "DeadlineExceeded"


def test_progress_is_read_everywhere(queue: Queue) -> None:
    id = queue.add("a")
    claim = take(queue)
    claim.progress(30.5, "a third", details={"page": 3})
    job = look(queue, id)
    assert (job.progress, job.progress_message, job.progress_details) == (30.5, "a third", {"page": 3})
    claim.progress(250)
    assert look(queue, id).progress == 100
    assert queue.save_progress(id, -5, message="back")
    assert look(queue, id).progress == 0
    assert not queue.save_progress("unknown", 5)
    wrong: Any
    for wrong in (float("nan"), "5", None, True):
        with pytest.raises(InvalidValue):
            claim.progress(wrong)
    claim.ack()
    assert not queue.save_progress(id, 5)


def test_dedup_on_request(queue: Queue, clock: Clock) -> None:
    first = queue.add({"a": 1, "b": 2}, unique=True)
    assert queue.add({"b": 2, "a": 1}, unique=True) == first
    assert queue.add({"a": 1, "b": 2}) != first
    queue.delete(queue.add_many([{"a": 1, "b": 2}])[0])
    active = queue.find_active(howdah.fingerprint({"a": 1, "b": 2}))
    assert active is not None
    same = queue.add_many(["x", "y", "x"], unique=True)
    assert same[0] == same[2] != same[1]
    assert queue.add("anything", fingerprint="mine", unique=True) == queue.add("other", fingerprint="mine", unique=True)
    for claim in queue.claim_many("w", limit=10):
        assert queue.add(claim.input, fingerprint=claim.job.fingerprint, unique=True) in (claim.id, first, active.id)
        claim.ack()
    assert queue.find_active("mine") is None
    assert queue.add({"a": 1, "b": 2}, unique=True) != first


def test_of_racing_unique_adds_one_is_added(queue: Queue) -> None:
    ids: list[str] = []

    def add() -> None:
        for n in range(10):
            ids.append(queue.add(n, unique=True))

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 10 == queue.count()


def test_racing_workers_never_hold_one_job_both(queue: Queue) -> None:
    ids = queue.add_many(range(300))
    taken: list[str] = []

    def work(name: str) -> None:
        while claims := queue.claim_many(name, limit=7):
            for claim in claims:
                taken.append(claim.id)
                claim.ack()

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)
    assert queue.counts()[JobStatus.COMPLETED] == 300


def test_blocking_calls_work_while_an_event_loop_runs(queue: Queue) -> None:
    """As in a notebook."""

    async def main() -> None:
        queue.add("x")
        claim = take(queue)
        claim.ack("y")
        assert queue.claim("w") is None

    asyncio.run(main())
    assert queue.counts()[JobStatus.COMPLETED] == 1


def test_workers_of_one_process_that_ask_at_the_same_time(store: Store, queue: Queue) -> None:
    """Each gets jobs of its own, at most as many as it asked for, under its name, and is told of its own outcomes."""
    ids = queue.add_many(range(60))
    assert queue.claim("first") is not None
    inner = queue._async

    async def ask(sizes: list[int], outcomes: list[list[Outcome]]) -> list[tuple[set[str], list[AsyncClaim]]]:
        calls = [
            inner.exchange(given, f"w{n}", limit=size, lease=20 + n // 3)
            for n, (size, given) in enumerate(zip(sizes, outcomes, strict=True))
        ]
        return [await call for call in calls] if inner._engine.inline else await asyncio.gather(*calls)

    sizes = [7, 1, 9, 3, 7, 7, 5]
    found = store._run(ask(sizes, [[]] * 7))
    for number, (size, (done, claims)) in enumerate(zip(sizes, found, strict=True)):
        assert not done
        assert len(claims) == size
        held = [queue.get(c.id) for c in claims]
        assert {job.lease_owner for job in held if job} == {c.job.lease_owner for c in claims} == {f"w{number}"}
        assert [c.input for c in claims] == sorted(c.input for c in claims)
    assert len({c.id for _, claims in found for c in claims}) == sum(sizes)
    lost = found[2][1]
    for claim in lost:
        queue.delete(claim.id)
    # One brings what another holds, too: whoever comes first completes it.
    outcomes = [[Outcome(c, n) for c in claims] for n, (_, claims) in enumerate(found)]
    outcomes[1] = [*outcomes[1], outcomes[0][0]]
    ended = store._run(ask(sizes, outcomes))
    for number, (done, _) in enumerate(ended):
        assert done <= {o.claim.id for o in outcomes[number]}
        if number > 2:
            assert done == {o.claim.id for o in outcomes[number]}
    assert ended[0][0] | ended[1][0] == {o.claim.id for o in outcomes[0] + outcomes[1]}
    assert ended[2][0] == set()
    assert queue.counts()[JobStatus.COMPLETED] == sum(sizes) - len(lost)
    assert sum(len(claims) for _, claims in ended) == len(ids) - 1 - sum(sizes)
    with pytest.raises(InvalidInput):
        store._run(ask([0], [[]]))


@pytest.mark.parametrize("settles", [False, True])
def test_a_claim_that_is_cancelled_leaves_no_job_behind(engine: str, store: Store, queue: Queue, settles: bool) -> None:
    if engine in ("memory", "sqlite"):
        pytest.skip("its claims are not cut short: no event loop runs meanwhile")
    queue.add_many(range(40))
    assert queue.claim("first") is not None  # what time has done is looked at now and then
    inner = queue._async

    async def cancel() -> None:
        for ticks in range(12):
            inner._settled = 0.0 if settles else inner._settled
            tasks = [asyncio.ensure_future(inner.claim_many(f"w{n}", limit=3)) for n in range(3)]
            await asyncio.sleep(ticks / 4000)
            tasks[1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for number, result in enumerate(results):
                if isinstance(result, list):
                    assert {c.job.lease_owner for c in result} == {f"w{number}"}
                    for claim in result:
                        await claim.release()
                else:
                    assert isinstance(result, asyncio.CancelledError)
        for _ in range(200):
            if (await inner.counts())[JobStatus.PROCESSING] == 1:
                break
            await asyncio.sleep(0.01)
        assert (await inner.counts())[JobStatus.PROCESSING] == 1

    store._run(cancel())
    assert queue.counts()[JobStatus.PENDING] == 39


def test_scopes_keep_tenants_apart(store: Store, clock: Clock) -> None:
    a = store.queue("t", scope={"user": "a", "project": 1})
    b = store.queue("t", scope={"project": 1, "user": "b"})
    same = store.queue("t", scope={"project": 1, "user": "a"})
    whole = store.queue("t")
    ida = a.add("for a", run_id="r")
    idb = b.add("for b", run_id="r")
    assert a.get(idb) is None
    assert a.get_many([ida, idb]).keys() == {ida}
    assert [j.id for j in a.by_run("r")] == [ida]
    assert not a.abort(idb)
    assert not a.delete(idb)
    assert not a.save_progress(idb, 5)
    assert whole.claim("w") is None
    assert whole.count() == 0
    assert whole.count(scope={}) == 2
    assert {j.input for j in whole.peek(scope={})} == {"for a", "for b"}
    assert [j.input for j in whole.peek(scope={"user": "b"})] == ["for b"]
    assert whole.counts(scope={"project": 1})[JobStatus.PENDING] == 2
    assert dict(a.peek()[0].scope) == {"user": "a", "project": 1}
    assert a.add("u", unique=True) != b.add("u", unique=True)
    claim = take(same)
    assert claim.id == ida
    claim.ack(1)
    assert a.output_for("for a") == 1
    assert b.output_for("for a") is None
    assert a.clear() == 2
    assert b.count() == 2
    assert store.queue("other").count(scope={}) == 0
    assert store.scoped("tenant").queue("t").count() == 0


def test_peek_count_delete_clear_purge(queue: Queue, clock: Clock) -> None:
    ids = queue.add_many(["a", "b", "c", "d", "e"])
    claims = queue.claim_many("w", limit=3)
    claims[0].ack()
    claims[1].fail("x")
    assert [j.input for j in queue.peek()] == ["d", "e"]
    assert [j.input for j in queue.peek(JobStatus.PROCESSING)] == ["c"]
    assert queue.peek(limit=0) == []
    assert {s: n for s, n in queue.counts().items() if n} == {
        JobStatus.PENDING: 2, JobStatus.PROCESSING: 1, JobStatus.COMPLETED: 1, JobStatus.FAILED: 1,
    }  # fmt: skip
    assert queue.count("FAILED") == 1
    clock.now += 100
    assert queue.purge(JobStatus.COMPLETED, older_than=200) == 0
    assert queue.purge(JobStatus.COMPLETED, older_than=100) == 1
    with pytest.raises(InvalidInput):
        queue.purge(JobStatus.PENDING, 0)
    assert queue.delete(ids[2])
    assert not queue.delete(ids[2])
    with pytest.raises(ClaimLost):
        claims[2].ack()
    assert queue.clear() == 3
    assert sum(queue.counts().values()) == 0


def test_pause_resume_and_drain(queue: Queue, store: Store, clock: Clock) -> None:
    queue.add("a")
    claim = take(queue)
    queue.add("b")
    queue.pause()
    other = store.queue("work")
    assert queue.claim("w") is None
    assert other.claim("w") is None
    claim.ack()
    assert queue.counts()[JobStatus.PENDING] == 1
    with pytest.raises(howdah.Timeout):
        queue.drain(timeout=0.01)
    queue.resume()
    clock.now += 1  # another handle notices within a quarter of a second
    take(store.queue("work")).ack()
    queue.drain(timeout=5)


def test_schedules(queue: Queue, store: Store, clock: Clock) -> None:
    made = queue.schedule("*/5 * * * *", {"job": "tidy"}, id="tidy", priority=2, max_attempts=3)
    assert made.next_at.minute % 5 == 0
    assert queue.claim("w") is None
    clock.now = made.next_at.timestamp()
    claim = take(queue)
    assert (claim.input, claim.job.priority, claim.job.max_attempts) == ({"job": "tidy"}, 2, 3)
    claim.ack()
    assert store.queue("work").claim("w") is None
    clock.now += 3600  # eleven moments missed: made up for once
    assert len(queue.claim_many("w", limit=10, lease=3)) == 1
    assert [s.id for s in queue.schedules()] == ["tidy"]
    berlin = queue.schedule("30 8 * * MON", None, timezone="Europe/Berlin")
    assert (berlin.next_at.hour, berlin.next_at.weekday()) in ((7, 0), (6, 0))
    assert queue.unschedule("tidy")
    assert not queue.unschedule("tidy")
    for cron, zone in (("x", "UTC"), ("* * * * *", "Mars/Olympus"), ("61 * * * *", "UTC")):
        with pytest.raises(InvalidInput):
            queue.schedule(cron, 1, timezone=zone)
    with pytest.raises(InvalidInput):
        queue.schedule("* * * * *", 1, colour="red")
    with pytest.raises(InvalidValue):
        queue.schedule("* * * * *", float("nan"))


def test_changes_of_jobs(queue: Queue) -> None:
    feed = queue.changes()
    feed.start()
    id = queue.add("a")
    queue.pause()
    queue.resume()
    take(queue).ack("out")
    seen = [(c.type, c.old and c.old.status, c.new and c.new.status) for c in feed.poll()]
    assert seen == [
        ("INSERT", None, JobStatus.PENDING),
        ("UPDATE", JobStatus.PENDING, JobStatus.PROCESSING),
        ("UPDATE", JobStatus.PROCESSING, JobStatus.COMPLETED),
    ]
    told: list[str] = []
    done = threading.Event()

    def listener(change: Any) -> None:
        told.append(change.key)
        done.set()

    end = queue.subscribe(listener)
    queue.delete(id)
    assert done.wait(10)
    end()
    assert told == [id]


def test_streams_replay_and_follow(queue: Queue, clock: Clock) -> None:
    id = queue.add("a", max_attempts=3)
    claim = take(queue)
    assert [claim.emit(n) for n in ({"t": 1}, None, "x")] == [1, 2, 3]
    claim.retry(delay=0)
    again = take(queue)
    assert again.emit("second attempt") == 4
    events: list[Any] = []
    reader = threading.Thread(target=lambda: events.extend(queue.stream(id, since=1)))
    reader.start()
    again.emit("live")
    again.ack()
    reader.join(20)
    assert events == [None, "x", "second attempt", "live"]
    clock.now += 31
    with pytest.raises(howdah.LimitExceeded, match="30 seconds"):
        list(queue.stream(id))
    with pytest.raises(howdah.JobNotFound):
        list(queue.stream("unknown"))


def test_a_reader_that_is_too_slow_is_told(queue: Queue, clock: Clock) -> None:
    id = queue.add("a")
    claim = take(queue)
    for number in range(600):
        claim.emit(number)
    events = iter(queue.stream(id))
    assert next(events) == 0
    claim.ack()
    clock.now += 31
    queue.claim("w")
    with pytest.raises(howdah.LimitExceeded, match="30 seconds"):
        list(events)


def test_a_replay_that_would_need_dropped_events_is_an_error(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.stores.stream.MOST", 100)
    id = queue.add("a")
    claim = take(queue)
    for _ in range(5):
        claim.emit("x" * 40)
    claim.ack()
    with pytest.raises(howdah.LimitExceeded):
        list(queue.stream(id))
    assert list(queue.stream(id, since=3)) == ["x" * 40] * 2


def test_ten_megabytes_of_input(queue: Queue) -> None:
    big = "ab" * 5_000_000
    id = queue.add({"big": big})
    claim = take(queue)
    claim.ack(claim.input)
    assert look(queue, id).output == {"big": big}


def test_a_clock_that_goes_back_stops_nothing(queue: Queue, clock: Clock) -> None:
    queue.add("a")
    take(queue, lease=5)
    clock.now -= 1000
    queue.add("b")
    assert take(queue).input == "b"
    clock.now += 1006
    assert sorted(inputs(queue.claim_many("w", limit=5))) == ["a", "b"]


@pytest.mark.parametrize("engine", ["sqlite", "pg", "server"], indirect=True)
def test_jobs_and_their_state_survive_a_reopen(engine: str, url_for: Callable[[str], str], clock: Clock) -> None:
    url = url_for(engine)
    with open_store(engine, url, clock=clock) as store:
        queue = store.queue("q")
        queue.add_many(["a", "b"])
        queue.pause()
        queue.schedule("* * * * *", "s", id="s")
    with open_store(engine, url, clock=clock) as store:
        queue = store.queue("q")
        assert queue.claim("w") is None
        queue.resume()
        assert inputs(queue.claim_many("w", limit=5)) == ["a", "b"]
        assert [s.id for s in queue.schedules()] == ["s"]


def test_queues_of_any_name(store: Store) -> None:
    for name in ("a b", "ä/ö", "select", "x" * 500):
        queue = store.queue(name)
        queue.add(name)
        assert take(queue).input == name
    with pytest.raises(InvalidInput):
        store.queue("")


def test_what_is_redriven_really_runs_again(queue: Queue, clock: Clock) -> None:
    aborted, late = queue.add("aborted"), queue.add("late", timeout=5)
    claims = {c.id: c for c in queue.claim_many("w", limit=2)}
    queue.abort(aborted)
    claims[aborted].fail("stopped", code="Aborted")
    claims[late].release()
    clock.now += 6
    assert queue.claim("w") is None
    assert queue.redrive([aborted, late]) == 2
    again = queue.claim_many("w", limit=2)
    assert {c.id for c in again} == {aborted, late}
    assert not any(c.extend() for c in again)
    for claim in again:
        claim.ack()


def test_events_after_the_end_are_refused_and_none_stays(queue: Queue, clock: Clock) -> None:
    ended, released, gone = queue.add_many(["e", "r", "g"])
    claims = {c.id: c for c in queue.claim_many("w", limit=3)}
    for claim in claims.values():
        claim.emit("x")
    claims[ended].fail("over")
    with pytest.raises(ClaimLost):
        claims[ended].emit("late")
    claims[released].release()
    take(queue).ack()
    queue.delete(gone)
    table = queue._async._streams.table
    assert queue._run(table.count()) == 3
    for _ in range(2):
        clock.now += 31
        queue.claim("w")
    assert queue._run(table.count()) == 0


def test_durations_and_texts_out_of_range_are_refused(queue: Queue, store: Store) -> None:
    for seconds in (1e12, 1e300, float("nan"), 10**400, timedelta.max):
        for call in (
            lambda seconds=seconds: queue.add(1, delay=seconds),
            lambda seconds=seconds: queue.add(1, timeout=seconds),
            lambda seconds=seconds: queue.claim("w", lease=seconds),
            lambda seconds=seconds: queue.purge("FAILED", seconds),
            lambda seconds=seconds: store.limiter("l", limit=1, per=seconds),
            lambda seconds=seconds: queue.changes().poll(timeout=seconds),
        ):
            with pytest.raises(InvalidInput):
                call()
    bad: Any = "\ud800"
    five: Any = 5
    wrong: Any
    for wrong in (bad, five, None):
        for call in (
            lambda wrong=wrong: queue.claim(wrong),
            lambda wrong=wrong: queue.abort(wrong),
            lambda wrong=wrong: queue.abort_run(wrong),
            lambda wrong=wrong: queue.delete(wrong),
            lambda wrong=wrong: queue.redrive([wrong]),
            lambda wrong=wrong: queue.save_progress(wrong, 5),
        ):
            with pytest.raises(InvalidInput):
                call()
    queue.add(1)
    claim = take(queue)
    with pytest.raises(InvalidInput):
        claim.progress(1, bad)
    with pytest.raises(InvalidInput):
        claim.fail(five)
    with pytest.raises(InvalidInput):
        claim.fail("x", code=five)
    with pytest.raises(InvalidInput):
        queue.count(scope=five)
    with pytest.raises(InvalidInput):
        queue.changes(scope=bad)
    claim.ack()


def test_jobs_after_other_jobs(queue: Queue, clock: Clock) -> None:
    first, second = queue.add("first"), queue.add("second", delay=10)
    last = queue.add("last", after=[first, second, first])
    then = queue.add_many(["then"], after=[last])
    claim = queue.claim("w")
    assert claim is not None
    assert (claim.id, queue.claim("w")) == (first, None)
    claim.ack()
    assert queue.count() == 3
    clock.now += 11
    claim = queue.claim("w")
    assert claim is not None
    assert claim.id == second
    assert queue.claim("w") is None
    claim.ack()
    claim = queue.claim("w")
    assert claim is not None
    assert claim.job.after == (first, second)
    assert claim.id == last
    claim.retry(delay=0)
    claim = queue.claim("w")
    assert claim is not None
    assert claim.id == last
    claim.ack()
    found = queue.claim("w")
    assert found is not None
    assert [found.id] == then


def test_jobs_after_one_that_fails_fail_too(queue: Queue, clock: Clock) -> None:
    needed = queue.add("needed")
    one, two = queue.add("one", after=[needed]), queue.add("two", after=[needed], delay=5)
    three = queue.add("three", after=[one])
    claim = queue.claim("w")
    assert claim is not None
    claim.fail("no")
    assert queue.claim("w") is None
    clock.now += 1
    assert queue.claim("w") is None
    assert [queue.get(id).error_code for id in (one, two, three)] == ["NeededJobFailed"] * 3  # type: ignore[union-attr]  # they are there
    assert {j.id for j in queue.dead_letters()} == {needed, one, two, three}
    assert queue.redrive() == 4
    again = queue.claim_many("w", limit=9)
    assert [c.id for c in again] == [needed]  # the others wait for it again
    again[0].ack()
    clock.now += 1
    assert [c.id for c in queue.claim_many("w", limit=9)] == [one, two]


def test_jobs_after_others_can_be_aborted_and_expire(queue: Queue, clock: Clock) -> None:
    needed = queue.add("needed")
    aborted, late = queue.add("a", after=[needed]), queue.add("b", after=[needed], timeout=5)
    assert queue.abort(aborted)
    clock.now += 6
    claim = queue.claim("w")
    assert claim is not None
    claim.ack()
    assert queue.claim("w") is None
    assert [queue.get(id).error_code for id in (aborted, late)] == ["Aborted", "DeadlineExceeded"]  # type: ignore[union-attr]  # they are there


def test_a_completed_job_stays_while_others_need_it(queue: Queue, clock: Clock) -> None:
    quick, slow = queue.add("quick"), queue.add("slow")
    last = queue.add("last", after=[quick, slow])
    claims = queue.claim_many("w", limit=9)
    claims[0].ack()
    assert queue.purge(JobStatus.COMPLETED) == 0
    claims[1].ack()
    clock.now += 1
    claim = queue.claim("w")
    assert claim is not None
    assert claim.id == last
    assert queue.purge(JobStatus.COMPLETED) == 2


def test_what_a_job_waits_for_must_be_there(queue: Queue, store: Store) -> None:
    stranger = store.queue("work", scope={"tenant": 2}).add("x")
    queue.pause()
    for id in (stranger, "paused"):
        with pytest.raises(JobNotFound):
            queue.add("x", after=[id])
    queue.resume()
    for bad in ("x", 5, [5], ["\0"], {"a": 1}, ["x"] * 1001):
        with pytest.raises(InvalidInput):
            queue.add("x", after=bad)  # type: ignore[arg-type]  # that is the point
    for unique in (False, True):
        with pytest.raises(JobNotFound, match="nobody"):
            queue.add("x", after=["nobody"], unique=unique)
        with pytest.raises(JobNotFound):
            queue.add_many(["x", "y"], after=["nobody"], unique=unique)
    assert queue.count() == 0


def test_many_blocked_jobs_do_not_hide_those_behind_them(queue: Queue, clock: Clock) -> None:
    slow, quick = queue.add("slow"), queue.add("quick")
    queue.add_many(range(2100), after=[slow])
    behind = queue.add("behind", after=[quick])
    claims = queue.claim_many("w", limit=2)
    claims[1].ack()
    for _ in range(8):
        clock.now += 1
        found = queue.claim("w2", lease=1000)
        if found is not None:
            break
    assert found is not None
    assert found.id == behind
