"""Backups bring the bases of tiered tables along: a tar file of the dump and of the live base rows, as Parquet files.

A restored table gets a base of its own, in an empty place: two databases at one base would take each other's files for leftovers.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InvalidInput
from ..means import Means
from ..session import Session
from . import base, commits, objects, partials, place, scan, uniques
from .binding import bind
from .columns import selection
from .counting import current, named
from .manage import begin, ordinary
from .tiered import SHAPE, Tiered

DUMP, CONTENTS = "postgres.dump", "howdah.json"
FORMAT = 1
TIMES = 8
"""How many times as many rows as are usually taken at a time are in one file."""
_FOREIGN_KEYS = """
SELECT k.oid::bigint, format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s%s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid),
  CASE WHEN k.convalidated THEN ' NOT VALID' ELSE '' END)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND (k.conrelid = ANY($1::oid[]) OR k.confrelid = ANY($1::oid[])) ORDER BY 1
"""
"""Foreign keys that do not hold among hot rows alone: a restore makes them last, for what comes then."""


# Out -----------------------------------------------------------------------------------------------------------------


async def pack(session: Session, tables: Sequence[Tiered], dump: Path, target: Path) -> None:
    """Write the dump and the live base rows that this transaction sees to a tar file."""
    with tarfile.open(target, "w") as tar:
        await asyncio.to_thread(tar.add, dump, DUMP)
        told = []
        for number, tiered in enumerate(tables):
            snapshot = await current(session, tiered)
            sql = f"SELECT {selection(tiered.key_columns)} FROM {tiered.shadow}"
            dead = [tuple(row) for row in await session.query(sql, (), None)]
            files = await asyncio.to_thread(
                _packed, tar, f"tiers/{number}", snapshot.metadata, tiered.key, dead, session.means
            )
            told.append(
                {"schema": tiered.schema, "name": tiered.name, "oid": tiered.oid, "location": tiered.location,
                 "policy": tiered.policy, "key": tiered.key[0], "files": files}
            )  # fmt: skip
        oids = [tiered.oid for tiered in tables]
        await session.command("SET LOCAL search_path = pg_catalog")
        later = [list(row) for row in await session.query(_FOREIGN_KEYS, (oids,), None)]
        await session.command("SET LOCAL search_path TO DEFAULT")
        _add(tar, CONTENTS, json.dumps({"format": FORMAT, "tables": told, "later": later}).encode())
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _packed(
    tar: tarfile.TarFile,
    folder: str,
    metadata: str | None,
    key: Sequence[str],
    dead: Sequence[tuple[Any, ...]],
    means: Means,
) -> list[str]:
    """Add a base's live rows to a tar file; the names of the files in it."""
    import pyarrow.parquet as pq

    if metadata is None:
        return []
    gone = partials.keys(metadata, key, dead) if dead else None
    names: list[str] = []
    source = scan.Scan(metadata, means=Means(TIMES * means.memory))
    while (whole := source.take()) is not None:
        rows = whole if gone is None else partials.without(whole, gone)
        if rows.num_rows:
            out = io.BytesIO()
            pq.write_table(rows, out, compression="zstd")
            names.append(f"{folder}/{len(names):06}.parquet")
            _add(tar, names[-1], out.getvalue())
    return names


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(data), int(time.time())
    tar.addfile(entry, io.BytesIO(data))


# Back ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Carried:
    """One tiered table of a backup, and the base that was made of it."""

    schema: str
    name: str
    oid: int
    location: str
    policy: dict[str, Any]
    key: str
    files: list[str]
    made: commits.Commit | None = None
    rows: int = 0
    largest: Any = None
    """The largest value of ``key``, its key's first column."""


@dataclass(frozen=True, slots=True)
class Backup:
    """An opened backup: its tiered tables, and the foreign keys that are made last, by the numbers that the dump has for them."""

    tar: tarfile.TarFile
    tables: list[Carried]
    later: dict[int, str]


