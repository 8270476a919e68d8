"""Tiered tables: whatever has moved to the base, every statement sees each row once, or is refused."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pyiceberg.table import StaticTable

import howdah
from howdah import (
    Database,
    Error,
    InvalidInput,
    TierError,
    TieringRefused,
    UniqueViolation,
    Unsupported,
)
from tests.tiering import EPOCH, SHAPE, make, same


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def test_rows_are_seen_once_whatever_is_flushed_meanwhile(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 300, partition_by=[])
    total = db.query("SELECT sum(n) FROM t")[0][0]
    stop, errors = threading.Event(), []
    counts = {"reads": 0, "writes": 0, "flushes": 0}

    def guarded(work: Any) -> Any:
        def body() -> None:
            try:
                random_ = random.Random(threading.get_ident())
                with Database.open(database_url) as mine:
                    while not stop.is_set():
                        work(mine, random_)
            except BaseException as error:
                errors.append(error)
                stop.set()

        return threading.Thread(target=body)

    def read(mine: Database, random_: random.Random) -> None:
        row = mine.query("SELECT count(*) c, count(DISTINCT id) d, sum(n) s FROM t")[0]
        assert (row["c"], row["d"], row["s"]) == (300, 300, total)
        counts["reads"] += 1

    def write(mine: Database, random_: random.Random) -> None:
        a, b = random_.sample(range(1, 301), 2)

        def move(tx: Any) -> None:
            tx.query("UPDATE t SET n = n - 1 WHERE id = $1", min(a, b))
            tx.query("UPDATE t SET n = n + 1 WHERE id = $1", max(a, b))

        mine.transact(move, retries=20)
        with pytest.raises(UniqueViolation):
            mine.query("INSERT INTO t (id, ts, n) VALUES ($1, $2, 0)", a, EPOCH)
        counts["writes"] += 1

    def flush(mine: Database, random_: random.Random) -> None:
        counts["flushes"] += mine.flush().tables
        time.sleep(0.01)

    threads = [guarded(w) for w in (read, read, write, write, flush)]
    for thread in threads:
        thread.start()
    stop.wait(6)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert min(counts.values()) > 3
    read(db, random.Random(0))


DIE = """
import os, sys, howdah
from howdah.database.overlay import commits, flush
database_url, step = sys.argv[1:]
def die(*_, **__): os._exit(9)
with howdah.Database.open(database_url) as db:
    if step == "before":
        commits.commit = die
    elif step == "written":
        flush._cut = die
    else:
        from howdah.database.session import Session
        command = Session.command
        async def last(self, sql):
            if sql == "COMMIT" and step == "cut":
                die()
            await command(self, sql)
            if sql == "COMMIT":
                die()
        Session.command = last
    db.flush()
