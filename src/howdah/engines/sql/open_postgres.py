"""Opens Postgres stores: a server by its URL, or the embedded one by its directory."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ...errors import Error, InvalidInput, StartupError

try:
    import asyncpg
except ImportError as missing:
    raise StartupError(
        "Postgres needs its driver: pip install 'howdah[postgres]' (or 'howdah[pg]' with a server)"
    ) from missing

from ...registry import option
from ...urls import Url
from ...values import check_name
from .embedded import EmbeddedServer
from .pool import BorrowedPool, Connection, Pool
from .postgres import PostgresEngine

STARTING = 60.0
_OWN = ("schema", "pool_size", "pooler")
_EMBEDDED = ("schema", "pool_size", "shared_buffers")


async def _open(engine: PostgresEngine, url: Url, options: dict[str, Any], arguments: dict[str, Any]) -> PostgresEngine:
    if options.get("pool") is not None:
        engine.pooler = True  # somebody else's connections: no state is left on them
        engine.pool = BorrowedPool(options["pool"], engine.prepare)
    else:

        async def prepared() -> Connection:
            connection = await connect(
                {**arguments, "statement_cache_size": 0 if engine.pooler else 500, "timeout": 30}, engine.server
            )
            await engine.prepare(connection)
            return connection

        engine.arguments = arguments
        engine.pool = Pool(prepared, option(url, options, "pool_size", 10, int))
    try:
        await engine.start()
    except BaseException:
        await engine.close()
        raise
    return engine


async def connect(arguments: dict[str, Any], server: EmbeddedServer | None = None) -> Connection:
    """A connection; a server that is just starting or recovering is waited for, the embedded ``server`` that is not there is started
    again."""
    deadline, revived = time.monotonic() + STARTING, server is None
    while True:
        try:
            return await asyncpg.connect(**arguments)
        except asyncpg.CannotConnectNowError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        except (OSError, asyncpg.ConnectionDoesNotExistError):
            if revived or server is None:
                raise
            revived = True
            await asyncio.get_running_loop().run_in_executor(None, server.revive)


def _schema(url: Url, options: dict[str, Any]) -> str:
    return check_name(option(url, options, "schema", "howdah", str), "schema")


def server_arguments(url: Url) -> dict[str, Any]:
    """The driver's arguments for ``postgresql://…``: Howdah's own options are taken out of the URL."""
    parts = urlsplit(url.text)
    rest = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k not in _OWN]
    return {"dsn": urlunsplit(parts._replace(scheme="postgresql", query=urlencode(rest)))}


async def open_server(url: Url, options: dict[str, Any]) -> PostgresEngine:
    """The engine of ``postgresql://…``; options of Howdah's are taken out of the URL, the others go to the driver."""
    pooler = bool(option(url, options, "pooler", False, lambda v: v.lower() in ("1", "true", "yes")))
    engine = PostgresEngine(
        schema=_schema(url, options),
        create=options["create"],
        place=url.shown().split("?")[0],
        clock=options["clock"],
        pooler=pooler,
        server=None,
    )
    try:
        return await _open(engine, url, options, server_arguments(url))
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        if isinstance(error, Error):
            raise
        raise InvalidInput(f"{url.shown()}: {error}") from error


async def open_directory(url: Url, options: dict[str, Any]) -> PostgresEngine:
    """The engine of ``pg:./data``."""
    unknown = [n for n in url.options if n not in _EMBEDDED]
    if unknown:
        raise InvalidInput(f"{url.text}: unknown option {unknown[0]!r}; there are: {', '.join(_EMBEDDED)}")
    if not url.rest:
        raise InvalidInput(f"{url.text}: name a directory, e.g. pg:./data")
    settings = {k: v for k, v in url.options.items() if k == "shared_buffers"}
    server = EmbeddedServer(url.rest, settings)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, server.open)
    engine = PostgresEngine(
        schema=_schema(url, options),
        create=options["create"],
        place=f"pg:{url.rest}",
        clock=options["clock"],
        pooler=False,
        server=server,
    )
    return await _open(
        engine,
        url,
        options,
        server.arguments(),
    )
