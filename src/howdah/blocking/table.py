"""``Table``, the one primitive: typed rows under a key, with criteria, pages, aggregates and search. Blocking twin of ``howdah.table``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, Literal

from .. import aggregates
from ..changes import Change
from ..criteria import Columns, Where
from ..events import Listener
from ..hits import Hits, Leg
from ..pages import Page
from ..schema import Schema
from ..search.fusion import Fusion
from ..table import AsyncTable, R
from .cached import Cached
from .changes import Changes
from .query import Query
from .runner import Runner, iterate
from .subscription import subscribed, waited


class Table(Generic[R]):
    """Rows of one type. Opened by ``store.table(…)``; made or grown in the database on first use."""

    def __init__(self, inner: AsyncTable[R], run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def name(self) -> str:
        """The table's name."""
        return self._async.name

    @property
    def c(self) -> Columns:
        """The columns, for criteria: ``t.c.age >= 18``."""
        return self._async.c

    @property
    def schema(self) -> Schema:
        """The declaration, checked."""
        return self._async.schema

    def put(self, row: R | Mapping[str, Any]) -> R:
        """Insert a row, or replace the whole row with the same key. Returns it as stored, with a generated key.

        With a version column, version 0 inserts and any other replaces the row that still has it, else ``Conflict``.
        Raises ``InvalidValue`` for a bad row and ``DuplicateKey`` when a unique index refuses it.
        """
        return self._run(self._async.put(row))

    def put_many(self, rows: Iterable[R | Mapping[str, Any]]) -> list[R]:
        """Put many rows at once, all or none; ``result[i]`` belongs to ``rows[i]``. Of equal keys the last wins."""
        return self._run(self._async.put_many(rows))

    def reencrypt(self) -> int:
        """Encrypt anew, under the keyring's current key, what is encrypted under another; how many rows. Safe to run while
        others write, and again after it was cut short."""
        return self._run(self._async.reencrypt())

    def create(self, row: R | Mapping[str, Any]) -> R | None:
        """Insert a row only if its key is free (an expired row counts as absent); ``None`` if it is not.

        Of any number of racing callers exactly one gets the row. Raises ``DuplicateKey`` for a unique index.
        """
        return self._run(self._async.create(row))

    def upsert(self, row: R | Mapping[str, Any], on: str | Sequence[str]) -> tuple[R, bool]:
        """Overwrite in place the row with the same value of the unique index ``on``, else insert.

        Returns the stored row, which keeps its primary key, and whether it was inserted. ``on`` names exactly one
        declared unique index, its columns in any order; a null among them is ``InvalidInput``.
        """
        return self._run(self._async.upsert(row, on))

    def update_one(self, where: Where, patch: Mapping[str, Any]) -> R | None:
        """Compare and set: give the first matching row in key order the values of ``patch``; the row, or ``None``.

        Of two racing calls with the same match exactly one succeeds.
        """
        return self._run(self._async.update_one(where, patch))

    def update_where(self, where: Where, patch: Mapping[str, Any]) -> int:
        """Give every matching row the values of ``patch``, in one transaction; how many there were."""
        return self._run(self._async.update_where(where, patch))

    def merge(self, row: Mapping[str, Any]) -> R:
        """Change the given columns of the row with this key and keep the others, or insert it; the row as stored.

        A version among them must be the row's, else ``Conflict``.
        """
        return self._run(self._async.merge(row))

    def delete(self, key: Any) -> bool:
        """Delete by key (or row); whether it was there."""
        return self._run(self._async.delete(key))

    def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete by keys, all in one transaction; how many were there."""
        return self._run(self._async.delete_many(keys))

    def delete_where(self, where: Where) -> int:
        """Delete every match, in one transaction; how many there were.

        Raises ``EmptyCriteria`` for none and ``UnfilteredDelete`` for criteria that exclude nothing.
        """
        return self._run(self._async.delete_where(where))

    def clear(self) -> int:
        """Delete all rows; table, indexes and bookkeeping stay. How many there were."""
        return self._run(self._async.clear())

    def drop(self) -> None:
        """Remove the table with its data and indexes."""
        return self._run(self._async.drop())

    def get(self, key: Any) -> R | None:
        """The row with this key, or ``None``."""
        return self._run(self._async.get(key))

    def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The rows found, by key value (or tuple), in the order asked."""
        return self._run(self._async.get_many(keys))

    def query(
        self,
        where: Where | None = None,
        *,
        order_by: Any = None,
        limit: int | None = None,
        offset: int = 0,
        select: Sequence[str] | None = None,
        covering: bool = False,
    ) -> Query[R]:
        """Rows that match, in order: iterate to stream them, or call ``all()`` or ``first()``.

        ``where`` is criteria or a mapping; ``order_by`` a column name, ``-name``, ``col.desc()`` or a list of them, key
        columns breaking ties; ``select`` gives dicts of just those columns; ``covering=True`` insists that an index
        serves the query alone, else ``NoCoveringIndex``. A stream reads in batches and holds no connection between.
        """
        return Query(
            self._async.query(where, order_by=order_by, limit=limit, offset=offset, select=select, covering=covering),
            self._run,
        )

    def scoped(self, **columns: Any) -> Table[R]:
        """The same table confined to rows with these values: they are written into every row and part of every filter.

        The key must contain the columns; key arguments leave them out.
        """
        return Table(self._async.scoped(**columns), self._run)

    def changes(self, where: Where | None = None, *, since: str | None = None) -> Changes[R]:
        """Committed changes of rows that match ``where`` (before or after), from every process, in commit order.

        ``for change in table.changes()`` goes on for ever; ``since`` is the ``cursor`` of an earlier change, kept for
        24 hours. A table that nobody has watched for a day pays nothing.
        """
        return Changes(self._async.changes(where, since=since), self._run)

    def subscribe(
        self, callback: Callable[[Change[R]], Any], *, where: Where | None = None, poll: float | timedelta = 1
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change from now on; the function returned ends it at once.

        A failing callback is logged. Where nothing is pushed, other processes' changes come at most ``poll`` seconds late.
        """
        return subscribed(self.changes(where=where), callback, poll)

    def cached(self, *, max_rows: int = 10000, max_age: float | timedelta = 60, preload: bool = False) -> Cached[R]:
        """This table with rows by key kept in memory: at most ``max_rows``, no older than ``max_age`` seconds, dropped when
        another process changes them. ``preload`` reads all of them at first, so that absence is known, too."""
        return Cached(self._async.cached(max_rows=max_rows, max_age=max_age, preload=preload), self._run)

    def search(
        self,
        dense: Any = None,
        *,
        sparse: Any = None,
        text: str | None = None,
        legs: Sequence[Leg] | None = None,
        limit: int | None = 10,
        where: Where | None = None,
        min_score: float | None = None,
        fusion: str | Fusion = "rrf",
        weights: Mapping[str, float] | None = None,
        exact: bool = False,
        ef: int | None = None,
        explain: bool = False,
    ) -> Hits[R]:
        """The best rows by vector, sparse vector, text, or several of them fused; filters act inside the search.

        A vector hit's score is its similarity (cosine −1 … 1), a text hit's its BM25, a fused one is in [0, 1]; ties go
        by key. Never fewer hits than exist. ``hits.plan`` tells how each leg was answered, ``explain`` each leg's share.
        Raises ``Unsupported`` for a leg the table has no data for, ``DimensionMismatch`` for a vector of another length.
        """
        return self._run(
            self._async.search(
                dense,
                sparse=sparse,
                text=text,
                legs=legs,
                limit=limit,
                where=where,
                min_score=min_score,
                fusion=fusion,
                weights=weights,
                exact=exact,
                ef=ef,
                explain=explain,
            )
        )

    def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page by keyset: right under concurrent writes. ``cursor`` is the last page's ``next_cursor``.

        Raises ``InvalidCursor`` for a cursor of another table, filter or order. ``limit=None`` gives everything.
        """
        return self._run(self._async.page(where, order_by=order_by, limit=limit, cursor=cursor))

    def pages(self, where: Where | None = None, *, order_by: Any = None, size: int = 100) -> Iterator[list[R]]:
        """Every page in turn, as lists that are never empty."""
        return iterate(self._run, self._async.pages(where, order_by=order_by, size=size))

    def count(self, where: Where | None = None) -> int:
        """How many rows match; all for ``None`` or ``{}``."""
        return self._run(self._async.count(where))

    def aggregate(
        self, where: Where | None = None, *, by: str | Sequence[str] = (), **values: aggregates.Aggregate
    ) -> list[dict[str, Any]]:
        """Aggregates by group: ``await t.aggregate(by="kind", n=count_(), total=sum_(t.c.price))``.

        One dict a group, with the group's columns and the named values, in group order; one dict without ``by``.
        """
        return self._run(self._async.aggregate(where, by=by, **values))

    def join(
        self,
        other: Any,
        on: Mapping[str, str],
        *,
        how: Literal["inner", "left"] = "inner",
        where: Where | None = None,
        right_where: Where | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[tuple[R, Any]]:
        """Pairs ``(left, right)`` of rows of this and another table of the store whose columns in ``on`` are equal.

        ``on`` maps columns of this table to columns of ``other``; nulls never match. ``how="left"`` keeps rows without a
        match, with ``None`` beside them. ``where`` filters the left rows; ``right_where`` belongs to the match, so under
        ``"left"`` it drops none. ``order_by`` is ``"left.date"`` or ``"-right.name"``; ties go by both keys.
        """
        return self._run(
            self._async.join(
                other, on, how=how, where=where, right_where=right_where, order_by=order_by, limit=limit, offset=offset
            )
        )

    def on(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at every event ``name``, after the commit; the function returned ends it.

        Listeners are called in the order they were added. One that fails is logged and harms nobody; what a coroutine
        function returns runs as a task.
        """
        return self._async.on(name, fn)

    def once(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at the next event ``name`` only; the function returned takes it back."""
        return self._async.once(name, fn)

    def off(self, name: str, fn: Listener | None = None) -> None:
        """End a listener of an event; without ``fn`` all of them."""
        return self._async.off(name, fn)

    def wait_for(self, name: str, *, timeout: float | timedelta | None = None) -> tuple[Any, ...]:
        """The arguments of the next event ``name``; ``Timeout`` when none comes in ``timeout`` seconds."""
        return waited(self._async, name, timeout)
