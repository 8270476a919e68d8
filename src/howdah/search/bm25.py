"""BM25 as Lucene has it, over postings packed per term: packing, merging, scoring with NumPy.

Formula: Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), in Lucene's form:
``idf · tf / (tf + k1 · (1 − b + b · length / average))`` with ``idf = ln(1 + (N − df + ½) / (df + ½))``.
With several columns, ``tf`` and ``length`` are sums weighted by column (BM25F with one b).

A posting row holds, little-endian: ``i64`` base, then for n documents ``u32`` identifier − base, ``u16`` weighted
length, and for each column ``u8`` how often the term occurs there. A row of deletions holds base and identifiers only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .analyzer import count_terms

K1: Final = 1.2
B: Final = 0.75
_U32: Final = 2**32


@dataclass(slots=True)
class Postings:
    """Where one term occurs: document identifiers (ascending), weighted lengths, counts by column."""

    ids: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, columns: int) -> Postings:
        """No documents."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty((columns, 0), np.uint8))


def pack(found: Postings) -> bytes:
    """Bytes of a row of postings."""
    base = int(found.ids[0]) if len(found.ids) else 0
    return b"".join(
        (
            base.to_bytes(8, "little", signed=True),
            (found.ids - base).astype("<u4").tobytes(),
            found.lengths.astype("<u2").tobytes(),
            found.counts.astype("u1").tobytes(),
        )
    )


def pack_deleted(ids: np.ndarray) -> bytes:
    """Bytes of a row of deletions."""
    base = int(ids[0]) if len(ids) else 0
    return base.to_bytes(8, "little", signed=True) + (ids - base).astype("<u4").tobytes()


def unpack_ids(data: bytes, n: int) -> np.ndarray:
    """Identifiers of a row of ``n`` postings or deletions."""
    base = int.from_bytes(data[:8], "little", signed=True)
    return np.frombuffer(data, "<u4", n, 8).astype(np.int64) + base


def unpack(data: bytes, n: int, columns: int) -> Postings:
    """A row of ``n`` postings."""
    lengths = np.frombuffer(data, "<u2", n, 8 + 4 * n)
    counts = np.frombuffer(data, "u1", n * columns, 8 + 6 * n).reshape(columns, n)
    return Postings(unpack_ids(data, n), lengths, counts)


def gather(rows: Iterable[tuple[int, bytes]], columns: int) -> tuple[Postings, np.ndarray, int]:
    """One term's rows ``(n, data)`` as postings without deleted documents, deletions left over, document frequency."""
    alive: list[Postings] = []
    dead: list[np.ndarray] = []
    for n, data in rows:
        if n < 0:
            dead.append(unpack_ids(data, -n))
        else:
            alive.append(unpack(data, n, columns))
    if len(alive) == 1 and not dead:
        return alive[0], np.empty(0, np.int64), len(alive[0].ids)
    found = Postings.empty(columns) if not alive else _concatenate(alive)
    if not dead:
        return found, np.empty(0, np.int64), len(found.ids)
    gone = np.concatenate(dead)
    keep = ~np.isin(found.ids, gone)
    left = gone[~np.isin(gone, found.ids)]
    found = Postings(found.ids[keep], found.lengths[keep], found.counts[:, keep])
    return found, np.sort(left), len(found.ids) - len(left)


def _concatenate(parts: Sequence[Postings]) -> Postings:
    ids = np.concatenate([p.ids for p in parts])
    lengths = np.concatenate([p.lengths for p in parts])
    counts = np.concatenate([p.counts for p in parts], axis=1)
    if len(ids) and (ids[1:] <= ids[:-1]).any():
        order = np.argsort(ids, kind="stable")
        return Postings(ids[order], lengths[order], counts[:, order])
    return Postings(ids, lengths, counts)


def split_runs(found: Postings) -> list[Postings]:
    """Postings cut where identifiers span more than a row can hold."""
    if not len(found.ids) or int(found.ids[-1]) - int(found.ids[0]) < _U32:
        return [found]
    cut = int(np.searchsorted(found.ids, int(found.ids[0]) + _U32))
    head = Postings(found.ids[:cut], found.lengths[:cut], found.counts[:, :cut])
    tail = Postings(found.ids[cut:], found.lengths[cut:], found.counts[:, cut:])
    return [head, *split_runs(tail)]


@dataclass(slots=True)
class Inverted:
    """A batch of documents turned inside out: rows ``(term, n, data)`` to add, and what they add to the totals."""

    rows: list[tuple[str, int, bytes]]
    documents: int
    length: int


def weighted_length(lengths: Sequence[int], weights: Sequence[float]) -> int:
    """Length of a document over its columns, as postings hold it."""
    return min(65_535, round(sum(w * n for w, n in zip(weights, lengths, strict=True))))


