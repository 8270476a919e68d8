"""Text search over 100,000 chunks against FTS5 and against ``ts_rank``: plain questions, terms ORed, top 10."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import asyncpg

import howdah

from .common import Results, percentile

WORDS = 60_000
SCHEMA = {"properties": {"id": {"type": "integer"}, "body": {"type": "string"}}, "required": ["id", "body"]}


def corpus(count: int) -> tuple[list[str], list[str]]:
    """Chunks of about 90 words with the frequencies of a natural text (Zipf), and questions of eight words."""
    random_ = random.Random(7)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(random_.choices(letters, weights=range(26, 0, -1), k=random_.randint(3, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    every = random_.choices(words, weights, k=count * 90)
    chunks = [" ".join(every[i * 90 : (i + 1) * 90]) for i in range(count)]
    # Four words from all over the text, four rarer ones, as questions have.
    questions = [
        " ".join(random_.choices(words, weights, k=4) + random_.choices(words[500:], weights[500:], k=4))
        for _ in range(200)
    ]
    return chunks, questions


async def timed(questions: list[str], ask: Callable[[str], Awaitable[object]]) -> list[float]:
    """Seconds of each question."""
    spent = []
    for question in questions[:5]:
        await ask(question)
    for question in questions:
        began = time.perf_counter()
        await ask(question)
        spent.append(time.perf_counter() - began)
    return spent


async def run(results: Results, folder: Path, url: str, dsn: dict[str, Any], count: int) -> None:
    """Index and search on both engines and with both peers."""
    chunks, questions = corpus(count)
    rows = [{"id": i, "body": c} for i, c in enumerate(chunks)]
    label = f"{count:,} chunks"

    store = howdah.connect(str(folder / "text.db"))
    table = store.table("chunks", SCHEMA, key="id", text=["body"])
    began = time.perf_counter()
    for start in range(0, count, 10_000):
        table.put_many(rows[start : start + 10_000])
    store.maintain()
    ours = time.perf_counter() - began
    raw = apsw.Connection(str(folder / "fts.db"))
    raw.execute("PRAGMA journal_mode=WAL").fetchall()
    raw.execute("CREATE VIRTUAL TABLE fts USING fts5(body, tokenize='porter unicode61')")
    began = time.perf_counter()
    for start in range(0, count, 10_000):
        with raw:
            raw.executemany(
                "INSERT INTO fts(rowid, body) VALUES (?,?)",
                [(r["id"], r["body"]) for r in rows[start : start + 10_000]],
            )
    theirs = time.perf_counter() - began
    results.add(f"indexing {label}, SQLite", ours, "FTS5", theirs, "", unit="s")

    async def our_search(question: str) -> None:
        table.search(text=question, limit=10)

    async def fts_search(question: str) -> None:
        query = " OR ".join(f'"{w}"' for w in question.split())
        raw.execute(
            "SELECT rowid, body, bm25(fts) FROM fts WHERE fts MATCH ? ORDER BY bm25(fts) LIMIT 10", (query,)
        ).fetchall()

    mine, fts = await timed(questions, our_search), await timed(questions, fts_search)
    results.add(
        f"question, p50, {label}, SQLite",
        percentile(mine, 0.5),
        "FTS5",
        percentile(fts, 0.5),
        "<= 4 ms, <= 0.125x",
        unit="ms",
    )
    results.add(f"question, p95, {label}, SQLite", percentile(mine, 0.95), "FTS5", percentile(fts, 0.95), "", unit="ms")
    store.close()
    raw.close()

    connection = await asyncpg.connect(**dsn)
    await connection.execute(
        "DROP TABLE IF EXISTS raw_text; CREATE TABLE raw_text (id bigint PRIMARY KEY, body text, tsv tsvector)"
    )
    async with await howdah.connect_async(url) as pg:
        pg_table = pg.table("chunks", SCHEMA, key="id", text=["body"])
        began = time.perf_counter()
        for start in range(0, count, 10_000):
            await pg_table.put_many(rows[start : start + 10_000])
        await pg.maintain()
        ours = time.perf_counter() - began
        began = time.perf_counter()
        for start in range(0, count, 10_000):
            await connection.executemany(
                "INSERT INTO raw_text VALUES ($1, $2, to_tsvector('english', $2))",
                [(r["id"], r["body"]) for r in rows[start : start + 10_000]],
            )
        await connection.execute("CREATE INDEX ON raw_text USING gin (tsv); ANALYZE raw_text")
        theirs = time.perf_counter() - began
        results.add(f"indexing {label}, Postgres", ours, "tsvector + GIN", theirs, "", unit="s")

        async def pg_search(question: str) -> None:
            await pg_table.search(text=question, limit=10)

        async def rank_search(question: str) -> None:
            query = " | ".join(question.split())
            await connection.fetch(
                "SELECT id, body, ts_rank(tsv, q) r FROM raw_text, to_tsquery('english', $1) q WHERE tsv @@ q ORDER BY r DESC LIMIT 10",
                query,
            )

        mine, rank = await timed(questions, pg_search), await timed(questions, rank_search)
        results.add(
            f"question, p50, {label}, Postgres",
            percentile(mine, 0.5),
            "ts_rank",
            percentile(rank, 0.5),
            "<= 5 ms, <= 0.125x",
            unit="ms",
        )
    await connection.close()
