"""Rate limiters shared by every process: a sliding window of starts, or a bucket of tokens, checked and recorded in one step."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from ..criteria import And, Compare, Criteria, Order
from ..engines.base import Engine, Op
from ..errors import InvalidInput, Timeout
from ..naming import store_table
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from ..values import seconds, utc
from .common import Duration, moment
from .job import check_scope

# A start is a row with an id; the row with an empty id holds the state: until when the limiter is blocked, and the tokens
# that a bucket had at ``at``.
COLUMNS = (
    Column("scope", "text"),
    Column("id", "text"),
    Column("at", "timestamp"),
    Column("permits", "integer"),
    Column("tokens", "real", nullable=True),
    Column("blocked_until", "timestamp", nullable=True),
)
STATE = ""


@dataclass(frozen=True, slots=True)
class Permit:
    """A start that was let in; ``release`` undoes exactly this one."""

    id: str
    at: datetime
    permits: int


class AsyncLimiter:
    """At most ``limit`` starts in any interval of ``per`` seconds, or ``burst`` at once and ``rate`` a second after that.
    Opened by ``store.limiter(name, …)``; name and scope are its identity, for every process."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        limit: int | None,
        per: Duration | None,
        rate: float | None,
        burst: int | None,
        scope: Mapping[str, Any] | None,
        prefix: str = "",
    ) -> None:
        window, bucket = (limit is not None, per is not None), (rate is not None, burst is not None)
        if {window, bucket} != {(True, True), (False, False)}:
            raise InvalidInput("a limiter has limit= and per= (a sliding window), or rate= and burst= (a token bucket)")
        size = limit if limit is not None else burst
        if type(size) is not int or size < 1:
            raise InvalidInput(f"{'limit' if limit is not None else 'burst'}={size!r}: expected an integer >= 1")
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 1e-9 <= rate < 1e12
        ):
            raise InvalidInput(f"rate={rate!r}: expected a number of permits a second, >= 1e-9")
        self._engine = engine
        self._name = name
        self._size = size
        self._per = None if per is None else seconds(per, "per")
        self._rate = rate
        tags = check_scope(scope)
        self._scope = prefix + (json.dumps(tags, sort_keys=True) if tags else "")
        physical = store_table("limiter", name)
        schema = build(physical, COLUMNS, key=("scope", "id"), indexes=[("scope", "at")], internal=True)
        self._table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, COLUMNS, dict, None), physical)
        self._ops = self._table._ops

    @property
    def shared(self) -> bool:
        """Whether other processes see the same limiter."""
        return self._engine.durable

    def _permits(self, permits: int) -> int:
        if type(permits) is not int or not 1 <= permits <= self._size:
            raise InvalidInput(f"permits={permits!r}: expected an integer from 1 to {self._size}, the most at once")
        return permits

    def _alone(self) -> Op[None]:
        """Let nobody else count or record until this write is committed."""
        yield from self._ops.alone(f"{self._ops.physical}:{self._scope}")

    def _state(self) -> Op[tuple[datetime, float, datetime | None]]:
        """When the state was written, the tokens there were, and until when starts are blocked."""
        row = yield from self._ops.get((self._scope, STATE), ("at", "tokens", "blocked_until"))
        if row is None:
            return moment(self._engine.now()), float(self._size), None
        found = self._ops.reader(("at", "tokens", "blocked_until"))(row)
        return found["at"], self._size if found["tokens"] is None else found["tokens"], found["blocked_until"]

    def _save(self, at: datetime, tokens: float, blocked: datetime | None) -> Op[None]:
        yield from self._ops.put([self._ops.encode([self._scope, STATE, at, 0, tokens, blocked])])

    def _since(self, at: datetime) -> Criteria:
        """Starts strictly newer than a moment."""
        return And((Compare("scope", "=", self._scope), Compare("id", "!=", STATE), Compare("at", ">", at)))

    def _edge(self, now: float) -> datetime:
        """Starts at this moment or before no longer count."""
        return moment(now - (self._per or 0))

    def _starts(self, at: datetime) -> Op[list[tuple[datetime, int]]]:
        rows = yield from self._ops.select(
            self._since(at), (Order("at"), Order("id")), names=("at", "permits"), limit=None
        )
        read = self._ops.reader(("at", "permits"))
        return [(r["at"], r["permits"]) for r in map(read, rows)]

    def _filled(self, now: float) -> Op[tuple[float, datetime | None]]:
        """The tokens of a bucket now, and until when it is blocked."""
        assert self._rate is not None
        at, tokens, blocked = yield from self._state()
        gained = max(0.0, now - at.timestamp()) * self._rate
        return min(float(self._size), tokens + gained), blocked

    async def try_acquire(self, permits: int = 1) -> Permit | None:
        """Count, check and record in one step: a permit, or ``None`` with nothing written. ``permits`` counts as so many."""
        wanted = self._permits(permits)
        return await self._table._write(lambda: self._acquiring(wanted), quiet=True)  # type: ignore[no-any-return]

    def _acquiring(self, wanted: int) -> Op[Permit | None]:
        yield from self._alone()
        now = self._engine.now()
        at, made = moment(now), Permit(uuid4().hex, moment(now), wanted)
        if self._rate is not None:
            tokens, blocked = yield from self._filled(now)
            if tokens < wanted or (blocked is not None and at < blocked):
                return None
            yield from self._save(at, tokens - wanted, blocked)
            return made
        _, _, blocked = yield from self._state()
        starts = yield from self._starts(self._edge(now))
        if sum(n for _, n in starts) + wanted > self._size or (blocked is not None and at < blocked):
            return None
        gone = And(
            (Compare("scope", "=", self._scope), Compare("id", "!=", STATE), Compare("at", "<=", self._edge(now)))
        )
        yield from self._ops.delete_where(gone)
        yield from self._ops.insert([self._ops.encode([self._scope, made.id, at, wanted, None, None])])
        return made

    async def acquire(self, permits: int = 1, *, timeout: Duration | None = None) -> Permit:
        """Wait for a permit; ``Timeout`` when none is free within ``timeout`` seconds."""
        return (await acquire_all([self], permits, timeout))[0]

    async def release(self, permit: Permit) -> bool:
        """Undo a start by its identity; ``False`` when that has been done, or its time is over."""
        if not isinstance(permit, Permit):
            raise InvalidInput(f"release takes a permit, got {type(permit).__name__}")

        def work() -> Op[bool]:
            yield from self._alone()
            now = self._engine.now()
            if self._rate is not None:
                # When the bucket has filled up since, a permit is nothing to give back, nor to remember.
                edge = moment(now - self._size / self._rate)
                marks = And((Compare("scope", "=", self._scope), Compare("id", "!=", STATE), Compare("at", "<=", edge)))
                yield from self._ops.delete_where(marks)
                if permit.at <= edge:
                    return False
                tokens, blocked = yield from self._filled(now)
                spent = yield from self._ops.create(
                    self._ops.encode([self._scope, permit.id, moment(now), permit.permits, None, None])
                )
                if spent:
                    yield from self._save(moment(now), min(float(self._size), tokens + permit.permits), blocked)
                return bool(spent)
            return bool((yield from self._ops.delete([(self._scope, permit.id)])))

        return bool(await self._table._write(work))

    async def count(self, *, since: datetime | None = None) -> int:
        """Starts in the window now, or since a moment; of a bucket, the permits that are out."""
        after = None if since is None else utc(since, "since")
        now = self._engine.now()
        if self._rate is not None:
            tokens, _ = await self._table.reading(lambda: self._filled(now))
            return int(self._size - tokens + 0.999999)
        edge = self._edge(now) if after is None else max(after, self._edge(now))
        return sum(n for _, n in await self._table.reading(lambda: self._starts(edge)))

    async def available_at(self) -> datetime:
        """The earliest moment at which one more start would be let in; now if already."""
        return await self._available(1)

    async def _available(self, permits: int) -> datetime:
        now = self._engine.now()

        def work() -> Op[datetime]:
            if self._rate is not None:
                tokens, blocked = yield from self._filled(now)
                free = moment(now + max(0.0, permits - tokens) / self._rate)
            else:
                _, _, blocked = yield from self._state()
                starts = yield from self._starts(self._edge(now))
                over = sum(n for _, n in starts) + permits - self._size
                free = moment(now)
                for at, n in starts:
                    if over <= 0:
                        break
                    over -= n
                    free = moment(at.timestamp() + (self._per or 0))
            return free if blocked is None else max(free, blocked)

        return await self._table.reading(work)

    async def block_until(self, when: datetime) -> None:
        """Let no start in before ``when`` (an aware moment), anywhere; an earlier one changes nothing."""
        until = utc(when, "when")

        def work() -> Op[None]:
            yield from self._alone()
            at, tokens, blocked = yield from self._state()
            yield from self._save(at, tokens, max(until, blocked or until))

        await self._table._write(work)

    async def clear(self) -> None:
        """Forget every start and block."""
        await self._table.delete_where(Compare("scope", "=", self._scope))