"""


@pytest.mark.parametrize("step", ["before", "written", "cut", "done"])
def test_a_flush_that_is_killed_loses_and_doubles_nothing(
    db: Database, database_url: str, tmp_path: Path, step: str
) -> None:
    make(db, tmp_path, 50)
    db.flush()
    for name in "tp":
        db.query(f"UPDATE {name} SET n = 100 WHERE id < 10")
        db.query(f"DELETE FROM {name} WHERE id = 20")
    assert subprocess.run([sys.executable, "-c", DIE, database_url, step], check=False).returncode == 9
    same(db)
    for name in "tp":
        db.query(f"UPDATE {name} SET n = 200 WHERE id IN (5, 30)")
    db.flush()
    same(db)
    assert db.tiers()[0].hot_rows == 0


def test_nobody_sees_a_part(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.flush()
    db.execute("CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT 1'")

    async def main() -> None:
        plain = await asyncpg.connect(database_url)
        for sql in (
            "SELECT * FROM t",
            "UPDATE t SET n = 1",
            "DELETE FROM t",
            "INSERT INTO t (id) VALUES (1)",
            "TRUNCATE t",
        ):
            with pytest.raises(asyncpg.PostgresError, match="tiered") as caught:
                await plain.execute(sql)
            assert caught.value.sqlstate == "HW001"
        assert await plain.fetchval("SELECT count(*) FROM ONLY t") == 0
        await plain.execute("VACUUM ANALYZE t")
        await plain.execute(
            "CREATE OR REPLACE FUNCTION total() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM t); END'"
        )
        await plain.close()

    asyncio.run(main())
    with pytest.raises(Unsupported, match="view, function or script"):
        db.query("SELECT total()")
    for sql in ("SELECT * FROM ONLY t", "SELECT xmin FROM t", "SELECT * FROM (SELECT * FROM t) u FOR UPDATE", "TRUNCATE t, p", "ALTER TABLE t ADD UNIQUE (n)",
                "SELECT * FROM t TABLESAMPLE system (10)", "CREATE MATERIALIZED VIEW v AS SELECT * FROM t",
                "WITH d AS (MERGE INTO t USING p ON t.id = p.id WHEN MATCHED THEN DELETE RETURNING 1) SELECT * FROM d",
                "WITH d AS (UPDATE t SET id = 80 WHERE id = 5 RETURNING id) SELECT * FROM d"):  # fmt: skip
        with pytest.raises(Unsupported):
            db.query(sql)
    db.query("CREATE INDEX ON t (n)")
    assert db.query("SELECT count(*) FROM t")[0][0] == 20
    assert sum(1 for _ in db.stream("SELECT * FROM t", chunk=3)) == 20
    db.execute("DELETE FROM t WHERE id = 1; CREATE TABLE x (y int); DELETE FROM public.t WHERE id = 2")
    assert db.query("SELECT count(*) FROM t")[0][0] == 18


def test_what_makes_a_view_is_noticed_however_it_is_said(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.flush()
    db.execute("CREATE PROCEDURE made() LANGUAGE plpgsql AS 'BEGIN CREATE VIEW seen AS SELECT * FROM t; END'")
    for sql in (
        "DO $$ BEGIN CREATE VIEW seen AS SELECT * FROM t; END $$",
        "CALL made()",
        "CREATE LOCAL TEMPORARY VIEW seen AS SELECT * FROM t",
        "/* a */ -- b\n" * 40 + "CREATE OR REPLACE VIEW seen AS SELECT * FROM t",
    ):
        with db.transaction() as tx:
            tx.execute(sql)
            assert tx.query("SELECT count(*) FROM seen")[0][0] == 20
            tx.rollback()
    assert db.query("/*a*/ " * 60 + "SELECT 1 AS one")[0]["one"] == 1


def test_others_may_be_let_read_hot_rows(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.flush()
    db.query("INSERT INTO t (id, ts, n) VALUES (100, now() + interval '1 hour', 1)")

    async def main() -> None:
        plain = await asyncpg.connect(database_url)
        with pytest.raises(asyncpg.PostgresError, match="tiered"):
            await plain.fetchval("SELECT count(*) FROM t")
        await asyncio.to_thread(
            lambda: db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts", allow_hot_only=True)
        )
        kept = await plain.prepare("SELECT count(*) FROM t")
        for _ in range(8):
            assert await kept.fetchval() == 1
        functions = {
            "r": "plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM t); END'",
            "w": "plpgsql AS 'BEGIN UPDATE t SET id = 5 WHERE id = 100; RETURN 1; END'",
            "d": "sql AS 'DELETE FROM t RETURNING n'",
        }
        for name, body in functions.items():
            await plain.execute(f"CREATE FUNCTION {name}() RETURNS bigint LANGUAGE {body}")
        assert await plain.fetchval("SELECT r()") == 1
        for name in "wd":
            with pytest.raises(asyncpg.PostgresError, match="tiered"):
                await plain.fetchval(f"SELECT {name}()")
        assert await plain.fetchval(" (WITH x AS (TABLE t) SELECT n FROM x)") == 1
        for sql in (
            *(
                "UPDATE t SET n = 2",
                "DELETE FROM t",
                "INSERT INTO t (id) VALUES (1)",
                "TRUNCATE t",
                "SELECT * FROM t FOR UPDATE",
            ),
            *(
                "WITH d AS (DELETE FROM t RETURNING id) SELECT * FROM d",
                "MERGE INTO t USING p ON t.id = p.id WHEN MATCHED THEN DELETE",
            ),
        ):
            with pytest.raises(asyncpg.PostgresError, match="tiered") as caught:
                await plain.execute(sql)
            assert caught.value.sqlstate == "HW001"
        assert (await asyncio.to_thread(db.query, "SELECT count(*) FROM t"))[0][0] == 21
        await asyncio.to_thread(lambda: db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts"))
        with pytest.raises(asyncpg.PostgresError, match="tiered"):
            await kept.fetchval()
        await plain.close()

    asyncio.run(main())
    with pytest.raises(InvalidInput, match="allow_hot_only"):
        db.tier("t", location=tmp_path / "base", allow_hot_only="yes")  # type: ignore[arg-type]  # on purpose


def test_a_table_that_others_tier_is_noticed(db: Database, database_url: str, tmp_path: Path) -> None:
    db.execute(f"CREATE TABLE t {SHAPE}; INSERT INTO t (id, ts) VALUES (1, '2024-01-01'), (2, '2024-01-01')")
    assert db.query("SELECT count(*) FROM t")[0][0] == 2
    with Database.open(database_url) as other:
        other.tier("t", location=str(tmp_path / "base"), hot_for=0, time_column="ts")
        other.flush()
        assert db.query("SELECT count(*) FROM t")[0][0] == 2
        assert db.query("UPDATE t SET n = 5 WHERE id = 1").affected == 1
        assert other.untier("t") == 1
    assert tuple(db.query("SELECT count(*), sum(n) FROM t")[0]) == (2, 5)


@pytest.mark.parametrize(
    ("ddl", "why"),
    [
        ("CREATE TABLE r (id int, ts timestamptz)", "no primary key"),
        ("CREATE TABLE r (id numeric PRIMARY KEY, ts timestamptz)", "its key column id is numeric"),
        (
            "CREATE TABLE q (id int PRIMARY KEY); CREATE TABLE r (id int PRIMARY KEY REFERENCES q, ts timestamptz)",
            "foreign key",
        ),
        ("CREATE TABLE r (id int PRIMARY KEY, ts timestamptz); CREATE TABLE q (r int REFERENCES r)", "refers to it"),
        (
            "CREATE TABLE r (id int PRIMARY KEY, ts timestamptz, m text); CREATE UNIQUE INDEX ON r (m) WHERE m > ''",
            "some of its rows",
        ),
        ("CREATE TABLE r (id int PRIMARY KEY, ts timestamptz) PARTITION BY RANGE (id)", "no ordinary table"),
        ("CREATE TABLE r (id int PRIMARY KEY, ts timestamptz); CREATE TABLE c () INHERITS (r)", "children"),
        ("CREATE TABLE r (id int PRIMARY KEY, ts timestamptz); ALTER TABLE r ENABLE ROW LEVEL SECURITY", "row level"),
        (
            "CREATE TABLE r (id int PRIMARY KEY, ts timestamptz); CREATE VIEW v AS TABLE r; CREATE MATERIALIZED VIEW m AS TABLE v",
            "materialized view",
        ),
        ("CREATE UNLOGGED TABLE r (id int PRIMARY KEY, ts timestamptz)", "unlogged"),
        ("CREATE TABLE r (id int PRIMARY KEY, ts text)", "no date or timestamp"),
    ],
)
def test_what_cannot_be_tiered_is_refused_with_the_reason(db: Database, tmp_path: Path, ddl: str, why: str) -> None:
    db.execute(ddl)
    with pytest.raises(TieringRefused, match=why):
        db.tier("r", location=str(tmp_path / "base"), time_column="ts")
    assert db.tiers() == []


def test_bad_arguments_change_nothing(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE r (id int PRIMARY KEY, ts timestamptz)")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    arguments: Any
    for arguments in ({"hot_for": -1}, {"flush_rows": 0}, {"flush_every": 0}):
        with pytest.raises(InvalidInput):
            db.tier("r", location=str(tmp_path / "base"), time_column="ts", **arguments)
    with pytest.raises(InvalidInput, match="no such table"):
        db.tier("nowhere", location=str(tmp_path / "base"), time_column="ts")
    with pytest.raises(TierError, match="must be empty"):
        db.tier("r", location=str(tmp_path / "full"), time_column="ts")
    with pytest.raises(TieringRefused, match="track_commit_timestamp"):
        db.tier("r", location=str(tmp_path / "base"))
    for call in (db.untier, db.flush):
        with pytest.raises(InvalidInput, match="not tiered"):
            call("r")
    assert db.query("SELECT count(*) FROM r")[0][0] == 0


def test_the_base_is_an_iceberg_table_and_a_broken_one_is_told(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path, 40)
    db.flush()
    metadata = db.query("SELECT metadata FROM howdah.tiers")[0][0]
    rows = StaticTable.from_metadata(metadata).scan().to_arrow().sort_by("id").to_pylist()
    assert [r["id"] for r in rows] == list(range(1, 41))
    assert (rows[0]["ts"], rows[0]["money"], rows[0]["tags"]) == (
        EPOCH + timedelta(hours=1),
        Decimal("0.13"),
        ["a", "1"],
    )
    for file in (tmp_path / "base").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(TierError, match="missing"):
        db.query("SELECT count(id) FROM t")
    assert db.query("SELECT count(*) FROM t WHERE id > 1000")[0][0] == 0  # statistics say that no file has it


def test_moments_without_a_twin_stay_hot(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, ts timestamptz, d date, x float8, b bytea, i interval)")
    db.query(
        "INSERT INTO t VALUES (1, '-infinity', NULL, 'NaN', '\\x00ff', '1 mon 2 days'), (2, '2024-01-01', 'infinity', 'Infinity', '', '1 day'),"
        " (3, '0044-03-15 BC', '2024-02-29', '-0.0', NULL, '24:00'), (4, '2024-01-01 00:00:00.000001+05:45', '0001-01-03', 5e-324, '\\x', NULL)"
    )
    text = "SELECT id, ts::text, d::text, x::text, b::text, i::text FROM t ORDER BY id"
    before = [tuple(r) for r in db.query(text)]
    db.tier("t", location=str(tmp_path / "base"), hot_for=0, time_column="ts")
    assert db.flush().rows >= 1
    assert [tuple(r) for r in db.query(text)] == before
    assert db.tiers()[0].hot_rows >= 2


def test_no_way_in_doubles_a_row(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.flush()
    with Database.open(database_url) as fresh, pytest.raises(UniqueViolation):
        fresh.query("INSERT INTO t (id) VALUES (1)")  # the first statement of a handle
    for sql in (
        "INSERT INTO t (id) VALUES (1); SELECT 1",
        "DO $$ BEGIN INSERT INTO t (id) VALUES (1); END $$",
        "CREATE UNIQUE INDEX ON t (n)",
    ):
        with pytest.raises(Unsupported):
            db.query(sql)
    for sql in (
        "WITH t AS (SELECT 1 AS id), w AS (INSERT INTO t SELECT id FROM t RETURNING id) SELECT * FROM w",
        "WITH x AS (INSERT INTO t (id) VALUES (1)) SELECT 1",
    ):
        with pytest.raises(UniqueViolation):
            db.query(sql)
    with pytest.raises(Unsupported):
        db.execute("CREATE FUNCTION put() RETURNS void LANGUAGE sql AS 'INSERT INTO t (id) VALUES (1)'; SELECT put()")
    with Database.open(database_url) as fresh:
        with pytest.raises(UniqueViolation):
            fresh.copy_in("t", [(1,)], columns=["id"])
        out: list[bytes] = []
        assert fresh.copy_out("t", out.append) == 20
        assert fresh.copy_out("SELECT id FROM t WHERE id < $1", out.append, 5) == 4
        assert fresh.arrow("SELECT id FROM t").num_rows == 20
        with pytest.raises(Unsupported):
            fresh.copy_out("SELECT * FROM ONLY t", out.append)
    same(db)


def test_an_error_after_an_insert_cannot_be_committed(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(db, tmp_path, 20)
    db.flush()

    def broken(*_: object, **__: object) -> None:
        raise TierError("the disk is gone")

    monkeypatch.setattr("howdah.database.overlay.scan.Scan.take", broken)
    with pytest.raises(Error), db.transaction() as tx, pytest.raises(TierError):
        tx.query("INSERT INTO t (id) VALUES (1)")
    monkeypatch.undo()
    same(db)


def test_another_shape_and_another_name(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path, 10)
    db.flush()
    assert db.query("SELECT count(*) FROM t")[0][0] == 10
    with db.transaction() as tx:
        tx.execute(
            "CREATE SCHEMA zz; CREATE TABLE zz.t (id int); INSERT INTO zz.t VALUES (900); SET LOCAL search_path = zz, public"
        )
        with pytest.raises(Unsupported, match="not what its name means"):
            tx.query("SELECT id FROM t")
        tx.rollback()
    db.untier("t")
    for name in "tp":
        db.execute(
            f"ALTER TABLE {name} RENAME kind TO c; ALTER TABLE {name} RENAME n TO kind; ALTER TABLE {name} RENAME c TO n"
        )
    db.tier("t", location=str(tmp_path / "again"), hot_for=0, time_column="ts")
    db.flush()
    assert [r["n"] for r in db.query("SELECT n FROM t ORDER BY id")] == [
        r["n"] for r in db.query("SELECT n FROM p ORDER BY id")
    ]

    async def alter() -> None:
        plain = await asyncpg.connect(db._async._server.arguments["dsn"])  # type: ignore[union-attr]  # it is started
        await plain.execute("ALTER TABLE t ADD more int")
        await plain.close()

    asyncio.run(alter())
    with pytest.raises(TierError, match="unique indexes were changed"):
        db.query("SELECT * FROM t")
    with pytest.raises(TieringRefused, match="dot"):
        db.execute('CREATE TABLE d ("a.b" int PRIMARY KEY, ts timestamptz)')
        db.tier("d", location=str(tmp_path / "d"), hot_for=0, time_column="ts")


def test_conditions_that_answer_differently_and_composite_keys(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE c (tenant text DEFAULT 'acme', id uuid, ts timestamptz, v text, PRIMARY KEY (tenant, id))")
    db.query("INSERT INTO c SELECT 'acme', md5(n::text)::uuid, '2024-01-01', n::text FROM generate_series(1, 3000) n")
    db.tier("c", location=str(tmp_path / "c"), hot_for=0, time_column="ts")
    assert db.flush().rows == 3000
    for _ in range(3):
        gone = db.query("DELETE FROM c WHERE id = (SELECT id FROM (SELECT md5(n::text)::uuid AS id FROM generate_series(1, 100) n) x"
                        " ORDER BY random() LIMIT 1) RETURNING v")  # fmt: skip
        assert gone.affected <= 1
    left = db.query("SELECT count(*) FROM c")[0][0]
    assert db.query("UPDATE c SET v = upper(v) || '!'").affected == left
    assert db.flush().rows == left
    upsert = "INSERT INTO c (id, v) VALUES (md5($1)::uuid, 'new') ON CONFLICT (tenant, id) DO UPDATE SET v = excluded.v RETURNING v"
    assert db.query(upsert.replace("md5($1)::uuid", "gen_random_uuid()"))[0]["v"] == "new"
    assert db.query(upsert.replace("$1", "replace($1, '_', '')"), "29_99")[0]["v"] == "new"
    assert (
        db.query("INSERT INTO c (id, v) SELECT md5(n::text)::uuid, 'x' FROM generate_series(5000, 8000) n").affected
        == 3001
    )
    with pytest.raises(UniqueViolation):
        db.query("INSERT INTO c (id) VALUES (md5('2999')::uuid)")
    assert db.query("SELECT count(*) FROM c WHERE v = 'new'")[0][0] == 2


def test_what_waits_can_be_timed_out(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 10)
    db.flush()
    with Database.open(database_url) as other, other.transaction() as tx:
        tx.query(f"SELECT pg_advisory_xact_lock(1752, {db._async._tiers.one('t').oid - 2**31})")
        with pytest.raises(howdah.QueryTimeout):
            db.query("UPDATE t SET n = 1 WHERE id = 1", timeout=0.2)
    with pytest.raises(Unsupported, match="read-only"), db.transaction() as tx:
        tx.query("SET TRANSACTION READ ONLY")
        tx.query("SELECT * FROM t")


def test_views_see_every_row(db: Database, database_url: str, tmp_path: Path) -> None:
    db.execute("CREATE TABLE other (id int PRIMARY KEY, label text)")
    db.query("INSERT INTO other SELECT x, 'l' || x FROM generate_series(0, 6) x")
    make(db, tmp_path, 100, partition_by="day(ts)")
    for name in "tp":
        db.execute(
            f"CREATE VIEW late_{name} AS SELECT id, ts AS at, kind, n FROM {name} WHERE n > 2;"
            f"CREATE VIEW sums_{name} (kind, many) AS SELECT kind, count(*) FROM {name} GROUP BY kind;"
            f"CREATE VIEW named_{name} AS SELECT x.id, o.label, x.at FROM late_{name} x LEFT JOIN other o ON o.id = x.n;"
            f"CREATE VIEW first_{name} AS SELECT * FROM {name} ORDER BY id LIMIT 3;"
            f"CREATE VIEW ids_{name} AS SELECT id FROM {name} UNION ALL SELECT id FROM other"
        )
    db.flush()
    for name in "tp":
        db.query(f"UPDATE {name} SET n = 6, kind = 'changed' WHERE id IN (4, 50)")
        db.query(f"DELETE FROM {name} WHERE id = 7")
        db.query(f"INSERT INTO {name} (id, ts, n) VALUES (101, '2024-01-09Z', 5)")

    def both(sql: str, *params: Any) -> howdah.Rows:
        mine, plain = (db.query(sql.replace("{t}", name), *params) for name in "tp")
        assert list(map(repr, map(tuple, mine))) == list(map(repr, map(tuple, plain)))
        assert mine.columns == plain.columns
        return mine

    both("SELECT * FROM late_{t} ORDER BY id")
    both("SELECT * FROM sums_{t} ORDER BY 1")
    both("SELECT many, v.kind FROM sums_{t} AS v (kind, many) WHERE v.many > $1 ORDER BY 2", 3)
    both("SELECT * FROM named_{t} WHERE label IS NOT NULL ORDER BY id")
    both("SELECT * FROM first_{t} WHERE id > 2")
    both("SELECT count(*) FROM ids_{t} WHERE id = 5")
    both(
        "SELECT a.id FROM late_{t} a JOIN {t} b USING (id) WHERE b.n = 4 AND EXISTS (SELECT FROM ids_{t} i WHERE i.id = a.n) ORDER BY 1"
    )
    both("WITH late_{t} AS (SELECT 1 AS id) SELECT * FROM late_{t}")
    both("WITH x AS (TABLE late_{t}) SELECT max(at), count(*) FROM x")
    assert (
        both(
            "SELECT * FROM late_{t} WHERE at >= $1 AND at < $2 ORDER BY 1", EPOCH, EPOCH + timedelta(hours=9)
        ).files_read
        == 1
    )
    assert both("SELECT * FROM named_{t} WHERE id = $1", 60).files_read == 1
    assert both("SELECT x.id FROM named_{t} x WHERE x.id = 61").files_read == 1
    assert [r[0] for r in db.stream("SELECT id FROM late_t WHERE id < 10 ORDER BY 1")] == [
        r[0] for r in db.query("SELECT id FROM late_p WHERE id < 10 ORDER BY 1")
    ]
    assert db.query("SELECT count(*) FROM late_t", tier="hot")[0][0] == 3

    # What is written over a view is refused; what others make of one is noticed.
    for sql in ("UPDATE late_t SET n = 9 WHERE id = 60", "INSERT INTO late_t (id) VALUES (900)", "DELETE FROM late_t",
                "SELECT * FROM late_t FOR UPDATE", "CREATE MATERIALIZED VIEW m AS TABLE late_t"):  # fmt: skip
        with pytest.raises(Unsupported):
            db.query(sql)
    with Database.open(database_url) as other:
        other.execute("CREATE OR REPLACE VIEW late_t AS SELECT id, ts AS at, kind, n FROM t WHERE n > 4")
        other.execute("CREATE OR REPLACE VIEW late_p AS SELECT id, ts AS at, kind, n FROM p WHERE n > 4")
        both("SELECT * FROM late_{t} ORDER BY id")
        both("SELECT * FROM named_{t} ORDER BY id")
        other.execute("CREATE VIEW new_t AS TABLE late_t; CREATE VIEW new_p AS TABLE late_p")
        both("SELECT * FROM new_{t} ORDER BY id")
        other.execute("DROP VIEW new_t; DROP VIEW new_p")
    with pytest.raises(howdah.UndefinedTable):
        db.query("SELECT * FROM new_t ORDER BY id")
    for name in "tp":
        db.query(f"CREATE TABLE copy_{name} AS SELECT id, n FROM {name} WHERE n > $1", 3)
    both("SELECT * FROM copy_{t} ORDER BY 1")
    db.untier("t")
    both("SELECT * FROM named_{t} ORDER BY id")


def test_merge(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path, 100, partition_by="day(ts)")
    db.flush()
    db.execute("CREATE TABLE news (k bigint, v int); INSERT INTO news VALUES (3, 30), (4, 40), (200, 50), (201, NULL)")

    def both(sql: str, *params: Any) -> howdah.Rows:
        found: list[Any] = []
        for name in "tp":
            try:
                found.append(db.query(sql.replace("{t}", name), *params))
            except howdah.QueryError as error:
                found.append((type(error), error.sqlstate))
        mine, plain = found
        if isinstance(plain, tuple):
            assert mine == plain
            return howdah.Rows([], lambda: (), "", 0)
        assert sorted(map(repr, map(tuple, mine))) == sorted(map(repr, map(tuple, plain)))
        assert (mine.columns, mine.affected) == (plain.columns, plain.affected)
        same(db)
        assert isinstance(mine, howdah.Rows)
        return mine

    upsert = (
        "MERGE INTO {t} USING news ON {t}.id = news.k WHEN MATCHED THEN UPDATE SET n = v"
        " WHEN NOT MATCHED THEN INSERT (id, n) VALUES (k, v)"
    )
    found = both(upsert)
    assert (found.affected, found.status, found.columns, found.files_read) == (4, "MERGE 4", (), 1)
    both(upsert + " RETURNING merge_action() AS did, news.*, {t}.id, old.n, new.n")
    db.flush()
    both(upsert + " RETURNING *")
    # A row that no source row matches, though its key is there.
    both(
        "MERGE INTO {t} x USING news ON x.id = k AND x.n > 1000 WHEN NOT MATCHED THEN INSERT (id, n) VALUES (k + 7, v)"
    )
    both("MERGE INTO {t} x USING news ON x.id = k + $1 WHEN MATCHED THEN DELETE RETURNING x.*", 1)
    both(
        "WITH s AS (SELECT k FROM news WHERE v > $1) MERGE INTO {t} x USING s ON x.id = s.k WHEN MATCHED THEN DELETE",
        35,
    )
    both(
        "MERGE INTO {t} x USING news ON x.id = k WHEN NOT MATCHED BY SOURCE AND x.n = 2 THEN DELETE WHEN MATCHED THEN DO NOTHING"
    )
    both(
        "MERGE INTO {t} x USING (SELECT 5 AS k FROM generate_series(1, 2)) s ON x.id = k WHEN MATCHED THEN UPDATE SET n = 1"
    )
    both(
        "MERGE INTO {t} x USING (VALUES (6.0), (6.5), (1e30)) s(k) ON x.id = k WHEN MATCHED THEN UPDATE SET n = 77 RETURNING k, n"
    )
    both("MERGE INTO {t} x USING {t} y ON x.id = y.id + 1 WHEN MATCHED AND y.n = 3 THEN UPDATE SET n = y.n * 100 + x.n")
    db.execute("CREATE VIEW v_t AS SELECT id FROM t; CREATE VIEW v_p AS SELECT id FROM p")
    both("MERGE INTO {t} x USING v_{t} v ON x.id = v.id + 50 WHEN MATCHED THEN UPDATE SET kind = 'seen'")
    both("MERGE INTO news USING {t} ON {t}.id = k WHEN MATCHED THEN UPDATE SET v = {t}.n RETURNING *")
    with db.transaction() as tx, tx.transaction() as inner:
        assert inner.query(upsert.replace("{t}", "t")).affected == 4
        tx_rows = inner.query("SELECT count(*) FROM t WHERE id IN (200, 201)")
        assert tx_rows[0][0] == 2
        inner.rollback()
    same(db)
    both("MERGE INTO {t} x USING news ON x.id = $1 WHEN MATCHED AND k = 3 THEN DELETE RETURNING x.id", 90)
    both("MERGE INTO {t} x USING news ON x.id = 91 AND k = 4 WHEN MATCHED THEN UPDATE SET n = v RETURNING x.id, k")
    # Keys that are compared otherwise than by their text.
    for name in "tp":
        db.execute(
            f"CREATE TABLE k_{name} (id text PRIMARY KEY, ts date, n int); INSERT INTO k_{name} VALUES ('ab', '2024-01-01', 1)"
        )
    db.execute("CREATE TABLE padded (k char(5)); INSERT INTO padded VALUES ('ab')")
    db.tier("k_t", location=tmp_path / "keys", hot_for=0, time_column="ts")
    db.flush()
    both("MERGE INTO k_{t} x USING padded s ON x.id = s.k WHEN MATCHED THEN UPDATE SET n = 5 RETURNING *")
    # A source that is tiered, too, and was made later.
    for name in "tp":
        db.execute(f"CREATE TABLE s_{name} (id bigint PRIMARY KEY, ts timestamptz, n int)")
        db.query(f"INSERT INTO s_{name} SELECT x, '2024-01-01Z', x FROM generate_series(60, 70) x")
    db.tier("s_t", location=tmp_path / "sources", hot_for=0, time_column="ts")
    db.flush()
    both("MERGE INTO {t} x USING s_{t} s ON x.id = s.id WHEN MATCHED THEN UPDATE SET n = s.n + 1000")
    both("MERGE INTO {t} x USING s_{t} s JOIN news ON s.id > k ON x.id = s.id + k WHEN MATCHED THEN DELETE")
    for sql in (
        "MERGE INTO t USING news ON t.id = k WHEN MATCHED THEN UPDATE SET id = k + 1",
        "MERGE INTO t USING (SELECT (random() * 10)::int AS k) s ON t.id = k WHEN MATCHED THEN DELETE",
        "MERGE INTO t USING news ON t.ctid = '(0,1)' WHEN MATCHED THEN DELETE",
    ):
        with pytest.raises(Unsupported):
            db.query(sql)
    same(db)


def test_a_tiered_table_can_be_dropped(db: Database, database_url: str, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.flush()
    db.execute("CREATE VIEW v AS SELECT id FROM t")
    with pytest.raises(howdah.QueryError) as caught:
        db.query("DROP TABLE t")
    assert caught.value.sqlstate == "2BP01"
    assert "howdah" not in str(caught.value)
    assert db.query("SELECT count(*) FROM v")[0][0] == 20
    with db.transaction() as tx:
        tx.query("DROP TABLE IF EXISTS nothing, public.t, p CASCADE")
        tx.rollback()
    assert db.query("SELECT count(*) FROM v")[0][0] == 20
    with Database.open(database_url) as other:
        other.query("DROP VIEW v")
        other.query("DROP TABLE t")
        other.query("CREATE TABLE t (id int)")
        db.query("ALTER TABLE t ADD COLUMN x int")
        db.query("ALTER TABLE t ADD COLUMN ts date, ADD PRIMARY KEY (id)")
        db.tier("t", location=tmp_path / "again", time_column="ts")
    with db.transaction() as tx:
        tx.query("DROP TABLE t")
        tx.query("CREATE TABLE t (id int PRIMARY KEY, ts date)")
        tx.query("ALTER TABLE t ADD COLUMN y int")
        assert tx.query("SELECT * FROM t").columns == ("id", "ts", "y")
    db.tier("t", location=tmp_path / "third", time_column="ts")
    db.execute("DROP TABLE t CASCADE; CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    assert db.query("SELECT count(*) FROM t")[0][0] == 1
    assert db.tiers() == []
    left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'howdah'::regnamespace AND relname ~ '[0-9]'"
    assert db.query(left)[0][0] == 0


def test_inserts_in_common_table_expressions(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path, 20)
    db.execute("CREATE TABLE child (parent bigint, note text); CREATE TABLE old (id bigint PRIMARY KEY, n int)")
    db.query("INSERT INTO old SELECT n, n FROM generate_series(15, 25) n")
    db.flush()
    both = "WITH t_new AS (INSERT INTO {t} (id, kind) VALUES ($1, 'new') RETURNING id, kind) INSERT INTO child SELECT id, kind FROM t_new"
    for name in "tp":
        assert db.query(both.format(t=name), 50).affected == 1
        for key in (50, 7):  # in the heap, in the base
            with pytest.raises(UniqueViolation) as told:
                db.query(both.format(t=name), key)
            assert told.value.sqlstate == "23505"
        assert db.query("SELECT count(*) FROM child")[0][0] == 1 + (name == "p")
        moved = f"WITH o AS (DELETE FROM old WHERE id > 22 RETURNING *) INSERT INTO {name} (id, n) SELECT id + 100, n FROM o RETURNING id"
        with db.transaction() as tx:
            assert sorted(r[0] for r in tx.query(moved)) == [123, 124, 125]
            with pytest.raises(UniqueViolation), tx.transaction() as inner:
                inner.query(f"WITH o AS (DELETE FROM old RETURNING *) INSERT INTO {name} (id, n) SELECT id, n FROM o")
            assert tx.query("SELECT count(*) FROM old")[0][0] == 8
            db_rows = tx.query(f"WITH i AS (INSERT INTO {name} (id) VALUES (60)) SELECT count(*) FROM {name}")
            assert db_rows[0][0] == 24  # what it inserts it does not see
            tx.query("INSERT INTO old SELECT n, n FROM generate_series(23, 25) n")
    same(db)
    for sql in (
        "WITH i AS (INSERT INTO t (id) VALUES (3) ON CONFLICT DO NOTHING RETURNING id) SELECT * FROM i",
        "WITH o AS (DELETE FROM old RETURNING id) INSERT INTO t (id) SELECT id FROM o ON CONFLICT DO NOTHING",
        "WITH i AS (MERGE INTO t USING old ON old.id = t.id WHEN MATCHED THEN DELETE RETURNING t.id) SELECT * FROM i",
    ):
        with pytest.raises(Unsupported):
            db.query(sql)
    with pytest.raises(Unsupported, match="use query"):
        list(db.stream("WITH i AS (INSERT INTO t (id) VALUES (500) RETURNING id) SELECT * FROM i"))
    assert db.query("WITH i AS (INSERT INTO t (id) VALUES (abs(-500)) RETURNING id) SELECT * FROM i")[0][0] == 500
    db.query("DELETE FROM t WHERE id = 500")
    db.flush()
    same(db)
