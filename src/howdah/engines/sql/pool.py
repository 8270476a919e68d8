"""Connections to Postgres: a small pool without a round trip per use, or a caller's own pool; errors in our words."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import asyncpg

from ...errors import (
    BackendError,
    Closed,
    Conflict,
    DuplicateKey,
    Error,
    InvalidFilter,
    InvalidValue,
    LimitExceeded,
    MissingTable,
    StartupError,
    Timeout,
    TransactionError,
)
from ..base import Op
from .table import STALE

T = TypeVar("T")
Connection = Any
PATIENCE = 5.0


class Connections(Protocol):
    """Where connections come from."""

    async def acquire(self) -> Connection: ...
    async def extra(self) -> Connection: ...
    def release(self, connection: Connection) -> None: ...
    async def close(self) -> None: ...


class Pool:
    """At most ``size`` connections, the one used last first; no state is kept on them, so none is reset."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._size = size
        self._free: list[Connection] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._open = 0
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    async def acquire(self) -> Connection:
        """A connection; waits while all are in use."""
        while True:
            if self._closed:
                raise Closed("the store is closed")
            if (found := self.free()) is not None:
                return found
            if self._open < self._size:
                self._open += 1
                # A connection half made is finished even if nobody waits for it any more.
                making = asyncio.ensure_future(self._connect())
                try:
                    return await asyncio.shield(making)
                except asyncio.CancelledError:
                    making.add_done_callback(self._unwanted)
                    raise
                except BaseException:
                    self._open -= 1
                    self._wake()
                    raise
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise

    def free(self) -> Connection | None:
        """A connection at once, if there is one that nobody uses."""
        while self._free and not self._closed:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
            self._open -= 1
        return None

    def _unwanted(self, making: asyncio.Future[Connection]) -> None:
        if making.cancelled() or making.exception() is not None:
            self._open -= 1
            self._wake()
        else:
            self.release(making.result())

    async def extra(self) -> Connection:
        """A connection beyond the size, for who holds it long; close it yourself."""
        if self._closed:
            raise Closed("the store is closed")
        return await self._connect()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def release(self, connection: Connection) -> None:
        """Give a connection back; one that broke, or is in the middle of something, is thrown away."""
        if connection.is_closed() or self._closed or connection.is_in_transaction():
            self._open -= 1
            self._discard(connection)
        else:
            self._free.append(connection)
        self._wake()

    def _discard(self, connection: Connection) -> None:
        """Close a connection that may be in the middle of something, and what cancels that."""
        if not connection.is_closed():
            task = asyncio.get_running_loop().create_task(_close(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the free connections; those in use close when they come back."""
        self._closed = True
        while self._waiting:
            self._wake()
        while self._free:
            self._open -= 1
            await _close(self._free.pop())
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while self._closing or (self._open > 0 and asyncio.get_running_loop().time() < deadline):
            await asyncio.sleep(0.005)


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


class BorrowedPool:
    """A caller's asyncpg pool: used, never closed."""

    def __init__(self, pool: Any, prepare: Callable[[Connection], Awaitable[None]]) -> None:
        self._pool = pool
        self._prepare = prepare
        self._prepared: weakref.WeakSet[Any] = weakref.WeakSet()

    async def acquire(self) -> Connection:
        """One of the pool's connections, with Howdah's type codecs."""
        connection = await self._pool.acquire()
        if connection._con not in self._prepared:
            try:
                await self._prepare(connection)
            except BaseException:
                self.release(connection)
                raise
            self._prepared.add(connection._con)
        return connection

    def release(self, connection: Connection) -> None:
        """Give it back."""
        task = asyncio.ensure_future(self._pool.release(connection))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def extra(self) -> Connection:
        """One of the pool's connections: it alone decides how many there are."""
        return await self.acquire()

    async def close(self) -> None:
        """Nothing: the pool is the caller's."""


def translate(error: BaseException, place: str) -> Error:
    """The Howdah error for a driver's error; never with a password in it."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, asyncpg.UniqueViolationError):
        detail = error.detail or ""
        columns = tuple(c.strip().strip('"') for c in detail.partition("(")[2].partition(")=")[0].split(","))
        return DuplicateKey(f"another row already has this value of {', '.join(columns)}", index=columns)
    if isinstance(error, (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)):
        return Conflict(f"another transaction changed the same rows: {text}")
    if isinstance(error, (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        return StartupError(f"{place}: the server refuses this user or password: {text}")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return StartupError(f"{place}: {text}; create it first, e.g. with createdb")
    if isinstance(error, asyncpg.UndefinedTableError) or STALE in text:
        return MissingTable(f"{place}: {text}")
    if isinstance(error, asyncpg.InFailedSQLTransactionError):
        return TransactionError(f"an earlier statement of this transaction failed; it can only be rolled back: {text}")
    if isinstance(error, (asyncpg.QueryCanceledError, TimeoutError)):
        return Timeout(f"{place}: {text}")
    if isinstance(error, asyncpg.ProgramLimitExceededError):
        return LimitExceeded(f"{place}: {text}")
    if isinstance(error, asyncpg.InvalidRegularExpressionError):
        return InvalidFilter(text)
    if isinstance(error, (asyncpg.DataError, asyncpg.exceptions.DataError)):
        return InvalidValue(f"{place}: {text}")
    if isinstance(error, asyncpg.DiskFullError):
        return BackendError(f"{place}: the server's disk is full; nothing was changed")
    return BackendError(f"{place}: {text}")


DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


def failed(connection: Connection, error: BaseException, place: str) -> Error:
    """The Howdah error for what went wrong on a connection, which is not used again if it has lost its thread."""
    if isinstance(error, asyncpg.InternalClientError):
        connection.terminate()
    wrapped = translate(error, place)
    wrapped.__cause__ = error
    return wrapped


async def run(connection: Connection, op: Op[T], place: str) -> T:
    """Drive an operation to its end on this connection."""
    ahead: asyncio.Future[Any] | None = None
    try:
        statement = next(op)
        while True:
            try:
                if ahead is not None:
                    sent, ahead = ahead, None
                    await sent
                if statement.ahead:
                    ahead = asyncio.ensure_future(connection.fetch(statement.sql, *statement.params))
                    await asyncio.sleep(0)  # it is sent
                    rows: Any = []
                elif statement.many:
                    await connection.executemany(statement.sql, statement.params)
                    rows = []
                else:
                    rows = await connection.fetch(statement.sql, *statement.params)
            except DRIVER_ERRORS as error:
                statement = op.throw(failed(connection, error, place))
            else:
                statement = op.send(rows)
    except StopIteration as stop:
        if ahead is not None:
            try:
                await ahead
            except DRIVER_ERRORS as error:
                raise failed(connection, error, place) from error
        return stop.value  # type: ignore[no-any-return]  # the generator's return value
    finally:
        if ahead is not None:
            await asyncio.wait([ahead])
            ahead.cancelled() or ahead.exception()
