"""Plain SQL on Postgres: statements, transactions, streams, copies, backups; errors as the server tells them."""

from __future__ import annotations

import asyncio
import io
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import pyarrow as pa
import pytest

import howdah
from howdah import (
    AsyncDatabase,
    CheckViolation,
    Closed,
    Conflict,
    Database,
    DuplicateKey,
    Error,
    ForeignKeyViolation,
    InvalidInput,
    NotFound,
    NotNullViolation,
    QueryError,
    QueryTimeout,
    SerializationFailure,
    SqlSyntaxError,
    StartupError,
    TransactionError,
    TypeMismatch,
    UndefinedColumn,
    UndefinedTable,
    UniqueViolation,
    Unsupported,
)

_numbers = itertools.count()


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def test_rows_columns_and_counts(db: Database) -> None:
    assert db.query("CREATE TABLE t (id int PRIMARY KEY, name text)").affected == 0
    made = db.query("INSERT INTO t VALUES ($1, $2), (2, 'two') RETURNING id", 1, "one")
    assert (made.affected, made.status, [r["id"] for r in made]) == (2, "INSERT 0 2", [1, 2])
    rows = db.query("SELECT * FROM t ORDER BY id")
    assert rows.columns == ("id", "name")
    assert [dict(r) for r in rows] == [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    assert rows.elapsed > 0
    none = db.query("SELECT * FROM t WHERE id > 5")
    assert (list(none), none.columns, none.affected) == ([], ("id", "name"), 0)
    assert db.query("UPDATE t SET name = 'x'").affected == 2
    assert db.query("DELETE FROM t").affected == 2


def test_types_are_the_statements(db: Database) -> None:
    assert db.query("SELECT $1::text AS v", "42")[0]["v"] == "42"
    values: dict[str, Any] = {
        "int[]": [1, None, 3],
        "text[]": ["a", "b,c", 'q"'],
        "numeric": Decimal("1.50"),
        "uuid": UUID(int=7),
        "bytea": b"\0\xff",
        "date": date(2024, 2, 29),
        "timestamptz": datetime(2024, 1, 1, 1, 2, 3, 4, tzinfo=UTC),
        "boolean": False,
        "text": "tab\t new\nline é 😀 'quote' \\",
    }
    for kind, value in values.items():
        assert db.query(f"SELECT $1::{kind} AS v", value)[0]["v"] == value
    for given in ({"a": [1, 1.0, None, True]}, [1e16, -0.0], "text", 5, 1.5, None):
        for kind in ("json", "jsonb"):
            row = db.query(f"SELECT $1::{kind} AS v, $1::{kind} IS NULL AS empty", given)[0]
            assert repr(row["v"]) == repr(given)
            assert row["empty"] == (given is None)


def test_vectors_as_lists_and_arrays(db: Database) -> None:
    db.execute("CREATE TABLE v (id int, e vector(3), h halfvec(2))")
    db.query("INSERT INTO v VALUES (1, $1, $2)", [1, 2.5, 3], np.array([1, 2]))
    db.query("INSERT INTO v VALUES (2, $1, NULL)", np.array([0, 0, 1], dtype=np.float64))
    row = db.query("SELECT * FROM v ORDER BY e <-> $1 LIMIT 1", "[1, 2, 3]")[0]
    assert db.query("SELECT * FROM v ORDER BY e <-> $1 LIMIT 1", [1, 2, 3])[0]["id"] == row["id"]
    assert row["e"].tolist() == [1, 2.5, 3]
    assert (row["e"].dtype, row["h"].dtype) == (np.float32, np.float16)
    with pytest.raises(TypeMismatch, match="expected 3 dimensions, not 2"):
        db.query("INSERT INTO v VALUES (3, $1)", [1, 2])
    for bad in ("1,2,3", "{1,2,3}", "[1,2,3", b"[1,2,3]", [[1], [2]], ["x"], [float("nan"), 1, 2]):
        with pytest.raises((TypeMismatch, InvalidInput)):
            db.query("INSERT INTO v VALUES (3, $1)", bad)
    db.query("INSERT INTO v SELECT n, ARRAY[n, n % 7, 1]::vector(3) FROM generate_series(10, 2000) n")
    db.execute("CREATE INDEX ON v USING hnsw (e vector_l2_ops)")
    for exact in (False, True):  # a filter inside the search never leaves too few
        rows = db.query("SELECT id FROM v WHERE id % 50 = 0 ORDER BY e <-> $1 LIMIT 30", [50, 1, 1], exact=exact)
        assert len(rows) == 30
    plan = db.query("EXPLAIN SELECT id FROM v ORDER BY e <-> '[1,2,3]' LIMIT 5", exact=True)
    assert "Seq Scan" in str(plan)
    assert "Index Scan" in str(db.query("EXPLAIN SELECT id FROM v ORDER BY e <-> '[1,2,3]' LIMIT 5"))


def test_scripts(db: Database) -> None:
    done = db.execute("CREATE TABLE a (x int); INSERT INTO a VALUES (1); -- a comment ; with\nINSERT INTO a VALUES (2)")
    assert done.statements == 3
    with pytest.raises(UndefinedTable):
        db.execute("INSERT INTO a VALUES (3); INSERT INTO nowhere VALUES (1)")
    assert db.query("SELECT count(*) FROM a")[0][0] == 2
    rows = db.query("INSERT INTO a VALUES (3); SELECT x FROM a ORDER BY x")
    assert [r["x"] for r in rows] == [1, 2, 3]
    with pytest.raises(UndefinedColumn):
        db.query("INSERT INTO a VALUES (4); SELECT y FROM a")
    assert db.query("SELECT count(*) FROM a")[0][0] == 3
    with pytest.raises(UndefinedColumn):
        db.execute("BEGIN; INSERT INTO a VALUES (5); COMMIT; SELECT nothing")
    assert db.query("SELECT count(*) FROM a")[0][0] == 4


@pytest.mark.parametrize(
    ("sql", "error", "state"),
    [
        ("SELEC 1", SqlSyntaxError, "42601"),
        ("SELECT * FROM nowhere", UndefinedTable, "42P01"),
        ("SELECT nothing FROM t", UndefinedColumn, "42703"),
        ("SELECT 1 + 'x'::text", TypeMismatch, "42883"),
        ("SELECT 'x'::int", TypeMismatch, "22P02"),
        ("INSERT INTO t (id) VALUES (NULL)", NotNullViolation, "23502"),
        ("INSERT INTO t (id, n) VALUES (9, -1)", CheckViolation, "23514"),
        ("INSERT INTO c VALUES (7)", ForeignKeyViolation, "23503"),
        ("INSERT INTO t (id, n) VALUES (1, 1)", UniqueViolation, "23505"),
        ("DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'XX123'; END $$", QueryError, "XX123"),
    ],
)
def test_errors_keep_state_and_position(db: Database, sql: str, error: type[QueryError], state: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n > 0)); CREATE TABLE c (t int REFERENCES t)")
    db.query("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(error) as caught:
        db.query(sql)
    assert type(caught.value) is error
    assert caught.value.sqlstate == state
    assert caught.value.sql == sql[:100]
    assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
    if error is UniqueViolation:
        assert isinstance(caught.value, DuplicateKey)
        assert caught.value.index == ("id",)
    if error in (SqlSyntaxError, UndefinedTable, UndefinedColumn):
        assert caught.value.position == {"42601": 1, "42P01": 15, "42703": 8}[state]


def test_parameters_are_checked_and_never_shown(db: Database) -> None:
    for params in ((), (1, 2)):
        with pytest.raises(InvalidInput, match="1 argument"):
            db.query("SELECT $1::int", *params)
    with pytest.raises(TypeMismatch) as caught:
        db.query("SELECT $1::int", "s3cret")
    assert "$1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    for bad in ("", "  ", 5, None, "SELECT '\0'"):
        with pytest.raises(InvalidInput):
            db.query(bad)  # type: ignore[arg-type]  # that is the point


def test_a_timeout_cancels_on_the_server(db: Database, database_url: str) -> None:
    db.execute("CREATE TABLE t (id int)")
    with pytest.raises(QueryTimeout, match=r"0\.2 seconds") as caught:
        db.query("WITH x AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT pg_sleep(30) FROM x", timeout=0.2)
    assert caught.value.timeout == 0.2
    assert db.query("SELECT count(*) FROM t")[0][0] == 0
    assert db.query("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
                    " AND pid <> pg_backend_pid()")[0][0] == 0  # fmt: skip
    with db.transaction() as tx:
        tx.query("INSERT INTO t VALUES (1)")
        with pytest.raises(QueryTimeout), tx.transaction() as inner:
            inner.query("SELECT pg_sleep(30)", timeout=0.1)
        assert tx.query("SELECT count(*) FROM t")[0][0] == 1
    with Database.open(database_url, timeout=0.1) as other, pytest.raises(QueryTimeout):
        other.query("SELECT pg_sleep(30)")


def test_transactions(db: Database) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with db.transaction() as tx:
        tx.query("INSERT INTO t VALUES (1)")
        assert tx.query("SELECT count(*) FROM t")[0][0] == 1
        assert db.query("SELECT count(*) FROM t")[0][0] == 0
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:
        tx.query("INSERT INTO t VALUES (2)")
        raise ZeroDivisionError
    with db.transaction() as tx:
        tx.query("INSERT INTO t VALUES (3)")
        with pytest.raises(UniqueViolation), tx.transaction() as inner:
            inner.query("INSERT INTO t VALUES (4)")
            inner.query("INSERT INTO t VALUES (1)")
        with tx.transaction() as inner:
            inner.query("INSERT INTO t VALUES (5)")
            with pytest.raises(TransactionError, match="savepoint"):
                tx.query("SELECT 1")
            with inner.transaction() as third:
                third.query("INSERT INTO t VALUES (6)")
                third.rollback()
                with pytest.raises(TransactionError, match="has ended"):
                    third.query("SELECT 1")
    assert [r[0] for r in db.query("SELECT id FROM t ORDER BY id")] == [1, 3, 5]
    with db.transaction() as tx:
        tx.query("INSERT INTO t VALUES (7)")
        tx.rollback()
    with pytest.raises(QueryError, match="read-only"), db.transaction(readonly=True) as tx:
        tx.query("INSERT INTO t VALUES (8)")
    with pytest.raises(TransactionError, match="not committed"), db.transaction() as tx:
        with pytest.raises(UniqueViolation):
            tx.query("INSERT INTO t VALUES (1)")
        with pytest.raises(TransactionError, match="rolled back"):
            tx.query("SELECT 1")
    with pytest.raises(InvalidInput, match="isolation"):
        db.transaction(isolation="snapshot")  # type: ignore[arg-type]  # that is the point
    assert db.query("SELECT count(*) FROM t")[0][0] == 3


def test_conflicts_are_tried_again(db: Database) -> None:
    db.execute("CREATE TABLE n (id int PRIMARY KEY, x int); INSERT INTO n VALUES (1, 0)")
    first = db.transaction(isolation="repeatable read")
    with pytest.raises(SerializationFailure) as caught, first as tx:
        tx.query("SELECT * FROM n")
        db.query("UPDATE n SET x = x + 1")
        tx.query("UPDATE n SET x = x + 1")
    assert isinstance(caught.value, Conflict)
    runs = []

    def body(tx: howdah.SqlTransaction) -> int:
        runs.append(1)
        seen = tx.query("SELECT x FROM n")[0]["x"]
        if len(runs) < 3:
            db.query("UPDATE n SET x = x + 1")
        tx.query("UPDATE n SET x = $1", seen + 100)
        return int(seen)

    assert db.transact(body, isolation="repeatable read") == 3
    assert len(runs) == 3
    assert db.query("SELECT x FROM n")[0]["x"] == 103


def test_concurrent_increments_lose_nothing(database_url: str) -> None:
    async def main() -> None:
        async with AsyncDatabase.open(database_url, pool_size=5) as db:
            await db.execute("CREATE TABLE n (x int); INSERT INTO n VALUES (0)")
            await asyncio.gather(*(db.query("UPDATE n SET x = x + 1") for _ in range(100)))
            assert (await db.query("SELECT x FROM n"))[0]["x"] == 100
            async with db.transaction() as tx:  # statements of several tasks run one after the other
                await asyncio.gather(*(tx.query("INSERT INTO n VALUES ($1)", n) for n in range(20)))
            assert (await db.query("SELECT count(*) FROM n"))[0][0] == 21

    asyncio.run(main())


def test_streams_keep_memory_bounded_and_end_early(db: Database) -> None:
    total = 0
    for row in db.stream("SELECT n, repeat('x', 1000) FROM generate_series(1, $1::int) n", 50_000, chunk=100):
        total += row["n"]
    assert total == 50_000 * 50_001 // 2
    stream: Any = db.stream("SELECT generate_series(1, 1000000)")
    assert next(stream)[0] == 1
    stream.close()
    with pytest.raises(TypeMismatch, match="zero"):
        list(db.stream("SELECT 1 / (n - 500) FROM generate_series(1, 1000) n", chunk=10))
    seen: list[int] = []
    rows = db.stream("SELECT n, 1 / (n - 500) FROM generate_series(1, 1000) n", chunk=10)
    with pytest.raises(TypeMismatch, match="zero"):
        for row in rows:
            seen.append(row[0])
    assert seen[:490] == list(range(1, 491))  # what came before it was given
    for chunk in (0, 1.5):
        with pytest.raises(InvalidInput):
            list(db.stream("SELECT 1", chunk=chunk))  # type: ignore[arg-type]  # that is the point
    assert db.query("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'")[0][0] == 0


def test_a_program_ends_with_a_stream_unread(database_url: str) -> None:
    script = "import howdah, sys; rows = howdah.Database.open(sys.argv[1]).stream('SELECT generate_series(1, 100000)'); next(rows)"
    assert subprocess.run([sys.executable, "-c", script, database_url], timeout=60, check=False).returncode == 0


def test_copies(db: Database, tmp_path: Path) -> None:
    db.execute('CREATE SCHEMA app; CREATE TABLE app."T x" (id int, name text, meta jsonb, e vector(2))')
    rows = [(n, f"name {n}", {"n": n}, [n, 1]) for n in range(1000)]
    assert db.copy_in('app."T x"', rows) == 1000
    assert db.copy_in('app."T x"', ((n, None) for n in range(5)), columns=["id", "name"]) == 5
    assert db.copy_in('app."T x"', []) == 0
    file = tmp_path / "out.csv"
    assert db.copy_out('SELECT id, name FROM app."T x" WHERE id < $1 AND name IS NOT NULL', file, 3, header=True) == 3
    assert file.read_text() == "id,name\n0,name 0\n1,name 1\n2,name 2\n"
    assert db.copy_in('app."T x"', file, columns=["id", "name"], header=True) == 3
    assert db.copy_in('app."T x"', b"7;x\n8;y\n", columns=["id", "name"], delimiter=";") == 2
    assert db.copy_in('app."T x"', io.BytesIO(b"9,z\n"), columns=["id", "name"]) == 1
    whole: list[bytes] = []
    count = db.query('SELECT count(*) FROM app."T x"')[0][0]
    assert db.copy_out('app."T x"', whole.append, format="binary") == count
    db.execute('CREATE TABLE copy (LIKE app."T x")')
    assert db.copy_in("copy", whole, format="binary") == count
    same = 'SELECT count(*) FROM (SELECT * FROM copy EXCEPT ALL SELECT * FROM app."T x") d'
    assert db.query(same)[0][0] == 0


def test_bad_copies_store_nothing(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    for source, error in (
        (b"1\nx\n", TypeMismatch),
        ([(1,), ("x",)], TypeMismatch),
        ([(1,), (1,)], UniqueViolation),
        ([{"id": 1}], InvalidInput),
        (["ab"], InvalidInput),
        (5, InvalidInput),
        (tmp_path / "none", NotFound),
    ):
        with pytest.raises(error):
            db.copy_in("t", source)
    arguments: Any
    for arguments in ({"format": "xml"}, {"format": "binary", "header": True}):
        with pytest.raises(InvalidInput):
            db.copy_in("t", b"", **arguments)
    with pytest.raises(InvalidInput, match="a name"):
        db.copy_in("t; DROP TABLE t", [(1,)])
    with pytest.raises(UndefinedTable):
        db.copy_in("nowhere", [(1,)])
    with pytest.raises(NotFound):
        db.copy_out("t", tmp_path / "no" / "file")
    with pytest.raises(InvalidInput):
        db.copy_out("t", 5)
    assert db.query("SELECT count(*) FROM t")[0][0] == 0


def test_arrow_in_and_out(db: Database) -> None:
    table = pa.table(
        {"id": [1, 2, None], "tags": [["a"], [], None], "at": pa.array([0, 1, None], pa.timestamp("us", "UTC"))}
    )
    db.execute("CREATE TABLE t (id bigint, tags text[], at timestamptz)")
    assert db.copy_in("t", table) == 3
    assert db.copy_in("t", table.to_batches()[0]) == 3
    assert db.copy_in("t", pa.RecordBatchReader.from_batches(table.schema, table.to_batches())) == 3
    found = db.arrow("SELECT DISTINCT * FROM t ORDER BY id")
    assert found.equals(table)
    wide = db.arrow(
        "SELECT 1::int2 a, 2.5::float4 b, '1.50'::numeric c, 'x'::bytea d, '{\"k\": 1}'::jsonb e, NULL::date f,"
        " '00000000-0000-0000-0000-000000000007'::uuid g, '[1,2]'::vector h, ARRAY[1,NULL] i, '1 day'::interval::text j"
    )
    assert wide.schema.field("h").type == pa.list_(pa.float32())
    assert wide.to_pylist()[0] == {
        "a": 1, "b": 2.5, "c": "1.50", "d": b"x", "e": '{"k":1}', "f": None,
        "g": "00000000-0000-0000-0000-000000000007", "h": [1.0, 2.0], "i": [1, None], "j": "1 day",
    }  # fmt: skip
    assert db.arrow("SELECT 1 AS x WHERE false").schema.names == ["x"]
    with pytest.raises(howdah.UndefinedTable):
        db.copy_in("there_is_none", [])
    for odd in ("'1 day'::interval", "int4range(1, 2)", "ARRAY[[1,2],[3,4]]", "point(1, 2)", "B'101'"):
        with pytest.raises(howdah.Unsupported, match="x::text"):
            db.arrow(f"SELECT {odd} AS x")


def test_a_changed_shape_is_seen(db: Database) -> None:
    db.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    assert db.query("SELECT * FROM t").columns == ("a",)
    with Database.open(str(db._async._server.arguments["dsn"])) as other:  # type: ignore[union-attr]  # it is started
        other.execute("ALTER TABLE t ADD b text DEFAULT 'x'")
    rows = db.query("SELECT * FROM t")
    assert (rows.columns, rows[0]["b"]) == (("a", "b"), "x")


def test_listen_and_notices(database_url: str) -> None:
    told: list[str] = []
    with Database.open(database_url, on_notice=told.append) as db:
        db.execute("DO $$ BEGIN RAISE NOTICE 'look here'; END $$")
        assert any("look here" in t for t in told)
        notes: Any = db.listen("news")

        def send() -> None:
            for _ in range(50):
                db.query("SELECT pg_notify('news', 'hello')")
                time.sleep(0.02)

        sender = threading.Thread(target=send)
        sender.start()
        note = next(notes)
        sender.join()
        assert (note.channel, note.payload) == ("news", "hello")
        notes.close()


def test_everything_of_postgres_is_there(db: Database) -> None:
    db.execute("""
        CREATE EXTENSION pg_trgm;
        CREATE TABLE p (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, doc jsonb, body text, n int DEFAULT 5);
        CREATE VIEW v AS SELECT id, doc->>'name' AS name FROM p;
        CREATE FUNCTION twice(x int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN x * 2; END $$;
        CREATE SEQUENCE s;
    """)
    db.query("INSERT INTO p (doc, body) VALUES ($1, 'the quick fox'), ($2, 'lazy dogs')", {"name": "a"}, {"name": "b"})
    assert db.query("SELECT name FROM v WHERE id = 2")[0]["name"] == "b"
    assert db.query("SELECT id FROM p WHERE doc @> $1", {"name": "a"})[0]["id"] == 1
    assert db.query("SELECT id FROM p WHERE to_tsvector('english', body) @@ to_tsquery('dog')")[0]["id"] == 2
    rows = db.query(
        "WITH x AS (SELECT *, row_number() OVER (ORDER BY id DESC) r FROM p) SELECT id, r FROM x ORDER BY r"
    )
    assert [tuple(r) for r in rows] == [(2, 1), (1, 2)]
    upsert = "INSERT INTO p (id, n) OVERRIDING SYSTEM VALUE VALUES (1, 7) ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING n"
    assert db.query(upsert)[0]["n"] == 7
    assert db.query("SELECT twice($1), nextval('s'), similarity('abc', 'abd') > 0 AS s", 21)[0]["twice"] == 42
    assert [r[0] for r in db.query("SELECT id FROM p WHERE id = ANY($1) ORDER BY id", [1, 2, 9])] == [1, 2]


def test_backup_and_restore(db: Database, servers: Any, tmp_path: Path) -> None:
    db.execute("""
        CREATE SCHEMA "odd name"; CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE "odd name"."T" (id int PRIMARY KEY, m mood, tags text[], e vector(2), CHECK (id > 0));
        CREATE VIEW v AS SELECT count(*) AS n FROM "odd name"."T"; CREATE SEQUENCE s START 41;
        SELECT nextval('s');
    """)
    text = "tab\tnew\nline \\N 42"
    db.query("INSERT INTO \"odd name\".\"T\" VALUES (1, 'ok', $1, '[1,2]')", [text, "42"])
    size = db.backup(tmp_path / "dump")
    assert size == (tmp_path / "dump").stat().st_size > 0
    with Database.open(f"pg:{servers.root / f'other{next(_numbers)}'}") as other:
        other.restore(tmp_path / "dump")
        row = other.query('SELECT * FROM "odd name"."T"')[0]
        assert (row["m"], row["tags"], row["e"].tolist()) == ("ok", [text, "42"], [1, 2])
        assert other.query("SELECT n FROM v")[0]["n"] == 1
        assert other.query("SELECT nextval('s')")[0][0] == 42
        with pytest.raises(howdah.BackendError, match="nothing was changed"):
            other.restore(tmp_path / "dump")
        (tmp_path / "junk").write_text("hello")
        with pytest.raises(InvalidInput, match="no backup"):
            other.restore(tmp_path / "junk")
        with pytest.raises(NotFound):
            other.restore(tmp_path / "none")
        with pytest.raises(NotFound):
            other.backup(tmp_path / "no" / "dump")
    assert not (tmp_path / "dump.part").exists()


def test_the_database_of_a_store(servers: Any) -> None:
    place = f"pg:{servers.root / f'store{next(_numbers)}'}"
    with howdah.connect(place) as store:
        store.kv("k").put("a", 1)
        db = store.database
        assert store.database._async is db._async
        assert db.query('SELECT count(*) FROM howdah."_kv_k"')[0][0] == 1
        assert db.status().place == place
        assert db.status().extensions["vector"]
        assert db.checkpoint().lsn
        with Database.open(place) as other:
            other.execute("CREATE TABLE mine (x int)")
        assert db.query("SELECT count(*) FROM mine")[0][0] == 0
    with pytest.raises(Closed):
        db.query("SELECT 1")
    with howdah.connect("memory:") as store, pytest.raises(Unsupported, match="Postgres"):
        _ = store.database


def test_opening_and_closing(database_url: str, tmp_path: Path) -> None:
    for bad in ("agent.db", "memory:", "pg:", "nonsense:x"):
        with pytest.raises(InvalidInput):
            Database.open(bad)
    options: Any
    for options in ({"pool_size": 0}, {"timeout": -1}, {"extensions": "vector"}):
        with pytest.raises(InvalidInput):
            Database.open(database_url, **options)
    with Database.open("postgresql://postgres@127.0.0.1:1/x") as nobody, pytest.raises(StartupError, match="no server"):
        nobody.query("SELECT 1")
    with (
        Database.open(database_url.rpartition("/")[0] + "/no_such_db") as missing,
        pytest.raises(StartupError, match="no_such_db"),
    ):
        missing.start()
    with Database.open(database_url, extensions=("no_such",)) as wrong, pytest.raises(StartupError, match="no_such"):
        wrong.start()

    async def main() -> None:
        db = AsyncDatabase.open(database_url)
        await asyncio.gather(*(db.start() for _ in range(5)))
        slow = asyncio.create_task(db.query("SELECT pg_sleep(0.3), 7 AS x"))
        await asyncio.sleep(0.1)
        await db.close()
        assert (await slow)[0]["x"] == 7  # calls under way are waited for
        await db.close()
        for call in (db.query("SELECT 1"), db.start(), db.execute("SELECT 1")):
            with pytest.raises(Closed):
                await call

    asyncio.run(main())


def test_a_lost_connection_is_told_and_replaced(db: Database, database_url: str) -> None:
    db.execute("CREATE TABLE t (x int)")
    with Database.open(database_url) as killer:
        with pytest.raises((TransactionError, StartupError, howdah.BackendError, Closed)), db.transaction() as tx:
            tx.query("INSERT INTO t VALUES (1)")
            killer.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                         " AND datname = current_database()")  # fmt: skip
            time.sleep(0.1)
            tx.query("INSERT INTO t VALUES (2)")
        assert db.query("SELECT count(*) FROM t")[0][0] == 0


def test_cut_short_while_it_begins_loses_nobody_elses_write(database_url: str) -> None:
    async def main() -> None:
        async with AsyncDatabase.open(database_url, pool_size=1) as db:
            await db.execute("CREATE TABLE t (x int)")

            async def block() -> None:
                async with db.transaction():
                    await asyncio.sleep(1)

            for n in range(30):
                task = asyncio.create_task(block())
                for _ in range(n % 3):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await db.query("INSERT INTO t VALUES ($1)", n)
            assert (await db.query("SELECT count(*) FROM t"))[0][0] == 30

    asyncio.run(main())


def test_a_target_that_fails_stops_nothing_else(db: Database, tmp_path: Path) -> None:
    def refuse(_: bytes) -> None:
        raise ValueError("no room")

    for target, error in ((refuse, ValueError), (io.StringIO(), TypeError)):
        with pytest.raises(error):
            db.copy_out("SELECT generate_series(1, 100000)", target)
        assert db.query("SELECT 1")[0][0] == 1
    kept = tmp_path / "kept"
    kept.write_text("mine")
    with pytest.raises(UndefinedTable):
        db.copy_out("nowhere", kept)
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [kept]


def test_copies_see_a_changed_table(db: Database, database_url: str) -> None:
    db.execute("CREATE TABLE t (x float8)")
    db.copy_in("t", [(5,)])
    with Database.open(database_url) as other:
        other.execute("TRUNCATE t; ALTER TABLE t ALTER x TYPE bigint")
    db.copy_in("t", [(5,)])
    assert db.query("SELECT x FROM t")[0]["x"] == 5


def test_streams_and_savepoints_of_a_transaction_are_kept_apart(database_url: str) -> None:
    async def main() -> None:
        async with AsyncDatabase.open(database_url) as db:
            await db.execute("CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 100)")
            async with db.transaction() as tx:
                stream: Any = tx.stream("SELECT x FROM t", chunk=10)
                async for _ in stream:
                    with pytest.raises(TransactionError, match="stream"):
                        await tx.query("SELECT 1")
                    break
            await stream.aclose()

            async def inside(tx: Any, n: int) -> None:
                async with tx.transaction() as inner:
                    await inner.query("INSERT INTO t VALUES ($1)", 1000 + n)
                    await asyncio.sleep(0.01)
                    if n == 0:
                        raise ValueError("boom")

            async with db.transaction() as tx:
                ends = await asyncio.gather(inside(tx, 0), inside(tx, 1), return_exceptions=True)
                await tx.query("INSERT INTO t VALUES (2000)")
            assert [type(e) for e in ends] == [ValueError, TransactionError]  # one at a time
            assert (await db.query("SELECT count(*) FROM t WHERE x >= 1000"))[0][0] == 1
            orphan: Any = None
            async with db.transaction() as tx:
                orphan = tx.transaction()
                await orphan.__aenter__()
            with pytest.raises(TransactionError, match="has ended"):
                await orphan.query("SELECT 1")
            await orphan.__aexit__(None, None, None)
            with pytest.raises(KeyError, match="own"):
                async with db.transaction() as tx, tx.transaction() as inner:
                    inner._open_session().terminate()
                    raise KeyError("own")
            for sql in ("BEGIN", "commit;", "savepoint x"):
                with pytest.raises(InvalidInput, match="transaction"):
                    await db.query(sql)

    asyncio.run(main())


def test_passwords_stay_out_of_arguments_and_messages() -> None:
    from howdah.database.backup import _where
    from howdah.database.server import Server

    dsn = "postgresql://u:hunt%23er2@host:5432/x?password=other&application_name=me"
    arguments, environment = _where(Server("x", {"dsn": dsn}))
    assert "hunt" not in str(arguments)
    assert "other" not in str(arguments)
    assert environment == {"PGPASSWORD": "other"}
    with Database.open("postgresql://u:hunt#er2@127.0.0.1:1/x") as bad, pytest.raises(Error) as caught:
        bad.query("SELECT 1")
    assert "hunt" not in str(caught.value)


def test_settings_do_not_reach_the_next_caller(database_url: str) -> None:
    with Database.open(database_url, pool_size=1) as db:
        db.execute("CREATE SCHEMA s; CREATE TABLE s.hidden (id int)")
        for sql in (
            "SET search_path = s",
            "/* a */ set work_mem = '1MB'; SELECT 1",
            "SELECT set_config('search_path', 's', false)",
            "CREATE TEMP TABLE hidden (id int)",
        ):
            db.query(sql)
            with pytest.raises(howdah.UndefinedTable):
                db.query("SELECT * FROM hidden")
        assert db.query("SHOW work_mem")[0][0] == "4MB"
        first = db.query("SELECT pg_backend_pid()")[0][0]
        db.execute("CREATE TABLE t (a int)")
        db.query("UPDATE t SET a = 1")
        with db.transaction() as tx:
            tx.query("SET LOCAL search_path = s")
            assert tx.query("SELECT count(*) FROM hidden")[0][0] == 0
        assert db.query("SELECT pg_backend_pid()")[0][0] == first


def test_what_a_database_does_not_take(database_url: str) -> None:
    with pytest.raises(howdah.Unsupported, match="pooler"):
        Database.open(f"{database_url}?pooler=1")
    with Database.open(database_url) as db, pytest.raises(howdah.InvalidInput, match="retries"):
        db.transact(lambda tx: None, retries=-1)


def test_values_that_python_has_not_are_told(db: Database) -> None:
    for value in ("interval '-infinity'", "date '294276-01-01'", "time '24:00'", "date '2020-01-01 BC'"):
        with pytest.raises(TypeMismatch, match="cast it to text"):
            db.query(f"SELECT {value}")
        assert db.query(f"SELECT ({value})::text")[0][0]


def test_a_change_of_shape_is_met_by_no_prepared_statement(db: Database) -> None:
    db.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    sql = "SELECT * FROM t"
    for number, change in enumerate(("ALTER TABLE t ADD COLUMN b int", "ALTER TABLE t RENAME b TO c", "DROP TABLE t")):
        with db.transaction() as first, db.transaction() as second:  # two connections know the statement
            assert len(first.query(sql)) == len(second.query(sql)) == 1
        (db.query if number % 2 else db.execute)(change)
        if number == 2:
            db.execute("CREATE TABLE t (d text); INSERT INTO t VALUES ('x')")
        with db.transaction() as first, db.transaction() as second:
            assert first.query(sql).columns == second.query(sql).columns == (("a", "b"), ("a", "c"), ("d",))[number]
    with db.transaction() as tx:
        assert tx.query(sql).columns == ("d",)
        tx.query("ALTER TABLE t ADD COLUMN e int")
        assert tx.query(sql).columns == ("d", "e")


def test_a_parameter_that_does_not_fit_leaves_nothing_open(database_url: str) -> None:
    """The server has prepared the statement by then, and would wait within a transaction."""
    with Database.open(database_url, pool_size=1) as db, Database.open(database_url) as other:
        db.execute("CREATE TABLE p (id int PRIMARY KEY, a int)")
        for sql, params in (
            ("SELECT a FROM p WHERE id = $1", ["x"]),
            ("SELECT a + 1 FROM p WHERE id = $1", [2**40]),
            ("SELECT a + 2 FROM p WHERE id = $1", []),
            ("INSERT INTO p VALUES ($1, $2)", [1, 2, 3]),
        ):
            with pytest.raises(Error):
                db.query(sql, *params)
            open_ = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'"
            assert other.query(open_)[0][0] == 0
            with db.transaction(isolation="repeatable read") as tx:
                assert tx.query("SELECT count(*) FROM p")[0][0] == 0
        with db.transaction() as tx:
            with pytest.raises(Error):
                tx.query("SELECT a FROM p WHERE id = $1 + 0", "x")
            assert tx.query("SELECT count(*) FROM p")[0][0] == 0


def test_a_call_that_is_cut_short_leaves_nothing_open(database_url: str) -> None:
    async def main() -> None:
        async with AsyncDatabase.open(database_url, pool_size=1) as db:
            for number in range(60):
                with suppress(TimeoutError):
                    async with asyncio.timeout(number / 20_000):
                        await db.query(f"SELECT {number}, pg_sleep(0.001)")
                async with db.transaction(isolation="repeatable read") as tx:
                    await tx.query("SELECT 1")

    asyncio.run(main())


def test_rows_that_are_too_short_and_plans_of_nonsense(db: Database) -> None:
    db.execute("CREATE TABLE short (a int, b int)")
    with pytest.raises(InvalidInput, match="a row has fewer values than short has columns"):
        db.copy_in("short", [(1,)])
    with pytest.raises(SqlSyntaxError):
        db.plan("SELECT * FROM")
    with pytest.raises(UndefinedTable):
        db.plan("SELECT * FROM nowhere")
    assert db.plan("SELECT 1; SELECT 2").kind == "plain"
