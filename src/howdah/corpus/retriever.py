"""Finds documents: best passages by text and by meaning, fused by rank, shown with scores that mean something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..criteria import And, Criteria, In
from ..engines.base import Engine, innermost
from ..search.analyzer import query_terms, units
from ..search.fusion import RRF
from ..search.snippets import extract
from ..table import AsyncTable
from .chunking import Chunk
from .model import Hit
from .tables import CorpusTables

Key = tuple[str, str]


@dataclass(slots=True)
class Leg:
    """One ranked list of documents: best passage and score each."""

    ranked: list[tuple[Key, int, float]]
    raw: dict[Key, float] = field(default_factory=dict)
    plan: str = ""


class Retriever:
    """Searches the tables of a corpus."""

    def __init__(self, engine: Engine, tables: CorpusTables) -> None:
        self._engine = engine
        self._tables = tables

    @staticmethod
    def scope(collections: Sequence[str] | None, where: Criteria | None) -> Criteria | None:
        """Criteria on chunks of collections and filter."""
        parts: list[Criteria] = [] if where is None else [where]
        if collections is not None:
            parts.append(In("collection", tuple(collections)))
        return And(tuple(parts)) if len(parts) > 1 else parts[0] if parts else None

    async def text(self, query: str, where: Criteria | None, count: int | None) -> Leg:
        """Documents by BM25 of their best chunk, over the most that the query could reach."""
        table = self._tables.chunks
        places = {n: table.schema.names.index(n) for n in ("collection", "path", "ordinal")}
        take = None if count is None else 4 * count
        while True:
            search = partial(table._ops.search_text, query, where, take)
            found = await table.reading(search, heavy=True, snapshot=True)
            leg = Leg([], plan=found.plan)
            for row, score in found.rows:
                key = (row[places["collection"]], row[places["path"]])
                if key not in leg.raw:
                    leg.raw[key] = score
                    leg.ranked.append((key, row[places["ordinal"]], min(1.0, score / found.reach)))
            if take is None or len(leg.ranked) >= (count or 0) or len(found.rows) < take:
                return leg
            take *= 4

    async def vector(self, table: AsyncTable[Any], query: Any, where: Criteria | None, count: int | None) -> Leg:
        """Documents by cosine of their nearest piece, negatives as 0."""
        column = table.schema.by_name["vector"]
        names = [table.schema.names.index(n) for n in ("collection", "path", "ordinal")]
        take = None if count is None else 4 * count
        private = innermost(self._engine) is not None
        while True:
            search = partial(
                table._ops.search_vector, column, query, where, take, exact=False, ef=None, private=private
            )
            found = await table.reading(search, heavy=True)
            leg = Leg([], plan=found.plan)
            for row, distance in found.rows:
                collection, path, ordinal = (row[n] for n in names)
                if (collection, path) not in leg.raw:
                    leg.raw[collection, path] = 1 - distance
                    leg.ranked.append(((collection, path), ordinal, max(0.0, 1 - distance)))
            if take is None or len(leg.ranked) >= (count or 0) or len(found.rows) < take:
                return leg
            take *= 4

    @staticmethod
    def fuse(
        legs: Mapping[str, Leg], limit: int | None, min_score: float
    ) -> list[tuple[Key, int, float, dict[str, Any]]]:
        """Documents in order, each with its best chunk, the score shown and its trace.

        Several legs are ordered by reciprocal rank. The score shown is the mean of what the legs gave (a leg that did
        not find the document gave nothing), and never rises down the list.
        """
        orders: dict[Key, float]
        if len(legs) == 1:
            (leg,) = legs.values()
            orders = {key: score for key, _, score in leg.ranked}
        else:
            lists = {name: [(key, score) for key, _, score in leg.ranked] for name, leg in legs.items()}
            orders = RRF().fuse(lists, dict.fromkeys(lists, 1.0))
        traces: dict[Key, dict[str, Any]] = {}
        chosen: dict[Key, tuple[float, int]] = {}
        for name, leg in legs.items():
            for rank, (key, ordinal, score) in enumerate(leg.ranked, 1):
                traces.setdefault(key, {})[name] = {"rank": rank, "score": score, "raw": leg.raw[key], "plan": leg.plan}
                if key not in chosen or 1 / rank > chosen[key][0]:
                    chosen[key] = (1 / rank, ordinal)
        found = []
        ceiling = 1.0
        for key in sorted(orders, key=lambda k: (-orders[k], k)):
            mean = sum(t["score"] for t in traces[key].values()) / len(legs)
            ceiling = min(ceiling, mean)
            if ceiling < min_score:
                break
            found.append((key, chosen[key][1], ceiling, {"legs": traces[key], "fused": orders[key], "score": ceiling}))
        return found if limit is None else found[:limit]

    async def hits(
        self,
        query: str,
        found: Sequence[tuple[Key, int, float, dict[str, Any]]],
        uri: Any,
        *,
        explain: bool,
        snippet_chars: int,
    ) -> list[Hit]:
        """Hits with passages and snippets."""
        if not found:
            return []
        documents = await self._tables.documents.query(
            In("path", tuple({key[1] for key, *_ in found})),
            select=["collection", "path", "id", "title", "hash", "metadata", "created", "modified"],
        ).all()
        rows = {(d["collection"], d["path"]): d for d in documents}
        chunks = await self._tables.chunks.get_many([(*key, ordinal) for key, ordinal, *_ in found])
        terms = [t for u in units(query) for t in query_terms(u)]
        made: list[Hit] = []
        for key, ordinal, score, trace in found:
            row, passage = rows.get(key), chunks.get((*key, ordinal))
            if row is None or passage is None:
                continue  # removed since it was found
            snippet = extract(passage["body"], terms, first_line=passage["line"], limit=snippet_chars)
            part = Chunk(
                ordinal,
                passage["body"],
                passage["start"],
                passage["start"] + len(passage["body"]),
                passage["line"],
                passage["heading"],
            )
            made.append(
                Hit(
                    row["id"],
                    uri(*key),
                    *key,
                    row["title"],
                    score,
                    len(made) + 1,
                    snippet.line,
                    snippet.text,
                    row["metadata"],
                    row["created"],
                    row["modified"],
                    row["hash"],
                    part,
                    trace if explain else None,
                )
            )
        return made
