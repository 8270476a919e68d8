"""Changes of a base: each makes a new version, durable but without effect until ``howdah.tiers`` names it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from . import base, place, scan

PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.parquet.row-group-limit": "122880",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    "commit.manifest-merge.enabled": "true",
}


@dataclass(frozen=True, slots=True)
class Commit:
    """A version of the base: its metadata file and snapshot, what was added, and what there is in all."""

    metadata: str
    snapshot: int
    files: int
    bytes: int
    total_files: int
    total_bytes: int


def _transform(name: str, argument: int) -> Any:
    of = base.library().transforms
    if name == "bucket":
        return of.BucketTransform(argument)
    kinds = {"year": of.YearTransform, "month": of.MonthTransform, "day": of.DayTransform, "hour": of.HourTransform}
    return kinds.get(name, of.IdentityTransform)()


def change(
    location: str, metadata: str | None, work: Callable[[Any], None], *, schema: Any = None, partition: Any = ()
) -> Commit:
    """Make a new version of the base by ``work(table)``, durable but not yet named."""
    base.library()
    from .versions import Versions

    began = time.time()
    versions = Versions("howdah", **place.properties(location))
    with base.told(location):
        if metadata is None:
            fields = [(column, f"{column}_{name}", _transform(name, argument)) for column, name, argument in partition]
            table = versions.create(place.url(location), schema, fields, PROPERTIES)
        else:
            table = versions.table(metadata)
        work(table)
        place.sync(location, began)
    snapshot = table.metadata.current_snapshot()
    told_of = {} if snapshot is None or snapshot.summary is None else snapshot.summary.additional_properties

    def number(name: str) -> int:
        return int(told_of.get(name, 0))

    return Commit(
        str(table.metadata_location),
        0 if snapshot is None else snapshot.snapshot_id,
        number("added-data-files"),
        number("added-files-size"),
        number("total-data-files"),
        number("total-files-size"),
    )


def commit(location: str, metadata: str | None, schema: Any, partition: Any, rows: Any, dead: Any) -> Commit:
    """Drop the rows that the expression ``dead`` selects and add ``rows`` (Arrow), in one version."""

    def work(table: Any) -> None:
        from .versions import replace

        rest = () if dead is None or metadata is None else _without(metadata, dead)
        replace(table, chain(rest, [([], rows)]))

    return change(location, metadata, work, schema=schema, partition=partition)


def empty(location: str, metadata: str) -> Commit | None:
    """A version without rows; ``None`` if this one has none."""
    old = base.files(metadata)

    def work(table: Any) -> None:
        from .versions import replace

        replace(table, [(old, None)])

    return change(location, metadata, work) if old else None


def _without(metadata: str, dead: Any) -> Iterator[tuple[list[Any], Any]]:
    """The files that hold a row which the expression selects, one by one, and what is left of each."""
    stays = base.library().expressions.Not(dead)
    for file in base.chosen(metadata, dead, None, None, frozenset(("warm",)))[0]:
        rest = scan.table(metadata, [file], stays)
        if rest.num_rows < file.record_count:
            yield [file], rest
