"""One connection that runs statements: prepared once each, errors in our words, results with their columns and counts."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any, Final

import asyncpg
import postgast

from ..errors import Error, TypeMismatch
from .failures import DRIVER_ERRORS, explain
from .means import DEFAULT, Means
from .rows import Executed, Row, Rows

STALE: Final = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
    asyncpg.InvalidSQLStatementNameError,
)
"""A prepared statement that does not fit the tables any more, or is gone."""
_BEGINS: Final = r"(?:^|;)(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*+"
"""Where a statement begins."""
_MARK: Final = re.compile(
    rf"{_BEGINS}(?:SET\s(?!\s*(?:LOCAL|TRANSACTION|CONSTRAINTS)\b)|RESET\b|DISCARD\b|LISTEN\b"
    r"|LOAD\b|PREPARE\b|DO\b)|(?:INTO|CREATE|REPLACE)\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP|WITH\s+HOLD|pg_temp|set_config\s*\("
    r"|pg_(?:try_)?advisory_lock",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that leave something on their connection."""
_SHAPES: Final = re.compile(
    rf"{_BEGINS}(?:ALTER|DROP|DO|CALL|CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:LOCAL|GLOBAL|TEMP|TEMPORARY|RECURSIVE|CONSTRAINT)\s+)*(?:VIEW|TRIGGER))\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that change the shape of what has a name."""
KEPT: Final = 300
"""Prepared statements that a connection keeps."""
_MANY: Final = "cannot insert multiple commands into a prepared statement"


def split(script: str) -> list[str]:
    """The statements of a script; the script itself where it cannot be read: the server says what is wrong with it."""
    try:
        return [s for s in postgast.split(script) if s.strip()]
    except postgast.PgQueryError:
        return [script]


class Session:
    """A connection and its prepared statements. Used by one task at a time."""

    def __init__(self, connection: Any, place: str, means: Means = DEFAULT) -> None:
        self.connection = connection
        self.place = place
        self.means = means
        self._statements: OrderedDict[str, Any] = OrderedDict()
        self.marked = False
        """Whether a caller's statement may have left something on the connection, such as a setting."""
        self.loose = False
        """Whether a call was cut short, maybe within what it had prepared: the server still waits there, in a transaction."""
        self.changes = 0
        """How many statements may have changed the shape of a table."""
        self.noted = 0
        """How many of these its owner knows of."""
        self.epoch = 0
        """Until which change of shapes, of all that its owner counts, what is kept here is good."""

    # What a pool asks of a connection.

    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return bool(self.connection.is_closed())

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self.connection.is_in_transaction())

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection."""
        self._statements.clear()
        await self.connection.close(timeout=timeout)

    def terminate(self) -> None:
        """Drop the connection."""
        self.connection.terminate()

    # Statements --------------------------------------------------------------------------------------------------

    def heed(self, sql: str) -> None:
        """Note what a caller's statement may leave on the connection. Our own leave nothing that another call meets."""
        if _marks(sql):
            self.marked = True

    async def forget(self, epoch: int) -> None:
        """Keep nothing that was made before tables changed their shapes: no prepared statement, no temporary table of ours."""
        self._statements.clear()
        self.epoch = epoch
        await self.command("DISCARD TEMP")

    def _shaped(self) -> None:
        self._statements.clear()
        self.changes += 1

    async def _prepared(self, sql: str, timeout: float | None) -> Any:
        found = self._statements.get(sql)
        if found is None:
            found = self._statements[sql] = await self.connection.prepare(sql, timeout=timeout)
            if len(self._statements) > KEPT:
                self._statements.popitem(last=False)
        else:
            self._statements.move_to_end(sql)
        return found

    async def query(self, sql: str, params: Sequence[Any], timeout: float | None) -> Rows:
        """Run one statement, or without parameters several, of which the last gives the rows."""
        began = time.perf_counter()
        try:
            if (statement := self._statements.get(sql)) is None:
                statement = await self._prepared(sql, timeout)
            else:
                self._statements.move_to_end(sql)
            try:
                rows = await statement.fetch(*params, timeout=timeout)
            except STALE:
                self._statements.clear()
                if self.is_in_transaction():
                    raise
                statement = await self._prepared(sql, timeout)
                rows = await statement.fetch(*params, timeout=timeout)
        except asyncio.CancelledError:
            self.loose = True
            raise
        except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
            if isinstance(error, asyncpg.PostgresSyntaxError) and _MANY in str(error) and not params:
                return await self._several(sql, timeout)
            await self._synced(error)
            raise self._explained(error, sql, timeout) from error
        spent = time.perf_counter() - began
        if shapes(sql):
            self._shaped()
        # A row knows its columns; the statement, while its connection is there.
        names = () if rows else tuple(a.name for a in statement.get_attributes())
        return Rows(rows, lambda: tuple(rows[0].keys()) if rows else names, statement.get_statusmsg(), spent)

    async def _synced(self, error: BaseException) -> None:
        """After an error of the driver's own, such as for a parameter: the server still waits within what it has prepared, and a
        transaction that began there would not be the first thing."""
        # Only what the server has said has a severity.
        told = isinstance(error, TimeoutError) or getattr(error, "severity", None) is not None
        if not told and not self.is_closed():
            with suppress(*DRIVER_ERRORS):
                await self.connection.execute("SELECT 1")

    async def checked(self, sql: str) -> None:
        """Let the server say what is wrong with a statement, unless it has been asked."""
        if sql not in self._statements:
            await self.columns(sql)

    async def columns(self, sql: str) -> list[tuple[str, str]]:
        """Name and type of the columns that a statement gives, without running it."""
        try:
            return [(a.name, a.type.name) for a in (await self._prepared(sql, None)).get_attributes()]
        except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
            raise self._explained(error, sql, None) from error

    async def _several(self, script: str, timeout: float | None) -> Rows:
        """Run statements one by one in a transaction, unless one is open or they hold their own."""
        parts = split(script)
        own = self.is_in_transaction() or any(controls(p) for p in parts)
        async with nullcontext() if own else self.transaction():
            for part in parts:
                rows = await self.query(part, (), timeout)
        return rows

    @asynccontextmanager
    async def transaction(self, begin: str = "BEGIN") -> AsyncIterator[None]:
        """A transaction of ours: committed at the end of the block, rolled back on any exception."""
        await self.command(begin)
        try:
            yield
        except BaseException:
            if not self.is_closed():
                with suppress(Error):
                    await self.command("ROLLBACK")
            raise
        await self.command("COMMIT")

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part of a transaction that can fail by itself: what it did is undone then, and the error raised. One that is cut short
        ends the transaction."""
        await self.command("SAVEPOINT howdah")
        try:
            yield
        except Error:
            if not self.is_closed():
                await self.command("ROLLBACK TO howdah; RELEASE howdah")
            raise
        await self.command("RELEASE howdah")

    async def execute(self, script: str, timeout: float | None) -> Executed:
        """Run a script; the server takes it as one transaction unless it holds its own."""
        try:
            await self.connection.execute(script, timeout=timeout)
        except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
            raise self._explained(error, script, timeout) from error
        if shapes(script):
            self._shaped()
        return Executed(len(split(script)))

    async def command(self, sql: str) -> None:
        """Run a statement of ours. One that is cut short may have been done: the connection is not used again."""
        try:
            await self.connection.execute(sql)
        except asyncio.CancelledError:
            self.terminate()
            raise
        except DRIVER_ERRORS as error:
            raise self._explained(error, sql, None) from error

    async def stream(self, sql: str, params: Sequence[Any], chunk: int, timeout: float | None) -> AsyncIterator[Row]:
        """Rows of a statement, ``chunk`` at a time; a transaction is open."""
        try:
            statement = await self._prepared(sql, timeout)
            async for row in statement.cursor(*params, prefetch=chunk, timeout=timeout):
                yield row
        except (*DRIVER_ERRORS, TimeoutError, ValueError, OverflowError) as error:
            if isinstance(error, STALE):
                self._statements.clear()
            raise self._explained(error, sql, timeout) from error

    def _explained(self, error: BaseException, sql: str, timeout: float | None) -> Exception:
        if isinstance(error, asyncpg.InternalClientError):
            self.terminate()
        if isinstance(error, (ValueError, OverflowError)) and not isinstance(error, asyncpg.InterfaceError):
            return TypeMismatch(f"the result has a value that Python has not: {error}; cast it to text", sql=sql)
        return explain(error, sql, self.place, timeout)


@lru_cache(1000)
def _marks(sql: str) -> bool:
    return _MARK.search(sql) is not None


@lru_cache(1000)
def shapes(sql: str) -> bool:
    """Whether a statement, or one of a script, changes or drops what has a name, or makes a view, or may do so."""
    return _SHAPES.search(sql) is not None


def controls(statement: str) -> bool:
    """Whether a statement begins or ends a transaction, by Postgres' own parser."""
    try:
        tree = postgast.parse(statement)
    except postgast.PgQueryError:
        return False
    return any(s.stmt.WhichOneof("node") == "transaction_stmt" for s in tree.stmts)
