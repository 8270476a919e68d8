"""How a table's operations reach its engine: it is made on first use, and anew when another handle dropped it."""

from __future__ import annotations

from typing import Any, TypeVar

from .engines.base import Work, innermost
from .errors import Error, MissingTable
from .events import Emitting
from .prepared import Prepared

R = TypeVar("R")
T = TypeVar("T")


class Running(Prepared[R], Emitting):
    """A table that runs its operations."""

    _ready = False

    async def _ensure(self) -> None:
        if self._ready:
            return
        await self._engine.ensure(self._ops)
        node = innermost(self._engine)
        if node is None:
            self._ready = True
        else:
            node.after.append(self._mark_ready)

    def _mark_ready(self) -> None:
        self._ready = True

    async def _write(
        self, work: Work[Any], *, single: bool = False, operation: str = "write", quiet: bool = False
    ) -> Any:
        """Run a write; a ``quiet`` one wakes nobody who waits for changes."""
        await self._ensure()
        try:
            try:
                result = await self._engine.write(work, single=single)
            except MissingTable:
                await self._make_anew()
                result = await self._engine.write(work, single=single)
        except Error as error:
            if self._listeners is not None:
                self._emit_now("rollback", operation, error)
            raise
        if not quiet:
            self._engine.watch(self._ops)
        return result

    async def reading(self, work: Work[T], *, heavy: bool = False, snapshot: bool = False) -> T:
        """Run a read on the table, which is made first if it is not there; for stores and queries."""
        await self._ensure()
        try:
            return await self._engine.read(work, heavy=heavy, snapshot=snapshot)
        except MissingTable:
            await self._make_anew()
            return await self._engine.read(work, heavy=heavy, snapshot=snapshot)

    async def _make_anew(self) -> None:
        """Another handle dropped the table: make it again, unless a transaction has failed on it."""
        if innermost(self._engine) is not None:
            raise MissingTable(f"{self._schema.name}: the table was dropped while this transaction was open")
        self._ready = False
        await self._ensure()

    async def _get(self, key: tuple[Any, ...], names: tuple[str, ...]) -> Any:
        """Some columns of the row with a driver key, by the shortest way."""
        if not self._ready:
            await self._ensure()
        try:
            return await self._engine.get(self._ops, key, names)
        except MissingTable:
            await self._make_anew()
            return None
