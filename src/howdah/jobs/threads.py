"""Threads for plain handlers: started as needed, kept for the next, and never in the way of the process's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Threads:
    """Daemon threads. A hung handler keeps its thread, and nothing else."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._count = 0

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``function``, which does not raise, in a thread; its result on the running event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        def run() -> None:
            result = function()
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result)

        with self._lock:
            if self._free > 0:
                self._free -= 1
            else:
                self._count += 1
                threading.Thread(target=self._serve, name="howdah-job", daemon=True).start()
        self._work.put(run)
        return future

    def _serve(self) -> None:
        while (run := self._work.get()) is not None:
            run()
            with self._lock:
                self._free += 1

    def close(self) -> None:
        """Let the threads that wait go; one that runs goes when it is done."""
        with self._lock:
            count, self._count, self._free = self._count, 0, 0
        for _ in range(count):
            self._work.put(None)
