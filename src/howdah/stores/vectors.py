"""Vectors with metadata, content and search: a table of ``Vector`` rows, or of rows of your own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from ..criteria import And, Columns, Criteria, Prefix, Where
from ..engines.base import Capabilities, Engine, innermost
from ..errors import EmbeddingMismatch, InvalidInput, InvalidValue, Unsupported
from ..hits import Hit, Hits, Leg
from ..naming import physical_name, store_table
from ..pages import Page
from ..query import AsyncQuery
from ..rows import RowType, row_type
from ..schema import HNSW, Column, Dtype, Metric, Schema, VectorType, build
from ..search.fusion import Fusion
from ..table import AsyncTable
from .common import check_key
from .kv import AsyncKV

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Vector:
    """One record: a dense vector, a sparse one as ``(indices, values)``, metadata (a JSON object), content."""

    key: str
    dense: Any = None
    sparse: Any = None
    metadata: dict[str, Any] | None = None
    content: str | None = None


@dataclass(frozen=True, slots=True)
class VectorStats:
    """Size and shape of a vector store."""

    count: int
    dim: int | None
    sparse_dim: int | None
    metric: str
    dtype: str
    model: str | None


def open_vectors(
    engine: Engine,
    model_or_name: Any,
    schema: Any,
    *,
    key: str,
    dim: int | None,
    metric: Metric,
    dtype: Dtype,
    sparse_dim: int | None,
    sparse_metric: Any,
    text: Any,
    model: str | None,
    prefix: str,
    index: HNSW | None = HNSW(),  # noqa: B008 - frozen
    indexes: Iterable[Any] = (),
    vector: str | None = None,
    metadata: str | None = None,
) -> AsyncVectors[Any]:
    """The store that these arguments describe."""
    if isinstance(model_or_name, str) and schema is None:
        shape = _Shape(model_or_name, dim, metric, dtype, sparse_dim, sparse_metric, text, index)
        return AsyncVectors(engine, shape, None, model=model, prefix=prefix)
    rows = row_type(schema if isinstance(model_or_name, str) else model_or_name)
    name = model_or_name if isinstance(model_or_name, str) else rows.name
    if name is None:
        raise InvalidInput("this schema has no title: give the store a name")
    dense = [c for c in rows.columns if c.kind == "vector"]
    chosen = vector or (dense[0].name if dense else None)
    if len(dense) != 1 or dense[0].name != chosen:
        raise InvalidInput(f"{name!r}: a vector store needs exactly one vector column, found {[c.name for c in dense]}")
    if prefix:
        raise InvalidInput("a scoped store has vectors by name only")
    columns = {c.name: c for c in rows.columns}
    if metadata is not None and (metadata not in columns or columns[metadata].kind != "json"):
        raise InvalidInput(f"metadata={metadata!r}: expected a JSON column of {name!r}")
    made = build(name, rows.columns, key=key, text=text, indexes=indexes)
    table: AsyncTable[Any] = AsyncTable(engine, made, rows, physical_name(name))
    return AsyncVectors(engine, None, table, model=model, prefix="")


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    dim: int | None
    metric: Metric
    dtype: Dtype
    sparse_dim: int | None
    sparse_metric: Any
    text: Any
    index: HNSW | None

    def __post_init__(self) -> None:
        VectorType(self.dim or 1, self.dtype, self.metric, self.index)
        if self.sparse_dim is not None:
            VectorType(self.sparse_dim, "float32", self.sparse_metric, None, sparse=True)

    def schema(self, dim: int | None) -> Schema:
        columns = [Column("key", "text")]
        if dim is not None:
            columns.append(
                Column("dense", "vector", True, None, vector=VectorType(dim, self.dtype, self.metric, self.index))
            )
        if self.sparse_dim is not None:
            kind = VectorType(self.sparse_dim, "float32", self.sparse_metric, None, sparse=True)
            columns.append(Column("sparse", "sparse", True, None, vector=kind))
        columns += [Column("metadata", "json", True, None), Column("content", "text", True, None)]
        return build(store_table("vec", self.name), columns, key="key", text=self.text, internal=True)


class AsyncVectors(Generic[R]):
    """A vector store. Opened by ``store.vectors(name, dim=…)``."""

    def __init__(
        self, engine: Engine, shape: _Shape | None, table: AsyncTable[Any] | None, *, model: str | None, prefix: str
    ) -> None:
        self._engine = engine
        self._shape = shape
        self._known = table
        self._model = model
        self._prefix = prefix
        self._checked = False
        if shape is not None and (shape.dim is not None):
            self._known = self._open(shape.dim)
        elif shape is not None and shape.sparse_dim is not None:
            self._known = self._open(None)

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        schema = self._known.schema if self._known is not None else None
        sparse = bool(schema and schema.sparse_vectors)
        dense = schema is None or bool(schema.vectors)
        text = schema.text if schema is not None else self._shape is not None and self._shape.text
        legs = dense + sparse + bool(text)
        return replace(self._engine.capabilities, dense=dense, sparse=sparse, hybrid=legs > 1, filter="pre")

    @property
    def dim(self) -> int | None:
        """Length of the dense vectors; ``None`` before the first one if it was not declared."""
        vectors = self._known.schema.vectors if self._known is not None else ()
        return vectors[0].vector.dim if vectors and vectors[0].vector else None

    @property
    def c(self) -> Columns:
        """Columns for criteria: ``vectors.c.metadata["lang"] == "en"``."""
        if self._known is None:
            return Columns(
                build(
                    "v",
                    [Column("key", "text"), Column("metadata", "json", True), Column("content", "text", True)],
                    key="key",
                )
            )
        return self._known.c

    @property
    def table(self) -> AsyncTable[Any]:
        """The table underneath, for changes, joins and aggregates; a scope does not confine it."""
        if self._known is None:
            raise InvalidInput("the table is known with dim=…, or when the first vector has been stored")
        return self._known

    def _open(self, dim: int | None) -> AsyncTable[Any]:
        assert self._shape is not None
        schema = self._shape.schema(dim)
        rows = RowType(None, schema.columns, _vector_dict, _vector_row)
        table: AsyncTable[Any] = AsyncTable(self._engine, schema, rows, schema.name, mapping_column="metadata")
        return table

    async def _table(self, first: Any = None) -> AsyncTable[R] | None:
        """The table; made with the length of ``first`` where none was declared."""
        table = self._known
        if table is None:
            assert self._shape is not None
            kv = AsyncKV(self._engine, "howdah:vectors")
            dim = await kv.get(self._shape.name)  # 0: there are records, none of them with a dense vector yet
            if not dim and first is not None:
                fresh = np.asarray(first).shape[0] if np.asarray(first).ndim == 1 else 0
                if fresh < 1:
                    raise InvalidValue("dense: expected a flat list of numbers that is not empty")
                dim = (
                    await kv.get(self._shape.name)
                    if dim is None and not await kv.create(self._shape.name, fresh)
                    else dim
                )
                if not dim:
                    await kv.put(self._shape.name, fresh)
                    dim = fresh
            if dim is None:
                return None
            table = self._open(int(dim) or None)
        if not self._checked:
            await self._check_model(table.schema.name)
        # What a transaction has made may be rolled back: it is looked up again until it is there for good.
        if innermost(self._engine) is None:
            self._checked = True
            if table.schema.vectors:
                self._known = table
        return table

    async def _check_model(self, name: str) -> None:
        if self._model is None:
            return
        kv = AsyncKV(self._engine, "howdah:models")
        if await kv.create(name, self._model):
            return
        made_by = await kv.get(name)
        if made_by != self._model:
            raise EmbeddingMismatch(
                f"the vectors of {name!r} were made by {made_by!r}, this store was opened with {self._model!r};"
                " use that model, or put the vectors into a store of another name"
            )

    def _record(self, record: Any) -> Any:
        if self._shape is None:
            return record
        if isinstance(record, Mapping):
            unknown = set(record) - {"key", "dense", "sparse", "metadata", "content"}
            if unknown or "key" not in record:
                raise InvalidValue(
                    f"vector record: expected key, dense, sparse, metadata, content; got {sorted(record)}"
                )
            record = Vector(**record)
        if not isinstance(record, Vector):
            raise InvalidValue(f"vector record: expected Vector(…) or a mapping, got {type(record).__name__}")
        searchable = bool(self._shape.text) and record.content is not None
        if record.dense is None and record.sparse is None and not searchable:
            raise InvalidValue(f"vector {record.key!r}: dense or sparse is required")
        if record.sparse is not None and self._shape.sparse_dim is None:
            raise InvalidValue(f"vector {record.key!r}: this store has no sparse vectors; open it with sparse_dim=…")
        if record.metadata is not None and type(record.metadata) is not dict:
            raise InvalidValue(f"vector {record.key!r}: metadata must be a JSON object (dict)")
        key = self._prefix + check_key(record.key, empty=False)
        return Vector(key, record.dense, record.sparse, record.metadata, record.content)

    def _strip(self, row: Any) -> Any:
        if not self._prefix:
            return row
        return Vector(row.key[len(self._prefix) :], row.dense, row.sparse, row.metadata, row.content)

    def _key(self, key: Any) -> Any:
        return self._prefix + check_key(key, empty=False) if self._shape is not None else key

    def _where(self, table: AsyncTable[Any], where: Where | None) -> Criteria | None:
        found = table._criteria(where)
        if not self._prefix:
            return found
        inside = Prefix("key", self._prefix)
        return inside if found is None else And((found, inside))

    async def put(self, record: Any) -> None:
        """Store a record, replacing the whole record of that key; searchable in every process on return."""
        await self.put_many([record])

    async def put_many(self, records: Iterable[Any]) -> None:
        """Store records, all or none; of equal keys the last wins."""
        rows = [self._record(r) for r in records]
        if not rows:
            return
        first = next((r.dense for r in rows if r.dense is not None), None) if self._shape is not None else None
        table = await self._table(first)
        if table is None:
            assert self._shape is not None
            await AsyncKV(self._engine, "howdah:vectors").create(self._shape.name, 0)
            table = self._open(None)
        elif first is not None and not table.schema.vectors:
            raise InvalidValue("this store has no dense vectors; open it with dim=…")
        await table.put_stored([table._stored(r, f"record {i}") for i, r in enumerate(rows)])

    async def get(self, key: Any) -> R | None:
        """The record, or ``None``."""
        table = await self._table()
        row = None if table is None else await table.get(self._key(key))
        return None if row is None else self._strip(row)

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The records found, by key, in the order asked."""
        table = await self._table()
        if table is None:
            return {}
        found = await table.get_many([self._key(k) for k in keys])
        cut = len(self._prefix)
        return {(k[cut:] if cut else k): self._strip(v) for k, v in found.items()}

    async def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page of records, by key unless ``order_by`` says otherwise."""
        table = await self._table()
        if table is None:
            return Page([], None)
        page = await table.page(self._where(table, where), order_by=order_by, limit=limit, cursor=cursor)
        return Page([self._strip(r) for r in page.items], page.next_cursor)

    def query(self, where: Where | None = None, *, order_by: Any = None, limit: int | None = None) -> AsyncQuery[R]:
        """Records that match, to stream or list; needs a declared ``dim`` or a model."""
        if self._known is None:
            raise InvalidInput("query() needs dim=… when the store is opened by name")
        query = self._known.query(self._where(self._known, where), order_by=order_by, limit=limit)
        convert = query._convert
        return query.mapped(self._known.schema.names, lambda row: self._strip(convert(row)))

    async def count(self, where: Where | None = None) -> int:
        """How many records match."""
        table = await self._table()
        if table is None:
            return 0
        return await table.count(self._where(table, where if where else None))

    async def delete(self, key: Any) -> bool:
        """Delete a record; whether it was there."""
        table = await self._table()
        return table is not None and await table.delete(self._key(key))

    async def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete records; how many were there."""
        table = await self._table()
        return 0 if table is None else await table.delete_many([self._key(k) for k in keys])

    async def delete_where(self, where: Where) -> int:
        """Delete every match; how many there were."""
        table = await self._table()
        if table is None:
            return 0
        table._required(where)
        found = self._where(table, where)
        assert found is not None
        return await table.delete_where(found)

    async def clear(self) -> int:
        """Delete every record; how many there were."""
        table = await self._table()
        if table is None:
            return 0
        return await table.delete_where(Prefix("key", self._prefix)) if self._prefix else await table.clear()

    async def stats(self) -> VectorStats:
        """Size and shape."""
        table = await self._table()
        dense = table.schema.vectors[0].vector if table is not None and table.schema.vectors else None
        sparse = table.schema.sparse_vectors[0].vector if table is not None and table.schema.sparse_vectors else None
        return VectorStats(
            await self.count(),
            dense.dim if dense else None,
            sparse.dim if sparse else None,
            dense.metric if dense else "cosine",
            dense.dtype if dense else "float32",
            self._model,
        )

    async def search(
        self,
        dense: Any = None,
        *,
        sparse: Any = None,
        text: str | None = None,
        legs: Sequence[Leg] | None = None,
        limit: int | None = 10,
        where: Where | None = None,
        min_score: float | None = None,
        fusion: str | Fusion = "rrf",
        weights: Mapping[str, float] | None = None,
        exact: bool = False,
        ef: int | None = None,
        explain: bool = False,
    ) -> Hits[R]:
        """The best records by dense vector, sparse vector, text, or several fused; see ``Table.search``.

        In a store opened by name a mapping as ``where`` names top-level fields of the metadata.
        """
        table = await self._table()
        if table is None:
            if text is not None or sparse is not None:
                raise Unsupported("this store has no text index and no sparse vectors")
            return Hits([], {})
        found = await table.search(
            dense,
            sparse=sparse,
            text=text,
            legs=legs,
            limit=limit,
            where=self._where(table, where),
            min_score=min_score,
            fusion=fusion,
            weights=weights,
            exact=exact,
            ef=ef,
            explain=explain,
        )
        if not self._prefix:
            return found
        cut = len(self._prefix)
        hits = [Hit(h.key[cut:], self._strip(h.row), h.score, h.distance, h.metadata, h.matches) for h in found]
        return Hits(hits, found.plan, found.explain)

    async def search_many(
        self, queries: Sequence[Any], *, limit: int | None = 10, where: Where | None = None
    ) -> list[Hits[R]]:
        """One dense search for each of ``queries``, in order."""
        return [await self.search(q, limit=limit, where=where) for q in queries]


def _vector_dict(row: Any) -> dict[str, Any]:
    found = {"key": row.key, "metadata": row.metadata, "content": row.content}
    if row.dense is not None:
        found["dense"] = row.dense
    if row.sparse is not None:
        found["sparse"] = row.sparse
    return found


def _vector_row(found: dict[str, Any]) -> Vector:
    return Vector(found["key"], found.get("dense"), found.get("sparse"), found["metadata"], found["content"])
