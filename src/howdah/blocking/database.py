"""``Database``: plain SQL on Postgres, a server's or the embedded one's. Blocking twin of ``howdah.database.database``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self

from ..database.database import PATIENCE, AsyncDatabase, T
from ..database.means import CACHE, MEMORY
from ..database.overlay.adopting import Tiering
from ..database.overlay.flush import Flushed
from ..database.overlay.manage import (
    TierSnapshot,
    TierStatus,
)
from ..database.rows import Checkpointed, DatabaseStatus, Metric, Notification, Rows, VectorIndex, VectorStats
from ..database.transaction import Isolation
from ..errors import Conflict
from ..values import check_retries
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
        """A transaction: ``with db.transaction() as tx``; inside it call ``tx.query`` and the rest."""
        return SqlTransaction(self._async.transaction(isolation=isolation, readonly=readonly), self._run)

    @property
    def flushed(self) -> Flushed:
        """What the flusher of this database (``open(…, flusher=True)``) has moved."""
        return self._async.flushed

    def listen(self, channel: str) -> Iterator[Notification]:
        """Messages of a channel from now on, on a connection of its own: ``for note in db.listen("news")``."""
        return iterate(self._run, self._async.listen(channel))

    def checkpoint(self) -> Checkpointed:
        """Flush the tables whose policy says so, then write everything in memory to the server's files. Never needed for
        durability: a commit is on disk already."""
        return self._run(self._async.checkpoint())

    def status(self) -> DatabaseStatus:
        """Where the data is and how much there is."""
        return self._run(self._async.status())

    def backup(self, path: str | os.PathLike[str]) -> int:
        """Write a consistent dump of everything to a file (``pg_dump``'s custom format; a tar file of it and of the rows on object
        storage, where tables are tiered); its size in bytes."""
        return self._run(self._async.backup(path))

    def restore(self, path: str | os.PathLike[str], *, location: str | os.PathLike[str] | None = None) -> None:
        """Read a backup into this database, which must not hold what is in it; all or nothing.

        Tiered tables get bases of their own: each where its base was, or in ``location/schema.table``. These places must be
        empty: two databases never share a base. What was archived is so again after the next upkeep; foreign keys of
        tiered tables hold for new rows.
        """
        return self._run(self._async.restore(path, location=location))

    def tier(
        self,
        table: str,
        *,
        location: str | os.PathLike[str] | None = None,
        hot_for: float | timedelta = 300,
        flush_rows: int = 1000,
        flush_every: float | timedelta = 60,
        time_column: str | None = None,
        partition_by: str | Sequence[str] | None = None,
        sort_by: str | Sequence[str] | None = None,
        archive_after: float | timedelta | None = None,
        archive_location: str | os.PathLike[str] | None = None,
        allow_hot_only: bool = False,
        foreign_keys: Literal["hot only"] | None = None,
        retries: int = 3,
        retry_delay: float | timedelta = 1,
        batch_rows: int = 200000,
    ) -> None:
        """Let old rows of a table move to an Iceberg table in ``location``: any SQL still sees all of them.

        ``location`` is an empty directory, or ``s3://bucket/prefix`` (credentials from the usual AWS variables); of an embedded
        database, without one, a directory beside the data. A row moves
        ``hot_for`` seconds after its ``time_column`` (a date or timestamp), or after its last change where the server keeps
        commit times, when ``flush`` runs; ``flush_rows`` and ``flush_every`` say when the flusher does. ``partition_by``
        names columns or ``day(column)``, ``bucket(16, column)`` and the like (default: the day of the time column);
        ``sort_by`` the order of rows in a file (default: the key). Files whose rows are all older than ``archive_after``
        seconds move to ``archive_location`` (``location`` with ``.archive`` behind it, if none is given): such rows are cold, and read by ``query(…, tier="all")``. Other clients, views'
        and functions' queries that Howdah does not see are refused, unless ``allow_hot_only`` lets them read the hot rows
        alone. A table with foreign keys, or to which some refer, needs ``foreign_keys="hot only"``: checks and actions see no
        row on object storage, so that a key there cannot be referred to anew, not by a changed row that comes back either, and a
        cascade leaves such rows. An upload that fails is tried ``retries`` times more, after ``retry_delay`` seconds, then
        twice as many, and so on; at most ``batch_rows`` rows, fewer wide ones, move in one commit. Said again, it changes
        the policy. Raises ``TieringRefused`` with the reason for a table that cannot be tiered.
        """
        return self._run(
            self._async.tier(
                table,
                location=location,
                hot_for=hot_for,
                flush_rows=flush_rows,
                flush_every=flush_every,
                time_column=time_column,
                partition_by=partition_by,
                sort_by=sort_by,
                archive_after=archive_after,
                archive_location=archive_location,
                allow_hot_only=allow_hot_only,
                foreign_keys=foreign_keys,
                retries=retries,
                retry_delay=retry_delay,
                batch_rows=batch_rows,
            )
        )

    def untier(self, table: str) -> int:
        """Bring every row back to the heap and forget the policy; how many came back. The base's files stay where they are."""
        return self._run(self._async.untier(table))

    def flush(self, table: str | None = None) -> Flushed:
        """Move what has cooled, of one table or all; nothing of a table that another process flushes at this moment."""
        return self._run(self._async.flush(table))

    def tiers(self) -> list[TierStatus]:
        """The tiered tables: rows that are hot, due to move and in the base, its size, last flush, last error."""
        return self._run(self._async.tiers())

    def snapshots(self, table: str) -> list[TierSnapshot]:
        """The versions of a tiered table's base that can still be read, the newest first."""
        return self._run(self._async.snapshots(table))

    def expire_snapshots(self, table: str, *, older_than: float | timedelta = 7 * 86400, keep: int = 10) -> int:
        """Forget versions older than so many seconds, but for the last ``keep``, and delete the files that none names; how
        many. The flusher does so every day. Files younger than an hour stay: somebody may be reading them."""
        return self._run(self._async.expire_snapshots(table, older_than=older_than, keep=keep))

    def analyze(self, sql: str, *params: Any, timeout: float | timedelta | None = None) -> Any:
        """The rows of a query in DuckDB's SQL as a pyarrow table: for scans over many old rows (``howdah[analytics]``).

        The tables are those of Postgres, tiered or not, all of one moment, archived rows included. Base files are read where
        they are; hot rows and whole tables that are not tiered are copied for it, so these should not be large. JSON, uuid,
        time and vector columns have DuckDB's types, ``numeric`` without a scale is ``DOUBLE``, others are text. Parameters
        are ``$1``, ``$2``, …
        """
        return self._run(self._async.analyze(sql, *params, timeout=timeout))

    def vector_index(
        self,
        table: str,
        column: str,
        *,
        metric: Metric = "cosine",
        method: Literal["hnsw", "ivfflat"] = "hnsw",
        quantize: Literal["half", "binary"] | None = None,
        rerank: bool = True,
        m: int = 16,
        ef_construction: int = 64,
        lists: int = 100,
    ) -> VectorIndex:
        """Index a column of vectors for nearest neighbours, as ``CREATE INDEX`` would.

        ``quantize`` keeps smaller copies: ``"half"`` (2 bytes a dimension) or ``"binary"`` (a bit each); with ``rerank``
        ``vector_search`` ranks what it finds there by the originals. ``m`` and ``ef_construction`` are hnsw's, ``lists``
        ivfflat's. Raises ``InvalidInput`` for more dimensions than such an index holds, naming the one that does.
        """
        return self._run(
            self._async.vector_index(
                table,
                column,
                metric=metric,
                method=method,
                quantize=quantize,
                rerank=rerank,
                m=m,
                ef_construction=ef_construction,
                lists=lists,
            )
        )

    def vector_search(
        self,
        table: str,
        column: str,
        query: Any,
        *,
        limit: int = 10,
        where: str | None = None,
        params: Sequence[Any] = (),
        columns: Sequence[str] | None = None,
        metric: Metric | None = None,
        exact: bool = False,
    ) -> Rows:
        """The ``limit`` rows whose vectors are nearest to ``query``, with their ``distance``, the nearest first.

        ``where`` is a condition in SQL with parameters ``$1``, ``$2``, … from ``params``; ``columns`` are those to return
        (default: all). The index is chosen by Postgres; a smaller one (``vector_index(quantize=…)``) is asked for more than
        ``limit`` rows, which are ranked by their originals. ``metric`` is that of the column's index (default: the first's; with
        no index say which); ``exact=True`` uses no index. Rows without a vector are not found. The distance of ``"ip"`` is the
        negative inner product. As many rows come as match, up to ``limit``.
        """
        return self._run(
            self._async.vector_search(
                table,
                column,
                query,
                limit=limit,
                where=where,
                params=params,
                columns=columns,
                metric=metric,
                exact=exact,
            )
        )

    def vector_stats(self, table: str) -> list[VectorStats]:
        """What the vectors of a table take, a column each, in the table's order; reads the whole table."""
        return self._run(self._async.vector_stats(table))

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
    ) -> Self:
        """The database of ``pg:./data`` or ``postgresql://…``. Nothing is connected yet.

        ``timeout`` (seconds) is every statement's, if it names no other; ``pool_size`` how many connections at most;
        ``extensions`` are created if the server has them; ``on_notice(text)`` is told what the server remarks; with
        ``flusher`` this process moves the rows of tiered tables in the background, as each table's policy says; ``tiering``
        has policies for many tables. ``memory_mb`` (MiB) bounds the pieces in which flushes, merges and reads of bases go;
        the libraries for these take about 100 MiB of their own. Of files in buckets, those up to a sixteenth of ``cache_mb`` are kept
        on disk once they were read, in ``cache_dir`` (default: your cache folder); 0 keeps none.
        """
        return cls(
            AsyncDatabase.open(
                url,
                timeout=timeout,
                pool_size=pool_size,
                extensions=extensions,
                on_notice=on_notice,
                flusher=flusher,
                tiering=tiering,
                memory_mb=memory_mb,
                cache_mb=cache_mb,
                cache_dir=cache_dir,
            ),
            Portal(),
        )

    def transact(
        self, fn: Callable[[SqlTransaction], T], *, retries: int = 3, isolation: Isolation = "read committed"
    ) -> T:
        """Run ``fn(tx)`` in a transaction and return its result; again, up to ``retries`` times, after a conflict."""
        for attempt in range(check_retries(retries) + 1):
            try:
                with self.transaction(isolation=isolation) as tx:
                    return fn(tx)
            except Conflict:
                if attempt == retries:
                    raise
                time.sleep(0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def close(self, *, timeout: float | timedelta = PATIENCE) -> None:
        """Wait ``timeout`` seconds for calls under way, then close every connection. Calls after that raise ``Closed``."""
        if not self._run.closed:
            self._run(self._async.close(timeout=timeout))
            if not self._async.lent:
                self._run.close()
