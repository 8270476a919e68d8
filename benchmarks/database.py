"""Plain SQL and tiered tables against the raw driver, plain tables and DuckDB: ``make bench-database``."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
from tests.s3 import BUCKET, S3Server

import howdah
from howdah.database.overlay import base

from . import memory
from .common import Results, percentile, rounds, write

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-database.md"
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
READS, WRITES = 4000, 2000
SHAPE = "(id bigint PRIMARY KEY, ts timestamptz NOT NULL, kind text, n int, amount float8)"
ROWS = (
    "SELECT x, $1::timestamptz + x * interval '1 second' * $3::float8, 'kind ' || x % 17, x % 1000, x / 7.0"
    " FROM generate_series($4::bigint, $2::bigint) x"
)


async def turns(count: int, runs: Mapping[str, Callable[[int], Any]]) -> dict[str, float]:
    """Median seconds of one call of each, in turn, so that a noisy moment meets all of them."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count):
        for name, run in runs.items():
            began = time.perf_counter()
            await run(number)
            took[name].append(time.perf_counter() - began)
    return {name: statistics.median(t[count // 10 :]) for name, t in took.items()}


async def fill(db: howdah.AsyncDatabase, table: str, rows: int, *, apart: float, first: int = 1) -> None:
    """Rows ``apart`` seconds from each other."""
    await db.query(f"INSERT INTO {table} {ROWS}", EPOCH, first + rows - 1, apart, first)


async def by_key(results: Results, db: howdah.AsyncDatabase, raw: Any, folder: Path) -> None:
    """Statements that touch one row."""
    for name in ("plain", "hot"):
        await db.execute(f"CREATE TABLE {name} {SHAPE}")
        await fill(db, name, 20_000, apart=60)
    await db.tier("hot", location=folder / "hot", hot_for=10**9, time_column="ts")
    read = "SELECT * FROM {} WHERE id = $1"
    found = await turns(
        READS,
        {
            "raw": lambda i: raw.fetch(read.format("plain"), i + 1),
            "plain": lambda i: db.query(read.format("plain"), i + 1),
            "hot": lambda i: db.query(read.format("hot"), i + 1),
        },
    )
    results.add("row by key, untouched table", found["plain"], "asyncpg", found["raw"], "<= 1.05x")
    results.add("row by key, hot, tiered table", found["hot"], "plain table", found["plain"], "<= 1.3x")
    insert, update = "INSERT INTO {} VALUES ($1, $2, $3, $4, $5)", "UPDATE {} SET n = n + 1 WHERE id = $1"
    found = await turns(
        WRITES,
        {
            "plain": lambda i: db.query(insert.format("plain"), 10**6 + i, EPOCH, "kind", i, 1.5),
            "hot": lambda i: db.query(insert.format("hot"), 10**6 + i, EPOCH, "kind", i, 1.5),
            "plain update": lambda i: db.query(update.format("plain"), i + 1),
            "hot update": lambda i: db.query(update.format("hot"), i + 1),
        },
    )
    results.add("insert of a row, durable, tiered table", found["hot"], "plain table", found["plain"], "<= 1.15x")
    results.add(
        "update of a hot row, durable, tiered table", found["hot update"], "plain table", found["plain update"], ""
    )


async def warm(results: Results, db: howdah.AsyncDatabase, folder: Path, rows: int, days: int, place: str) -> None:
    """A key among many files, and a day among many."""
    name = f"warm_{place.lower()}"
    location = bucket() if place == "S3" else folder / name
    await db.execute(f"CREATE TABLE {name} {SHAPE}")
    await fill(db, name, rows, apart=days * 86400 / rows)
    await db.tier(name, location=location, hot_for=0, time_column="ts")
    began = time.perf_counter()
    done = await db.flush(name)
    spent = time.perf_counter() - began
    target = ">= 50,000/s" if place == "directory" else ""
    results.fact(f"flush of {rows:,} rows to {done.files} files, {place}", f"{rows / spent:,.0f} rows/s", target)
    for again in (False, True) if place == "S3" else (False,):
        took, files = [], []
        for number in range(60):
            began = time.perf_counter()
            found = await db.query(f"SELECT * FROM {name} WHERE id = $1", 1 + number * (rows // 60))
            took.append(time.perf_counter() - began)
            files.append(found.files_read)
        what = f"row by key among {rows:,} rows in {done.files} files, {place}{', from the cache' * again}, p50"
        goal = "<= 25 ms" if place == "directory" else "<= 20 ms" if again else "<= 4 objects"
        results.fact(what, f"{percentile(took, 0.5) * 1000:.1f} ms, {max(files)} objects", goal)
    day = EPOCH + timedelta(days=days // 2)
    one = await db.query(
        f"SELECT count(*), sum(amount) FROM {name} WHERE ts >= $1 AND ts < $2", day, day + timedelta(hours=20)
    )
    results.fact(f"files opened for a day of {days}, {place}", f"{one.files_read}", "1")


def bucket() -> str:
    """A fresh place on the S3 server that the environment names."""
    return f"s3://{BUCKET}/bench{time.time_ns()}"


async def scans(results: Results, db: howdah.AsyncDatabase, folder: Path, rows: int) -> None:
    """Aggregates over everything."""
    await db.execute(f"CREATE TABLE big {SHAPE}")
    for first in range(1, rows, 1_000_000):
        await fill(db, "big", min(1_000_000, rows), apart=1, first=first)
    await db.tier("big", location=folder / "big", hot_for=0, time_column="ts", partition_by=[])
    began = time.perf_counter()
    await db.flush("big")
    results.fact(f"flush of {rows:,} rows", f"{rows / (time.perf_counter() - began):,.0f} rows/s", ">= 50,000/s")
    metadata = (await db.query("SELECT metadata FROM howdah.tiers WHERE rel = 'big'::regclass"))[0][0]
    paths = [file.file_path.removeprefix("file://") for file in base.files(metadata)]
    sql = "SELECT kind, count(*) AS c, sum(amount) AS s, max(n) AS m FROM {} GROUP BY kind ORDER BY kind"

    async def alone(asked: str = sql) -> None:
        connection = duckdb.connect()
        connection.sql(asked.format(f"read_parquet({paths})")).to_arrow_table()
        connection.close()

    found = await rounds({"ours": lambda: db.analyze(sql.format("big")), "alone": alone}, 5)
    results.add(
        f"analyze: groups over {rows:,} warm rows", found["ours"], "DuckDB alone", found["alone"], "<= 1.5x", unit="ms"
    )
    whole = sql.replace("amount", "n")
    found = await rounds({"ours": lambda: db.query(whole.format("big")), "alone": lambda: alone(whole)}, 5)
    results.add(f"query: groups over {rows:,} warm rows", found["ours"], "DuckDB alone", found["alone"], "", unit="ms")
    found = await rounds({"ours": lambda: db.query(sql.format("big")), "alone": alone}, 5)
    what = f"query: groups with sums of floating numbers over {rows:,} warm rows"
    results.add(what, found["ours"], "DuckDB alone", found["alone"], "", unit="ms")
    for what, asked in (
        ("the latest 10 of", "SELECT * FROM big ORDER BY ts DESC LIMIT 10"),
        ("the 10 largest by a column without order, of", "SELECT * FROM big ORDER BY amount DESC, n LIMIT 10"),
    ):
        found = await rounds({"ours": partial(db.query, asked)}, 5)
        results.fact(f"query: {what} {rows:,} warm rows", f"{found['ours'] * 1000:.1f} ms")
    counted = await rounds({"ours": lambda: db.query("SELECT count(*) FROM big")}, 5)
    results.fact(f"query: count(*) of {rows:,} warm rows", f"{counted['ours'] * 1000:.1f} ms")


async def main(quick: bool) -> None:
    """Everything, on an embedded Postgres, a directory and an S3 server."""
    folder = Path(tempfile.mkdtemp(prefix="howdah-bench-"))
    folder.chmod(0o755)
    results = Results()
    s3 = S3Server(folder / "s3")
    s3.open()
    os.environ.update({**s3.environment, "XDG_CACHE_HOME": str(folder / "caches")})
    try:
        # One server process for both: where the system puts two of them matters more than what is measured.
        async with howdah.AsyncDatabase.open(f"pg:{folder / 'pg'}", pool_size=1) as db:
            session = await db._acquire()
            db._release(session)
            await by_key(results, db, session.connection, folder)
        async with howdah.AsyncDatabase.open(f"pg:{folder / 'pg'}") as db:
            rows, days = (50_000, 20) if quick else (1_000_000, 100)
            await warm(results, db, folder, rows, days, "directory")
            await warm(results, db, folder, rows // 10, days, "S3")
            await db.execute("DROP TABLE IF EXISTS plain")
            if not quick:
                await db.execute(f"CREATE TABLE year {SHAPE}")
                await fill(db, "year", 365 * 200, apart=86400 / 200)
                await db.tier("year", location=folder / "year", hot_for=0, time_column="ts")
                await db.flush("year")
                day = EPOCH + timedelta(days=200)
                one = await db.query(
                    "SELECT count(*) FROM year WHERE ts >= $1 AND ts < $2", day, day + timedelta(hours=23)
                )
                results.fact("files opened for a day of 365 daily partitions", f"{one.files_read}", "1")
            await scans(results, db, folder, 200_000 if quick else 10_000_000)
        # In a thread: it opens databases of its own.
        await asyncio.to_thread(memory.run, results, folder, SHAPE, ROWS, 20_000 if quick else 1_000_000)
        if not quick:
            write(results, PAGE, "make bench-database")
    finally:
        s3.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main("--quick" in sys.argv))
