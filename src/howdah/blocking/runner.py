"""Runs coroutines for blocking callers: in place where nothing waits, else on an event loop in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time
from collections.abc import AsyncIterable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, TypeVar

from ..errors import Closed, TransactionError

T = TypeVar("T")
AHEAD, PROMPT = 500, 0.005
"""Items that are fetched ahead at most, and seconds that this may take once there is one."""
GRACE = 0.2
"""Seconds that what still runs has when the loop is closed."""


class Runner(Protocol):
    """How a blocking call reaches its coroutine."""

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that may wait for a model or the network, whatever the engine."""

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""

    def close(self) -> None:
        """End the thread, if there is one."""


class Portal:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="howdah-loop", daemon=True)
        self._thread.start()
        self._closed = False
        self._pid = os.getpid()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end, in a copy of the caller's context."""
        if self._closed or self._pid != os.getpid():
            coroutine.close()
            forked = "the store was opened before a fork; connect again in the child process"
            raise Closed("the store is closed" if self._pid == os.getpid() else forked)
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise TransactionError("a blocking call from inside the store's own event loop would never end")
        context = contextvars.copy_context()
        outcome: Future[T] = Future()
        task: list[asyncio.Task[T]] = []

        def finish(done: asyncio.Task[T]) -> None:
            if done.cancelled():
                outcome.cancel()
            elif (error := done.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result())

        def begin() -> None:
            task.append(self._loop.create_task(coroutine, context=context))
            task[0].add_done_callback(finish)

        self._loop.call_soon_threadsafe(begin)
        try:
            return outcome.result()
        except CancelledError:
            if self._closed:
                raise Closed("the store was closed meanwhile") from None
            raise
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(lambda: task and task[0].cancel())
            raise

    wait = __call__

    @property
    def closed(self) -> bool:
        """Whether the loop has ended."""
        return self._closed

    def close(self) -> None:
        """Stop the loop and its thread."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._end()))
        self._thread.join()

    async def _end(self) -> None:
        """Let what still waits see that the store is closed, then stop."""
        mine = asyncio.current_task()
        for grace in (GRACE, GRACE):
            waiting = [task for task in asyncio.all_tasks() if task is not mine]
            if waiting:
                await asyncio.wait(waiting, timeout=grace)
            for task in waiting:
                task.cancel()
        self._loop.stop()


class Inline:
    """Runs coroutines that never wait where they are; the others on a portal, made when first needed."""

    def __init__(self) -> None:
        self._portal: Portal | None = None
        self._lock = threading.Lock()

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end in this thread."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # the coroutine's return value
        coroutine.close()
        raise RuntimeError("an operation of an inline engine tried to wait")

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run on the portal."""
        with self._lock:
            if self._portal is None:
                self._portal = Portal()
        return self._portal(coroutine)

    @property
    def closed(self) -> bool:
        """Never: without a loop there is nothing that ends."""
        return False

    def close(self) -> None:
        """End the portal."""
        if self._portal is not None:
            self._portal.close()


def iterate(run: Any, source: AsyncIterable[T], *, ahead: bool = False) -> Iterator[T]:
    """A blocking iterator over an async one. With ``ahead``, what comes quickly is fetched a little ahead of the caller: for rows
    that are there already, where each way into the loop and back would take longer than the row."""
    iterator = source.__aiter__()
    most = 1

    async def step() -> tuple[list[T], Exception | None]:
        found: list[T] = []
        began = time.monotonic()
        while len(found) < most and (not found or time.monotonic() - began < PROMPT):
            try:
                found.append(await iterator.__anext__())
            except Exception as error:  # told after what came before it
                return found, error
        return found, None

    async def end() -> None:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()

    try:
        while True:
            items, error = run(step())
            yield from items
            if isinstance(error, StopAsyncIteration):
                return
            if error is not None:
                raise error
            if ahead and isinstance(run, Portal):
                most = min(2 * most, AHEAD)
    finally:
        if not sys.is_finalizing():  # else the loop's thread stands still
            run(end())
