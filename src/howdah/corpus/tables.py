"""The tables of a corpus: documents with their ledger, chunks with the text index, vectors of one embedder."""

from __future__ import annotations

from typing import Any

from ..engines.base import Engine
from ..naming import store_table
from ..rows import RowType
from ..schema import Column, VectorType, build
from ..table import AsyncTable

DOCUMENTS = (
    Column("collection", "text"),
    Column("path", "text"),
    Column("id", "text"),
    Column("title", "text"),
    Column("text", "text"),
    Column("hash", "text"),
    Column("size", "integer"),
    Column("mtime", "integer"),
    Column("inode", "integer"),
    Column("seen", "integer"),
    Column("chunks", "integer"),
    Column("embedded", "text"),
    Column("metadata", "json"),
    Column("created", "timestamp"),
    Column("modified", "timestamp"),
)
CHUNKS = (
    Column("collection", "text"),
    Column("path", "text"),
    Column("ordinal", "integer"),
    Column("title", "text"),
    Column("location", "text"),
    Column("body", "text"),
    Column("start", "integer"),
    Column("line", "integer"),
    Column("heading", "text"),
    Column("metadata", "json"),
)
TEXT_WEIGHTS = {"title": 4.0, "location": 1.5, "body": 1.0}


def _table(engine: Engine, columns: tuple[Column, ...], physical: str, **options: Any) -> AsyncTable[dict[str, Any]]:
    schema = build(physical, columns, internal=True, **options)
    return AsyncTable(engine, schema, RowType(None, columns, dict, None), physical, mapping_column="metadata")


class CorpusTables:
    """The tables of one corpus."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self.documents = _table(
            engine,
            DOCUMENTS,
            store_table("docs", name),
            key=("collection", "path"),
            unique=["id"],
            indexes=["embedded", "hash"],
        )
        self.chunks = _table(
            engine, CHUNKS, store_table("chunks", name), key=("collection", "path", "ordinal"), text=TEXT_WEIGHTS
        )
        self._vectors: dict[str, AsyncTable[dict[str, Any]]] = {}

    def vectors(self, fingerprint: str, dim: int) -> AsyncTable[dict[str, Any]]:
        """Vectors of the pieces of chunks, made by one embedder."""
        found = self._vectors.get(fingerprint)
        if found is None:
            columns = (
                Column("collection", "text"),
                Column("path", "text"),
                Column("ordinal", "integer"),
                Column("piece", "integer"),
                Column("hash", "text"),
                Column("vector", "vector", vector=VectorType(dim)),
                Column("metadata", "json"),
            )
            physical = store_table("pieces", f"{self._name}:{fingerprint}")
            found = _table(
                self._engine, columns, physical, key=("collection", "path", "ordinal", "piece"), indexes=["hash"]
            )
            self._vectors[fingerprint] = found
        return found
