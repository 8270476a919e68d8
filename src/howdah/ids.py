"""Generated keys: time-ordered UUIDs (version 7, RFC 9562) that ascend within a process."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from uuid import UUID

from .errors import InvalidValue

_lock = threading.Lock()
_last = 0


def uuid7(clock_ms: int | None = None) -> UUID:
    """A new UUID of version 7; ``clock_ms`` is milliseconds since 1970, now if left out."""
    return UUID(int=_numbers(1, clock_ms)[0])


def uuid7_texts(count: int, clock_ms: int | None = None) -> list[str]:
    """``str(uuid7())`` so many times, made in less time."""
    all_digits = [f"{number:032x}" for number in _numbers(count, clock_ms)]
    return [f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}" for d in all_digits]


def new_id(ids: Callable[[], UUID] | None, now: float) -> UUID:
    """What ``ids`` makes, or a UUID of version 7 of the moment ``now`` (seconds since 1970)."""
    if ids is None:
        return uuid7(int(now * 1000))
    made = ids()
    if not isinstance(made, UUID):
        raise InvalidValue(f"ids() gave {made!r:.60}: expected a uuid.UUID")
    return made


def _numbers(count: int, clock_ms: int | None) -> list[int]:
    global _last
    now = time.time_ns() // 1_000_000 if clock_ms is None else clock_ms
    randoms = struct.unpack(f"{count}Q", os.urandom(8 * count))
    with _lock:
        # 48 bits of time and 12 of a counter, so that keys made in one millisecond still ascend.
        first = max(now << 12, _last + 1)
        _last = first + count - 1
    return [
        (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | random >> 2
        for stamp, random in enumerate(randoms, first)
    ]
