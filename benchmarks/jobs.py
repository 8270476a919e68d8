"""Queues: against pgqueuer and procrastinate on the same server, a hand-written SKIP LOCKED loop, and on SQLite; wake-ups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

import howdah
from howdah.jobs import AsyncJobServer, JobContext
from howdah.stores.claim import Outcome
from howdah.stores.kv import AsyncKV

from .common import Results, percentile, rounds

BATCH = 50
WORKERS = 8


async def nothing(value: Any, ctx: JobContext) -> None:
    """A job without work."""


async def ours(url: str, count: int) -> float:
    """Seconds to add ``count`` jobs and complete all of them with a job server."""
    async with await howdah.connect_async(url) as store:
        queue = store.queue("bench")
        await queue._table._ensure()
        began = time.perf_counter()
        for start in range(0, count, 5000):
            await queue.add_many(range(start, min(count, start + 5000)))
        async with AsyncJobServer(queue, nothing, workers=100, prefetch=4) as server:
            while server.stats().completed < count:
                await asyncio.sleep(0.002)
        spent = time.perf_counter() - began
        await queue._table.drop()
        return spent


async def pgqueuer(dsn: dict[str, Any], count: int) -> float:
    """The same with pgqueuer."""
    from pgqueuer import PgQueuer
    from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
    from pgqueuer.queries import Queries
    from pgqueuer.types import QueueExecutionMode

    pool = await asyncpg.create_pool(**dsn, min_size=2, max_size=8)
    try:
        driver = AsyncpgPoolDriver(pool)
        queries = Queries(driver)
        with contextlib.suppress(Exception):
            await queries.uninstall()
        await queries.install()
        application = PgQueuer(driver)

        async def handle(job: Any) -> None:
            return None

        application.entrypoint("nothing")(handle)
        began = time.perf_counter()
        for start in range(0, count, 5000):
            size = min(count, start + 5000) - start
            await queries.enqueue(["nothing"] * size, [b"1"] * size, [0] * size)
        await application.run(batch_size=100, mode=QueueExecutionMode.drain)
        spent = time.perf_counter() - began
        left = await pool.fetchval("SELECT count(*) FROM pgqueuer")
        assert left == 0, f"pgqueuer left {left} jobs"
        await queries.uninstall()
        return spent
    finally:
        await pool.close()


async def procrastinate(dsn: dict[str, Any], count: int) -> float:
    """The same with procrastinate."""
    import procrastinate as peer

    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    text = f"host={dsn['host']} user={dsn['user']} dbname={dsn['database']}"
    app = peer.App(connector=peer.PsycopgConnector(conninfo=text))
    task = app.task(name="nothing")(_task)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        for start in range(0, count, 1000):
            inputs: list[Any] = [{"n": n} for n in range(start, min(count, start + 1000))]
            await task.batch_defer_async(*inputs)
        await app.run_worker_async(wait=False, concurrency=20, install_signal_handlers=False, listen_notify=False)
        spent = time.perf_counter() - began
    connection = await asyncpg.connect(**dsn)
    left = await connection.fetchval("SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'")
    assert left == 0, f"procrastinate left {left} jobs"
    await connection.close()
    return spent


async def _task(n: int) -> None:
    return None


RAW = """
WITH done AS (UPDATE raw_jobs SET status = 'done', done_at = now() WHERE id = ANY($1::bigint[])),
c AS MATERIALIZED (SELECT id FROM raw_jobs WHERE status = 'new' ORDER BY id LIMIT 50 FOR UPDATE SKIP LOCKED)
UPDATE raw_jobs j SET status = 'run', owner = $2, until = now() + interval '30 s' FROM c WHERE j.id = c.id RETURNING j.id, j.input
"""


async def by_hand(url: str, dsn: dict[str, Any], count: int) -> tuple[float, float]:
    """Seconds to claim and complete ``count`` waiting jobs with 8 workers in batches: ours, a loop written by hand."""
    async with await howdah.connect_async(url) as store:
        queue = store.queue("bench2")
        # The other side has its connections before the clock runs, too.
        await asyncio.gather(*(queue.exchange([], f"w{n}", limit=BATCH) for n in range(WORKERS)))
        for start in range(0, count, 5000):
            await queue.add_many(range(start, start + 5000))

        async def worker(name: str) -> None:
            outcomes: list[Outcome] = []
            while True:
                _, claims = await queue.exchange(outcomes, name, limit=BATCH)
                outcomes = [Outcome(c, None) for c in claims]
                if not claims:
                    return

        began = time.perf_counter()
        await asyncio.gather(*(worker(f"w{n}") for n in range(WORKERS)))
        mine = time.perf_counter() - began
        assert (await queue.counts())[howdah.JobStatus.COMPLETED] == count
        await queue._table.drop()
    pool = await asyncpg.create_pool(**dsn, min_size=WORKERS, max_size=WORKERS)
    await pool.execute(
        "CREATE TABLE raw_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, input jsonb, status text, owner text,"
        " until timestamptz, done_at timestamptz) WITH (fillfactor = 70);"
        "CREATE INDEX raw_new ON raw_jobs (id) WHERE status = 'new'; CREATE INDEX raw_run ON raw_jobs (until) WHERE status = 'run'"
    )
    await pool.executemany("INSERT INTO raw_jobs (input, status) VALUES ($1, 'new')", [(str(n),) for n in range(count)])
    await pool.execute("ANALYZE raw_jobs")

    async def loop(name: str) -> None:
        done: list[int] = []
        async with pool.acquire() as connection:
            while True:
                try:
                    rows = await connection.fetch(RAW, done, name)
                except asyncpg.DeadlockDetectedError:
                    continue
                if not rows:
                    break
                done = [r[0] for r in rows]
                [json.loads(r[1]) for r in rows]
            await connection.execute("UPDATE raw_jobs SET status = 'done', done_at = now() WHERE id = ANY($1)", done)

    began = time.perf_counter()
    await asyncio.gather(*(loop(f"w{n}") for n in range(WORKERS)))
    raw = time.perf_counter() - began
    await pool.execute("DROP TABLE raw_jobs")
    await pool.close()
    return mine, raw


async def sqlite(results: Results, folder: Path, count: int) -> None:
    """Claims and completions a second on a file, in batches, with a million finished jobs beside them."""
    with howdah.connect(str(folder / "jobs.db")) as store:
        queue = store.queue("bench")._async

        async def all_of(number: int) -> float:
            for start in range(0, number, 5000):
                await queue.add_many(range(start, min(number, start + 5000)))
            outcomes: list[Outcome] = []
            began = time.perf_counter()
            while True:
                _, claims = await queue.exchange(outcomes, "w", limit=BATCH)
                outcomes = [Outcome(c, None) for c in claims]
                if not claims:
                    return number / (time.perf_counter() - began)

        few = store._run(all_of(20_000))
        results.fact("claim and complete, durable, SQLite, batches of 50", f"{few:,.0f} jobs/s", ">= 15,000/s")
        if count >= 100_000:
            store._run(_finished(queue, 1_000_000))
            many = store._run(all_of(20_000))
            results.fact("the same beside 1,000,000 finished jobs", f"{many:,.0f} jobs/s: {many / few:.2f}x")


async def _finished(queue: Any, count: int) -> None:
    """A past: jobs that have been completed."""
    names = queue._ops.schema.names
    for start in range(0, count, 5000):
        rows = [*queue._rows(range(start, start + 5000), fingerprint="past")]
        for row in rows:
            for name, value in (("status", "COMPLETED"), ("due_at", None), ("completed_at", 1), ("output", "null")):
                row[names.index(name)] = value
        await queue._table._write(lambda rows=rows: queue._ops.insert(rows))


WAITER = """
import sys, time, howdah
with howdah.connect(sys.argv[1]) as store:
    feed = store.records("wake").changes()
    feed.start()
    print("ready", flush=True)
    for change in feed:
        print(time.time() - change.new["at"], flush=True)
