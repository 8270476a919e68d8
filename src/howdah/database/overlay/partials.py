"""Sums up base rows where they are: Arrow reads the columns that matter, file by file, and whole files may be counted unread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ..means import Means
from . import base, scan
from .plans import Part
from .texts import shown, stored

MOST = 250_000
"""Partial rows that there may be."""
TOGETHER = 500_000
"""Rows that are summed up at a time."""
TIMES = 16
"""How many times as much is read at once as for binding: of few columns, and all of it by Arrow."""
_SINCE, _UNTIL = datetime(1990, 1, 2), datetime(2039, 12, 30)
"""When moments are taken together: before and after, time zones may be odd."""
_AGAIN = {"count": "sum", "sum": "sum", "min": "min", "max": "max"}
"""How sums of sums are made."""


class Summed(NamedTuple):
    """Partial rows, as a list of texts for each column (``None``: there are too many); the files that were read for them, their
    bytes, and the files of the archive that were not."""

    columns: list[list[str | None]] | None
    files: int
    bytes: int
    skipped: int


def summed(
    metadata: str,
    condition: Any,
    groups: Sequence[tuple[str, int]],
    parts: Sequence[Part],
    key: Sequence[str],
    dead: Sequence[Sequence[Any]],
    *,
    archive: str | None,
    tiers: frozenset[str],
    means: Means,
) -> Summed:
    """Sum up the base rows that fulfil a condition and whose ``key`` is none of those that are ``dead``."""

    with base.told(metadata, "a file of the base is missing or cannot be read"):
        names, skipped = base.chosen(metadata, condition, None, archive, tiers)
        counted = 0
        if not dead and not groups and all(part == Part("count", None) for part in parts):
            whole = _whole(metadata, names, condition)
            counted = sum(file.record_count for file in whole)
            unread = {file.file_path for file in whole}
            names = [file for file in names if file.file_path not in unread]
        wide = Means(TIMES * means.memory, means.cache)
        columns = {*(g for g, _ in groups), *(p.column for p in parts if p.column is not None), *(key if dead else ())}
        batches = scan.batches(metadata, names, condition, sorted(columns) or key, means=wide) if names else iter(())
        found = _all(batches, groups, parts, keys(metadata, key, dead) if dead else None)
    size = sum(file.file_size_in_bytes for file in names)
    if found is None:
        return Summed(None, len(names), size, skipped)
    texts = [shown(column).to_pylist() for column in found.columns]
    if counted:
        texts = [[*column, str(counted)] for column in texts]
    return Summed(texts, len(names), size, skipped)


def keys(metadata: str, key: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Keys as Arrow has them."""
    import pyarrow as pa

    schema = base.arrow(metadata)
    return pa.table({k: pa.array([stored(row[i]) for row in rows], schema.field(k).type) for i, k in enumerate(key)})


def _whole(metadata: str, names: Sequence[Any], condition: Any) -> list[Any]:
    """The files whose every row fulfils a condition, by their statistics."""
    if condition is None:
        return list(names)
    schema = base.opened(metadata).schema()
    test = base.library().expressions.visitors._StrictMetricsEvaluator(schema, condition)
    return [file for file in names if test.eval(file)]


def _all(batches: Iterator[Any], groups: Sequence[tuple[str, int]], parts: Sequence[Part], dead: Any | None) -> Any:
    """The partial rows of all batches; ``None`` for too many."""
    import pyarrow as pa

    names = [f"g{i}" for i in range(len(groups))]
    odd: list[str] = []
    functions = [part.function for part in parts]
    again = [_AGAIN[f] for f in functions]
    made: list[Any] = []
    waiting = 0
    for rows in _tables(batches):
        live = rows if dead is None else without(rows, dead)
        columns = _columns(live, groups, parts)
        odd = odd or [name for name in columns.column_names if name.startswith("n")]
        made.append(_grouped(columns, [*names, *odd], functions))
        waiting += made[-1].num_rows
        if waiting > 2 * MOST:
            made = [_grouped(pa.concat_tables(made), [*names, *odd], again)]
            waiting = made[0].num_rows
            if waiting > MOST:
                return None
    if not made:
        return pa.table({f"c{i}": [] for i in range(len(names) + len(parts))})
    found = _grouped(pa.concat_tables(made), [*names, *odd], again)
    return _with_odd(found, odd) if found.num_rows <= MOST else None


def _with_odd(rows: Any, odd: Sequence[str]) -> Any:
    """Rows with NaN as the least and largest value of those that are apart for having it."""
    import pyarrow.compute as pc

    for name in odd:
        value = f"v{name[1:]}"
        column = rows.column(value)
        filled = pc.if_else(rows.column(name), float("nan"), column).cast(column.type)
        rows = rows.set_column(rows.schema.get_field_index(value), value, filled)
    return rows.drop_columns(list(odd)) if odd else rows


def _tables(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches in groups, which are worked on by several threads."""
    import pyarrow as pa

    waiting: list[Any] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= TOGETHER:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def without(rows: Any, dead: Any) -> Any:
    """Rows whose key is none of those that are dead."""
    import pyarrow.compute as pc

    if len(dead.column_names) > 1:  # a join takes no lists along
        import pyarrow as pa

        numbered = rows.select(dead.column_names).append_column(
            "howdah row", pa.array(range(rows.num_rows), pa.int64())
        )
        kept = numbered.join(dead, dead.column_names, join_type="left anti").column("howdah row")
        return rows.take(kept.combine_chunks().sort())
    (name,) = dead.column_names
    return rows.filter(pc.invert(pc.is_in(rows.column(name), value_set=dead.column(name).combine_chunks())))


def _columns(rows: Any, groups: Sequence[tuple[str, int]], parts: Sequence[Part]) -> Any:
    """What is grouped, and what is summed up, as columns of their own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    made = {}
    for number, (name, minutes) in enumerate(groups):
        column = rows.column(name)
        if minutes and rows.num_rows and column.null_count < rows.num_rows:
            least, largest = (f(column).as_py().replace(tzinfo=None) for f in (pc.min, pc.max))
            if least > _SINCE and largest < _UNTIL:
                column = pc.floor_temporal(column, multiple=minutes, unit="minute")
        made[f"g{number}"] = column
    for number, part in enumerate(parts):
        if part.column is None:
            made[f"v{number}"] = pa.chunked_array([pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows)])
            continue
        column = rows.column(part.column)
        if part.function == "sum":  # so that no sum of them is too large
            narrow = pa.types.is_int32(column.type)
            scale = column.type.scale if pa.types.is_decimal(column.type) else 0
            wide = pa.float64() if pa.types.is_floating(column.type) else pa.decimal128(38, scale)
            column = column.cast(pa.int64() if narrow else wide)
        elif part.function != "count" and pa.types.is_floating(column.type):
            # Larger than any number to Postgres, nothing to Arrow: such rows are apart.
            odd = pc.fill_null(pc.is_nan(column), False)
            made[f"n{number}"], column = odd, pc.if_else(odd, pa.scalar(None, column.type), column)
        made[f"v{number}"] = column
    return pa.table(made)


def _grouped(rows: Any, names: Sequence[str], functions: Sequence[str]) -> Any:
    """Rows by group, each further column summed up by its function."""
    asked = [(f"v{i}", f) for i, f in enumerate(functions)]
    found = rows.group_by(names).aggregate(asked)
    import pyarrow as pa

    shown = [found.column(n) for n in names] + [found.column(f"v{i}_{f}") for i, f in enumerate(functions)]
    return pa.table(dict(zip([*names, *(f"v{i}" for i in range(len(functions)))], shown, strict=True)))
