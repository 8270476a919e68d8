"""Backups by Postgres' own tools: ``pg_dump`` and ``pg_restore``, the embedded server's or those on the path; the rows of tiered
tables that are on object storage beside them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ..engines.sql.embedded import program
from ..errors import BackendError, Conflict, Error, InvalidInput, NotFound, StartupError
from .overlay.carrying import attach, build, dump_of, opened, pack, placed, remove
from .overlay.manage import Tiers
from .server import Server
from .session import Session

_FOREIGN_KEY = re.compile(r"\d+; \d+ (\d+) FK CONSTRAINT ")
_TIERS = re.compile(r"\d+; \d+ \d+ TABLE DATA howdah tier(?:s|_snapshots|_garbage) ")
"""Entries in the contents of a dump: what it says of bases is true elsewhere, and no flusher may go by it here."""


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


async def _run(arguments: list[str], environment: dict[str, str], what: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, told = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines()
        raise BackendError(f"{what}: {lines[0] if lines else f'status {process.returncode}'}")
    return said.decode(errors="replace")


async def save(server: Server, session: Session, tiers: Tiers, path: Any) -> int:
    """Write everything that one snapshot sees beside ``path`` and move it there when it is whole; its size in bytes."""
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such directory")
    dump, packed = (target.with_name(f"{target.name}.{end}") for end in ("dump.part", "part"))
    await tiers.load(session)
    held = tiers.each()
    try:
        async with session.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            if held:  # a TRUNCATE reaches into older snapshots
                await session.command(f"LOCK TABLE {', '.join(f'ONLY {t.table}' for t in held)} IN ACCESS SHARE MODE")
            snapshot = (await session.query("SELECT pg_export_snapshot()", (), None))[0][0]
            await tiers.load(session)
            tables = tiers.each()
            if {t.oid for t in tables} - {t.oid for t in held}:
                raise Conflict(f"{target}: a table was tiered just now: take the backup again")
            await _dump(server, dump, target, snapshot)
            if tables:
                await pack(session, tables, dump, packed)
            else:
                dump.replace(packed)
        packed.replace(target)
    finally:
        for part in (dump, packed):
            part.unlink(missing_ok=True)
    return target.stat().st_size


async def _dump(server: Server, part: Path, target: Path, snapshot: str) -> None:
    where, environment = _where(server)
    await _run(
        [
            _tool(server, "pg_dump"),
            *where,
            "--format=custom",
            "--no-password",
            "--snapshot",
            snapshot,
            "--file",
            str(part),
        ],
        environment,
        f"{target}: the backup failed",
    )
    with part.open("rb") as written:
        os.fsync(written.fileno())


async def load(server: Server, session: Session, path: Any, location: Any) -> None:
    """Read a backup in one transaction."""
    source = Path(path)
    if not source.is_file():
        raise NotFound(f"{source}: no such file")
    with source.open("rb") as file:
        if file.read(5) == b"PGDMP":
            await _load(server, source, source, None)
            return
    if not tarfile.is_tarfile(source):
        raise InvalidInput(f"{source}: this is no backup: neither pg_dump's custom format nor one of Howdah's")
    with opened(source) as backup, tempfile.TemporaryDirectory(prefix="howdah-") as folder:
        await asyncio.to_thread(placed, backup.tables, location)
        read = False
        try:
            await asyncio.to_thread(build, backup)
            dump = await asyncio.to_thread(dump_of, backup.tar, Path(folder))
            await _load(server, dump, source, backup.later)
            read = True
            await attach(session, backup)
        except BaseException as error:
            if not read or not session.is_closed():  # else it may have been committed
                remove(backup.tables)
            if not read or not isinstance(error, Error):
                raise
            raise BackendError(
                f"{source}: tiered tables could not be made whole, and the rest is there: empty the database, then restore again:"
                f" {error}"
            ) from error


async def _load(server: Server, dump: Path, source: Path, later: Collection[int] | None) -> None:
    """Read a dump; of one with tiered tables not the foreign keys with these numbers, nor where their bases were."""
    where, environment = _where(server)
    what = f"{source}: the restore failed, and nothing was changed"
    tool, chosen = _tool(server, "pg_restore"), []
    if later is not None:
        listed = await _run([tool, "--list", str(dump)], environment, what)
        rest = [
            line
            for line in listed.splitlines()
            if not _TIERS.match(line) and ((m := _FOREIGN_KEY.match(line)) is None or int(m[1]) not in later)
        ]
        contents = dump.with_name("contents")
        contents.write_text("\n".join(rest))
        chosen = ["--use-list", str(contents)]
    arguments = ["--single-transaction", "--exit-on-error", "--no-password", *chosen, str(dump)]
    await _run([tool, *where, *arguments], environment, what)
