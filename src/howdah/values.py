"""Values as they are stored: JSON that keeps its types, text that every engine accepts, markers, durations."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from .errors import InvalidInput, InvalidName, InvalidValue

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
MAX_JSON_DEPTH: Final = 128
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Marker(Enum):
    """Values that stand for something JSON cannot say."""

    NULL = "null"
    MISSING = "missing"
    DELETE = "delete"
    KEEP = "keep"

    def __repr__(self) -> str:
        return f"howdah.{self.name}"


NULL: Final = Marker.NULL
MISSING: Final = Marker.MISSING
DELETE: Final = Marker.DELETE
KEEP: Final = Marker.KEEP


def check_retries(retries: object) -> int:
    """How often a transaction is tried again."""
    if type(retries) is not int or retries < 0:
        raise InvalidInput(f"retries={retries!r:.40}: expected an integer >= 0")
    return retries


def check_name(name: object, what: str) -> str:
    """Return ``name`` if it may name a table, column or index; else raise ``InvalidName``."""
    if not isinstance(name, str) or len(name) > 63 or not _NAME.match(name):
        raise InvalidName(f"{what} {name!r}: use a letter, then letters, digits or _, at most 63 characters")
    return name


def check_text(value: str, where: str) -> str:
    """Return ``value`` if every engine can hold it: no U+0000 and no lone surrogate."""
    if value.isascii():
        if "\0" in value:
            raise InvalidValue(f"{where}: text contains U+0000, which no engine may hold; remove it")
        return value
    if "\0" in value:
        raise InvalidValue(f"{where}: text contains U+0000, which no engine may hold; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{where}: lone surrogate at character {error.start}; text must be valid Unicode") from None
    return value


def check_json(value: Any, where: str = "value", depth: int = 0) -> None:
    """Raise ``InvalidValue``, naming the path inside, unless ``value`` is plain JSON that survives storage."""
    kind = type(value)
    if kind is str:
        check_text(value, where)
    elif kind is bool or value is None:
        return
    elif kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidValue(f"{where}: integer {value} is beyond 64 bits; store it as text")
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidValue(f"{where}: {value} is not a finite number")
    elif kind is dict:
        if depth >= MAX_JSON_DEPTH:
            raise InvalidValue(f"{where}: nested deeper than {MAX_JSON_DEPTH} levels")
        for key, item in value.items():
            if type(key) is not str:
                raise InvalidValue(f"{where}: key {key!r} is {type(key).__name__}; JSON keys are text")
            check_text(key, f"{where} key {key!r}")
            check_json(item, f"{where}.{key}", depth + 1)
    elif kind is list:
        if depth >= MAX_JSON_DEPTH:
            raise InvalidValue(f"{where}: nested deeper than {MAX_JSON_DEPTH} levels")
        for position, item in enumerate(value):
            check_json(item, f"{where}[{position}]", depth + 1)
    else:
        raise InvalidValue(
            f"{where}: {kind.__name__} is not a JSON value; use str, int, float, bool, None, list or dict"
        )


def _fine(value: Any, depth: int = 0) -> bool:
    """Whether a value is surely storable; quick, since nearly all are. The others are looked at by ``check_json``.

    Texts and integers are looked at where they stand: a call for each would cost as much as writing it as JSON.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str or not key.isascii() or "\0" in key:
                return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        if kind is str:
            return value.isascii() and "\0" not in value
        if kind is int:
            return bool(INT_MIN <= value <= INT_MAX)
        return math.isfinite(value) if kind is float else kind is bool or value is None
    if depth >= MAX_JSON_DEPTH:
        return False
    for item in items:
        inner = type(item)
        if inner is str:
            if not item.isascii() or "\0" in item:
                return False
        elif inner is int:
            if not INT_MIN <= item <= INT_MAX:
                return False
        elif inner is not bool and item is not None and not _fine(item, depth + 1):
            return False
    return True


