"""Triggers of tiered tables see what statements do, and nothing of what moves between the tiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from howdah import Database, QueryError, TieringRefused, UniqueViolation

TABLE = """
CREATE TABLE seen (what text, id int);
CREATE TABLE t (id int PRIMARY KEY, ts timestamptz DEFAULT '2024-01-01', n int, changed text);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed := TG_OP || NEW.n; RETURN NEW; END $$;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen VALUES (TG_NAME || ' ' || TG_OP, coalesce(NEW.id, OLD.id)); RETURN NULL; END $$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER rows AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER all_of_it AFTER UPDATE OR DELETE OR TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
INSERT INTO t (id, n) SELECT n, n FROM generate_series(1, 20) n;
"""


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Iterator[Database]:
    with Database.open(database_url) as db:
        db.execute(TABLE)
        db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
        db.query("TRUNCATE seen")
        assert db.flush().rows == 20
        yield db


def seen(db: Database) -> list[tuple[str, int | None]]:
    found = [(r["what"], r["id"]) for r in db.query("SELECT * FROM seen ORDER BY id, what")]
    db.query("TRUNCATE seen")
    return found


def test_each_statement_is_seen_once(db: Database) -> None:
    assert seen(db) == []  # rows only moved
    assert db.query("SELECT sum(n), min(changed) FROM t")[0] == (210, "INSERT1")
    for _ in range(2):  # in the base, then in the heap
        assert db.query("UPDATE t SET n = n + 100 WHERE id = 3").affected == 1
        assert seen(db) == [("late UPDATE", 3), ("rows UPDATE", 3), ("all_of_it UPDATE", None)]
    assert db.query("UPDATE t SET n = 0 WHERE id = 777").affected == 0
    assert seen(db) == [("all_of_it UPDATE", None)]
    assert db.query("SELECT n, changed FROM t WHERE id = 3")[0] == (203, "UPDATE203")
    with db.transaction() as tx:
        tx.query("DELETE FROM t WHERE id IN (4, 5)")
    assert seen(db) == [("rows DELETE", 4), ("rows DELETE", 5), ("all_of_it DELETE", None)]
    db.query("INSERT INTO t (id, n) VALUES (6, 1), (30, 2) ON CONFLICT (id) DO UPDATE SET n = 7")
    found = [one for one in seen(db) if not one[0].startswith(("late", "all"))]
    assert found == [("rows UPDATE", 6), ("rows INSERT", 30)]
    assert [tuple(r) for r in db.query("SELECT id, changed FROM t WHERE id IN (6, 30) ORDER BY id")] == [
        (6, "UPDATE7"),
        (30, "INSERT2"),
    ]
    assert db.copy_in("t", [(31, 5)], columns=["id", "n"]) == 1
    assert seen(db) == [("rows INSERT", 31)]
    db.query("UPDATE t SET id = 40 WHERE id = 7")
    assert [one for one in seen(db) if one[0].startswith("rows")] == [("rows UPDATE", 40)]
    with pytest.raises(UniqueViolation):
        db.query("UPDATE t SET id = 8 WHERE id = 9")
    db.flush()
    assert seen(db) == []
    assert db.query("SELECT count(*) FROM t")[0][0] == 20
    db.query("TRUNCATE t")
    assert [one for one, _ in seen(db)] == ["all_of_it TRUNCATE"]
    assert db.untier("t") == 0


def test_what_triggers_do_to_keys(db: Database) -> None:
    db.execute("""
        CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.n; RETURN NEW; END $$;
        CREATE TRIGGER z_other BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION other()
    """)
    with pytest.raises(UniqueViolation):
        db.query("INSERT INTO t (id, n) VALUES (99, 5)")
    with pytest.raises(UniqueViolation):
        db.query("INSERT INTO t (id, n) VALUES (99, 5) ON CONFLICT (id) DO UPDATE SET n = 1")
    with pytest.raises(QueryError, match="changed the primary key") as told:
        db.query("UPDATE t SET n = 6 WHERE id = 3")
    assert told.value.sqlstate == "0A000"
    with pytest.raises(QueryError, match="changed the primary key"):
        db.query("MERGE INTO t USING (SELECT 3 AS k) s ON t.id = s.k WHEN MATCHED THEN UPDATE SET n = 6")
    with pytest.raises(UniqueViolation):
        db.query("UPDATE t SET id = 100, n = 6 WHERE id = 3")
    db.query("INSERT INTO t (id, n) VALUES (99, 50)")
    assert db.query("UPDATE t SET id = id, n = 51 WHERE id = 50").affected == 1
    assert db.query("SELECT array_agg(id ORDER BY id) FROM t WHERE id > 19")[0][0] == [20, 51]


@pytest.mark.parametrize(
    "does", ["INSERT INTO t (id, n) VALUES (5, 5)", "PERFORM 1 FROM t", "UPDATE t SET n = 1", "DELETE FROM t"]
)
def test_a_trigger_sees_no_part_of_its_table(db: Database, does: str) -> None:
    db.execute(f"""
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF pg_trigger_depth() < 2 THEN {does}; END IF; RETURN NULL; END $$;
        CREATE TRIGGER a_again AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION again();
        CREATE TRIGGER a_first BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION again()
    """)
    for sql in (
        "INSERT INTO t (id, n) VALUES (100, 1)",
        "INSERT INTO t (id, n) VALUES (abs(-100), 1)",
        "INSERT INTO t (id, n) VALUES (3, 1) ON CONFLICT (id) DO UPDATE SET n = 1",
        "UPDATE t SET n = 1 WHERE id = 3",
        "UPDATE t SET id = 200 WHERE id = 3",
        "MERGE INTO t USING (SELECT 100 AS k) s ON t.id = s.k WHEN NOT MATCHED THEN INSERT (id, n) VALUES (k, 1)",
    ):
        with pytest.raises(QueryError) as told:
            db.query(sql)
        assert told.value.sqlstate == "HW001", sql
    assert db.query("SELECT count(*), sum(n) FROM t")[0] == (20, 210)


def test_triggers_that_would_see_moves_are_refused(database_url: str, tmp_path: Path) -> None:
    with Database.open(database_url) as db:
        db.execute(TABLE)
        for kind in ("ALWAYS", "REPLICA"):
            db.execute(f"ALTER TABLE t ENABLE {kind} TRIGGER rows")
            with pytest.raises(TieringRefused, match=kind):
                db.tier("t", location=tmp_path / "base", time_column="ts")
        db.execute("ALTER TABLE t ENABLE TRIGGER rows")
        db.tier("t", location=tmp_path / "base", time_column="ts", hot_for=0)
        assert db.flush().rows == 20
