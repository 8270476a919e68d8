"""One storage layer for AI agents: key-values, records, tables, vectors, text, blobs and documents behind one URL.

``connect(url)`` opens a store, ``connect_async(url)`` its async twin. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .aggregates import avg_, count_, max_, min_, sum_
    from .blocking.blobs import Blob, Blobs
    from .blocking.connect import connect
    from .blocking.corpus import Corpus
    from .blocking.kv import KV
    from .blocking.query import Query
    from .blocking.records import Records
    from .blocking.store import Store
    from .blocking.table import Table
    from .blocking.vectors import Vectors
    from .corpus.corpus import AsyncCorpus
    from .errors import (
        Ambiguous,
        BackendError,
        Closed,
        Conflict,
        Corrupt,
        DimensionMismatch,
        DuplicateKey,
        EmbeddingMismatch,
        EmptyCriteria,
        Error,
        Ignored,
        InvalidCursor,
        InvalidFilter,
        InvalidInput,
        InvalidKey,
        InvalidLimit,
        InvalidName,
        InvalidPath,
        InvalidValue,
        LimitExceeded,
        ModelUnavailable,
        NoCoveringIndex,
        NotFound,
        QuerySyntaxError,
        SetupRequired,
        StartupError,
        Timeout,
        TransactionError,
        UnfilteredDelete,
        UnknownCollection,
        UnknownColumn,
        Unsupported,
    )
    from .hits import Dense, Hit, Hits, Sparse, Text
    from .pages import Page
    from .schema import HNSW, Auto, sparse, vector
    from .search.fusion import DBSF, RRF
    from .store import AsyncStore, connect_async
    from .stores.blobs import AsyncBlob, AsyncBlobs, BlobRef
    from .stores.common import Versioned
    from .stores.kv import AsyncKV
    from .stores.records import AsyncRecords, Entry
    from .stores.vectors import AsyncVectors, Vector
    from .table import AsyncTable
    from .values import DELETE, KEEP, MISSING, NULL, fingerprint

__version__: Final = "0.1.0"

_WHERE: Final = {
    "aggregates": "avg_ count_ max_ min_ sum_",
    "blocking.blobs": "Blob Blobs",
    "blocking.connect": "connect",
    "blocking.corpus": "Corpus",
    "blocking.kv": "KV",
    "blocking.query": "Query",
    "blocking.records": "Records",
    "blocking.store": "Store",
    "blocking.table": "Table",
    "blocking.vectors": "Vectors",
    "corpus.corpus": "AsyncCorpus",
    "errors": "Ambiguous BackendError Closed Conflict Corrupt DimensionMismatch DuplicateKey EmbeddingMismatch"
    " EmptyCriteria Error Ignored InvalidCursor InvalidFilter InvalidInput InvalidKey InvalidLimit InvalidName InvalidPath"
    " InvalidValue LimitExceeded ModelUnavailable NoCoveringIndex NotFound QuerySyntaxError SetupRequired StartupError"
    " Timeout TransactionError UnfilteredDelete UnknownCollection UnknownColumn Unsupported",
    "hits": "Dense Hit Hits Sparse Text",
    "pages": "Page",
    "schema": "HNSW Auto sparse vector",
    "search.fusion": "DBSF RRF",
    "store": "AsyncStore connect_async",
    "stores.blobs": "AsyncBlob AsyncBlobs BlobRef",
    "stores.common": "Versioned",
    "stores.kv": "AsyncKV",
    "stores.records": "AsyncRecords Entry",
    "stores.vectors": "AsyncVectors Vector",
    "table": "AsyncTable",
    "values": "DELETE KEEP MISSING NULL fingerprint",
}
_MODULES: Final = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = [  # noqa: PLE0604 - the names above, each imported on first use
    "__version__",
    *sorted(_MODULES),
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'howdah' has no attribute {name!r}")
    value = getattr(import_module(f"howdah.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
