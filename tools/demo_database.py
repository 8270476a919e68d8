"""Shows a day of events aging through the tiers of a table: where the rows are, hour by hour, and what a question costs."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.text import Text

import howdah
from howdah.cli.output import err, out, table as shown_table

HOURS, EVENTS = 24, 5_000
HOT, WARM = 2, 10
"""Hours until rows move to files, and until files move to the archive."""
WIDTH = 40
KINDS = ("search", "answer", "tool call", "error")


def timed(ask: Callable[[], Any]) -> tuple[Any, float]:
    """What a question gives, and its milliseconds: the better of two."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        found = ask()
        best = min(best, (time.perf_counter() - began) * 1000)
    return found, best


def hour(db: howdah.Database, begin: datetime, number: int) -> None:
    """Events of one hour."""
    db.query(
        "INSERT INTO events (ts, kind, tokens, note) SELECT $1::timestamptz + x * interval '1 hour' / $2::int,"
        " ($3::text[])[1 + x % 4], 50 + x * 37 % 900, md5(x::text) FROM generate_series(1, $2::int) x",
        begin + timedelta(hours=number),
        EVENTS,
        list(KINDS),
    )


def bar(counts: tuple[int, int, int]) -> Text:
    """Rows of each tier as a bar."""
    most, made = HOURS * EVENTS, Text()
    for count, (glyph, style) in zip(counts, (("█", "red"), ("▓", "yellow"), ("░", "blue")), strict=True):
        made.append(glyph * round(WIDTH * count / most), style=style)
    return made


def main() -> None:
    """A day, an hour at a time."""
    folder = Path(tempfile.mkdtemp(prefix="howdah-demo-"))
    folder.chmod(0o755)
    begin = datetime.now(UTC) - timedelta(hours=HOURS)
    rows = shown_table("hour", "hot", "warm", "cold", "█ hot  ▓ warm  ░ cold")
    costs = shown_table("hour", "files", "an hour ago", "10 hours ago", "all: Postgres", "all: DuckDB")
    try:
        with howdah.Database.open(f"pg:{folder / 'pg'}") as db:
            db.execute(
                "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ts timestamptz NOT NULL,"
                " kind text, tokens int, note text)"
            )
            for number in track(range(HOURS), "a day of events", console=err, transient=True):
                hour(db, begin, number)
                # The clock of the demo is ahead of the events': policies count from the hour that has just passed.
                late = timedelta(hours=HOURS - number - 1)
                db.tier(
                    "events",
                    location=folder / "warm",
                    time_column="ts",
                    partition_by="hour(ts)",
                    hot_for=late + timedelta(hours=HOT),
                    archive_after=late + timedelta(hours=WARM),
                    archive_location=folder / "cold",
                )
                db.flush()
                if number % 3 == 2:
                    places, prices = row(db, begin, number)
                    rows.add_row(*places)
                    costs.add_row(*prices)
            out.print(rows)
            out.print()
            out.print(costs)
            one = db.tiers()[0]
            out.print(
                f"{HOURS * EVENTS:,} events, {one.files} Parquet files, {one.bytes / 1e6:.1f} MB, readable by any Iceberg client."
                f" The same SQL all day; a row is hot for {HOT} hours, and archived after {WARM}."
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(db: howdah.Database, begin: datetime, number: int) -> tuple[list[Any], list[str]]:
    """Where the rows are after so many hours, and what questions cost then."""
    counts = [db.query("SELECT count(*) FROM events", tier=tier)[0][0] for tier in ("hot", "warm", "cold")]
    now = begin + timedelta(hours=number + 1)
    recent = "SELECT kind, sum(tokens) FROM events WHERE ts >= $1 AND ts < $2 GROUP BY kind"
    costs = []
    for ago in (1, 10):
        edge = now - timedelta(hours=ago)
        found, spent = timed(partial(db.query, recent, edge, edge + timedelta(minutes=59), tier="all"))
        costs.append(f"{spent:.1f} ms, {found.files_read} files")
    _, whole = timed(lambda: db.query("SELECT kind, sum(tokens) FROM events GROUP BY kind", tier="all"))
    _, scan = timed(lambda: db.analyze("SELECT kind, sum(tokens) FROM events GROUP BY kind"))
    files = db.tiers()[0].files
    places = [f"{number + 1}", *(f"{count:,}" for count in counts), bar((counts[0], counts[1], counts[2]))]
    return places, [f"{number + 1}", str(files), *costs, f"{whole:.0f} ms", f"{scan:.0f} ms"]


if __name__ == "__main__":
    try:
        main()
    except howdah.Error as error:
        err.print(str(error), markup=False)
        raise SystemExit(1) from error
