"""What a plan that reads less could get wrong: parameters and views that answer otherwise by themselves, names, ties, distances."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howdah import AsyncDatabase, Database, QueryError, QueryTimeout, Unsupported
from tests.tiering import outcome

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        for name in "tp":
            opened.execute(
                f'CREATE TABLE {name} (id int PRIMARY KEY, ts timestamptz, d date, n int, f float8, r real, c text, v vector(3), j json, "coalesce" int, "case" int)'
            )
            opened.execute(
                f"INSERT INTO {name} SELECT x, timestamptz '2024-01-01Z' + x * interval '1 hour', date '2024-01-01' + x / 24, x % 7, x / 10.0,"
                f" CASE WHEN x % 3 = 0 THEN 'NaN' ELSE x / 10.0 END, 'c' || x % 5, ARRAY[x % 5, 1, 2]::vector, '{{}}', -x, -x FROM generate_series(1, 90) x"
            )
        opened.execute("CREATE TABLE o AS SELECT id, d, r, f FROM p WHERE id <= 60")
        opened.execute(
            "CREATE VIEW rnd AS SELECT id FROM o ORDER BY random() LIMIT 30; CREATE VIEW maybe AS SELECT id, random() AS x FROM o"
        )
        opened.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
        opened.flush()
        for name in "tp":
            opened.execute(f"DELETE FROM {name} WHERE id % 19 = 3; UPDATE {name} SET n = 9 WHERE id % 19 = 5")
        yield opened


def both(db: Database, sql: str, *params: Any) -> Any:
    mine, plain = (outcome(db, sql.replace("{t}", name), list(params), {}) for name in "tp")
    assert mine == plain, sql
    rows = [[repr(tuple(r)) for r in db.query(f"SELECT * FROM {name} ORDER BY id")] for name in "tp"]
    assert rows[0] == rows[1], sql
    return mine


def test_a_parameter_means_the_same_in_each_part(db: Database) -> None:
    for sql, value in (
        ("SELECT {t}.id FROM {t} JOIN o s ON s.id = {t}.id WHERE {t}.ts < $1 AND s.d < $1 ORDER BY 1", NOON),
        ("SELECT id FROM {t} WHERE ts < $1 AND id IN (SELECT id FROM o WHERE d < $1) ORDER BY 1", NOON),
        ("SELECT {t}.id FROM {t} JOIN o s ON s.id = {t}.id WHERE {t}.f <> $1 AND s.r > $1 ORDER BY 1", 0.1),
        ("SELECT id, $1::timestamptz FROM {t} WHERE d >= $1 AND length(c) = 2 ORDER BY id LIMIT 1", NOON),
        ("SELECT id, f - $1 AS x FROM {t} WHERE r >= $1 AND length(c) = 2 ORDER BY id LIMIT 2", 0.4),
        ("SELECT id, $1::timestamptz FROM {t} WHERE d < $1 AND id < 5 ORDER BY id FOR UPDATE", NOON),
        (
            "SELECT id, $1::timestamptz FROM {t} WHERE d < $1 AND id < 50 ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED",
            NOON,
        ),
        (
            "WITH a AS (SELECT $1::timestamptz c), u AS (UPDATE {t} SET n = -1 WHERE d < $1 AND id < 30 RETURNING id) SELECT count(*) FROM u",
            NOON,
        ),
        (
            "WITH a AS (SELECT $1::timestamptz c), u AS (DELETE FROM {t} WHERE d < $1 AND id < 9 RETURNING id) SELECT count(*) FROM u",
            NOON,
        ),
        ("SELECT id, $1::numeric FROM {t} WHERE n < $1 / 2 AND id > 10 ORDER BY id FOR UPDATE", 5),
        ("SELECT {t}.id, $1::numeric FROM {t} JOIN o ON o.id = {t}.id WHERE o.id < $1 / 2 ORDER BY 1", 27),
        ("INSERT INTO {t} (id, f) VALUES (9, $1::numeric) ON CONFLICT (id) DO UPDATE SET f = $1 / 2 RETURNING f", 5),
        ("INSERT INTO {t} (id, n) SELECT 32, $1::float8::int ON CONFLICT (id) DO UPDATE SET c = 'x'", 2.6),
    ):
        both(db, sql, value)
    with pytest.raises(Unsupported, match="more than once"):
        db.query(
            "INSERT INTO t (id, c) SELECT 32 + (SELECT 0), $1::float8::text ON CONFLICT (id) DO UPDATE SET n = $1", 2.6
        )
    both(db, "SELECT count(*) FROM {t}")


def test_what_answers_otherwise_is_asked_once(db: Database) -> None:
    for _ in range(5):
        for sql, low, high in (
            ("SELECT count(*) FROM t WHERE id IN (SELECT id FROM rnd)", 20, 30),
            ("SELECT count(*) FROM t JOIN rnd USING (id)", 20, 30),
            ("SELECT count(*) FROM t JOIN maybe s ON s.id = t.id WHERE s.x < 2", 56, 56),
            ("SELECT count(*) FROM t JOIN maybe s ON s.id = t.id WHERE s.x < 0.5", 12, 45),
            ("SELECT count(*) FROM t WHERE id IN (SELECT id FROM o TABLESAMPLE BERNOULLI (50))", 12, 45),
        ):
            assert low <= db.query(sql)[0][0] <= high, sql
    for sql in (
        "MERGE INTO t USING rnd ON t.id = rnd.id WHEN MATCHED THEN UPDATE SET n = 1",
        "MERGE INTO t USING maybe ON t.id = maybe.id WHEN MATCHED THEN DELETE",
        "MERGE INTO t USING (SELECT * FROM o TABLESAMPLE BERNOULLI (50)) s ON t.id = s.id WHEN MATCHED THEN DELETE",
    ):
        with pytest.raises(Unsupported, match="from"):
            db.query(sql)
    assert db.query("INSERT INTO t (id, n) SELECT id, 77 FROM rnd ON CONFLICT (id) DO UPDATE SET n = 77").affected == 30
    assert db.query("SELECT count(*) FROM t WHERE n = 77")[0][0] == 30


def test_many_rows_have_few_values(db: Database) -> None:
    db.execute(
        "CREATE TABLE log (tid int); INSERT INTO log SELECT 1 FROM generate_series(1, 10050); INSERT INTO log VALUES (2)"
    )
    both(db, "SELECT DISTINCT {t}.id FROM {t} JOIN log ON {t}.id = log.tid ORDER BY 1")
    both(db, "SELECT id FROM {t} WHERE id IN (SELECT tid FROM log) ORDER BY 1")
    db.execute("INSERT INTO log SELECT 1 FROM generate_series(1, 100000); INSERT INTO log VALUES (4)")
    both(db, "SELECT id FROM {t} WHERE id IN (SELECT tid FROM log) ORDER BY 1")


def test_names_of_joined_tables_are_their_own(db: Database) -> None:
    db.execute(
        "CREATE SCHEMA s1; CREATE SCHEMA s2; CREATE TABLE s1.w (id int, x int); CREATE TABLE s2.w (id int, x int)"
    )
    db.execute(
        "INSERT INTO s1.w SELECT n, n + 10 FROM generate_series(1, 20) n; INSERT INTO s2.w SELECT n, n + 3 FROM generate_series(1, 20) n"
    )
    db.execute("CREATE TABLE q AS SELECT id + 30 AS id FROM o")
    for sql in (
        "SELECT {t}.id FROM {t} JOIN s1.w ON {t}.id = w.id JOIN s2.w ON s2.w.x = {t}.id + 5 ORDER BY 1",
        "SELECT {t}.id FROM {t} JOIN q AS o ON {t}.id = o.id JOIN (o CROSS JOIN s1.w) AS j(a, b, c, d, e, f) ON a = {t}.id + 1 ORDER BY 1",
        "SELECT o.id FROM q AS o WHERE EXISTS (SELECT 1 FROM {t}, (o CROSS JOIN s1.w) AS j(a, b, c, d, e, f) WHERE {t}.id = o.id) ORDER BY 1",
        "SELECT {t}.id FROM {t} JOIN (s1.w JOIN s2.w ON s1.w.id = s2.w.id) AS j(a, b, c, d) ON {t}.id = j.b ORDER BY 1",
    ):
        both(db, sql)


def test_results_without_names_and_odd_aggregates(db: Database) -> None:
    for sql in (
        "SELECT JSON_ARRAYAGG(id ORDER BY id) FROM {t} LIMIT 1",
        "SELECT JSON_OBJECTAGG(id: n) FROM {t} WHERE id < 3 LIMIT 1",
        'SELECT id, coalesce(-id, 0) FROM {t} ORDER BY "coalesce", id DESC LIMIT 3',
        'SELECT id, CASE WHEN true THEN -id END FROM {t} ORDER BY "case", id DESC LIMIT 3',
        'SELECT id FROM {t} ORDER BY "case", id DESC LIMIT 3',
        "SELECT id, c, n, count(*) FROM {t} GROUP BY 1 ORDER BY 1 LIMIT 4",
        "SELECT id AS x, c, count(*) FROM {t} GROUP BY x ORDER BY 1 LIMIT 4",
    ):
        both(db, sql)


def test_ties_are_whole(db: Database) -> None:
    for sql in (
        "SELECT id FROM {t} ORDER BY r DESC, -id LIMIT 3",
        "SELECT id FROM {t} ORDER BY r, -id LIMIT 3 OFFSET 55",
        "SELECT id FROM {t} ORDER BY n, lower(c), -id LIMIT 30",
        "SELECT id FROM {t} ORDER BY n DESC NULLS LAST, lower(c), -id LIMIT 30 OFFSET 20",
    ):
        both(db, sql)


def test_distances_that_single_precision_cannot_tell(db: Database) -> None:
    odd = {
        1: [1e-25, 1e-25, 1e-25],
        2: [1e25, 1e25, 1e25],
        4: [1, 0, 0],
        6: [2, 1.9, 1.6],
        7: [5, 1e8, -1e8],
        8: [0, 0, 0],
        9: [3e38, 1, 1],
    }
    for kept in ((4, 6, 7, 8), (1, 4, 6), (2, 4, 6), tuple(odd)):
        for name in "tp":
            db.query(f"UPDATE {name} SET v = NULL WHERE id < 60")
            for key in kept:
                db.query(f"UPDATE {name} SET v = $2 WHERE id = $1", key, np.array(odd[key], np.float32))
        db.flush()
        for metric in ("<->", "<=>", "<#>", "<+>"):
            for query in ("[1,0,0]", "[1,1,1]", "[3e38,1,1]", "[1e-30,0,0]"):
                for limit in (1, 4):
                    both(db, f"SELECT id FROM {{t}} WHERE id < 60 ORDER BY v {metric} '{query}', id LIMIT {limit}")


def test_cutting_short_what_is_asked_first(database_url: str, db: Database) -> None:
    slow = "SELECT id FROM t WHERE id IN (SELECT count(*) FROM o a, o b, o c, o d, o e)"
    with pytest.raises(QueryTimeout):
        db.query(slow, timeout=0.4)
    with db.transaction(isolation="repeatable read") as tx:
        tx.query("SET LOCAL statement_timeout = '300ms'")
        with pytest.raises(QueryTimeout):
            tx.query(slow)
        tx.rollback()

    async def main() -> None:
        async with AsyncDatabase.open(database_url) as mine:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await mine.query(slow)
            assert (await mine.query("SELECT count(*) FROM t WHERE id < 3"))[0][0] == 2

    asyncio.run(main())


def test_moments_at_the_ends_of_time_are_keys(db: Database, tmp_path: Path) -> None:
    for name in "ab":
        db.execute(f"CREATE TABLE {name} (id int, till timestamptz, ts date, n int, PRIMARY KEY (id, till))")
        db.execute(
            f"INSERT INTO {name} SELECT x, CASE WHEN x % 2 = 0 THEN timestamptz '9999-06-01Z' ELSE '0001-06-01Z' END, '2024-01-01', x FROM generate_series(1, 9) x"
        )
    db.tier("a", location=tmp_path / "a", hot_for=0, time_column="ts")
    db.flush()
    for sql in (
        "INSERT INTO {} VALUES (2, '9999-06-01Z', NULL, 5)",
        "INSERT INTO {} VALUES (3, '0001-06-01Z', NULL, 5), (2, '9999-06-01Z', NULL, 6) ON CONFLICT (id, till) DO UPDATE SET n = excluded.n",
        "DELETE FROM {} WHERE id IN (6, 7)",
        "UPDATE {} SET n = 100 WHERE id > 7",
    ):
        assert outcome(db, sql.format("a"), [], {}) == outcome(db, sql.format("b"), [], {})
        db.flush()
        rows = [[tuple(r) for r in db.query(f"SELECT id, till::text, n FROM {name} ORDER BY 1")] for name in "ab"]
        assert rows[0] == rows[1]


def test_a_second_worker_gets_the_next_rows(db: Database, database_url: str) -> None:
    sql = "SELECT id FROM t WHERE c = 'c2' ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED"
    with Database.open(database_url) as other, db.transaction() as tx, other.transaction() as second:
        tx.query("SET LOCAL lock_timeout = '7s'")
        first, then = ([r["id"] for r in t.query(sql, timeout=10)] for t in (tx, second))
        assert (len(first), len(then), sorted({*first, *then})) == (2, 2, sorted([*first, *then]))
        assert tx.query("SHOW lock_timeout")[0][0] == "7s"
        with Database.open(database_url) as third:  # no other row is locked
            assert third.query("UPDATE t SET n = 1 WHERE c = 'c2' AND id > 60", timeout=5).affected > 3
            found = third.query("SELECT id FROM t WHERE c = 'c2' AND id > 60 ORDER BY id LIMIT 1 FOR UPDATE NOWAIT")
            assert len(found) == 1
            assert len(third.query("SELECT o.id FROM o LEFT JOIN t ON t.id = o.id WHERE o.id < 4 FOR UPDATE OF o")) == 3


def test_defaults_are_made_once(db: Database, tmp_path: Path) -> None:
    for name in "ab":
        db.execute(f"CREATE TABLE {name} (id serial PRIMARY KEY, ts date DEFAULT '2024-01-01', n int)")
        db.execute(f"INSERT INTO {name} (n) SELECT x FROM generate_series(1, 9) x")
    db.tier("a", location=tmp_path / "a", hot_for=0, time_column="ts")
    db.flush()
    for sql in (
        "SELECT setval('{}_id_seq', 4)",
        "INSERT INTO {} (n) VALUES (900) ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING id",
        "INSERT INTO {} (n) VALUES (901) ON CONFLICT DO NOTHING RETURNING id",
        "SELECT last_value FROM {}_id_seq",
        "SELECT id, n FROM {} ORDER BY id",
    ):
        mine, plain = (outcome(db, sql.format(name), [], {}) for name in "ab")
        assert mine == plain, sql


def test_checks_of_new_columns_and_types_that_refuse_values(db: Database) -> None:
    both(db, "ALTER TABLE {t} ADD COLUMN nw int, ADD CHECK (nw IS NULL)")
    both(db, "ALTER TABLE {t} ADD CHECK (id < 50)")
    both(db, 'UPDATE {t} SET j = \'{"a": "\\\\u0000"}\' WHERE id = 9')
    db.flush()
    both(db, "ALTER TABLE {t} ALTER j TYPE jsonb")
    both(db, "UPDATE {t} SET j = '{}' WHERE id = 9")
    db.flush()
    both(db, "ALTER TABLE {t} ALTER j TYPE jsonb")


def test_errors_say_where_in_what_was_written(db: Database) -> None:
    for sql in (
        "SELECT id, nonsense FROM {t} WHERE n = 1",
        "SELECT id FROM {t} WHERE n = 1 AND c + 1 = 3",
        "SELECT id FROM {t} a JOIN o ON o.nothing = a.id",
        "UPDATE {t} SET n = 1, nonsense = 3",
        "INSERT INTO {t} (id, nonsense) VALUES (1, 2)",
        "DELETE FROM {t} WHERE nonsense",
        "SELECT count(*) FROM {t} GROUP BY nonsense ORDER BY 1",
        "WITH w AS (SELECT id FROM {t}) SELECT x FROM w",
        "SELECT f(id) FROM {t} LIMIT 3",
    ):
        told = []
        for name in "tp":
            with pytest.raises(QueryError) as caught:
                db.query(sql.replace("{t}", name))
            told.append((caught.value.sqlstate, caught.value.position, caught.value.sql.replace(f" {name}", " x")))
        assert told[0] == told[1], sql
        assert told[0][1] is not None


def test_who_waits_for_a_row_gets_the_next(db: Database, database_url: str) -> None:
    found: list[Any] = []
    with Database.open(database_url) as other:
        with db.transaction() as tx:
            tx.query("DELETE FROM t WHERE id = 1")
            thread = threading.Thread(
                target=lambda: found.extend(other.query("SELECT id FROM t ORDER BY id LIMIT 1 FOR UPDATE", timeout=20))
            )
            thread.start()
            time.sleep(0.3)
        thread.join()
    plain = db.query("SELECT id FROM p WHERE id > 1 ORDER BY id LIMIT 1")
    assert [r[0] for r in found] == [r[0] for r in plain]


def test_upserts_into_columns_that_fill_themselves(db: Database, tmp_path: Path) -> None:
    for name in "ab":
        db.execute(f"CREATE TABLE {name} (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, ts date, n int)")
        db.execute(f"INSERT INTO {name} (ts, n) SELECT '2024-01-01', x FROM generate_series(1, 9) x")
    db.tier("a", location=tmp_path / "a", hot_for=0, time_column="ts")
    db.flush()
    for sql in (
        "INSERT INTO {} SELECT NULL, '2024-01-01'::date, 4 ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "INSERT INTO {} (id, n) VALUES (DEFAULT, 1), (300, 2), (3, 5) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "INSERT INTO {} (id, n) VALUES (300, 7) ON CONFLICT (id) DO UPDATE SET n = 8",
        "SELECT id, n FROM {} ORDER BY id",
    ):
        mine, plain = (outcome(db, sql.format(name), [], {}) for name in "ab")
        assert mine == plain, sql
