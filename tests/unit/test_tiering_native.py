"""UUIDs and arrays in a base: they are what other readers expect, choose files by statistics, and come back as they were."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pyiceberg.table import StaticTable

from howdah import Database, TieringRefused
from howdah.database.overlay import commits, scan

KEYS = [UUID(int=(n << 120) + n) for n in range(1, 61)]


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


def make(db: Database, location: Path, *, key: str = "PRIMARY KEY (id)") -> None:
    """A tiered table and a plain one, with UUIDs as keys, flushed to a file for each day."""
    for name in "pt":
        db.execute(f"CREATE TABLE {name} (id uuid, ts date NOT NULL, other uuid, tags text[], marks int[], {key})")
    for name in "pt":
        db.query(
            f"INSERT INTO {name} SELECT k, date '2024-01-01' + (n / 10)::int, CASE WHEN n % 3 > 0 THEN k END, ARRAY['a', NULL, k::text],"
            " ARRAY[n, NULL] FROM unnest($1::uuid[]) WITH ORDINALITY u(k, n)",
            KEYS,
        )
    db.tier("t", location=location, hot_for=0, time_column="ts")
    db.flush()


def same(db: Database) -> None:
    mine, plain = (list(map(tuple, db.query(f"SELECT * FROM {name} ORDER BY id, ts"))) for name in "tp")
    assert mine == plain


def test_keys_by_uuid_open_one_file(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(db, tmp_path / "base")
    assert db.tiers()[0].files == 7
    for sql, given, rows in (
        ("SELECT * FROM t WHERE id = $1", KEYS[5], 1),
        ("SELECT * FROM t WHERE id = $1", str(KEYS[5]), 1),
        (f"SELECT * FROM t WHERE id = '{KEYS[5]}'", None, 1),
        (f"SELECT * FROM t WHERE id = '{KEYS[5]}'::uuid", None, 1),
        ("SELECT * FROM t WHERE id = ANY($1)", KEYS[2:5], 3),
        ("SELECT * FROM t WHERE id > $1", KEYS[58], 1),
        ("SELECT * FROM t WHERE id BETWEEN $1 AND $1", KEYS[20], 1),
        ("SELECT * FROM t WHERE other = $1", KEYS[9], 1),
    ):
        found = db.query(sql, *(() if given is None else (given,)))
        assert (len(found), found.files_read) == (rows, 1), sql
    assert db.query("SELECT count(*) FROM t WHERE id = $1", UUID(int=5)).files_read == 0
    assert db.query("UPDATE t SET marks = marks || 7 WHERE id = $1 RETURNING marks", KEYS[5])[0][0] == [6, None, 7]
    db.query("UPDATE p SET marks = marks || 7 WHERE id = $1", KEYS[5])
    assert db.query("DELETE FROM t WHERE id = ANY($1)", KEYS[7:9]).affected == 2
    db.query("DELETE FROM p WHERE id = ANY($1)", KEYS[7:9])
    same(db)
    db.flush()
    same(db)
    sums = "SELECT other, count(*), min(ts) FROM {} GROUP BY other ORDER BY 1"
    assert list(map(tuple, db.query(sums.format("t")))) == list(map(tuple, db.query(sums.format("p"))))
    merge = "MERGE INTO {} x USING unnest($1::uuid[]) k ON x.id = k WHEN MATCHED THEN UPDATE SET tags = '{{}}' WHEN NOT MATCHED THEN INSERT VALUES (k, '2025-01-01')"
    for name in "tp":
        db.query(merge.format(name), [KEYS[1], KEYS[7], UUID(int=9)])
    same(db)


def test_groups_of_rows_are_left_out_by_uuid(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(commits.PROPERTIES, "write.parquet.row-group-limit", "5")
    for name in "pt":
        db.execute(f"CREATE TABLE {name} (id uuid PRIMARY KEY, ts date)")
        db.query(f"INSERT INTO {name} SELECT k, '2024-01-01' FROM unnest($1::uuid[]) k", KEYS)
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
    db.flush()
    seen: list[list[int]] = []
    original = scan._groups

    def noted(*given: Any) -> list[int]:
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(scan, "_groups", noted)
    assert len(db.query("SELECT * FROM t WHERE id = $1", KEYS[31])) == 1
    assert seen == [[6]]


def test_what_others_read(db: Database, tmp_path: Path) -> None:
    make(db, tmp_path / "base")
    table = StaticTable.from_metadata(db.query("SELECT metadata FROM howdah.tiers")[0][0])
    assert [str(f.field_type) for f in table.schema().fields] == ["uuid", "date", "uuid", "list<string>", "list<int>"]
    rows = sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["id"].bytes)
    assert (rows[0]["id"], rows[0]["tags"], rows[0]["marks"]) == (KEYS[0], ["a", None, str(KEYS[0])], [1, None])
    db.query("DELETE FROM t WHERE id = $1", KEYS[3])
    db.query("INSERT INTO t (id, ts, tags) VALUES ($1, '2030-01-01', '{hot}')", UUID(int=3))
    found = db.analyze("SELECT id, tags, marks[1] AS m FROM t WHERE id <> $1 ORDER BY id", str(KEYS[1])).to_pylist()
    assert [row["id"] for row in found] == [
        str(UUID(int=3)) if isinstance(found[0]["id"], str) else UUID(int=3),
        *(type(found[0]["id"])(str(k)) for k in KEYS if k not in (KEYS[1], KEYS[3])),
    ]
    assert (found[0]["tags"], found[1]["m"]) == (["hot"], 1)


def test_types_without_a_twin_say_what_they_are(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, ts date, span interval, ids uuid[], grid int[][])")
    db.query("INSERT INTO t VALUES (1, '2024-01-01', '1 mon', ARRAY[$1::uuid], '{{1,2},{3,4}}')", KEYS[0])
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
    assert db.flush().rows == 1
    db.execute("ALTER TABLE t ADD COLUMN address inet, ADD COLUMN more smallint[]")
    fields = StaticTable.from_metadata(db.query("SELECT metadata FROM howdah.tiers")[0][0]).schema().fields
    assert [(str(f.field_type), f.doc) for f in fields[2:]] == [
        ("string", "interval"), ("string", "uuid[]"), ("string", "integer[]"), ("string", "inet"), ("list<int>", None),
    ]  # fmt: skip
    assert tuple(db.query("SELECT ids, grid, more FROM t")[0]) == ([KEYS[0]], [[1, 2], [3, 4]], None)


def test_arrays_of_every_kind_come_back(db: Database, tmp_path: Path) -> None:
    random_ = random.Random(7)
    columns = {
        "a": "text[]",
        "b": "int[]",
        "c": "boolean[]",
        "d": "float8[]",
        "e": "varchar(9)[]",
        "f": "real[]",
        "g": "bigint[]",
        "h": "smallint[]",
    }
    texts = ["", "NULL", "null", "a,b", '"', "\\", "{}", " x ", "é\n\t", "plain", "-1", "[1:2]={1,2}"]
    for name in "tp":
        db.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, ts date, {', '.join(f'{c} {t}' for c, t in columns.items())})"
        )

    def some(type_: str) -> list[Any] | None:
        if random_.random() < 0.2:
            return None
        pick: dict[str, list[Any]] = {
            "t": texts,
            "v": texts[:8],
            "b": [True, False],
            "i": [0, -(2**31)],
            "s": [7, -(2**15)],
            "f": [0.1, float("inf"), -0.0, 1e-300],
            "r": [0.5, float("-inf")],
        }
        values: list[Any] = [2**62, -1] if type_ == "bigint[]" else pick[type_[0]]
        return [random_.choice([*values, None]) for _ in range(random_.randrange(4))]

    for n in range(120):
        row: list[Any] = [n, *(some(t) for t in columns.values())]
        for name in "tp":
            db.query(
                f"INSERT INTO {name} SELECT $1, '2024-01-01', {', '.join(f'${i + 2}' for i in range(len(columns)))}",
                *row,
            )
    for name in "tp":  # what a list has no form for
        db.execute(
            f"INSERT INTO {name} (id, ts, b) VALUES (1000, '2024-01-01', '[0:1]={{1,2}}'), (1001, '2024-01-01', '{{{{1}},{{2}}}}')"
        )
    db.tier("t", location=tmp_path / "base", hot_for=0, time_column="ts")
    assert (db.flush().rows, db.tiers()[0].hot_rows) == (120, 2)
    for shown in (
        "*",
        "id, a::text, b::text, c::text, d::text, e::text, f::text, g::text, h::text",
        "to_jsonb(q)::text",
    ):
        mine, plain = ([repr(tuple(r)) for r in db.query(f"SELECT {shown} FROM {name} q ORDER BY id")] for name in "tp")
        assert mine == plain
    assert db.untier("t") == 120
    mine, plain = ([repr(tuple(r)) for r in db.query(f"SELECT * FROM {name} ORDER BY id")] for name in "tp")
    assert mine == plain


def test_uuids_do_not_partition(db: Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id uuid PRIMARY KEY, ts date, tags text[])")
    wrong: list[dict[str, Any]] = [{"partition_by": "bucket(4, id)"}, {"partition_by": "tags"}, {"sort_by": "tags"}]
    for options in wrong:
        with pytest.raises(TieringRefused):
            db.tier("t", location=tmp_path / json.dumps(options)[:9], time_column="ts", **options)
