"""The base of a tiered table: an Iceberg table whose current metadata file Postgres names.

No catalog decides anything: a commit writes a new metadata file beside the old ones, and counts when ``howdah.tiers`` names it.
What a crash leaves unnamed is never read.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from ...errors import InvalidInput, StartupError, TierError
from . import place

KEPT = 16
"""Versions of bases that are kept in memory."""
MANIFESTS = 1000
"""Manifests (lists of files) that are."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELD = re.compile(r"(?:(year|month|day|hour)\((.+)\)|bucket\((\d+), *(.+)\)|(.+))\Z", re.DOTALL)


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


@contextmanager
def told(location: str, what: str = "the base cannot be written") -> Iterator[None]:
    """Errors of storage in Howdah's words."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise TierError(f"{location}: {what}: {error}") from error


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


@lru_cache(KEPT)
def arrow(metadata: str) -> Any:
    """The columns of a version as Arrow has them."""
    return as_arrow(opened(metadata).schema())


def as_arrow(schema: Any) -> Any:
    """Iceberg's columns as Arrow has them; UUIDs as bytes, which it can compare."""
    import pyarrow as pa

    found = library().io.pyarrow.schema_to_pyarrow(schema, include_field_ids=False)
    return pa.schema([pa.field(f.name, pa.binary(16)) if f.type == pa.uuid() else f for f in found])


def ends(metadata: str, names: Sequence[Any], column: str | None) -> tuple[datetime | None, datetime | None]:
    """The first and last moment that files have in a column, by their statistics."""
    from pyiceberg.conversions import from_bytes

    if column is None:
        return None, None
    field = opened(metadata).schema().find_field(column)
    unit = timedelta(days=1) if str(field.field_type) == "date" else timedelta(microseconds=1)
    bounds = [
        [
            from_bytes(field.field_type, b[field.field_id])
            for b in (getattr(f, which) for f in names)
            if b and field.field_id in b
        ]
        for which in ("lower_bounds", "upper_bounds")
    ]
    if not all(bounds):
        return None, None
    return _EPOCH + int(min(bounds[0])) * unit, _EPOCH + int(max(bounds[1])) * unit


def tier_of(path: str, archive: str | None) -> str:
    """The tier of a file."""
    return "cold" if archive is not None and path.startswith(place.url(archive) + "/") else "warm"
