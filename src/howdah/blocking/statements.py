"""What a database and an open transaction have in common: running statements, streams and bulk copies. Blocking twin of ``howdah.database.statements``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

from ..database.overlay.manage import Tier
from ..database.rows import Executed, QueryPlan, Row, Rows
from ..database.statements import CHUNK, AsyncStatements, Duration
from .runner import Runner, iterate


class Statements:
    """Statements over a session that ``_using`` lends."""

    def __init__(self, inner: AsyncStatements, run: Runner) -> None:
        self._async = inner
        self._run = run

    def query(
        self,
        sql: str,
        *params: Any,
        timeout: Duration | None = None,
        exact: bool = False,
        tier: Tier | None = None,
        as_of: datetime | int | None = None,
    ) -> Rows:
        """Run one statement with parameters ``$1``, ``$2``, …; its rows, with ``.columns`` and ``.affected``.

        Parameters have the statement's own types: lists for arrays, any JSON value for ``json`` and ``jsonb``, lists or
        arrays for vectors. Several statements at once are allowed without parameters; the rows are the last one's.
        ``timeout`` (seconds) cancels it on the server; ``exact=True`` uses no vector index. Of tiered tables ``tier`` reads
        the ``"hot"``, ``"warm"`` or ``"cold"`` rows alone, or ``"all"`` (default: hot and warm), and ``as_of`` the base as
        of a moment or snapshot. Raises a ``QueryError`` with SQLSTATE and position, ``QueryTimeout``, or ``InvalidInput``
        for parameters that do not fit.
        """
        return self._run(self._async.query(sql, *params, timeout=timeout, exact=exact, tier=tier, as_of=as_of))

    def plan(self, sql: str, *params: Any, tier: Tier | None = None, as_of: datetime | int | None = None) -> QueryPlan:
        """What ``query`` would do for a statement: the tiers and files that it would open of each tiered table, and by which
        conditions. The statement is not run; ``EXPLAIN`` says what Postgres would do."""
        return self._run(self._async.plan(sql, *params, tier=tier, as_of=as_of))

    def execute(self, script: str, *, timeout: Duration | None = None) -> Executed:
        """Run a script of statements without rows: all or nothing, unless it holds its own transactions."""
        return self._run(self._async.execute(script, timeout=timeout))

    def stream(
        self,
        sql: str,
        *params: Any,
        chunk: int = CHUNK,
        timeout: Duration | None = None,
        tier: Tier | None = None,
        as_of: datetime | int | None = None,
    ) -> Iterator[Row]:
        """The rows of a statement, fetched ``chunk`` at a time: bounded memory, whatever there is. All from one snapshot. ``tier``
        and ``as_of`` are as for ``query``; a warning in the log says if rows were left out."""
        return iterate(
            self._run,
            self._async.stream(sql, *params, chunk=chunk, timeout=timeout, tier=tier, as_of=as_of),
            ahead=True,
        )

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

        ``source`` is a path, a file, bytes or an (async) iterable of bytes in the given ``format``; or rows: an iterable of
        tuples in the order of ``columns``, or a pyarrow table, batch or reader.
        """
        return self._run(
            self._async.copy_in(
                table,
                source,
                columns=columns,
                format=format,
                header=header,
                delimiter=delimiter,
                null=null,
                timeout=timeout,
            )
        )

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
        tier: Tier | None = None,
    ) -> int:
        """Write the rows of a query, or of the table so named, to a path, a file, or a function of bytes; how many.

        A table is written whole, its archived rows, too, unless ``tier`` says which; of a query archived rows are left out, as
        ``query`` does, with a warning in the log if there could be some."""
        return self._run(
            self._async.copy_out(
                sql,
                target,
                *params,
                format=format,
                header=header,
                delimiter=delimiter,
                null=null,
                timeout=timeout,
                tier=tier,
            )
        )

    def arrow(self, sql: str, *params: Any, timeout: Duration | None = None, tier: Tier | None = None) -> Any:
        """The rows of a query as a pyarrow table, with the types of the query's columns (``howdah[tiering]``). ``tier`` is as for
        ``query``; a warning in the log says if rows were left out."""
        return self._run(self._async.arrow(sql, *params, timeout=timeout, tier=tier))
