"""Transactions of plain SQL: they commit at the end of the block; inside one another they are savepoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

import asyncpg

from ..errors import Error, InvalidInput, QueryError, TransactionError
from .failures import DRIVER_ERRORS, explain
from .session import Session
from .statements import AsyncStatements

if TYPE_CHECKING:
    from .database import AsyncDatabase

Isolation = Literal["read committed", "repeatable read", "serializable"]
ISOLATIONS: Final = ("read committed", "repeatable read", "serializable")


class AsyncSqlTransaction(AsyncStatements):
    """``async with db.transaction() as tx``: commits at the end, rolls back on any exception. ``tx.transaction()`` is a
    savepoint. Statements of one transaction run one after the other, whichever task sends them."""

    def __init__(
        self, database: AsyncDatabase, isolation: str, readonly: bool, parent: AsyncSqlTransaction | None = None
    ) -> None:
        if isolation not in ISOLATIONS:
            raise InvalidInput(f"isolation={isolation!r}: expected one of {', '.join(map(repr, ISOLATIONS))}")
        self._database = database
        self._timeout = database._timeout
        self._tiers = database._tiers
        self._isolation = isolation
        self._readonly = readonly
        self._parent = parent
        self._depth: int = 0 if parent is None else parent._depth + 1
        self._session: Session | None = None
        self._lock: asyncio.Lock = asyncio.Lock() if parent is None else parent._lock
        self._state: Literal["new", "open", "over"] = "new"
        self._inner = False
        self._streaming = False
        self._noted = 0

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise TransactionError("a transaction object is used once; call transaction() again")
        if self._parent is None:
            session = await self._database._acquire()
            try:
                await self._begin(session)
            except BaseException:
                self._database._release(session)
                raise
            self._noted = session.changes
        else:
            self._parent._check()
            async with self._lock:
                self._parent._check()
                session, self._noted = self._parent._open_session(), self._parent._noted
                await session.command(f"SAVEPOINT level_{self._depth}")
                self._parent._inner = True
        self._session, self._state = session, "open"
        return self

    async def _begin(self, session: Session) -> None:
        begin = f"BEGIN ISOLATION LEVEL {self._isolation.upper()}"
        if not self._readonly:
            await session.command(begin)
            return
        # It makes no temporary table later. Without them, as where one may make none, it reads what is not tiered.
        for more in (True, True, False):
            try:
                tables = self._tiers.bindable() if more else ""
                await session.command(f"{begin}{tables}; SET TRANSACTION READ ONLY")
                return
            except QueryError:
                await session.command("ROLLBACK")
                if not more:
                    raise
                await self._tiers.load(session)

    async def _begun(self) -> None:
        session = self._session
        # A statement of this transaction may have made a view.
        if session is not None and session.changes != self._noted:
            self._noted = session.changes
            await self._refreshed()

    def transaction(self) -> AsyncSqlTransaction:
        """A savepoint: what its block does can be undone by itself. This transaction waits until it ends."""
        return AsyncSqlTransaction(self._database, self._isolation, self._readonly, self)

    async def rollback(self) -> None:
        """Undo everything now; the block goes on, its statements are refused."""
        self._check()
        await self._leave(commit=False)

    def _open_session(self) -> Session:
        assert self._session is not None
        return self._session

    def _check(self) -> None:
        above = self._parent
        while above is not None:
            if above._state != "open":
                raise TransactionError("the transaction around this savepoint has ended")
            above = above._parent
        if self._state != "open":
            raise TransactionError(f"this transaction {'has ended' if self._state == 'over' else 'was not begun'}")
        if self._inner:
            raise TransactionError("a savepoint of this transaction is open: use that one, or end it first")
        if self._streaming:
            raise TransactionError("a stream of this transaction is open: read it to its end, or close it first")

    @asynccontextmanager
    async def _using(
        self, sql: str = "", *, block: bool = False, repeatable: bool = False, stream: bool = False
    ) -> AsyncIterator[Session]:
        self._check()
        async with self._lock:
            self._check()
            self._streaming = stream
            session = self._open_session()
            session.heed(sql)
            try:
                yield session
            finally:
                self._streaming = False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state != "open":
            return
        # A cancelled task still ends its transaction.
        ending = asyncio.ensure_future(self._leave(commit=kind is None))
        try:
            await asyncio.shield(ending)
        except Error:
            if kind is None:
                raise  # else what the block raised says more

    async def _leave(self, *, commit: bool) -> None:
        if self._streaming:  # by somebody who does not read on, and holds the lock
            await self._end(commit=commit)
            return
        async with self._lock:
            if self._state == "open":
                await self._end(commit=commit)

    async def _end(self, *, commit: bool) -> None:
        session = self._open_session()
        self._state = "over"
        try:
            if self._parent is None:
                if commit:
                    await _commit(session)
                else:
                    with suppress(Error):
                        await session.command("ROLLBACK")
            elif self._parent._state == "open":
                await self._end_savepoint(session, commit)
        finally:
            if session.changes != session.noted and not session.is_closed():
                with suppress(Error):  # what was known may have been undone
                    await self._tiers.load(session)
            if self._parent is not None:
                self._parent._inner = False
            else:
                self._database._release(session)

    async def _end_savepoint(self, session: Session, commit: bool) -> None:
        level = f"level_{self._depth}"
        if commit:
            try:
                await session.command(f"RELEASE {level}")
                return
            except Error:
                with suppress(Error):
                    await session.command(f"ROLLBACK TO {level}; RELEASE {level}")
                raise
        await session.command(f"ROLLBACK TO {level}; RELEASE {level}")


async def _commit(session: Session) -> None:
    try:
        status = await session.connection.execute("COMMIT")
    except asyncpg.PostgresConnectionError as error:
        raise _unknown(session) from error
    except DRIVER_ERRORS as error:
        if isinstance(error, (OSError, asyncpg.InterfaceError)):
            raise _unknown(session) from error
        raise explain(error, "COMMIT", session.place) from error
    if status == "ROLLBACK":
        raise TransactionError("the transaction was not committed: one of its statements had failed")


def _unknown(session: Session) -> TransactionError:
    return TransactionError(
        f"{session.place}: the connection was lost during COMMIT: it is unknown whether the transaction was committed"
    )
