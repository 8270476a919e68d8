"""Blocking subscriptions: a thread that reads changes and calls back; waiting for an event."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..changes import Change
from ..errors import Closed, Error, InvalidInput, Lagged, Timeout
from ..events import Emitting
from ..values import seconds

if TYPE_CHECKING:
    from .changes import Changes

log = logging.getLogger("howdah")
SLICE = 0.1


def subscribed(
    feed: Changes[Any], callback: Callable[[Change[Any]], Any], poll: float | timedelta
) -> Callable[[], None]:
    """Call ``callback`` with every change, in a thread; the function returned ends it, and waits for a call under way."""
    if not callable(callback):
        raise InvalidInput(f"callback={callback!r:.60}: expected a function of one change")
    feed._async.polled(poll)
    feed.start()
    ended = threading.Event()

    def deliver() -> None:
        while not ended.is_set():
            try:
                changes = feed.poll(timeout=SLICE)
            except Lagged as error:
                changes = [feed._async.resync(error)]
            except Closed:
                return
            except Error as error:
                log.warning("changes will be looked for again: %s", error)
                time.sleep(1)
                continue
            for change in changes:
                if ended.is_set():
                    return
                try:
                    callback(change)
                except Exception:
                    log.exception("a subscriber failed on %s of %r", change.type, change.key)

    thread = threading.Thread(target=deliver, name="howdah-subscription", daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        if threading.current_thread() is not thread:
            thread.join()

    return end


def waited(source: Emitting, name: str, timeout: float | timedelta | None) -> tuple[Any, ...]:
    """The arguments of the next event, or ``Timeout``."""
    happened = threading.Event()
    found: list[tuple[Any, ...]] = []

    def first(*arguments: Any) -> None:
        found.append(arguments)
        happened.set()

    left = None if timeout is None else seconds(timeout, "timeout")
    end = source.once(name, first)
    deadline = None if left is None else time.monotonic() + left
    while not happened.wait(SLICE if deadline is None else min(SLICE, max(0.0, deadline - time.monotonic()))):
        if source._engine.closed:
            end()
            raise Closed("the store was closed while an event was waited for")
        if deadline is not None and time.monotonic() >= deadline:
            end()
            raise Timeout(f"no event {name!r} in {timeout} seconds")
    return found[0]
