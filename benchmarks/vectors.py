"""Nearest neighbours at 384 dimensions: recall and time against exact NumPy and against raw pgvector on the same index."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import numpy as np

import howdah

from .common import Results, percentile

DIM = 384


@dataclass
class Point:
    id: int
    v: Annotated[Any, howdah.vector(DIM)]
    bucket: int


def data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters, as embeddings of real texts lie, and questions near them."""
    random_ = np.random.default_rng(11)
    centres = random_.standard_normal((max(20, count // 200), DIM)).astype(np.float32)
    points = centres[random_.integers(0, len(centres), count)] + 0.7 * random_.standard_normal((count, DIM)).astype(
        np.float32
    )
    asked = centres[random_.integers(0, len(centres), 100)] + 0.7 * random_.standard_normal((100, DIM)).astype(
        np.float32
    )
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    return points, asked


async def run(
    results: Results, folder: Path, url: str, dsn: dict[str, Any], count: int, engines: tuple[str, ...]
) -> None:
    """Both engines at one size."""
    points, asked = data(count)
    bucket = np.arange(count) % 1000  # below 1: 0.1 %, below 10: 1 %, below 500: 50 %
    truth = {share: _truth(points, asked, bucket, share) for share in (1000, 500, 10, 1)}
    rows = [Point(i, v, int(b)) for i, (v, b) in enumerate(zip(points, bucket, strict=True))]
    label = f"{count:,} x {DIM}"
    began = time.perf_counter()
    for query in asked:
        np.argpartition(-(points @ query), 10)[:10]
    exact = (time.perf_counter() - began) / len(asked)
    for engine in engines:
        target = url if engine == "Postgres" else str(folder / f"vectors{count}.db")
        async with await howdah.connect_async(target) as store:
            table = store.table(f"points{count}", Point, key="id", indexes=["bucket"])
            began = time.perf_counter()
            for start in range(0, count, 5000):
                await table.put_many(rows[start : start + 5000])
            await store.maintain()
            results.fact(
                f"storing and indexing {label}, {engine}", f"{count / (time.perf_counter() - began):,.0f} rows/s"
            )
            for share in (1000, 500, 10, 1):
                where = None if share == 1000 else table.c.bucket < share
                spent, hit = [], 0
                for number, query in enumerate(asked):
                    began = time.perf_counter()
                    hits = await table.search(query, limit=10, where=where)
                    spent.append(time.perf_counter() - began)
                    hit += len({h.key for h in hits} & truth[share][number])
                recall = hit / (10 * len(asked))
                name = "no filter" if share == 1000 else f"filter {share / 10:g} %"
                goal = ">= 0.97" if share == 1000 else ">= 0.95"
                p50 = percentile(spent, 0.5) * 1e3
                if share == 1000:
                    results.add(
                        f"top 10 of {label}, {engine}",
                        percentile(spent, 0.5),
                        "exact NumPy",
                        exact,
                        "p50 <= 3 ms (SQLite)",
                        unit="ms",
                    )
                results.fact(f"recall@10, {name}, {label}, {engine}", f"{recall:.3f} at p50 {p50:.2f} ms", goal)
            if engine == "Postgres":
                await _pgvector(results, table, asked, dsn, label)


def _truth(points: np.ndarray, asked: np.ndarray, bucket: np.ndarray, share: int) -> list[set[int]]:
    allowed = np.flatnonzero(bucket < share)
    scores = asked @ points[allowed].T
    return [set(allowed[np.argsort(-row)[:10]].tolist()) for row in scores]


async def _pgvector(results: Results, table: Any, asked: np.ndarray, dsn: dict[str, Any], label: str) -> None:
    """The same question as plain SQL on the same table and index, interleaved."""
    connection = await asyncpg.connect(**dsn)
    await connection.set_type_codec("vector", schema="public", encoder=bytes, decoder=bytes, format="binary")
    await connection.execute("SET hnsw.iterative_scan = relaxed_order; SET hnsw.ef_search = 100")
    head = DIM.to_bytes(2, "big") + b"\0\0"
    sql = f"SELECT id, v, bucket FROM {table._ops.name} ORDER BY v <=> $1 LIMIT 10"

    async def mine(query: np.ndarray) -> None:
        await table.search(query, limit=10)

    async def theirs(query: np.ndarray) -> None:
        found = await connection.fetch(sql, head + query.astype(">f4").tobytes())
        [np.frombuffer(r[1], ">f4", offset=4) for r in found]

    spent: dict[str, list[float]] = {"mine": [], "theirs": []}
    turns = [("mine", mine), ("theirs", theirs)]
    for _ in range(4):
        turns.reverse()  # whoever comes second finds the pages warm
        for query in asked:
            for name, run in turns:
                began = time.perf_counter()
                await run(query)
                spent[name].append(time.perf_counter() - began)
    ours, raw = spent["mine"], spent["theirs"]
    results.add(
        f"top 10 of {label}, Postgres, same index",
        percentile(ours, 0.5),
        "raw pgvector",
        percentile(raw, 0.5),
        "<= 1.1x",
        unit="ms",
    )
    await connection.close()
