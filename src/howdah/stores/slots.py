"""Slots that processes share: so many are held at once, each until it is given back or its lease has passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from ..criteria import And, Compare
from ..engines.base import Engine, Op
from ..naming import store_table
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from .common import moment

COLUMNS = (Column("scope", "text"), Column("id", "text"), Column("expires_at", "timestamp"))


class AsyncSlots:
    """``size`` slots of a name and scope. A holder that dies gives its slot back when the ``lease`` (seconds) is over."""

    def __init__(self, engine: Engine, name: str, scope: str, *, size: int, lease: float) -> None:
        self._engine = engine
        self._scope = scope
        self._size = size
        self._lease = lease
        physical = store_table("slots", name)
        schema = build(physical, COLUMNS, key=("scope", "id"), indexes=[("scope", "expires_at")], internal=True)
        self._table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, COLUMNS, dict, None), physical)
        self._ops = self._table._ops

    def _held(self) -> And:
        now = moment(self._engine.now())
        return And((Compare("scope", "=", self._scope), Compare("expires_at", ">", now)))

    async def take(self) -> str | None:
        """Take a slot; its id, or ``None`` when all are held."""
        ops, id = self._ops, uuid4().hex
        row = ops.encode([self._scope, id, moment(self._engine.now() + self._lease)])
        held, over = self._held(), Compare("expires_at", "<=", moment(self._engine.now()))

        def work() -> Op[bool]:
            yield from ops.alone(f"{ops.physical}:{self._scope}")
            yield from ops.delete_where(And((Compare("scope", "=", self._scope), over)))
            if (yield from ops.count(held)) >= self._size:
                return False
            yield from ops.put([row])
            return True

        return id if await self._table._write(work) else None

    async def give_back(self, id: str) -> None:
        """Give a slot back; one that was lost already changes nothing."""
        await self._table.delete((self._scope, id))

    async def renew(self, ids: Sequence[str]) -> None:
        """Hold slots for another lease. One that was given to somebody else meanwhile stays lost."""
        due = self._ops.encode_value("expires_at", moment(self._engine.now() + self._lease))
        keys = [(self._scope, id) for id in ids]
        await self._table._write(lambda: self._ops.update(keys, None, {"expires_at": due}, ("id",)), single=True)

    async def count(self) -> int:
        """How many are held."""
        return await self._table.count(self._held())

    async def clear(self) -> None:
        """Take all slots back."""
        await self._table.delete_where(Compare("scope", "=", self._scope))
