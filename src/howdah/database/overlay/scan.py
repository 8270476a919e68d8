"""Reads the rows of a base: the files that can hold what is asked for, piece by piece, whatever columns each was written with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ...errors import LimitExceeded
from ..means import DEFAULT, Means
from . import base, place

ROWS, AHEAD, UNPACKED = 16 * 1024, 2, 4
"""Rows of a batch at most, batches that are read ahead, and how many times as large as in a file rows may be in memory."""
FILES, TOGETHER = 8, 16
"""Which parts of the memory are filled by files that are read at once, and by rows that are taken at a time."""
EACH = 32 * 2**20
"""Bytes of memory for each file that is read beside others."""
SHAPES = 10_000
"""Files whose columns are kept in memory, where columns have changed."""


@dataclass(slots=True)
class Scan:
    """The rows of a base that may fit a condition: ``take()`` gives the next ones, from a thread, until there are no more.

    An error for a file that is missing or broken, and for more than ``most`` rows. Files below ``archive`` are cold, the others
    warm; ``past`` is the id of an older version; if only some ``columns`` matter, others may be missing.
    """

    metadata: str | None
    condition: Any = None
    most: int | None = None
    past: int | None = None
    archive: str | None = None
    tiers: frozenset[str] = frozenset(("warm", "cold"))
    columns: Sequence[str] | None = None
    means: Means = DEFAULT
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
                given = (self.metadata, names, self.condition, self.columns)
                self._batches = batches(*given, means=self.means) if names else iter(())
            found: list[Any] = []
            size = 0
            for batch in self._batches:
                self.rows += batch.num_rows
                size += batch.nbytes
                if self.most is not None and self.rows > self.most:
                    raise LimitExceeded(f"more than {self.most:,} rows")
                if batch.num_rows:
                    found.append(batch)
                if size >= self.means.memory // TOGETHER:
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
    metadata: str, names: Sequence[Any], condition: Any, columns: Sequence[str] | None = None, *, means: Means = DEFAULT
) -> Iterator[Any]:
    """The rows of some files that fit a condition: all of their columns, or some ``columns`` in this order."""
    wanted = list(base.arrow(metadata).names) if columns is None else list(dict.fromkeys(columns))
    uuids = _names_uuids(metadata, condition)
    # Many rows go through little memory one file after the other; for few it is quicker to look at several.
    much = UNPACKED * sum(f.file_size_in_bytes for f in names) > means.memory
    for shape, some in _together(metadata, names, means.memory // FILES):
        width = UNPACKED * sum(f.file_size_in_bytes for f in some) // max(1, sum(f.record_count for f in some))
        size = max(64, min(ROWS * (means.memory // DEFAULT.memory or 1), means.memory // TOGETHER // max(1, width)))
        where = place.nearest([(f.file_path, f.file_size_in_bytes) for f in some], means.cache)
        if uuids or len(some) == 1 or (much and not any(map(place.remote, where))):
            for address in where:
                yield from _one(metadata, address, shape, condition, wanted, size)
            continue
        scanner = _dataset(metadata, where, shape).scanner(
            columns=_projection(metadata, shape, wanted), filter=_filter(metadata, shape, condition), batch_size=size,
            batch_readahead=AHEAD, fragment_readahead=max(1, means.memory // EACH),
        )  # fmt: skip
        yield from scanner.to_batches()


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


def _one(metadata: str, address: str, shape: Any, condition: Any, columns: Sequence[str], size: int) -> Iterator[Any]:
    """The rows of one file, of which little is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = place.files(address)
    now = base.opened(metadata).schema()
    stored = now if shape is None else shape
    test = _filter(metadata, None, condition)
    asked = _asked(metadata, condition)
    wanted = [f for f in now.fields if f.name in columns or f.field_id in asked]
    there = {f.field_id: f.name for f in stored.fields}
    with pq.ParquetFile(path, filesystem=system, pre_buffer=place.remote(address)) as file:
        groups = _groups(file.metadata, now, stored, condition)
        names = [there[f.field_id] for f in wanted if f.field_id in there]
        for batch in file.iter_batches(size, row_groups=groups, columns=names, use_threads=len(names) > 1):
            made = []
            for field in wanted:
                type_ = base.arrow(metadata).field(field.name).type
                if field.field_id in there:
                    made.append(batch.column(there[field.field_id]).cast(type_))
                else:
                    made.append(pa.nulls(batch.num_rows, type_))
            rows = pa.Table.from_arrays(made, [f.name for f in wanted])
            yield from (rows if test is None else rows.filter(test)).select(columns).to_batches()


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


