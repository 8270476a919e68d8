"""Policies for many tables: of a database's configuration, and in the comments of tables."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import howdah
from howdah import Database, InvalidInput, Tiering, connect
from tests.conftest import Servers

SHAPE = "(id int PRIMARY KEY, ts timestamptz, n int)"
ROWS = "SELECT n, '2024-01-01'::timestamptz, n FROM generate_series(1, 20) n"


def warm(db: Database) -> dict[str, int]:
    return {t.table: t.warm_rows for t in db.tiers()}


def test_all_tables_of_a_schema(database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "howdah")
    policy = Tiering(location=tmp_path / "bases", tables="all", time_column="ts", hot_for=0, schemas=("public", "App"))
    with Database.open(database_url) as plain:
        plain.execute(f"""
            CREATE SCHEMA "App"; CREATE SCHEMA other; CREATE TABLE one {SHAPE}; CREATE TABLE "App"."Two" {SHAPE};
            CREATE TABLE other.three {SHAPE}; CREATE TABLE keyless (x int); CREATE TABLE timeless (id int PRIMARY KEY);
            CREATE TABLE mine {SHAPE}; INSERT INTO one {ROWS}; INSERT INTO "App"."Two" {ROWS}; INSERT INTO mine {ROWS}
        """)
        plain.tier("mine", location=tmp_path / "mine", hot_for=86400 * 365 * 100, time_column="ts")
    with Database.open(database_url, tiering=policy) as db:
        assert db.query("SELECT sum(n) FROM one")[0][0] == 210
        assert warm(db) == {"App.Two": 0, "public.mine": 0, "public.one": 0}
        assert "timeless" in caplog.text
        assert db.flush().rows == 40  # what has a policy of its own keeps it
        assert (tmp_path / "bases" / "App.Two" / "data").is_dir()
        db.execute(f"CREATE TABLE late {SHAPE}")
        db.query(f"INSERT INTO late {ROWS}")
        assert db.checkpoint().rows == 20
        assert warm(db) == {"App.Two": 20, "public.late": 20, "public.mine": 0, "public.one": 20}
        assert db.query('SELECT sum(l.n) FROM late l JOIN one USING (id) JOIN "App"."Two" USING (id)')[0][0] == 210
    with Database.open(database_url, tiering=policy) as again:
        assert again.query("SELECT sum(n) FROM late")[0][0] == 210
        assert again.untier("late") == 20


def test_comments_say_which_tables(database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Tiering(location=tmp_path / "bases", hot_for=0)
    comments = {
        "one": "Events.\nhowdah.tier(time_column => 'ts', partition_by => ARRAY['n', 'day(ts)'], hot_for => 0.5)",
        "two": "howdah.tier(time_column => 'ts', hot_for => interval '1 hour', allow_hot_only => true)",
        "none": "Not this one.",
        "odd": "howdah.tier(time_column => 'when')",
        "bad": "howdah.tier(time_column => 'ts', hot_for => (SELECT 1 FROM one))",
        "worse": "howdah.tier(time_column => 'ts', hot_for => pg_sleep(1)::text::int)",
        "away": "howdah.tier(time_column => 'ts', location => '/tmp/elsewhere')",
        "cold": "howdah.tier(time_column => 'ts', archive_after => 1, archive_location => '/tmp/elsewhere')",
        "sum": "howdah.tier(time_column => 'ts', hot_for => 0 + 5)",
        "typo": "howdah.tier(hot_fro => 5)",
        "junk": "howdah.tier(hot_for => )",
    }
    with Database.open(database_url) as plain:
        for name, comment in comments.items():
            plain.execute(f"CREATE TABLE {name} {SHAPE}; INSERT INTO {name} {ROWS}")
            plain.execute(f"COMMENT ON TABLE {name} IS '{comment.replace(chr(39), chr(39) * 2)}'")
    with Database.open(database_url, tiering=policy) as db:
        assert {t.table for t in db.tiers()} == {"public.one", "public.two"}
        for name, why in (
            ("odd", "no date or timestamp column"),
            ("bad", "constants only"),
            ("worse", "constants only"),
            ("sum", "constants only"),
            ("away", "location is there twice"),
            ("cold", "no places"),
            ("typo", "hot_fro"),
            ("junk", "expected arguments"),
        ):
            assert any(name in m and why in m for m in caplog.messages), (name, caplog.messages)
        stored = {r["rel"]: r["policy"] for r in db.query("SELECT rel::text, policy FROM howdah.tiers")}
        assert (stored["one"]["hot_for"], stored["one"]["partition_by"]) == (0.5, ["n", "day(ts)"])
        assert (stored["two"]["hot_for"], stored["two"]["allow_hot_only"]) == (3600, True)
        told = len(caplog.messages)
        assert db.flush().rows == 40
        assert len(caplog.messages) == told  # once is enough
        db.execute("COMMENT ON TABLE two IS 'howdah.tier(time_column => ''ts'', hot_for => 3153600000)'")
        db.query("INSERT INTO two VALUES (100, '2024-01-01', 1)")
        assert db.flush().rows == 0
        db.execute("COMMENT ON TABLE none IS 'howdah.tier(time_column => ''ts'')'; COMMENT ON TABLE one IS NULL")
        assert db.flush().rows == 20
        assert warm(db) == {"public.none": 20, "public.one": 20, "public.two": 20}


def test_a_table_s_name_chooses_no_place(database_url: str, tmp_path: Path) -> None:
    names = ('public."x/../../../evil/y"', 'public."a.b"', '"p.a"."b"', 'p."a.b"', 'public.".."', 'public."é %"')
    policy = Tiering(
        location=tmp_path / "bases", tables="all", time_column="ts", hot_for=0, schemas=("public", "p.a", "p")
    )
    with Database.open(database_url) as db:
        db.execute('CREATE SCHEMA p; CREATE SCHEMA "p.a"')
        for name in names:
            db.execute(f"CREATE TABLE {name} {SHAPE}")
            db.query(f"INSERT INTO {name} {ROWS}")
    with Database.open(database_url, tiering=policy) as db:
        assert db.flush().rows == 20 * len(names)
        assert len({t.location for t in db.tiers()}) == len(names)
        for name in names:
            assert db.query(f"SELECT sum(n) FROM {name}")[0][0] == 210
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bases"]
    assert len(list((tmp_path / "bases").iterdir())) == len(names)


def test_what_fails_for_now_is_tried_again(database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bases").write_text("no directory")
    policy = Tiering(location=tmp_path / "bases", tables="all", time_column="ts", hot_for=0)
    with Database.open(database_url) as plain:
        plain.execute(f"CREATE TABLE one {SHAPE}; CREATE TABLE two {SHAPE}; INSERT INTO one {ROWS}")
    with Database.open(database_url, tiering=policy) as db:
        for _ in range(3):
            assert db.flush().rows == 0
        assert len(caplog.messages) == 2  # of each once
        (tmp_path / "bases").unlink()
        with Database.open(database_url) as other, other.transaction() as tx:
            tx.query(f"INSERT INTO two {ROWS}")
            assert db.flush().rows == 20  # the other one is locked
            assert "lock" in caplog.messages[-1]
        assert db.flush().rows == 20


def test_bad_configurations_are_refused_at_once(tmp_path: Path) -> None:
    bad: Any
    for bad in (
        {"location": ""},
        {"location": "gs://x"},
        {"tables": "some"},
        {"schemas": "public"},
        {"schemas": ()},
        {"schemas": ("howdah",)},
        {"schemas": ("pg_catalog",)},
        {"hot_for": -1},
        {"archive_after": 5},
        {"foreign_keys": "all"},
    ):
        with pytest.raises(InvalidInput):
            Tiering(**{"location": tmp_path, **bad})
    with pytest.raises(InvalidInput, match="Tiering"):
        Database.open("pg:./x", tiering={"location": tmp_path})  # type: ignore[arg-type]  # on purpose
    assert howdah.Tiering is Tiering


def test_an_embedded_database_keeps_bases_beside_its_data(servers: Servers) -> None:
    """And knows when a row was last changed."""
    url = f"pg:{servers.root / 'beside'}"
    with Database.open(url) as db:
        db.execute(f"CREATE TABLE one {SHAPE}; CREATE TABLE aged (id int PRIMARY KEY, n int); INSERT INTO one {ROWS}")
        db.tier("one", hot_for=0, time_column="ts", archive_after=0)
        assert db.flush().rows == 20
        where = servers.root / "beside" / "tiers" / "public.one"
        assert (db.tiers()[0].location, (where / "metadata").is_dir()) == (str(where), True)
        assert list((servers.root / "beside" / "tiers" / "public.one.archive").rglob("*.parquet"))
        db.tier("one", hot_for=5, time_column="ts", archive_after=0)  # it stays where it is
        assert db.tiers()[0].location == str(where)
        db.execute("INSERT INTO aged SELECT n, n FROM generate_series(1, 9) n")
        db.tier("aged", hot_for=3600)
        assert db.flush("aged").rows == 0
        db.tier("aged", hot_for=0)
        db.execute("UPDATE aged SET n = 0 WHERE id = 3")
        assert db.query("SELECT count(*) FROM aged", tier="hot")[0][0] == 9  # a policy moves nothing by itself
        assert db.flush("aged").rows == 9
        db.tier("aged", hot_for=3600)
        db.execute("UPDATE aged SET n = 5 WHERE id = 4")
        assert (db.flush("aged").rows, db.query("SELECT n FROM aged WHERE id = 4", tier="hot")[0][0]) == (0, 5)
    with connect(url) as store:
        assert store.database.query("SELECT count(*) FROM one", tier="all")[0][0] == 20
        store.database.execute("CREATE TABLE two (id int PRIMARY KEY, ts date)")
        store.database.tier("two", time_column="ts")
        assert store.database.tiers()[-1].location.endswith("beside/tiers/public.two")


def test_a_server_is_told_where(database_url: str) -> None:
    with Database.open(database_url) as db:
        db.execute("CREATE TABLE two (id int PRIMARY KEY, ts date)")
        with pytest.raises(InvalidInput, match="say location="):
            db.tier("two", time_column="ts")
        with pytest.raises(InvalidInput, match="archive_location= needs archive_after="):
            db.tier("two", location="/tmp/x", time_column="ts", archive_location="/tmp/y")