"""


def wake_up(results: Results, url: str, engine: str) -> None:
    """How soon another process sees a change."""
    with howdah.connect(url) as store:
        waiter = subprocess.Popen([sys.executable, "-c", WAITER, url], stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        waiter.stdout.readline()
        delays = []
        for number in range(100):
            time.sleep(0.011)
            store.records("wake").put(str(number), {"at": time.time()})
            delays.append(float(waiter.stdout.readline()))
        waiter.kill()
        waiter.wait()
        waiter.stdout.close()
    results.fact(f"another process sees a change, p50, {engine}", f"{percentile(delays, 0.5) * 1e3:.1f} ms", "<= 10 ms")


async def wrappers(results: Results, folder: Path) -> None:
    """What a cache and telemetry cost."""
    with howdah.connect(str(folder / "wrap.db")) as store:
        schema = {
            "title": "t",
            "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
            "required": ["id"],
        }
        table = store.table(schema, key="id")
        table.put_many([{"id": i, "name": str(i)} for i in range(1000)])
        cache = table.cached(max_age=3600)
        rows = {i: {"id": i, "name": str(i)} for i in range(1000)}
        for i in range(1000):
            cache.get(i)

        async def cached() -> None:
            for i in range(1000):
                cache.get(i)

        async def plain() -> None:
            for i in range(1000):
                dict(rows[i])

        found = await rounds({"ours": cached, "dict": plain})
        over = (found["ours"] - found["dict"]) / 1000 * 1e6
        results.fact("cached get over a dict", f"{over:.1f} µs", "<= 3 µs")
        cache.close()
        kv, bare = store.kv("k")._async, AsyncKV(store._async._engine, "k")
        await kv.put("a", 1)

        async def off() -> None:
            for _ in range(200):
                await kv.get("a")

        async def without() -> None:
            for _ in range(200):
                await bare.get("a")

        found = await rounds(
            {"off": off, "without": without}, 301
        )  # short ones: what is to be seen is smaller than the noise
        results.add("get, telemetry off", found["off"], "no telemetry at all", found["without"], "<= 1.02x", per=200)


async def run(results: Results, folder: Path, url: str, dsn: dict[str, Any], count: int) -> None:
    """Everything about jobs; ``count`` is the larger of the two sizes."""
    await wrappers(results, folder)
    await sqlite(results, folder, count)
    wake_up(results, str(folder / "wake.db"), "SQLite")
    await asyncio.get_running_loop().run_in_executor(None, wake_up, results, url, "Postgres")
    mine, raw = medians([await by_hand(url, dsn, 20_000) for _ in range(7)])
    results.add("claim and complete, 8 workers, Postgres", mine, "SKIP LOCKED by hand", raw, "<= 1.43x", per=20_000)
    for size in sorted({min(5000, count), count}):
        times = 9 if size <= 5000 else 3
        mine, theirs = medians([(await ours(url, size), await pgqueuer(dsn, size)) for _ in range(times)])
        results.add(f"{size:,} jobs, end to end, Postgres", mine, "pgqueuer", theirs, "<= 0.5x", unit="s")
        if size <= 5000:
            slow = await procrastinate(dsn, size)
            results.add(f"{size:,} jobs, end to end, Postgres", mine, "procrastinate", slow, "<= 0.1x", unit="s")


def medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The medians of two that were run in turn."""
    mine, theirs = map(statistics.median, zip(*times, strict=True))
    return mine, theirs
