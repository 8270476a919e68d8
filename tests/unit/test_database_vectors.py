"""Vectors in plain SQL: every metric, indexes and smaller ones, filters, and what they take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from howdah import Database, InvalidInput, QueryError, TypeMismatch, UndefinedColumn, UndefinedTable
from howdah.database.rows import Metric

ROWS, DIMENSIONS = 600, 24


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as db:
        db.execute(f"CREATE TABLE v (id int PRIMARY KEY, kind text, e vector({DIMENSIONS}), h halfvec({DIMENSIONS}))")
        made = np.random.default_rng(1).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
        db.copy_in("v", [(n, f"k{n % 20}", row, row) for n, row in enumerate(made)], columns=["id", "kind", "e", "h"])
        db.execute("INSERT INTO v (id, kind) VALUES (-1, 'none'); ANALYZE v")
        yield db


def nearest(db: Database, query: Any, metric: str, kind: str = "") -> list[int]:
    """Ids by brute force."""
    rows = db.query("SELECT id, e FROM v WHERE e IS NOT NULL AND ($1 = '' OR kind = $1) ORDER BY id", kind)
    all_, q = np.stack([r["e"] for r in rows]).astype(np.float64), np.asarray(query, dtype=np.float64)
    far = {
        "l2": np.linalg.norm(all_ - q, axis=1),
        "l1": np.abs(all_ - q).sum(axis=1),
        "ip": -(all_ @ q),
        "cosine": 1 - all_ @ q / np.linalg.norm(all_, axis=1) / np.linalg.norm(q),
    }[metric]
    return [int(rows[i]["id"]) for i in np.argsort(far, kind="stable")]


@pytest.mark.parametrize("metric", get_args(Metric))
def test_every_metric_exactly_and_by_index(db: Database, metric: Any) -> None:
    query = np.random.default_rng(2).normal(size=DIMENSIONS)
    expected = nearest(db, query, metric)
    with pytest.raises(InvalidInput, match="has no index"):
        db.vector_search("v", "e", query)
    found = db.vector_search("v", "e", query, limit=20, metric=metric)
    assert [r["id"] for r in found] == expected[:20]
    made = db.vector_index("v", "e", metric=metric)
    assert (made.method, made.metric, made.quantize, made.rerank) == ("hnsw", metric, None, False)
    assert made.bytes > 0
    by_index = [r["id"] for r in db.vector_search("v", "e", query, limit=20, columns=["id"])]
    assert len(set(by_index) & set(expected[:20])) >= 19
    assert [r["id"] for r in db.vector_search("v", "e", query, limit=20, exact=True)] == expected[:20]
    every = db.vector_search("v", "e", query, limit=ROWS + 5)
    assert len(every) == ROWS  # the row without a vector is none of them
    assert [r["distance"] for r in every] == sorted(r["distance"] for r in every)


@pytest.mark.parametrize("quantize", ["half", "binary"])
def test_smaller_indexes_are_ranked_by_the_originals(db: Database, quantize: Any) -> None:
    query = np.random.default_rng(3).normal(size=DIMENSIONS)
    expected = nearest(db, query, "cosine")
    made = db.vector_index("v", "e", quantize=quantize)
    assert (made.metric, made.quantize, made.rerank) == ("cosine", quantize, True)
    found = db.vector_search("v", "e", query, limit=10, columns=["id"])
    assert len({r["id"] for r in found} & set(expected[:10])) >= (10 if quantize == "half" else 7)
    exact = {r["id"]: r["distance"] for r in db.vector_search("v", "e", query, limit=ROWS, exact=True)}
    assert all(abs(exact[r["id"]] - r["distance"]) < 1e-9 for r in found)
    filtered = db.vector_search("v", "e", query, limit=40, where="kind = $1 OR id = $2", params=["k3", 7])
    assert [r["id"] for r in filtered if r["kind"] == "k3"] == nearest(db, query, "cosine", "k3")
    assert len(filtered) == ROWS // 20 + 1
    full = db.vector_index("v", "e", metric="l2")
    smaller = db.vector_index("v", "e", metric="ip", quantize=quantize, rerank=False, method="ivfflat", lists=4)
    assert (smaller.method, smaller.metric, smaller.rerank) == (
        "ivfflat",
        "ip",
        False,
    )
    assert len(db.vector_search("v", "e", query, metric="ip")) == 10
    (stats, half) = db.vector_stats("v")
    assert (stats.column, stats.type, stats.dimensions, stats.rows) == ("e", "vector", DIMENSIONS, ROWS)
    assert {i.name for i in stats.indexes} == {made.name, full.name, smaller.name}
    assert 4 * DIMENSIONS * ROWS < stats.bytes <= ROWS * (4 * DIMENSIONS + 8)
    assert stats.bytes_per_vector > stats.bytes / ROWS
    assert (half.column, half.indexes) == ("h", ())


def test_vectors_without_length_are_found_though_no_index_has_them(db: Database) -> None:
    db.execute(
        "CREATE TABLE z (id int, e vector(3)); INSERT INTO z SELECT n, ARRAY[n, 1, 0]::vector FROM generate_series(1, 20) n"
    )
    db.query("INSERT INTO z VALUES (0, '[0,0,0]')")
    db.vector_index("z", "e")
    rows = db.vector_search("z", "e", [1, 1, 0], limit=21)
    assert len(rows) == 21
    assert rows[0]["id"] == 1
    assert np.isnan(rows[-1]["distance"])


def test_few_rows_are_looked_at_one_by_one_and_many_through_the_index(database_url: str) -> None:
    """Which way a filtered search goes is Postgres' choice by its statistics, and EXPLAIN tells."""
    with Database.open(database_url) as db:
        db.execute("CREATE TABLE f (id int PRIMARY KEY, kind int, e vector(8))")
        db.query(
            "INSERT INTO f SELECT n, CASE WHEN n <= 20 THEN 1 ELSE 2 END, ARRAY[n % 7, n % 11, n % 13, n % 17, n % 19, n % 23, n % 29, 1]::vector FROM generate_series(1, 20000) n"
        )
        db.execute("CREATE INDEX ON f (kind)")
        made = db.vector_index("f", "e", metric="l2", m=8, ef_construction=16)
        db.execute("ANALYZE f")
        plans = ["".join(map(str, db.query(f"EXPLAIN SELECT id FROM f WHERE kind = {kind} ORDER BY e <-> '[1,2,3,4,5,6,7,8]' LIMIT 5")))
                 for kind in (1, 2)]  # fmt: skip
        assert made.name not in plans[0]
        assert made.name in plans[1]
        for kind, there in ((1, 20), (2, 50)):
            assert (
                len(
                    db.query(
                        "SELECT id, e <-> $1 AS distance FROM f WHERE kind = $2 ORDER BY distance LIMIT 50",
                        [1] * 8,
                        kind,
                    )
                )
                == there
            )


