"""Reads the rows of a base: the files that can hold what is asked for, piece by piece, whatever columns each was written with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ...errors import LimitExceeded
from . import base, place

ROWS, AHEAD, FILES, UNPACKED = 16 * 1024, 2, 8 * 1024 * 1024, 4
"""Rows of a batch at most, batches that are read ahead, bytes of files that are read at once, and how many times as large as
in a file rows may be in memory: it stays small, however large a base is."""
TOGETHER = 4 * 1024 * 1024
"""Bytes of rows that are taken at a time."""
SHAPES = 10_000
"""Files whose columns are kept in memory, where columns have changed."""


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

        with base.told(self.metadata, "a file of the base is missing or cannot be read"):
            if self._batches is None:
                names, self.skipped = base.chosen(self.metadata, self.condition, self.past, self.archive, self.tiers)
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


def table(metadata: str, names: Sequence[Any], condition: Any = None) -> Any:
    """The rows of some files of a version as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_batches(batches(metadata, names, condition), base.arrow(metadata))


def batches(
    metadata: str, names: Sequence[Any], condition: Any, columns: Sequence[str] | None = None, *, times: int = 1
) -> Iterator[Any]:
    """The rows of some files that fit a condition; if only some ``columns`` matter, maybe without others. So many ``times`` as
    much as usual is in memory."""
    import pyarrow as pa

    for shape, some in _together(metadata, names, times * FILES):
        width = UNPACKED * sum(f.file_size_in_bytes for f in some) // max(1, sum(f.record_count for f in some))
        size = max(64, min(times * ROWS, times * TOGETHER // max(1, width)))
        test, late, needed = _filters(metadata, shape, condition)
        wanted = None if columns is None else list(dict.fromkeys([*columns, *(needed if late is not None else ())]))
        source = dataset(metadata, some, shape)
        if late is not None:
            source = _with_groups(source, metadata, shape, condition)
        scanner = source.scanner(
            columns=_projection(metadata, shape, wanted), filter=test, use_threads=len(some) > 1, batch_size=size,
            batch_readahead=AHEAD,
        )  # fmt: skip
        for batch in scanner.to_batches():
            yield from [batch] if late is None else pa.Table.from_batches([batch]).filter(late).to_batches()


def _together(metadata: str, names: Sequence[Any], most: int) -> Iterator[tuple[Any, list[Any]]]:
    """Files of one shape that are read at once: many small ones, or a large one."""
    some: list[Any] = []
    size = 0
    shape = None
    for file in names:
        this = shape_of(metadata, file)
        if some and (this is not shape or size + file.file_size_in_bytes > most):
            yield shape, some
            some, size = [], 0
        shape = this
        some.append(file)
        size += file.file_size_in_bytes
    if some:
        yield shape, some


# Columns ----------------------------------------------------------------------------------------------------------


def shape_of(metadata: str, file: Any) -> Any:
    """The columns of a file, as Iceberg has them; ``None`` if they are those of the version."""
    return _differing(metadata, file.file_path) if base.evolved(metadata) else None


@lru_cache(SHAPES)
def _differing(metadata: str, path: str) -> Any:
    stored, now = _stored(path), base.opened(metadata).schema()
    same = [(f.field_id, f.name, f.field_type) for f in stored.fields] == [
        (f.field_id, f.name, f.field_type) for f in now.fields
    ]
    return None if same else stored


@lru_cache(SHAPES)
def _stored(path: str) -> Any:
    """A file's columns; files that have the same have one object."""
    import pyarrow.parquet as pq

    system, name = place.files(path)
    found = base.library().io.pyarrow.pyarrow_to_schema(pq.read_schema(name, filesystem=system))
    return _shapes.setdefault(str(found), found)


_shapes: dict[str, Any] = {}


def _plain(schema: Any) -> Any:
    """Columns as Arrow compares them: it has UUIDs as bytes."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import FixedType, UUIDType

    fields = [
        f.model_copy(update={"field_type": FixedType(16)}) if f.field_type == UUIDType() else f for f in schema.fields
    ]
    return Schema(*fields)


def _projection(metadata: str, shape: Any, wanted: Sequence[str] | None) -> Any:
    """The columns of a version, out of those of a file."""
    if shape is None:
        return wanted
    import pyarrow as pa
    import pyarrow.compute as pc

    there = {f.field_id: f for f in shape.fields}
    made = {}
    for field in base.opened(metadata).schema().fields:
        if wanted is None or field.name in wanted:
            old, type_ = there.get(field.field_id), base.arrow(metadata).field(field.name).type
            if old is None:
                made[field.name] = pc.scalar(pa.scalar(None, type_))
            else:
                made[field.name] = (
                    pc.field(old.name) if old.field_type == field.field_type else pc.field(old.name).cast(type_)
                )
    return made


# Conditions -------------------------------------------------------------------------------------------------------


def _filters(metadata: str, shape: Any, condition: Any) -> tuple[Any, Any, list[str]]:
    """A condition as pyarrow has it: what its scanner can be asked, or else what its rows are; and the columns it names.
    Its scanner cannot compare UUIDs with a file's statistics."""
    if condition is None:
        return None, None, []
    from pyiceberg.types import UUIDType

    of = base.library().expressions.visitors
    now = base.opened(metadata).schema()
    bound = of.bind(now, condition, True)
    named = [now.find_field(number) for number in of.extract_field_ids(bound)]
    late = any(field.field_type == UUIDType() for field in named)
    stored = _plain(now if late or shape is None else shape)
    translated = of.translate_column_names(bound, stored, True)
    test = base.library().io.pyarrow.expression_to_pyarrow(of.bind(stored, translated, True), stored)
    return (None, test, [field.name for field in named]) if late else (test, None, [])


def _with_groups(source: Any, metadata: str, shape: Any, condition: Any) -> Any:
    """The files of a data set without the groups of rows that UUIDs rule out."""
    import pyarrow.dataset as ds
    from pyiceberg.types import UUIDType

    schema = base.opened(metadata).schema()
    names = {f.name: f.field_id for f in (schema if shape is None else shape).fields if f.field_type == UUIDType()}
    test = base.library().expressions.visitors._InclusiveMetricsEvaluator(schema, condition)
    made = []
    for part in source.children if isinstance(source, ds.UnionDataset) else [source]:
        kept = []
        for fragment in part.get_fragments():
            about = fragment.metadata
            groups = [n for n in range(about.num_row_groups) if test.eval(_statistics(about.row_group(n), names))]
            kept.append(fragment.subset(row_group_ids=groups))
        made.append(ds.FileSystemDataset(kept, part.schema, part.format, part.filesystem))
    return made[0] if len(made) == 1 else ds.dataset(made)


def _statistics(group: Any, names: dict[str, int]) -> Any:
    """What is known of some columns in a group of rows, as of a file."""
    low, high = {}, {}
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in names and column.is_stats_set and column.statistics.has_min_max:
            low[names[column.path_in_schema]] = column.statistics.min
            high[names[column.path_in_schema]] = column.statistics.max
    return SimpleNamespace(
        record_count=group.num_rows, value_counts={}, null_value_counts={}, nan_value_counts={}, lower_bounds=low,
        upper_bounds=high,
    )  # fmt: skip


def dataset(metadata: str, names: Sequence[Any], shape: Any = None) -> Any:
    """Some files of one shape as a data set of pyarrow."""
    import pyarrow.dataset as ds

    schema = base.arrow(metadata) if shape is None else base.as_arrow(shape)
    parts = []
    for remote in (False, True):  # an archive may be elsewhere
        here = [place.files(f.file_path) for f in names if place.remote(f.file_path) == remote]
        if here:
            paths = [path for _, path in here]
            parts.append(ds.dataset(paths, filesystem=here[0][0], schema=schema, format="parquet"))
    return parts[0] if len(parts) == 1 else ds.dataset(parts)
