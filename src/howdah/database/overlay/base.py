"""The base of a tiered table: an Iceberg table whose current metadata file Postgres names.

No catalog decides anything: a commit writes a new metadata file beside the old ones, and counts when ``howdah.tiers`` names it.
What a crash leaves unnamed is never read.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from ...errors import InvalidInput, LimitExceeded, StartupError, TierError
from . import place

PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.parquet.row-group-limit": "122880",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    "commit.manifest-merge.enabled": "true",
}
KEPT = 16
"""Versions of bases that are kept in memory."""
MANIFESTS = 1000
"""Manifests (lists of files) that are."""
ROWS, AHEAD, FILES, UNPACKED = 16 * 1024, 2, 8 * 1024 * 1024, 4
"""Rows of a batch at most, batches that are read ahead, bytes of files that are read at once, and how many times as large as
in a file rows may be in memory: it stays small, however large a base is."""
TOGETHER = 4 * 1024 * 1024
"""Bytes of rows that are taken at a time."""
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


@dataclass(slots=True)
class Scan:
    """The rows of a base that may fit a condition: ``take()`` gives the next ones, from a thread, until there are no more.

    An error for a file that is missing or broken, and for more than ``most`` rows. Files below ``archive`` are cold, the others
    warm; ``past`` is the id of an older version; if only some ``columns`` matter, others may be missing. ``together`` is how many
    bytes of rows, as they are in memory, are taken at a time.
    """

    metadata: str | None
    condition: Any = None
    most: int | None = None
    past: int | None = None
    archive: str | None = None
    tiers: frozenset[str] = frozenset(("warm", "cold"))
    columns: Sequence[str] | None = None
    together: int | None = None
    files: int = 0
    """Those that are opened for it, known after the first ``take()``, and their ``bytes``."""
    bytes: int = 0
    skipped: int = 0
    """Files of the archive that could hold more and were not asked for."""
    rows: int = 0
    """Those that were taken."""
    _batches: Iterator[Any] | None = None

    def take(self) -> Any:
        """The next rows as an Arrow table; ``None`` at the end."""
        if self.metadata is None:
            return None
        import pyarrow as pa

        with told(self.metadata, "a file of the base is missing or cannot be read"):
            if self._batches is None:
                names, self.skipped = chosen(self.metadata, self.condition, self.past, self.archive, self.tiers)
                self.files, self.bytes = len(names), sum(file.file_size_in_bytes for file in names)
                self._batches = batches(self.metadata, names, self.condition, self.columns) if names else iter(())
            found: list[Any] = []
            size = 0
            for batch in self._batches:
                self.rows += batch.num_rows
                size += batch.nbytes
                if self.most is not None and self.rows > self.most:
                    raise LimitExceeded(f"more than {self.most:,} rows")
                if batch.num_rows:
                    found.append(batch)
                if size >= (self.together or TOGETHER):
                    break
            return pa.Table.from_batches(found) if found else None

    async def each(self) -> AsyncIterator[Any]:
        """All of them, piece by piece."""
        while (rows := await asyncio.to_thread(self.take)) is not None:
            yield rows


def library() -> Any:
    """PyIceberg, or an error that names what to install."""
    try:
        import pyiceberg.expressions
        import pyiceberg.expressions.visitors
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
    if len({column for column, _, _ in found}) < len(found):
        raise InvalidInput(f"partition_by={list(given)!r:.80}: a column twice")
    return found


def partition_text(column: str, transform: str, argument: int) -> str:
    """One field of what a base is partitioned by, as text."""
    if transform == "identity":
        return column
    return f"bucket({argument}, {column})" if transform == "bucket" else f"{transform}({column})"


def written_otherwise(column: str) -> bool:
    """Whether a column has another name in the files than in the table."""
    from pyiceberg.schema import make_compatible_name

    return bool(make_compatible_name(column) != column)


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
    library()
    from .versions import Versions

    began = time.time()
    versions = Versions("howdah", **place.properties(location))
    with told(location):
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
    old = files(metadata)

    def work(table: Any) -> None:
        from .versions import replace

        replace(table, [(old, None)])

    return change(location, metadata, work) if old else None


def _without(metadata: str, dead: Any) -> Iterator[tuple[list[Any], Any]]:
    """The files that hold a row which the expression selects, one by one, and what is left of each."""
    stays = library().expressions.Not(dead)
    for file in chosen(metadata, dead, None, None, frozenset(("warm",)))[0]:
        rest = table(metadata, [file], stays)
        if rest.num_rows < file.record_count:
            yield [file], rest


@lru_cache(KEPT)
def opened(metadata: str) -> Any:
    """The version of a base that a metadata file describes."""
    library()
    from .versions import Versions

    return Versions("howdah", **place.properties(metadata)).table(metadata)


@lru_cache(KEPT)
def files(metadata: str, snapshot: int | None = None) -> tuple[Any, ...]:
    """The data files of a version, or of an older one that it knows."""
    table = opened(metadata)
    version = table.current_snapshot() if snapshot is None else table.snapshot_by_id(snapshot)
    if version is None:
        if snapshot is not None:
            raise TierError(f"{metadata}: it knows no snapshot {snapshot}")
        return ()
    return tuple(file for manifest in version.manifests(table.io) for file in listed(manifest, table.io))


_manifests: OrderedDict[str, list[Any]] = OrderedDict()
_lock = threading.Lock()


def listed(manifest: Any, io: Any) -> list[Any]:
    """The files of a manifest, which never changes."""
    path = manifest.manifest_path
    with _lock:
        found = _manifests.get(path)
    if found is None:
        found = [entry.data_file for entry in manifest.fetch_manifest_entry(io, discard_deleted=True)]
    with _lock:
        _manifests[path] = found
        _manifests.move_to_end(path)
        while len(_manifests) > MANIFESTS:
            _manifests.popitem(last=False)
    return found


def chosen(
    metadata: str, condition: Any, snapshot: int | None, archive: str | None, tiers: frozenset[str]
) -> tuple[list[Any], int]:
    """The files that could hold rows that fit a condition, of these tiers; how many of the other tiers could."""
    every: Sequence[Any] = files(metadata, snapshot)
    if condition is not None:
        test = library().expressions.visitors._InclusiveMetricsEvaluator(opened(metadata).schema(), condition)
        every = [file for file in every if test.eval(file)]
    found = [file for file in every if tier_of(file.file_path, archive) in tiers]
    return found, len(every) - len(found)


def columns(metadata: str) -> list[str]:
    """The names of a version's columns."""
    return list(arrow(metadata).names)


