"""The SQLite engine: a file shared by any number of processes, or memory shared inside one."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import apsw

from ...errors import BackendError, Closed, Corrupt, MissingTable, SetupRequired, StartupError, TransactionError
from ...migrations import Migration
from ...schema import Schema
from ..base import Capabilities, Node, Status, Work, innermost
from . import scratch, upkeep
from .connection import open_connection, run, translate
from .dialect import SqliteDialect
from .migrating import Migrating
from .mirror import ROOT_FILE, SYSTEM, Mirror
from .readback import ReadBack
from .setup import Setup, system_ddl
from .signals import TICK, Looker, Signals
from .sqlite_table import SqliteTable
from .writer import Item, Session, Turn, Writer

T = TypeVar("T")
PATIENCE = 5000
"""Milliseconds that closing waits for a read under way."""
ASKED = 4
"""Parts of a text index above which upkeep that was asked for merges them."""
_engines: weakref.WeakSet[SqliteEngine] = weakref.WeakSet()


class _Reader:
    """A thread's connection for reading; it is closed with the thread."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class SqliteEngine:
    """One store's connections. ``inline`` runs everything in the caller's thread, for the blocking face; ``files`` is a
    directory that shows every row as a file."""

    name = "sqlite"
    scope = "cluster"
    capabilities = Capabilities()

    def __init__(
        self,
        path: str,
        *,
        memory: bool = False,
        files: str | None = None,
        inline: bool = False,
        create: bool = True,
        busy_timeout: float = 120,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.inline = inline
        self.durable = not memory
        self.dialect = SqliteDialect()
        self.creates = create
        self.ids: Callable[[], UUID] | None = None
        self.users: set[Any] = set()
        self.setup = Setup(self.dialect, create=create)
        self.now = clock
        self.place = "memory:" if memory else files or path
        self._memory = memory
        self._uri = f"file:{quote(os.path.abspath(path))}"
        self._busy_timeout = busy_timeout
        self._local = threading.local()
        self._readers: weakref.WeakSet[_Reader] = weakref.WeakSet()
        self._pool: ThreadPoolExecutor | None = None
        self._state = threading.Lock()
        self._closed: str | None = None
        self._tables: dict[str, SqliteTable] = {}
        self._pending: list[Item] = []
        self._signals = Signals()
        self._looker = Looker(self._signals, self._version)
        turn = self._open_turn()
        connection = open_connection(self._uri, busy_timeout=busy_timeout, memory=memory)
        self.writer = Writer(connection, turn, self.place)
        try:
            self._prepare(connection, turn, create)
            if files is not None:
                self._mirror(connection, files, create)
        except BaseException:
            connection.close()
            turn.close()
            raise
        self._upkeep = upkeep.UpkeepThread(self)
        _engines.add(self)

    def _open_turn(self) -> Turn:
        if self._memory:
            return Turn(None)
        try:
            return Turn(f"{self.path}-lock")
        except OSError as error:
            raise StartupError(f"{self.path}: cannot be opened: {error.strerror}: {error.filename}") from error

    def _prepare(self, connection: apsw.Connection, turn: Turn, create: bool) -> None:
        turn.take()
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchall()[0][0]
            if mode != "wal":
                raise StartupError(f"{self.path}: this file system does not support SQLite's WAL; use a local disk")
            if create:
                with connection:
                    for statement in system_ddl(self.dialect):
                        connection.execute(statement)
        except apsw.Error as error:
            raise translate(error, self.place) from error
        finally:
            turn.give()

    def _mirror(self, connection: apsw.Connection, folder: str, create: bool) -> None:
        """Show every row as a file from now on, and take over what was edited by hand."""
        mirror = self.writer.mirror = Mirror(folder, self.table)
        if (
            not create
            and not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_howdah_tables'").fetchall()
        ):
            if os.path.exists(os.path.join(folder, ROOT_FILE)):
                raise SetupRequired(
                    f"{folder}: the index of its files is missing and create=False: run `howdah migrate`"
                )
            return  # there is nothing yet, and nothing is made here
        connection.execute(SYSTEM)
        self.writer.begin()
        try:
            ReadBack(mirror, self.setup, connection).run()
        except BaseException as error:
            self.writer.rollback()
            raise (translate(error, self.place) if isinstance(error, apsw.Error) else error) from error
        self.writer.commit()

    # Running operations ------------------------------------------------------------------------------------------

    def _reader(self) -> apsw.Connection:
        holder: _Reader | None = getattr(self._local, "holder", None)
        if holder is None:
            self._check()
            reader = open_connection(self._uri, busy_timeout=self._busy_timeout, memory=self._memory)
            reader.execute("PRAGMA query_only = ON")
            self._local.holder = holder = _Reader(reader)
            self._local.reader = reader
            with self._state:
                self._readers.add(holder)
        return holder.connection

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._closed is not None

    def _check(self) -> None:
        if self._closed is not None:
            raise Closed(self._closed)

    def read_here(self, work: Work[T]) -> T:
        """A read in this thread, in one snapshot."""
        if self._closed is not None:
            raise Closed(self._closed)
        reader = self._reader()
        try:
            reader.execute("BEGIN")
        except apsw.Error as error:
            raise translate(error, self.place) from error
        try:
            return run(reader, work(), self.place)
        finally:
            with suppress(apsw.Error):
                reader.execute("COMMIT")

    def fetch_one(self, sql: str, params: Any) -> Any:
        """One row of a single-statement read, by the shortest way."""
        if self._closed is not None:
            raise Closed(self._closed)
        reader = getattr(self._local, "reader", None) or self._reader()
        try:
            return reader.execute(sql, params).fetchone()
        except apsw.Error as error:
            raise translate(error, self.place) from error

    async def get(self, table: SqliteTable, key: tuple[Any, ...], names: tuple[str, ...]) -> Any:
        """One row by key."""
        if innermost(self) is not None:
            return await self.read(lambda: table.get(key, names))
        return self.fetch_one(table.get_sql(names), (*key, table.moment()) if table.schema.ttl else key)

    async def read(self, work: Work[T], *, heavy: bool = False, snapshot: bool = False) -> T:
        node = innermost(self)
        if node is not None:
            return await self._inside(node, lambda connection: run(connection, work(), self.place))
        if self.inline or not heavy:
            return self.read_here(work)
        if self._pool is None:
            self._check()
            self._pool = ThreadPoolExecutor(2, thread_name_prefix="howdah-reader")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_here, work)

    async def write(self, work: Work[T], *, single: bool = False) -> T:
        node = innermost(self)
        if node is not None:
            return await self._inside(node, lambda connection: self._saved(connection, work))
        self._check()
        if self.inline:
            return self.writer.write_here(work, single)  # type: ignore[no-any-return]  # the work's own result
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._pending.append(Item(work, single, waiter))
        if len(self._pending) == 1:
            # At the end of the loop's tick, so that all who write in it share a commit.
            loop.call_soon(self._flush)
        return await waiter  # type: ignore[no-any-return]  # the work's own result

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        try:
            self.writer.submit(*pending)
        except Closed as error:
            for item in pending:
                if item.waiter is not None and not item.waiter.done():
                    item.waiter.set_exception(error)

    def _saved(self, connection: apsw.Connection, work: Work[T]) -> T:
        """Run inside an open transaction so that a failure leaves nothing of this write."""
        connection.execute("SAVEPOINT item")
        try:
            result = run(connection, work(), self.place)
        except BaseException:
            with suppress(apsw.Error):
                connection.execute("ROLLBACK TO item")
                connection.execute("RELEASE item")
            raise
        connection.execute("RELEASE item")
        return result

    async def _inside(self, node: Node, task: Callable[[apsw.Connection], T]) -> T:
        if self.inline:
            with node.lock:
                return task(self.writer.connection)
        async with node.lock:
            result: T = await asyncio.wrap_future(node.session.submit(task))
            return result

    async def pause(self, delay: float) -> None:
        """Wait without holding anything."""
        # What the blocking face runs on a loop of its own (job servers) must not stop that.
        if self.inline and not _on_a_loop():
            time.sleep(delay)
        else:
            await asyncio.sleep(delay)

    async def snapshot(self) -> SqliteSnapshot:
        """A connection of its own on which every read sees the same state."""
        self._check()
        reader = open_connection(self._uri, busy_timeout=self._busy_timeout, memory=self._memory)
        reader.execute("BEGIN")
        return SqliteSnapshot(reader, self.place)

    # Transactions ------------------------------------------------------------------------------------------------

    async def begin(self, *, isolation: str | None = None) -> Node:
        parent = innermost(self)
        self._check()
        if parent is None:
            if self.inline:
                self.writer.enter()
                return Node(self, None, None, threading.RLock())
            session = Session()
            self.writer.submit(session)
            try:
                await asyncio.wrap_future(session.opened)
            except BaseException:
                session.leave()
                raise
            return Node(self, None, session, asyncio.Lock())
        if self.inline:
            parent.lock.acquire()
        else:
            await parent.lock.acquire()
        node = Node(self, parent, parent.session, threading.RLock() if self.inline else asyncio.Lock())
        try:
            await self._inside(node, lambda c: c.execute(f"SAVEPOINT level_{node.depth}"))
        except BaseException:
            parent.lock.release()
            raise
        return node

    async def end(self, node: Node, *, commit: bool) -> None:
        if node.done:
            raise TransactionError("this transaction has already ended")
        if node.parent is not None:
            try:
                level = f"level_{node.depth}"
                if not commit:
                    await self._inside(node, lambda c: c.execute(f"ROLLBACK TO {level}"))
                await self._inside(node, lambda c: c.execute(f"RELEASE {level}"))
                if commit:
                    node.parent.after.extend(node.after)
            finally:
                node.done = True
                node.parent.lock.release()
            return
        if self.inline:
            try:
                await self._finish(node, commit)
            finally:
                self.writer.leave()
        else:
            # A cancelled task still ends its transaction.
            await asyncio.shield(asyncio.ensure_future(self._finish(node, commit)))
        if commit:
            for call in node.after:
                call()

    async def _finish(self, node: Node, commit: bool) -> None:
        finish = self.writer.commit if commit else self.writer.rollback
        try:
            await self._inside(node, lambda _: finish())
        finally:
            node.done = True
            if node.session is not None:
                node.session.leave()

    # Tables ------------------------------------------------------------------------------------------------------

    def table(self, schema: Schema, physical: str, migrations: tuple[Migration, ...] = ()) -> SqliteTable:
        """Operations on one table."""
        made = SqliteTable(self.dialect, schema, physical, lambda: self.now(), self._vector_folder)
        made.migrating = Migrating(made, migrations, self.table)
        return made

    async def ensure(self, table: SqliteTable) -> None:
        """Create or grow the table; at once when it is there as declared."""
        try:
            ready = await self.read(lambda: self.setup.ready(table))
        except BackendError as error:
            if isinstance(error, Corrupt) or self.setup.create:
                raise
            ready = False
        while not ready:  # a migration is a transaction of its own
            try:
                await self.write(lambda: self.setup.ensure(table))
            except MissingTable as error:
                if self.creates:
                    raise
                raise SetupRequired(
                    f"{self.place}: nothing has been set up here and create=False: run `howdah migrate`",
                    findings=(str(error),),
                ) from error
            ready = not table.migrating.migrations or await self.read(lambda: self.setup.ready(table))
        with self._state:
            self._tables.setdefault(table.physical, table)

    async def drop(self, table: SqliteTable) -> None:
        """Remove a table with its data."""
        await self.write(lambda: self.setup.forget(table))
        with self._state:
            self._tables.pop(table.physical, None)

    async def catalog(self) -> dict[str, dict[str, Any]]:
        """The specifications of the tables there are."""
        return await self.read(self.setup.catalog)

    async def script(self, tables: Sequence[SqliteTable]) -> list[str]:
        """The statements that would create or grow the tables."""
        return await self.read(lambda: self.setup.script(tables))

    def watch(self, table: SqliteTable) -> None:
        """A write happened that may need upkeep soon."""
        self._upkeep.wake(table)
        if not self.inline:
            self._signals.tell(table.name)

    def _version(self) -> int:
        """A number that changes with every commit of another connection."""
        version: int = self.fetch_one("PRAGMA data_version", None)[0]
        return version

    async def changed(self, table: SqliteTable, mark: int | None, timeout: float) -> int:
        """Wait until something may have been written since ``mark``."""
        if not self.inline:
            self._check()
            self._looker.begin()
            found = self._signals.count(table.name)
            return found if mark is None else await self._signals.wait(table.name, mark, timeout)
        deadline = time.monotonic() + timeout
        while (found := self._version()) == mark and (left := deadline - time.monotonic()) > 0:
            await self.pause(min(TICK, left))
        return found

    def tables(self) -> list[SqliteTable]:
        """The tables that are in use here."""
        with self._state:
            return list(self._tables.values())

    def _vector_folder(self) -> Path:
        return Path(f"{self.path}-vectors")

    async def background(self) -> bool:
        """Do all upkeep that waits, now."""
        if self.inline:
            return self._upkeep.run_all(ASKED)
        return await asyncio.get_running_loop().run_in_executor(None, self._upkeep.run_all, ASKED)

    async def status(self) -> Status:
        size = 0
        for file in (Path(self.path), Path(f"{self.path}-wal"), *self._vector_folder().glob("*")):
            with suppress(OSError):
                size += file.stat().st_size
        return Status("sqlite", apsw.sqlite_lib_version(), self.place, size)

    async def close(self) -> None:
        if self._closed is not None:
            return
        self._closed = "the store is closed"
        self._signals.close()
        await self._looker.close()
        if self.inline:
            self._release()
        else:
            await asyncio.get_running_loop().run_in_executor(None, self._release)

    def _release(self) -> None:
        self._upkeep.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self.writer.close()
        with self._state:
            readers = list(self._readers)
        for reader in readers:
            _close(reader.connection)
        _engines.discard(self)
        if self._memory:
            scratch.release(self.path)

    def _forked(self) -> None:
        self._closed = "the store was opened before a fork; connect again in the child process"


class SqliteSnapshot:
    """Reads of one state of the database."""

    def __init__(self, reader: apsw.Connection, place: str) -> None:
        self._reader = reader
        self._place = place

    async def read(self, work: Work[T]) -> T:
        """Run a read."""
        return run(self._reader, work(), self._place)

    async def close(self) -> None:
        """Let go of the state."""
        self._reader.close()


def _close(connection: apsw.Connection) -> None:
    """Close a connection that another thread, of a subscription, may be reading from this moment."""
    for _ in range(PATIENCE):
        try:
            connection.close()
            return
        except apsw.ThreadingViolationError:
            time.sleep(0.001)
    connection.close()


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _after_fork() -> None:
    for engine in list(_engines):
        engine._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
