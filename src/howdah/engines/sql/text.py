"""The text index of a table in SQL: rows of packed postings per term, written with the data, merged in the background.

``<table>_post_…`` holds ``(term, part, n, data)``: what one write added (n > 0) or deleted (n < 0) for a term;
``<table>_stat_…`` what each write added to the totals. Both are only ever summed, so it does not matter how they are cut,
writers never meet, and merging rows of a term changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...search import bm25
from ...search.query import Clause, TextQuery, parse
from ..base import Op, Stmt
from .compile import SqlDialect, prefix_end
from .dialect import Params, derived_name

Document = tuple[int, tuple[str | None, ...]]
COMPLETIONS = 64
MERGE_PARTS = 64
MERGE_TERMS = 2000


@dataclass(slots=True)
class TextMatch:
    """Everything that a text query matched, before rows are fetched. ``verify`` are phrases still to be checked."""

    matches: bm25.Matches
    reach: float
    verify: list[tuple[Clause, bool]]
    terms: dict[str, int] = field(default_factory=dict)


class TextIndex:
    """Statements and arithmetic of one table's text index."""

    def __init__(self, dialect: SqlDialect, physical: str, weights: dict[str, float]) -> None:
        self.dialect = dialect
        self.columns = tuple(weights)
        self.weights = list(weights.values())
        self._weights = bm25.weights_array(weights)
        # The names change with the columns and weights, so that a handle with others meets no rows of this form.
        shape = [f"{name}={weight}" for name, weight in weights.items()]
        self.post_name, self.stat_name = derived_name(physical, "post", *shape), derived_name(physical, "stat", *shape)
        self.post, self.stat = dialect.qualify(self.post_name), dialect.qualify(self.stat_name)
        p = dialect.placeholder
        self._add_stat = f"INSERT INTO {self.stat} (part, docs, length) VALUES ({p(1, 'integer')}, {p(2, 'integer')}, {p(3, 'integer')})"
        self._add_post = (
            f"INSERT INTO {self.post} (term, part, n, data) VALUES ({p(1, '')}, {p(2, '')}, {p(3, '')}, {p(4, '')})"
        )

    def ddl(self) -> list[str]:
        """Statements that create the index's tables."""
        if self.dialect.name == "sqlite":
            return [
                f"CREATE TABLE {self.post} (term TEXT, part INTEGER, n INTEGER NOT NULL, data BLOB NOT NULL,"
                " PRIMARY KEY (term, part)) WITHOUT ROWID",
                f"CREATE TABLE {self.stat} (part INTEGER PRIMARY KEY, docs INTEGER NOT NULL, length INTEGER NOT NULL)",
            ]
        return [
            f'CREATE TABLE {self.post} (term text COLLATE "C", part bigint, n integer NOT NULL,'
            " data bytea STORAGE EXTERNAL NOT NULL, PRIMARY KEY (term, part))",
            f"CREATE TABLE {self.stat} (part bigint PRIMARY KEY, docs bigint NOT NULL, length bigint NOT NULL)",
        ]

    def drop(self) -> list[str]:
        """Statements that drop them."""
        return [f"DROP TABLE IF EXISTS {self.post}", f"DROP TABLE IF EXISTS {self.stat}"]

    def clear(self) -> Op[None]:
        """Forget every document."""
        yield Stmt(f"DELETE FROM {self.post}")
        yield Stmt(f"DELETE FROM {self.stat}")

    def change(self, removed: Sequence[Document], added: Sequence[Document], parts: Sequence[int]) -> Op[None]:
        """Take ``removed`` out and put ``added`` in, under two fresh part numbers."""
        for number, made in (
            (parts[0], bm25.invert_deleted(removed, self.weights) if removed else None),
            (parts[1], bm25.invert(added, self.weights) if added else None),
        ):
            if made is None or not made.documents:
                continue
            yield Stmt(self._add_stat, (number, made.documents, made.length))
            if made.rows:
                yield Stmt(self._add_post, [(term, number, n, data) for term, n, data in made.rows], many=True)

    def _gather(self, terms: Sequence[str]) -> Op[tuple[int, int, dict[str, list[tuple[int, bytes]]]]]:
        params = Params(self.dialect)
        test = self.dialect.in_test("term", params, list(terms), "text", negated=False)
        null = "NULL" if self.dialect.name == "sqlite" else "NULL::bytea"
        rows = yield Stmt(
            f"SELECT NULL, CAST(coalesce(sum(docs), 0) AS bigint), {null}, CAST(coalesce(sum(length), 0) AS bigint) FROM {self.stat}"
            f" UNION ALL SELECT term, n, data, 0 FROM {self.post} WHERE {test}",
            params.values,
        )
        documents = length = 0
        found: dict[str, list[tuple[int, bytes]]] = {}
        for term, n, data, size in rows:
            if term is None:
                documents, length = int(n), int(size)
            else:
                found.setdefault(term, []).append((n, data))
        return documents, length, found

    def _completions(self, prefix: str) -> Op[list[str]]:
        params = Params(self.dialect)
        stop = prefix_end(prefix)
        low = f"term >= {params.add(prefix, 'text')}"
        high = "" if stop is None else f" AND term < {params.add(stop, 'text')}"
        rows = yield Stmt(
            f"SELECT term FROM {self.post} WHERE {low}{high} GROUP BY term HAVING sum(n) > 0"
            f" ORDER BY sum(n) DESC, term LIMIT {COMPLETIONS}",
            params.values,
        )
        return [term for (term,) in rows]

    def match(self, text: str) -> Op[TextMatch]:
        """Every document that ``text`` matches, with its score."""
        query = parse(text, self.columns)
        every = (*query.must, *query.should, *query.must_not)
        wanted = sorted({term for clause in every for term in clause.terms})
        documents, length, rows = yield from self._gather(wanted)
        expansions: dict[Clause, list[str]] = {}
        for clause in every:
            known = any(term in rows for term in clause.terms)
            prefix = clause.prefix
            if prefix is None and not known and not clause.phrase and not clause.stop and clause.terms:
                prefix = clause.terms[0]
            if prefix:
                expansions[clause] = yield from self._completions(prefix)
        extra = sorted({t for ts in expansions.values() for t in ts} - rows.keys())
        if extra:
            documents, length, more = yield from self._gather([*wanted, *extra])
            rows = more
        return self._score(query, documents, length, rows, expansions)

    def _score(
        self,
        query: TextQuery,
        documents: int,
        length: int,
        rows: dict[str, list[tuple[int, bytes]]],
        expansions: dict[Clause, list[str]],
    ) -> TextMatch:
        columns = len(self.columns)
        postings = {term: bm25.gather(found, columns) for term, found in rows.items()}
        average = max(1.0, length / documents) if documents > 0 else 1.0
        seen: set[tuple[str, str | None]] = set()
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        reach = 0.0
        for clause in query.ranking():
            field = None if clause.field is None else [self.columns.index(clause.field)]
            terms: list[tuple[str, bm25.Postings, int]] = []
            if clause in expansions:
                joined = _union([postings[t][0] for t in expansions[clause] if t in postings], columns)
                if len(joined.ids):
                    terms.append((f"{clause.prefix or clause.terms[0]}*", joined, len(joined.ids)))
            else:
                terms.extend((t, postings[t][0], postings[t][2]) for t in clause.terms if t in postings)
            known = 0.0
            for name, found, frequency in terms:
                known += bm25.idf(frequency, documents)
                if (name, clause.field) not in seen:
                    seen.add((name, clause.field))
                    term = bm25.Term(found, frequency, columns=field)
                    parts.append(bm25.impacts(term, documents, average, self._weights))
            reach += known or bm25.idf(0, max(documents, 1))
        matches = bm25.accumulate(parts)
        verify: list[tuple[Clause, bool]] = []
        for clause in query.must:
            matches = _only(matches, self._documents(clause, postings, expansions), inside=True)
            if len(clause.phrase) > 1:
                verify.append((clause, True))
        for clause in query.must_not:
            if len(clause.phrase) > 1:
                verify.append((clause, False))
            else:
                matches = _only(matches, self._documents(clause, postings, expansions), inside=False)
        return TextMatch(matches, reach, verify, {t: p[2] for t, p in postings.items()})

    def _documents(
        self,
        clause: Clause,
        postings: dict[str, tuple[bm25.Postings, np.ndarray, int]],
        expansions: dict[Clause, list[str]],
    ) -> np.ndarray:
        """Identifiers with the clause: every term of a phrase, any term of a word."""
        sets = []
        names: Sequence[str] = clause.phrase or expansions.get(clause) or clause.terms
        for name in names:
            if name not in postings:
                sets.append(np.empty(0, np.int64))
                continue
            found = postings[name][0]
            if clause.field is None:
                sets.append(found.ids)
            else:
                sets.append(found.ids[found.counts[self.columns.index(clause.field)] > 0])
        if not sets:
            return np.empty(0, np.int64)
        joined = sets[0]
        for other in sets[1:]:
            joined = np.intersect1d(joined, other) if clause.phrase else np.union1d(joined, other)
        return joined

    def needs_merge(self, parts: int = MERGE_PARTS) -> Op[bool]:
        """Whether more than ``parts`` wait to be merged."""
        rows = yield Stmt(f"SELECT count(*) FROM (SELECT 1 FROM {self.stat} LIMIT {parts + 1}) s")
        return bool(rows[0][0] > parts)

    def merge_totals(self, part: int) -> Op[None]:
        """Replace the totals by their sum."""
        rows = yield Stmt(f"DELETE FROM {self.stat} RETURNING docs, length")
        yield Stmt(self._add_stat, (part, int(sum(r[0] for r in rows)), int(sum(r[1] for r in rows))))

    def merge_terms(self, start: str, parts: Sequence[int]) -> Op[str | None]:
        """Merge the rows of the next terms from ``start`` on, in one transaction; where to go on, or ``None``."""
        params = Params(self.dialect)
        low = params.add(start, "text")
        rows = yield Stmt(
            f"SELECT term, count(*), max(n), sum(abs(n)) FROM {self.post} WHERE term >= {low}"
            f" GROUP BY term ORDER BY term LIMIT {MERGE_TERMS + 1}",
            params.values,
        )
        stop = rows[MERGE_TERMS][0] if len(rows) > MERGE_TERMS else None
        # The biggest row of a term joins only when the others have grown to a quarter of it.
        terms = {
            t: (int(top) if 4 * (int(total) - int(top)) < int(top) else None)
            for t, k, top, total in rows[:MERGE_TERMS]
            if k > 4
        }
        if not terms:
            return stop
        params = Params(self.dialect)
        test = self.dialect.in_test("term", params, sorted(terms), "text", negated=False)
        lock = " FOR UPDATE" if self.dialect.name == "postgres" else ""
        rows = yield Stmt(
            f"SELECT term, part, n, data FROM {self.post} WHERE {test} ORDER BY term, part{lock}", params.values
        )
        by_term: dict[str, list[tuple[int, int, bytes]]] = {}
        for term, number, n, data in rows:
            if terms[term] is None or n < terms[term]:
                by_term.setdefault(term, []).append((number, n, data))
        gone: list[tuple[Any, ...]] = []
        made: list[tuple[Any, ...]] = []
        for term, found in by_term.items():
            alive, dead, _ = bm25.gather([(n, data) for _, n, data in found], len(self.columns))
            gone.extend((term, number) for number, _, _ in found)
            runs = [run for run in bm25.split_runs(alive) if len(run.ids)]
            made.extend((term, parts[i + 1], len(r.ids), bm25.pack(r)) for i, r in enumerate(runs))
            if len(dead):
                made.append((term, parts[0], -len(dead), bm25.pack_deleted(dead)))
        p = self.dialect.placeholder
        yield Stmt(f"DELETE FROM {self.post} WHERE term = {p(1, '')} AND part = {p(2, '')}", gone, many=True)
        yield Stmt(self._add_post, made, many=True)
        return stop


def _only(matches: bm25.Matches, documents: np.ndarray, *, inside: bool) -> bm25.Matches:
    ids, scores = matches.pairs()
    chosen = np.isin(ids, documents, invert=not inside)
    return bm25.Matches((ids[chosen], scores[chosen]))


def _union(found: Sequence[bm25.Postings], columns: int) -> bm25.Postings:
    """Postings of any of several terms, counts added."""
    if not found:
        return bm25.Postings.empty(columns)
    ids = np.concatenate([p.ids for p in found])
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    lengths = np.concatenate([p.lengths for p in found])[first]
    counts = np.zeros((columns, len(unique)), np.int64)
    every = np.concatenate([p.counts for p in found], axis=1)
    for column in range(columns):
        np.add.at(counts[column], inverse, every[column])
    return bm25.Postings(unique, lengths, np.minimum(counts, 255).astype(np.uint8))
