"""Postgres in unusual positions: behind a transaction-mode pooler, in another time zone, under a held snapshot."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import howdah
from howdah.jobs import AsyncJobClient, AsyncJobServer, JobContext
from howdah.stores.claim import Outcome

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


@pytest.fixture
def pooled(servers: Any) -> Iterator[str]:
    """URL of a database behind pgbouncer in transaction mode."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    parts = urlsplit(servers.server())
    folder = Path(tempfile.mkdtemp(prefix="howdah-pooler-"))
    folder.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port} user={parts.username}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 100\nunix_socket_dir =\n"
        f"logfile = {folder / 'log'}\nignore_startup_parameters = extra_float_digits\n"
        f"[users]\n"
    )
    settings.chmod(0o644)
    as_user = ["-u", "nobody"] if os.getuid() == 0 else []
    running = subprocess.Popen([PGBOUNCER, *as_user, str(settings)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?pooler=true&schema=pooled{os.getpid()}"
    running.kill()
    running.wait()
    shutil.rmtree(folder, ignore_errors=True)


async def double(value: Any, ctx: JobContext) -> Any:
    return value * 2


def test_everything_works_behind_a_transaction_mode_pooler(pooled: str) -> None:
    async def main() -> None:
        async with await howdah.connect_async(pooled) as store, await howdah.connect_async(pooled) as other:
            kv = store.kv("k")
            await asyncio.gather(*(kv.put(f"k{i}", i) for i in range(40)))
            async with store.transaction():
                await kv.put("t", 1)
                await other.kv("k").put("o", 2)
            assert await kv.count() == 42
            docs = store.table(
                "docs",
                {"properties": {"id": {"type": "integer"}, "body": {"type": "string"}}, "required": ["id", "body"]},
                key="id",
                text=["body"],
            )
            feed = docs.changes()
            await feed.start()
            await docs.put_many([{"id": i, "body": f"word{i % 5} common"} for i in range(200)])
            assert {hit.row["id"] % 5 for hit in await docs.search(text="word3", limit=40)} == {3}
            assert len(await feed.poll(timeout=10)) == 200
            vectors = store.vectors("v", dim=3)
            await vectors.put_many([howdah.Vector(str(i), dense=[i, 1, 0]) for i in range(1, 50)])
            assert (await vectors.search([9, 1, 0], limit=1))[0].key in {"8", "9", "10"}
            queue = store.queue("jobs")
            async with AsyncJobServer(other.queue("jobs"), double, workers=4, poll=0.02):
                handles = await AsyncJobClient(queue).submit_many(range(50))
                results = await asyncio.gather(*(h.result(timeout=30) for h in handles))
            assert results == [n * 2 for n in range(50)]
            limiter = store.limiter("l", limit=3, per=60)
            found = await asyncio.gather(*(limiter.try_acquire() for _ in range(9)))
            assert sum(p is not None for p in found) == 3

    asyncio.run(main())


def test_time_zones_of_client_and_server_make_no_difference(
    url_for: Callable[[str], str], servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        admin = await asyncpg.connect(servers.server())
        try:
            await admin.execute("ALTER ROLE postgres SET timezone = 'Asia/Kathmandu'")
            async with await howdah.connect_async(url_for("server")) as store:
                queue, feed = store.queue("q"), store.records("r").changes()
                await feed.start()
                await queue.add("now")
                await queue.add("soon", delay=0.8)
                await queue.add("late", timeout=0.05, delay=0.1)
                claim = await queue.claim("w", lease=0.8)
                assert claim is not None
                assert claim.input == "now"
                assert await queue.claim("w") is None
                await asyncio.sleep(0.9)
                assert {c.input for c in await queue.claim_many("w", limit=5)} == {"now", "soon"}
                assert [j.error_code for j in await queue.dead_letters()] == ["DeadlineExceeded"]
                await store.records("r").put("a", {}, ttl=0.05)
                await asyncio.sleep(0.06)
                assert await store.records("r").get("a") is None
                [change] = await feed.poll()
                assert abs(change.at.timestamp() - time.time()) < 5
        finally:
            await admin.execute("ALTER ROLE postgres RESET timezone")
            await admin.close()

    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        asyncio.run(main())
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_held_snapshot_keeps_claims_on_their_way(url_for: Callable[[str], str], servers: Any) -> None:
    """While somebody holds a snapshot nothing can be vacuumed; claims must still find the next job without reading the rest."""

    async def main() -> None:
        holder = await asyncpg.connect(servers.server())
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.fetchval("SELECT count(*) FROM pg_class")
        async with await howdah.connect_async(url_for("server")) as store:
            queue = store.queue("q")
            await queue.add_many(range(4000))
            outcomes: list[Any] = []
            for _ in range(70):
                _, claims = await queue.exchange(outcomes, "w", limit=50)
                outcomes = [Outcome(c, None) for c in claims]
            ops, behind = queue._ops, queue._behind
            assert behind is not None
            connection = await asyncpg.connect(servers.server())

            async def pages(rank: int | None, due: Any, last: str | None) -> int:
                """Pages that finding the next fifty reads."""
                transaction = connection.transaction()
                await transaction.start()
                sql = f"SELECT * FROM {ops.dialect.qualify(ops.next_name)}('', now(), 50, $1, $2, $3)"
                plan = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", rank, due, last)
                await transaction.rollback()
                return sum(int(n) for row in plan[:3] for n in re.findall(r"hit=(\d+)", row[0]))

            await pages(*behind)
            assert 3 * await pages(*behind) < await pages(None, None, None)
            _, claims = await queue.exchange(outcomes, "w", limit=1000)
            assert len(claims) == 500
            await connection.close()
        await holder.close()

    asyncio.run(main())


def test_looking_for_what_is_due_reads_no_whole_table(servers: Any) -> None:
    """Postgres plans a statement when it is first run, and keeps the plan: here, for a table that was empty then."""

    async def main() -> int:
        url = servers.server()
        async with await howdah.connect_async(f"{url}?schema=due") as store:
            queue = store.queue("due")
            for _ in range(8):
                queue._settled = 0.0
                assert await queue.claim("w") is None
            await queue.add_many(range(3000))
            for _ in range(8):
                queue._settled = 0.0
                assert await queue.claim("w") is not None
            others = store.queue("others")
            for number in range(8):
                await others.add(number, unique=True)
            await others.add_many(range(100, 3100))
            for number in range(8):
                await others.add(number + 5000, unique=True)
        plain = await asyncpg.connect(url)
        await plain.execute("SELECT pg_stat_clear_snapshot()")
        read = await plain.fetchval(
            "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('_queue_due', '_queue_others')"
        )
        await plain.execute("DROP SCHEMA due CASCADE")
        await plain.close()
        return int(read)

    assert asyncio.run(main()) == 0
