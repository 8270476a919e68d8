"""``Store``: everything an agent keeps, behind one URL. Blocking twin of ``howdah.store``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ..corpus.chunking import Chunking
from ..engines.base import Capabilities, Status, innermost
from ..errors import Conflict
from ..migrations import Migration, MigrationProgress
from ..portability import Progress, Summary
from ..schema import ClientKeys
from ..sealing import Keyring
from ..store import AsyncStore, T
from ..stores.limiter import Permit
from ..values import check_retries
from .blobs import Blobs
from .corpus import Corpus
from .keyed import Keyed
from .kv import KV
from .limiter import Limiter
from .queue import Queue
from .records import Records
from .runner import Runner
from .secrets import Secrets
from .table import Table
from .transaction import Transaction
from .vectors import Vectors

if TYPE_CHECKING:
    from .database import Database


class Store:
    """One store. Opening tables and stores does no I/O; they are made on first use."""

    def __init__(self, inner: AsyncStore, run: Runner) -> None:
        self._async = inner
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do; a ``False`` here and an ``Unsupported`` on the call always agree."""
        return self._async.capabilities

    @property
    def durable(self) -> bool:
        """Whether acknowledged writes survive the process."""
        return self._async.durable

    @property
    def scope(self) -> Literal["process", "cluster"]:
        """Who shares the data: this process, or every process that opens the URL."""
        return self._async.scope

    def table(
        self,
        model_or_name: Any,
        schema: Any = None,
        *,
        key: str | Sequence[str],
        indexes: Iterable[str | Sequence[str]] = (),
        unique: Iterable[str | Sequence[str]] = (),
        text: Mapping[str, float] | Iterable[str] | None = None,
        ttl: str | None = None,
        client_keys: ClientKeys = "if-missing",
        version: str | None = None,
        migrations: Sequence[Migration] = (),
        encrypted: Sequence[str] = (),
        keys: Keyring | None = None,
    ) -> Table[Any]:
        """A table of rows declared by a pydantic model, dataclass, TypedDict or JSON Schema.

        ``model_or_name`` is the class, or a name with the class or JSON Schema as ``schema``. ``key`` names the primary
        key's columns; ``indexes`` and ``unique`` list columns or tuples of them; ``text`` gives the columns of the text
        index, with weights if wanted; ``ttl`` names a timestamp column at which a row expires. Vector columns are marked in
        the model by ``howdah.vector(dim)``. ``version`` names an integer column that counts a row's writes: a ``put`` of a row
        that was changed since it was read is a ``Conflict``. ``migrations`` bring a table that is there already into this shape. Columns in
        ``encrypted`` are stored under the keys of a ``Keyring``; they cannot be searched or ordered by. Raises
        ``InvalidInput`` saying what does not fit.
        """
        return Table(
            self._async.table(
                model_or_name,
                schema,
                key=key,
                indexes=indexes,
                unique=unique,
                text=text,
                ttl=ttl,
                client_keys=client_keys,
                version=version,
                migrations=migrations,
                encrypted=encrypted,
                keys=keys,
            ),
            self._run,
        )

    def kv(self, name: str = "default", *, key: type = str, value: Any = None) -> KV:
        """Key-values: text (or integer) keys, any JSON value; ``value`` names a model that validates them."""
        return KV(self._async.kv(name, key=key, value=value), self._run)

    def kv_on(self, table: Any, value: str) -> Keyed:
        """Key-values on a table of this store: its primary key is the key, the column ``value`` the value."""
        return Keyed(self._async.kv_on(table, value), self._run)

    def records(self, name: str = "default") -> Records:
        """JSON objects under text keys, with times, filters and pages."""
        return Records(self._async.records(name), self._run)

    def vectors(
        self,
        model_or_name: Any = "default",
        schema: Any = None,
        *,
        key: str = "key",
        dim: int | None = None,
        metric: Literal["cosine", "l2", "ip"] = "cosine",
        dtype: Literal["float32", "float16", "int8"] = "float32",
        sparse_dim: int | None = None,
        sparse_metric: Literal["cosine", "ip"] = "cosine",
        text: Mapping[str, float] | Iterable[str] | None = None,
        model: str | None = None,
        **index: Any,
    ) -> Vectors[Any]:
        """Vectors with metadata: ``Vector`` rows by name alone, or rows of your own model.

        ``dim`` is the length of dense vectors (default: that of the first one stored), ``sparse_dim`` that of sparse
        ones; ``text={"content": 1}`` adds a text index; ``model`` names what made the vectors, and another name later is
        refused with ``EmbeddingMismatch``; ``index=HNSW(…)`` tunes the index, ``index=None`` does without.
        """
        return Vectors(
            self._async.vectors(
                model_or_name,
                schema,
                key=key,
                dim=dim,
                metric=metric,
                dtype=dtype,
                sparse_dim=sparse_dim,
                sparse_metric=sparse_metric,
                text=text,
                model=model,
                **index,
            ),
            self._run,
        )

    def blobs(
        self,
        name: str = "default",
        *,
        max_bytes: int | None = -1,
        at: Any = None,
        owner: Any = None,
        grace: float | timedelta = 86400,
    ) -> Blobs:
        """Bytes under keys, streamed in and out. ``max_bytes`` defaults to 10 MiB in the database, none on a bucket.

        ``at`` puts the bytes on object storage: an obstore store, or a URL such as ``s3://bucket/prefix`` or a
        directory ``file:///…``; rows then only hold what describes them. ``owner=(table, "column")``, or a list of such,
        names text columns that hold keys or URIs of blobs: a blob that no row names goes ``grace`` seconds after it was
        put, at the earliest.
        """
        return Blobs(self._async.blobs(name, max_bytes=max_bytes, at=at, owner=owner, grace=grace), self._run)

    def queue(
        self,
        name: str = "default",
        *,
        scope: Mapping[str, Any] | None = None,
        fair_by: str | Sequence[str] | None = None,
    ) -> Queue:
        """Jobs with an atomic claim. ``scope`` (columns with a value each) keeps the jobs of tenants apart.

        ``fair_by`` names such columns instead: the queue then hands out the jobs of every scope that has them, the scopes
        taking turns, and its other methods see all of these. Jobs are added to the queue of a scope.
        """
        return Queue(self._async.queue(name, scope=scope, fair_by=fair_by), self._run)

    def secrets(self, name: str = "secrets", *, passphrase: str | None = None) -> Secrets:
        """Encrypted values under names; without ``passphrase`` locked until ``unlock(passphrase)``."""
        return Secrets(self._async.secrets(name, passphrase=passphrase), self._run)

    def limiter(
        self,
        name: str = "default",
        *,
        limit: int | None = None,
        per: float | timedelta | None = None,
        rate: float | None = None,
        burst: int | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> Limiter:
        """A rate limiter shared by every process: at most ``limit`` starts in any ``per`` seconds, or, as a token bucket,
        ``burst`` at once and ``rate`` a second after that."""
        return Limiter(self._async.limiter(name, limit=limit, per=per, rate=rate, burst=burst, scope=scope), self._run)

    def try_acquire_all(self, limiters: Sequence[Any], *, permits: int = 1) -> list[Permit] | None:
        """``permits`` of each of several limiters in one step, in their order; ``None``, and none of any, when one refuses."""
        return self._run(self._async.try_acquire_all(limiters, permits=permits))

    def acquire_all(
        self, limiters: Sequence[Any], *, permits: int = 1, timeout: float | timedelta | None = None
    ) -> list[Permit]:
        """Wait until several limiters let in at once; ``Timeout`` when that is not so within ``timeout`` seconds."""
        return self._run(self._async.acquire_all(limiters, permits=permits, timeout=timeout))

    def corpus(self, name: str = "default", *, embedder: Any = "default", chunking: Chunking | None = None) -> Corpus:
        """Documents: folders kept in step with their files, searched by words and by meaning.

        ``embedder`` is an object, a name (``"bundled"``, ``"openai:MODEL"``, a URL), ``"default"`` (``HOWDAH_EMBEDDER``,
        else the bundled model where installed) or ``None``; ``chunking`` sets the size of passages.
        """
        return Corpus(self._async.corpus(name, embedder=embedder, chunking=chunking), self._run)

    @property
    def database(self) -> Database:
        """Plain SQL on the store's Postgres, over connections of its own; ``Unsupported`` on other engines."""
        from .database import Database

        return Database(self._async.database, self._run)

    def scoped(self, prefix: str) -> Store:
        """A store confined to keys under ``prefix``, searches included. The whole store sees them with the prefix."""
        return Store(self._async.scoped(prefix), self._run)

    def read_only(self) -> Store:
        """The same store, on which every write is ``Unsupported``."""
        return Store(self._async.read_only(), self._run)

    def transaction(
        self, *, isolation: Literal["read committed", "repeatable read", "serializable"] | None = None
    ) -> Transaction:
        """One transaction over every store: commits at the end of the block, rolls back on any exception.

        Inside another one it is a savepoint. Concurrent tasks started inside take part, one at a time. ``isolation`` is
        Postgres' (default read committed); SQLite is always serializable.
        """
        return Transaction(self._async.transaction(isolation=isolation), self._run, self)

    def status(self) -> Status:
        """Where the data is, which database holds it, and its size in bytes."""
        return self._run(self._async.status())

    def maintain(self) -> None:
        """Do the upkeep that otherwise happens in the background: sweep expired rows, merge and build indexes."""
        return self._run(self._async.maintain())

    def migrate(
        self, tables: Sequence[Any] = (), *, on_progress: Callable[[MigrationProgress], None] | None = None
    ) -> None:
        """Create, grow or migrate the given tables now instead of on first use.

        Of several processes one does it, the others wait. ``on_progress`` is told of each declared migration.
        """
        return self._run(self._async.migrate(tables, on_progress=on_progress))

    def export(self, path: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Summary:
        """Write the whole store, from one snapshot, to a file (compressed if it ends in ``.gz``); what it held.

        The same data gives the same bytes, whatever the engine. ``on_progress(table, rows)`` is called now and then.
        """
        return self._run(self._async.export(path, on_progress=on_progress))

    def import_from(self, path: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Summary:
        """Read an export of any engine into this store, after checking it whole; what it held.

        Its tables must not be there, or be empty (``Conflict``). Cut short, it goes on where it stopped when called again.
        Raises ``Corrupt`` for a damaged file, before anything is written.
        """
        return self._run(self._async.import_from(path, on_progress=on_progress))

    def transact(self, fn: Callable[[Store], T], *, retries: int = 3) -> T:
        """Run ``fn(store)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                with self.transaction() as tx:
                    return fn(tx)
            except Conflict:
                if attempt == retries or innermost(self._async._engine) is not None:
                    raise
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Release what this store opened; a caller's own pool stays open."""
        if not self._run.closed:
            if self._async._engine.users:
                self._run.wait(self._async._stop_users())
            self._run(self._async.close())
            if not self._async._borrowed:
                self._run.close()