def invert(documents: Sequence[tuple[int, Sequence[str | None]]], weights: Sequence[float]) -> Inverted:
    """Postings of ``(identifier, texts by column)``; identifiers must ascend."""
    columns = len(weights)
    index: dict[str, list[int]] = {}  # term -> flat list of position in batch, then one count a column
    lengths = np.empty(len(documents), np.uint16)
    total = 0
    for place, (_, texts) in enumerate(documents):
        sizes = [0] * columns
        single = columns == 1
        merged: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            if not text:
                continue
            counts, sizes[number] = count_terms(text)
            if single:
                for term, count in counts.items():
                    found = index.get(term)
                    if found is None:
                        index[term] = [place, count]
                    else:
                        found.append(place)
                        found.append(count)
            else:
                for term, count in counts.items():
                    merged.setdefault(term, [0] * columns)[number] = count
        for term, by_column in merged.items():
            index.setdefault(term, []).extend((place, *by_column))
        lengths[place] = weighted_length(sizes, weights)
        total += int(lengths[place])
    ids = np.array([d[0] for d in documents], np.int64)
    rows = []
    for term in sorted(index):
        flat = np.array(index[term], np.int64).reshape(-1, columns + 1)
        places = flat[:, 0]
        counts_array = np.minimum(flat[:, 1:].T, 255).astype(np.uint8)
        rows.append((term, len(places), pack(Postings(ids[places], lengths[places], counts_array))))
    return Inverted(rows, len(documents), total)


def invert_deleted(documents: Sequence[tuple[int, Sequence[str | None]]], weights: Sequence[float]) -> Inverted:
    """Deletion rows of documents whose texts are given as they were."""
    index: dict[str, list[int]] = {}
    total = 0
    for identifier, texts in documents:
        sizes = []
        terms: set[str] = set()
        for text in texts:
            counts, size = count_terms(text) if text else ({}, 0)
            sizes.append(size)
            terms.update(counts)
        total += weighted_length(sizes, weights)
        for term in terms:
            index.setdefault(term, []).append(identifier)
    rows = [(t, -len(ids), pack_deleted(np.sort(np.array(ids, np.int64)))) for t, ids in sorted(index.items())]
    return Inverted(rows, -len(documents), -total)


@dataclass(slots=True)
class Term:
    """One term of a query: how much it counts, and its postings narrowed to some columns if asked."""

    postings: Postings
    frequency: int
    weight: float = 1.0
    columns: Sequence[int] | None = None


def idf(frequency: int, documents: int) -> float:
    """Inverse document frequency, always positive."""
    return math.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))


def impacts(term: Term, documents: int, average: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Identifiers and scores of one term."""
    found = term.postings
    use = weights
    if term.columns is not None:
        use = np.zeros_like(weights)
        use[list(term.columns)] = weights[list(term.columns)]
    tf = found.counts[0] * use[0] if len(use) == 1 else use @ found.counts
    ids, lengths = found.ids, found.lengths
    if term.columns is not None:
        keep = tf > 0
        tf, ids, lengths = tf[keep], ids[keep], lengths[keep]
    norm = lengths * (K1 * B / average) + K1 * (1 - B)
    return ids, tf / (tf + norm) * (idf(term.frequency, documents) * term.weight)


class Matches:
    """Scores by identifier. Few over a wide span are pairs; many over a narrow one lie in an array with a place for each,
    from which the best can be taken without listing the others."""

    __slots__ = ("_dense", "_low", "_pairs")

    def __init__(
        self, pairs: tuple[np.ndarray, np.ndarray] | None, dense: np.ndarray | None = None, low: int = 0
    ) -> None:
        self._pairs = pairs
        self._dense = dense
        self._low = low

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Every identifier, ascending, and its score."""
        if self._pairs is None:
            assert self._dense is not None
            hit = np.flatnonzero(self._dense)
            self._pairs = hit + self._low, self._dense[hit]
        return self._pairs

    def best(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` best and every tie of the last one, best first, ties by identifier."""
        if self._pairs is None and self._dense is not None and 0 < count <= len(self._dense) // (4 * _BLOCK):
            # As many blocks as are wanted have a score of at least this, so no worse one is among the best.
            tops = self._dense.reshape(-1, _BLOCK).max(axis=1)
            edge = np.partition(tops, len(tops) - count)[len(tops) - count]
            if edge > 0:
                near = np.flatnonzero(self._dense >= edge)
                return best(near + self._low, self._dense[near], count)
        return best(*self.pairs(), count)


_BLOCK: Final = 64


def accumulate(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Matches:
    """Sum of scores by identifier, over the parts in the order given."""
    parts = [p for p in parts if len(p[0])]
    if not parts:
        return Matches((np.empty(0, np.int64), np.empty(0)))
    if len(parts) == 1:
        return Matches(parts[0])
    low = min(int(ids[0]) for ids, _ in parts)
    span = max(int(ids[-1]) for ids, _ in parts) - low + 1
    total = sum(len(ids) for ids, _ in parts)
    if span <= max(200_000, 16 * total):
        dense = np.zeros(-(-span // _BLOCK) * _BLOCK)
        for ids, scores in parts:
            dense[ids - low] += scores
        return Matches(None, dense, low)
    every = np.concatenate([ids for ids, _ in parts])
    unique, inverse = np.unique(every, return_inverse=True)
    summed = np.zeros(len(unique))
    offset = 0
    for ids, scores in parts:
        summed[inverse[offset : offset + len(ids)]] += scores
        offset += len(ids)
    return Matches((unique, summed))


def best(ids: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` best by score and every tie of the last one, best first, ties by identifier."""
    if len(ids) > count:
        edge = np.partition(scores, len(scores) - count)[len(scores) - count]
        keep = scores >= edge
        ids, scores = ids[keep], scores[keep]
    order = np.lexsort((ids, -scores))
    return ids[order], scores[order]


def weights_array(weights: Mapping[str, float]) -> np.ndarray:
    """Column weights in declared order."""
    return np.array(list(weights.values()), np.float64)
