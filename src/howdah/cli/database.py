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
    """Show the tiered tables: rows in Postgres, due to move and on object storage."""
    with _database(store) as database:
        found = database.tiers()
    if json:
        emit_json([asdict(t) for t in found])
        return
    if not found:
        out.print("no table is tiered")
        return
    shown = shown_table("table", "hot", "due", "warm", "files", "bytes", "lag", "last flush", "location")
    for one in found:
        last = "never" if one.flushed_at is None else f"{one.flushed_at:%Y-%m-%d %H:%M:%S}"
        size = (f"{one.files:,}", f"{one.bytes:,}", f"{one.lag:,.0f} s")
        shown.add_row(
            one.table, f"{one.hot_rows:,}", f"{one.due_rows:,}", f"{one.warm_rows:,}", *size, last, one.location
        )
        if one.last_error:
            shown.add_row("", "", "", "", "", "", "", "failed", one.last_error)
    out.print(shown)


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
