"""What a table search gives: hits with scores, how they were found, and each leg's part when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import InvalidValue

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Match:
    """A hit's place in one leg: its rank from 1 and raw score there."""

    leg: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Hit(Generic[R]):
    """One row found. ``distance`` is set when the search had only a vector leg."""

    key: Any
    row: R
    score: float
    distance: float | None = None
    metadata: Mapping[str, Any] | None = None
    matches: tuple[Match, ...] = ()


class Hits(list[Hit[R]]):
    """Hits, best first. ``plan`` says how each leg was answered, ``explain`` adds weights and candidate counts."""

    def __init__(self, hits: list[Hit[R]], plan: Mapping[str, str], explain: Mapping[str, Any] | None = None) -> None:
        super().__init__(hits)
        self.plan = plan
        self.explain = explain


@dataclass(frozen=True, slots=True)
class Dense:
    """A leg: nearest neighbours of a vector. ``candidates`` defaults to four times the limit, 50 to 1,000."""

    query: Any
    column: str | None = None
    candidates: int | None = None


@dataclass(frozen=True, slots=True)
class Sparse:
    """A leg: best sparse similarity to ``(indices, values)``."""

    query: Any
    column: str | None = None
    candidates: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A leg: BM25 over the text index."""

    query: str
    candidates: int | None = None


Leg = Dense | Sparse | Text
LEG_NAMES: Mapping[type, str] = {Dense: "dense", Sparse: "sparse", Text: "text"}


def candidates(leg: Leg, limit: int) -> int:
    """How many candidates a leg contributes to a fused search."""
    if leg.candidates is None:
        return max(limit, min(1000, max(50, 4 * limit)))
    if isinstance(leg.candidates, bool) or not isinstance(leg.candidates, int) or leg.candidates < limit:
        raise InvalidValue(f"candidates={leg.candidates!r}: expected an integer of at least the limit, {limit}")
    return leg.candidates