def _projection(metadata: str, shape: Any, wanted: list[str]) -> Any:
    """The columns of a version, out of those of a file."""
    if shape is None:
        return wanted
    import pyarrow as pa
    import pyarrow.compute as pc

    there, now = {f.field_id: f for f in shape.fields}, base.opened(metadata).schema()
    made = {}
    for name in wanted:
        field, type_ = now.find_field(name), base.arrow(metadata).field(name).type
        old = there.get(field.field_id)
        if old is None:
            made[name] = pc.scalar(pa.scalar(None, type_))
        else:
            made[name] = pc.field(old.name) if old.field_type == field.field_type else pc.field(old.name).cast(type_)
    return made


# Conditions -------------------------------------------------------------------------------------------------------


def _filter(metadata: str, shape: Any, condition: Any) -> Any:
    """A condition as pyarrow has it, on the columns of a file (``None``: those of the version)."""
    if condition is None:
        return None
    of = base.library().expressions.visitors
    now = base.opened(metadata).schema()
    stored = _plain(now if shape is None else shape)
    translated = of.translate_column_names(of.bind(now, condition, True), stored, True)
    return base.library().io.pyarrow.expression_to_pyarrow(of.bind(stored, translated, True), stored)


def _plain(schema: Any) -> Any:
    """Columns as Arrow compares them: it has UUIDs as bytes."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import FixedType, UUIDType

    fields = [
        f.model_copy(update={"field_type": FixedType(16)}) if f.field_type == UUIDType() else f for f in schema.fields
    ]
    return Schema(*fields)


def _asked(metadata: str, condition: Any) -> set[int]:
    """The ids of the columns that a condition names."""
    if condition is None:
        return set()
    of = base.library().expressions.visitors
    return set(of.extract_field_ids(of.bind(base.opened(metadata).schema(), condition, True)))


def _names_uuids(metadata: str, condition: Any) -> bool:
    """Whether a condition names a column of UUIDs: pyarrow cannot compare these with a file's statistics."""
    from pyiceberg.types import UUIDType

    schema = base.opened(metadata).schema()
    return any(schema.find_field(n).field_type == UUIDType() for n in _asked(metadata, condition))


def _groups(about: Any, now: Any, stored: Any, condition: Any) -> list[int]:
    """The groups of rows of a file that statistics do not rule out."""
    every = list(range(about.num_row_groups))
    if condition is None:
        return every
    test = base.library().expressions.visitors._InclusiveMetricsEvaluator(now, condition)
    kept = {f.field_id: f.field_type for f in now.fields}
    names = {f.name: (f.field_id, f.field_type) for f in stored.fields if kept.get(f.field_id) == f.field_type}
    return [n for n in every if test.eval(_statistics(about.row_group(n), names))]


def _statistics(group: Any, names: dict[str, tuple[int, Any]]) -> Any:
    """What is known of some columns in a group of rows, as of a file."""
    from pyiceberg.conversions import to_bytes
    from pyiceberg.types import DateType, IntegerType, LongType, TimestampType, TimestamptzType, UUIDType

    low, high = {}, {}
    for number in range(group.num_columns):
        column = group.column(number)
        found = names.get(column.path_in_schema)
        if found is None or not column.is_stats_set or not column.statistics.has_min_max:
            continue
        statistics, type_ = column.statistics, found[1]
        if isinstance(type_, UUIDType):
            low[found[0]], high[found[0]] = statistics.min, statistics.max
        elif isinstance(type_, (IntegerType, LongType, DateType, TimestampType, TimestamptzType)):
            low[found[0]], high[found[0]] = to_bytes(type_, statistics.min_raw), to_bytes(type_, statistics.max_raw)
    return SimpleNamespace(
        record_count=group.num_rows, value_counts={}, null_value_counts={}, nan_value_counts={}, lower_bounds=low,
        upper_bounds=high,
    )  # fmt: skip


def dataset(metadata: str, names: Sequence[Any]) -> Any:
    """Some files, with the columns of their version, as a data set of pyarrow."""
    return _dataset(metadata, [f.file_path for f in names], None)


def _dataset(metadata: str, where: Sequence[str], shape: Any) -> Any:
    """Files of one shape as a data set of pyarrow."""
    import pyarrow.dataset as ds

    schema = base.arrow(metadata) if shape is None else base.as_arrow(shape)
    parts = []
    for remote in (False, True):  # an archive may be elsewhere, and some of a bucket's files here
        here = [place.files(address) for address in where if place.remote(address) == remote]
        if here:
            paths = [path for _, path in here]
            parts.append(ds.dataset(paths, filesystem=here[0][0], schema=schema, format="parquet"))
    return parts[0] if len(parts) == 1 else ds.dataset(parts)
