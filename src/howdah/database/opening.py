"""Where a database's connections come from: a server by its URL, the embedded one by its directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..engines.sql.embedded import EmbeddedServer
from ..engines.sql.open_postgres import server_arguments
from ..errors import InvalidInput, Unsupported
from ..urls import Url, parse
from .database import AsyncDatabase
from .server import Server


def finder(url: str) -> Callable[[], Awaitable[Server]]:
    """What finds, or starts, the server of a URL; ``InvalidInput`` at once for a URL that names none."""
    parsed = parse(url)
    if parsed.scheme not in ("pg", "postgresql"):
        raise InvalidInput(f"{parsed.shown()}: plain SQL needs Postgres: pg:./data or postgresql://user@host/db")
    if parsed.scheme == "pg" and not parsed.rest:
        raise InvalidInput(f"{parsed.text}: name a directory, e.g. pg:./data")
    arguments = server_arguments(parsed) if parsed.scheme == "postgresql" else {}
    if parsed.options.get("pooler", "").lower() in ("1", "true", "yes"):
        raise _pooled()

    async def find() -> Server:
        if parsed.scheme == "postgresql":
            return Server(parsed.shown().split("?")[0], arguments)
        return await _embedded(parsed)

    return find


def of_engine(engine: Any) -> AsyncDatabase:
    """The database under a store."""
    if engine.name != "postgres":
        raise Unsupported("plain SQL needs Postgres: open the store with pg:./data or postgresql://user@host/db")
    arguments = engine.arguments
    if arguments is None:
        raise Unsupported("this store uses a pool of yours: open the database by its URL, Database.open(url)")
    if engine.pooler:
        raise _pooled()

    async def find() -> Server:
        return Server(engine.place, arguments, root=None if engine.server is None else engine.server.root)

    return AsyncDatabase(find, lent=True)


def _pooled() -> Unsupported:
    return Unsupported("plain SQL needs connections of its own, not a pooler's: give the URL of the server itself")


async def _embedded(url: Url) -> Server:
    server = EmbeddedServer(url.rest, {k: v for k, v in url.options.items() if k == "shared_buffers"})
    await asyncio.get_running_loop().run_in_executor(None, server.open)
    return Server(f"pg:{url.rest}", server.arguments(), server, server.root)
