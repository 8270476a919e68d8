"""``Store``: everything an agent keeps, behind one URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import Token
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from uuid import UUID

from . import registry
from .corpus.chunking import Chunking
from .corpus.corpus import AsyncCorpus
from .engines.base import Capabilities, Engine, Node, Status, current, innermost
from .errors import Conflict, InvalidInput, InvalidName, TransactionError
from .migrations import Migration, MigrationProgress, check_migrations
from .naming import physical_name
from .portability import Progress, Summary, export_store, import_store
from .readonly import ReadOnly
from .rows import RowType, row_type
from .schema import ClientKeys, build
from .sealing import Keyring, seal_columns
from .stores.blobs import AsyncBlobs
from .stores.fair import FairQueue
from .stores.keyed import AsyncKeyed
from .stores.kv import AsyncKV
from .stores.limiter import AsyncLimiter, Permit, acquire_all, try_acquire_all
from .stores.queue import AsyncQueue
from .stores.records import AsyncRecords
from .stores.secrets import AsyncSecrets
from .stores.vectors import AsyncVectors, open_vectors
from .table import AsyncTable
from .telemetry import Tracer, tracer
from .urls import parse
from .values import as_list, check_retries, check_text

if TYPE_CHECKING:
    from .database.database import AsyncDatabase

T = TypeVar("T")


class AsyncTransaction:
    """``async with store.transaction() as tx``: commits at the end, rolls back on any exception. Inside another one it is
    a savepoint. ``tx`` has the store's methods, and every handle of the store takes part while it is open."""

    def __init__(self, store: AsyncStore, isolation: str | None) -> None:
        self._store = store
        self._isolation = isolation
        self._node: Node | None = None
        self._token: Token[Node | None] | None = None

    async def __aenter__(self) -> AsyncStore:
        if self._node is not None:
            raise TransactionError("a transaction object is used once; call store.transaction() again")
        self._node = await self._store._engine.begin(isolation=self._isolation)
        self._token = current.set(self._node)
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._node is not None and self._token is not None
        current.reset(self._token)
        await self._store._engine.end(self._node, commit=kind is None)


