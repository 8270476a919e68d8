"""Job servers and clients: handlers run, results come back, nothing runs twice at the same time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

import howdah
from howdah import AsyncQueue, AsyncStore, BackendError, InvalidInput, JobStatus, Retry, jobs
from howdah.jobs import (
    AllOf,
    AsyncJobClient,
    AsyncJobServer,
    Concurrency,
    Delay,
    EvenlySpaced,
    JobClient,
    JobContext,
    JobServer,
    NoLimit,
    Window,
    register_error_code,
)
from tests.conftest import open_store

Body = Callable[[AsyncStore, AsyncQueue], Awaitable[None]]
Run = Callable[[Body], None]
QUICK = Retry(delay=0.001)
CONTEXT: ContextVar[Any] = ContextVar("context", default=None)


@pytest.fixture(params=["memory", "sqlite", "pg"])
def run(request: pytest.FixtureRequest, url_for: Callable[[str], str]) -> Run:
    """Runs a test's coroutine with an async store and its queue."""

    def runner(body: Body) -> None:
        async def main() -> None:
            async with await howdah.connect_async(url_for(request.param)) as store:
                await asyncio.wait_for(body(store, store.queue("jobs")), 50)

        asyncio.run(main())

    return runner


async def echo(value: Any, ctx: JobContext) -> Any:
    return value


async def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    assert found


