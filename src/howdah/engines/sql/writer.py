"""The one writer of a SQLite file in this process: waiting writes share a commit, processes take fair turns."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import apsw

from ...errors import Closed, TransactionError
from ..base import Once, Work
from .connection import run, translate

if TYPE_CHECKING:
    from .mirror import Mirror

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: SQLite's own busy handler takes turns
    fcntl = None

MOST = 1000


class Turn:
    """A lock that processes take in turn. SQLite's own busy handler lets a fast writer starve the others."""

    def __init__(self, path: str | None) -> None:
        self._file = None
        if path is not None and fcntl is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def take(self) -> None:
        """Wait for the turn."""
        if self._file is not None and fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def give(self) -> None:
        """Let the next one in."""
        if self._file is not None and fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Item:
    """A waiting write; ``waiter`` is the event loop's future, if one waits there."""

    __slots__ = ("done", "error", "result", "single", "waiter", "work")

    def __init__(self, work: Work[Any], single: bool, waiter: asyncio.Future[Any] | None = None) -> None:
        self.work = work
        self.single = single
        self.waiter = waiter
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


def _wake_waiters(batch: list[Item]) -> None:
    for item in batch:
        waiter = item.waiter
        if waiter is None or waiter.done():
            continue
        if item.error is not None:
            waiter.set_exception(item.error)
        else:
            waiter.set_result(item.result)


class Session:
    """An open transaction: holds the writer until it ends."""

    def __init__(self) -> None:
        self.opened: Future[None] = Future()
        self.tasks: deque[tuple[Callable[[apsw.Connection], Any], Future[Any]] | None] = deque()
        self.wake = threading.Semaphore(0)

    def submit(self, task: Callable[[apsw.Connection], Any]) -> Future[Any]:
        """Run ``task`` on the writer's connection inside the transaction."""
        future: Future[Any] = Future()
        self.tasks.append((task, future))
        self.wake.release()
        return future

    def leave(self) -> None:
        """Give the writer back; the transaction has ended."""
        self.tasks.append(None)
        self.wake.release()


def _settle(future: Future[Any], function: Callable[[], Any]) -> bool:
    """Run ``function`` for whoever waits, unless nobody does any more; whether it went well."""
    if not future.set_running_or_notify_cancel():
        return False
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
        return False
    future.set_result(result)
    return True