def _make_encoder() -> Callable[[Any], str]:
    """JSON's own C encoder, made once: ``JSONEncoder.encode`` makes it anew for each value."""
    plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
    make, quote = getattr(json.encoder, "c_make_encoder", None), getattr(json.encoder, "encode_basestring", None)
    if make is None or quote is None:
        return plain.encode
    encode = make(None, plain.default, quote, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


_encode = _make_encoder()
_canonical = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False, sort_keys=True
).encode
decode_json = json.loads


def encode_json(value: Any, where: str = "value") -> str:
    """JSON text of ``value``; reading it back gives an equal value of the same type. Refuses what is not JSON."""
    if not _fine(value):
        check_json(value, where)
    return _encode(value)


# jsonb keeps numbers as decimals: 1e16 would come back as an int and -0.0 as 0.0. A float is therefore written
# with a decimal point always, and minus zero as 0.00, which no other float is ever written as.
_SPECIAL = re.compile(r'"(?:[^"\\]|\\.)*"|-0\.0(?![0-9])|-?[0-9]+(?:\.[0-9]+)?e[+-]?[0-9]+')


def _plain(match: re.Match[str]) -> str:
    text = match.group()
    if text[0] == '"':
        return text
    if text == "-0.0":
        return "0.00"
    number = format(Decimal(text), "f")
    return number if "." in number else number + ".0"


def json_for_jsonb(text: str) -> str:
    """Rewrite the floats of JSON text so that ``jsonb`` keeps them floats."""
    if "e" in text or "-0.0" in text:
        return _SPECIAL.sub(_plain, text)
    return text


def _jsonb_float(text: str) -> float:
    return -0.0 if text == "0.00" else float(text)


_jsonb_decoder = json.JSONDecoder(parse_float=_jsonb_float)


def json_from_jsonb(text: str) -> Any:
    """Read JSON text that ``jsonb`` printed."""
    return _jsonb_decoder.decode(text) if "0.00" in text else decode_json(text)


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of ``value`` (keys sorted at every depth; ``1``, ``1.0``, ``"1"`` differ)."""
    check_json(value)
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def canonical_json(value: Any, text: str) -> str:
    """Canonical JSON of a value whose JSON is ``text``: the same unless it has keys to be sorted."""
    return _canonical(value) if "{" in text else text


def json_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values, types kept apart: ``1 == 1.0`` but ``1 != True``."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(json_equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(json_equal, left, right))
    return bool(left == right)


LONGEST: Final = 6e10


def seconds(value: float | timedelta, name: str, *, zero: bool = False) -> float:
    """Seconds of a number or ``timedelta``; must be > 0 (or >= 0 with ``zero``), and at most 1,900 years."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or value != value
    if bad or not 0 <= value <= LONGEST or (value == 0 and not zero):
        least = ">= 0" if zero else "> 0"
        raise InvalidValue(
            f"{name}={value!r:.60}: expected a number of seconds or a timedelta, {least}, at most 1,900 years"
        )
    return float(value)


def utc(value: object, name: str) -> datetime:
    """An aware moment in UTC; else ``InvalidInput``."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidInput(f"{name}={value!r:.60}: expected an aware datetime")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInput(f"{name}={value!r:.60}: beyond the years 1 to 9999 in UTC") from error


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 of an aware ``datetime``."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Aware UTC ``datetime`` of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


def simple_fold(text: str) -> str:
    """Unicode simple case folding (one character to one), as ``ilike`` compares text on every engine."""
    if text.isascii():
        return text.lower()
    return "".join(f if len(f := c.casefold()) == 1 else (low if len(low := c.lower()) == 1 else c) for c in text)


def as_list(values: Any, what: str) -> list[Any]:
    """The items of an iterable that is no text; else ``InvalidInput`` saying what was expected."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInput(f"{what}: expected a list or another iterable, got {type(values).__name__}")
    return list(values)