def test_results_come_back_in_order(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        values = [None, 0, False, "", {"a": [1]}, *range(60)]
        early = await client.submit("before the server")
        async with AsyncJobServer(queue, echo, workers=4, prefetch=3) as server:
            handles = await client.submit_many(values)
            assert await asyncio.gather(*(h.result(timeout=20) for h in handles)) == values
            assert await early.result(timeout=5) == "before the server"
            assert await (await client.attach(early.id)).result() == "before the server"
            await until(lambda: server.stats().completed == 66)
            assert server.stats().started == 66
            assert server.stats().mean_time > 0
        assert (await queue.counts())[JobStatus.COMPLETED] == 66
        with pytest.raises(howdah.JobNotFound):
            await client.attach("unknown")

    run(body)


def test_plain_handlers_run_in_threads(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        def handler(value: int, ctx: JobContext) -> int:
            time.sleep(0.1)
            ctx.progress(50, "half")
            ctx.emit({"n": value})
            return value * 2

        began = time.monotonic()
        async with AsyncJobServer(queue, handler, workers=8):
            handles = await AsyncJobClient(queue).submit_many(range(8))
            assert await asyncio.gather(*(h.result(timeout=20) for h in handles)) == [n * 2 for n in range(8)]
            assert [e async for e in handles[3].stream()] == [{"n": 3}]
        assert time.monotonic() - began < 0.1 * 8 + 3

    run(body)


def test_errors_come_back_as_they_were(run: Run) -> None:
    class Mine(Exception):
        code = "MINE-7"

    class Rebuilt(Exception):
        pass

    async def handler(value: str, ctx: JobContext) -> None:
        if value == "mine":
            raise Mine("of mine")
        if value == "key":
            raise KeyError("gone")
        if value == "chain":
            try:
                raise ValueError("inner")
            except ValueError as error:
                raise RuntimeError("outer") from error
        raise howdah.PermanentJobError("never", code="ODD")

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        register_error_code("MINE", lambda message, code: AssertionError("a shorter prefix"))
        register_error_code("MINE-", lambda message, code: Rebuilt(f"{code}: {message}"))
        client = AsyncJobClient(queue)
        async with AsyncJobServer(queue, handler, workers=4):
            handles = [await client.submit(v) for v in ("mine", "key", "chain", "other")]
            results = await asyncio.gather(*(h.result(timeout=10) for h in handles), return_exceptions=True)
        mine, key, chain, other = results
        assert isinstance(mine, Rebuilt)
        assert str(mine) == "MINE-7: of mine"
        assert isinstance(key, KeyError)
        assert isinstance(chain, RuntimeError)
        assert "ValueError: inner" in chain.__notes__[0]
        assert isinstance(other, howdah.JobError)
        assert other.code == "ODD"

    run(body)


def test_a_job_stays_when_its_dead_letter_cannot_be_sent(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        raise howdah.PermanentJobError("no use")

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        async with await howdah.connect_async("memory:") as other:
            closed = other.queue("letters")
        for letters, left in ((closed, True), (store.queue("letters"), False)):
            job = await queue.add("x")
            server = AsyncJobServer(queue, handler, keep_failed=0, dead_letter_to=letters)
            async with server:
                while server.stats().failed == 0:
                    await asyncio.sleep(0.005)
            assert (await queue.get(job) is not None) == left
            if left:
                assert await queue.purge("FAILED") == 0

    run(body)


def test_what_fails_by_time_is_sent_to_the_dead_letters_too(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> None: ...

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        letters = store.queue("letters")
        lost = await queue.add("lost", max_attempts=1, run_id="r")
        assert await queue.claim("somebody", lease=0) is not None
        late = await queue.add("late", timeout=0.001)
        await asyncio.sleep(0.01)
        async with AsyncJobServer(queue, handler, dead_letter_to=letters):
            await until_count(letters, 2)
        claims = await letters.claim_many("w", limit=9)
        found = {c.input["id"]: c.input for c in claims}
        assert (found[lost]["error_code"], found[lost]["input"], found[lost]["run_id"]) == (
            "AttemptsExhausted",
            "lost",
            "r",
        )
        assert (found[late]["error_code"], found[late]["attempts"]) == ("DeadlineExceeded", 0)
        assert len(await queue.dead_letters()) == 2

    run(body)


def test_letters_wait_for_their_own_server(run: Run) -> None:
    """Whoever notices that a job has failed, the letter goes to the queue of its scope's server, once."""

    async def handler(value: Any, ctx: JobContext) -> None: ...

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        mine, other = (store.queue("shared", scope={"tenant": n}) for n in (1, 2))
        letters = store.queue("letters")
        deep: dict[str, Any] = {}
        inside: Any = deep
        for _ in range(127):
            inside["a"] = inside = {}
        for one in (mine, other):
            await one.add(deep, max_attempts=1)
            assert await one.claim("gone", lease=0) is not None
        assert await store.queue("shared").claim("bystander") is None  # it settles all of them
        assert len(await mine.dead_letters()) == len(await other.dead_letters()) == 1
        async with AsyncJobServer(mine, handler, dead_letter_to=letters), AsyncJobServer(mine, handler):
            await until_count(letters, 1)
            await asyncio.sleep(0.5)
        claims = await letters.claim_many("w", limit=9)
        assert [(c.input["error_code"], c.input["input"]) for c in claims] == [("AttemptsExhausted", None)]

    run(body)


def test_a_failure_and_its_dead_letter_are_one_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to the worker in between: there is no failed job whose letter was lost, and no letter twice."""

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        letters = store.queue("letters")
        AsyncJobServer(queue, echo, dead_letter_to=letters)
        id = await queue.add("x")
        claim = await queue.claim("w")
        assert claim is not None

        def broken(*_: object, **__: object) -> Any:
            raise howdah.BackendError("cut short")

        monkeypatch.setattr(letters, "_rows", broken)
        with pytest.raises(howdah.BackendError):
            await claim.fail("no use")
        job = await queue.get(id)
        assert job is not None
        assert job.status == JobStatus.PROCESSING
        monkeypatch.undo()
        await claim.fail("no use")
        await claim_nothing(queue)
        assert await letters.count() == 1
        aborted = await queue.add("y")
        claim = await queue.claim("w")
        assert claim is not None
        await queue.abort(aborted)
        await claim.fail("stopped", code="Aborted")
        await claim_nothing(queue)
        assert await letters.count() == 1

    run(body)


async def claim_nothing(queue: AsyncQueue) -> None:
    """What time has done is dealt with."""
    queue._settled = 0.0
    assert await queue.claim("w") is None


async def until_count(queue: AsyncQueue, count: int) -> None:
    for _ in range(500):
        if await queue.count() == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"there are {await queue.count()} jobs, not {count}")


def test_handlers_are_apart(run: Run) -> None:
    """What one sets in its context, or does to its own task, is nothing to the next."""
    seen: list[Any] = []

    async def handler(value: Any, ctx: JobContext) -> None:
        seen.append(CONTEXT.get())
        CONTEXT.set(value)
        if value == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        ids = await queue.add_many(range(6))
        async with AsyncJobServer(queue, handler, limiter=Concurrency(1), poll=0.01) as server:
            await until(lambda: server.stats().completed == 5)
        assert seen == [None] * 6
        job = await queue.get(ids[0])
        assert job is not None
        assert (job.status, job.error_code) == (JobStatus.FAILED, "permanent_job_error")

    run(body)


def test_plain_handlers_are_apart(run: Run) -> None:
    seen: list[Any] = []

    def handler(value: Any, ctx: JobContext) -> None:
        seen.append(CONTEXT.get())
        CONTEXT.set(value)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        await queue.add_many(range(1, 5))
        async with AsyncJobServer(queue, handler) as server:
            await until(lambda: server.stats().completed == 4)
        assert seen == [None] * 4

    run(body)


def test_retries_stop_at_the_cap_with_the_last_real_error(run: Run) -> None:
    tries: list[int] = []

    async def handler(value: Any, ctx: JobContext) -> Any:
        tries.append(ctx.job.attempts)
        if value == "third time" and ctx.job.attempts == 3:
            return "done"
        if value == "wrapped":
            raise RuntimeError("outer") from howdah.RetryableJobError("inner")
        if value == "permanent":
            raise howdah.PermanentJobError("no use")
        raise ConnectionError(f"attempt {ctx.job.attempts}")

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client, letters = AsyncJobClient(queue), store.queue("letters")
        async with AsyncJobServer(queue, handler, retry=QUICK, dead_letter_to=letters) as server:
            assert await (await client.submit("third time")).result(timeout=10) == "done"
            assert tries == [1, 2, 3]
            failing = await client.submit("failing", max_attempts=2)
            with pytest.raises(ConnectionError, match="attempt 2"):
                await failing.result(timeout=10)
            tries.clear()
            with pytest.raises(RuntimeError):
                await (await client.submit("wrapped", max_attempts=3)).result(timeout=10)
            assert tries == [1, 2, 3]
            tries.clear()
            with pytest.raises(howdah.PermanentJobError):
                await (await client.submit("permanent")).result(timeout=10)
            assert tries == [1]
            await until(lambda: server.stats().failed == 3)
            assert (server.stats().retried, server.stats().completed) == (5, 1)
        assert [j.input for j in await queue.dead_letters()] == ["permanent", "wrapped", "failing"]
        claims = await letters.claim_many("w", limit=9)
        assert [c.input["input"] for c in claims] == ["failing", "wrapped", "permanent"]
        assert claims[0].input["error"] == "attempt 2"

    run(body)


def test_retry_at_and_disable(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        if value == "disable":
            raise howdah.JobDisabled("not now")
        if ctx.job.attempts == 1:
            from datetime import UTC, datetime, timedelta

            raise howdah.RetryableJobError("later", retry_at=datetime.now(UTC) + timedelta(seconds=0.2))
        return time.monotonic()

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        async with AsyncJobServer(queue, handler, workers=2) as server:
            began = time.monotonic()
            assert await (await client.submit("later")).result(timeout=10) - began >= 0.15
            disabled = await client.submit("disable")
            with pytest.raises(howdah.JobDisabled):
                await disabled.result(timeout=10)
            await until(lambda: server.stats().disabled == 1)
        job = await queue.get(disabled.id)
        assert job is not None
        assert (job.status, job.error) == (JobStatus.DISABLED, None)

    run(body)


def test_a_job_longer_than_its_lease_runs_once(run: Run) -> None:
    runs: list[str] = []

    async def handler(value: Any, ctx: JobContext) -> Any:
        runs.append(ctx.job.id)
        await asyncio.sleep(2.5)
        return "slow"

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        async with AsyncJobServer(queue, handler, lease=1.2), AsyncJobServer(queue, handler, lease=1.2):
            assert await (await client.submit("x")).result(timeout=20) == "slow"
        assert len(runs) == 1

    run(body)


def test_a_lost_lease_stops_the_handler_and_its_result_is_refused(run: Run) -> None:
    stopped: list[str] = []

    async def handler(value: Any, ctx: JobContext) -> Any:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            stopped.append("cancelled" if ctx.aborted else "?")
            raise
        return "late"

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        id = await queue.add("x")
        async with AsyncJobServer(queue, handler, lease=0.4) as server:
            await until(lambda: server.stats().started == 1)
            table = queue._table
            await table.update_where({"id": id}, {"token": 99, "lease_owner": "thief"})
            await until(lambda: stopped)
            await asyncio.sleep(0.05)
            job = await queue.get(id)
            assert job is not None
            assert (job.status, job.lease_owner, job.output) == (JobStatus.PROCESSING, "thief", None)
        assert stopped == ["cancelled"]

    run(body)


def test_abort_reaches_running_handlers_however_many(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        await asyncio.sleep(30)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        events: list[Any] = []
        async with AsyncJobServer(queue, handler, workers=120, prefetch=1) as server:
            server.on("job_aborting", events.append)
            handles = await client.submit_many(range(120))
            await until(lambda: server.stats().started == 120)
            waiting = await client.submit("waits")
            for handle in (waiting, *handles[:3], handles[110], handles[119]):  # it would start in the place of another
                assert await handle.abort()
            for handle in (*handles[:3], handles[110], handles[119], waiting):
                with pytest.raises(howdah.JobAborted):
                    await handle.result(timeout=10)
            assert await queue.abort_run(handles[5].id) == 1
            with pytest.raises(howdah.JobAborted):
                await handles[5].result(timeout=10)
            await until(lambda: server.stats().aborted == 6)
            assert len(events) == 6
            await queue.clear()
            with pytest.raises(howdah.JobNotFound):
                await handles[60].result(timeout=10)
            server._stop_timeout = 0

    run(body)


def test_plain_handlers_see_the_abort(run: Run) -> None:
    seen: list[bool] = []

    def handler(value: Any, ctx: JobContext) -> Any:
        for _ in range(2000):
            if ctx.aborted:
                seen.append(True)
                return "stopped"
            time.sleep(0.005)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        handle = await AsyncJobClient(queue).submit("x")
        async with AsyncJobServer(queue, handler) as server:
            await until(lambda: server.stats().started == 1)
            assert await handle.abort()
            with pytest.raises(howdah.JobAborted):
                await handle.result(timeout=10)
            await until(lambda: seen)

    run(body)


def test_deadlines_hold_while_a_job_runs_and_attempts_can_be_limited(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        if value == "slow first" and ctx.job.attempts > 1:
            return "quick then"
        await asyncio.sleep(30)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        async with AsyncJobServer(queue, handler, workers=2, attempt_timeout=1.0, retry=QUICK):
            late = await client.submit("late", timeout=0.5)
            slow = await client.submit("slow first")
            with pytest.raises(howdah.JobError) as caught:
                await late.result(timeout=10)
            assert caught.value.code == "DeadlineExceeded"
            assert await slow.result(timeout=10) == "quick then"

    run(body)


def test_stop_lets_jobs_finish_then_gives_them_back(run: Run) -> None:
    async def handler(value: float, ctx: JobContext) -> Any:
        await asyncio.sleep(value)
        return value

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        quick, endless = await queue.add_many([0.3, 60])
        waiting = await queue.add_many([0.01] * 6)
        server = AsyncJobServer(queue, handler, workers=2, prefetch=3, stop_timeout=1.5)
        await server.start()
        await server.start()
        await until(lambda: server.stats().started == 2)
        await server.stop()
        await server.stop()
        assert not server.running
        started = server.stats().started
        jobs = await queue.get_many([quick, endless, *waiting])
        assert jobs[quick].status is JobStatus.COMPLETED
        assert (jobs[endless].status, jobs[endless].attempts) == (JobStatus.PENDING, 0)
        assert {jobs[w].status for w in waiting} <= {JobStatus.PENDING, JobStatus.COMPLETED}
        await asyncio.sleep(0.1)
        assert server.stats().started == started
        await server.start()
        await server.scale(4)
        await until(lambda: server.stats().completed >= 7)
        await server.stop()

    run(body)


def test_run_once(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        server = AsyncJobServer(queue, echo)
        assert not await server.run_once()
        id = await queue.add("x")
        assert await server.run_once()
        job = await queue.get(id)
        assert job is not None
        assert job.output == "x"

    run(body)


def test_outputs_that_are_no_json_fail_the_job(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        return {"not": object()}

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        async with AsyncJobServer(queue, handler):
            with pytest.raises(howdah.JobError) as caught:
                await (await AsyncJobClient(queue).submit("x")).result(timeout=10)
            assert caught.value.code == "invalid_value"

    run(body)


def test_progress_is_followed_from_outside(run: Run) -> None:
    go = asyncio.Event()

    async def handler(value: Any, ctx: JobContext) -> Any:
        await ctx.progress(10, "begun")
        await go.wait()
        for n in range(20, 100):
            await ctx.progress(n, "going", details={"n": n})

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        handle = await client.submit("x")
        called: list[Any] = []
        async with AsyncJobServer(queue, handler):
            updates = handle.progress()
            seen = []
            async for update in updates:
                seen.append((update.progress, update.message))
                if update.message == "begun":
                    end = await handle.on_progress(called.append)
                    go.set()
            assert seen[-1][0] == 100
            assert (10, "begun") in seen
            assert len(seen) <= 8  # saved at most once a second, the last always
            await until(lambda: called and called[-1].progress == 100)
            end()
        job = await queue.get(handle.id)
        assert job is not None
        assert job.progress_details == {"n": 99}

    run(body)


def test_retention(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        if value == "bad":
            raise howdah.PermanentJobError("bad")
        return value

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        await queue.add_many(["good", "bad"])
        async with AsyncJobServer(queue, handler, keep_completed=0, keep_failed=0) as server:
            await until(lambda: server.stats().completed == 1 and server.stats().failed == 1)
            deadline = time.monotonic() + 10
            while sum((await queue.counts()).values()) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        assert sum((await queue.counts()).values()) == 0
        old = await queue.add("good")
        async with AsyncJobServer(queue, handler) as server:
            await until(lambda: server.stats().completed == 1)
        assert await queue.get(old) is not None
        async with AsyncJobServer(queue, handler, keep_completed=0.001):
            deadline = time.monotonic() + 10
            while await queue.get(old) is not None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        assert await queue.get(old) is None

    run(body)


def test_events_of_a_server(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        names: list[str] = []
        server = AsyncJobServer(queue, echo)

        def failing(*arguments: Any) -> None:
            raise RuntimeError("listeners harm nobody")

        for name in server.EVENTS:
            server.on(name, failing)
            server.on(name, lambda *arguments, name=name: names.append(name))
        async with server:
            await (await AsyncJobClient(queue).submit(1)).result(timeout=10)
        assert names == ["server_start", "job_start", "job_complete", "server_stop"]

    run(body)


def test_limits(run: Run) -> None:
    most = 0
    now = 0

    async def handler(value: Any, ctx: JobContext) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return time.monotonic()

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        nonlocal most
        client = AsyncJobClient(queue)
        limit = Concurrency(2)
        async with AsyncJobServer(queue, handler, workers=6, limiter=limit, poll=0.01):
            handles = await client.submit_many(range(8))
            await asyncio.gather(*(h.result(timeout=20) for h in handles))
        assert most == 2
        assert limit.running == 0
        spaced = AllOf([EvenlySpaced(limit=10, per=1), NoLimit(), Concurrency(3)])
        async with AsyncJobServer(queue, handler, workers=6, limiter=spaced, poll=0.01):
            handles = await client.submit_many(range(4))
            ends = sorted(await asyncio.gather(*(h.result(timeout=20) for h in handles)))
        assert ends[-1] - ends[0] >= 0.29
        window = Window(store.limiter("w", limit=2, per=0.5), backoff=0.05, most=0.2)
        async with AsyncJobServer(queue, handler, workers=6, limiter=window, poll=0.01):
            handles = await client.submit_many(range(4))
            ends = sorted(await asyncio.gather(*(h.result(timeout=20) for h in handles)))
        assert ends[2] - ends[0] >= 0.4
        jobs = await queue.get_many([h.id for h in handles])
        assert {j.attempts for j in jobs.values()} == {1}  # what had to wait was given back

    run(body)


def test_a_slow_reader_slows_the_writer_down(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.stores.stream.AHEAD", 5)
    emitted = 0

    async def handler(value: Any, ctx: JobContext) -> Any:
        nonlocal emitted
        for n in range(40):
            await ctx.emit(n)
            emitted += 1

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        id = await queue.add("x")
        read = []
        async with AsyncJobServer(queue, handler) as server:
            async for event in queue.stream(id):
                read.append(event)
                await asyncio.sleep(0.005)
                assert emitted <= len(read) + 7
            await until(lambda: server.stats().completed == 1)
        assert read == list(range(40))
        monkeypatch.setattr("howdah.stores.stream.PATIENCE", 0.01)
        again = await queue.add("y")
        stuck: Any = queue.stream(again)
        async with AsyncJobServer(queue, handler) as server:
            assert await anext(stuck) == 0
            await until(lambda: server.stats().completed == 1)  # whoever reads no more does not stop the job
        await stuck.aclose()

    run(body)


def test_concurrency_over_servers(run: Run) -> None:
    most = now = 0

    async def handler(value: Any, ctx: JobContext) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        with pytest.raises(InvalidInput, match="job server"):
            await Concurrency(2, shared=True).try_acquire()
        limits: list[Any] = [
            Concurrency(2, shared=True, lease=0.4),
            AllOf([Concurrency(2, shared=True, lease=0.4), NoLimit()]),
        ]
        assert [limit.scope for limit in limits] == ["cluster", "process"]
        servers = [
            AsyncJobServer(store.queue("q"), handler, workers=4, limiter=limit, poll=0.01, lease=0.4)
            for limit in limits
        ]
        # One that died holds a slot until its lease is over.
        dead = Concurrency(2, shared=True, lease=0.2)
        dead.bind(store.queue("q"))
        assert await dead.try_acquire() is not None
        handles = await AsyncJobClient(store.queue("q")).submit_many(range(30))
        async with servers[0], servers[1]:
            await asyncio.gather(*(h.result(timeout=20) for h in handles))
        assert most == 2
        assert dead._slots is not None
        assert await dead._slots.count() == 0

    run(body)


def test_a_shared_slot_is_kept_while_the_job_runs(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        await asyncio.sleep(1)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        limit = Concurrency(1, shared=True, lease=0.5)
        other = Concurrency(1, shared=True, lease=0.5)
        other.bind(store.queue("q"))
        async with AsyncJobServer(store.queue("q"), handler, limiter=limit, heartbeat=False) as server:
            await store.queue("q").add(1)
            await until(lambda: limit.running == 1)
            for _ in range(8):
                await asyncio.sleep(0.1)
                assert await other.try_acquire() is None
            await until(lambda: server.stats().completed == 1)
        assert await other.try_acquire() is not None

    run(body)


def test_bad_settings(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        wrong: Any
        for wrong in (
            {"workers": 0}, {"workers": 1.5}, {"prefetch": 0}, {"lease": -1}, {"poll": 0}, {"retry": 3}, {"stop_timeout": "x"},
        ):  # fmt: skip
            with pytest.raises(InvalidInput):
                AsyncJobServer(queue, echo, **wrong)
        for wrong in (None, "q"):
            with pytest.raises(InvalidInput):
                AsyncJobServer(wrong, echo)
            with pytest.raises(InvalidInput):
                AsyncJobClient(wrong)
        wrong = 5
        with pytest.raises(InvalidInput):
            AsyncJobServer(queue, wrong)
        with pytest.raises(InvalidInput):
            await AsyncJobServer(queue, echo).scale(0)
        for bad in (lambda: Concurrency(0), lambda: Delay(0), lambda: EvenlySpaced(limit=0, per=1)):
            with pytest.raises(InvalidInput):
                bad()
        limiter = store.limiter("w", limit=2, per=5)
        for wrong in ({"factor": 1}, {"backoff": 5, "most": 1}, {"backoff": 0}):
            with pytest.raises(InvalidInput):
                Window(limiter, **wrong)

    run(body)


def test_blocking_server_and_client(engine: str, url_for: Callable[[str], str]) -> None:
    with open_store(engine, url_for(engine)) as store:
        queue, client = store.queue("jobs"), JobClient(store.queue("jobs"))
        kv = store.kv("seen")

        def handler(value: Any, ctx: JobContext) -> Any:
            if engine != "sqlite-loop":
                kv.put(str(value), True)
            ctx.progress(40, "nearly")
            ctx.emit("event")
            if value == "bad":
                raise ValueError("bad")
            return value

        with JobServer(queue, handler, workers=2) as server:
            handles = client.submit_many(["a", "b"])
            assert [h.result(timeout=20) for h in handles] == ["a", "b"]
            with pytest.raises(ValueError, match="bad"):
                client.submit("bad").result(timeout=20)
            assert list(handles[0].stream()) == ["event"]
            assert [u.progress for u in handles[0].progress()] == [100]
            assert server.running
        assert not server.running
        assert not client.attach(handles[0].id).abort()
        delayed = client.submit("later", delay=1000)
        with pytest.raises(howdah.Timeout):
            delayed.result(timeout=0.05)
        assert delayed.abort()
        with pytest.raises(howdah.JobAborted):
            delayed.result(timeout=10)
        if engine != "sqlite-loop":
            assert sorted(kv.keys().all()) == ["a", "b", "bad"]


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be said")


@pytest.mark.parametrize("plain", [True, False])
def test_whatever_a_handler_raises_ends_its_job_and_nothing_else(run: Run, plain: bool) -> None:
    errors: dict[str, BaseException] = {
        "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "generator": GeneratorExit(), "stop": StopIteration(),
        "cancelled": asyncio.CancelledError(), "unspeakable": _Unspeakable(),
    }  # fmt: skip

    def raising(value: str, ctx: JobContext) -> Any:
        if value in errors:
            raise errors[value]
        return value

    async def coroutine(value: str, ctx: JobContext) -> Any:
        return raising(value, ctx)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        client = AsyncJobClient(queue)
        async with AsyncJobServer(queue, raising if plain else coroutine, workers=2) as server:
            handles = await client.submit_many([*errors, "fine"], max_attempts=1)
            results = await asyncio.gather(*(h.result(timeout=20) for h in handles), return_exceptions=True)
            assert results[-1] == "fine"
            assert all(isinstance(r, Exception) and not isinstance(r, howdah.Timeout) for r in results[:-1])
            await until(lambda: server.stats().failed == len(errors))
            assert server.stats().started == len(errors) + 1

    run(body)


def test_a_plain_handler_keeps_its_place_until_it_returns(run: Run) -> None:
    now = 0
    most = 0

    def handler(value: Any, ctx: JobContext) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        while not ctx.aborted:
            time.sleep(0.005)
        time.sleep(0.1)
        now -= 1

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        await queue.add("x", max_attempts=3)
        async with AsyncJobServer(queue, handler, workers=1, attempt_timeout=0.05, retry=QUICK) as server:
            await until(lambda: server.stats().failed == 1)
        assert most == 1
        [letter] = await queue.dead_letters()
        assert (letter.attempts, letter.error_code) == (3, "TimeoutError")

    run(body)


def test_stopping_strands_no_claim(run: Run) -> None:
    async def handler(value: Any, ctx: JobContext) -> Any:
        await asyncio.sleep(0.005)

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        await queue.add_many(range(200))
        for step in range(12):
            server = AsyncJobServer(queue, handler, workers=4, prefetch=8)
            await server.start()
            await asyncio.sleep(0.002 * step)
            await server.stop()
            assert await queue.count(JobStatus.PROCESSING) == 0

    run(body)


def test_exchanges_at_the_same_time_lose_no_claim(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fail before they reach the server, while leases are renewed all the time: nothing waits for a lease to end."""
    seen: list[int] = []
    chance = random.Random(7)

    async def handler(value: int, ctx: JobContext) -> None:
        seen.append(value)
        await asyncio.sleep(chance.choice((0, 0.001)))

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        exchange = queue._exchange

        async def failing(*given: Any, **options: Any) -> Any:
            if chance.random() < 0.15:
                raise BackendError("not sent")
            found = await exchange(*given, **options)
            await asyncio.sleep(0.002)
            return found

        monkeypatch.setattr(queue, "_exchange", failing)
        monkeypatch.setattr(jobs.server, "MOST_POLL", 0.01)
        await queue.add_many(range(900))
        async with AsyncJobServer(queue, handler, workers=20, prefetch=4, poll=0.01, lease=120) as server:
            while server.stats().completed < 900:
                if server._running or server._ready:
                    await server._renew()
                await asyncio.sleep(0)
        assert sorted(seen) == list(range(900))
        assert server._asked == 0

    run(body)


def test_two_starts_at_once_are_one(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        server = AsyncJobServer(queue, echo)
        await asyncio.gather(server.start(), server.start())
        assert sum("_serve" in repr(task) for task in asyncio.all_tasks()) == 1
        await server.stop()

    run(body)


def test_a_limiter_that_fails_is_tried_again(run: Run) -> None:
    class Failing(NoLimit):
        calls = 0

        async def try_acquire(self) -> Any:
            self.calls += 1
            if self.calls < 3:
                raise ValueError("a bug of this limiter")
            return True

    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        async with AsyncJobServer(queue, echo, limiter=Failing(), poll=0.01):
            assert await (await AsyncJobClient(queue).submit("x")).result(timeout=15) == "x"
        wrong: Any = "x"
        with pytest.raises(InvalidInput):
            AsyncJobServer(queue, echo, limiter=wrong)
        with pytest.raises(InvalidInput):
            AllOf([wrong])

    run(body)


def test_inside_a_transaction_nothing_is_waited_for(run: Run) -> None:
    async def body(store: AsyncStore, queue: AsyncQueue) -> None:
        async with store.transaction():
            handle = await AsyncJobClient(queue).submit("x")
            with pytest.raises(howdah.TransactionError):
                await handle.result(timeout=5)
            with pytest.raises(howdah.TransactionError):
                await AsyncJobServer(queue, echo).start()

    run(body)


def test_closing_the_store_lets_everybody_go(engine: str, url_for: Callable[[str], str]) -> None:
    import threading

    store = open_store(engine, url_for(engine))
    queue, kv = store.queue("jobs"), store.kv("k")
    server = JobServer(queue, lambda value, ctx: value)
    server.start()
    handle = JobClient(queue).submit("x", delay=1000)
    raised: list[BaseException] = []

    def wait(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    waiting = [
        threading.Thread(target=wait, args=(call,), daemon=True)
        for call in (lambda: handle.result(timeout=60), lambda: kv.wait_for("put", timeout=60))
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.1)
    store.close()
    assert not server.running
    for thread in waiting:
        thread.join(20)
    assert len(raised) == 2
    assert all(isinstance(error, howdah.Closed) for error in raised)
