"""The part of a database that knows of tiers: policies, flushes, snapshots, analysis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ..errors import Conflict, InvalidInput
from ..values import seconds
from .overlay.adopting import Adopting
from .overlay.analytics import analyze
from .overlay.calling import Called
from .overlay.expiry import expire
from .overlay.flush import Flushed, lease
from .overlay.flusher import flushed
from .overlay.manage import TierSnapshot, TierStatus, policy_of, snapshots, status, tier, untier
from .session import Session
from .statements import AsyncStatements, check_sql


class TableTiering(AsyncStatements):
    """The part of a database that knows of tiers."""

    _adopting: Adopting | None

    def _beside(self) -> Path | None:
        """Where bases are that have no location: beside the data of an embedded server."""
        raise AssertionError("a database says what it is of")

    async def _look(self, session: Session) -> None:
        """See which tables are tiered, and to those that are to be."""
        if self._adopting is not None:
            await self._adopting.look(session)
        await self._tiers.load(session)

    async def tier(
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
        batch_rows: int = 200_000,
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
        policy = policy_of(
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
        async with self._using() as session:
            await tier(session, table, location, policy, self._beside())
            await self._tiers.load(session)

    async def _call(self, call: Called, params: tuple[Any, ...]) -> None:
        async with self._using() as session:
            given = await call.values(session, params)
        await (self.tier(**given) if call.method == "tier" else self.untier(**given))

    async def untier(self, table: str) -> int:
        """Bring every row back to the heap and forget the policy; how many came back. The base's files stay where they are."""
        async with self._using() as session:
            await self._tiers.load(session)
            count = await untier(session, self._tiers.one(table))
            await self._tiers.load(session)
        return count

    async def flush(self, table: str | None = None) -> Flushed:
        """Move what has cooled, of one table or all; nothing of a table that another process flushes at this moment."""
        async with self._using() as session:
            await self._look(session)
            return await flushed(session, self._tiers.each() if table is None else [self._tiers.one(table)])

    async def tiers(self) -> list[TierStatus]:
        """The tiered tables: rows that are hot, due to move and in the base, its size, last flush, last error."""
        async with self._using() as session:
            await self._tiers.load(session)
            return [await status(session, t) for t in self._tiers.each()]

    async def snapshots(self, table: str) -> list[TierSnapshot]:
        """The versions of a tiered table's base that can still be read, the newest first."""
        async with self._using() as session:
            await self._tiers.load(session)
            return await snapshots(session, self._tiers.one(table))

    async def expire_snapshots(self, table: str, *, older_than: float | timedelta = 7 * 86400, keep: int = 10) -> int:
        """Forget versions older than so many seconds, but for the last ``keep``, and delete the files that none names; how
        many. The flusher does so every day. Files younger than an hour stay: somebody may be reading them."""
        age = timedelta(seconds=seconds(older_than, "older_than", zero=True))
        if type(keep) is not int or keep < 1:
            raise InvalidInput(f"keep={keep!r}: expected an integer >= 1")
        async with self._using() as session:
            await self._tiers.load(session)
            tiered = self._tiers.one(table)
            async with lease(session, tiered) as mine:
                if not mine:
                    raise Conflict(f"{table}: another process changes its base at this moment: try again")
                return await expire(session, tiered, age, keep)

    async def analyze(self, sql: str, *params: Any, timeout: float | timedelta | None = None) -> Any:
        """The rows of a query in DuckDB's SQL as a pyarrow table: for scans over many old rows (``howdah[analytics]``).

        The tables are those of Postgres, tiered or not, all of one moment, archived rows included. Base files are read where
        they are; hot rows and whole tables that are not tiered are copied for it, so these should not be large. JSON, uuid,
        time and vector columns have DuckDB's types, ``numeric`` without a scale is ``DOUBLE``, others are text. Parameters
        are ``$1``, ``$2``, …
        """
        text, limit = check_sql(sql), self._limit(timeout)
        await self._begun()
        async with self._using(block=True, repeatable=True) as session:
            await self._tiers.load(session)
            return await analyze(session, self._tiers, text, params, limit)