async def try_acquire_all(limiters: Sequence[AsyncLimiter], permits: int) -> list[Permit] | None:
    """A permit of each, in one step, or ``None`` and none of any."""
    wanted = [limiter._permits(permits) for limiter in limiters]
    # In one order for everybody, so that two who want the same do not wait for each other.
    order = sorted(range(len(limiters)), key=lambda i: (limiters[i]._ops.physical, limiters[i]._scope))
    for limiter in limiters:
        await limiter._table._ensure()

    def work() -> Op[list[Permit]]:
        found: dict[int, Permit] = {}
        for i in order:
            made = yield from limiters[i]._acquiring(wanted[i])
            if made is None:
                raise _Refused
            found[i] = made
        return [found[i] for i in range(len(limiters))]

    try:
        return await limiters[0]._table._write(work, quiet=True)  # type: ignore[no-any-return]  # the permits
    except _Refused:
        return None


async def acquire_all(limiters: Sequence[AsyncLimiter], permits: int, timeout: Duration | None) -> list[Permit]:
    """Wait until every limiter lets in at once; ``Timeout`` when that is not so within ``timeout`` seconds."""
    left = None if timeout is None else seconds(timeout, "timeout", zero=True)
    began = time.monotonic()
    engine = limiters[0]._engine
    while True:
        marks = [await engine.changed(limiter._ops, None, 0) for limiter in limiters]
        found = await try_acquire_all(limiters, permits)
        if found is not None:
            return found
        free = [await limiter._available(permits) for limiter in limiters]
        latest = max(range(len(free)), key=free.__getitem__)
        wait = max(0.001, free[latest].timestamp() - engine.now())
        if left is not None:
            rest = left - (time.monotonic() - began)
            if rest <= 0:
                names = ", ".join(repr(limiter._name) for limiter in limiters)
                raise Timeout(f"limiter {names}: no permit within {timeout} seconds")
            wait = min(wait, rest)
        # A permit that is given back wakes those who wait here; elsewhere they look every second.
        await engine.changed(limiters[latest]._ops, marks[latest], min(wait, 1.0))


class _Refused(Exception):
    """One of several limiters has no permit: what the others recorded is undone."""
