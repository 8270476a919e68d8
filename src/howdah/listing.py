"""Pages, counts, aggregates and joins of a table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from . import aggregates, joins
from .criteria import Criteria, Order, Where, resolve_order
from .errors import InvalidInput
from .pages import Page, binding, check_limit, decode_cursor, encode_cursor
from .running import Running

R = TypeVar("R")


class Listing(Running[R]):
    """What a table tells of many rows."""

    async def page(
        self, where: Where | None = None, *, order_by: Any = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[R]:
        """One page by keyset: right under concurrent writes. ``cursor`` is the last page's ``next_cursor``.

        Raises ``InvalidCursor`` for a cursor of another table, filter or order. ``limit=None`` gives everything.
        """
        criteria = self._criteria(where)
        orders = resolve_order(order_by, self._schema, self._mapping_column)
        size = check_limit(limit)
        bound = binding(self._ops.physical, criteria, orders)
        after = None if cursor is None else decode_cursor(cursor, bound, len(orders))
        if size == 0:
            return Page([], None)
        rows, last = await self._page(criteria, orders, size, after)
        return Page([self._row(r) for r in rows], None if last is None else encode_cursor(last, bound))

    async def _page(
        self, criteria: Criteria | None, orders: Sequence[Order], size: int | None, after: Sequence[Any] | None
    ) -> tuple[list[Sequence[Any]], list[Any] | None]:
        """Rows of a page, and the sort values of the last one if more follow."""
        take = None if size is None else size + 1
        names = self._schema.names
        rows = await self.reading(
            lambda: self._ops.select(criteria, orders, names=names, limit=take, after=after, sort_keys=True)
        )
        if size is None or len(rows) <= size:
            return rows, None
        return rows[:size], list(rows[size - 1][len(names) :])

    async def pages(
        self, where: Where | None = None, *, order_by: Any = None, size: int = 100
    ) -> AsyncIterator[list[R]]:
        """Every page in turn, as lists that are never empty."""
        check_limit(size, "size", least=1)
        cursor: str | None = None
        while True:
            page = await self.page(where, order_by=order_by, limit=size, cursor=cursor)
            if page.items:
                yield page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    async def count(self, where: Where | None = None) -> int:
        """How many rows match; all for ``None`` or ``{}``."""
        criteria = self._criteria(None if isinstance(where, Mapping) and not where else where)
        return await self.reading(lambda: self._ops.count(criteria), heavy=True)

    async def aggregate(
        self, where: Where | None = None, *, by: str | Sequence[str] = (), **values: aggregates.Aggregate
    ) -> list[dict[str, Any]]:
        """Aggregates by group: ``await t.aggregate(by="kind", n=count_(), total=sum_(t.c.price))``.

        One dict a group, with the group's columns and the named values, in group order; one dict without ``by``.
        """
        groups = (by,) if isinstance(by, str) else tuple(by)
        for name in groups:
            column = self._schema.column(name)
            if column.kind in ("json", "vector", "sparse") or column.sealed is not None:
                raise InvalidInput(f"{self._schema.name}: rows cannot be grouped by {name!r}")
        if not values:
            raise InvalidInput(f"{self._schema.name}: name at least one aggregate, e.g. n=count_()")
        clash = [n for n in groups if n in values]
        if clash:
            raise InvalidInput(f"{self._schema.name}: {clash[0]!r} names both a group and an aggregate")
        wanted = {n: aggregates.check(n, v, self._schema) for n, v in values.items()}
        criteria = self._criteria(where)
        return await self.reading(lambda: self._ops.aggregate(groups, wanted, criteria), heavy=True)

    async def join(
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
        right: Any = getattr(other, "_async", other)
        if not isinstance(right, Listing) or right._engine is not self._engine:
            raise InvalidInput(f"{self._schema.name}: join takes another table of the same store")
        if how not in ("inner", "left"):
            raise InvalidInput(f"how={how!r}: expected 'inner' or 'left'")
        plan = {
            "on": joins.check_on(on, self._schema, right._schema),
            "left_join": how == "left",
            "where": self._criteria(where),
            "right_where": right._criteria(right_where),
            "orders": joins.check_order(order_by, self._schema, right._schema),
            "limit": check_limit(limit),
            "offset": check_limit(offset, "offset") or 0,
        }
        if limit == 0:
            return []
        await right._ensure()
        rows = await self.reading(lambda: self._ops.join(right._ops, **plan), heavy=True)
        width = len(self._schema.names)
        keys = [width + i for i in right._ops.key_places]
        return [(self._row(r[:width]), None if r[keys[0]] is None else right._row(r[width:])) for r in map(tuple, rows)]