def evolved(metadata: str) -> bool:
    """Whether files of a version may have other columns than it has."""
    return len(opened(metadata).metadata.schemas) > 1


def table(metadata: str, names: Sequence[Any], condition: Any = None) -> Any:
    """The rows of some files of a version as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_batches(batches(metadata, names, condition), arrow(metadata))


def batches(
    metadata: str, names: Sequence[Any], condition: Any, columns: Sequence[str] | None = None, *, times: int = 1
) -> Iterator[Any]:
    """The rows of some files that fit a condition; if only some ``columns`` matter, maybe without others. So many ``times`` as
    much as usual is in memory."""
    if not evolved(metadata):
        test = _filtering(metadata, condition)
        wanted = None if columns is None else list(columns)
        for some in _together(names, times * FILES):
            width = UNPACKED * sum(f.file_size_in_bytes for f in some) // max(1, sum(f.record_count for f in some))
            size = max(64, min(times * ROWS, times * TOGETHER // max(1, width)))
            scanner = dataset(metadata, some).scanner(
                columns=wanted, filter=test, use_threads=len(some) > 1, batch_size=size, batch_readahead=AHEAD
            )
            yield from scanner.to_batches()
        return
    import pyarrow as pa

    ice, found = library(), opened(metadata)
    rows = ice.expressions.AlwaysTrue() if condition is None else condition
    scan = ice.io.pyarrow.ArrowScan(found.metadata, found.io, found.schema(), rows)
    for file in names:  # one by one: it reads all that it is given
        for batch in scan.to_record_batches([ice.table.FileScanTask(file)]):
            yield from pa.Table.from_batches([batch]).cast(arrow(metadata)).to_batches()


def _together(names: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Files that are read at once: many small ones, or a large one."""
    some: list[Any] = []
    size = 0
    for file in names:
        if some and size + file.file_size_in_bytes > most:
            yield some
            some, size = [], 0
        some.append(file)
        size += file.file_size_in_bytes
    if some:
        yield some


def dataset(metadata: str, names: Sequence[Any]) -> Any:
    """Some files of a version whose columns are its own, as a data set of pyarrow."""
    import pyarrow.dataset as ds

    parts = []
    for remote in (False, True):  # an archive may be elsewhere
        here = [place.files(f.file_path) for f in names if place.remote(f.file_path) == remote]
        if here:
            paths = [path for _, path in here]
            parts.append(ds.dataset(paths, filesystem=here[0][0], schema=arrow(metadata), format="parquet"))
    return parts[0] if len(parts) == 1 else ds.dataset(parts)


@lru_cache(KEPT)
def arrow(metadata: str) -> Any:
    """The columns of a version as Arrow has them."""
    return library().io.pyarrow.schema_to_pyarrow(opened(metadata).schema(), include_field_ids=False)


def _filtering(metadata: str, condition: Any) -> Any:
    """A condition as pyarrow has it."""
    if condition is None:
        return None
    ice = library()
    schema = opened(metadata).schema()
    return ice.io.pyarrow.expression_to_pyarrow(ice.expressions.visitors.bind(schema, condition, True), schema)


def tier_of(path: str, archive: str | None) -> str:
    """The tier of a file."""
    return "cold" if archive is not None and path.startswith(place.url(archive) + "/") else "warm"
