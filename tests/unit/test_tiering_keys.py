"""Keys with moments in them, as tables of measurements have: over both tiers they do as on a plain table."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from howdah import Database
from tests.tiering import outcome

EPOCH = datetime(2024, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


@pytest.mark.parametrize(
    ("shape", "column"),
    [
        ("device text, ts timestamptz, v int, PRIMARY KEY (device, ts)", "timestamptz"),
        ("ts timestamp, device text, v int, PRIMARY KEY (ts, device)", "timestamp"),
        ("device text, ts date PRIMARY KEY, v int", "date"),
    ],
)
def test_moments_in_keys(db: Database, tmp_path: Path, shape: str, column: str) -> None:
    random_ = random.Random(column)

    def moment() -> Any:
        at = EPOCH + timedelta(hours=37 * random_.randrange(60))
        return at if column == "timestamptz" else at.replace(tzinfo=None) if column == "timestamp" else at.date()

    for name in "tp":
        db.execute(f"CREATE TABLE {name} ({shape})")
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
    conflict = {"timestamptz": "device, ts", "timestamp": "ts, device", "date": "ts"}[column]
    statements = [
        "INSERT INTO {t} (device, ts, v) VALUES ($1, $2, $3)",
        "INSERT INTO {t} (device, ts, v) VALUES ($1, $2, $3)",
        f"INSERT INTO {{t}} AS x (device, ts, v) VALUES ($1, $2, $3) ON CONFLICT ({conflict}) DO UPDATE SET v = x.v + excluded.v RETURNING *",
        "INSERT INTO {t} (device, ts, v) SELECT $1, x, $3 FROM unnest(ARRAY[$2]) x ON CONFLICT DO NOTHING",
        "UPDATE {t} SET v = v + $3 WHERE device = $1 AND ts = $2 RETURNING *",
        f"UPDATE {{t}} SET ts = ts + interval '37 hours' WHERE device = $1 AND ts = $2 AND v > $3 RETURNING ts::{column}, v",
        "DELETE FROM {t} WHERE device = $1 AND ts = $2 AND v < $3",
        "SELECT * FROM {t} WHERE device = $1 AND ts = $2 AND v > $3",
        "SELECT count(*), max(v) FROM {t} WHERE device = $1 AND ts >= $2 AND v <> $3",
    ]
    for number in range(250):
        sql = random_.choice(statements)
        params = [random_.choice("abc"), moment(), random_.randrange(20)]
        assert outcome(db, sql.replace("{t}", "t"), params, {}) == outcome(db, sql.replace("{t}", "p"), params, {}), (
            number,
            sql,
            params,
        )
        if number % 20 == 19:
            db.flush()
    count = db.query("SELECT count(*) FROM p")[0][0]
    assert db.analyze("SELECT count(*) AS n FROM t").to_pylist() == [{"n": count}]
    for value in ("infinity", "-infinity", "0044-03-15 BC", "20000-01-01"):  # which the base does not have
        for _ in range(2):
            sql = f"INSERT INTO {{t}} (device, ts, v) VALUES ('z', '{value}', 1)"
            assert outcome(db, sql.replace("{t}", "t"), [], {}) == outcome(db, sql.replace("{t}", "p"), [], {})
        db.flush()
    mine, plain = (
        [tuple(r) for r in db.query(f"SELECT device, ts::text, v FROM {name} ORDER BY ts, device")] for name in "tp"
    )
    assert mine == plain
    assert db.tiers()[0].warm_rows > 20
    db.untier("t")
    mine = [tuple(r) for r in db.query("SELECT device, ts::text, v FROM t ORDER BY ts, device")]
    assert mine == plain


def test_one_key_opens_one_file(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (device text, day date, v int, PRIMARY KEY (device, day))")
    db.query("INSERT INTO t SELECT 'd' || n % 5, date '2024-01-01' + n / 5, n FROM generate_series(0, 99) n")
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="day")
    assert db.flush().files == 20
    found = db.query("SELECT v FROM t WHERE device = $1 AND day = $2", "d3", date(2024, 1, 7))
    assert (found[0]["v"], found.files_read) == (33, 1)
