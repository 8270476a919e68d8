"""Wakes who waits for changes: counters by table, told by this process' writes, by Postgres' notifications or by looking."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ...errors import Error
from .changes import CHANNEL

log = logging.getLogger("howdah")
TICK = 0.008
"""Seconds between two looks at a file that other processes write; a look is a few microseconds."""
IDLE = 30.0
LOOK = 0.2


class Signals:
    """Counters that only grow, and the tasks that wait for them to. All on one event loop."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._all = 0
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self.closed = False

    @property
    def awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def count(self, name: str) -> int:
        """The counter of a table."""
        return self._counts.get(name, 0) + self._all

    def tell(self, name: str) -> None:
        """Something was written to a table."""
        self._counts[name] = self._counts.get(name, 0) + 1
        self._wake(name)

    def _wake(self, name: str) -> None:
        for waiter in self._waiting.pop(name, ()):
            if not waiter.done():
                waiter.set_result(None)

    def tell_all(self) -> None:
        """Something was written somewhere."""
        self._all += 1
        for name in list(self._waiting):
            self._wake(name)

    def close(self) -> None:
        """Let everybody go."""
        self.closed = True
        self.tell_all()

    async def wait(self, name: str, seen: int, timeout: float) -> int:
        """Wait, at most ``timeout`` seconds, until the counter is no longer ``seen``; what it is."""
        if self.count(name) == seen and not self.closed and timeout > 0:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(name, set()).add(waiter)
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiter, timeout)
            finally:
                rest = self._waiting.get(name)
                if rest is not None:
                    rest.discard(waiter)
                    if not rest:
                        del self._waiting[name]
        return self.count(name)


class Looker:
    """Looks at a version of the data every few milliseconds, as long as somebody waits."""

    def __init__(self, signals: Signals, version: Callable[[], int]) -> None:
        self._signals = signals
        self._version = version
        self._seen = -1
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look from now on."""
        if self._task is None or self._task.done():
            self._compare()  # something may have been written while nobody looked
            self._task = asyncio.get_running_loop().create_task(self._look(), context=contextvars.Context())

    def _compare(self) -> None:
        version = self._version()
        if version != self._seen:
            self._seen = version
            self._signals.tell_all()

    async def _look(self) -> None:
        idle = 0.0
        while not self._signals.closed and idle < 1:
            await asyncio.sleep(TICK)
            idle = 0.0 if self._signals.awaited else idle + TICK
            try:
                self._compare()
            except Error as error:
                log.warning("changes of other processes will be looked for again: %s", error)
                return

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task


class Listener:
    """The one connection of a process that listens to Postgres, as long as somebody waits."""

    def __init__(self, signals: Signals, connect: Callable[[], Awaitable[Any]]) -> None:
        self._signals = signals
        self._connect = connect
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Listen from now on; a connection that breaks is made again while somebody waits."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._listen(), context=contextvars.Context())

    async def _listen(self) -> None:
        connection = None
        try:
            connection = await self._connect()
            await connection.add_listener(CHANNEL, lambda _c, _p, _n, payload: self._signals.tell(payload))
            self._signals.tell_all()  # something may have come before
            idle = 0.0
            while idle < IDLE and not connection.is_closed() and not self._ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), LOOK)
                idle = 0.0 if self._signals.awaited else idle + LOOK
        except Exception as error:  # whatever the driver says, polling goes on
            if not self._ended.is_set():
                log.warning("no notifications, changes are polled: %s", error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), 1)
        finally:
            if connection is not None and not connection.is_closed():
                connection.terminate()
            self._signals.tell_all()

    async def close(self) -> None:
        """Stop listening; a connection half made is finished first."""
        self._ended.set()
        if self._task is not None:
            await self._task
