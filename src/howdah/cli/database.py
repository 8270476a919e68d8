"""Commands for the tiered tables of a Postgres: where their rows are, and moving them."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput
from .options import JsonOption, StoreOption
from .output import emit_json, out, table as shown_table

if TYPE_CHECKING:
    from ..blocking.database import Database
    from ..database.overlay.adopting import Tiering
    from ..database.overlay.flush import Flushed


def _database(url: str | None, **options: Any) -> Database:
    from ..blocking.database import Database

    if not url:
        raise InvalidInput("name a Postgres: --store pg:./data or --store postgresql://user@host/db (or HOWDAH_URL)")
    return Database.open(url, **options)


def tiers(store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the tiered tables: rows, bytes and age in each tier, what is due to move, for how long, and the last flush."""
    with _database(store) as database:
        found = database.tiers()
    if json:
        emit_json([asdict(t) for t in found])
        return
    if not found:
        out.print("no table is tiered")
        return
    shown = shown_table("table", "tier", "rows", "files", "bytes", "oldest", "newest")
    about = shown_table("table", "due", "lag", "last flush", "location")
    for one in found:
        for name, part in one.parts.items():
            ends = [f"{at:%Y-%m-%d %H:%M}" if at is not None else "" for at in (part.oldest, part.newest)]
            shown.add_row(one.table, name, f"{part.rows:,}", f"{part.files:,}", f"{part.bytes:,}", *ends)
        last = "never" if one.flushed_at is None else f"{one.flushed_at:%Y-%m-%d %H:%M:%S}"
        about.add_row(one.table, f"{one.due_rows:,}", f"{one.lag:,.0f} s", last, one.location)
        if one.last_error:
            about.add_row("", "", "", "failed", one.last_error)
    out.print(shown)
    out.print(about)


def flush(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table; all, if left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until stopped, as each table's policy says.")] = False,
    location: Annotated[
        str | None, typer.Option(help="Tier the tables whose comment has howdah.tier(…), each below this place.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Move rows that have cooled to object storage."""
    if watch and table is not None:
        raise InvalidInput("--watch looks after every tiered table: leave TABLE out")
    tiering = None if location is None else _commented(location)
    done = _watch(store, tiering) if watch else _flush(store, table, tiering)
    if json:
        emit_json(asdict(done))
    else:
        out.print(f"{done.rows:,} rows moved; tables: {done.tables:,}, new files: {done.files:,}")


def _commented(location: str) -> Tiering:
    from ..database.overlay.adopting import Tiering

    return Tiering(location=location)


def _flush(store: str | None, table: str | None, tiering: Tiering | None) -> Flushed:
    with _database(store, tiering=tiering) as database:
        return database.flush(table)


def _watch(store: str | None, tiering: Tiering | None) -> Flushed:
    ended = threading.Event()

    def stop(*_: Any) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with _database(store, flusher=True, tiering=tiering) as database:
        database.start()
        ended.wait()
        return database.flushed
