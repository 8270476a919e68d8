"""What may hold back the start of jobs: concurrency, delays, rates, or several of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import time
from typing import Any, Protocol

from ..errors import InvalidInput
from ..stores.common import Duration
from ..stores.limiter import AsyncLimiter
from ..stores.queue import AsyncQueue
from ..stores.slots import AsyncSlots
from ..values import seconds

Token = Any
Clock = Callable[[], float]


class Limiter(Protocol):
    """Asked before each start. ``scope`` is ``"process"``, or ``"cluster"`` when other processes count, too."""

    @property
    def scope(self) -> str: ...

    async def try_acquire(self) -> Token | None:
        """A token for one start, or ``None``."""

    async def release(self, token: Token) -> None:
        """Undo a start that did not happen."""

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """A start has come to its end; once per token."""

    async def available_at(self) -> datetime:
        """The earliest moment at which it makes sense to ask again."""

    async def block_until(self, when: datetime) -> None:
        """No start before that moment; an earlier one than before changes nothing."""

    async def clear(self) -> None:
        """Forget everything."""


def check_limiter(limiter: Any) -> None:
    """``InvalidInput`` unless this can be asked before each start."""
    names = ("scope", "try_acquire", "release", "complete", "available_at")
    missing = [n for n in names if not hasattr(limiter, n)]
    if missing:
        raise InvalidInput(f"limiter {limiter!r:.60}: it has no {', '.join(missing)}; see howdah.jobs.Limiter")


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


class NoLimit:
    """Lets everything in."""

    scope = "process"

    async def try_acquire(self) -> Token | None:
        """Always a token."""
        return True

    async def release(self, token: Token) -> None:
        """Nothing."""

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """Nothing."""

    async def available_at(self) -> datetime:
        """Now."""
        return datetime.now(UTC)

    async def block_until(self, when: datetime) -> None:
        """Nothing: it has no limit."""

    async def clear(self) -> None:
        """Nothing."""


class _Local:
    """What limiters of one process share: open tokens and a block."""

    scope = "process"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._blocked = 0.0
        self._open: set[int] = set()
        self._numbers = itertools.count(1)

    def _blocked_now(self) -> bool:
        return self._clock() < self._blocked

    def _token(self) -> int:
        token = next(self._numbers)
        self._open.add(token)
        return token

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """A start has come to its end; doing it twice changes nothing."""
        self._open.discard(token)

    async def block_until(self, when: datetime) -> None:
        """No start before that moment."""
        self._blocked = max(self._blocked, when.timestamp())


class Concurrency(_Local):
    """At most ``n`` jobs running at once: in this process, or with ``shared=True`` in all that serve the same queue. A process
    that dies gives its share back within ``lease`` seconds."""

    def __init__(self, n: int, *, shared: bool = False, lease: Duration = 60, clock: Clock = time) -> None:
        if type(n) is not int or n < 1:
            raise InvalidInput(f"Concurrency({n!r}): expected an integer >= 1")
        super().__init__(clock)
        self._most = n
        self._shared = shared
        self._lease = seconds(lease, "lease")
        self._slots: AsyncSlots | None = None
        self._held: set[str] = set()

    def bind(self, queue: AsyncQueue) -> None:
        """Count the jobs of this queue and scope; its server calls it."""
        if self._shared:
            self._slots = AsyncSlots(queue._engine, queue.name, queue._scope, size=self._most, lease=self._lease)

    @property
    def scope(self) -> str:  # type: ignore[override]  # of the others it is fixed
        """Whether other processes count, too."""
        return "cluster" if self._shared else "process"

    @property
    def running(self) -> int:
        """How many run now, in this process."""
        return len(self._held) if self._shared else len(self._open)

    def _bound(self) -> AsyncSlots:
        if self._slots is None:
            raise InvalidInput("Concurrency(shared=True) belongs to a job server: give it as limiter=")
        return self._slots

    async def try_acquire(self) -> Token | None:
        """A token if fewer than ``n`` are out."""
        if self._blocked_now():
            return None
        if not self._shared:
            return None if len(self._open) >= self._most else self._token()
        token = await self._bound().take()
        if token is not None:
            self._held.add(token)
        return token

    async def release(self, token: Token) -> None:
        """Give a token back."""
        await self.complete(token)

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """A start has come to its end; doing it twice changes nothing."""
        self._open.discard(token)
        if self._shared:
            self._held.discard(token)
            await self._bound().give_back(token)

    @property
    def renew_every(self) -> float | None:
        """Seconds after which the server calls ``renew``."""
        return self._lease / 4 if self._shared else None

    async def renew(self) -> None:
        """Hold on to what is out; the server calls it before the lease is over."""
        if self._shared and self._held:
            await self._bound().renew(sorted(self._held))

    async def available_at(self) -> datetime:
        """Now, or the end of the block: when a job ends cannot be told."""
        return _moment(max(self._clock(), self._blocked))

    async def clear(self) -> None:
        """Forget tokens and block."""
        self._open.clear()
        self._held.clear()
        self._blocked = 0.0
        if self._slots is not None:
            await self._slots.clear()


class Delay(_Local):
    """At least ``every`` seconds between two starts."""

    def __init__(self, every: Duration, *, clock: Clock = time) -> None:
        super().__init__(clock)
        self._every = seconds(every, "every")
        self._next = 0.0
        self._before = 0.0
        self._last = 0

    async def try_acquire(self) -> Token | None:
        """A token if the last start is long enough ago."""
        now = self._clock()
        if self._blocked_now() or now < self._next:
            return None
        token = self._token()
        self._before = self._next
        self._last, self._next = token, now + self._every
        return token

    async def release(self, token: Token) -> None:
        """Give the time back, if no start followed."""
        if token in self._open and token == self._last:
            self._next = self._before
            self._last = 0
        self._open.discard(token)

    async def available_at(self) -> datetime:
        """When the next start is let in."""
        return _moment(max(self._clock(), self._next, self._blocked))

    async def clear(self) -> None:
        """Forget the last start and the block."""
        self._next = self._blocked = 0.0
        self._open.clear()


class EvenlySpaced(Delay):
    """One start every ``per / limit`` seconds."""

    def __init__(self, *, limit: int, per: Duration, clock: Clock = time) -> None:
        if type(limit) is not int or limit < 1:
            raise InvalidInput(f"limit={limit!r}: expected an integer >= 1")
        super().__init__(seconds(per, "per") / limit, clock=clock)


class Window:
    """A store's limiter in front of jobs. When it refuses, the wait grows from ``backoff`` seconds by ``factor`` up to
    ``most``, with jitter; a job that succeeds starts it over."""

    def __init__(
        self, limiter: Any, *, backoff: Duration = 1, factor: float = 2, most: Duration = 600, clock: Clock = time
    ) -> None:
        self._limiter: AsyncLimiter = getattr(limiter, "_async", limiter)
        if not isinstance(self._limiter, AsyncLimiter):
            raise InvalidInput("Window takes a store's limiter: Window(store.limiter(…))")
        self._first, self._most = seconds(backoff, "backoff"), seconds(most, "most")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 < factor < 1e6:
            raise InvalidInput(f"factor={factor!r}: expected a number > 1")
        if self._most <= self._first:
            raise InvalidInput(f"most={most!r} must be more than backoff={backoff!r}")
        self._factor = factor
        self._clock = clock
        self._refused = 0
        self._until = 0.0

    @property
    def scope(self) -> str:
        """Whether other processes see the same window."""
        return "cluster" if self._limiter.shared else "process"

    async def try_acquire(self) -> Token | None:
        """A permit of the store's limiter; when it refuses, the back-off grows."""
        if self._clock() < self._until:
            return None
        permit = await self._limiter.try_acquire()
        if permit is None:
            wait = min(self._most, self._first * self._factor**self._refused)
            self._refused += 1
            self._until = self._clock() + wait * random.uniform(0.5, 1)
        return permit

    async def release(self, token: Token) -> None:
        """Undo a start."""
        await self._limiter.release(token)

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """A success starts the back-off over."""
        if success:
            self._refused, self._until = 0, 0.0

    async def available_at(self) -> datetime:
        """When the window lets one more in, and not before the back-off is over."""
        return max(await self._limiter.available_at(), _moment(self._until))

    async def block_until(self, when: datetime) -> None:
        """No start before that moment, anywhere."""
        await self._limiter.block_until(when)

    async def clear(self) -> None:
        """Forget starts, block and back-off."""
        self._refused, self._until = 0, 0.0
        await self._limiter.clear()


