"""A queue's jobs of many scopes handed out in turns, so that a tenant with many jobs does not keep the others waiting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NoReturn

from ..criteria import And, Compare, Criteria, Order, Prefix
from ..engines.base import Engine, Op
from ..errors import InvalidInput
from ..values import check_name
from .claim import AsyncClaim, Outcome
from .common import moment
from .job import LINE, PAUSED
from .queue import TIDY_EVERY, AsyncQueue
from .settling import AT_ONCE, Letter, due_letters, fire, overdue, recent

Taken = tuple[str, Sequence[Any]]
"""A scope and a row taken from it."""
IN_LINE = tuple(Order(name) for name in (LINE.scope, *LINE.order))


class FairQueue(AsyncQueue):
    """The jobs of every scope that has the columns ``fair_by``. A claim takes one of each scope that waits, then another of
    each, beginning behind the scope where the last claim of this process ended."""

    takes_jobs = False

    def __init__(self, engine: Engine, name: str, fair_by: str | Sequence[str], *, prefix: str = "") -> None:
        columns = [fair_by] if isinstance(fair_by, str) else fair_by
        if not isinstance(columns, (list, tuple)) or not columns:
            raise InvalidInput(
                f"fair_by={fair_by!r:.60}: expected the name of a column of the scopes, or a list of names"
            )
        self._columns = tuple(check_name(c, "fair_by") for c in columns)
        super().__init__(engine, name, prefix=prefix)
        self._plain = AsyncQueue(engine, name, prefix=prefix)
        self._begin = prefix + "{"
        self._last = ""
        self._resting: set[str] = set()

    def _mine(self, scope: Mapping[str, Any] | None = None) -> Criteria:
        has = tuple(self._table.c.tags[c].is_not_null() for c in self._columns)
        return And((super()._mine(scope or {}), Prefix("scope", self._begin), *has))

    def _is_mine(self, row: Mapping[str, Any]) -> bool:
        return row["scope"].startswith(self._begin) and self._has_columns(row["scope"])

    def _member(self, scope: str) -> AsyncQueue:
        """The queue of one scope."""
        made = copy(self._plain)
        made._scope, made._tags = scope, json.loads(scope.removeprefix(self._prefix))
        made._schedules = copy(self._schedules)
        made._schedules._scope = scope
        made._letters_to = self._letters_to
        return made

    async def _exchange(
        self, outcomes: Sequence[Outcome], worker: str, size: int, lease: float, *, settle: bool
    ) -> tuple[set[str], list[AsyncClaim]]:
        now, tidy = self._engine.now(), not 0 <= self._engine.now() - self._tidied < TIDY_EVERY

        def work() -> Op[tuple[set[str], list[Taken], list[Letter], set[str]]]:
            letters, resting = list[Letter](), self._resting
            if settle:
                letters, resting = yield from self._ops.by_indexes(self._settling())
                if tidy:
                    yield from self._streams.tidy(self._alive)
            done = yield from self._completing(outcomes)
            return done, (yield from self._turns(worker, size, now, lease, resting)), letters, resting

        if settle:
            self._settled = now
        try:
            done, taken, letters, resting = await self._table._write(work, quiet=not outcomes)
        except BaseException:
            self._settled = 0.0 if settle else self._settled
            raise
        self._resting, self._tidied = resting, now if settle and tidy else self._tidied
        if taken:
            self._last = taken[-1][0]
        await self._send(letters)
        members = {scope: self._member(scope) for scope, _ in taken}
        held = self._held(worker, now, lease)
        return done, [AsyncClaim(members[scope], row, held) for scope, row in taken]

    def _turns(self, worker: str, size: int, now: float, lease: float, resting: set[str]) -> Op[list[Taken]]:
        """Take from each scope that waits, in turn; what a scope does not have, others may give."""
        walk = self._walk(now, resting)
        taken: list[Taken] = []
        generous: list[str] = []
        complete = False
        while (left := size - len(taken)) > 0:
            if complete:
                scopes, generous = generous, []
            else:
                scopes = []
                while len(scopes) < left and not complete:
                    scope = yield from walk()
                    complete = scope is None
                    scopes += [] if scope is None else [scope]
            if not scopes and complete and not generous:
                break
            for place, scope in enumerate(scopes):
                wanted = left // len(scopes) + (place < left % len(scopes))
                take = self._take(worker, wanted, now, lease)._replace(scope=scope)
                rows = yield from self._ops.take(take)
                taken.extend((scope, row) for row in rows)
                if wanted and len(rows) == wanted:
                    generous.append(scope)
        return taken

    def _walk(self, now: float, resting: set[str]) -> Callable[[], Op[str | None]]:
        """Gives the scopes with a job that is due one after the other, from behind the last one on and round once."""
        begin, within = self._last, And((Prefix("scope", self._begin), Compare("due_at", "<=", moment(now))))
        after, around = begin, False

        def following() -> Op[str | None]:
            nonlocal after, around
            while True:
                where = And((*within.parts, Compare("scope", ">", after)))
                rows = yield from self._ops.select(where, IN_LINE, names=("scope",), limit=1)
                if not rows and not around:
                    after, around = "", True
                elif not rows or (around and rows[0][0] > begin):
                    return None
                else:
                    after = rows[0][0]
                    if after not in resting and self._has_columns(after):
                        return str(after)

        return following

    def _has_columns(self, scope: str) -> bool:
        """Whether a scope is one of these; a scoped store's may begin as they do."""
        try:
            tags = json.loads(scope.removeprefix(self._prefix))
        except ValueError:
            return False
        return isinstance(tags, dict) and all(tags.get(c) is not None for c in self._columns)

    def _settling(self) -> Op[tuple[list[Letter], set[str]]]:
        """What time has done to every scope; letters for another store, and the scopes that are paused."""
        yield from overdue(self)
        letters: list[Letter] = []
        if self._letters_to is not None:
            where = And((self._mine(), Compare("letter_due", ">", recent(self))))
            rows = yield from self._ops.select(where, (), names=("scope",), limit=AT_ONCE)
            for scope in sorted({row[0] for row in rows if self._has_columns(row[0])}):
                letters += yield from due_letters(self._member(scope))
        for scope in (yield from self._schedules.due()):
            if scope.startswith(self._begin) and self._has_columns(scope):
                yield from fire(self._member(scope))
        paused = yield from self._ops.select(Prefix("id", PAUSED), (), names=("scope",), limit=None)
        return letters, {row[0] for row in paused}

    def _refuse(self) -> NoReturn:
        raise InvalidInput(
            f"queue {self._name!r} hands out the jobs of many scopes; add, schedule and pause on the queue of one,"
            f" store.queue({self._name!r}, scope={{{', '.join(f'{c!r}: …' for c in self._columns)}}})"
        )

    def _rows(self, inputs: Sequence[Any], **options: Any) -> list[list[Any]]:
        self._refuse()

    async def unschedule(self, id: str) -> NoReturn:
        self._refuse()

    async def schedules(self) -> NoReturn:
        self._refuse()

    async def resume(self) -> NoReturn:
        self._refuse()
