"""Upkeep of a base: small files are merged, old ones archived, versions and files that nobody may ask for any more go.

None of it changes what a reader sees. The caller holds the table's lease.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any

from ..means import Means
from ..session import Session
from . import base, commits, place, scan
from .counting import named
from .expiry import MOST, expire
from .tiered import Tiered

RUN = 8
"""Files of about one size in a partition that are merged into one."""
STEP = 8
"""Sizes count as about one when they are less than this factor apart."""
LARGE = 64 * 1024 * 1024
"""Files of so many bytes are left as they are, and so many are merged at once."""
PIECE = 8
"""Which part of the memory the rows fill that are sorted together."""
KEEP = timedelta(days=7)
LEAST = 10
SWEEP = timedelta(days=1)


async def upkeep(session: Session, tiered: Tiered) -> bool:
    """Do one piece of what is to be done; whether there was one."""
    rows = await session.query(
        f"SELECT metadata, swept_at < now() - interval '{SWEEP.total_seconds()} s' OR (SELECT count(*) > {MOST + LEAST}"
        " FROM howdah.tier_snapshots s WHERE s.rel = t.rel) AS late FROM howdah.tiers t WHERE rel = $1::oid",
        (tiered.oid,),
        None,
    )
    metadata = rows[0]["metadata"] if rows else None
    if metadata is None:
        return False
    plan = await asyncio.to_thread(_planned, metadata, tiered)
    if plan is not None:
        return await _swap(session, tiered, metadata, *plan)
    if rows[0]["late"]:
        await expire(session, tiered, KEEP, LEAST)
    return False


async def _swap(session: Session, tiered: Tiered, metadata: str, old: Sequence[Any], archive: bool) -> bool:
    """Put other files with the same rows in the place of some; not when somebody emptied the table meanwhile."""

    def work(table: Any) -> None:
        if archive:
            _archive(table, old, tiered)
        else:
            _merge(table, old, tiered, session.means)

    made = await asyncio.to_thread(commits.change, tiered.location, metadata, work)
    async with session.transaction():
        return await named(session, tiered, made, metadata)


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
            return _some(found), False
        return (late[:64], True) if late else None


def _some(group: list[Any]) -> list[Any]:
    """As many of a group, two at least, as are merged at once."""
    sizes = accumulate(file.file_size_in_bytes for file in group)
    return [file for place, (file, size) in enumerate(zip(group, sizes, strict=True)) if place < 2 or size <= LARGE]


def _edge(tiered: Tiered) -> float | None:
    """Files whose rows are all as old as this (seconds since 1970) are cold."""
    after = tiered.policy["archive_after"]
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


def _merge(table: Any, old: Sequence[Any], tiered: Tiered, means: Means) -> None:
    """Write the rows of some files of one partition into one, sorted as far as they are in memory together."""
    import pyarrow as pa

    from .versions import joined

    order = [(name, "ascending") for name in tiered.policy["sort_by"] or tiered.key]

    def pieces() -> Iterator[Any]:
        waiting: list[Any] = []
        # Row groups are read whole: of one file at a time, unless all of them are small.
        few = Means(means.memory // PIECE)
        for batch in scan.batches(table.metadata_location, old, None, means=few):
            if batch.num_rows:
                waiting.append(batch)
            if sum(b.nbytes for b in waiting) >= few.memory:
                yield pa.Table.from_batches(waiting).sort_by(order)
                waiting.clear()
        if waiting:
            yield pa.Table.from_batches(waiting).sort_by(order)

    joined(table, old, pieces())


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
