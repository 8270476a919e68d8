"""Fusing ranked lists: weighted reciprocal ranks (RRF) or distribution-based scores (DBSF), both in [0, 1].

RRF: Cormack, Clarke, Büttcher, *Reciprocal Rank Fusion outperforms Condorcet* (SIGIR 2009).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import InvalidInput, InvalidValue

K = TypeVar("K", bound=Hashable)
Ranked = Sequence[tuple[K, float]]


@dataclass(frozen=True, slots=True)
class RRF:
    """Weighted reciprocal rank fusion; a larger ``k`` flattens the advantage of the first places."""

    k: float = 60

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise InvalidInput(f"RRF(k={self.k!r}): expected k > 0")

    def fuse(self, lists: Mapping[str, Ranked[K]], weights: Mapping[str, float]) -> dict[K, float]:
        """Score by key, in [0, 1]: 1 is first place in every list that counts."""
        total = sum(weights[leg] for leg in lists) or 1.0
        scores: dict[K, float] = {}
        for leg, ranked in lists.items():
            for rank, (key, _) in enumerate(ranked, 1):
                scores[key] = scores.get(key, 0.0) + weights[leg] / (self.k + rank)
        return {key: value * (self.k + 1) / total for key, value in scores.items()}


@dataclass(frozen=True, slots=True)
class DBSF:
    """Distribution-based score fusion: each list's scores within three standard deviations of its mean."""

    def fuse(self, lists: Mapping[str, Ranked[K]], weights: Mapping[str, float]) -> dict[K, float]:
        """Score by key, in [0, 1]."""
        total = sum(weights[leg] for leg in lists) or 1.0
        scores: dict[K, float] = {}
        for leg, ranked in lists.items():
            if not ranked:
                continue
            raw = np.array([s for _, s in ranked], np.float64)
            mean, spread = float(raw.mean()), float(raw.std())
            for (key, _), value in zip(ranked, raw, strict=True):
                normal = 0.5 if spread == 0 else min(1.0, max(0.0, (float(value) - mean + 3 * spread) / (6 * spread)))
                scores[key] = scores.get(key, 0.0) + weights[leg] * normal
        return {key: value / total for key, value in scores.items()}


Fusion = RRF | DBSF


def fusion(value: str | Fusion) -> Fusion:
    """The fusion that ``value`` names."""
    if isinstance(value, (RRF, DBSF)):
        return value
    if value == "rrf":
        return RRF()
    if value == "dbsf":
        return DBSF()
    raise InvalidValue(f"fusion={value!r}: expected 'rrf', 'dbsf' or RRF(k=…)")


def check_weights(weights: Mapping[str, float] | None, legs: Sequence[str]) -> dict[str, float]:
    """Weights by leg, each in [0, 1], default 1; one of them above 0."""
    given = dict(weights or {})
    for leg, weight in given.items():
        if leg not in legs:
            raise InvalidInput(f"weights: no leg {leg!r} in this search; it has {', '.join(legs)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise InvalidInput(f"weights[{leg!r}]={weight!r}: expected a number from 0 to 1")
    found = {leg: float(given.get(leg, 1.0)) for leg in legs}
    if legs and not any(found.values()):
        raise InvalidInput("weights: all are 0, so nothing would count")
    return found
