"""One storage layer for AI agents: key-values, records, tables, vectors, text, blobs and documents behind one URL.

``connect(url)`` opens a store, ``connect_async(url)`` its async twin. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .aggregates import (
        avg_ as avg_,
        count_ as count_,
        max_ as max_,
        min_ as min_,
        sum_ as sum_,
    )
    from .blocking.blobs import (
        Blob as Blob,
        Blobs as Blobs,
    )
    from .blocking.cached import (
        Cached as Cached,
    )
    from .blocking.changes import (
        Changes as Changes,
    )
    from .blocking.claim import (
        Claim as Claim,
    )
    from .blocking.connect import (
        connect as connect,
    )
    from .blocking.corpus import (
        Corpus as Corpus,
    )
    from .blocking.database import (
        Database as Database,
    )
    from .blocking.keyed import (
        Keyed as Keyed,
    )
    from .blocking.kv import (
        KV as KV,
    )
    from .blocking.limiter import (
        Limiter as Limiter,
    )
    from .blocking.query import (
        Query as Query,
    )
    from .blocking.queue import (
        Queue as Queue,
    )
    from .blocking.records import (
        Records as Records,
    )
    from .blocking.secret_sources import (
        ChainedSecrets as ChainedSecrets,
        EnvSecrets as EnvSecrets,
    )
    from .blocking.secrets import (
        Secrets as Secrets,
    )
    from .blocking.sql_transaction import (
        SqlTransaction as SqlTransaction,
    )
    from .blocking.store import (
        Store as Store,
    )
    from .blocking.table import (
        Table as Table,
    )
    from .blocking.vectors import (
        Vectors as Vectors,
    )
    from .cached import (
        AsyncCached as AsyncCached,
    )
    from .changes import (
        AsyncChanges as AsyncChanges,
        Change as Change,
    )
    from .corpus.corpus import (
        AsyncCorpus as AsyncCorpus,
    )
    from .database.database import (
        AsyncDatabase as AsyncDatabase,
    )
    from .database.overlay.adopting import (
        Tiering as Tiering,
    )
    from .database.rows import (
        Rows as Rows,
    )
    from .database.transaction import (
        AsyncSqlTransaction as AsyncSqlTransaction,
    )
    from .errors import (
        Ambiguous as Ambiguous,
        BackendError as BackendError,
        CheckViolation as CheckViolation,
        ClaimLost as ClaimLost,
        Closed as Closed,
        Conflict as Conflict,
        Corrupt as Corrupt,
        DimensionMismatch as DimensionMismatch,
        DuplicateKey as DuplicateKey,
        EmbeddingMismatch as EmbeddingMismatch,
        EmptyCriteria as EmptyCriteria,
        Error as Error,
        ForeignKeyViolation as ForeignKeyViolation,
        Ignored as Ignored,
        InvalidCursor as InvalidCursor,
        InvalidFilter as InvalidFilter,
        InvalidInput as InvalidInput,
        InvalidKey as InvalidKey,
        InvalidLimit as InvalidLimit,
        InvalidName as InvalidName,
        InvalidPath as InvalidPath,
        InvalidValue as InvalidValue,
        JobAborted as JobAborted,
        JobDisabled as JobDisabled,
        JobError as JobError,
        JobNotFound as JobNotFound,
        Lagged as Lagged,
        LimitExceeded as LimitExceeded,
        Locked as Locked,
        ModelUnavailable as ModelUnavailable,
        NoCoveringIndex as NoCoveringIndex,
        NotFound as NotFound,
        NotNullViolation as NotNullViolation,
        PermanentJobError as PermanentJobError,
        QueryError as QueryError,
        QuerySyntaxError as QuerySyntaxError,
        QueryTimeout as QueryTimeout,
        RetryableJobError as RetryableJobError,
        SerializationFailure as SerializationFailure,
        SetupRequired as SetupRequired,
        SnapshotExpired as SnapshotExpired,
        SqlSyntaxError as SqlSyntaxError,
        StartupError as StartupError,
        TierError as TierError,
        TieringRefused as TieringRefused,
        Timeout as Timeout,
        TransactionError as TransactionError,
        TypeMismatch as TypeMismatch,
        UndefinedColumn as UndefinedColumn,
        UndefinedTable as UndefinedTable,
        UnfilteredDelete as UnfilteredDelete,
        UniqueViolation as UniqueViolation,
        UnknownCollection as UnknownCollection,
        UnknownColumn as UnknownColumn,
        Unsupported as Unsupported,
        WrongPassphrase as WrongPassphrase,
    )
    from .hits import (
        Dense as Dense,
        Hit as Hit,
        Hits as Hits,
        Sparse as Sparse,
        Text as Text,
    )
    from .migrations import (
        Migration as Migration,
        MigrationProgress as MigrationProgress,
    )
    from .pages import (
        Page as Page,
    )
    from .portability import (
        Summary as Summary,
    )
    from .resolution import (
        AsyncRegistry as AsyncRegistry,
        NotRegistered as NotRegistered,
        Registry as Registry,
    )
    from .schema import (
        HNSW as HNSW,
        Auto as Auto,
        sparse as sparse,
        vector as vector,
    )
    from .sealing import (
        Keyring as Keyring,
    )
    from .search.fusion import (
        DBSF as DBSF,
        RRF as RRF,
    )
    from .store import (
        AsyncStore as AsyncStore,
        connect_async as connect_async,
    )
    from .stores.blobs import (
        AsyncBlob as AsyncBlob,
        AsyncBlobs as AsyncBlobs,
        BlobRef as BlobRef,
    )
    from .stores.claim import (
        AsyncClaim as AsyncClaim,
    )
    from .stores.common import (
        Versioned as Versioned,
    )
    from .stores.job import (
        Job as Job,
        JobStatus as JobStatus,
        Retry as Retry,
    )
    from .stores.keyed import (
        AsyncKeyed as AsyncKeyed,
    )
    from .stores.kv import (
        AsyncKV as AsyncKV,
    )
    from .stores.limiter import (
        AsyncLimiter as AsyncLimiter,
        Permit as Permit,
    )
    from .stores.queue import (
        AsyncQueue as AsyncQueue,
    )
    from .stores.records import (
        AsyncRecords as AsyncRecords,
        Entry as Entry,
    )
    from .stores.schedule import (
        Schedule as Schedule,
    )
    from .stores.secret_sources import (
        AsyncChainedSecrets as AsyncChainedSecrets,
        AsyncEnvSecrets as AsyncEnvSecrets,
    )
    from .stores.secrets import (
        AsyncSecrets as AsyncSecrets,
        PassphraseCache as PassphraseCache,
        SecretInfo as SecretInfo,
    )
    from .stores.vectors import (
        AsyncVectors as AsyncVectors,
        Vector as Vector,
    )
    from .table import (
        AsyncTable as AsyncTable,
    )
    from .values import (
        DELETE as DELETE,
        KEEP as KEEP,
        MISSING as MISSING,
        NULL as NULL,
        fingerprint as fingerprint,
    )

__version__: Final = "0.1.0"

_WHERE: Final = {
    "aggregates": "avg_ count_ max_ min_ sum_",
    "blocking.blobs": "Blob Blobs",
    "blocking.cached": "Cached",
    "blocking.changes": "Changes",
    "blocking.claim": "Claim",
    "blocking.connect": "connect",
    "blocking.corpus": "Corpus",
    "blocking.keyed": "Keyed",
    "blocking.kv": "KV",
    "blocking.limiter": "Limiter",
    "blocking.query": "Query",
    "blocking.queue": "Queue",
    "blocking.records": "Records",
    "blocking.secret_sources": "ChainedSecrets EnvSecrets",
    "blocking.secrets": "Secrets",
    "blocking.store": "Store",
    "blocking.table": "Table",
    "blocking.vectors": "Vectors",
    "cached": "AsyncCached",
    "changes": "AsyncChanges Change",
    "corpus.corpus": "AsyncCorpus",
    "blocking.database": "Database",
    "blocking.sql_transaction": "SqlTransaction",
    "database.database": "AsyncDatabase",
    "database.overlay.adopting": "Tiering",
    "database.rows": "Rows",
    "database.transaction": "AsyncSqlTransaction",
    "errors": "Ambiguous BackendError CheckViolation ClaimLost Closed Conflict Corrupt DimensionMismatch DuplicateKey EmbeddingMismatch"
    " EmptyCriteria Error ForeignKeyViolation Ignored InvalidCursor InvalidFilter InvalidInput InvalidKey InvalidLimit InvalidName InvalidPath"
    " InvalidValue JobAborted JobDisabled JobError JobNotFound Lagged LimitExceeded Locked ModelUnavailable NoCoveringIndex NotFound NotNullViolation PermanentJobError QueryError"
    " QuerySyntaxError QueryTimeout RetryableJobError SerializationFailure SetupRequired SqlSyntaxError StartupError"
    " SnapshotExpired TierError TieringRefused Timeout TransactionError TypeMismatch UndefinedColumn UndefinedTable UnfilteredDelete UniqueViolation UnknownCollection"
    " UnknownColumn Unsupported WrongPassphrase",
    "hits": "Dense Hit Hits Sparse Text",
    "migrations": "Migration MigrationProgress",
    "pages": "Page",
    "portability": "Summary",
    "resolution": "AsyncRegistry NotRegistered Registry",
    "sealing": "Keyring",
    "schema": "HNSW Auto sparse vector",
    "search.fusion": "DBSF RRF",
    "store": "AsyncStore connect_async",
    "stores.blobs": "AsyncBlob AsyncBlobs BlobRef",
    "stores.claim": "AsyncClaim",
    "stores.common": "Versioned",
    "stores.job": "Job JobStatus Retry",
    "stores.keyed": "AsyncKeyed",
    "stores.kv": "AsyncKV",
    "stores.limiter": "AsyncLimiter Permit",
    "stores.queue": "AsyncQueue",
    "stores.records": "AsyncRecords Entry",
    "stores.schedule": "Schedule",
    "stores.secret_sources": "AsyncChainedSecrets AsyncEnvSecrets",
    "stores.secrets": "AsyncSecrets PassphraseCache SecretInfo",
    "stores.vectors": "AsyncVectors Vector",
    "table": "AsyncTable",
    "values": "DELETE KEEP MISSING NULL fingerprint",
}
_PARTS: Final = ("datasets", "jobs", "migrations")
_MODULES: Final = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = [
    "__version__",
    *sorted(_MODULES),
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if name in _PARTS:
        return import_module(f"howdah.{name}")
    if module is None:
        raise AttributeError(f"module 'howdah' has no attribute {name!r}")
    value = getattr(import_module(f"howdah.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
