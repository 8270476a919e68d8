"""Nearest neighbours beside SQLite: immutable HNSW segments (usearch) in files, and an exact tail kept in memory.

Every vector has a version number that only grows. A segment holds the vectors of a range of versions that were alive
when it was built; what came later is the tail. A changed or deleted vector leaves its old version behind, which finds no
row any more. Segments are derived data: without them the answer is the same, only slower.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

from ...check import DTYPES
from ...schema import Column
from ...search.vectors import distances
from ..base import Op, Stmt
from .dialect import derived_name, quote
from .table import version_column

TAIL = 10_000
SEGMENTS = 4
_METRICS = {"cosine": "cos", "l2": "l2sq", "ip": "ip"}


@dataclass(slots=True)
class Segment:
    """One file of the index: versions above ``low`` up to ``high``."""

    file: str
    low: int
    high: int
    size: int
    index: Any = None


Chunks = tuple[tuple[np.ndarray, np.ndarray], ...]
Tail = tuple[int, Chunks]
"""Versions above the number, as arrays of versions and vectors, ascending."""


def _above(chunks: Chunks, floor: int) -> Chunks:
    found = []
    for ids, matrix in chunks:
        first = int(np.searchsorted(ids, floor, side="right"))
        if first < len(ids):
            found.append((ids[first:], matrix[first:]))
    return tuple(found)


def _append(chunks: Chunks, fresh: tuple[np.ndarray, np.ndarray]) -> Chunks:
    """One more chunk, joined with smaller ones before it, so that there are few and each row is copied seldom."""
    kept = list(chunks)
    parts = [fresh]
    while kept and len(kept[-1][0]) <= 2 * sum(len(p[0]) for p in parts):
        parts.insert(0, kept.pop())
    if len(parts) > 1:
        fresh = (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    return (*kept, fresh)


class VectorSegments:
    """The index of one vector column in one process."""

    def __init__(self, table: str, physical: str, column: Column, folder: Path) -> None:
        assert column.vector is not None and column.vector.index is not None
        self.kind, self.hnsw = column.vector, column.vector.index
        self.table = table
        self.vector, self.version = quote(column.name), quote(version_column(column.name))
        self.name = derived_name(physical, "vec", column.name)
        self.folder = folder
        self.dtype = DTYPES[column.vector.dtype]
        self._segments: dict[str, Segment] = {}
        self._tail: Tail = (0, ())  # swapped whole, so that readers in several threads need no lock

    def _index(self) -> Any:
        return Index(
            ndim=self.kind.dim,
            metric=_METRICS[self.kind.metric],
            dtype="bf16",
            connectivity=self.hnsw.m,
            expansion_add=self.hnsw.ef_construction,
            expansion_search=self.hnsw.ef,
        )

    def load(self, *, keep: bool) -> Op[tuple[list[Segment], Chunks]]:
        """Segments, and the tail, as this snapshot has them.

        ``keep`` is false inside a transaction, whose versions may be rolled back and handed out again.
        """
        rows = yield Stmt(
            "SELECT file, low, high, size FROM _howdah_segments WHERE name = ?1 ORDER BY low", (self.name,)
        )
        segments = [self._segments.get(row[0]) or self._view(Segment(*row)) for row in rows]
        if any(s.index is None for s in segments):
            segments = []
        floor = segments[-1].high if segments else 0
        known, chunks = self._tail
        chunks = _above(chunks, floor) if known <= floor else ()
        top = int(chunks[-1][0][-1]) if chunks else floor
        fresh = yield Stmt(
            f"SELECT {self.version}, {self.vector} FROM {self.table} WHERE {self.version} > ?1 ORDER BY {self.version}",
            (top,),
        )
        if fresh:
            chunks = _append(chunks, (np.array([r[0] for r in fresh], np.int64), self._numbers(fresh)))
        if keep:
            self._segments = {s.file: s for s in segments}
            self._tail = (floor, chunks)
        return segments, chunks

    def _view(self, segment: Segment) -> Segment:
        with suppress(Exception):  # a missing or damaged file only means an exact scan
            index = self._index()
            index.view(str(self.folder / segment.file))
            segment.index = index
        return segment

    def _numbers(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        flat = np.frombuffer(b"".join(r[1] for r in rows), self.dtype)
        return flat.reshape(len(rows), -1).astype(np.float32)

    def candidates(
        self, loaded: tuple[list[Segment], Chunks], query: np.ndarray, count: int, ef: int
    ) -> tuple[np.ndarray, bool]:
        """Versions of about the ``count`` nearest vectors, nearest first, and whether these are all there are."""
        segments, chunks = loaded
        found, near = [], []
        complete = True
        wanted = query.astype(np.float32)
        for segment in segments:
            take = min(count, segment.size)
            complete = complete and take == segment.size
            segment.index.expansion_search = max(ef, min(take * 2, 4096))
            matches = segment.index.search(wanted, take, threads=1)
            found.append(matches.keys.astype(np.int64))
            near.append(matches.distances.astype(np.float64))
        for ids, matrix in chunks:
            away = distances(matrix, wanted, self.kind.metric)
            if self.kind.metric == "l2":
                away = away * away
            elif self.kind.metric == "ip":
                away = away + 1  # usearch's inner-product distance is 1 − dot
            if len(away) > count:
                complete = False
                keep = np.argpartition(away, count)[:count]
                ids, away = ids[keep], away[keep]
            found.append(ids)
            near.append(away)
        if not found:
            return np.empty(0, np.int64), True
        every, distance = np.concatenate(found), np.concatenate(near)
        return every[np.argsort(distance, kind="stable")], complete

    # Building, in the background -----------------------------------------------------------------------------------

    def plan(self) -> Op[tuple[list[Segment], int] | None]:
        """What to rebuild: the segments to replace and the version above which to read, or ``None``."""
        rows = yield Stmt(
            "SELECT file, low, high, size FROM _howdah_segments WHERE name = ?1 ORDER BY low", (self.name,)
        )
        segments = [Segment(*r) for r in rows]
        missing = [s for s in segments if not (self.folder / s.file).exists()]
        if missing:
            return segments, 0
        floor = segments[-1].high if segments else 0
        tail = yield Stmt(
            f"SELECT count(*) FROM (SELECT 1 FROM {self.table} WHERE {self.version} > ?1 LIMIT {TAIL + 1})", (floor,)
        )
        if tail[0][0] <= TAIL:
            return (yield from self._decayed(segments))
        replaced: list[Segment] = []
        size = TAIL
        while segments and (len(segments) >= SEGMENTS or segments[-1].size <= 2 * size):
            last = segments.pop()
            size += last.size
            replaced.append(last)
        return replaced, segments[-1].high if segments else 0

    def _decayed(self, segments: list[Segment]) -> Op[tuple[list[Segment], int] | None]:
        """A rebuild of everything when a third of what the segments hold is dead."""
        held = sum(s.size for s in segments)
        if not held:
            return None
        rows = yield Stmt(f"SELECT count(*) FROM {self.table} WHERE {self.version} <= ?1", (segments[-1].high,))
        return (segments, 0) if 3 * (held - rows[0][0]) > held else None

    def build(self, rows: Sequence[tuple[int, bytes]], low: int) -> Segment:
        """A segment file of ``(version, vector)`` rows, synced to disk under its final name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self._index()
        ids = np.array([r[0] for r in rows], np.uint64)
        for start in range(0, len(rows), 20_000):
            part = rows[start : start + 20_000]
            index.add(
                ids[start : start + 20_000], self._numbers(part), copy=True, threads=max(1, (os.cpu_count() or 2) - 1)
            )
        file = f"{self.name}-{secrets.token_hex(8)}.usearch"
        path = self.folder / file
        partial = path.with_suffix(".partial")
        index.save(str(partial))
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.rename(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return Segment(file, low, int(ids[-1]), len(rows))

    def swap(self, old: Sequence[Segment], new: Segment | None) -> Op[None]:
        """Put a new segment in the place of old ones."""
        if old:
            yield Stmt("DELETE FROM _howdah_segments WHERE file = ?1", [(s.file,) for s in old], many=True)
        if new is not None:
            yield Stmt(
                "INSERT INTO _howdah_segments (file, name, low, high, size) VALUES (?1, ?2, ?3, ?4, ?5)",
                (new.file, self.name, new.low, new.high, new.size),
            )
