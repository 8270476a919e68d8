"""Finds the first rows of a base in an order: files that cannot hold one are not opened, and of the others only the best are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..means import Means
from . import base, scan
from .limited import Order

MARGIN = {"l2": 1e-4, "l1": 1e-4, "ip": 1e-4, "cosine": 1e-5}
"""How far off pgvector's single-precision distances may be: of the distance, of the vectors' lengths, or by itself."""


DISTANCE, MARGIN_ = "howdah distance", "howdah margin"
SHORT, LONG = 1e-12, 1e12
"""Lengths of vectors between which single precision neither overflows nor vanishes when it squares."""
TOGETHER = 50_000
"""Rows that are sorted at once."""


class First(NamedTuple):
    """The rows, as an Arrow table; whether they are all that there are; the files that were opened, and their bytes; how many files
    of the archive were not."""

    rows: Any
    all: bool
    files: int
    bytes: int
    skipped: int


def first(
    metadata: str,
    condition: Any,
    orders: Sequence[Order],
    whole: bool,
    count: int,
    columns: Sequence[str] | None,
    to: Any,
    *,
    past: int | None,
    archive: str | None,
    tiers: frozenset[str],
    most: int,
    means: Means,
) -> First | None:
    """The first ``count`` rows that may fit a condition, and unless ``whole`` those that tie with the last; ``to`` is the vector
    of a distance (NumPy). ``None`` where only Postgres can say: for vectors of another length, or more ties than ``most``."""
    import pyarrow as pa

    with base.told(metadata, "a file of the base is missing or cannot be read"):
        names, skipped = base.chosen(metadata, condition, past, archive, tiers)
        wanted = None if columns is None else list(dict.fromkeys([*columns, *(o.column for o in orders)]))
        best = _Best(metadata, orders, whole, count, to)
        opened = size = 0
        waiting, step, early = best.sorted(names), 1, False
        while waiting and not early:
            some, waiting = waiting[:step], waiting[step:]
            step *= 2
            opened, size = opened + len(some), size + sum(file.file_size_in_bytes for file in some)
            for batch in scan.batches(metadata, some, condition, wanted, means=means):
                if batch.num_rows and not best.take(pa.Table.from_batches([batch])):
                    return None
                early = not orders and best.seen >= count
                if early:
                    break
            early = early or (len(waiting) > 0 and best.full(waiting[0]))
        rows = best.kept()
        kept = 0 if rows is None else rows.num_rows
        return None if kept > most else First(rows, not early and best.seen == kept, opened, size, skipped)


class _Best:
    """The best rows so far."""

    def __init__(self, metadata: str, orders: Sequence[Order], whole: bool, count: int, to: Any) -> None:
        self._orders = orders
        self._whole = whole
        self._count = count
        self._to = to
        self.rows: Any = None
        self.seen = 0
        self._waiting: list[Any] = []
        self._count_waiting = self._kept = 0
        self._field = None
        if orders and orders[0].metric is None:
            self._field = base.opened(metadata).schema().find_field(orders[0].column)

    # Files ----------------------------------------------------------------------------------------------------

    def sorted(self, names: Sequence[Any]) -> list[Any]:
        """Files, the one with the best rows first."""
        if self._field is None:
            return list(names)
        known = [file for file in names if self._bound(file) is not None]
        known.sort(key=self._bound, reverse=self._orders[0].descending)
        return [file for file in names if self._bound(file) is None] + known

    def full(self, file: Any) -> bool:
        """Whether there are rows enough that are better than any of a file."""
        self.settle()
        if self._field is None or self.rows is None or self.rows.num_rows < self._count:
            return False
        bound, last = self._bound(file), self._last()
        if bound is None or last is None:
            return False
        if bound == last:
            return self._whole and len(self._orders) == 1
        return bool(bound < last if self._orders[0].descending else bound > last)

    def _bound(self, file: Any) -> Any:
        """The best value that a file can have; ``None`` if nothing is known of it, or a null would be better."""
        from pyiceberg.conversions import from_bytes

        assert self._field is not None
        number = self._field.field_id
        if str(self._field.field_type) in ("float", "double"):  # statistics leave out what is not a number
            return None
        if self._orders[0].nulls_first and (file.null_value_counts or {}).get(number) != 0:
            return None
        found = ((file.upper_bounds if self._orders[0].descending else file.lower_bounds) or {}).get(number)
        return None if found is None else _plain(from_bytes(self._field.field_type, found))

    def _last(self) -> Any:
        """The first key of the worst row that counts; ``None`` for a null."""
        scalar = self.rows.column(self._orders[0].column)[self._count - 1]
        if not scalar.is_valid:
            return None
        value = scalar.value if hasattr(scalar, "value") else scalar.as_py()
        return _plain(value)

    # Rows -----------------------------------------------------------------------------------------------------

    def take(self, rows: Any) -> bool:
        """Look at more rows; whether their distances can be told."""
        import pyarrow as pa

        self.seen += rows.num_rows
        if self._orders and self._orders[0].metric is not None:
            distances = _distances(rows.column(self._orders[0].column), self._orders[0].metric, self._to)
            if distances is None:
                return False
            for name, values in zip((DISTANCE, MARGIN_), distances, strict=True):
                rows = rows.append_column(name, pa.array(values, from_pandas=False))
        self._waiting.append(rows)
        self._count_waiting += rows.num_rows
        if self._orders and self._count_waiting > 2 * self._kept + TOGETHER:
            self.settle()
        return True

    def settle(self) -> None:
        """Keep the best, in their order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._waiting:
            return
        rows = pa.concat_tables([*([] if self.rows is None else [self.rows]), *self._waiting])
        self._waiting, self._count_waiting = [], 0
        if self._orders and rows.num_rows:
            ranks = [pair for i, order in enumerate(self._orders) for pair in _ranked(rows, order, f"k{i}")]
            keys = pa.table({name: values for name, values, _ in ranks})
            best = pc.select_k_unstable(keys, self._count, [(name, way) for name, _, way in ranks])
            if not self._whole and rows.num_rows > self._count:
                near = self._near(rows, keys, best)
                others = pc.invert(pc.is_in(near, value_set=best))
                best = pa.concat_arrays([best, near.filter(others)])
            rows = rows.take(best)
        self.rows, self._kept = rows, rows.num_rows

    def _near(self, rows: Any, keys: Any, best: Any) -> Any:
        """The places of the rows that are no worse than the worst of the best, as far as can be told."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind, value = keys.column(0), keys.column(1)
        last = best[-1].as_py()
        worst = kind[last].as_py()
        number = 2 if self._orders[0].descending else 1
        near = pc.equal(kind, worst)  # one null is as good as another, and so is what is no number
        if worst == number and self._orders[0].metric is not None:
            margin = rows.column(MARGIN_)
            numbers = pc.equal(kind.take(best), number)
            # So many are at most as far away, whatever a distance is exactly.
            reach = pc.max(pc.add(value.take(best), margin.take(best)).filter(numbers))
            near = pc.and_(near, pc.less_equal(pc.subtract(value, margin), reach))
        elif worst == number:
            compare = pc.greater_equal if self._orders[0].descending else pc.less_equal
            near = pc.and_(near, pc.fill_null(compare(value, value[last]), False))
        near = pc.or_(near, pc.less(kind, worst))
        return pa.array(np.flatnonzero(near.to_numpy()), pa.uint64())

    def kept(self) -> Any:
        """What is kept, as the base has it."""
        self.settle()
        if self.rows is None:
            return None
        rows = self.rows if self._orders else self.rows.slice(0, self._count)
        odd = [name for name in rows.column_names if name in (DISTANCE, MARGIN_)]
        return rows.drop_columns(odd) if odd else rows


def _plain(value: Any) -> Any:
    """A value that compares as its bytes do."""
    return value.bytes if hasattr(value, "bytes") and not isinstance(value, bytes) else value


def _ranked(rows: Any, order: Order, name: str) -> Iterator[tuple[str, Any, str]]:
    """The keys that sort rows as Postgres does: which kind a value is of, then the value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.column(DISTANCE if order.metric else order.column)
    if order.metric:  # of a missing vector there is none
        column = pc.if_else(pc.is_null(rows.column(order.column)), None, column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    way = "descending" if order.descending else "ascending"
    kind = pc.if_else(pc.is_null(column), 0 if order.nulls_first else 3, 2 if order.descending else 1)
    if pa.types.is_floating(column.type):  # larger than any number
        kind = pc.if_else(pc.fill_null(pc.is_nan(column), False), 1 if order.descending else 2, kind)
    yield f"{name} kind", kind.cast(pa.int8()), "ascending"
    yield name, column, way


def _distances(column: Any, metric: str, to: Any) -> tuple[Any, Any] | None:
    """The distance of each vector, and how far off it may be. Formulas: pgvector's README."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    there = lists.drop_null()
    lengths = pc.unique(pc.list_value_length(there)).to_pylist()
    found = np.zeros(len(lists))
    margin = np.zeros(len(lists))
    if not lengths:
        return found, margin
    if lengths != [len(to)]:
        return None
    vectors = there.flatten().to_numpy(zero_copy_only=False).reshape(len(there), len(to)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        length, own = np.linalg.norm(vectors, axis=1), float(np.linalg.norm(to))
        if not all(n == 0 or SHORT < n < LONG for n in (own, *_ends(length))):
            return None
        if metric == "l2":
            values = np.linalg.norm(vectors - to, axis=1)
            about = values + length + own
        elif metric == "l1":
            values = np.abs(vectors - to).sum(axis=1)
            about = values + np.abs(vectors).sum(axis=1)
        elif metric == "ip":
            values = -(vectors @ to)
            about = length * own
        else:
            values = 1 - (vectors @ to) / (length * own)
            about = np.ones(len(values))
    mask = lists.is_valid().to_numpy(zero_copy_only=False)
    found[mask], margin[mask] = values, about * MARGIN[metric]
    return found, margin


def _ends(lengths: Any) -> list[float]:
    """The least, but for zero, and the largest length."""
    some = lengths[lengths > 0]
    return [float(some.min()), float(some.max())] if len(some) else []
