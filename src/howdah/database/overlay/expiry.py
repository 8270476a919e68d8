"""Versions of a base that nobody may ask for any more are forgotten, then the files that no version names are deleted.

The caller holds the table's lease.
"""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from ..session import Session
from . import base, commits, place
from .tiered import Tiered

MOST = 1000
"""Versions beyond so many go after an hour, however young."""
YOUNG = timedelta(hours=1)
"""How long a version or file is left after it was last needed: somebody may still be reading it."""
_OURS = re.compile(r"/(?:data|metadata)/.+\.(?:parquet|avro|metadata\.json)\Z")


async def expire(session: Session, tiered: Tiered, older_than: timedelta, keep: int) -> int:
    """Forget versions that another one followed longer ago, but for the last ``keep``; delete the files that no version has
    named for an hour. How many versions."""
    metadata = await _metadata(session, tiered)
    if metadata is None:
        return 0
    rows = await session.query(
        "SELECT snapshot_id AS id, lead(at) OVER (ORDER BY at) AS until, row_number() OVER (ORDER BY at DESC) AS place"
        " FROM howdah.tier_snapshots WHERE rel = $1::oid",
        (tiered.oid,),
        None,
    )
    now = datetime.now(UTC)
    gone = [
        row["id"]
        for row in rows
        if row["place"] > keep
        and (now - row["until"] > older_than or (row["place"] > MOST and now - row["until"] > YOUNG))
    ]
    kept = {row["id"] for row in rows} - set(gone)

    def forget(table: Any) -> None:
        # Versions between two that count, and those of the past.
        edge = int((now - YOUNG).timestamp() * 1000)
        old = [
            s.snapshot_id
            for s in table.metadata.snapshots
            if s.snapshot_id not in kept and (s.snapshot_id in gone or s.timestamp_ms < edge)
        ]
        current = table.metadata.current_snapshot_id
        if found := [number for number in old if number != current]:
            table.maintenance.expire_snapshots().by_ids(found).commit()

    made = await asyncio.to_thread(commits.change, tiered.location, metadata, forget)
    async with session.transaction():
        swapped = await session.query(
            "UPDATE howdah.tiers SET metadata = $2, generation = generation + 1, swept_at = now()"
            " WHERE rel = $1::oid AND metadata = $3",
            (tiered.oid, made.metadata, metadata),
            None,
        )
        if not swapped.affected:  # somebody emptied the table meanwhile
            return 0
        await session.query(
            "DELETE FROM howdah.tier_snapshots WHERE rel = $1::oid AND snapshot_id = ANY($2::bigint[])",
            (tiered.oid, gone),
            None,
        )
    await _sweep(session, tiered, made.metadata)
    return len(gone)


async def _metadata(session: Session, tiered: Tiered) -> str | None:
    rows = await session.query("SELECT metadata FROM howdah.tiers WHERE rel = $1::oid", (tiered.oid,), None)
    found: str | None = rows[0]["metadata"] if rows else None
    return found


async def _sweep(session: Session, tiered: Tiered, metadata: str) -> None:
    """Note the files that no version names, and delete those that were noted long enough ago."""
    loose = await asyncio.to_thread(_loose, tiered, metadata)
    async with session.transaction():
        await session.query(
            "DELETE FROM howdah.tier_garbage WHERE rel = $1::oid AND path <> ALL($2::text[])", (tiered.oid, loose), None
        )
        await session.query(
            "INSERT INTO howdah.tier_garbage (rel, path) SELECT $1::oid, unnest($2::text[]) ON CONFLICT DO NOTHING",
            (tiered.oid, loose),
            None,
        )
        rows = await session.query(
            "SELECT path FROM howdah.tier_garbage WHERE rel = $1::oid AND since <= now() - make_interval(secs => $2)",
            (tiered.oid, YOUNG.total_seconds()),
            None,
        )
    with base.told(tiered.location, "files cannot be deleted"):
        await asyncio.to_thread(place.delete, [row["path"] for row in rows])


def _loose(tiered: Tiered, metadata: str) -> list[str]:
    """Files of ours that no kept version names and that nobody can be writing."""
    with base.told(tiered.location, "its files cannot be listed"):
        table = base.opened(metadata)
        known = {metadata}
        for snapshot in table.metadata.snapshots:
            known.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(table.io):
                known.add(manifest.manifest_path)
                known.update(file.file_path for file in base.listed(manifest, table.io))
        edge = time.time() - YOUNG.total_seconds()
        return [
            name
            for address in (tiered.location, tiered.archive)
            if address is not None
            for name, at in place.below(address)
            if name not in known and at < edge and _OURS.match(name.removeprefix(place.url(address)))
        ]
