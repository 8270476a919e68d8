"""LIMIT over tiered tables: what a plain table gives, and no more of the base is opened or bound than it can reach."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howdah import Database

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
DIM = 5
METRICS = ("<->", "<=>", "<#>", "<+>")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def make(db: Database, location: Path, rows: int, **policy: Any) -> None:
    """A tiered table with a file for each day, and a plain one."""
    random_ = random.Random(3)
    given = []
    for n in range(1, rows + 1):
        vector = [round(random_.gauss(0, 1), 3) for _ in range(DIM)] if n % 11 else [0.0] * DIM
        given.append((
            n, EPOCH + timedelta(hours=n), random_.choice(["a", "b", "B", "é", "", None]), random_.choice([*range(9), None]),
            random_.choice([0.5, -1.5, float("nan"), float("inf"), None]), None if n % 13 == 0 else vector,
        ))  # fmt: skip
    for name in "tp":
        db.execute(
            f'CREATE TABLE {name} (id int PRIMARY KEY, ts timestamptz, kind text COLLATE "C", n int, f float8, v vector({DIM}))'
        )
        db.copy_in(name, given, columns=["id", "ts", "kind", "n", "f", "v"])
    db.tier("t", location=location, hot_for=0, time_column="ts", **policy)
    db.flush()


def both(db: Database, sql: str, *params: Any, **options: Any) -> Any:
    """What both tables give, which must be the same; the tiered one's."""
    mine, plain = (db.query(sql.replace("{t}", name), *params, **options) for name in "tp")
    assert list(map(repr, map(tuple, mine))) == list(map(repr, map(tuple, plain))), sql
    return mine


