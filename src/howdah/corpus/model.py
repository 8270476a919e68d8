"""What a corpus gives: documents, hits, reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .chunking import Chunk


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its text, or with the lines that were asked for, of which ``first_line`` is the number of the first."""

    id: str
    uri: str
    collection: str
    path: str
    title: str
    text: str
    first_line: int
    hash: str
    metadata: dict[str, Any]
    created: datetime
    modified: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """A document in a listing; ``size`` is in bytes of UTF-8."""

    id: str
    uri: str
    title: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found. ``score`` is in [0, 1]; ``line`` (from 1) is where the best passage's snippet begins to match."""

    id: str
    uri: str
    collection: str
    path: str
    title: str
    score: float
    rank: int
    line: int
    snippet: str
    metadata: Mapping[str, Any]
    created: datetime
    modified: datetime
    hash: str
    chunk: Chunk
    explain: Mapping[str, Any] | None = None


class Hits(list[Hit]):
    """Hits, best first; ``mode`` says how they were found, ``notes`` what the caller should know."""

    def __init__(self, hits: list[Hit], mode: str, notes: tuple[str, ...] = ()) -> None:
        super().__init__(hits)
        self.mode = mode
        self.notes = notes


@dataclass(slots=True)
class SyncReport:
    """Counts of a sync; ``problems`` pairs each path that was skipped or failed with its reason."""

    collections: list[str] = field(default_factory=list)
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: int = 0
    failed: int = 0
    chunks: int = 0
    pending_embeddings: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class EmbedReport:
    """Counts of an embedding run; ``reused`` pieces had their vector already."""

    documents: int = 0
    pieces: int = 0
    reused: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Collection:
    """A folder of documents, or none (``path`` is ``None``): name, mask, exclusions."""

    name: str
    path: str | None = None
    mask: str | None = None
    ignore: tuple[str, ...] = ()
    include_by_default: bool = True


@dataclass(frozen=True, slots=True)
class CorpusStatus:
    """What a corpus holds; ``pending`` documents wait for vectors of the model in use."""

    corpus: str
    documents: int
    chunks: int
    pending: int
    embedder: str | None
    dim: int | None
    collections: list[tuple[Collection, int]]
