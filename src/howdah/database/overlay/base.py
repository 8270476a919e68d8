"""The base of a tiered table: an Iceberg table whose current metadata file Postgres names.

No catalog decides anything: a commit writes a new metadata file beside the old ones, and counts when ``howdah.tiers`` names it.
What a crash leaves unnamed is never read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import InvalidInput, LimitExceeded, StartupError, TierError
from . import place

IDENTIFIER = "howdah.base"
PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    "commit.manifest-merge.enabled": "true",
}
KEPT = 16
_FIELD = re.compile(r"(?:(year|month|day|hour)\((.+)\)|bucket\((\d+), *(.+)\)|(.+))\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Commit:
    """A version of the base: its metadata file and snapshot, what was added, and what there is in all."""

    metadata: str
    snapshot: int
    files: int
    bytes: int
    total_files: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of a base (Arrow; ``None`` when no file could hold any), and what was opened for them."""

    rows: Any = None
    files: int = 0
    bytes: int = 0
    skipped: int = 0
    """Files of the archive that could hold more and were not asked for."""


def library() -> Any:
    """PyIceberg, or an error that names what to install."""
    try:
        import pyiceberg.catalog.memory
        import pyiceberg.expressions
        import pyiceberg.io.pyarrow
        import pyiceberg.table
        import pyiceberg.transforms
        import pyiceberg_core  # noqa: F401 - transforms of partitions need it
    except ImportError as error:
        raise StartupError("tiering needs its libraries: pip install 'howdah[tiering]'") from error
    return pyiceberg


def partition_fields(given: object) -> list[tuple[str, str, int]]:
    """What a base is partitioned by: column, transform and its argument, from texts such as ``day(ts)`` or ``region``."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, (list, tuple)) or not all(isinstance(item, str) and item for item in given):
        raise InvalidInput(
            f"partition_by={given!r:.80}: expected columns, or day(column), bucket(16, column) and the like"
        )
    found = []
    for item in given:
        match = _FIELD.match(item)
        assert match is not None
        if match[1]:
            found.append((match[2], match[1], 0))
        elif match[3]:
            if not 1 <= int(match[3]) <= 10_000:
                raise InvalidInput(f"partition_by={item!r}: 1 to 10,000 buckets")
            found.append((match[4], "bucket", int(match[3])))
        else:
            found.append((match[5], "identity", 0))
    return found


def _transform(name: str, argument: int) -> Any:
    of = library().transforms
    if name == "bucket":
        return of.BucketTransform(argument)
    kinds = {"year": of.YearTransform, "month": of.MonthTransform, "day": of.DayTransform, "hour": of.HourTransform}
    return kinds.get(name, of.IdentityTransform)()


@contextmanager
def told(location: str, what: str = "the base cannot be written") -> Iterator[None]:
    """Errors of storage in Howdah's words."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise TierError(f"{location}: {what}: {error}") from error


def change(
    location: str, metadata: str | None, work: Callable[[Any], None], *, schema: Any = None, partition: Any = ()
) -> Commit:
    """Make a new version of the base by ``work(table)``, durable but not yet named."""
    ice, began = library(), time.time()
    known = place.properties(location)
    catalog = ice.catalog.memory.InMemoryCatalog("howdah", warehouse=place.url(location), **known)
    try:
        with told(location):
            catalog.create_namespace("howdah")
            if metadata is None:
                table = catalog.create_table(
                    IDENTIFIER, schema=schema, location=place.url(location), properties=PROPERTIES
                )
                if partition:
                    with table.update_spec() as spec:
                        for column, name, argument in partition:
                            spec.add_field(column, _transform(name, argument), f"{column}_{name}")
            else:
                table = catalog.register_table(IDENTIFIER, metadata)
            work(table)
            place.sync(location, began)
    finally:
        catalog.engine.dispose()
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
    """Drop the rows that the expression ``dead`` selects and add ``rows`` (Arrow)."""

    def work(table: Any) -> None:
        with table.transaction() as transaction:
            if dead is not None and metadata is not None:
                transaction.delete(dead)
            if rows is not None and rows.num_rows:
                transaction.append(rows)

    return change(location, metadata, work, schema=schema, partition=partition)


@lru_cache(KEPT)
def opened(metadata: str) -> Any:
    """The version of a base that a metadata file describes."""
    ice = library()
    known = place.properties(metadata)
    return ice.table.StaticTable.from_metadata(metadata, known)


def read(
    metadata: str | None,
    condition: Any,
    *,
    most: int | None = None,
    snapshot: int | None = None,
    archive: str | None = None,
    tiers: frozenset[str] = frozenset(("warm", "cold")),
) -> Found:
    """The rows of a base that may fit a condition; an error for a file that is missing or broken, and for more than ``most``.

    Files below ``archive`` are cold, the others warm; ``snapshot`` names an older version.
    """
    if metadata is None:
        return Found()
    ice = library()
    with told(metadata, "a file of the base is missing or cannot be read"):
        table = opened(metadata)
        scan = table.scan(
            **({} if condition is None else {"row_filter": condition}),
            **({} if snapshot is None else {"snapshot_id": snapshot}),
        )
        tasks, skipped = [], 0
        for task in scan.plan_files():
            if _tier(task.file.file_path, archive) in tiers:
                tasks.append(task)
            else:
                skipped += 1
        if not tasks:
            return Found(skipped=skipped)
        reader = ice.io.pyarrow.ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter)
        batches, total = [], 0
        for batch in reader.to_record_batches(tasks):
            total += batch.num_rows
            if most is not None and total > most:
                raise LimitExceeded(f"more than {most:,} rows")
            batches.append(batch)
        import pyarrow as pa

        rows = pa.Table.from_batches(batches) if batches else None
    size = sum(task.file.file_size_in_bytes for task in tasks)
    return Found(rows, len(tasks), size, skipped)


def _tier(path: str, archive: str | None) -> str:
    return "cold" if archive is not None and path.startswith(place.url(archive) + "/") else "warm"
