"""Opens the SQL engines from a URL and options, refusing what they do not know."""

from __future__ import annotations

import time
from typing import Any

from ...errors import InvalidInput
from ...registry import option
from ...urls import Url
from . import mirror, scratch
from .sqlite import SqliteEngine


def _refuse_unknown(url: Url, known: tuple[str, ...]) -> None:
    unknown = [n for n in url.options if n not in known]
    if unknown:
        raise InvalidInput(f"{url.shown()}: unknown option {unknown[0]!r}; there are: {', '.join(known)}")


async def open_sqlite(url: Url, *, inline: bool, options: dict[str, Any]) -> SqliteEngine:
    """A SQLite file."""
    _refuse_unknown(url, ("busy_timeout",))
    if not url.rest:
        raise InvalidInput(f"{url.text}: name a file, e.g. agent.db")
    return SqliteEngine(
        url.rest,
        inline=inline,
        create=options["create"],
        busy_timeout=option(url, options, "busy_timeout", 120.0, float),
        clock=options["clock"] or time.time,
    )


async def open_files(url: Url, *, inline: bool, options: dict[str, Any]) -> SqliteEngine:
    """A directory with one JSON file per row."""
    _refuse_unknown(url, ("busy_timeout",))
    if not url.rest:
        raise InvalidInput(f"{url.text}: name a directory, e.g. files:./notes")
    return SqliteEngine(
        mirror.prepare(url.rest),
        files=url.rest,
        inline=inline,
        create=options["create"],
        busy_timeout=option(url, options, "busy_timeout", 120.0, float),
        clock=options["clock"] or time.time,
    )


async def open_memory(url: Url, *, inline: bool, options: dict[str, Any]) -> SqliteEngine:
    """SQLite in memory; a name is shared inside the process."""
    _refuse_unknown(url, ())
    path = scratch.acquire(url.rest or None)
    try:
        return SqliteEngine(path, memory=True, inline=inline, clock=options["clock"] or time.time)
    except BaseException:
        scratch.release(path)
        raise


async def open_postgres(url: Url, *, inline: bool, options: dict[str, Any]) -> Any:
    """A Postgres server."""
    from .open_postgres import open_server  # the driver is an extra

    return await open_server(url, options)


async def open_embedded(url: Url, *, inline: bool, options: dict[str, Any]) -> Any:
    """A Postgres that a wheel brought, in a directory."""
    from .open_postgres import open_directory

    return await open_directory(url, options)
