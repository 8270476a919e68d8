"""``Database``: plain SQL on Postgres, a server's or the embedded one's. Blocking twin of ``howdah.database.database``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from ..database.database import PATIENCE, AsyncDatabase, T
from ..database.overlay.manage import Flushed, TierStatus
from ..database.rows import Checkpointed, DatabaseStatus, Notification
from ..database.transaction import Isolation
from ..errors import Conflict
from .runner import Portal, Runner, iterate
from .sql_transaction import SqlTransaction
from .statements import Statements


class Database(Statements):
    """SQL on Postgres. ``Database.open(url)`` or ``store.database``; connects on first use, or by ``start()``."""

    def __init__(self, inner: AsyncDatabase, run: Runner) -> None:
        self._async: AsyncDatabase = inner
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._async.closed

    def start(self) -> None:
        """Connect: an embedded server is started. However many callers wait, it happens once; ``StartupError`` when it
        fails, and the next call tries again."""
        return self._run(self._async.start())

    def transaction(self, *, isolation: Isolation = "read committed", readonly: bool = False) -> SqlTransaction:
        """A transaction: ``async with db.transaction() as tx``; inside it call ``tx.query`` and the rest."""
        return SqlTransaction(self._async.transaction(isolation=isolation, readonly=readonly), self._run)

    def tier(
        self,
        table: str,
        *,
        location: str,
        hot_for: float | timedelta = 300,
        flush_rows: int = 1000,
        flush_every: float | timedelta = 60,
        time_column: str | None = None,
    ) -> None:
        """Let old rows of a table move to an Iceberg table in ``location``, an empty directory: any SQL still sees all of them.

        A row moves ``hot_for`` seconds after its ``time_column`` (a date or timestamp), or after its last change where the
        server keeps commit times, when ``flush`` runs; ``flush_rows`` and ``flush_every`` say when a watcher flushes. Said
        again, it changes the policy. Raises ``TieringRefused`` with the reason for a table that cannot be tiered.
        """
        return self._run(
            self._async.tier(
                table,
                location=location,
                hot_for=hot_for,
                flush_rows=flush_rows,
                flush_every=flush_every,
                time_column=time_column,
            )
        )

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
        """Messages of a channel from now on, on a connection of its own: ``async for note in db.listen("news")``."""
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
        return self._run(self._async.restore(path))

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
        return cls(
            AsyncDatabase.open(url, timeout=timeout, pool_size=pool_size, extensions=extensions, on_notice=on_notice),
            Portal(),
        )

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

    def close(self, *, timeout: float | timedelta = PATIENCE) -> None:
        """Wait ``timeout`` seconds for calls under way, then close every connection. Calls after that raise ``Closed``."""
        if not self._run.closed:
            self._run(self._async.close(timeout=timeout))
            if not self._async.lent:
                self._run.close()
