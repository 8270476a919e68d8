"""Transactions of plain SQL: they commit at the end of the block; inside one another they are savepoints. Blocking twin of ``howdah.database.transaction``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..database.transaction import AsyncSqlTransaction
from .runner import Runner
from .statements import Statements


class SqlTransaction(Statements):
    """``with db.transaction() as tx``: commits at the end, rolls back on any exception. ``tx.transaction()`` is a
    savepoint. Statements of one transaction run one after the other, whichever task sends them."""

    def __init__(self, inner: AsyncSqlTransaction, run: Runner) -> None:
        self._async: AsyncSqlTransaction = inner
        self._run = run

    def __enter__(self) -> Self:
        self._run(self._async.__aenter__())
        return self

    def transaction(self) -> SqlTransaction:
        """A savepoint: what its block does can be undone by itself. This transaction waits until it ends."""
        return SqlTransaction(self._async.transaction(), self._run)

    def rollback(self) -> None:
        """Undo everything now; the block goes on, its statements are refused."""
        return self._run(self._async.rollback())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._async.__aexit__(kind, error, trace))
