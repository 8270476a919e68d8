"""A queue's jobs of many scopes handed out in turns, so that a tenant with many jobs does not keep the others waiting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NoReturn

from ..criteria import And, Compare, Criteria, Order, Prefix
from ..engines.base import Engine, Op
from ..errors import InvalidInput
from ..values import check_name
from .claim import AsyncClaim, Outcome
from .common import moment
from .job import LINE, PAUSED
from .queue import AsyncQueue
from .settling import AT_ONCE, Letter, due_letters, fire, overdue, recent

IN_LINE = tuple(Order(name) for name in (LINE.scope, *LINE.order))


class FairQueue(AsyncQueue):
    """The jobs of every scope that has the columns ``fair_by``. A claim takes one of each scope that waits, then another of
    each, beginning behind the scope where the last claim of this process ended."""

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
        return row["scope"].startswith(self._begin) and all(
            (row["tags"] or {}).get(c) is not None for c in self._columns
        )

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
        now = self._engine.now()
        letters, taken, resting = list[Letter](), list[tuple[str, Sequence[Any]]](), self._resting
        last = [self._last]

        def work() -> Op[set[str]]:
            nonlocal resting
            if settle:
                letters[:], resting = yield from self._settling()
            done = yield from self._completing(outcomes)
            taken[:] = []
            scopes = yield from self._waiting(now, size, resting)
            last[0] = scopes[-1] if scopes else self._last
            while scopes and len(taken) < size:
                each, more = divmod(size - len(taken), len(scopes))
                ready = []
                for place, scope in enumerate(scopes):
                    wanted = each + (place < more)
                    if wanted == 0:
                        break
                    take = self._take(worker, wanted, now, lease)._replace(scope=scope)
                    rows = yield from self._ops.take(take)
                    taken.extend((scope, row) for row in rows)
                    if len(rows) == wanted:
                        ready.append(scope)
                scopes = ready
            return done

        if settle:
            self._settled = now
        try:
            done = await self._table._write(work, quiet=not outcomes)
        except BaseException:
            self._settled = 0.0 if settle else self._settled
            raise
        self._last, self._resting = last[0], resting
        await self._send(letters)
        members = {scope: self._member(scope) for scope, _ in taken}
        held = self._held(worker, now, lease)
        return done, [AsyncClaim(members[scope], row, held) for scope, row in taken]

    def _waiting(self, now: float, most: int, resting: set[str]) -> Op[list[str]]:
        """Scopes with a job that is due, from behind the last one on and round once: as many as jobs are wanted."""
        found: list[str] = []
        due, after, around = Compare("due_at", "<=", moment(now)), self._last, False
        while len(found) < most:
            where = And((self._mine(), due, Compare("scope", ">", after)))
            rows = yield from self._ops.select(where, IN_LINE, names=("scope",), limit=1)
            scope = rows[0][0] if rows else None
            if scope is None and not around:
                after, around = "", True
            elif scope is None or (around and scope > self._last):
                break
            else:
                after = scope
                if scope not in resting:
                    found.append(scope)
        return found

    def _settling(self) -> Op[tuple[list[Letter], set[str]]]:
        """What time has done to every scope; letters for another store, and the scopes that are paused."""
        yield from overdue(self)
        letters: list[Letter] = []
        if self._letters_to is not None:
            where = And((self._mine(), Compare("letter_due", ">", recent(self))))
            rows = yield from self._ops.select(where, (), names=("scope",), limit=AT_ONCE)
            for scope in sorted({row[0] for row in rows}):
                letters += yield from due_letters(self._member(scope))
        for scope in (yield from self._schedules.due()):
            if scope.startswith(self._begin):
                member = self._member(scope)
                if all(member._tags.get(c) is not None for c in self._columns):
                    yield from fire(member)
        paused = yield from self._ops.select(Prefix("id", PAUSED), (), names=("scope",), limit=None)
        return letters, {row[0] for row in paused}

    def _refuse(self) -> NoReturn:
        raise InvalidInput(
            f"queue {self._name!r} hands out the jobs of many scopes; add, schedule and pause on the queue of one,"
            f" store.queue({self._name!r}, scope={{{', '.join(f'{c!r}: …' for c in self._columns)}}})"
        )

    def _rows(self, inputs: Sequence[Any], **options: Any) -> list[list[Any]]:
        self._refuse()

    async def schedule(self, cron: str, input: Any, **options: Any) -> NoReturn:
        self._refuse()

    async def unschedule(self, id: str) -> NoReturn:
        self._refuse()

    async def schedules(self) -> NoReturn:
        self._refuse()

    async def resume(self) -> NoReturn:
        self._refuse()