class Writer:
    """Runs writes on one connection, several to a commit; a savepoint keeps one failure from the others."""

    def __init__(self, connection: apsw.Connection, turn: Turn, place: str) -> None:
        self.connection = connection
        self.turn = turn
        self.place = place
        self.mirror: Mirror | None = None
        self.lock = threading.Lock()
        self.owner: int | None = None
        self._here: deque[Item] = deque()
        self._waiting: deque[Item | Session] = deque()
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._starting = threading.Lock()

    # In the caller's thread, for the blocking face: whoever holds the lock commits for all who wait.

    def write_here(self, work: Work[Any], single: bool = False) -> Any:
        """Run one write in this thread, together with those that other threads have waiting."""
        if self.owner == threading.get_ident():
            raise TransactionError(
                "a write (or upkeep) from inside another write of the same store would wait for itself"
            )
        item = Item(work, single)
        self._here.append(item)
        with self.lock:
            if not item.done:
                if self._closed:
                    raise Closed("the store is closed")
                batch: list[Item] = []
                while self._here and len(batch) < MOST:
                    batch.append(self._here.popleft())
                self.owner = threading.get_ident()
                try:
                    self._commit(batch)
                finally:
                    self.owner = None
                for other in batch:
                    other.done = True
        if item.error is not None:
            raise item.error
        return item.result

    # In a thread of its own, for the event loop.

    def submit(self, *items: Item | Session) -> None:
        """Queue writes or a transaction for the writer thread."""
        if self._closed:
            raise Closed("the store is closed")
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._loop, name="howdah-writer", daemon=True)
                    self._thread.start()
        self._waiting.extend(items)
        self._wake.release()

    def _loop(self) -> None:
        while True:
            self._wake.acquire()
            if not self._waiting:
                if self._closed:
                    return
                continue
            first = self._waiting.popleft()
            if isinstance(first, Session):
                with self.lock:
                    self._serve(first)
                continue
            batch = [first]
            while self._waiting and len(batch) < MOST and not isinstance(self._waiting[0], Session):
                batch.append(self._waiting.popleft())  # type: ignore[arg-type]  # checked in the condition
            with self.lock:
                self._commit(batch)
            if self._waiting:
                self._wake.release()
            loop = first.waiter.get_loop() if first.waiter is not None else None
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(_wake_waiters, batch)

    def _serve(self, session: Session) -> None:
        if not _settle(session.opened, self.begin):
            return
        while True:
            session.wake.acquire()
            task = session.tasks.popleft()
            if task is None:
                break
            function, future = task
            _settle(future, partial(function, self.connection))
        if self.connection.in_transaction:
            self.rollback()

    def enter(self) -> None:
        """Open a transaction that this thread's caller holds until ``leave``."""
        if self.owner == threading.get_ident():
            raise TransactionError("a transaction from inside another write of the same store would wait for itself")
        self.lock.acquire()
        try:
            self.begin()
        except BaseException:
            self.lock.release()
            raise
        self.owner = threading.get_ident()

    def leave(self) -> None:
        """The transaction that ``enter`` opened has ended."""
        self.owner = None
        self.lock.release()

    # Transactions ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the turn and open a write transaction. A deferred one could fail halfway, whatever the timeout."""
        self.turn.take()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            if self.mirror is not None:
                self.mirror.begin(self.connection)
        except BaseException as error:
            self.rollback()
            raise (translate(error, self.place) if isinstance(error, apsw.Error) else error) from error

    def commit(self) -> None:
        """Make the transaction durable and give up the turn."""
        try:
            if self.mirror is not None:
                self.mirror.prepare(self.connection)
            self.connection.execute("COMMIT")
        except BaseException as error:
            self.rollback()
            raise (translate(error, self.place) if isinstance(error, apsw.Error) else error) from error
        try:
            if self.mirror is not None:
                self.mirror.publish(self.connection)
        finally:
            self.turn.give()

    def rollback(self) -> None:
        """Undo the transaction and give up the turn."""
        with suppress(apsw.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        if self.mirror is not None:
            self.mirror.roll_back()
        self.turn.give()

    def _commit(self, batch: list[Item]) -> None:
        try:
            self.begin()
        except BaseException as error:
            for item in batch:
                item.error = error
            return
        execute = self.connection.execute
        for item in batch:
            # A failing statement undoes itself, so a write of one statement needs no savepoint.
            alone = item.single or len(batch) == 1
            try:
                if type(item.work) is Once:
                    item.result = self._once(item.work)
                    continue
                if not alone:
                    execute("SAVEPOINT item")
                item.result = run(self.connection, item.work(), self.place)
                if not alone:
                    execute("RELEASE item")
            except BaseException as error:
                item.error = error
                with suppress(apsw.Error):
                    if not alone and self.connection.in_transaction:
                        execute("ROLLBACK TO item")
                        execute("RELEASE item")
                    elif not item.single and self.connection.in_transaction:
                        self.rollback()
                        return
                if not self.connection.in_transaction:
                    # SQLite itself rolled everything back (disk full, I/O error): nothing of this batch is there.
                    self.rollback()
                    for other in batch:
                        other.error = other.error or error
                    return
        try:
            self.commit()
        except BaseException as error:
            for item in batch:
                item.error = item.error or error

    def _once(self, work: Once) -> Any:
        try:
            return self.connection.execute(work.sql, work.params).fetchall()
        except apsw.Error as error:
            raise translate(error, self.place) from error

    def close(self) -> None:
        """Finish what waits, then close the connection."""
        self._closed = True
        if self._thread is not None:
            self._wake.release()
            self._thread.join()
        with self.lock:
            self.connection.close()
            self.turn.close()
