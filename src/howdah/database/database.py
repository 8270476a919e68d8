"""``Database``: plain SQL on Postgres, a server's or the embedded one's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from ..engines.sql.dialect import quote
from ..engines.sql.pool import Pool
from ..errors import Closed, Conflict, Error, InvalidInput, StartupError, TransactionError
from ..values import check_retries, check_text, seconds
from .backup import load, save
from .codecs import prepare
from .failures import DRIVER_ERRORS, explain
from .means import CACHE, MEMORY, Cache, Means, folder
from .overlay.adopting import Adopting, Tiering
from .overlay.counting import Stale
from .overlay.flush import Flushed
from .overlay.flusher import Flusher, flushed, tended
from .overlay.manage import Tiers, is_due
from .rows import Checkpointed, DatabaseStatus, Notification, Rows
from .server import Server
from .session import Session
from .statements import AsyncStatements
from .tiering import TableTiering
from .transaction import AsyncSqlTransaction, Isolation
from .vectors import VectorIndexing

T = TypeVar("T")
PATIENCE = 30.0


class AsyncDatabase(TableTiering, VectorIndexing, AsyncStatements):
    """SQL on Postgres. ``AsyncDatabase.open(url)`` or ``store.database``; connects on first use, or by ``start()``."""

    _alone = True

    def __init__(
        self,
        server: Callable[[], Awaitable[Server]],
        *,
        timeout: float | timedelta | None = None,
        pool_size: int = 10,
        extensions: tuple[str, ...] = ("vector",),
        on_notice: Callable[[str], None] | None = None,
        flusher: bool = False,
        tiering: Tiering | None = None,
        memory_mb: int = MEMORY,
        cache_mb: int = CACHE,
        cache_dir: str | os.PathLike[str] | None = None,
        lent: bool = False,
    ) -> None:
        for name, number, least in (("memory_mb", memory_mb, 8), ("cache_mb", cache_mb, 0)):
            if type(number) is not int or number < least:
                raise InvalidInput(f"{name}={number!r}: expected an integer >= {least}")
        where = folder() if cache_dir is None else Path(cache_dir).expanduser()
        self._means = Means(memory_mb * 2**20, Cache(where, cache_mb * 2**20) if cache_mb else None)
        if type(pool_size) is not int or pool_size < 1:
            raise InvalidInput(f"pool_size={pool_size!r}: expected an integer >= 1")
        if isinstance(extensions, str) or not all(isinstance(e, str) and e for e in extensions):
            raise InvalidInput(f"extensions={extensions!r}: expected a tuple of names")
        self._timeout = None if timeout is None else seconds(timeout, "timeout")
        self.lent = lent
        """Whether a store gave it, and closes it."""
        self._tiers = Tiers()
        self._find = server
        self._size = pool_size
        self._extensions = tuple(extensions)
        self._on_notice = on_notice
        self._flusher = Flusher(self._flushing) if flusher else None
        if tiering is not None and not isinstance(tiering, Tiering):
            raise InvalidInput(f"tiering={tiering!r:.60}: expected howdah.Tiering(location=…)")
        self._adopting = None if tiering is None else Adopting(tiering)
        self._mover: Session | None = None
        self._starting: asyncio.Lock | None = None
        self._server: Server | None = None
        self._pool: Pool | None = None
        self._state = "new"
        self._calls = 0
        self._epoch = 0
        self._idle: asyncio.Event | None = None

    @classmethod
    def open(
        cls,
        url: str,
        *,
        timeout: float | timedelta | None = None,
        pool_size: int = 10,
        extensions: tuple[str, ...] = ("vector",),
        on_notice: Callable[[str], None] | None = None,
        flusher: bool = False,
        tiering: Tiering | None = None,
        memory_mb: int = MEMORY,
        cache_mb: int = CACHE,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> AsyncDatabase:
        """The database of ``pg:./data`` or ``postgresql://…``. Nothing is connected yet.

        ``timeout`` (seconds) is every statement's, if it names no other; ``pool_size`` how many connections at most;
        ``extensions`` are created if the server has them; ``on_notice(text)`` is told what the server remarks; with
        ``flusher`` this process moves the rows of tiered tables in the background, as each table's policy says; ``tiering``
        has policies for many tables. ``memory_mb`` (MiB) bounds the pieces in which flushes, merges and reads of bases go;
        the libraries for these take about 100 MiB of their own. Of files in buckets, those up to a sixteenth of ``cache_mb`` are kept
        on disk once they were read, in ``cache_dir`` (default: your cache folder); 0 keeps none.
        """
        from .opening import finder

        return cls(
            finder(url),
            timeout=timeout,
            pool_size=pool_size,
            extensions=extensions,
            on_notice=on_notice,
            flusher=flusher,
            tiering=tiering,
            memory_mb=memory_mb,
            cache_mb=cache_mb,
            cache_dir=cache_dir,
        )

    def __repr__(self) -> str:
        return f"<database {self._server.place if self._server else 'not started'}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._state == "closed"

    # Opening and closing -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect: an embedded server is started. However many callers wait, it happens once; ``StartupError`` when it
        fails, and the next call tries again."""
        if self._state == "open":
            return
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._state == "closed":
                raise Closed("the database is closed")
            if self._state == "open":
                return
            server = await self._find()
            pool = Pool(lambda: self._connect(server), self._size)
            try:
                await self._extend(server)
                session = await pool.acquire()
                try:
                    await self._look(session)
                finally:
                    pool.release(session)
                if self.closed:
                    raise Closed("the database was closed while it started")
            except BaseException as error:
                await pool.close()
                await server.close()
                if isinstance(error, (*DRIVER_ERRORS, TimeoutError)):
                    raise _unreachable(error, server.place) from error
                raise
            self._server, self._pool, self._state = server, pool, "open"
            if self._flusher is not None:
                self._flusher.start()

    async def _flushing(self, tidy: bool) -> Flushed:
        """Flush what is due, and look after the other tables, too, if wanted."""
        assert self._server is not None
        if self._mover is None or self._mover.is_closed():
            self._mover = await self._connect(self._server)
        session = self._mover
        await self._look(session)
        due = [t for t in self._tiers.each() if await is_due(session, t)]
        done = await flushed(session, due)
        if tidy:
            await tended(session, [t for t in self._tiers.each() if t not in due])
        return done

    async def _extend(self, server: Server) -> None:
        """Create the extensions that the server has, if this user may."""
        connection = await server.connect()
        try:
            for name in self._extensions:
                if await connection.fetchval("SELECT 1 FROM pg_extension WHERE extname = $1", name):
                    continue
                if await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = $1", name):
                    with suppress(asyncpg.InsufficientPrivilegeError):
                        async with connection.transaction():
                            await connection.execute("SELECT pg_advisory_xact_lock(1751, 0)")
                            await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {quote(name)}")
                elif name != "vector":
                    raise StartupError(f"{server.place}: the server has no extension {name!r}")
        finally:
            await connection.close()

    async def _connect(self, server: Server) -> Session:
        connection = await server.connect()
        try:
            await prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        if self._on_notice is not None:
            tell = self._on_notice
            connection.add_log_listener(lambda _, message: tell(str(message)))
        return Session(connection, server.place, self._means)

    @property
    def _plain(self) -> bool:
        return self._state == "open" and not self._tiers.active

    async def _begun(self) -> None:
        if self._state != "open":
            await self.start()

    async def _look_again(self, sql: str, error: Error) -> bool:
        async with self._using() as session:
            await self._tiers.load(session)
        return isinstance(error, Stale) or self._tiers.plan(sql) is not None

    def _beside(self) -> Path | None:
        return None if self._server is None or self._server.root is None else self._server.root / "tiers"

    def _at_once(self) -> Session | None:
        """A session that nobody uses and that has kept up with changes of shapes."""
        session: Session | None = self._pool.free() if self._state == "open" and self._pool is not None else None
        if session is None:
            return None
        if session.epoch != self._epoch:
            self._pool.release(session)  # type: ignore[union-attr]  # it gave it
            return None
        self._calls += 1
        return session

    async def _acquire(self) -> Session:
        if self._state != "open":
            await self.start()
        assert self._pool is not None
        self._calls += 1
        try:
            session: Session = await self._pool.acquire()
        except BaseException as error:
            self._ended()
            if isinstance(error, (*DRIVER_ERRORS, TimeoutError)):
                assert self._server is not None
                raise _unreachable(error, self._server.place) from error
            raise
        if session.epoch != self._epoch:
            try:
                await session.forget(self._epoch)
            except BaseException:
                self._release(session)
                raise
        return session

    async def _run(self, text: str, params: tuple[Any, ...], limit: float | None, written: str = "") -> Rows:
        # Without a context manager: this is what is called most.
        session = self._at_once() or await self._acquire()
        session.heed(text)
        try:
            if written:
                await session.checked(written)
            return await session.query(text, params, limit)
        finally:
            self._release(session)

    def _release(self, session: Session) -> None:
        assert self._pool is not None
        if session.changes != session.noted:
            session.noted = session.changes
            self._epoch += 1
        if session.marked or session.loose:  # what somebody has set there must not reach the next caller
            session.terminate()
        self._pool.release(session)
        self._ended()

    def _ended(self) -> None:
        self._calls -= 1
        if self._calls == 0 and self._idle is not None:
            self._idle.set()

    @asynccontextmanager
    async def _using(
        self, sql: str = "", *, block: bool = False, repeatable: bool = False, stream: bool = False
    ) -> AsyncIterator[Session]:
        session = await self._acquire()
        session.heed(sql)
        try:
            begin = f"BEGIN{' ISOLATION LEVEL REPEATABLE READ' if repeatable else ''}"
            async with session.transaction(begin) if block else nullcontext():
                yield session
        finally:
            self._release(session)

    async def close(self, *, timeout: float | timedelta = PATIENCE) -> None:
        """Wait ``timeout`` seconds for calls under way, then close every connection. Calls after that raise ``Closed``."""
        wait = seconds(timeout, "timeout", zero=True)
        before, self._state = self._state, "closed"
        if before != "open":
            return
        if self._flusher is not None:
            await self._flusher.stop()
        if self._mover is not None:
            self._mover.terminate()
        if self._calls:
            self._idle = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), wait)
        assert self._pool is not None and self._server is not None
        await self._pool.close()
        await self._server.close()

    # Transactions ------------------------------------------------------------------------------------------------

    def transaction(self, *, isolation: Isolation = "read committed", readonly: bool = False) -> AsyncSqlTransaction:
        """A transaction: ``async with db.transaction() as tx``; inside it call ``tx.query`` and the rest."""
        return AsyncSqlTransaction(self, isolation, readonly)

    async def transact(
        self,
        fn: Callable[[AsyncSqlTransaction], Coroutine[Any, Any, T]],
        *,
        retries: int = 3,
        isolation: Isolation = "read committed",
    ) -> T:
        """Run ``fn(tx)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                async with self.transaction(isolation=isolation) as tx:
                    return await fn(tx)
            except Conflict:
                if attempt == retries:
                    raise
                await asyncio.sleep(0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    @property
    def flushed(self) -> Flushed:
        """What the flusher of this database (``open(…, flusher=True)``) has moved."""
        return Flushed() if self._flusher is None else self._flusher.done

    # Around ------------------------------------------------------------------------------------------------------

    async def listen(self, channel: str) -> AsyncIterator[Notification]:
        """Messages of a channel from now on, on a connection of its own: ``async for note in db.listen("news")``."""
        check_text(channel, "channel")
        if not channel:
            raise InvalidInput("channel: expected a name")
        await self.start()
        assert self._server is not None
        try:
            connection = await self._server.connect()
        except (*DRIVER_ERRORS, TimeoutError) as error:
            raise _unreachable(error, self._server.place) from error
        arrived: asyncio.Queue[Notification | None] = asyncio.Queue()
        try:
            connection.add_termination_listener(lambda _: arrived.put_nowait(None))
            await connection.add_listener(
                channel, lambda _, pid, name, payload: arrived.put_nowait(Notification(name, payload, pid))
            )
            while self._state == "open":
                try:
                    note = await asyncio.wait_for(arrived.get(), 0.5)
                except TimeoutError:
                    continue
                if note is None:
                    raise StartupError(f"{self._server.place}: the connection was lost; messages may have been missed")
                yield note
        finally:
            connection.terminate()

    async def checkpoint(self) -> Checkpointed:
        """Flush the tables whose policy says so, then write everything in memory to the server's files. Never needed for
        durability: a commit is on disk already."""
        async with self._using() as session:
            await self._look(session)
            moved = await flushed(session, [t for t in self._tiers.each() if await is_due(session, t)])
            await session.command("CHECKPOINT")
            rows = await session.query("SELECT pg_current_wal_lsn()::text AS lsn", (), None)
        return Checkpointed(rows[0]["lsn"], moved.tables, moved.rows, moved.files)

    async def status(self) -> DatabaseStatus:
        """Where the data is and how much there is."""
        async with self._using() as session:
            rows = await session.query(
                "SELECT current_setting('server_version') AS version, current_database() AS name,"
                " pg_database_size(current_database()) AS size,"
                " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections,"
                " (SELECT jsonb_object_agg(extname, extversion) FROM pg_extension) AS extensions",
                (),
                None,
            )
        row = rows[0]
        assert self._server is not None
        return DatabaseStatus(
            self._server.place, row["version"], row["name"], row["size"], row["connections"], row["extensions"]
        )

    async def backup(self, path: str | os.PathLike[str]) -> int:
        """Write a consistent dump of everything to a file (``pg_dump``'s custom format; a tar file of it and of the rows on object
        storage, where tables are tiered); its size in bytes."""
        async with self._using() as session:
            assert self._server is not None
            return await save(self._server, session, self._tiers, path)

    async def restore(self, path: str | os.PathLike[str], *, location: str | os.PathLike[str] | None = None) -> None:
        """Read a backup into this database, which must not hold what is in it; all or nothing.

        Tiered tables get bases of their own: each where its base was, or in ``location/schema.table``. These places must be
        empty: two databases never share a base. What was archived is so again after the next upkeep; foreign keys of
        tiered tables hold for new rows.
        """
        async with self._using() as session:
            assert self._server is not None
            await load(self._server, session, path, location)
            await self._tiers.load(session)


def _unreachable(error: BaseException, place: str) -> Error:
    if isinstance(error, (ConnectionError, FileNotFoundError, TimeoutError)) or type(error) is OSError:
        return StartupError(f"{place}: no server answers there: {error}")
    found = explain(error, "", place)
    return found if isinstance(found, (StartupError, TransactionError)) else StartupError(f"{place}: {error}")