class AllOf:
    """Every one of several limiters, asked in order; what was let in is undone in reverse when a later one refuses."""

    def __init__(self, limiters: Sequence[Limiter] = ()) -> None:
        self._limiters: list[Limiter] = []
        for limiter in limiters:
            self.add(limiter)

    def add(self, limiter: Limiter) -> None:
        """One more, asked last."""
        check_limiter(limiter)
        self._limiters.append(limiter)

    @property
    def scope(self) -> str:
        """Shared only if every part is."""
        shared = bool(self._limiters) and all(one.scope == "cluster" for one in self._limiters)
        return "cluster" if shared else "process"

    async def try_acquire(self) -> Token | None:
        """A token of each, or ``None`` and none of any."""
        tokens: list[Token] = []
        for limiter in self._limiters:
            token = await limiter.try_acquire()
            if token is None:
                await self._undo(tokens)
                return None
            tokens.append(token)
        return tokens

    async def _undo(self, tokens: list[Token]) -> None:
        for limiter, token in reversed(list(zip(self._limiters, tokens, strict=False))):
            await limiter.release(token)

    async def release(self, token: Token) -> None:
        """Undo all, the last first."""
        await self._undo(token)

    async def complete(self, token: Token, *, success: bool = True) -> None:
        """Tell all."""
        for limiter, one in zip(self._limiters, token, strict=True):
            await limiter.complete(one, success=success)

    async def available_at(self) -> datetime:
        """The latest of all."""
        return max([await one.available_at() for one in self._limiters], default=datetime.now(UTC))

    async def block_until(self, when: datetime) -> None:
        """Tell all."""
        for one in self._limiters:
            await one.block_until(when)

    def bind(self, queue: AsyncQueue) -> None:
        """Tell those that count jobs of a queue."""
        for one in self._limiters:
            if hasattr(one, "bind"):
                one.bind(queue)

    @property
    def renew_every(self) -> float | None:
        """The shortest time after which one of them is to be renewed."""
        return min((e for one in self._limiters if (e := getattr(one, "renew_every", None))), default=None)

    async def renew(self) -> None:
        """Tell those that hold something for a time."""
        for one in self._limiters:
            if hasattr(one, "renew"):
                await one.renew()

    async def clear(self) -> None:
        """Clear all."""
        for one in self._limiters:
            await one.clear()
