"""Vector arithmetic: similarities, distances and scores by metric, in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DimensionMismatch

Numbers = Sequence[float] | np.ndarray


def _pair(left: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise DimensionMismatch(f"vectors of {a.shape} and {b.shape} cannot be compared")
    return a, b


def cosine(left: Numbers, right: Numbers) -> float:
    """Cosine similarity, −1 … 1; 0 when either vector is zero."""
    a, b = _pair(left, right)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 0.0 if norm == 0 else float(np.clip(a @ b / norm, -1, 1))


def jaccard(left: Numbers, right: Numbers) -> float:
    """Sum of minima over sum of maxima; 1 for two zero vectors. Meant for values >= 0."""
    a, b = _pair(left, right)
    top = float(np.maximum(a, b).sum())
    return 1.0 if top == 0 else float(np.minimum(a, b).sum() / top)


def hamming(left: Numbers, right: Numbers) -> float:
    """Share of places that are equal, 0 … 1."""
    a, b = _pair(left, right)
    return 1.0 if a.size == 0 else float((a == b).mean())


def distances(matrix: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Distance of each row to ``query``: cosine ``1 − cos`` (zero vectors: 1), L2, or negative inner product."""
    if not np.abs(matrix).max(initial=0) < 1e15 or not np.abs(query).max(initial=0) < 1e15:
        return np.array(exact_distances(matrix, query, metric))  # squares would overflow single precision
    rows = matrix.astype(np.float32, copy=False)
    wanted = query.astype(np.float32, copy=False)
    if metric == "l2":
        return np.asarray(np.sqrt(((rows - wanted) ** 2).sum(axis=1, dtype=np.float64)))
    dots = (rows @ wanted).astype(np.float64)
    if metric == "ip":
        return np.negative(dots)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows).astype(np.float64)) * float(np.linalg.norm(wanted))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 0, 1 - np.clip(dots / norms, -1, 1), 1.0)


def exact_distances(rows: np.ndarray, query: np.ndarray, metric: str) -> list[float]:
    """As ``distances``, in double precision and row by row, so that a row's value depends on nothing else."""
    matrix, wanted = rows.astype(np.float64, copy=False), query.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((matrix - wanted) ** 2).sum(axis=1)).tolist()  # type: ignore[no-any-return]  # floats
    dots = (matrix * wanted).sum(axis=1)
    if metric == "ip":
        return (-dots).tolist()  # type: ignore[no-any-return]  # floats
    norms = np.sqrt((matrix * matrix).sum(axis=1)) * np.sqrt((wanted * wanted).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 0, 1 - np.clip(dots / norms, -1, 1), 1.0).tolist()  # type: ignore[no-any-return]  # floats


def score(distance: float, metric: str) -> float:
    """Score of a distance, higher is better: cosine ``1 − d``, L2 ``1 / (1 + d)``, inner product ``−d``."""
    if metric == "cosine":
        return 1 - distance
    return 1 / (1 + distance) if metric == "l2" else -distance


def sparse_distance(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], metric: str) -> float:
    """Distance of two sparse vectors given as sorted indices and values."""
    _, mine, theirs = np.intersect1d(left[0], right[0], assume_unique=True, return_indices=True)
    dot = float(left[1][mine].astype(np.float64) @ right[1][theirs].astype(np.float64))
    if metric == "ip":
        return -dot
    norm = float(np.linalg.norm(left[1].astype(np.float64)) * np.linalg.norm(right[1].astype(np.float64)))
    return 1.0 if norm == 0 else 1 - max(-1.0, min(1.0, dot / norm))
