"""Changes of a table: committed inserts, updates and deletes, whoever made them, in commit order, from any cursor on. Blocking twin of ``howdah.changes``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Generic

from ..changes import BATCH, AsyncChanges, Change, R
from .runner import Runner, iterate


class Changes(Generic[R]):
    """A place in a table's changes, made by ``table.changes(…)``: iterate for ever, or ``poll`` for what there is.

    It begins with ``start``, else with the first step of the iteration. Every reader has its own place.
    """

    def __init__(self, inner: AsyncChanges[R], run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def cursor(self) -> str:
        """Where this reader is; ``changes(since=cursor)`` goes on from here."""
        return self._async.cursor

    def start(self) -> str:
        """Begin: changes committed from now on (or since the cursor) will be seen. The cursor of this place.

        Raises ``Lagged`` when changes since the cursor are no longer kept (24 hours are), ``SetupRequired`` with
        ``create=False`` where nobody else watches the table.
        """
        return self._run(self._async.start())

    def poll(self, *, timeout: float | timedelta | None = 0, limit: int = BATCH) -> list[Change[R]]:
        """Changes that wait, at most ``limit``; when there are none, wait for some up to ``timeout`` seconds (``None``:
        for ever). Raises ``Lagged`` when more than 10,000 wait for a reader that had caught up."""
        return self._run(self._async.poll(timeout=timeout, limit=limit))

    def __iter__(self) -> Iterator[Change[R]]:
        return iterate(self._run, self._async)
