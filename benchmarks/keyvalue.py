"""Key-values and tables against the raw drivers: get, put, put_many, an indexed query, concurrent durable puts."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import asyncpg

import howdah

from .common import Results, rounds

N = 300


@dataclass
class Item:
    id: str
    kind: str
    size: int


async def sqlite(results: Results, folder: Path) -> None:
    """SQLite: the blocking face against apsw with the same pragmas and the same JSON."""
    raw = apsw.Connection(str(folder / "raw.db"))
    raw.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    raw.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT, expires_at INTEGER, version INTEGER)")
    upsert = (
        "INSERT INTO kv VALUES (?,?,?,?) ON CONFLICT (key) DO UPDATE SET value=excluded.value, version=excluded.version"
    )
    store = howdah.connect(str(folder / "ours.db"))
    kv = store.kv()
    value = {"name": "Alice", "visits": 17, "tags": ["a", "b"]}
    keys = [f"user:{i}" for i in range(10_000)]
    kv.put_many(dict.fromkeys(keys, value))
    with raw:
        raw.executemany(upsert, [(k, json.dumps(value), None, 1) for k in keys])
    turn = itertools.count()

    async def our_get() -> None:
        for key in keys[:3000]:
            kv.get(key)

    async def raw_get() -> None:
        for key in keys[:3000]:
            [json.loads(r[0]) for r in raw.execute("SELECT value FROM kv WHERE key = ?", (key,))]

    found = await rounds({"ours": our_get, "raw": raw_get})
    results.add("get, SQLite", found["ours"], "apsw", found["raw"], "<= 3x", per=3000)

    async def our_put() -> None:
        for key in keys[:N]:
            kv.put(key, {**value, "visits": next(turn)})

    async def raw_put() -> None:
        for key in keys[:N]:
            raw.execute("BEGIN IMMEDIATE")
            raw.execute(upsert, (key, json.dumps({**value, "visits": next(turn)}), None, next(turn)))
            raw.execute("COMMIT")

    found = await rounds({"ours": our_put, "raw": raw_put})
    results.add("put, durable, SQLite", found["ours"], "apsw", found["raw"], "<= 2x", per=N)

    async def our_many() -> None:
        mark = next(turn)
        kv.put_many({k: {**value, "visits": mark} for k in keys})

    async def raw_many() -> None:
        mark = next(turn)
        with raw:
            raw.executemany(upsert, [(k, json.dumps({**value, "visits": mark}), None, mark) for k in keys])

    found = await rounds({"ours": our_many, "raw": raw_many})
    results.add("put_many of 10,000, SQLite", found["ours"], "apsw", found["raw"], "<= 1.5x", per=10_000)

    table = store.table(Item, key="id", indexes=[("kind", "size")])
    rows = [Item(f"{i:06}", f"k{i % 100}", i) for i in range(100_000)]
    table.put_many(rows)
    raw.execute(
        "CREATE TABLE item (id TEXT PRIMARY KEY, kind TEXT, size INTEGER); CREATE INDEX ix ON item (kind, size)"
    )
    with raw:
        raw.executemany("INSERT INTO item VALUES (?,?,?)", [(r.id, r.kind, r.size) for r in rows])

    async def our_query() -> None:
        for number in range(200):
            table.query((table.c.kind == f"k{number % 100}") & (table.c.size > 500), order_by="size", limit=10).all()

    async def raw_query() -> None:
        for number in range(200):
            sql = "SELECT id, kind, size FROM item WHERE kind = ? AND size > ? ORDER BY size, id LIMIT 10"
            [Item(*r) for r in raw.execute(sql, (f"k{number % 100}", 500))]

    found = await rounds({"ours": our_query, "raw": raw_query})
    results.add("indexed query, limit 10 of 100,000 rows, SQLite", found["ours"], "apsw", found["raw"], "", per=200)
    store.close()

    async with await howdah.connect_async(str(folder / "ours.db")) as loop_store:
        loop_kv = loop_store.kv()

        async def one_by_one() -> None:
            for key in keys[:64]:
                await loop_kv.put(key, next(turn))

        async def together() -> None:
            waiting = iter(keys[:6400])

            async def worker() -> None:
                for key in waiting:
                    await loop_kv.put(key, next(turn))

            await asyncio.gather(*(worker() for _ in range(64)))

        found = await rounds({"one": one_by_one, "many": together})
        one, many = 64 / found["one"], 6400 / found["many"]
        results.fact(
            "durable puts/s on SQLite, 1 at a time and 64 at once",
            f"{one:,.0f} and {many:,.0f}: {many / one:.0f}x",
            ">= 20x",
        )
    raw.close()


async def postgres(results: Results, url: str, dsn: dict[str, Any]) -> None:
    """Postgres: the async face against one asyncpg connection."""
    raw = await asyncpg.connect(**dsn)
    await raw.execute(
        "CREATE TABLE IF NOT EXISTS raw_kv (key text PRIMARY KEY, value jsonb, expires_at timestamptz, version bigint)"
    )
    upsert = "INSERT INTO raw_kv VALUES ($1,$2,$3,$4) ON CONFLICT (key) DO UPDATE SET value=excluded.value, version=excluded.version"
    value = {"name": "Alice", "visits": 17, "tags": ["a", "b"]}
    keys = [f"user:{i}" for i in range(10_000)]
    turn = itertools.count()
    async with await howdah.connect_async(url) as store:
        kv = store.kv()
        await kv.put_many(dict.fromkeys(keys, value))
        await raw.executemany(upsert, [(k, json.dumps(value), None, 1) for k in keys])

        async def our_get() -> None:
            for key in keys[:1000]:
                await kv.get(key)

        async def raw_get() -> None:
            for key in keys[:1000]:
                json.loads((await raw.fetchrow("SELECT value FROM raw_kv WHERE key = $1", key))[0])

        found = await rounds({"ours": our_get, "raw": raw_get})
        results.add("get, Postgres", found["ours"], "asyncpg", found["raw"], "<= 1.3x", per=1000)

        async def our_put() -> None:
            for key in keys[:N]:
                await kv.put(key, {**value, "visits": next(turn)})

        async def raw_put() -> None:
            for key in keys[:N]:
                await raw.execute(upsert, key, json.dumps({**value, "visits": next(turn)}), None, next(turn))

        found = await rounds({"ours": our_put, "raw": raw_put})
        results.add("put, Postgres", found["ours"], "asyncpg", found["raw"], "<= 1.3x", per=N)

        async def our_many() -> None:
            mark = next(turn)
            await kv.put_many({k: {**value, "visits": mark} for k in keys})

        async def raw_many() -> None:
            mark = next(turn)
            await raw.executemany(upsert, [(k, json.dumps({**value, "visits": mark}), None, mark) for k in keys])

        found = await rounds({"ours": our_many, "raw": raw_many}, 5)
        results.add(
            "put_many of 10,000, Postgres", found["ours"], "asyncpg executemany", found["raw"], "<= 1.5x", per=10_000
        )
    await raw.close()
