"""Search of a table: which legs run, how their lists are fused, and the hits that come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .check import check_sparse, check_vector
from .criteria import Criteria
from .engines.base import Op
from .errors import InvalidInput, InvalidValue, Unsupported
from .hits import LEG_NAMES, Dense, Hit, Hits, Leg, Match, Sparse, Text, candidates
from .schema import Column, Schema
from .search.fusion import Fusion, check_weights, fusion as as_fusion
from .search.query import parse
from .search.vectors import score as vector_score

R = TypeVar("R")
RowKey = tuple[Any, ...]


@dataclass(slots=True)
class Prepared:
    """One leg, checked: its name, kind, column and query."""

    name: str
    leg: Leg
    column: Column | None
    query: Any


@dataclass(slots=True)
class Plan:
    """A checked search."""

    legs: list[Prepared]
    limit: int | None
    min_score: float | None
    fusion: Fusion
    weights: dict[str, float]
    ef: int | None


@dataclass(slots=True)
class Ranking:
    """What came out: rows by key, lists by leg, and how each was found."""

    rows: dict[RowKey, Sequence[Any]]
    lists: dict[str, list[tuple[RowKey, float]]]
    distances: dict[RowKey, float]
    how: dict[str, str]
    reach: float
    terms: dict[str, int]


class Searching:
    """Searches of one table."""

    def __init__(self, schema: Schema, ops: Any) -> None:
        self.schema = schema
        self.ops = ops

    def plan(
        self,
        dense: Any,
        sparse: Any,
        text: str | None,
        legs: Sequence[Leg] | None,
        limit: int | None,
        min_score: float | None,
        fusion: str | Fusion,
        weights: Mapping[str, float] | None,
        ef: int | None,
    ) -> Plan:
        """Check every argument before anything runs."""
        if min_score is not None and (
            isinstance(min_score, bool) or not isinstance(min_score, (int, float)) or math.isnan(min_score)
        ):
            raise InvalidInput(f"min_score={min_score!r}: expected a number")
        if ef is not None and (isinstance(ef, bool) or not isinstance(ef, int) or not 1 <= ef <= 1000):
            raise InvalidInput(f"ef={ef!r}: expected an integer from 1 to 1,000")
        wanted: list[Leg] = list(legs or ())
        if legs is not None and (dense is not None or sparse is not None or text is not None):
            raise InvalidInput("give either legs=[…] or dense, sparse and text, not both")
        if legs is None:
            blank = text is not None and isinstance(text, str) and not text.strip()
            if dense is not None:
                wanted.append(Dense(dense))
            if sparse is not None:
                wanted.append(Sparse(sparse))
            if text is not None and not (blank and wanted):
                wanted.append(Text(text))
        if not 1 <= len(wanted) <= 3:
            raise InvalidValue("nothing to search for: give a vector, sparse=… or text=… (one to three legs)")
        prepared = [self._prepare(leg) for leg in wanted]
        names = [p.name for p in prepared]
        if len(set(names)) < len(names):
            raise InvalidInput("legs: two legs search the same column")
        for item in prepared:
            if limit is not None:
                candidates(item.leg, limit)
        return Plan(prepared, limit, min_score, as_fusion(fusion), check_weights(weights, names), ef)

    def _prepare(self, leg: Leg) -> Prepared:
        if not isinstance(leg, (Dense, Sparse, Text)):
            raise InvalidInput(f"leg {leg!r:.60}: expected Dense(…), Sparse(…) or Text(…)")
        name = LEG_NAMES[type(leg)]
        if isinstance(leg, Text):
            if not self.schema.text:
                raise Unsupported(
                    f'{self.schema.name}: text search needs a text index: declare text={{"column": weight}}'
                )
            parse(leg.query, tuple(self.schema.text))
            return Prepared(name, leg, None, leg.query)
        columns = self.schema.vectors if isinstance(leg, Dense) else self.schema.sparse_vectors
        if not columns:
            raise Unsupported(f"{self.schema.name}: {name} search needs a {name} vector column, and there is none")
        if leg.column is not None:
            column = self.schema.column(leg.column)
            if column not in columns:
                raise InvalidInput(f"{self.schema.name}: column {leg.column!r} is {column.kind}, no {name} vector")
            name = name if columns[0] is column else f"{name}:{leg.column}"
        else:
            column = columns[0]
        assert column.vector is not None
        if isinstance(leg, Dense):
            query: Any = check_vector(leg.query, _as_float(column), "query vector")
        else:
            query = check_sparse(leg.query, column.vector, "sparse query")
        return Prepared(name, leg, column, query)

    def run(self, plan: Plan, where: Criteria | None, *, exact: bool, private: bool) -> Op[Ranking]:
        """Run the legs one after the other in one snapshot."""
        ranking = Ranking({}, {}, {}, {}, 1.0, {})
        fused = len(plan.legs) > 1
        for item in plan.legs:
            count = plan.limit if not fused or plan.limit is None else candidates(item.leg, plan.limit)
            if item.column is None:
                found = yield from self.ops.search_text(item.query, where, count)
                ranking.reach, ranking.terms = found.reach, found.terms
                scored = [(self._key(row), row, value) for row, value in found.rows]
            else:
                found = yield from self.ops.search_vector(
                    item.column, item.query, where, count, exact=exact, ef=plan.ef, private=private
                )
                assert item.column.vector is not None
                metric = item.column.vector.metric
                scored = [(self._key(row), row, vector_score(away, metric)) for row, away in found.rows]
                ranking.distances.update((k, pair[1]) for (k, _, _), pair in zip(scored, found.rows, strict=True))
            ranking.how[item.name] = found.plan
            ranking.rows.update((key, row) for key, row, _ in scored)
            ranking.lists[item.name] = [(key, value) for key, _, value in scored]
        return ranking

    def _key(self, row: Sequence[Any]) -> RowKey:
        return tuple(row[i] for i in self.ops.key_places)

    def hits(
        self,
        ranking: Ranking,
        plan: Plan,
        convert: Callable[[Sequence[Any]], R],
        public_key: Callable[[Sequence[Any]], Any],
        *,
        explain: bool,
    ) -> Hits[R]:
        """Fuse the lists, cut by score and limit, and turn rows into hits."""
        single = len(plan.legs) == 1
        scored: list[tuple[RowKey, float, tuple[Match, ...]]]
        if single:
            ((name, ranked),) = ranking.lists.items()
            scored = [(key, value, (Match(name, rank, value),)) for rank, (key, value) in enumerate(ranked, 1)]
        else:
            scored = self._fused(ranking, plan)
        if plan.min_score is not None:
            scored = [item for item in scored if item[1] >= plan.min_score]
        metadata = next((c.name for c in self.schema.columns if c.name == "metadata" and c.kind == "json"), None)
        found = []
        for key, value, matches in scored[: plan.limit]:
            row = convert(ranking.rows[key])
            extra = None
            if metadata is not None:
                extra = row.get(metadata) if isinstance(row, Mapping) else getattr(row, metadata, None)
            distance = ranking.distances.get(key) if single else None
            found.append(Hit(public_key(key), row, value, distance, extra, matches))
        details = None
        if explain:
            details = {
                "fusion": None if single else repr(plan.fusion),
                "weights": dict(plan.weights),
                "legs": {name: {"plan": ranking.how[name], "candidates": len(r)} for name, r in ranking.lists.items()},
            }
        return Hits(found, ranking.how, details)

    def _fused(self, ranking: Ranking, plan: Plan) -> list[tuple[RowKey, float, tuple[Match, ...]]]:
        """Keys with their fused scores and places, best first, ties by key."""
        places: dict[RowKey, list[Match]] = {}
        for name, ranked in ranking.lists.items():
            for rank, (key, value) in enumerate(ranked, 1):
                places.setdefault(key, []).append(Match(name, rank, value))
        active = {n: r for n, r in ranking.lists.items() if plan.weights[n] > 0}
        scores = plan.fusion.fuse(active, plan.weights)
        order = sorted(scores, key=lambda key: (-scores[key], key))
        return [(key, scores[key], tuple(places[key])) for key in order]


def _as_float(column: Column) -> Any:
    """A query is never rounded to the column's integers."""
    assert column.vector is not None
    return replace(column.vector, dtype="float32") if column.vector.dtype == "int8" else column.vector
