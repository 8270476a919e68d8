"""Unique constraints beside the key of a tiered table hold over both tiers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from howdah import (
    Database,
    ForeignKeyViolation,
    InvalidInput,
    SerializationFailure,
    TierError,
    TieringRefused,
    UniqueViolation,
    Unsupported,
)

SHAPE = "(id bigint PRIMARY KEY, ts timestamptz DEFAULT '2024-01-01', mail text UNIQUE, a int, b varchar(9), n int, UNIQUE (a, b))"


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Iterator[Database]:
    with Database.open(database_url) as db:
        db.execute(f"CREATE TABLE u {SHAPE}")
        db.query(
            "INSERT INTO u SELECT n, DEFAULT, 'm' || n, n % 10, 'b' || n, 0 FROM generate_series(1, 100) n".replace(
                "DEFAULT", "'2024-01-01'"
            )
        )
        db.tier("u", location=tmp_path / "base", hot_for=0, time_column="ts", partition_by=[])
        assert db.flush().rows == 100
        yield db


def beside(db: Database) -> list[str]:
    """What there is for unique constraints."""
    return [r[0] for r in db.query("SELECT relname FROM pg_class WHERE relnamespace = 'howdah'::regnamespace AND relkind = 'r' AND relname LIKE 'unique%'"
                                   " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'howdah'::regnamespace AND proname LIKE 'unique%' ORDER BY 1")]  # fmt: skip


def test_values_of_base_rows_are_taken(db: Database) -> None:
    refused = (
        "INSERT INTO u (id, mail) VALUES (500, 'm7')",
        "INSERT INTO u (id, a, b) VALUES (0, 3, 'b3')",
        "UPDATE u SET mail = 'm8' WHERE id = 7",
        "UPDATE u SET a = 1, b = 'b1' WHERE id = 2",
        "MERGE INTO u USING (SELECT 501 AS k) s ON u.id = s.k WHEN NOT MATCHED THEN INSERT (id, mail) VALUES (s.k, 'm9')",
    )
    for sql in refused:
        with pytest.raises(UniqueViolation, match='duplicate key value violates unique constraint "u_') as told:
            db.query(sql)
        assert told.value.sqlstate == "23505"
    with pytest.raises(UniqueViolation):
        db.copy_in("u", [(600, "new"), (601, "m10")], columns=["id", "mail"])
    assert db.query("SELECT count(*), sum(n) FROM u WHERE id > 0")[0] == (100, 0)
    assert db.query("INSERT INTO u (id, mail, a, b) VALUES (502, NULL, 3, NULL), (503, NULL, 3, NULL)").affected == 2
    assert db.query(
        "INSERT INTO u (id, mail, n) VALUES (700, 'm11', 5) ON CONFLICT (mail) DO UPDATE SET n = excluded.n RETURNING id, n"
    )[0] == (11, 5)
    assert db.query("INSERT INTO u (id, a, b) VALUES (700, 2, 'b12') ON CONFLICT DO NOTHING").affected == 0
    with pytest.raises(UniqueViolation):  # the other constraint is not what was asked about
        db.query("INSERT INTO u (id, mail, a, b) VALUES (700, 'x', 2, 'b12') ON CONFLICT (mail) DO NOTHING")


def test_values_that_were_given_up_are_free(db: Database) -> None:
    db.query("DELETE FROM u WHERE id = 7")
    db.query("UPDATE u SET mail = 'other' WHERE mail = 'm8'")
    assert db.query("INSERT INTO u (id, mail) VALUES (7, 'm8'), (8000, 'm7')").affected == 2
    db.flush()
    for mail in ("m7", "m8", "other"):
        with pytest.raises(UniqueViolation):
            db.query("INSERT INTO u (id, mail) VALUES (9000, $1)", mail)
    with db.transaction() as tx:  # two rows of the base change places
        tx.query("UPDATE u SET mail = NULL WHERE id = 20")
        tx.query("UPDATE u SET mail = 'm20' WHERE id = 21")
        tx.query("UPDATE u SET mail = 'm21' WHERE id = 20")
    db.flush()
    assert [tuple(r) for r in db.query("SELECT id, mail FROM u WHERE id IN (20, 21) ORDER BY 1")] == [
        (20, "m21"),
        (21, "m20"),
    ]
    db.query("TRUNCATE u")
    assert db.query("INSERT INTO u (id, mail) VALUES (1, 'm1')").affected == 1
    db.untier("u")
    assert beside(db) == []
    with pytest.raises(UniqueViolation):
        db.query("INSERT INTO u (id, mail) VALUES (2, 'm1')")


def test_who_gives_a_value_up_is_waited_for(db: Database, database_url: str) -> None:
    """An insert waits for the end of a transaction that frees the value, and goes by how it ended."""
    for number, commit in ((30, True), (31, False)):
        results: list[object] = []

        def insert(number: int = number, results: list[object] = results) -> None:
            with Database.open(database_url) as mine:
                try:
                    results.append(
                        mine.query("INSERT INTO u (id, mail) VALUES ($1, $2)", 1000 + number, f"m{number}").affected
                    )
                except UniqueViolation as error:
                    results.append(error)

        with db.transaction() as tx:
            tx.query("DELETE FROM u WHERE id = $1", number)
            thread = threading.Thread(target=insert)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive() and not results
            if not commit:
                tx.rollback()
        thread.join(20)
        assert results == [1] if commit else isinstance(results[0], UniqueViolation)


def test_a_snapshot_that_misses_a_flush_cannot_double_a_value(db: Database, database_url: str) -> None:
    db.query(
        "INSERT INTO u (id, mail, ts) VALUES (2000, 'moves', now() + interval '1 hour'), (2001, 'stays', now() + interval '1 hour')"
    )
    with (
        Database.open(database_url) as other,
        pytest.raises(SerializationFailure),
        other.transaction(isolation="repeatable read") as tx,
    ):
        tx.query("SELECT 1 FROM pg_class LIMIT 1")
        db.query("UPDATE u SET ts = '2024-01-01' WHERE id = 2000")
        assert db.flush().rows == 1
        tx.query("UPDATE u SET mail = 'moves' WHERE id = 2001")
    assert db.query("SELECT count(*) FROM u WHERE mail = 'moves'")[0][0] == 1


def test_constraints_follow_what_becomes_of_columns(db: Database) -> None:
    db.execute(
        "ALTER TABLE u RENAME COLUMN mail TO post; ALTER TABLE u ALTER COLUMN a TYPE bigint; ALTER TABLE u ALTER COLUMN b TYPE text"
    )
    db.query("INSERT INTO u (id, a, b) VALUES ($1, $2, $3)", 3000, 2**40, "longer than nine")
    db.flush()
    for sql in (
        "INSERT INTO u (id, post) VALUES (3001, 'm5')",
        f"INSERT INTO u (id, a, b) VALUES (3001, {2**40}, 'longer than nine')",
    ):
        with pytest.raises(UniqueViolation):
            db.query(sql)
    assert len(beside(db)) == 4
    db.execute("ALTER TABLE u DROP CONSTRAINT u_mail_key")
    assert db.query("INSERT INTO u (id, post) VALUES (3001, 'm5')").affected == 1
    db.execute("ALTER TABLE u DROP COLUMN b")
    assert beside(db) == []
    db.query("UPDATE u SET a = 1")
    db.flush()
    assert db.query("SELECT count(*), min(a), max(a) FROM u")[0] == (102, 1, 1)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("CREATE UNIQUE INDEX ON r (lower(m))", "expressions"),
        ("CREATE UNIQUE INDEX bad ON r (n); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'bad'::regclass", "not valid"),
        ("CREATE UNIQUE INDEX ON r (n) WHERE n > 3", "some of its rows"),
        ("CREATE UNIQUE INDEX ON r (n) NULLS NOT DISTINCT", "NULLS NOT DISTINCT"),
        ("ALTER TABLE r ADD UNIQUE (n) DEFERRABLE", "deferrable"),
        ("ALTER TABLE r ADD g int GENERATED ALWAYS AS (n + 1) STORED UNIQUE", "generated"),
        ("CREATE UNIQUE INDEX ON r (m text_pattern_ops)", "operator class"),
        ('CREATE UNIQUE INDEX ON r (m COLLATE "C")', "collation"),
        ("CREATE DOMAIN posint AS int CHECK (value > 0); ALTER TABLE r ADD d posint UNIQUE", "equality"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_unique_is_refused(database_url: str, tmp_path: Path, index: str, why: str) -> None:
    with Database.open(database_url) as db:
        db.execute(f"CREATE TABLE r (id int PRIMARY KEY, ts timestamptz, m text, n int); {index}")
        with pytest.raises(TieringRefused, match=why):
            db.tier("r", location=tmp_path / "base", time_column="ts")


def test_constraints_that_come_later_are_refused(db: Database) -> None:
    with pytest.raises(Unsupported):
        db.execute("CREATE UNIQUE INDEX ON u (n)")
    with pytest.raises(Unsupported):
        db.execute("ALTER TABLE u ADD UNIQUE (n)")
    db.execute("ALTER TABLE u DROP CONSTRAINT u_a_b_key")
    db.execute("DO $$ BEGIN EXECUTE 'CREATE UNIQUE INDEX ON ' || 'u (id, n)'; END $$")
    with pytest.raises(TierError, match="changed"):
        db.query("SELECT * FROM u WHERE n = 0")
    db.untier("u")
    assert db.query("SELECT count(*) FROM u")[0][0] == 100


def test_an_index_that_is_dropped_leaves_nothing_behind(db: Database, tmp_path: Path) -> None:
    db.untier("u")
    db.execute("CREATE UNIQUE INDEX by_n ON u (id, n)")
    db.tier("u", location=tmp_path / "again", hot_for=0, time_column="ts")
    db.flush()
    db.execute("DROP INDEX by_n")
    with pytest.raises(TierError, match="unique indexes were changed"):
        db.query("SELECT count(*) FROM u")
    db.untier("u")
    assert beside(db) == []
    assert db.query("INSERT INTO u (id, n) VALUES (1000, 0), (1001, 0)").affected == 2
    db.tier("u", location=tmp_path / "third", hot_for=0, time_column="ts")


def test_odd_constraints(database_url: str, tmp_path: Path) -> None:
    """Many columns, names that are quoted, types whose equality is not that of their text, columns of the key."""
    with Database.open(database_url) as db:
        many = [f"c{n}" for n in range(31)]
        columns = ", ".join(f"{c} int DEFAULT 0" for c in many)
        db.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
        db.execute(
            f"CREATE TABLE r (id int PRIMARY KEY, ts timestamptz DEFAULT '2024-01-01', {columns}, \"Odd\" char(4), m mood, x numeric,"
            f' UNIQUE ({", ".join(many[:30])}), UNIQUE ({", ".join(many)}), UNIQUE ("Odd", m) INCLUDE (c1), UNIQUE (id, x))'
        )
        db.query("INSERT INTO r (id, c0, \"Odd\", m, x) VALUES (1, 1, 'ab', 'glad', 1.0), (2, 2, 'ab', 'sad', 1.5)")
        db.tier("r", location=tmp_path / "base", hot_for=0, time_column="ts")
        assert db.flush().rows == 2
        for sql in (
            "INSERT INTO r (id, c0) VALUES (3, 1)",
            "INSERT INTO r (id, c0, \"Odd\", m) VALUES (3, 3, 'ab  ', 'sad')",
        ):
            with pytest.raises(UniqueViolation):
                db.query(sql)
        done = db.query(
            "INSERT INTO r (id, c0, \"Odd\", m) VALUES (3, 3, 'ab', 'sad') ON CONFLICT (\"Odd\", m) DO UPDATE SET x = 9.50 RETURNING id, x"
        )
        assert (done[0]["id"], str(done[0]["x"])) == (2, "9.50")
        with pytest.raises(TieringRefused, match="collation"):
            db.execute('ALTER TABLE r ALTER COLUMN "Odd" TYPE char(4) COLLATE "C"')
        db.flush()
        assert db.untier("r") == 2


def test_foreign_keys_that_see_hot_rows_only(database_url: str, tmp_path: Path) -> None:
    policy: dict[str, Any] = {"hot_for": 0, "time_column": "ts", "foreign_keys": "hot only"}
    with Database.open(database_url) as db:
        db.execute("""
            CREATE TABLE users (id int PRIMARY KEY);
            CREATE TABLE events (id int PRIMARY KEY, ts timestamptz, who int REFERENCES users ON DELETE CASCADE);
            CREATE TABLE notes (event int REFERENCES events ON DELETE CASCADE, text text);
            INSERT INTO users VALUES (1), (2); INSERT INTO events VALUES (1, '2024-01-01', 1), (2, '2024-01-01', 2);
            INSERT INTO notes VALUES (1, 'one'), (2, 'two')
        """)
        with pytest.raises(TieringRefused, match="say foreign_keys='hot only'"):
            db.tier("events", location=tmp_path / "base", hot_for=0, time_column="ts")
        with pytest.raises(InvalidInput, match="foreign_keys"):
            db.tier("events", location=tmp_path / "base", foreign_keys="none")  # type: ignore[arg-type]  # on purpose
        db.tier("events", location=tmp_path / "base", **policy)
        assert db.flush().rows == 2
        assert db.query("SELECT count(*) FROM notes")[0][0] == 2  # moving is no deleting
        with pytest.raises(ForeignKeyViolation):
            db.query("INSERT INTO events VALUES (3, now(), 77)")
        with pytest.raises(ForeignKeyViolation):
            db.query("INSERT INTO notes VALUES (2, 'its event is not hot')")
        db.query("INSERT INTO events VALUES (3, now(), 1)")
        db.query("INSERT INTO notes VALUES (3, 'three')")
        db.query("DELETE FROM users WHERE id = 1")  # takes the hot event along, and its note
        shown = "SELECT e.id, who, text FROM events e LEFT JOIN notes n ON n.event = e.id ORDER BY 1"
        assert [tuple(r) for r in db.query(shown)] == [(1, 1, "one"), (2, 2, "two")]
        db.query("DELETE FROM events WHERE id = 2")  # comes back first, so that its note goes
        assert [r["text"] for r in db.query("SELECT text FROM notes")] == ["one"]
        with pytest.raises(TieringRefused, match="foreign key"):
            db.tier("events", location=tmp_path / "base", hot_for=0, time_column="ts")
        assert (
            db.query(
                "CALL howdah.tier('events', location => $1, hot_for => 5, time_column => 'ts', foreign_keys => 'hot only')",
                str(tmp_path / "base"),
            )
            == []
        )
        assert db.untier("events") == 1