def test_the_latest_rows_open_the_latest_files(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(db, tmp_path / "base", 239)  # ten days
    assert db.tiers()[0].files == 10
    monkeypatch.setattr("howdah.database.overlay.fetching.MOST", 200)  # all would be too many
    for sql, params, files in (
        ("SELECT * FROM {t} ORDER BY ts DESC LIMIT 5", (), 1),
        ("SELECT * FROM {t} ORDER BY ts DESC, kind LIMIT $1", (5,), 1),
        ("SELECT id AS x, ts FROM {t} AS q ORDER BY x LIMIT 3 OFFSET 2", (), 1),
        ("SELECT ts, id FROM {t} ORDER BY 2 DESC LIMIT 30", (), 3),
        ("SELECT id FROM {t} WHERE ts < $1 ORDER BY {t}.ts DESC LIMIT 4", (EPOCH + timedelta(days=5),), 1),
        ("SELECT id FROM {t} ORDER BY ts ASC NULLS FIRST LIMIT 4", (), 1),
        ("SELECT id, upper(kind) FROM {t} ORDER BY id LIMIT 4", (), 1),
        ("SELECT id FROM {t} WHERE md5(id::text) LIKE '%7' ORDER BY id DESC LIMIT 2", (), None),
        ("SELECT id, (SELECT p.kind FROM p WHERE p.id = q.id) FROM {t} q ORDER BY id DESC LIMIT 2", (), 1),
    ):
        found = both(db, sql, *params)
        assert files is None or found.files_read == files, (sql, found.files_read)
    assert len(db.query("SELECT id FROM t LIMIT 7")) == 7
    assert db.query("SELECT id FROM t LIMIT 7").files_read == 1
    assert len(list(db.stream("SELECT id FROM t ORDER BY ts DESC LIMIT 7"))) == 7
    assert db.query("SELECT 1 FROM t LIMIT 0").affected == 0


def test_dead_and_hot_rows_count_as_they_do(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(db, tmp_path / "base", 200)
    monkeypatch.setattr("howdah.database.overlay.fetching.MOST", 150)
    for name in "tp":
        db.query(f"DELETE FROM {name} WHERE id > 150 AND id % 3 > 0")
        db.query(f"UPDATE {name} SET ts = ts - interval '90 hours', n = 1 WHERE id BETWEEN 190 AND 196")
        db.query(f"INSERT INTO {name} (id, ts) VALUES (900, NULL), (901, '2024-01-03 05:00Z')")
    for order in ("ts DESC, id", "ts, id", "ts DESC NULLS LAST, id", "id DESC", "id", "n, id", "n DESC, id DESC"):
        both(db, f"SELECT id, ts, n FROM {{t}} ORDER BY {order} LIMIT 20")
        both(db, f"SELECT id FROM {{t}} WHERE n IN (1, 2) ORDER BY {order} LIMIT 9 OFFSET 4")
    monkeypatch.setattr("howdah.database.overlay.reaching.FEW", 3)
    both(db, "SELECT id FROM {t} ORDER BY id DESC LIMIT 20")
    both(db, "SELECT id FROM {t} WHERE abs(id) % 7 = 1 ORDER BY id DESC LIMIT 6")


def test_any_order_gives_what_a_plain_table_gives(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path / "base", 150, partition_by=[])
    for name in "tp":
        db.query(f"DELETE FROM {name} WHERE id % 10 = 3")
        db.query(f"UPDATE {name} SET f = -f WHERE id % 10 = 4")
    random_ = random.Random(5)
    keys = ["ts", "kind", "n", "f", "n % 3", "kind || 'x'", "v IS NULL", "-n", "upper(kind)"]
    for _ in range(120):
        order = [f"{key} {random_.choice(['', 'ASC', 'DESC'])} {random_.choice(['', '', 'NULLS FIRST', 'NULLS LAST'])}"
                 for key in random_.sample(keys, random_.randrange(1, 4))]  # fmt: skip
        where = random_.choice(["", "WHERE n > 3", "WHERE f > 0", "WHERE kind = 'a'", "WHERE length(kind) = 1", "WHERE n IS NULL OR n < 2",
                                "WHERE ts > '2024-01-04' AND n <> 4", "WHERE kind LIKE 'b%'"])  # fmt: skip
        tail = f"LIMIT {random_.randrange(0, 40)} {random_.choice(['', 'OFFSET 5'])}"
        both(db, f"SELECT *, n::text AS shown FROM {{t}} {where} ORDER BY {', '.join(order)}, id {tail}")


def test_names_of_results_come_before_those_of_columns(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path / "base", 90, partition_by=[])
    for sql in (
        "SELECT id, -id AS ts FROM {t} ORDER BY ts LIMIT 5",
        "SELECT id, ts::date FROM {t} ORDER BY ts DESC, id LIMIT 5",
        "SELECT id % 7 AS id, n FROM {t} ORDER BY id, n, {t}.id LIMIT 5",
        "SELECT count(*) FROM {t} LIMIT 5",
        "SELECT (SELECT count({t}.id)) FROM {t} LIMIT 5",
        "SELECT max(id), min(id) FROM {t} ORDER BY 1 LIMIT 5",
        "SELECT generate_series(1, n) AS g, id FROM {t} ORDER BY id DESC, g LIMIT 5",
        "SELECT row_number() OVER (ORDER BY id) AS r FROM {t} ORDER BY r DESC LIMIT 5",
        "SELECT DISTINCT n FROM {t} ORDER BY n LIMIT 5",
        "SELECT n, count(*) FROM {t} GROUP BY n ORDER BY n LIMIT 5",
        "SELECT n FROM {t} ORDER BY n FETCH FIRST 2 ROWS WITH TIES",
        "SELECT id FROM {t} ORDER BY id USING > LIMIT 3",
        "SELECT id FROM {t} WHERE id > (SELECT avg(id) FROM {t}) ORDER BY id LIMIT 3",
        "(SELECT id FROM {t} ORDER BY id LIMIT 3) UNION ALL (SELECT id FROM {t} ORDER BY id DESC LIMIT 3) ORDER BY 1",
        "WITH w AS (SELECT * FROM {t} ORDER BY ts DESC LIMIT 4) SELECT id FROM w ORDER BY id",
    ):
        both(db, sql)
    for wrong in (-1, 2**40):
        outcomes: list[Any] = []
        for name in "tp":
            try:
                outcomes.append(len(db.query(f"SELECT id FROM {name} LIMIT $1", wrong)))
            except Exception as error:
                outcomes.append(getattr(error, "sqlstate", None))
        assert outcomes[0] == outcomes[1]


def test_nearest_rows_of_every_tier(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(db, tmp_path / "base", 180)
    for name in "tp":
        db.query(f"DELETE FROM {name} WHERE id % 9 = 1")
        db.query(f"UPDATE {name} SET v = $1 WHERE id % 9 = 2", np.ones(DIM, np.float32))
    monkeypatch.setattr("howdah.database.overlay.fetching.MOST", 100)
    query = np.array([0.3, -1, 0.2, 0, 1], np.float32)
    text = str(query.tolist()).replace(" ", "")
    for metric in METRICS:
        for sql, params in (
            (f"SELECT id FROM {{t}} ORDER BY v {metric} $1, id LIMIT 12", (query,)),
            (f"SELECT id, v {metric} '{text}'::vector AS distance FROM {{t}} ORDER BY distance, id LIMIT 7", ()),
            (f"SELECT id, v {metric} $1 FROM {{t}} WHERE n = 3 ORDER BY 2, id LIMIT $2", (query, 4)),
            (f"SELECT id FROM {{t}} WHERE length(kind) = 1 AND n > 5 ORDER BY '{text}' {metric} v, id LIMIT 3", ()),
        ):
            found = both(db, sql, *params)
            assert found.files_read == db.tiers()[0].files
    monkeypatch.undo()
    both(
        db, f"SELECT id FROM {{t}} ORDER BY v <=> '{text}', id LIMIT 175"
    )  # beyond those without an angle, and null ones
    both(db, "SELECT id FROM {t} ORDER BY v <-> '[1,1,1,1,1]', id LIMIT 30")  # many at one distance
    for wrong in ("[1,2]", "[]", "x"):
        errors = []
        for name in "tp":
            with pytest.raises(Exception) as caught:
                db.query(f"SELECT id FROM {name} ORDER BY v <-> $1 LIMIT 3", wrong)
            errors.append((type(caught.value), getattr(caught.value, "sqlstate", None)))
        assert errors[0] == errors[1]


def test_tiers_and_versions_have_limits_too(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path / "base", 100, archive_after=0, archive_location=tmp_path / "cold")
    before = db.snapshots("t")[0].id
    found = db.query("SELECT id FROM t ORDER BY ts DESC LIMIT 3", tier="all")
    assert [row["id"] for row in found] == [100, 99, 98]
    found = db.query("SELECT id FROM t ORDER BY ts DESC LIMIT 3", tier="cold")
    assert ([row["id"] for row in found], found.skipped) == ([100, 99, 98], ())
    found = db.query("SELECT id FROM t ORDER BY ts DESC LIMIT 3")
    assert (list(found), found.complete) == ([], False)
    db.query("DELETE FROM t WHERE id = 100")
    db.flush()
    assert [r[0] for r in db.query("SELECT id FROM t ORDER BY id DESC LIMIT 2", as_of=before)] == [100, 99]


def test_rows_that_are_promoted_meanwhile_are_seen_once(
    db: Database, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction at read committed each statement sees what others have committed: also what they did to base rows while
    these were summed up, or while the first ones were looked for."""
    make(db, tmp_path / "base", 60, partition_by=[])
    monkeypatch.setattr("howdah.database.overlay.fetching.MOST", 50)
    with Database.open(database_url) as other:
        for module, sql, expected in (
            ("partials.summed", "SELECT count(*), sum(id) FROM t", (60, 1830)),
            ("reaching.first", "SELECT id FROM t ORDER BY id DESC LIMIT 1", (60,)),
        ):
            path = f"howdah.database.overlay.{module}"
            name = module.rpartition(".")[2]
            original = getattr(__import__(path.rpartition(".")[0], fromlist=[name]), name)
            calls: list[int] = []

            def meanwhile(*given: Any, original: Any = original, calls: list[int] = calls, **how: Any) -> Any:
                found = original(*given, **how)
                calls.append(1)
                if len(calls) == 1:
                    other.query("UPDATE t SET n = 100 WHERE id > 57")
                return found

            with monkeypatch.context() as patched:
                patched.setattr(path, meanwhile)
                with db.transaction() as tx:
                    assert tx.query("SELECT 1")[0][0] == 1
                    patched.setattr("howdah.database.overlay.fetching.MOST", 100)
                    assert tuple(tx.query(sql)[0]) == expected
                    assert len(calls) == 1
                    patched.setattr("howdah.database.overlay.fetching.MOST", 50)
                    assert tuple(tx.query(sql)[0]) == expected  # nobody came between: no row had to be bound
                    assert len(calls) == 2
            db.flush()


def test_sums_of_floating_numbers(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(db, tmp_path / "base", 200, partition_by=[])
    for name in "tp":
        db.execute(f"ALTER TABLE {name} ADD COLUMN r real")
        db.query(f"UPDATE {name} SET r = id / 4.0, f = CASE WHEN id % 3 > 0 THEN f END WHERE id > 50")
    db.flush()
    monkeypatch.setattr("howdah.database.overlay.fetching.MOST", 5)
    for sql in (
        "SELECT sum(f), avg(f), min(f), max(f), count(f) FROM {t} WHERE n = 2",
        "SELECT kind, min(f), max(f), min(r), max(r), sum(r), avg(r) FROM {t} GROUP BY kind ORDER BY kind",
        "SELECT sum(f) FROM {t} WHERE id BETWEEN 1 AND 12",
        "SELECT max(f), min(f) FROM {t} WHERE id < 0",
        "SELECT n, max(f) > 1, min(r) FROM {t} WHERE id > 20 GROUP BY n HAVING max(f) IS NOT NULL ORDER BY 1",
    ):
        both(db, sql)
    mine, plain = (db.query(f"SELECT sum(r), avg(r), max(r) FROM {name}")[0] for name in "tp")
    assert [type(v) for v in mine] == [type(v) for v in plain]
