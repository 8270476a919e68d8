"""Generated keys: time-ordered UUIDs (version 7, RFC 9562) that ascend within a process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from uuid import UUID

from .errors import InvalidValue

_lock = threading.Lock()
_last = 0


def uuid7(clock_ms: int | None = None) -> UUID:
    """A new UUID of version 7; ``clock_ms`` is milliseconds since 1970, now if left out."""
    return UUID(int=_number(clock_ms))


def uuid7_text(clock_ms: int | None = None) -> str:
    """``str(uuid7())``, made in less time."""
    digits = f"{_number(clock_ms):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_id(ids: Callable[[], UUID] | None, now: float) -> UUID:
    """What ``ids`` makes, or a UUID of version 7 of the moment ``now`` (seconds since 1970)."""
    if ids is None:
        return uuid7(int(now * 1000))
    made = ids()
    if not isinstance(made, UUID):
        raise InvalidValue(f"ids() gave {made!r:.60}: expected a uuid.UUID")
    return made


def _number(clock_ms: int | None) -> int:
    global _last
    now = time.time_ns() // 1_000_000 if clock_ms is None else clock_ms
    random = int.from_bytes(os.urandom(8), "big")
    with _lock:
        # 48 bits of time and 12 of a counter, so that keys made in one millisecond still ascend.
        stamp = max(now << 12, _last + 1)
        _last = stamp
    return (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | random >> 2
