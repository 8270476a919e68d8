"""Plain SQL for blocking callers: ``Database`` and its transactions, run on an event loop in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from ..database.database import PATIENCE, AsyncDatabase
from ..database.overlay.manage import Flushed, TierStatus
from ..database.rows import Checkpointed, DatabaseStatus, Executed, Notification, Row, Rows
from ..database.statements import CHUNK, Duration, Statements
from ..database.transaction import AsyncSqlTransaction, Isolation
from ..errors import Conflict
from .runner import Portal, Runner, iterate

T = TypeVar("T")


class _Statements:
    """Statements on a database or in a transaction."""

    _async: Statements
    _run: Runner

    def query(self, sql: str, *params: Any, timeout: Duration | None = None, exact: bool = False) -> Rows:
        """Run one statement with parameters ``$1``, ``$2``, …; its rows, with ``.columns`` and ``.affected``.

        Parameters have the statement's own types: lists for arrays, any JSON value for ``json`` and ``jsonb``, lists or
        arrays for vectors. Several statements at once are allowed without parameters; the rows are the last one's.
        ``timeout`` (seconds) cancels it on the server; ``exact=True`` uses no vector index. Raises a ``QueryError`` with
        SQLSTATE and position, ``QueryTimeout``, or ``InvalidInput`` for parameters that do not fit.
        """
        return self._run(self._async.query(sql, *params, timeout=timeout, exact=exact))

    def execute(self, script: str, *, timeout: Duration | None = None) -> Executed:
        """Run a script of statements without rows: all or nothing, unless it holds its own transactions."""
        return self._run(self._async.execute(script, timeout=timeout))

    def stream(self, sql: str, *params: Any, chunk: int = CHUNK, timeout: Duration | None = None) -> Iterator[Row]:
        """The rows of a statement, fetched ``chunk`` at a time: bounded memory, whatever there is. All from one snapshot."""
        return iterate(self._run, self._async.stream(sql, *params, chunk=chunk, timeout=timeout))

    def copy_in(
        self,
        table: str,
        source: Any,
        *,
        columns: Sequence[str] | None = None,
        format: Literal["csv", "text", "binary"] = "csv",
        header: bool = False,
        delimiter: str | None = None,
        null: str | None = None,
        timeout: Duration | None = None,
    ) -> int:
        """Load rows in bulk (``COPY``), all or none; how many.

        ``source`` is a path, a file, bytes or an iterable of bytes in the given ``format``; or rows: an iterable of tuples
        in the order of ``columns``, or a pyarrow table, batch or reader.
        """
        return self._run(
            self._async.copy_in(table, source, columns=columns, format=format, header=header, delimiter=delimiter,
                                null=null, timeout=timeout)
        )  # fmt: skip

    def copy_out(
        self,
        sql: str,
        target: Any,
        *params: Any,
        format: Literal["csv", "text", "binary"] = "csv",
        header: bool = False,
        delimiter: str | None = None,
        null: str | None = None,
        timeout: Duration | None = None,
    ) -> int:
        """Write the rows of a query, or of the table so named, to a path, a file, or a function of bytes; how many."""
        return self._run(
            self._async.copy_out(sql, target, *params, format=format, header=header, delimiter=delimiter, null=null,
                                 timeout=timeout)
        )  # fmt: skip

    def arrow(self, sql: str, *params: Any, timeout: Duration | None = None) -> Any:
        """The rows of a query as a pyarrow table, with the types of the query's columns (``howdah[tiering]``)."""
        return self._run(self._async.arrow(sql, *params, timeout=timeout))


class SqlTransaction(_Statements):
    """``with db.transaction() as tx``: commits at the end, rolls back on any exception; ``tx.transaction()`` is a savepoint."""

    def __init__(self, inner: AsyncSqlTransaction, run: Runner) -> None:
        self._async: AsyncSqlTransaction = inner
        self._run = run

    def __enter__(self) -> Self:
        self._run(self._async.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._async.__aexit__(kind, error, trace))

    def transaction(self) -> SqlTransaction:
        """A savepoint: what its block does can be undone by itself. This transaction waits until it ends."""
        return SqlTransaction(self._async.transaction(), self._run)

    def rollback(self) -> None:
        """Undo everything now; the block goes on, its statements are refused."""
        self._run(self._async.rollback())


