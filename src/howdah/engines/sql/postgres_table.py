"""A table in Postgres: the common operations, and vector search by pgvector that always finds what exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...criteria import Criteria
from ...schema import Column, Schema
from ..base import Op, Stmt
from .compile import SqlDialect
from .ddl import vector_index
from .dialect import Params, PostgresDialect, quote
from .search import EXACT, Found, SearchableTable, rank, scan

_OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}


MOST = 100
"""Statements that are kept, by column and limit."""


class PostgresTable(SearchableTable):
    """One table of a Postgres schema."""

    def __init__(
        self, dialect: SqlDialect, schema: Schema, physical: str, now: Callable[[], float], *, local_settings: bool
    ) -> None:
        super().__init__(dialect, schema, physical, now)
        self._local_settings = local_settings
        self._plain: dict[tuple[str, int], str] = {}
        self._indexed = {c.name for c in schema.vectors if vector_index(self, c)}

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
        """The ``limit`` nearest rows that pass the filter. pgvector's index skips zero vectors and its scans have caps:
        when fewer come back than were asked, every row is looked at."""
        assert column.vector is not None
        if limit is None:
            return (yield from scan(self, column, query, where, None))
        if exact or column.name not in self._indexed or not np.any(query):
            return (yield from self._nearest(column, query, where, limit, exact=True))
        if where is not None and (yield from self.count_to(where, EXACT + 1)) <= EXACT:
            return (yield from self._nearest(column, query, where, limit, exact=True))
        assert column.vector.index is not None
        if self._local_settings or ef is not None:
            wanted = max(ef or column.vector.index.ef, min(self._candidates(column, limit), 1000))
            yield Stmt(
                "SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', $1, true)",
                (str(wanted),),
            )
        found = yield from self._nearest(column, query, where, limit, exact=False)
        beyond = column.vector.metric == "cosine" and bool(found.rows) and found.rows[-1][1] > 1
        if len(found.rows) < limit or beyond:
            return (yield from self._nearest(column, query, where, limit, exact=True))
        return found

    def _candidates(self, column: Column, limit: int) -> int:
        """How many rows to take from an index whose order may not be that of the vectors."""
        assert column.vector is not None
        return max(2 * limit, limit + 32) if column.vector.quantized else limit

    def _nearest(self, column: Column, query: Any, where: Criteria | None, limit: int, *, exact: bool) -> Op[Found]:
        assert column.vector is not None and isinstance(self.dialect, PostgresDialect)
        encode = self.dialect.encode(column)
        assert encode is not None
        wanted = query if column.kind == "sparse" else np.asarray(query, np.float32)
        if where is None and not exact and self.schema.ttl is None and (column.name, limit) in self._plain:
            rows = yield Stmt(self._plain[column.name, limit], [encode(wanted)])
            return Found(rank(self, column, rows, query, limit), "hnsw")
        params = Params(self.dialect, [encode(wanted)])
        schema = quote(self.dialect.vector_schema)
        name = f"t.{quote(column.name)}"
        condition = self.condition(where, params, f"{name} IS NOT NULL")
        order = away = f"{name} OPERATOR({schema}.{_OPERATORS[column.vector.metric]}) $1"
        count = limit if exact else self._candidates(column, limit)
        if not exact and column.vector.quantized:
            half, unit = f"::{schema}.halfvec({column.vector.dim})", f"{schema}.l2_normalize"
            order = f"{unit}({name}){half} OPERATOR({schema}.<=>) {unit}($1::{schema}.vector){half}"
        if exact:
            # An expression that no index serves; a zero vector has no cosine, which counts as 0.
            keys = ", ".join(self.dialect.order(f"t.{quote(k)}", False, False) for k in self.schema.key)
            order = f"coalesce(nullif({away}, 'NaN'::float8), 1), {keys}"
        sql = f"SELECT {self._selection} FROM {self.name} t{condition} ORDER BY {order} LIMIT {count}"
        if where is None and not exact and self.schema.ttl is None:
            if len(self._plain) > MOST:
                self._plain.clear()
            self._plain[column.name, limit] = sql
        rows = yield Stmt(sql, params.values)
        return Found(rank(self, column, rows, query, limit), "exact" if exact else "hnsw")
