"""A query that has not run yet: iterate over it to stream, or ask for all rows or the first. Blocking twin of ``howdah.query``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from ..query import AsyncQuery, R
from .runner import Runner, iterate


class Query(Generic[R]):
    """Rows of a table, described by ``table.query(…)``."""

    def __init__(self, inner: AsyncQuery[R], run: Runner) -> None:
        self._async = inner
        self._run = run

    def all(self) -> list[R]:
        """Every row, from one snapshot."""
        return self._run(self._async.all())

    def first(self) -> R | None:
        """The first row, or ``None``."""
        return self._run(self._async.first())

    def __iter__(self) -> Iterator[R]:
        return iterate(self._run, self._async, ahead=True)
