"""The Postgres engine: a server with pgvector, or the embedded one, over asyncpg."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from ...errors import BackendError, Closed, Conflict, Error, InvalidInput, SetupRequired, StartupError, TransactionError
from ...migrations import Migration
from ...schema import Schema
from ..base import Capabilities, Node, Op, Status, Stmt, Work, innermost
from .dialect import PostgresDialect
from .embedded import EmbeddedServer
from .migrating import Migrating
from .pool import DRIVER_ERRORS, Connection, Connections, Pool, failed, run, translate
from .postgres_table import PostgresTable
from .setup import Setup, system_ddl
from .signals import Listener, Signals
from .text import MERGE_PARTS
from .upkeep import merge_begin, merge_step, sweep_step

T = TypeVar("T")
ASKED = 4
"""Parts of a text index above which upkeep that was asked for merges them."""
log = logging.getLogger("howdah")
RETRIES = 8
UPKEEP_EVERY = 60.0


class PostgresEngine:
    """One store's connections to a Postgres server."""

    name = "postgres"
    scope = "cluster"
    durable = True
    inline = False
    capabilities = Capabilities()

    def __init__(
        self,
        *,
        schema: str,
        create: bool,
        place: str,
        clock: Callable[[], float] | None,
        pooler: bool,
        server: EmbeddedServer | None,
    ) -> None:
        self.dialect = PostgresDialect(schema)
        self.creates = create
        self.ids: Callable[[], UUID] | None = None
        self.users: set[Any] = set()
        self.setup = Setup(self.dialect, create=create)
        self.place = place
        self.pooler = pooler
        self.pool: Connections
        self.arguments: dict[str, Any] | None = None
        """The driver's arguments of a connection; none when they come from somebody else's pool."""
        self._clock = clock
        self._offset = 0.0
        self._vectors = False
        self.server = server
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._tables: dict[str, PostgresTable] = {}
        self._signals = Signals()
        self._listener = Listener(self._signals, lambda: self.pool.extra())
        self._upkeep: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._closed

    def now(self) -> float:
        return self._clock() if self._clock is not None else time.time() + self._offset

    # Opening -----------------------------------------------------------------------------------------------------

    async def prepare(self, connection: Connection) -> None:
        """Codecs and search settings of a new connection; with a pooler between, no session state."""
        if self._vectors:
            for name in ("vector", "halfvec", "sparsevec"):
                await connection.set_type_codec(
                    name, schema=self.dialect.vector_schema, encoder=bytes, decoder=bytes, format="binary"
                )
            if not self.pooler:
                await connection.execute("SET hnsw.iterative_scan = relaxed_order; SET hnsw.ef_search = 100")

    async def start(self) -> None:
        """Look at the server: its clock, its version, pgvector; create the bookkeeping."""
        connection = await self._acquire()
        try:
            if connection.get_server_version().major < 16:
                version = connection.get_server_version().major
                raise StartupError(f"{self.place}: runs Postgres {version}; Howdah needs 16 or later")
            self.dialect.version = connection.get_server_version().major
            before = time.time()
            server = await connection.fetchval("SELECT clock_timestamp()")
            self._offset = server.timestamp() - (before + time.time()) / 2
            if self.setup.create:
                await self._create_system(connection)
            found = await self._vector_schema(connection)
            if found is not None:
                self.dialect.vector_schema = found
                self._vectors = True
                await self.prepare(connection)
        except DRIVER_ERRORS as error:
            raise translate(error, self.place) from error
        finally:
            self.pool.release(connection)

    async def _create_system(self, connection: Connection) -> None:
        exists = await connection.fetchval("SELECT to_regclass($1)", self.dialect.qualify("_howdah_migrations"))
        if exists is not None and await self._vector_schema(connection) is not None:
            return
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(1751, 0)")
            for statement in system_ddl(self.dialect):
                await connection.execute(statement)
        if await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
            # Without the right to create it, only tables with vectors are refused.
            with suppress(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock(1751, 0)")
                    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")

    async def _vector_schema(self, connection: Connection) -> str | None:
        found = await connection.fetchval(
            "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
        )
        return None if found is None else str(found)

    async def _acquire(self) -> Connection:
        if self._closed:
            raise Closed("the store is closed")
        if self._loop is not asyncio.get_running_loop():
            raise TransactionError("this store belongs to another event loop; connect again in this one")
        try:
            return await self.pool.acquire()
        except DRIVER_ERRORS as error:
            raise _unreachable(error, self.place) from error

    # Running operations ------------------------------------------------------------------------------------------

    async def get(self, table: PostgresTable, key: tuple[Any, ...], names: tuple[str, ...]) -> Any:
        node = innermost(self)
        if node is not None:
            return await self.read(lambda: table.get(key, names))
        connection = await self._acquire()
        try:
            sql = table.get_sql(names)
            if table.schema.ttl:
                return await connection.fetchrow(sql, *key, table.moment())
            return await connection.fetchrow(sql, *key)
        except DRIVER_ERRORS as error:
            raise failed(connection, error, self.place) from error
        finally:
            self.pool.release(connection)

    async def read(self, work: Work[T], *, heavy: bool = False, snapshot: bool = False) -> T:
        node = innermost(self)
        if node is not None:
            async with node.lock:
                return await run(node.session, work(), self.place)
        connection = await self._acquire()
        try:
            if snapshot or (heavy and self.pooler):
                async with connection.transaction(isolation="repeatable_read" if snapshot else None, readonly=True):
                    return await run(connection, work(), self.place)
            return await run(connection, work(), self.place)
        except asyncio.CancelledError:
            if snapshot or self.pooler:
                connection.terminate()  # a transaction may be open
            raise
        finally:
            self.pool.release(connection)

    async def write(self, work: Work[T], *, single: bool = False) -> T:
        node = innermost(self)
        if node is not None:
            async with node.lock:
                return await self._saved(node.session, work)
        for attempt in range(RETRIES):
            connection = await self._acquire()
            try:
                if single:
                    return await run(connection, work(), self.place)
                return await self._alone(connection, work)
            except Conflict:
                if attempt == RETRIES - 1:
                    raise
            finally:
                self.pool.release(connection)
            await asyncio.sleep(random.uniform(0.5, 1.5) * 0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    async def _alone(self, connection: Connection, work: Work[T]) -> T:
        """In a transaction of its own."""
        try:
            await connection.execute("BEGIN")
        except DRIVER_ERRORS as error:
            raise translate(error, self.place) from error
        except asyncio.CancelledError:
            connection.terminate()  # it may have begun
            raise
        try:
            result = await run(connection, work(), self.place)
            await connection.execute("COMMIT")
        except BaseException as error:
            if not connection.is_closed():
                with suppress(*DRIVER_ERRORS):
                    await connection.execute("ROLLBACK")
            if isinstance(error, DRIVER_ERRORS):
                raise translate(error, self.place) from error
            raise
        return result

    async def _saved(self, connection: Connection, work: Work[T]) -> T:
        """Inside an open transaction, so that a failure leaves nothing of this write."""
        await self._command(connection, "SAVEPOINT item")
        try:
            result = await run(connection, work(), self.place)
        except BaseException:
            with suppress(*DRIVER_ERRORS):
                await connection.execute("ROLLBACK TO item; RELEASE item")
            raise
        await self._command(connection, "RELEASE item")
        return result

    async def _command(self, connection: Connection, sql: str) -> None:
        """Run a statement of ours. One that is cut short may have been done: the connection is not used again."""
        try:
            await connection.execute(sql)
        except asyncio.CancelledError:
            connection.terminate()
            raise
        except DRIVER_ERRORS as error:
            raise failed(connection, error, self.place) from error

    async def pause(self, delay: float) -> None:
        await asyncio.sleep(delay)

    async def snapshot(self) -> PostgresSnapshot:
        """A transaction of its own in which every read sees the same state."""
        try:
            connection = await self.pool.extra()
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        except DRIVER_ERRORS as error:
            raise _unreachable(error, self.place) from error
        return PostgresSnapshot(self, connection)

    # Transactions ------------------------------------------------------------------------------------------------

    async def begin(self, *, isolation: str | None = None) -> Node:
        parent = innermost(self)
        if isolation is not None and isolation not in ("read committed", "repeatable read", "serializable"):
            raise InvalidInput(f"isolation={isolation!r}: 'read committed', 'repeatable read' or 'serializable'")
        if parent is None:
            connection = await self._acquire()
            try:
                await self._command(connection, f"BEGIN ISOLATION LEVEL {(isolation or 'read committed').upper()}")
            except BaseException:
                self.pool.release(connection)
                raise
            return Node(self, None, connection, asyncio.Lock())
        await parent.lock.acquire()
        node = Node(self, parent, parent.session, asyncio.Lock())
        try:
            await self._command(node.session, f"SAVEPOINT level_{node.depth}")
        except BaseException:
            parent.lock.release()
            raise
        return node

    async def end(self, node: Node, *, commit: bool) -> None:
        if node.done:
            raise TransactionError("this transaction has already ended")
        if node.parent is not None:
            try:
                undo = "" if commit else f"ROLLBACK TO level_{node.depth}; "
                await self._command(node.session, f"{undo}RELEASE level_{node.depth}")
                if commit:
                    node.parent.after.extend(node.after)
            finally:
                node.done = True
                node.parent.lock.release()
            return
        # A cancelled task still ends its transaction.
        await asyncio.shield(asyncio.ensure_future(self._finish(node, commit)))
        if commit:
            for call in node.after:
                call()

    async def _finish(self, node: Node, commit: bool) -> None:
        try:
            async with node.lock:
                await self._command(node.session, "COMMIT" if commit else "ROLLBACK")
        except BackendError:
            if commit:
                raise
        finally:
            node.done = True
            self.pool.release(node.session)

    # Tables ------------------------------------------------------------------------------------------------------

    def table(self, schema: Schema, physical: str, migrations: tuple[Migration, ...] = ()) -> PostgresTable:
        made = PostgresTable(self.dialect, schema, physical, self.now, local_settings=self.pooler)
        made.migrating = Migrating(made, migrations, self.table)
        return made

    async def ensure(self, table: PostgresTable) -> None:
        if (table.schema.vectors or table.schema.sparse_vectors) and not self._vectors:
            raise StartupError(
                f"{self.place}: table {table.schema.name!r} has vectors and the server has no pgvector: install it there and run"
                " CREATE EXTENSION vector in this database"
            )
        try:
            ready = await self.read(lambda: self.setup.ready(table))
        except BackendError:
            if self.setup.create:
                raise
            raise SetupRequired(
                f"{self.place}: schema {self.dialect.schema!r} is not set up and create=False: run `howdah migrate`, or apply"
                " what `howdah migrate --sql` prints",
                findings=("schema or bookkeeping tables are missing",),
            ) from None

        def work() -> Op[None]:
            yield Stmt("SELECT pg_advisory_xact_lock(1751, 1)")
            yield from self.setup.ensure(table)

        while not ready:  # a migration is a transaction of its own
            await self.write(work)
            ready = not table.migrating.migrations or await self.read(lambda: self.setup.ready(table))
        self._tables.setdefault(table.physical, table)

    async def drop(self, table: PostgresTable) -> None:
        def work() -> Op[None]:
            yield Stmt("SELECT pg_advisory_xact_lock(1751, 1)")
            yield from self.setup.forget(table)

        await self.write(work)
        self._tables.pop(table.physical, None)

    # Upkeep ------------------------------------------------------------------------------------------------------

    async def catalog(self) -> dict[str, dict[str, Any]]:
        """The specifications of the tables there are."""
        return await self.read(self.setup.catalog)

    async def script(self, tables: Sequence[PostgresTable]) -> list[str]:
        """The statements that would create or grow the tables."""
        return await self.read(lambda: self.setup.script(tables))

    async def changed(self, table: PostgresTable, mark: int | None, timeout: float) -> int:
        if self._closed:
            raise Closed("the store is closed")
        if not self.pooler:
            self._listener.begin()
        return self._signals.count(table.name) if mark is None else await self._signals.wait(table.name, mark, timeout)

    def watch(self, table: PostgresTable) -> None:
        self._signals.tell(table.name)
        if table.text is None and not table.schema.ttl:
            return
        if self._upkeep is None and not self._closed:
            self._upkeep = asyncio.get_running_loop().create_task(self._upkeep_loop(), context=_empty_context())
        if table.text is not None:
            self._wake.set()

    async def _upkeep_loop(self) -> None:
        while not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), UPKEEP_EVERY)
            self._wake.clear()
            await asyncio.sleep(0.5)
            try:
                await self._upkeep_round(MERGE_PARTS)
            except Error as error:
                if not self._closed:
                    log.warning("upkeep will be tried again: %s", error)

    async def background(self) -> bool:
        return await self._upkeep_round(ASKED)

    async def _upkeep_round(self, parts: int) -> bool:
        did = False
        for table in list(self._tables.values()):
            if table.schema.ttl:
                while await self.write(_guarded(table, "sweep", partial(sweep_step, table))):
                    did = True
            if table.text is not None and await self.read(partial(table.text.needs_merge, parts)):
                if await self.write(_guarded(table, "merge", partial(merge_begin, table, parts))):
                    start: str | None = ""
                    while start is not None:
                        start = await self.write(_guarded(table, "merge", partial(merge_step, table, start)))
                    did = True
        return did

    async def status(self) -> Status:
        def work() -> Op[Any]:
            return (
                yield Stmt(
                    "SELECT current_setting('server_version'), current_database(), coalesce(sum(pg_total_relation_size(c.oid)), 0)"
                    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    " WHERE n.nspname = $1 AND c.relkind = 'r'",
                    (self.dialect.schema,),
                )
            )

        version, database, size = (await self.read(work))[0]
        return Status("postgres", version, self.place, int(size), {"database": database, "schema": self.dialect.schema})

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._signals.close()
        await self._listener.close()
        if self._upkeep is not None:
            self._upkeep.cancel()
            with suppress(asyncio.CancelledError):
                await self._upkeep
        await self.pool.close()
        if self.server is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.server.close)


