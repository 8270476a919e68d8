"""Searches of a SQL table: text by the posting index, vectors by the engine's nearest-neighbour index, filters inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...aggregates import Aggregate
from ...criteria import Criteria
from ...schema import Column
from ...search import bm25
from ...search.analyzer import contains_phrase
from ...search.query import Clause
from ...search.vectors import exact_distances, sparse_distance
from ..base import Op, Rows, Stmt
from .aggregate import aggregate
from .dialect import Params, quote
from .join import JoinPlan, join
from .table import DOC, SqlTable
from .text import TextMatch

EXACT = 5000
CHUNK = 200


@dataclass(slots=True)
class Found:
    """Rows (driver form) with their raw score (text) or distance (vectors), best first, and how they were found."""

    rows: list[tuple[Sequence[Any], float]]
    plan: str
    reach: float = 1.0
    terms: dict[str, int] = field(default_factory=dict)


def search_text(table: SqlTable, text: str, where: Criteria | None, limit: int | None) -> Op[Found]:
    """The ``limit`` best rows by BM25, ties by key; ``None`` gives every match."""
    assert table.text is not None
    for _ in range(5):
        match = yield from table.text.match(text)
        rows, gone = yield from _text_rows(table, match, where, limit)
        if not gone:  # else a row left between the two statements: look again
            break
    return Found(rows, "bm25", match.reach, match.terms)


def _text_rows(
    table: SqlTable, match: TextMatch, where: Criteria | None, limit: int | None
) -> Op[tuple[list[tuple[Sequence[Any], float]], bool]]:
    """Rows in score order, and whether one that matched had gone."""
    free = where is None and not match.verify and table.schema.ttl is None
    if free and limit:
        top = match.matches.best(limit)
        found = yield from _ranked(table, match, *top, None)
        return found[:limit], len(found) < len(top[0])
    ids, scores = match.matches.pairs()
    wanted = len(ids) if limit is None else limit
    if where is not None and len(ids) > EXACT:
        allowed = yield from _allowed(table, where)
        if allowed is not None:
            keep = np.isin(ids, allowed)
            ids, scores = ids[keep], scores[keep]
    found = []
    gone = False
    size = min(len(ids), max(CHUNK, wanted))
    while len(ids) and len(found) < wanted:
        best, values = bm25.best(ids, scores, min(size, len(ids)))
        ranked = yield from _ranked(table, match, best, values, where)
        gone = gone or (free and len(ranked) < len(best))
        found.extend(ranked)
        if len(best) == len(ids):
            break
        rest = scores < values[-1]
        ids, scores = ids[rest], scores[rest]
        size *= 4
    return found[:wanted], gone


def _ranked(
    table: SqlTable, match: TextMatch, ids: np.ndarray, scores: np.ndarray, where: Criteria | None
) -> Op[list[tuple[Sequence[Any], float]]]:
    """The rows of some documents, best first, ties by key."""
    numbers = ids.tolist()
    got = yield from rows_by(table, DOC, numbers, where)
    ranked = sorted(
        ((got[i], v) for i, v in zip(numbers, scores.tolist(), strict=True) if i in got),
        key=lambda pair: (-pair[1], key_order(table, pair[0])),
    )
    return [pair for pair in ranked if _verified(table, pair[0], match.verify)]


def _verified(table: SqlTable, row: Sequence[Any], verify: list[tuple[Clause, bool]]) -> bool:
    assert table.text is not None
    for clause, wanted in verify:
        columns = table.text.columns if clause.field is None else (clause.field,)
        texts = (row[table.schema.names.index(c)] for c in columns)
        if any(t and contains_phrase(t, list(clause.phrase)) for t in texts) != wanted:
            return False
    return True


def _allowed(table: SqlTable, where: Criteria) -> Op[np.ndarray | None]:
    """Document numbers that pass the filter, when they are few enough to list."""
    params = Params(table.dialect)
    condition = table.condition(where, params)
    most = 20 * EXACT
    rows = yield Stmt(f"SELECT t.{quote(DOC)} FROM {table.name} t{condition} LIMIT {most + 1}", params.values)
    if len(rows) > most:
        return None
    return np.array([r[0] for r in rows if r[0] is not None], np.int64)


def rows_by(table: SqlTable, hidden: str, numbers: list[int], where: Criteria | None) -> Op[dict[int, Sequence[Any]]]:
    """Live rows that pass the filter, by a hidden number."""
    found: dict[int, Sequence[Any]] = {}
    chosen = ", ".join(f"t.{quote(n)}" for n in (hidden, *table.schema.names))
    for start in range(0, len(numbers), EXACT):
        params = Params(table.dialect)
        test = table.dialect.in_test(
            f"t.{quote(hidden)}", params, numbers[start : start + EXACT], "integer", negated=False
        )
        sql = f"SELECT {chosen} FROM {table.name} t{table.condition(where, params, test)}"
        found.update((r[0], tuple(r)[1:]) for r in (yield Stmt(sql, params.values)))
    return found


def key_order(table: SqlTable, row: Sequence[Any]) -> tuple[Any, ...]:
    """The primary key of a row, as it sorts. Python compares text by code point, as the engines do."""
    return tuple(row[i] for i in table.key_places)


def rank(
    table: SqlTable, column: Column, rows: Sequence[Sequence[Any]], query: Any, limit: int | None
) -> list[tuple[Sequence[Any], float]]:
    """Rows by exact distance, computed alike for every engine, ties by key."""
    place = table.schema.names.index(column.name)
    decode = table.decoders[column.name]
    assert column.vector is not None and decode is not None
    if column.kind == "sparse":
        away = [sparse_distance(decode(r[place]), query, column.vector.metric) for r in rows]
    elif rows:
        away = exact_distances(table.dialect.matrix(column, [r[place] for r in rows]), query, column.vector.metric)
    else:
        away = []
    ranked = sorted(zip(rows, away, strict=True), key=lambda pair: (pair[1], key_order(table, pair[0])))
    return ranked if limit is None else ranked[:limit]


def scan(table: SqlTable, column: Column, query: Any, where: Criteria | None, limit: int | None) -> Op[Found]:
    """Exact search over every row that passes the filter."""
    params = Params(table.dialect)
    present = f"t.{quote(column.name)} IS NOT NULL"
    condition = table.condition(where, params, present)
    rows = yield Stmt(f"SELECT {table._selection} FROM {table.name} t{condition}", params.values)
    return Found(rank(table, column, rows, query, limit), "exact")


class SearchableTable(SqlTable):
    """A SQL table with text search and aggregates; each engine adds its vector search."""

    def search_text(self, text: str, where: Criteria | None, limit: int | None) -> Op[Found]:
        """The best rows by BM25."""
        return search_text(self, text, where, limit)

    def join(self, other: SqlTable, **plan: Any) -> Op[Rows]:
        """Rows of both tables, matched by equal columns."""
        return join(self, other, JoinPlan(**plan))

    def aggregate(
        self, groups: Sequence[str], wanted: Mapping[str, Aggregate], where: Criteria | None
    ) -> Op[list[dict[str, Any]]]:
        """Aggregates by group."""
        return aggregate(self, groups, wanted, where)
