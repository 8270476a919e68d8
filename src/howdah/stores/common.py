"""What key-value and record stores share: keys, expiry, versions, reading and changing one value atomically."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, TypeVar

from ..engines.base import Engine, Op
from ..errors import Conflict, InvalidKey, InvalidValue
from ..table import AsyncTable
from ..values import DELETE, KEEP, check_text, seconds

V = TypeVar("V")
MAX_KEY: Final = 1024
Duration = float | timedelta


@dataclass(frozen=True, slots=True)
class Versioned(Generic[V]):
    """A value with its version, opaque text that is new on each write. ``None`` in both when nothing is there."""

    value: V | None
    version: str | None
    expires_at: datetime | None


def check_key(key: object, *, empty: bool) -> str:
    """A text key of at most 1,024 bytes."""
    if not isinstance(key, str):
        raise InvalidKey(f"key {key!r:.80} is {type(key).__name__}; expected text")
    if not key and not empty:
        raise InvalidKey("the key is empty; expected 1 to 1,024 bytes of text")
    try:
        check_text(key, "key")
    except InvalidValue as error:
        raise InvalidKey(str(error)) from None
    if len(key) * 4 > MAX_KEY and len(key.encode()) > MAX_KEY:
        raise InvalidKey(f"the key is {len(key.encode())} bytes; at most 1,024")
    return key


def expiry(ttl: Duration | None, now: float) -> datetime | None:
    """The moment a value expires, to the millisecond and no earlier."""
    if ttl is None:
        return None
    due = now + seconds(ttl, "ttl")
    if due > 253402300799:
        raise InvalidValue(f"ttl={ttl!r}: the expiry would be after the year 9999")
    return moment(due)


def moment(at: float) -> datetime:
    """Aware UTC ``datetime`` of seconds since 1970."""
    return datetime.fromtimestamp(at, UTC)


def new_version() -> int:
    """A version that no earlier write of the key had."""
    return random.getrandbits(63)


def read_version(version: object) -> int | None:
    """The number of a version text; ``None`` for absent."""
    if version is None:
        return None
    if isinstance(version, str):
        try:
            return int(version, 16)
        except ValueError:
            pass
    raise InvalidValue(f"version={version!r:.60}: pass the version of get_versioned, unchanged")


def show_version(version: int) -> str:
    """Version text."""
    return f"{version:016x}"


async def mutate(
    engine: Engine,
    table: AsyncTable[Any],
    key: tuple[Any, ...],
    fn: Callable[[Any], Any] | Callable[[Any], Awaitable[Any]],
    decode: Callable[[Any], Any],
    make: Callable[[Any], list[Any]],
    attempts: int,
) -> Any:
    """Read, change and write one value so that no other write comes between; what is stored afterwards.

    A plain ``fn`` runs inside the write, holding the row. A coroutine function runs outside, and the write happens only
    if nothing else was written meanwhile, else it runs again, up to ``attempts`` times.
    """
    if attempts < 1 or isinstance(attempts, bool):
        raise InvalidValue(f"attempts={attempts!r}: expected an integer >= 1")
    ops = table._ops
    if not inspect.iscoroutinefunction(fn):

        def work() -> Op[Any]:
            for _ in range(attempts):
                row = yield from ops.locked(key, ("value",))
                before = None if row is None else decode(row[0])
                after = fn(before)
                done, result = yield from _apply(ops, key, row is not None, before, after, decode, make)
                if done:
                    return result
            raise Conflict(f"the key was written by others {attempts} times in between; try again")

        return await table._write(work)
    for attempt in range(attempts):
        row = await table._get(key, ("value", "version"))
        before = None if row is None else decode(row[0])
        after = await fn(before)
        done, result = await table._write(partial(_guarded, ops, key, row, after, decode, make))
        if done:
            return result
        await engine.pause(random.uniform(0, 0.002 * 2**attempt))
    raise Conflict(f"the key was written by others {attempts} times in between; try again")


def _apply(
    ops: Any,
    key: tuple[Any, ...],
    there: bool,
    before: Any,
    after: Any,
    decode: Callable[[Any], Any],
    make: Callable[[Any], list[Any]],
) -> Op[tuple[bool, Any]]:
    if after is KEEP:
        return True, before
    if after is DELETE:
        if there:
            yield from ops.delete([key])
        return True, None
    row = ops.encode(make(after))
    if there:
        yield from ops.put([row])
        done = True
    else:
        done = yield from ops.create(row)
    return done, decode(row[ops.schema.names.index("value")])


def _guarded(
    ops: Any,
    key: tuple[Any, ...],
    seen: Sequence[Any] | None,
    after: Any,
    decode: Callable[[Any], Any],
    make: Callable[[Any], list[Any]],
) -> Op[tuple[bool, Any]]:
    row = yield from ops.locked(key, ("value", "version"))
    if (row is None) != (seen is None) or (row is not None and seen is not None and row[1] != seen[1]):
        return False, None
    before = None if row is None else decode(row[0])
    return (yield from _apply(ops, key, row is not None, before, after, decode, make))


def put_if(ops: Any, key: tuple[Any, ...], version: int | None, row: list[Any] | None) -> Op[bool]:
    """Write ``row`` (or delete, for ``None``) only if the version still holds; ``None`` stands for absent."""
    found = yield from ops.locked(key, ("version",))
    if (found is None) != (version is None) or (found is not None and found[0] != version):
        return False
    if row is None:
        if found is not None:
            yield from ops.delete([key])
        return True
    driver = ops.encode(row)
    if found is None:
        return bool((yield from ops.create(driver)))
    yield from ops.put([driver])
    return True
