"""Joins of tiered tables: what plain tables give, and of the base only what can join is opened."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from howdah import Database, QueryError

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def made(db: Database, tmp_path: Path) -> Database:
    """Events of users, in a file for each user: tiered as ``t``, plain as ``p``."""
    db.execute("CREATE TABLE users (id int PRIMARY KEY, name text, team int, code text, gone date)")
    db.execute(
        "INSERT INTO users SELECT n, 'user ' || n, n % 3, 'c' || n, CASE WHEN n % 4 = 0 THEN date '2024-02-01' END"
        " FROM generate_series(1, 12) n; INSERT INTO users VALUES (99, 'nobody', 9, NULL, NULL), (98, NULL, NULL, 'c3', NULL)"
    )
    for name in "tp":
        db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, ts timestamptz, uid int, code text, n int)")
        db.query(
            f"INSERT INTO {name} SELECT n, $1::timestamptz + n * interval '1 hour', 1 + n % 10, 'c' || (1 + n % 10), n % 7"
            " FROM generate_series(1, 200) n",
            EPOCH,
        )
        db.execute(f"INSERT INTO {name} VALUES (900, NULL, NULL, NULL, NULL)")
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts", partition_by="uid")
    db.flush()
    for name in "tp":
        db.query(f"DELETE FROM {name} WHERE id % 17 = 3")
        db.query(f"UPDATE {name} SET n = n + 1 WHERE id % 17 = 5")
    return db


def both(db: Database, sql: str, *params: Any) -> Any:
    mine, plain = (db.query(sql.replace("{t}", name), *params) for name in "tp")
    assert sorted(map(repr, map(tuple, mine))) == sorted(map(repr, map(tuple, plain))), sql
    return mine


def test_only_what_can_join_is_opened(made: Database) -> None:
    for sql, params, files in (
        ("SELECT {t}.id, u.name FROM users u JOIN {t} ON {t}.uid = u.id WHERE u.name = $1", ("user 3",), 1),
        ("SELECT e.id FROM {t} e, users u WHERE e.uid = u.id AND u.team = 1 AND upper(u.name) > 'USER 6'", (), 1),
        ("SELECT e.id FROM users u JOIN {t} e ON uid = u.id AND u.team = 0 AND u.id < 4", (), 1),
        ("SELECT u.id, e.id FROM users u LEFT JOIN {t} e ON u.id = e.uid WHERE u.id IN (5, 99)", (), 1),
        ("SELECT u.id, e.id FROM users u LEFT JOIN {t} e ON u.id = e.uid AND e.uid = 2", (), 1),
        ("SELECT u.id, e.id FROM {t} e RIGHT JOIN users u ON u.id = e.uid WHERE u.name = 'user 2'", (), 1),
        ("SELECT e.id FROM {t} e JOIN users u USING (code) WHERE u.id = 4", (), 1),
        ("SELECT id FROM {t} WHERE uid IN (SELECT id FROM users WHERE name = $1)", ("user 7",), 1),
        ("SELECT id FROM {t} WHERE uid = (SELECT max(id) FROM users WHERE team = 2 AND id < 9)", (), 1),
        ("SELECT id FROM {t} WHERE uid = ANY (SELECT DISTINCT id FROM users WHERE id < 3)", (), 2),
        ("SELECT id FROM {t} WHERE uid IN (SELECT id FROM users WHERE name = 'nobody')", (), 0),
        ("SELECT count(n) FROM {t} WHERE uid IN (SELECT id FROM users WHERE name IS NULL)", (), 0),
        (
            "WITH w AS (SELECT e.* FROM {t} e JOIN users u ON u.id = e.uid WHERE u.id = 6) SELECT count(*), max(n) FROM w",
            (),
            1,
        ),
        ("SELECT x.id FROM (SELECT e.id FROM {t} e JOIN users u ON u.id = e.uid WHERE u.id = 6) x", (), 1),
    ):
        assert both(made, sql, *params).files_read == files, sql
    plan = made.plan("SELECT t.id FROM t JOIN users u ON t.uid = u.id WHERE u.name = $1", "user 3")
    assert (plan.tables[0].files, plan.tables[0].of_files) == (1, 10)
    assert "uid IN (SELECT u.id FROM users u WHERE u.name = $1)" in plan.tables[0].conditions[0]
    with made.transaction(isolation="repeatable read") as tx:
        assert tx.query("SELECT t.id FROM t JOIN users u ON t.uid = u.id WHERE u.id = 3").files_read == 1
    with made.transaction() as tx:  # another statement may see other users
        assert tx.query("SELECT t.id FROM t JOIN users u ON t.uid = u.id WHERE u.id = 3").files_read == 10


def test_what_may_not_choose_does_not(made: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for sql, params in (
        ("SELECT e.id, u.name FROM {t} e LEFT JOIN users u ON e.uid = u.id AND u.name = 'user 3'", ()),
        ("SELECT e.id, u.name FROM {t} e FULL JOIN users u ON e.uid = u.id WHERE u.name = 'user 3' OR e.id = 4", ()),
        (
            "SELECT a.id, u.name FROM users a LEFT JOIN ({t} e JOIN users u ON e.uid = u.id) ON a.id = e.uid WHERE u.name IS NULL",
            (),
        ),
        (
            "SELECT a.id FROM users a LEFT JOIN ({t} e JOIN users u ON e.uid = u.id) ON a.id = e.uid WHERE coalesce(u.name, '') = ''",
            (),
        ),
        ("SELECT e.id FROM {t} e JOIN users u ON e.uid = u.id OR u.id = 1 WHERE u.name = 'user 3' AND e.id < 9", ()),
        ("SELECT e.id FROM {t} e WHERE e.uid NOT IN (SELECT id FROM users WHERE team = 1)", ()),
        ("SELECT e.id FROM {t} e WHERE NOT e.uid IN (SELECT id FROM users WHERE team = 1)", ()),
        ("SELECT e.id FROM {t} e WHERE e.uid IN (SELECT u.id FROM users u WHERE u.team = e.n)", ()),
        ("SELECT e.id FROM {t} e WHERE e.uid IN (SELECT team FROM users WHERE id = n)", ()),
        (
            "WITH users AS (SELECT 3 AS id, 'user 5' AS name) SELECT e.id FROM {t} e JOIN users u ON e.uid = u.id WHERE u.name = 'user 5'",
            (),
        ),
        ("WITH users AS (SELECT 3 AS id) SELECT e.id FROM {t} e WHERE e.uid IN (SELECT id FROM users)", ()),
        ("SELECT e.id FROM {t} e WHERE e.uid = ANY (SELECT id FROM users WHERE random() >= 0)", ()),
        ("SELECT e.id FROM {t} e JOIN users u ON e.uid = u.id WHERE u.id < $1 AND e.n = $1", (4,)),
        ("SELECT e.id FROM {t} e JOIN users AS u(uid, x) ON e.uid = u.uid WHERE u.x = 'user 2'", ()),
        ("SELECT e.id FROM {t} e NATURAL JOIN (SELECT id AS uid FROM users WHERE id = 3) u", ()),
        ("SELECT e.id FROM {t} e JOIN users u ON e.code = u.code::char(2) WHERE u.id < 5", ()),
        ("SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.uid = b.id WHERE a.id < 30", ()),
        ("SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.id = b.id JOIN users u ON u.id = b.uid WHERE u.id = 2", ()),
    ):
        both(made, sql, *params)
    monkeypatch.setattr("howdah.database.overlay.asking.MOST_KEYS", 2)
    assert both(made, "SELECT e.id FROM {t} e JOIN users u ON e.uid = u.id WHERE u.id < 4").files_read == 10


def test_columns_that_depend_on_the_key_need_no_group(made: Database) -> None:
    made.execute(
        "CREATE TABLE likes (id int, who text); INSERT INTO likes SELECT n % 60, 'w' || n % 7 FROM generate_series(1, 300) n"
    )
    for sql in (
        "SELECT {t}.id, {t}.code, n, count(*) FROM {t} JOIN likes l ON l.id = {t}.id GROUP BY {t}.id",
        "SELECT e.*, count(l.who) FROM {t} e LEFT JOIN likes l ON l.id = e.id WHERE e.id < 80 GROUP BY e.id HAVING e.n > 2",
        "SELECT id, upper(code), max(n) FROM {t} GROUP BY id ORDER BY ts, id",
        "SELECT e.id, e.code, u.name, sum(e.n) FROM {t} e JOIN users u ON u.id = e.uid GROUP BY e.id, u.id",
        "SELECT code, count(*) FROM {t} GROUP BY code",
        "SELECT u.id, u.name, count(e.id) FROM users u LEFT JOIN {t} e ON e.uid = u.id GROUP BY u.id",
    ):
        both(made, sql)
    for name in "tp":
        with pytest.raises(QueryError) as caught:
            made.query(f"SELECT id, code FROM {name} GROUP BY n")
        assert caught.value.sqlstate == "42803"


def test_random_joins_give_what_plain_tables_give(made: Database) -> None:
    random_ = random.Random(11)
    kinds = ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]
    equal = [
        "e.uid = u.id",
        "u.id = e.uid AND e.n > 2",
        "e.code = u.code",
        "e.uid = u.id AND u.team = 1",
        "e.uid = u.team + 1",
    ]
    wheres = ["u.name = 'user 3'", "u.team = 2", "u.gone IS NULL", "e.ts > '2024-01-04'", "u.id IN (2, 3, 99)", "e.uid = u.id",
              "e.n = 3", "u.name LIKE 'user 1%'", "coalesce(u.team, 9) > 1", "e.id IS NULL", "u.id IS NULL OR e.n = 1",
              "e.uid IN (SELECT id FROM users WHERE team = 2)", "v.id < 5", "v.id IS NULL"]  # fmt: skip
    for _ in range(150):
        sides = ["{t} e", "users u"]
        random_.shuffle(sides)
        third = f"users v ON {random_.choice(['v.id = e.uid', 'v.id = u.id', 'v.team = u.team AND v.id = e.n'])}"
        tail = f" {random_.choice(kinds)} {third}" if random_.random() < 0.6 else " LEFT JOIN users v ON false"
        chosen = random_.sample(wheres, random_.randrange(3))
        where = f" WHERE {random_.choice([' AND ', ' AND ', ' OR ']).join(f'({w})' for w in chosen)}" if chosen else ""
        sql = f"SELECT e.id, e.n, u.id, u.name, v.id FROM {sides[0]} {random_.choice(kinds)} {sides[1]} ON {random_.choice(equal)}{tail}{where}"
        if "FULL JOIN" in sql and told(made, sql.replace("{t}", "p")) is not None:  # which takes few conditions
            assert told(made, sql.replace("{t}", "t")) == told(made, sql.replace("{t}", "p"))
        else:
            both(made, sql)


def told(db: Database, sql: str) -> str | None:
    """The state of the error of a statement."""
    try:
        db.query(sql)
    except QueryError as error:
        return error.sqlstate
    return None
