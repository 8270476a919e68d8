"""A table in SQLite: the common operations, vector search over Howdah's own segments, and upkeep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...criteria import Criteria
from ...schema import Column, Schema
from ...search.vectors import distances
from ..base import Op, Stmt
from .compile import SqlDialect
from .dialect import Params, quote
from .search import EXACT, Found, SearchableTable, rank, rows_by, scan
from .segments import VectorSegments
from .table import version_column


class SqliteTable(SearchableTable):
    """One table of a SQLite file."""

    def __init__(
        self, dialect: SqlDialect, schema: Schema, physical: str, now: Callable[[], float], folder: Callable[[], Path]
    ) -> None:
        super().__init__(dialect, schema, physical, now)
        self._folder = folder
        self._segments: dict[str, VectorSegments] = {}

    def segments(self, column: Column) -> VectorSegments:
        """The segment index of a vector column."""
        found = self._segments.get(column.name)
        if found is None:
            found = VectorSegments(self.name, self.physical, column, self._folder())
            self._segments[column.name] = found
        return found

    def search_vector(
        self,
        column: Column,
        query: Any,
        where: Criteria | None,
        limit: int | None,
        *,
        exact: bool,
        ef: int | None,
        private: bool,
    ) -> Op[Found]:
        """The ``limit`` nearest rows that pass the filter; ``private`` inside a transaction."""
        assert column.vector is not None
        if column not in self.versioned or limit is None:
            return (yield from scan(self, column, query, where, limit))
        if (
            exact
            or column.vector.index is None
            or (where is not None and (yield from self.count_to(where, EXACT + 1)) <= EXACT)
        ):
            return (yield from self._exact(column, query, where, limit))
        index = self.segments(column)
        assert column.vector is not None and column.vector.index is not None
        loaded = yield from index.load(keep=not private)
        count = max(2 * limit, limit + 32)
        while True:
            versions, complete = index.candidates(loaded, query, count, ef or column.vector.index.ef)
            found = yield from rows_by(self, version_column(column.name), versions[: 4 * count].tolist(), where)
            if len(found) >= limit or complete:
                how = "hnsw" if loaded[0] else "exact"
                return Found(rank(self, column, list(found.values()), query, limit), how)
            if count > EXACT:
                return (yield from self._exact(column, query, where, limit))
            count *= 4

    def _exact(self, column: Column, query: Any, where: Criteria | None, limit: int) -> Op[Found]:
        """Distances of every vector that passes, in batches; then the rows of the nearest."""
        assert column.vector is not None
        index = self.segments(column)
        params = Params(self.dialect)
        condition = self.condition(where, params, f"t.{index.version} IS NOT NULL")
        rows = yield Stmt(f"SELECT t.{index.version}, t.{index.vector} FROM {self.name} t{condition}", params.values)
        if not rows:
            return Found([], "exact")
        numbers = np.frombuffer(b"".join(r[1] for r in rows), index.dtype).reshape(len(rows), -1)
        away = distances(numbers, query, column.vector.metric)
        ids = np.array([r[0] for r in rows], np.int64)
        if len(ids) > limit:
            edge = np.partition(away, limit - 1)[limit - 1] if limit else 0
            ids = ids[away <= edge]
        found = yield from rows_by(self, version_column(column.name), ids.tolist(), where)
        return Found(rank(self, column, list(found.values()), query, limit), "exact")

    def vectors_above(self, column: Column, low: int) -> Op[list[tuple[Any, ...]]]:
        """Versions above ``low`` with their vectors, ascending."""
        version = quote(version_column(column.name))
        return (
            yield Stmt(
                f"SELECT {version}, {quote(column.name)} FROM {self.name} WHERE {version} > ?1 ORDER BY {version}",
                (low,),
            )
        )
