"""What a client takes: memory for what is under way, and disk for files of buckets that it has read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from howdah import Database, InvalidInput, TierError
from howdah.database.means import Cache
from tests.tiering import make, same


@pytest.fixture
def db(database_url: str, tmp_path: Path) -> Iterator[Database]:
    with Database.open(database_url, cache_dir=tmp_path / "cache") as opened:
        yield opened


def test_bad_means_are_refused(database_url: str) -> None:
    for wrong in ({"memory_mb": 7}, {"memory_mb": 64.0}, {"cache_mb": -1}, {"cache_mb": True}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            Database.open(database_url, **wrong)


def test_files_of_a_bucket_are_read_once(
    db: Database, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(db, tmp_path, 100, location=s3, partition_by="bucket(3, id)")
    db.flush()
    assert not (tmp_path / "cache").exists()
    same(db)
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 3
    with monkeypatch.context() as away:  # what is here needs no bucket
        away.setattr(
            "howdah.database.overlay.place.files",
            lambda address: (_ for _ in ()).throw(OSError(address)) if address.startswith("s3") else place(address),
        )
        same(db)
        assert db.query("SELECT sum(n) FROM t")[0] == db.query("SELECT sum(n) FROM p")[0]
        assert db.query("SELECT id FROM t ORDER BY id DESC LIMIT 1")[0][0] == 100
    for path in kept:
        path.unlink()
        path.write_bytes(b"half of a fi")  # which is of another size
    same(db)
    db.query("UPDATE t SET n = 9 WHERE id < 40")
    db.query("UPDATE p SET n = 9 WHERE id < 40")
    db.flush()
    same(db)
    (tmp_path / "other").write_text("")
    for folder in (tmp_path / "other", Path("/proc/nothing")):  # no folder: it goes without
        with Database.open(_url(db), cache_dir=folder) as other:
            same(other)
    with Database.open(_url(db), cache_mb=0, cache_dir=tmp_path / "none") as other:
        same(other)
    assert not (tmp_path / "none").exists()


def place(address: str) -> Any:
    from pyarrow import fs

    return fs.LocalFileSystem(), address.removeprefix("file://")


def _url(db: Database) -> str:
    return str(db.status().place)


def test_the_cache_keeps_what_was_asked_for_last(tmp_path: Path) -> None:
    cache, reads = Cache(tmp_path / "c", 1600), list[str]()

    def ask(name: str, size: int = 100) -> Path | None:
        return cache.file(name, size, lambda: reads.append(name) or b"x" * size)  # type: ignore[func-returns-value]

    assert ask("large", 101) is None
    assert not reads
    for n in range(16):
        path = ask(str(n))
        assert path is not None
        os.utime(path, (n, n))
    assert ask("3") == ask("3")
    assert len(reads) == 16
    assert ask("new") is not None  # in the place of the oldest
    assert ask("0") is not None
    assert reads == [*map(str, range(16)), "new", "0"]
    assert ask("3") is not None
    assert len(reads) == 18
    for path in (tmp_path / "c").iterdir():
        os.utime(path)
    assert ask("more") is None  # all may be about to be opened
    assert cache.file("short", 50, lambda: b"x") is None
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = Cache(tmp_path / "c", 1600)
            for n in range(60):
                mine.file(f"{number % 2} {n % 20}", 100, lambda: b"y" * 100)
        except BaseException as error:
            errors.append(error)

    for path in (tmp_path / "c").iterdir():
        os.utime(path, (1, 1))
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(p.stat().st_size for p in (tmp_path / "c").iterdir()) <= 1600 + 4 * 100


def test_merging_goes_in_pieces(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.database.overlay.upkeep.RUN", 2)
    monkeypatch.setattr("howdah.database.overlay.upkeep.PIECE", 2**16)
    monkeypatch.setattr("howdah.database.overlay.scan.TOGETHER", 2**20)
    make(db, tmp_path, 300, ["uuid DEFAULT gen_random_uuid()"], partition_by="kind", sort_by="n")
    for _ in range(3):
        db.flush()
        db.query("UPDATE t SET money = money + 1 WHERE id % 4 = 0")
        db.query("UPDATE p SET money = money + 1 WHERE id % 4 = 0")
    db.flush()
    mine, plain = (
        [tuple(r) for r in db.query(f"SELECT id, ts, kind, n, doc, tags, money, f FROM {name} ORDER BY id")]
        for name in "tp"
    )
    assert mine == plain
    assert db.tiers()[0].files == 5
    import pyarrow.parquet as pq
    from pyiceberg.table import StaticTable

    table = StaticTable.from_metadata(db.query("SELECT metadata FROM howdah.tiers")[0][0])
    for task in table.scan().plan_files():
        about = pq.read_metadata(task.file.file_path.removeprefix("file://"))
        assert (about.num_rows, task.file.record_count) == (60, 60)
        assert about.num_row_groups > 1
    assert table.scan().to_arrow().num_rows == 300


GROWTH = """
import howdah, sys
from howdah.database.overlay import base
url, memory, work = sys.argv[1:]
def held(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name)))
with howdah.Database.open(url, memory_mb=int(memory), cache_mb=0) as db:
    base.library()
    import pyarrow.csv, pyarrow.dataset, pyarrow.parquet
    db.query("SELECT id FROM small WHERE id = 1")
    before = held("VmRSS")
    exec(work)
print((held("VmHWM") - before) // 1024)
"""


@pytest.mark.timeout(300)
def test_memory_is_bounded(database_url: str, tmp_path: Path) -> None:
    """Of 300,000 rows of 600 bytes, which are 180 MiB, a process holds a part, and less if it is told to."""
    with Database.open(database_url) as db:
        for name in ("wide", "small"):
            db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, ts timestamptz, body text)")
            db.tier(name, location=tmp_path / name, hot_for=0, time_column="ts", partition_by=[])
        db.query(
            "INSERT INTO wide SELECT n, timestamptz '2024-01-01' + n * interval '1 minute', repeat(md5(n::text), 18) FROM generate_series(1, 300000) n"
        )
        db.query("INSERT INTO small VALUES (1, '2024-01-01', 'x')")
        assert db.flush("small").rows == 1
    grown = {}
    for memory, work in (
        (16, "assert db.flush('wide').rows == 300000"),
        (16, "assert sum(1 for _ in db.stream('SELECT * FROM wide')) == 300000"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, database_url, str(memory), work], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        grown[work] = int(done.stdout)
    assert all(value < 250 for value in grown.values()), grown


def test_a_missing_file_is_told_with_a_cache_too(db: Database, s3: str, tmp_path: Path) -> None:
    from howdah.database.overlay import place as places

    make(db, tmp_path, 20, location=s3, partition_by=[])
    db.flush()
    places.delete([a for a, _ in places.below(s3) if a.endswith(".parquet")])
    with pytest.raises(TierError, match="missing"):
        db.query("SELECT id FROM t WHERE n = 3")