def test_halves_and_sparse_vectors(db: Database) -> None:
    query = np.ones(DIMENSIONS)
    made = db.vector_index("v", "h", metric="ip")
    assert (made.metric, made.quantize) == ("ip", None)
    found = [r["id"] for r in db.vector_search("v", "h", query, limit=5)]
    assert len(set(found) & set(nearest(db, query, "ip")[:5])) >= 4
    db.vector_index("v", "h", quantize="binary")
    assert len(db.vector_search("v", "h", query, metric="cosine")) == 10
    db.execute(
        "CREATE TABLE s (id int, e sparsevec(5000)); INSERT INTO s VALUES (1, '{1:1}/5000'), (2, '{1:3,9:1}/5000'), (3, NULL)"
    )
    db.vector_index("s", "e", metric="l2")
    assert [r["id"] for r in db.vector_search("s", "e", "{1:2.5}/5000")] == [2, 1]


def test_bad_input_is_told(db: Database) -> None:
    db.execute("CREATE TABLE wide (id int, e vector(3000), w vector(5000), any vector)".replace("any ", '"any" '))
    with pytest.raises(InvalidInput, match=r"3,000 dimensions; such an index holds 2,000: quantize='half' does"):
        db.vector_index("wide", "e")
    with pytest.raises(InvalidInput, match="quantize='binary' does"):
        db.vector_index("wide", "w", quantize="half")
    assert db.vector_index("wide", "e", quantize="half").quantize == "half"
    assert db.vector_index("wide", "w", quantize="binary").quantize == "binary"
    db.query("INSERT INTO wide (id, e) VALUES (1, $1)", [1.0] * 3000)
    assert db.vector_search("wide", "e", [1.0] * 3000)[0]["id"] == 1
    with pytest.raises(InvalidInput, match="names no dimensions"):
        db.vector_index("wide", "any")
    for arguments in ({"metric": "far"}, {"method": "tree"}, {"quantize": "pq"}, {"m": 0}, {"lists": "x"}):
        with pytest.raises(InvalidInput):
            db.vector_index("v", "e", **arguments)
    with pytest.raises(InvalidInput, match="l1"):
        db.vector_index("v", "e", metric="l1", method="ivfflat")
    with pytest.raises(InvalidInput, match="expected vector"):
        db.vector_index("v", "kind")
    with pytest.raises(InvalidInput, match="halfvec"):
        db.vector_index("v", "h", quantize="half")
    with pytest.raises(UndefinedColumn):
        db.vector_search("v", "nothing", [1])
    with pytest.raises(UndefinedTable):
        db.vector_stats("nowhere")
    with pytest.raises(TypeMismatch, match="dimensions"):
        db.vector_search("v", "e", [1, 2], metric="l2")
    for limit in (0, None, "x"):
        with pytest.raises(InvalidInput):
            db.vector_search("v", "e", [1] * DIMENSIONS, limit=limit, metric="l2")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(QueryError):
        db.vector_search("v", "e", [1] * DIMENSIONS, where="nothing = 1", metric="l2")
    db.vector_index("v", "e")
    with pytest.raises(QueryError, match="already exists"):
        db.vector_index("v", "e")


