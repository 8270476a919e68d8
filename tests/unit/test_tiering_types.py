"""Bytes, vectors and times of day are what they are in the base, too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from howdah import Database, TieringRefused, Unsupported
from howdah.database.overlay.columns import TierColumn, arrow_schema
from howdah.database.overlay.texts import as_text, decoded, encoded

SHAPE = (
    "(id int PRIMARY KEY, ts timestamptz DEFAULT '2024-01-01', at time, data bytea, v vector(3), w vector, at3 time(3))"
)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def fill(db: Database, table: str) -> None:
    rows = (
        (1, time(23, 59, 59, 999999), b"\x00\xff\\x'\"\n,", [1, -2.5, 1e-30], [0.1], time(1, 2, 3, 4000)),
        (2, time(0, 0), b"", [3.4e38, 0, -0.0], list(range(1000)), None),
        (3, None, None, None, None, None),
        (4, time(12, 30), bytes(range(256)) * 50, [1 / 3, 2 / 3, 1e20], [1.5, 2], time(23, 59)),
    )
    for row in rows:
        db.query(f"INSERT INTO {table} (id, at, data, v, w, at3) VALUES ($1, $2, $3, $4, $5, $6)", *row)
    db.query(f"INSERT INTO {table} (id, at) VALUES (5, '24:00')")


def same(db: Database) -> None:
    shown = "id, at::text, data, v::text, w::text, at3, ts"
    mine, plain = ([tuple(r) for r in db.query(f"SELECT {shown} FROM {name} ORDER BY id")] for name in ("t", "p"))
    assert mine == plain


def test_what_other_readers_see(db: Database, tmp_path: Path) -> None:
    for name in ("t", "p"):
        db.execute(f"CREATE TABLE {name} {SHAPE}")
        fill(db, name)
    for wrong in ({"sort_by": "v"}, {"partition_by": "data"}, {"partition_by": ["bucket(4, at)"]}):
        with pytest.raises(TieringRefused):
            db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts", **wrong)
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts", sort_by=["at", "data"])
    assert db.flush().rows == 4  # Iceberg's day has no 24 o'clock
    same(db)
    metadata = db.query("SELECT metadata FROM howdah.tiers")[0][0]
    schema = StaticTable.from_metadata(metadata).schema()
    assert {f.name: str(f.field_type) for f in schema.fields} == {
        "id": "int", "ts": "timestamptz", "at": "time", "data": "binary", "v": "list<float>", "w": "list<float>", "at3": "time",
    }  # fmt: skip
    seen = {r["id"]: r for r in StaticTable.from_metadata(metadata).scan().to_arrow().to_pylist()}
    assert seen[1]["data"] == b"\x00\xff\\x'\"\n,"
    assert seen[1]["at"] == time(23, 59, 59, 999999)
    assert seen[2]["w"] == list(range(1000))
    assert np.allclose(seen[4]["v"], np.array([1 / 3, 2 / 3, 1e20], np.float32))
    assert seen[3] == {"id": 3, "ts": seen[1]["ts"], "at": None, "data": None, "v": None, "w": None, "at3": None}
    with pytest.raises(Unsupported, match="only Postgres has"):
        db.analyze("SELECT count(*) FROM t")
    for name in ("t", "p"):
        db.query(f"DELETE FROM {name} WHERE id = 5")
    found = db.analyze(
        'SELECT id, "at", octet_length(data) AS n, list_sum(w) AS s FROM t WHERE id < 5 ORDER BY id'
    ).to_pylist()
    assert [(r["n"], r["s"]) for r in found] == [(8, pytest.approx(0.1)), (0, 499500), (None, None), (12800, 3.5)]
    assert found[3]["at"] == time(12, 30)
    for name in ("t", "p"):
        db.query(f"UPDATE {name} SET data = data || '\\x01', v = v + '[1,1,1]' WHERE id IN (1, 3)")
        db.query(f"DELETE FROM {name} WHERE at = '12:30'")
        db.execute(f"ALTER TABLE {name} ADD more bytea, ADD x vector(2)")
        db.query(f"INSERT INTO {name} (id, more, x) VALUES (6, 'abc', '[1,2]')")
    assert (
        db.query("SELECT id FROM t ORDER BY v <-> '[1,1,1]' LIMIT 1")[0][0]
        == db.query("SELECT id FROM p ORDER BY v <-> '[1,1,1]' LIMIT 1")[0][0]
    )
    assert db.flush().rows
    same(db)
    assert db.query("SELECT more, x::text FROM t WHERE id = 6")[0] == (b"abc", "[1,2]")
    assert (
        db.query("SELECT count(data), count(v), count(x) FROM t")[0]
        == db.query("SELECT count(data), count(v), count(x) FROM p")[0]
    )
    for test in ("v IS NULL", "v IS NOT NULL", "data IS NULL", "x IS NULL AND id < 4"):
        found = [[r[0] for r in db.query(f"SELECT id FROM {name} WHERE {test} ORDER BY id")] for name in ("t", "p")]
        assert found[0] == found[1], test
    assert db.untier("t") > 0
    same(db)


def test_dead_rows_of_keys_of_several_columns_beside_vectors(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE a (x int, y text, ts date, v vector(2), PRIMARY KEY (y, x))")
    db.query("INSERT INTO a SELECT n, 'k' || n % 3, '2024-01-01', ARRAY[n, 1]::vector FROM generate_series(1, 50) n")
    db.tier("a", location=tmp_path / "a", hot_for=0, time_column="ts")
    db.flush()
    db.query("DELETE FROM a WHERE x IN (1, 30)")
    assert db.query("SELECT count(v), sum(x) FROM a")[0] == (48, 1244)
    assert db.backup(tmp_path / "dump") > 0


def test_there_and_back() -> None:
    columns = [
        TierColumn(i, name, name, name, False, True, 0, 1)
        for i, name in enumerate(("int8", "bytea", "vector", "uuid", "_text"))
    ]
    schema = arrow_schema(pa, columns)
    random = np.random.default_rng(1)
    values = [None if n % 5 == 0 else random.standard_normal(n % 7 + 1).astype(np.float32).tolist() for n in range(500)]
    data = [None if n % 3 == 0 else random.bytes(n % 11) for n in range(500)]
    uuids = [None if n % 4 == 0 else random.bytes(16) for n in range(500)]
    odd = [None, "", "NULL", "null", 'a"b', "c\\d", "e,f", "{g}", " h\n", "é"]
    lists = [None if n % 6 == 0 else [odd[i] for i in random.integers(0, len(odd), n % 4)] for n in range(500)]
    rows = pa.table(dict(zip(schema.names, (list(range(500)), data, values, uuids, lists), strict=True)), schema=schema)
    for part in (rows, rows.slice(7, 100), rows.slice(0, 0), pa.concat_tables([rows.slice(3, 5), rows.slice(100, 50)])):
        text = encoded(part, columns)
        assert text.schema == as_text(schema, columns)
        assert decoded(text, columns).to_pylist() == part.to_pylist()
