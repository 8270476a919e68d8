"""An engine that only reads: every write is refused before anything runs."""

from __future__ import annotations

from typing import Any, NoReturn

from .engines.base import Engine, innermost
from .errors import SetupRequired, TransactionError, Unsupported


class ReadOnly:
    """Another engine without its writes. Its transactions are that engine's: there are none here."""

    creates = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _refuse(self, what: str) -> NoReturn:
        raise Unsupported(f"{what}: this store is read-only")

    async def ensure(self, table: Any) -> None:
        """Only look: ``SetupRequired`` when the table is not there."""
        if table.physical not in await self._engine.catalog():
            raise SetupRequired(
                f"table {table.schema.name!r} is not there yet, and this store is read-only: write to it first",
                findings=(f"{table.schema.name} is missing",),
            )

    async def write(self, work: Any, *, single: bool = False) -> NoReturn:
        """Refused."""
        self._refuse("a write")

    async def drop(self, table: Any) -> NoReturn:
        """Refused."""
        self._refuse("drop")

    async def begin(self, *, isolation: str | None = None) -> NoReturn:
        """Refused."""
        self._refuse("a transaction")

    async def background(self) -> bool:
        """Nothing waits."""
        return False

    async def close(self) -> None:
        """Nothing: the store that this one is made from closes its engine."""
        if innermost(self._engine) is not None:
            raise TransactionError("close() inside a transaction of the same store: end the transaction first")
