"""Backups by Postgres' own tools: ``pg_dump`` and ``pg_restore``, the embedded server's or those on the path."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ..engines.sql.embedded import program
from ..errors import BackendError, InvalidInput, NotFound, StartupError
from .server import Server


def _tool(server: Server, name: str) -> str:
    found = program(name) or shutil.which(name)
    if found is None:
        raise StartupError(f"{name} is not here: pip install 'howdah[pg]', or Postgres' client tools")
    return found


def _where(server: Server) -> tuple[list[str], dict[str, str]]:
    given = server.arguments
    if "dsn" in given:
        parts = urlsplit(given["dsn"])
        query = parse_qsl(parts.query, keep_blank_values=True)
        password = dict(query).get("password") or (unquote(parts.password) if parts.password else None)
        user, _, host = parts.netloc.rpartition("@")
        shown = f"{user.partition(':')[0]}@{host}" if user else host
        rest = urlencode([(k, v) for k, v in query if k != "password"])
        # Everybody may read a process's arguments.
        return ["--dbname", urlunsplit(parts._replace(netloc=shown, query=rest))], (
            {} if password is None else {"PGPASSWORD": password}
        )
    return ["--host", given["host"], "--port", str(given["port"]), "--username", given["user"],
            "--dbname", given["database"]], {}  # fmt: skip


async def _run(arguments: list[str], environment: dict[str, str], what: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, told = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines()
        raise BackendError(f"{what}: {lines[0] if lines else f'status {process.returncode}'}")


async def dump(server: Server, path: Any) -> int:
    """Write a dump beside ``path`` and move it there when it is whole; its size in bytes."""
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such directory")
    part = target.with_name(f"{target.name}.part")
    where, environment = _where(server)
    try:
        await _run(
            [_tool(server, "pg_dump"), *where, "--format=custom", "--no-password", "--file", str(part)],
            environment,
            f"{target}: the backup failed",
        )
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


async def load(server: Server, path: Any) -> None:
    """Read a dump in one transaction."""
    source = Path(path)
    if not source.is_file():
        raise NotFound(f"{source}: no such file")
    with source.open("rb") as file:
        if file.read(5) != b"PGDMP":
            raise InvalidInput(f"{source}: this is no dump of pg_dump's custom format")
    where, environment = _where(server)
    await _run(
        [_tool(server, "pg_restore"), *where, "--single-transaction", "--exit-on-error", "--no-password", str(source)],
        environment,
        f"{source}: the restore failed, and nothing was changed",
    )
