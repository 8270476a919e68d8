"""The blocking transaction: it sets the transaction in the caller's own context, which a portal's task could not."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING

from ..engines.base import Node, current
from ..errors import TransactionError
from ..store import AsyncTransaction
from .runner import Runner

if TYPE_CHECKING:
    from .store import Store


class Transaction:
    """``with store.transaction() as tx``: commits at the end, rolls back on any exception; inside another, a savepoint."""

    def __init__(self, inner: AsyncTransaction, run: Runner, store: Store) -> None:
        self._engine = inner._store._engine
        self._isolation = inner._isolation
        self._run = run
        self._store = store
        self._node: Node | None = None
        self._token: Token[Node | None] | None = None

    def __enter__(self) -> Store:
        if self._node is not None:
            raise TransactionError("a transaction object is used once; call store.transaction() again")
        self._node = self._run(self._engine.begin(isolation=self._isolation))
        self._token = current.set(self._node)
        return self._store

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._node is not None and self._token is not None
        current.reset(self._token)
        self._run(self._engine.end(self._node, commit=kind is None))
