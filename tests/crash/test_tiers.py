"""A process that writes, flushes, merges and archives is killed at any moment: no row is lost, none is there twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import StaticTable

from howdah import Database

KILLS = int(os.environ.get("HOWDAH_TIER_KILLS", "5"))
WORK = """
import random, sys, howdah
from howdah.database.overlay import upkeep
url, seed = sys.argv[1:]
upkeep.RUN = 2
r = random.Random(seed)
with howdah.Database.open(url) as db:
    print("ready", flush=True)
    while True:
        pick, key, n = r.randrange(8), r.randrange(1, 60), r.randrange(10**6)
        if pick < 2:
            db.flush()
        elif pick < 4:
            print("try", key, n, flush=True)
            db.query("INSERT INTO t (id, ts, n) VALUES ($1, '2024-01-01', $2) ON CONFLICT (id) DO UPDATE SET n = excluded.n", key, n)
            print("done", flush=True)
        elif pick < 6:
            print("try", key, n, flush=True)
            changed = db.query("UPDATE t SET n = $2 WHERE id = $1", key, n).affected
            print("done" if changed else "nothing", flush=True)
        elif pick == 6:
            print("try", key, "None", flush=True)
            db.query("DELETE FROM t WHERE id = $1", key)
            print("done", flush=True)
        else:
            db.expire_snapshots("t", older_than=0, keep=2)
"""


@pytest.mark.timeout(1800)
def test_a_writer_and_flusher_is_killed_at_any_moment(database_url: str, tmp_path: Path) -> None:
    random_ = random.Random(os.environ.get("HOWDAH_TIER_SEED", "1"))
    with Database.open(database_url) as db:
        db.execute("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz, n bigint)")
        db.tier(
            "t",
            location=tmp_path / "base",
            hot_for=0,
            time_column="ts",
            partition_by=[],
            archive_after=0,
            archive_location=tmp_path / "archive",
        )
        known: dict[int, Any] = {}
        for number in range(KILLS):
            worker = subprocess.Popen(
                [sys.executable, "-c", WORK, database_url, f"{number} {random_.random()}"], stdout=subprocess.PIPE, text=True
            )  # fmt: skip
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            time.sleep(random_.uniform(0.02, 0.8))
            worker.kill()
            told = worker.communicate()[0].splitlines()
            open_change: tuple[int, Any] | None = None
            for line in told:
                word, *rest = line.split(" ")
                if word == "try" and len(rest) == 2:
                    open_change = (int(rest[0]), None if rest[1] == "None" else int(rest[1]))
                elif word in ("done", "nothing") and open_change is not None:
                    if word == "done":
                        known[open_change[0]] = open_change[1]
                    open_change = None
            rows = [tuple(row) for row in db.query("SELECT id, n FROM t ORDER BY id", tier="all")]
            expected = {key: n for key, n in known.items() if n is not None}
            found = dict(rows)
            assert len(found) == len(rows)  # none twice
            if open_change is not None and found.get(open_change[0]) != expected.get(open_change[0]):
                # What was under way when it was killed is done, or is not.
                assert found.get(open_change[0]) == open_change[1]
                known[open_change[0]] = open_change[1]
                expected = {key: n for key, n in known.items() if n is not None}
            assert found == expected
            named = db.query("SELECT metadata, rows FROM howdah.tiers")[0]
            if named["metadata"] is not None:
                assert StaticTable.from_metadata(named["metadata"]).scan().to_arrow().num_rows == named["rows"]
        db.untier("t")
        assert {row["id"]: row["n"] for row in db.query("SELECT id, n FROM t")} == expected