class PostgresSnapshot:
    """Reads of one state of the database."""

    def __init__(self, engine: PostgresEngine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection

    async def read(self, work: Work[T]) -> T:
        """Run a read."""
        return await run(self._connection, work(), self._engine.place)

    async def close(self) -> None:
        """Let go of the state."""
        with suppress(*DRIVER_ERRORS):
            await self._connection.execute("ROLLBACK")
        if isinstance(self._engine.pool, Pool):
            await self._connection.close()
        else:
            self._engine.pool.release(self._connection)


def _empty_context() -> Any:
    return contextvars.Context()


def _guarded(table: PostgresTable, purpose: str, work: Work[T]) -> Work[T | None]:
    """``work`` unless another process does the same right now."""

    def guarded() -> Op[T | None]:
        rows = yield Stmt(
            "SELECT pg_try_advisory_xact_lock(hashtext($1), hashtext($2))", (f"howdah:{table.name}", purpose)
        )
        if not rows[0][0]:
            return None
        return (yield from work())

    return guarded


def _unreachable(error: BaseException, place: str) -> Error:
    if isinstance(error, (ConnectionError, FileNotFoundError, TimeoutError)) or type(error) is OSError:
        return StartupError(f"{place}: no server answers there: {error}")
    return translate(error, place)
