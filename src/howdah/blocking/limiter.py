"""Rate limiters shared by every process: a sliding window of starts, or a bucket of tokens, checked and recorded in one step. Blocking twin of ``howdah.stores.limiter``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from datetime import datetime

from ..stores.common import Duration
from ..stores.limiter import AsyncLimiter, Permit
from .runner import Runner


class Limiter:
    """At most ``limit`` starts in any interval of ``per`` seconds, or ``burst`` at once and ``rate`` a second after that.
    Opened by ``store.limiter(name, …)``; name and scope are its identity, for every process."""

    def __init__(self, inner: AsyncLimiter, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def shared(self) -> bool:
        """Whether other processes see the same limiter."""
        return self._async.shared

    def try_acquire(self, permits: int = 1) -> Permit | None:
        """Count, check and record in one step: a permit, or ``None`` with nothing written. ``permits`` counts as so many."""
        return self._run(self._async.try_acquire(permits))

    def acquire(self, permits: int = 1, *, timeout: Duration | None = None) -> Permit:
        """Wait for a permit; ``Timeout`` when none is free within ``timeout`` seconds."""
        return self._run(self._async.acquire(permits, timeout=timeout))

    def release(self, permit: Permit) -> bool:
        """Undo a start by its identity; ``False`` when that has been done, or its time is over."""
        return self._run(self._async.release(permit))

    def count(self, *, since: datetime | None = None) -> int:
        """Starts in the window now, or since a moment; of a bucket, the permits that are out."""
        return self._run(self._async.count(since=since))

    def available_at(self) -> datetime:
        """The earliest moment at which one more start would be let in; now if already."""
        return self._run(self._async.available_at())

    def block_until(self, when: datetime) -> None:
        """Let no start in before ``when`` (an aware moment), anywhere; an earlier one changes nothing."""
        return self._run(self._async.block_until(when))

    def clear(self) -> None:
        """Forget every start and block."""
        return self._run(self._async.clear())
