"""A caller's own pool, and what a store says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import numpy as np

import howdah
from howdah import Store
from howdah.store import connect_async


def test_a_callers_pool_is_used_and_stays_open(servers: Any) -> None:
    async def main() -> None:
        url = servers.server()
        pool = await asyncpg.create_pool(url, min_size=1, max_size=3)
        async with await connect_async(url, pool=pool, schema="borrowed") as store:
            await asyncio.gather(*(store.kv().put(f"k{i}", i) for i in range(20)))
            async with store.transaction():
                await store.kv().put("t", 1)
            vectors = store.vectors("v", dim=2)
            await vectors.put(howdah.Vector("a", [1, 2]))
            found = await vectors.get("a")
            assert found is not None
            assert np.array_equal(found.dense, [1, 2])
            assert await store.kv().count() == 21
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()

    asyncio.run(main())


def test_abilities(store: Store, engine: str) -> None:
    assert store.durable == (engine != "memory")
    assert store.scope == ("process" if engine == "memory" else "cluster")
    assert store.capabilities.transactions
    status = store.status()
    assert status.engine == ("postgres" if engine in ("pg", "server") else "sqlite")
    assert status.version
    assert "@" not in status.place or "***" in status.place or "postgres@" in status.place


def test_behind_a_pooler_nothing_relies_on_the_session(servers: Any) -> None:
    with howdah.connect(f"{servers.server()}?schema=pooled&pooler=true") as store:
        vectors = store.vectors("v", dim=2, text=["content"])
        vectors.put_many([howdah.Vector(f"k{i}", [i, 1], content="word") for i in range(50)])
        assert len(vectors.search([1, 1], limit=50)) == 50
        assert len(vectors.search(text="word", limit=None)) == 50
        with store.transaction():
            store.kv().put("a", 1)
        assert store.kv().get("a") == 1
