"""Pages and their cursors: opaque, URL-safe text that is bound to one table, filter and order."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from .errors import InvalidCursor, InvalidInput, InvalidLimit
from .values import INT_MAX, from_micros, to_micros

T = TypeVar("T")
MAX_CURSOR: Final = 8192


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items of one page; ``next_cursor`` is ``None`` on the last page and only there."""

    items: list[T]
    next_cursor: str | None


def check_limit(limit: object, name: str = "limit", *, least: int = 0) -> int | None:
    """``limit`` if it is an integer >= ``least`` or ``None``; else ``InvalidLimit``."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or not least <= limit <= INT_MAX:
        raise InvalidLimit(f"{name}={limit!r}: expected an integer >= {least}, or None for all")
    return limit


def binding(*parts: object) -> str:
    """A short digest of what a cursor belongs to."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"t": to_micros(value)}
    if isinstance(value, UUID):
        return {"u": str(value)}
    if isinstance(value, Decimal):
        return {"d": str(value)}
    return {"b": value.hex()} if isinstance(value, bytes) else value


def _rich(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, text),) = value.items()
    if kind == "t":
        return from_micros(text)
    if kind == "b":
        return bytes.fromhex(text)
    return UUID(text) if kind == "u" else Decimal(text)


def encode_cursor(values: Sequence[Any], bound: str) -> str:
    """The cursor behind a row with these sort values (driver form)."""
    text = json.dumps([1, bound, [_plain(v) for v in values]], separators=(",", ":"))
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    if len(cursor) > MAX_CURSOR:
        raise InvalidInput("the columns of order_by hold texts too long for a cursor (8 KiB); order by shorter columns")
    return cursor


def decode_cursor(cursor: object, bound: str, width: int) -> list[Any]:
    """The sort values of a cursor made by ``encode_cursor`` for the same binding; else ``InvalidCursor``."""
    if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR:
        raise InvalidCursor("the cursor is not one of ours: pass the next_cursor of a page, unchanged")
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        version, owner, values = json.loads(text)
        found = [_rich(v) for v in values]
    except (ValueError, binascii.Error, TypeError, AttributeError, ArithmeticError, UnicodeEncodeError) as error:
        raise InvalidCursor("the cursor is broken: pass the next_cursor of a page, unchanged") from error
    if version != 1 or owner != bound or len(found) != width:
        raise InvalidCursor("the cursor belongs to another table, filter or order: repeat the same call with it")
    return found
