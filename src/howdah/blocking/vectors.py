"""Vectors with metadata, content and search: a table of ``Vector`` rows, or of rows of your own model. Blocking twin of ``howdah.stores.vectors``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

from ..criteria import Columns, Where
from ..engines.base import Capabilities
from ..hits import Hits, Leg
from ..pages import Page
from ..search.fusion import Fusion
from ..stores.vectors import AsyncVectors, R, VectorStats
from .query import Query
from .runner import Runner
from .table import Table


class Vectors(Generic[R]):
    """A vector store. Opened by ``store.vectors(name, dim=…)``."""

    def __init__(self, inner: AsyncVectors[R], run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return self._async.capabilities

    @property
    def dim(self) -> int | None:
        """Length of the dense vectors; ``None`` before the first one if it was not declared."""
        return self._async.dim

    @property
    def c(self) -> Columns:
        """Columns for criteria: ``vectors.c.metadata["lang"] == "en"``."""
        return self._async.c

    @property
    def table(self) -> Table[Any]:
        """The table underneath, for changes, joins and aggregates; a scope does not confine it."""
        return Table(self._async.table, self._run)

    def put(self, record: Any) -> None:
        """Store a record, replacing the whole record of that key; searchable in every process on return."""
        return self._run(self._async.put(record))

    def put_many(self, records: Iterable[Any]) -> None:
        """Store records, all or none; of equal keys the last wins."""
        return self._run(self._async.put_many(records))

    def get(self, key: Any) -> R | None:
        """The record, or ``None``."""
        return self._run(self._async.get(key))

    def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The records found, by key, in the order asked."""
        return self._run(self._async.get_many(keys))

    def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page of records, by key unless ``order_by`` says otherwise."""
        return self._run(self._async.page(where, order_by=order_by, limit=limit, cursor=cursor))

    def query(self, where: Where | None = None, *, order_by: Any = None, limit: int | None = None) -> Query[R]:
        """Records that match, to stream or list; needs a declared ``dim`` or a model."""
        return Query(self._async.query(where, order_by=order_by, limit=limit), self._run)

    def count(self, where: Where | None = None) -> int:
        """How many records match."""
        return self._run(self._async.count(where))

    def delete(self, key: Any) -> bool:
        """Delete a record; whether it was there."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete records; how many were there."""
        return self._run(self._async.delete_many(keys))

    def delete_where(self, where: Where) -> int:
        """Delete every match; how many there were."""
        return self._run(self._async.delete_where(where))

    def clear(self) -> int:
        """Delete every record; how many there were."""
        return self._run(self._async.clear())

    def stats(self) -> VectorStats:
        """Size and shape."""
        return self._run(self._async.stats())

    def search(
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
        return self._run(
            self._async.search(
                dense,
                sparse=sparse,
                text=text,
                legs=legs,
                limit=limit,
                where=where,
                min_score=min_score,
                fusion=fusion,
                weights=weights,
                exact=exact,
                ef=ef,
                explain=explain,
            )
        )

    def search_many(
        self, queries: Sequence[Any], *, limit: int | None = 10, where: Where | None = None
    ) -> list[Hits[R]]:
        """One dense search for each of ``queries``, in order."""
        return self._run(self._async.search_many(queries, limit=limit, where=where))