@contextmanager
def opened(path: Path) -> Iterator[Backup]:
    """A backup of this form."""
    try:
        with tarfile.open(path) as tar:
            try:
                told = json.loads(_read(tar, CONTENTS))
                form = told["format"]
                if form == FORMAT:
                    found = Backup(tar, [Carried(**table) for table in told["tables"]], dict(told["later"]))
            except (KeyError, TypeError, ValueError):
                raise InvalidInput(f"{path}: this backup is not whole, or none of Howdah's") from None
            if form != FORMAT:
                raise InvalidInput(f"{path}: a backup of form {form}; this version reads form {FORMAT}")
            yield found
    except tarfile.TarError as error:
        raise InvalidInput(f"{path}: this backup cannot be read: {error}") from error


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    assert member is not None
    with member:
        return member.read()


def dump_of(tar: tarfile.TarFile, folder: Path) -> Path:
    """The dump, as a file in a directory."""
    tar.extract(DUMP, folder, filter="data")
    return folder / DUMP


def placed(tables: Sequence[Carried], location: object) -> None:
    """Choose a place for each base: where it was, or below ``location``; all of them must be empty."""
    if location is not None:
        root = place.recorded(location)
        for table in tables:
            table.location = place.of_table(root, table.schema, table.name)
            if table.policy["archive_location"] is not None:
                table.policy["archive_location"] = f"{table.location}.archive"
    for table in tables:
        for one in (table.location, table.policy["archive_location"]):
            if one is not None:
                place.check(one)


def build(backup: Backup) -> None:
    """Write the bases, which nobody names yet."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for table in backup.tables:
        fields = base.partition_fields(table.policy["partition_by"])
        for name in table.files:
            data = _read(backup.tar, name)
            try:
                rows = pq.read_table(io.BytesIO(data))
            except (OSError, ValueError) as error:
                raise InvalidInput(f"{name} in this backup is damaged: {error}") from error
            last = pc.max(rows.column(table.key)).as_py()
            table.largest = last if table.largest is None else max(table.largest, last)
            before = None if table.made is None else table.made.metadata
            table.made = commits.commit(table.location, before, rows.schema, fields, rows, None)
            table.rows += rows.num_rows


def remove(tables: Sequence[Carried]) -> None:
    """Delete what was written for a restore that failed."""
    for table in tables:
        place.clear(table.location)


async def attach(session: Session, backup: Backup) -> None:
    """Let the restored tables be tiered, with the bases that were built: what a dump brings of theirs has the numbers that tables
    had elsewhere."""
    tables = backup.tables
    async with session.transaction():
        await session.command(objects.SYSTEM)
        fresh = [await _again(session, table) for table in tables]
        for table, tiered in zip(tables, fresh, strict=True):
            for statement in objects.drop(replace(tiered, oid=table.oid)):
                await session.command(statement)
        for table, tiered in zip(tables, fresh, strict=True):
            await begin(session, tiered)
            await _based(session, table, tiered)
        for statement in backup.later.values():
            await session.command(statement)


async def _again(session: Session, table: Carried) -> Tiered:
    """A restored table as it is here."""
    found = await ordinary(session, table.schema, table.name)
    shape = (await session.query(f"SELECT {SHAPE.format(rel='$1::oid')}", (found.oid,), None))[0][0]
    return replace(found, location=table.location, policy=table.policy, shape=shape)


async def _based(session: Session, table: Carried, tiered: Tiered) -> None:
    """Let the base that was built count."""
    made = table.made
    if made is None:
        return
    if tiered.uniques:
        columns = [tiered.column(name) for name in uniques.columns(tiered)]
        await bind(session, tiered, scan.Scan(made.metadata, columns=[c.name for c in columns]).each(), columns)
        await session.command(f"WITH g AS (SELECT * FROM {tiered.loaded}){uniques.put_in(tiered, 'g')} SELECT")
    largest = tiered.rank(table.largest) if tiered.ranked else None
    if largest is not None:
        await session.query(f"SELECT setval('{tiered.largest}', $1::bigint)", (largest,), None)
    await session.query(
        "UPDATE howdah.tiers SET rows = $2, max_key = $3::bigint, flushed_at = now() WHERE rel = $1::oid",
        (tiered.oid, table.rows, largest),
        None,
    )
    await named(session, tiered, made, None)