class Database(_Statements):
    """SQL on Postgres. ``Database.open(url)`` or ``store.database``; connects on first use, or by ``start()``."""

    def __init__(self, inner: AsyncDatabase, run: Runner) -> None:
        self._async: AsyncDatabase = inner
        self._run = run
        self._own = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        timeout: float | timedelta | None = None,
        pool_size: int = 10,
        extensions: tuple[str, ...] = ("vector",),
        on_notice: Callable[[str], None] | None = None,
    ) -> Self:
        """The database of ``pg:./data`` or ``postgresql://…``. Nothing is connected yet.

        ``timeout`` (seconds) is every statement's, if it names no other; ``pool_size`` how many connections at most;
        ``extensions`` are created if the server has them; ``on_notice(text)`` is told what the server remarks.
        """
        inner = AsyncDatabase.open(
            url, timeout=timeout, pool_size=pool_size, extensions=extensions, on_notice=on_notice
        )
        made = cls(inner, Portal())
        made._own = True
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Connect: an embedded server is started. ``StartupError`` when it fails, and the next call tries again."""
        self._run(self._async.start())

    def transaction(self, *, isolation: Isolation = "read committed", readonly: bool = False) -> SqlTransaction:
        """A transaction: ``with db.transaction() as tx``; inside it call ``tx.query`` and the rest."""
        return SqlTransaction(self._async.transaction(isolation=isolation, readonly=readonly), self._run)

    def transact(
        self, fn: Callable[[SqlTransaction], T], *, retries: int = 3, isolation: Isolation = "read committed"
    ) -> T:
        """Run ``fn(tx)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(retries + 1):
            try:
                with self.transaction(isolation=isolation) as tx:
                    return fn(tx)
            except Conflict:
                if attempt == retries:
                    raise
        raise AssertionError("the loop returns or raises")

    def tier(
        self,
        table: str,
        *,
        location: str,
        hot_for: Duration = 300,
        flush_rows: int = 1000,
        flush_every: Duration = 60,
        time_column: str | None = None,
    ) -> None:
        """Let old rows of a table move to an Iceberg table in ``location``, an empty directory: any SQL still sees all of them.

        A row moves ``hot_for`` seconds after its ``time_column`` (a date or timestamp), or after its last change where the
        server keeps commit times, when ``flush`` runs; ``flush_rows`` and ``flush_every`` say when a watcher flushes. Said
        again, it changes the policy. Raises ``TieringRefused`` with the reason for a table that cannot be tiered.
        """
        self._run(
            self._async.tier(table, location=location, hot_for=hot_for, flush_rows=flush_rows, flush_every=flush_every,
                             time_column=time_column)
        )  # fmt: skip

    def untier(self, table: str) -> int:
        """Bring every row back to the heap and forget the policy; how many came back. The base's files stay where they are."""
        return self._run(self._async.untier(table))

    def flush(self, table: str | None = None) -> Flushed:
        """Move what has cooled, of one table or all; nothing of a table that another process flushes at this moment."""
        return self._run(self._async.flush(table))

    def tiers(self) -> list[TierStatus]:
        """The tiered tables: rows that are hot, due to move and in the base, last flush, last error."""
        return self._run(self._async.tiers())

    def listen(self, channel: str) -> Iterator[Notification]:
        """Messages of a channel from now on, on a connection of its own: ``for note in db.listen("news")``."""
        return iterate(self._run, self._async.listen(channel))

    def checkpoint(self) -> Checkpointed:
        """Write everything in memory to the server's files. Never needed for durability: a commit is on disk already."""
        return self._run(self._async.checkpoint())

    def status(self) -> DatabaseStatus:
        """Where the data is and how much there is."""
        return self._run(self._async.status())

    def backup(self, path: Any) -> int:
        """Write a consistent dump of everything (``pg_dump``'s custom format) to a file; its size in bytes."""
        return self._run(self._async.backup(path))

    def restore(self, path: Any) -> None:
        """Read a dump into this database, which must not hold what is in it; all or nothing."""
        self._run(self._async.restore(path))

    def close(self, *, timeout: float | timedelta = PATIENCE) -> None:
        """Wait ``timeout`` seconds for calls under way, then close every connection. Calls after that raise ``Closed``."""
        if not self._run.closed:
            self._run(self._async.close(timeout=timeout))
            if self._own:
                self._run.close()