def test_odd_tables(database_url: str) -> None:
    with Database.open(database_url) as db:
        db.execute('CREATE TABLE "my.table" (id int, distance float, v vector(3)); CREATE TABLE pt (id int, v vector(3)) PARTITION BY RANGE (id);'
                   " CREATE TABLE pt1 PARTITION OF pt FOR VALUES FROM (0) TO (1000)")  # fmt: skip
        for name in ('"my.table"', "pt"):
            db.query(f"INSERT INTO {name} (id, v) SELECT n, ARRAY[n, 1, 0]::vector FROM generate_series(1, 50) n")
            made = db.vector_index(name, "v", metric="l2", quantize="half", rerank=False)
            assert (made.rerank, made.bytes > 0) == (False, True)
            assert [
                r["id"] for r in db.vector_search(name, "v", [4, 1, 0], limit=1, where="id > 3 -- the big ones")
            ] == [4]
            assert db.vector_stats(name)[0].rows == 50
            with pytest.raises(QueryError, match="already exists"):
                db.vector_index(name, "v", metric="l2", quantize="half")


def test_search_covers_every_tier(db: Database, tmp_path: Path) -> None:
    query = np.random.default_rng(4).normal(size=DIMENSIONS)
    expected = nearest(db, query, "cosine")
    db.execute(
        "ALTER TABLE v ADD ts timestamptz DEFAULT '2024-01-01'; UPDATE v SET ts = now() + interval '1 day' WHERE id % 2 = 0"
    )
    db.vector_index("v", "e", quantize="half")
    db.tier("v", location=tmp_path / "base", hot_for=0, time_column="ts")
    assert db.flush().rows == ROWS // 2 + 1
    assert [r["id"] for r in db.vector_search("v", "e", query, limit=15)] == expected[:15]
    assert db.vector_stats("v")[0].rows == ROWS // 2


def test_with_everything_else_of_sql(db: Database, tmp_path: Path) -> None:
    """JSON, joins, writes by nearest rows, transactions, tiers: on a tiered table as on a plain one."""
    for name in ("ta", "pa"):
        db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, ts date DEFAULT '2024-01-01', doc jsonb, e vector(2))")
        db.query(
            f"INSERT INTO {name} (id, doc, e) SELECT n, jsonb_build_object('n', n % 3), ARRAY[n, n % 7]::vector FROM generate_series(1, 60) n"
        )
    db.execute(
        "CREATE TABLE names (id int, name text); INSERT INTO names SELECT n, 'x' || n FROM generate_series(1, 60) n"
    )
    db.tier("ta", location=tmp_path / "ta", hot_for=0, time_column="ts")
    db.flush()

    def both(run: Any, sql: str, *params: Any) -> Any:
        mine, plain = ([repr(tuple(r)) for r in run.query(sql.replace("{t}", name), *params)] for name in ("ta", "pa"))
        assert mine == plain, sql
        return mine

    at = [20.0, 3.0]
    both(db, "SELECT id, doc->>'n' FROM {t} WHERE doc @> '{\"n\": 1}' ORDER BY e <-> $1, id LIMIT 5", at)
    both(
        db,
        "SELECT t.id, n.name, e <=> $1 AS distance FROM {t} t JOIN names n USING (id) WHERE n.id < 40 ORDER BY distance, id LIMIT 4",
        at,
    )
    both(
        db,
        "UPDATE {t} SET doc = '{\"n\": 9}' WHERE id IN (SELECT id FROM {t} ORDER BY e <-> $1, id LIMIT 3) RETURNING id, doc",
        at,
    )
    both(db, "DELETE FROM {t} WHERE id IN (SELECT id FROM {t} ORDER BY e <+> $1, id LIMIT 2) RETURNING id", at)
    with db.transaction() as tx:
        both(tx, "INSERT INTO {t} (id, e) VALUES (100, $1) RETURNING e <-> $1", at)
        both(tx, "SELECT id FROM {t} ORDER BY e <-> $1, id LIMIT 3", at)
        tx.rollback()
    both(db, "SELECT id, e <#> $1 FROM {t} ORDER BY 2, id LIMIT 60", at)
    hot = db.query("SELECT id FROM ta ORDER BY e <-> $1 LIMIT 9", at, tier="hot")
    assert hot  # those that were updated came back
    assert len(db.query("SELECT id FROM ta ORDER BY e <-> $1 LIMIT 500", at)) == 58
