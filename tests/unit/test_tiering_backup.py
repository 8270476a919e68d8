"""Backups bring what tiered tables have on object storage, and restored tables have bases of their own."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import howdah
from howdah import Database, ForeignKeyViolation, InvalidInput, TierError, UniqueViolation
from howdah.engines.sql.embedded import program
from tests.conftest import fresh_database
from tests.tiering import MORE, Statements, make, same


@pytest.fixture
def other(servers: Any) -> Iterator[str]:
    with fresh_database(servers) as url:
        yield url


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_everything_comes_back(
    database_url: str, other: str, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    place = str(tmp_path / "base") if kind == "directory" else request.getfixturevalue("s3")
    below = str(tmp_path / "restored") if kind == "directory" else f"{place}-restored"
    dump = tmp_path / "all.dump"
    with Database.open(database_url) as db:
        make(db, tmp_path, 100, MORE, location=place, partition_by=["day(ts)", "kind"])
        db.execute("CREATE TABLE u (a int, b text, gone int, v varchar UNIQUE, day date, PRIMARY KEY (b, a))")
        db.execute("ALTER TABLE u DROP gone; CREATE VIEW w AS SELECT count(*) AS n FROM u WHERE a < 5")
        db.query("INSERT INTO u SELECT n % 10, 'b' || n, 'v' || n, '2024-01-01' FROM generate_series(1, 40) n")
        policy: dict[str, Any] = {"time_column": "day", "archive_after": 0, "archive_location": f"{place}-archive"}
        db.tier("u", location=f"{place}-u", hot_for=0, allow_hot_only=True, **policy)
        assert db.flush().rows == 140
        random_ = random.Random(5)
        statements = Statements(random_, [f"x{i}" for i in range(len(MORE))])
        for _ in range(40):
            sql, params = statements.write()
            for name in "tp":
                with contextlib.suppress(howdah.Error):
                    db.query(sql.replace("{t}", name), *params)
        db.query("DELETE FROM u WHERE a = 3")
        db.query("UPDATE u SET v = v || '!' WHERE a = 4")
        same(db)
        size = db.backup(dump)
        assert size == dump.stat().st_size
        before = [tuple(r) for r in db.query("SELECT * FROM u ORDER BY b", tier="all")]
        db.query("DELETE FROM t WHERE id % 2 = 0")  # what happens later is not in it
        db.query("UPDATE u SET v = 'late' WHERE b = 'b1'")
        db.flush()
        with Database.open(other) as copy:
            if kind == "directory":
                with pytest.raises(TierError, match="must be empty"):
                    copy.restore(dump)  # the first one's base is there
            copy.restore(dump, location=below)
            same(copy, tier="all")
            assert [tuple(r) for r in copy.query("SELECT * FROM u ORDER BY b", tier="all")] == before
            there = {t.table: t for t in copy.tiers()}
            assert there["public.u"].location == f"{below}/public.u"
            assert (there["public.u"].warm_rows, there["public.u"].hot_rows) == (32, 4)
            assert copy.query("SELECT n FROM w", tier="all")[0]["n"] == sum(r[0] < 5 for r in before)
            for refused in ("(77, 'x', 'v2', NULL)", "(2, 'b2', 'new', NULL)", "(77, 'x', 'v4!', NULL)"):
                with pytest.raises(UniqueViolation):
                    copy.query(f"INSERT INTO u VALUES {refused}")
            with pytest.raises(UniqueViolation):
                copy.query("INSERT INTO t (id) SELECT min(id) FROM p")
            copy.query("INSERT INTO u VALUES (3, 'b3', 'v3', NULL)")  # deleted before the backup
            for name in "tp":
                copy.query(f"UPDATE {name} SET n = n + 1 WHERE id % 3 = 0")
            assert copy.flush().rows
            same(copy, tier="all")
            again = tmp_path / "again.dump"
            copy.backup(again)
        with fresh_database(request.getfixturevalue("servers")) as third, Database.open(third) as last:
            last.restore(again, location=f"{below}-again")
            same(last, tier="all")
            assert last.query("SELECT count(*) FROM u", tier="all")[0][0] == 37
        assert db.query("SELECT v FROM u WHERE b = 'b1'", tier="all")[0][0] == "late"


def test_without_a_tiered_table_it_is_a_plain_dump(database_url: str, other: str, tmp_path: Path) -> None:
    with Database.open(database_url) as db, Database.open(other) as copy:
        db.execute("CREATE TABLE x (n int); INSERT INTO x VALUES (1)")
        db.backup(tmp_path / "dump")
        assert (tmp_path / "dump").read_bytes()[:5] == b"PGDMP"
        copy.restore(tmp_path / "dump")
        assert copy.query("SELECT n FROM x")[0]["n"] == 1


def test_a_restore_that_fails_leaves_nothing(database_url: str, other: str, tmp_path: Path) -> None:
    dump, whole = tmp_path / "dump", tmp_path / "whole"
    with Database.open(database_url) as db:
        make(db, tmp_path, 50, partition_by=[])
        db.flush()
        db.backup(dump)
        (lost,) = (tmp_path / "base" / "data").rglob("*.parquet")
        lost.rename(whole)
        with pytest.raises(TierError, match="missing"):
            db.backup(tmp_path / "never")
        whole.rename(lost)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "dump"]
    with Database.open(other) as copy:
        copy.execute("CREATE TABLE p (x int)")
        with pytest.raises(howdah.BackendError, match="nothing was changed"):
            copy.restore(dump, location=tmp_path / "new")
        assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]
        assert copy.tiers() == []
        copy.execute("DROP TABLE p")
        for name, part in (("half", slice(0, 3000)), ("no end", slice(0, -11_000))):
            (tmp_path / name).write_bytes(dump.read_bytes()[part])
            with pytest.raises(InvalidInput, match="backup"):
                copy.restore(tmp_path / name, location=tmp_path / "new")
        with tarfile.open(tmp_path / "foreign", "w") as tar:
            tar.add(dump, "some.file")
        with pytest.raises(InvalidInput, match="none of Howdah's"):
            copy.restore(tmp_path / "foreign")
        copy.restore(dump, location=tmp_path / "new")
        same(copy)


def test_foreign_keys_that_see_hot_rows_only_come_back(database_url: str, other: str, tmp_path: Path) -> None:
    with Database.open(database_url) as db, Database.open(other) as copy:
        db.execute("""
            CREATE SCHEMA "o d"; CREATE TABLE "o d".pa (id int PRIMARY KEY, ts date);
            CREATE TABLE ch (id int PRIMARY KEY, pa int REFERENCES "o d".pa); CREATE TABLE plain (ch int REFERENCES ch);
            INSERT INTO "o d".pa SELECT n, '2024-01-01' FROM generate_series(1, 5) n; INSERT INTO ch SELECT n, n FROM generate_series(1, 5) n;
            INSERT INTO plain VALUES (1)
        """)
        db.tier('"o d".pa', location=tmp_path / "pa", hot_for=0, time_column="ts", foreign_keys="hot only")
        db.flush()
        db.backup(tmp_path / "dump")
        copy.restore(tmp_path / "dump", location=tmp_path / "new")
        assert copy.query('SELECT count(*) FROM "o d".pa JOIN ch ON ch.pa = pa.id')[0][0] == 5
        for refused in ("INSERT INTO ch VALUES (9, 99)", "INSERT INTO plain VALUES (77)"):
            with pytest.raises(ForeignKeyViolation):
                copy.query(refused)


def test_what_cannot_be_made_whole_is_told(database_url: str, other: str, tmp_path: Path) -> None:
    with Database.open(database_url) as db:
        make(db, tmp_path, 50)
        db.execute("""
            CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
              IF current_query() LIKE '%howdah%' THEN RAISE EXCEPTION 'not here'; END IF; END $$;
        """)
        db.flush()
        db.execute("CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION no()")
        db.backup(tmp_path / "dump")
        db.execute("DROP EVENT TRIGGER no")
        whole = bytearray((tmp_path / "dump").read_bytes())
        at = whole.index(b"PAR1") + 100
        whole[at : at + 2000] = bytes(2000)
        (tmp_path / "damaged").write_bytes(whole)
    with Database.open(other) as copy:
        with pytest.raises(InvalidInput, match="damaged"):
            copy.restore(tmp_path / "damaged", location=tmp_path / "new")
        with pytest.raises(howdah.BackendError, match="empty the database"):
            copy.restore(tmp_path / "dump", location=tmp_path / "new")
        # Until they have bases of their own, no flusher takes them for tables here.
        assert copy.query("SELECT count(*) FROM howdah.tiers")[0][0] == 0
        with pytest.raises(howdah.QueryError, match="part of its rows"):
            copy.query("SELECT count(*) FROM t")
        assert not [p for p in (tmp_path / "new").rglob("*") if p.is_file()]
    for text in (b"{}", b"[]", b'{"format": 1, "tables": [{"x": 1}]}', b"\xff"):
        with tarfile.open(tmp_path / "odd", "w") as tar:
            entry = tarfile.TarInfo("howdah.json")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
        with Database.open(other) as copy, pytest.raises(InvalidInput, match="not whole"):
            copy.restore(tmp_path / "odd")


def test_a_dump_by_other_means_is_told(
    database_url: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump, restore = program("pg_dump"), program("pg_restore")
    assert dump is not None
    assert restore is not None
    with Database.open(database_url) as db:
        db.execute("CREATE TABLE one (id int PRIMARY KEY)")  # so that tables have other numbers there
        make(db, tmp_path, 50)
        db.flush()
        db.execute("DROP TABLE one")
        subprocess.run([dump, "-Fc", "-f", tmp_path / "dump", "-d", database_url], check=True)
        subprocess.run([restore, "--no-owner", "-d", other, tmp_path / "dump"], check=True)
        with Database.open(other) as copy:
            with pytest.raises(howdah.QueryError, match="part of its rows"):
                copy.query("SELECT count(*) FROM t")
            assert "came with a dump" in caplog.text
            with pytest.raises(howdah.TieringRefused, match="came with a dump"):
                copy.tier("t", location=tmp_path / "base2", hot_for=0, time_column="ts")
            assert copy.tiers() == []
        same(db)