class AsyncStore:
    """One store. Opening tables and stores does no I/O; they are made on first use."""

    def __init__(self, engine: Engine, prefix: str = "", tracer: Tracer | None = None) -> None:
        self._engine = engine
        self._prefix = prefix
        self._tracer = tracer
        self._database: AsyncDatabase | None = None
        self._borrowed = isinstance(engine, ReadOnly)

    def _traced(self, handle: T, name: str) -> T:
        return handle if self._tracer is None else self._tracer.traced(handle, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do; a ``False`` here and an ``Unsupported`` on the call always agree."""
        return self._engine.capabilities

    @property
    def durable(self) -> bool:
        """Whether acknowledged writes survive the process."""
        return self._engine.durable

    @property
    def scope(self) -> Literal["process", "cluster"]:
        """Who shares the data: this process, or every process that opens the URL."""
        return "cluster" if self._engine.durable else "process"

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
    ) -> AsyncTable[Any]:
        """A table of rows declared by a pydantic model, dataclass, TypedDict or JSON Schema.

        ``model_or_name`` is the class, or a name with the class or JSON Schema as ``schema``. ``key`` names the primary
        key's columns; ``indexes`` and ``unique`` list columns or tuples of them; ``text`` gives the columns of the text
        index, with weights if wanted; ``ttl`` names a timestamp column at which a row expires. Vector columns are marked in
        the model by ``howdah.vector(dim)``. ``version`` names an integer column that counts a row's writes: a ``put`` of a row
        that was changed since it was read is a ``Conflict``. ``migrations`` bring a table that is there already into this shape. Columns in
        ``encrypted`` are stored under the keys of a ``Keyring``; they cannot be searched or ordered by. Raises
        ``InvalidInput`` saying what does not fit.
        """
        rows, name = _described(model_or_name, schema)
        if self._prefix:
            raise InvalidInput(
                "a scoped store has key-values, records, vectors and blobs; for tables use the store itself"
            )
        columns = seal_columns(physical_name(name), rows.columns, encrypted, keys)
        made = build(
            name,
            columns,
            key=key,
            indexes=indexes,
            unique=unique,
            text=text,
            ttl=ttl,
            client_keys=client_keys,
            version=version,
        )
        steps = check_migrations(migrations)
        return self._traced(AsyncTable(self._engine, made, rows, physical_name(name), migrations=steps), name)

    def kv(self, name: str = "default", *, key: type = str, value: Any = None) -> AsyncKV:
        """Key-values: text (or integer) keys, any JSON value; ``value`` names a model that validates them."""
        return self._traced(AsyncKV(self._engine, _store_name(name), key=key, value=value, prefix=self._prefix), name)

    def kv_on(self, table: Any, value: str) -> AsyncKeyed:
        """Key-values on a table of this store: its primary key is the key, the column ``value`` the value."""
        found = getattr(table, "_async", table)
        if not isinstance(found, AsyncTable) or found._engine is not self._engine:
            raise InvalidInput("kv_on takes a table of the same store")
        return self._traced(AsyncKeyed(found, value), found.name)

    def records(self, name: str = "default") -> AsyncRecords:
        """JSON objects under text keys, with times, filters and pages."""
        return self._traced(AsyncRecords(self._engine, _store_name(name), prefix=self._prefix), name)

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
    ) -> AsyncVectors[Any]:
        """Vectors with metadata: ``Vector`` rows by name alone, or rows of your own model.

        ``dim`` is the length of dense vectors (default: that of the first one stored), ``sparse_dim`` that of sparse
        ones; ``text={"content": 1}`` adds a text index; ``model`` names what made the vectors, and another name later is
        refused with ``EmbeddingMismatch``; ``index=HNSW(…)`` tunes the index, ``index=None`` does without.
        """
        name = model_or_name if isinstance(model_or_name, str) else None
        if name is not None:
            _store_name(name)
        found = open_vectors(
            self._engine,
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
            prefix=self._prefix,
            **index,
        )
        return self._traced(found, name or str(getattr(model_or_name, "__name__", "vectors")))

    def blobs(
        self,
        name: str = "default",
        *,
        max_bytes: int | None = -1,
        at: Any = None,
        owner: Any = None,
        grace: float | timedelta = 86400,
    ) -> AsyncBlobs:
        """Bytes under keys, streamed in and out. ``max_bytes`` defaults to 10 MiB in the database, none on a bucket.

        ``at`` puts the bytes on object storage: an obstore store, or a URL such as ``s3://bucket/prefix`` or a
        directory ``file:///…``; rows then only hold what describes them. ``owner=(table, "column")``, or a list of such,
        names text columns that hold keys or URIs of blobs: a blob that no row names goes ``grace`` seconds after it was
        put, at the earliest.
        """
        made = AsyncBlobs(
            self._engine,
            _store_name(name),
            max_bytes=max_bytes,
            at=at,
            owner=owner,
            grace=grace,
            prefix=self._prefix,
        )
        return self._traced(made, name)

    def queue(
        self,
        name: str = "default",
        *,
        scope: Mapping[str, Any] | None = None,
        fair_by: str | Sequence[str] | None = None,
    ) -> AsyncQueue:
        """Jobs with an atomic claim. ``scope`` (columns with a value each) keeps the jobs of tenants apart.

        ``fair_by`` names such columns instead: the queue then hands out the jobs of every scope that has them, the scopes
        taking turns, and its other methods see all of these. Jobs are added to the queue of a scope.
        """
        if fair_by is None:
            made = AsyncQueue(self._engine, _store_name(name), scope=scope, prefix=self._prefix)
        elif scope is not None:
            raise InvalidInput("give either scope= or fair_by=: fair turns are between scopes")
        else:
            made = FairQueue(self._engine, _store_name(name), fair_by, prefix=self._prefix)
        return self._traced(made, name)

    def secrets(self, name: str = "secrets", *, passphrase: str | None = None) -> AsyncSecrets:
        """Encrypted values under names; without ``passphrase`` locked until ``unlock(passphrase)``."""
        made = AsyncSecrets(self._engine, _store_name(name), passphrase=passphrase, prefix=self._prefix)
        return self._traced(made, name)

    def limiter(
        self,
        name: str = "default",
        *,
        limit: int | None = None,
        per: float | timedelta | None = None,
        rate: float | None = None,
        burst: int | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> AsyncLimiter:
        """A rate limiter shared by every process: at most ``limit`` starts in any ``per`` seconds, or, as a token bucket,
        ``burst`` at once and ``rate`` a second after that."""
        made = AsyncLimiter(
            self._engine,
            _store_name(name),
            limit=limit,
            per=per,
            rate=rate,
            burst=burst,
            scope=scope,
            prefix=self._prefix,
        )
        return self._traced(made, name)

    async def try_acquire_all(self, limiters: Sequence[Any], *, permits: int = 1) -> list[Permit] | None:
        """``permits`` of each of several limiters in one step, in their order; ``None``, and none of any, when one refuses."""
        return await try_acquire_all(self._limiters(limiters), permits)

    async def acquire_all(
        self, limiters: Sequence[Any], *, permits: int = 1, timeout: float | timedelta | None = None
    ) -> list[Permit]:
        """Wait until several limiters let in at once; ``Timeout`` when that is not so within ``timeout`` seconds."""
        return await acquire_all(self._limiters(limiters), permits, timeout)

    def _limiters(self, limiters: Sequence[Any]) -> list[AsyncLimiter]:
        found = [getattr(x, "_async", x) for x in as_list(limiters, "limiters")]
        if not found or any(not isinstance(x, AsyncLimiter) or x._engine is not self._engine for x in found):
            raise InvalidInput("limiters: expected one or more limiters of this store")
        if len({(x._ops.physical, x._scope) for x in found}) < len(found):
            raise InvalidInput("limiters: the same one twice; ask it for more permits instead")
        return found

    def corpus(
        self, name: str = "default", *, embedder: Any = "default", chunking: Chunking | None = None
    ) -> AsyncCorpus:
        """Documents: folders kept in step with their files, searched by words and by meaning.

        ``embedder`` is an object, a name (``"bundled"``, ``"openai:MODEL"``, a URL), ``"default"`` (``HOWDAH_EMBEDDER``,
        else the bundled model where installed) or ``None``; ``chunking`` sets the size of passages.
        """
        if self._prefix:
            raise InvalidInput("a scoped store has no corpora; use the store itself")
        made = AsyncCorpus(self._engine, _store_name(name), embedder=embedder, chunking=chunking)
        return self._traced(made, name)

    @property
    def database(self) -> AsyncDatabase:
        """Plain SQL on the store's Postgres, over connections of its own; ``Unsupported`` on other engines."""
        if self._database is None:
            from .database.opening import of_engine

            self._database = of_engine(self._engine)
        return self._database

    def scoped(self, prefix: str) -> AsyncStore:
        """A store confined to keys under ``prefix``, searches included. The whole store sees them with the prefix."""
        if not isinstance(prefix, str) or not prefix:
            raise InvalidName(f"scoped({prefix!r}): expected text that is not empty")
        check_text(prefix, "scope")
        return AsyncStore(self._engine, f"{self._prefix}{prefix}:", self._tracer)

    def read_only(self) -> AsyncStore:
        """The same store, on which every write is ``Unsupported``."""
        return AsyncStore(ReadOnly(self._engine), self._prefix, self._tracer)

    def transaction(
        self, *, isolation: Literal["read committed", "repeatable read", "serializable"] | None = None
    ) -> AsyncTransaction:
        """One transaction over every store: commits at the end of the block, rolls back on any exception.

        Inside another one it is a savepoint. Concurrent tasks started inside take part, one at a time. ``isolation`` is
        Postgres' (default read committed); SQLite is always serializable.
        """
        return AsyncTransaction(self, isolation)

    async def transact(self, fn: Callable[[AsyncStore], Coroutine[Any, Any, T]], *, retries: int = 3) -> T:
        """Run ``fn(store)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                async with self.transaction() as tx:
                    return await fn(tx)
            except Conflict:
                if attempt == retries or innermost(self._engine) is not None:
                    raise
        raise AssertionError("the loop returns or raises")

    async def status(self) -> Status:
        """Where the data is, which database holds it, and its size in bytes."""
        return await self._engine.status()

    async def maintain(self) -> None:
        """Do the upkeep that otherwise happens in the background: sweep expired rows, merge and build indexes."""
        if innermost(self._engine) is not None:
            raise TransactionError("maintain() inside a transaction of the same store: end the transaction first")
        await self._engine.background()

    async def migrate(
        self, tables: Sequence[Any] = (), *, on_progress: Callable[[MigrationProgress], None] | None = None
    ) -> None:
        """Create, grow or migrate the given tables now instead of on first use.

        Of several processes one does it, the others wait. ``on_progress`` is told of each declared migration.
        """
        for given in tables:
            table = getattr(given, "_async", given)
            table._ops.migrating.on_progress = on_progress
            try:
                await table._ensure()
            finally:
                table._ops.migrating.on_progress = None

    async def export(self, path: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Summary:
        """Write the whole store, from one snapshot, to a file (compressed if it ends in ``.gz``); what it held.

        The same data gives the same bytes, whatever the engine. ``on_progress(table, rows)`` is called now and then.
        """
        return await export_store(self._engine, path, on_progress)

    async def import_from(self, path: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Summary:
        """Read an export of any engine into this store, after checking it whole; what it held.

        Its tables must not be there, or be empty (``Conflict``). Cut short, it goes on where it stopped when called again.
        Raises ``Corrupt`` for a damaged file, before anything is written.
        """
        return await import_store(self._engine, path, on_progress)

    async def close(self) -> None:
        """Release what this store opened; a caller's own pool stays open."""
        if innermost(self._engine) is not None:
            raise TransactionError("close() inside a transaction of the same store: end the transaction first")
        await self._stop_users()
        if self._database is not None:
            await self._database.close()
        await self._engine.close()

    async def _stop_users(self) -> None:
        """Stop the job servers of this store."""
        for user in list(self._engine.users) if not self._borrowed else ():
            await user.stop()


def _described(model_or_name: Any, schema: Any) -> tuple[RowType, str]:
    if isinstance(model_or_name, str):
        if schema is None:
            raise InvalidInput(f"table {model_or_name!r}: give its rows as a model class or JSON Schema, too")
        return row_type(schema), model_or_name
    if schema is not None:
        raise InvalidInput("give either a model, or a name and a schema")
    rows = row_type(model_or_name)
    if rows.name is None:
        raise InvalidInput('this schema has no title: give the table a name, store.table("name", schema, …)')
    return rows, rows.name


def _store_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidName(f"store name {name!r}: expected text that is not empty")
    return check_text(name, "store name")


async def connect_async(
    url: Any,
    *,
    schema: str | None = None,
    create: bool = True,
    pool: Any = None,
    clock: Callable[[], float] | None = None,
    ids: Callable[[], UUID] | None = None,
    busy_timeout: float | None = None,
    pool_size: int | None = None,
    pooler: bool | None = None,
    telemetry: Any = None,
) -> AsyncStore:
    """Open a store: ``agent.db``, ``memory:``, ``postgresql://…``, ``pg:./data`` or ``files:./dir``.

    ``schema`` is the Postgres schema of the tables (``howdah``); ``create=False`` runs no DDL (``SetupRequired`` when
    something is missing); ``pool`` is an asyncpg pool of yours, used and never closed; ``clock`` gives seconds since 1970,
    ``ids`` the UUIDs that are generated as keys and ids of jobs (in time order by default);
    ``busy_timeout`` is how many seconds a SQLite write waits for other programs; ``pool_size`` how many Postgres
    connections at most; ``pooler=True`` means that a transaction-mode pooler stands between; ``telemetry`` is ``"otel"``
    for OpenTelemetry, or a function (name, attributes) that gives a context for each operation.
    """
    engine = await open_engine(url, inline=False, ids=ids, schema=schema, create=create, pool=pool, clock=clock,
                               busy_timeout=busy_timeout, pool_size=pool_size, pooler=pooler)  # fmt: skip
    return AsyncStore(engine, tracer=tracer(telemetry, engine.name))


async def open_engine(url: Any, *, inline: bool, ids: Callable[[], UUID] | None = None, **options: Any) -> Engine:
    """The engine of a URL; ``inline`` for the blocking face."""
    parsed = parse(url)
    if ids is not None and not callable(ids):
        raise InvalidInput(f"ids={ids!r:.60}: expected a function that gives UUIDs")
    engine = await registry.opener(parsed)(parsed, inline=inline, options=options)
    engine.ids = ids
    return engine
