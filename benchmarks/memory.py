"""What processes hold in memory: an idle embedded server, and a client that opens, plans, flushes, streams and analyses."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import howdah

from .common import Results

CLIENT = """
import howdah, sys
with howdah.Database.open(sys.argv[1], memory_mb={memory}) as db:
    db.query("SELECT 1")
    {work}
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
WORK = {
    "opened, one statement": "",
    "flush of {rows:,} rows": "assert db.flush('m').rows == {rows}",
    "one row by key of {rows:,} warm ones": "assert len(db.query('SELECT * FROM m WHERE id = 5')) == 1",
    "plans of 2,000 statements": "[db._async._tiers.plan(f'SELECT id AS c{{n}} FROM m WHERE id = 5') for n in range(2000)]",
    "flush of {rows:,} rows, memory_mb=16": "assert db.flush('less').rows == {rows}",
    "stream of {rows:,} warm rows": "assert sum(1 for _ in db.stream('SELECT * FROM m')) == {rows}",
    "analyze: groups over {rows:,} warm rows": "db.analyze('SELECT kind, sum(amount) FROM m GROUP BY kind')",
}
"""What a process does, in a fresh one each."""


def peak(url: str, work: str, memory: int) -> int:
    """The most that a process held, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.format(work=work, memory=memory), url], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * 1024


def resident(data: Path) -> int:
    """What the processes of a server hold, in bytes; what they share counts once."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(data) in os.readlink(process / "cwd") and "postgres" in (process / "comm").read_text():
                rollup = (process / "smaps_rollup").read_text().split("\n")
                found += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) * 1024
        except OSError:
            continue
    return found


def run(results: Results, folder: Path, shape: str, fill: str, rows: int) -> None:
    """Every part, on an embedded Postgres of its own."""
    url = f"pg:{folder / 'memory'}"
    with howdah.Database.open(url) as db:
        db.query("SELECT 1")
        shown = f"{resident(folder / 'memory') / 2**20:,.0f} MiB"
        results.fact("memory: an idle embedded server with one connection", shown)
        for name in ("m", "less"):
            db.execute(f"CREATE TABLE {name} {shape}")
            db.query(f"INSERT INTO {name} {fill}", datetime(2024, 1, 1, tzinfo=UTC), rows, 1.0, 1)
            db.tier(name, location=folder / name, hot_for=0, time_column="ts")
        for what, work in WORK.items():
            held = peak(url, work.format(rows=rows), 16 if "memory_mb" in what else 64)
            results.fact(f"memory: a process, {what.format(rows=rows)}", f"{held / 2**20:,.0f} MiB")
