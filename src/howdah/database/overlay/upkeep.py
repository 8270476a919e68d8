"""Upkeep of a base: small files are merged, old ones archived, versions nobody may ask for any more expire, files nobody names go.

None of it changes what a reader sees. The caller holds the table's lease.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ..session import Session
from . import base, place
from .run import named
from .tiered import Tiered

RUN = 8
"""Files of about one size in a partition that are merged into one."""
STEP = 8
"""Sizes count as about one when they are less than this factor apart."""
LARGE = 96 * 1024 * 1024
"""Files of so many bytes are left as they are."""
KEEP = timedelta(days=7)
LEAST, MOST = 10, 1000
YOUNG = timedelta(hours=1)
"""No version and no file that is younger goes: somebody may be reading it."""
SWEEP = timedelta(days=1)


async def upkeep(session: Session, tiered: Tiered) -> None:
    """Do what is to be done now."""
    metadata = await _metadata(session, tiered)
    if metadata is None:
        return
    plan = await asyncio.to_thread(_planned, metadata, tiered)
    if plan is not None:
        await _swap(session, tiered, metadata, *plan)
    rows = await session.query(
        f"SELECT swept_at < now() - interval '{SWEEP.total_seconds()} s' OR (SELECT count(*) > {MOST + LEAST}"
        " FROM howdah.tier_snapshots s WHERE s.rel = t.rel) AS late FROM howdah.tiers t WHERE rel = $1::oid",
        (tiered.oid,),
        None,
    )
    if rows and rows[0]["late"]:
        await expire(session, tiered, KEEP, LEAST)


async def _metadata(session: Session, tiered: Tiered) -> str | None:
    rows = await session.query("SELECT metadata FROM howdah.tiers WHERE rel = $1::oid", (tiered.oid,), None)
    found: str | None = rows[0]["metadata"] if rows else None
    return found


async def _swap(session: Session, tiered: Tiered, metadata: str, old: Sequence[Any], archive: bool) -> None:
    """Put other files with the same rows in the place of some."""
    work = _archive if archive else _merge
    made = await asyncio.to_thread(base.change, tiered.location, metadata, lambda table: work(table, old, tiered))
    async with session.transaction():
        await named(session, tiered, made)


def _planned(metadata: str, tiered: Tiered) -> tuple[list[Any], bool] | None:
    """The files to merge, or else to archive."""
    with base.told(metadata, "a file of the base is missing or cannot be read"):
        groups: dict[Any, list[Any]] = defaultdict(list)
        late = []
        edge = _edge(tiered)
        table = base.opened(metadata)
        for file in base.files(metadata):
            if base.tier_of(file.file_path, tiered.archive) == "cold":
                continue
            if edge is not None and _newest(table, file, tiered) <= edge:
                late.append(file)
                continue
            if file.file_size_in_bytes < LARGE:
                size = int(math.log(max(file.file_size_in_bytes, 16 * 1024), STEP))
                groups[repr(file.partition), size].append(file)
        found = max(groups.values(), key=len, default=[])
        if len(found) >= RUN:
            return found[:64], False
        return (late[:64], True) if late else None


def _edge(tiered: Tiered) -> float | None:
    """Files whose rows are all as old as this (seconds since 1970) are cold."""
    after = tiered.policy.get("archive_after")
    return None if after is None else time.time() - float(after)


def _newest(table: Any, file: Any, tiered: Tiered) -> float:
    """The latest moment in a file, in seconds since 1970; infinite when its statistics do not say."""
    from pyiceberg.conversions import from_bytes

    field = table.schema().find_field(tiered.policy["time_column"])
    bound = (file.upper_bounds or {}).get(field.field_id)
    if bound is None:
        return math.inf
    value = float(from_bytes(field.field_type, bound))  # days, or microseconds
    return value * 86400 if str(field.field_type) == "date" else value / 1e6


def _merge(table: Any, old: Sequence[Any], tiered: Tiered) -> None:
    """Write the rows of some files of one partition into one."""
    from .versions import replace

    order = tiered.policy.get("sort_by") or tiered.key
    whole = base.dataset(table.metadata_location, old).to_table().sort_by([(name, "ascending") for name in order])
    replace(table, old, [whole])


def _archive(table: Any, old: Sequence[Any], tiered: Tiered) -> None:
    """Copy files to the archive and name the copies."""
    from copy import deepcopy

    from .versions import Changing, swap

    assert tiered.archive is not None
    moved = []
    for file in old:
        target = f"{place.url(tiered.archive)}/{file.file_path.removeprefix(place.url(tiered.location)).lstrip('/')}"
        place.copy(file.file_path, target)
        again = deepcopy(file)
        again[1] = target  # a record by place; its second field is the path
        moved.append(again)
    place.sync(tiered.archive)
    with Changing(table) as change:
        swap(change, old, moved)


async def expire(session: Session, tiered: Tiered, older_than: timedelta, keep: int) -> int:
    """Forget versions that are older, but for the last ``keep``, and delete the files that no version names; how many versions."""
    metadata = await _metadata(session, tiered)
    if metadata is None:
        return 0
    rows = await session.query(
        "SELECT snapshot_id AS id, at, row_number() OVER (ORDER BY at DESC) AS place FROM howdah.tier_snapshots"
        " WHERE rel = $1::oid",
        (tiered.oid,),
        None,
    )
    now = datetime.now(UTC)
    gone = [
        row["id"]
        for row in rows
        if row["place"] > max(1, keep)
        and (now - row["at"] > older_than or (row["place"] > MOST and now - row["at"] > YOUNG))
    ]
    kept = {row["id"] for row in rows} - set(gone)

    def forget(table: Any) -> None:
        current = table.metadata.current_snapshot_id
        edge = int((now - YOUNG).timestamp() * 1000)
        old = [
            s.snapshot_id
            for s in table.metadata.snapshots
            if s.snapshot_id not in kept and s.snapshot_id != current and s.timestamp_ms < edge
        ]
        if old or gone:
            found = [s for s in table.metadata.snapshots if s.snapshot_id in {*old, *gone} and s.snapshot_id != current]
            if found:
                table.maintenance.expire_snapshots().by_ids([s.snapshot_id for s in found]).commit()

    made = await asyncio.to_thread(base.change, tiered.location, metadata, forget)
    async with session.transaction():
        await session.query(
            "DELETE FROM howdah.tier_snapshots WHERE rel = $1::oid AND snapshot_id = ANY($2::bigint[])",
            (tiered.oid, gone),
            None,
        )
        await session.query(
            "UPDATE howdah.tiers SET metadata = $2, generation = generation + 1, swept_at = now() WHERE rel = $1::oid",
            (tiered.oid, made.metadata),
            None,
        )
    await asyncio.to_thread(_sweep, tiered, made.metadata, {metadata})
    return len(gone)


def _sweep(tiered: Tiered, metadata: str, more: set[str]) -> None:
    """Delete files that no kept version names and that nobody can be reading or writing."""
    with base.told(tiered.location, "files cannot be deleted"):
        table = base.opened(metadata)
        known = {metadata, *more, *(entry.metadata_file for entry in table.metadata.metadata_log[-2:])}
        for snapshot in table.metadata.snapshots:
            known.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(table.io):
                known.add(manifest.manifest_path)
                known.update(
                    entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                )
        edge = time.time() - YOUNG.total_seconds()
        for address in (tiered.location, tiered.archive):
            if address is not None:
                place.delete([name for name, _, at in place.below(address) if name not in known and at < edge])
