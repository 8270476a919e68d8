"""Events of a handle: local calls to listeners after what the handle did has been committed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

from .engines.base import Engine, innermost
from .errors import InvalidInput, Timeout
from .values import seconds

Listener = Callable[..., Any]
log = logging.getLogger("howdah")


class Emitting:
    """What a store with events has. ``EVENTS`` lists their names; without a listener an event costs one check."""

    EVENTS: ClassVar[tuple[str, ...]] = ()
    _engine: Engine
    _listeners: dict[str, list[Listener]] | None = None

    def on(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at every event ``name``, after the commit; the function returned ends it.

        Listeners are called in the order they were added. One that fails is logged and harms nobody; what a coroutine
        function returns runs as a task.
        """
        self._check(name)
        if not callable(fn):
            raise InvalidInput(f"listener {fn!r:.60}: expected a function")
        if self._listeners is None:
            self._listeners = {}
        self._listeners.setdefault(name, []).append(fn)
        return partial(self.off, name, fn)

    def once(self, name: str, fn: Listener) -> Callable[[], None]:
        """Call ``fn`` at the next event ``name`` only; the function returned takes it back."""

        def first(*arguments: Any) -> Any:
            self.off(name, first)
            return fn(*arguments)

        first.once = fn  # type: ignore[attr-defined]  # so that off() finds it by what was given
        if not callable(fn):
            raise InvalidInput(f"listener {fn!r:.60}: expected a function")
        return self.on(name, first)

    def off(self, name: str, fn: Listener | None = None) -> None:
        """End a listener of an event; without ``fn`` all of them."""
        self._check(name)
        listeners = (self._listeners or {}).get(name, [])
        if fn is None:
            listeners.clear()
        else:
            found = next((one for one in listeners if one == fn or getattr(one, "once", None) == fn), None)
            if found is not None:
                listeners.remove(found)
        if self._listeners is not None and not any(self._listeners.values()):
            self._listeners = None

    async def wait_for(self, name: str, *, timeout: float | timedelta | None = None) -> tuple[Any, ...]:
        """The arguments of the next event ``name``; ``Timeout`` when none comes in ``timeout`` seconds."""
        left = None if timeout is None else seconds(timeout, "timeout")
        waiter: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()

        def happened(*arguments: Any) -> None:
            if not waiter.done():
                waiter.set_result(arguments)

        end = self.once(name, happened)
        try:
            return await asyncio.wait_for(waiter, left)
        except TimeoutError as error:
            raise Timeout(f"no event {name!r} in {timeout} seconds") from error
        finally:
            end()

    def _check(self, name: str) -> None:
        if name not in self.EVENTS:
            raise InvalidInput(f"event {name!r}: there are {', '.join(self.EVENTS)}")

    def _emit(self, name: str, *arguments: Any) -> None:
        """Call the listeners, in a transaction when it has committed."""
        node = innermost(self._engine)
        if node is None:
            self._emit_now(name, *arguments)
        else:
            node.after.append(partial(self._emit_now, name, *arguments))

    def _emit_now(self, name: str, *arguments: Any) -> None:
        for listener in tuple((self._listeners or {}).get(name, ())):
            try:
                result = listener(*arguments)
                if inspect.iscoroutine(result):
                    _start(result, name)
            except Exception:
                log.exception("a listener failed on %r", name)


_running: set[asyncio.Task[Any]] = set()


def _start(coroutine: Any, name: str) -> None:
    """Run a listener's coroutine as a task, or in a thread where there is no event loop."""

    async def guarded() -> None:
        try:
            await coroutine
        except Exception:
            log.exception("a listener failed on %r", name)

    try:
        task = asyncio.get_running_loop().create_task(guarded())
    except RuntimeError:
        threading.Thread(target=asyncio.run, args=(guarded(),), name="howdah-listener", daemon=True).start()
    else:
        _running.add(task)
        task.add_done_callback(_running.discard)
