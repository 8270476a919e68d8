"""A table's rows as files: which name a row's file has, what is in it, and the way back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ... import rowjson
from ...check import checker
from ...errors import Corrupt, InvalidInput
from ...values import MISSING
from .readable import DriverRow, ReadableTable

TABLE_FILE: Final = "_table.json"
LAST_FILE: Final = "_last.json"
LONGEST: Final = 100
_PLAIN: Final = re.compile(r"[a-z0-9+=@-][a-z0-9+=@.,%_-]*")
_UNSAFE: Final = re.compile(r"[^\w.+=@-]|[^\S ]")


def file_name(parts: Sequence[Any]) -> str:
    """The name of the file of a row with this key (JSON values).

    A short key of lower-case ASCII is its own name, other characters percent-encoded. For the rest a digest tells names
    apart that some file systems take for one: by case, by Unicode form, by length.
    """
    texts = [p if isinstance(p, str) else json.dumps(p) for p in parts]
    name = ",".join(_UNSAFE.sub(_encoded, t) for t in texts)
    if len(name) <= LONGEST and _PLAIN.fullmatch(name):
        return f"{name}.json"
    digest = hashlib.blake2b(json.dumps(list(parts)).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    shown = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore").lstrip("._")
    return f"{shown}~{digest}.json"


def _encoded(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02x}" for byte in found[0].encode("utf-8", "surrogatepass"))


def dump(value: Any) -> bytes:
    """JSON for people: a line for each member of the outermost object, other things on one line."""
    if not isinstance(value, dict) or not value:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    lines = [
        f"  {json.dumps(n, ensure_ascii=False)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}"
        for n, v in value.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def load(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a file; ``Corrupt`` naming the file when it is none."""
    try:
        found = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{where}: this file cannot be read: {error}; repair it, or move it away") from error
    if not isinstance(found, dict):
        raise Corrupt(f"{where}: expected a JSON object; repair the file, or move it away")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class RowFiles:
    """The files of one table."""

    def __init__(self, table: ReadableTable) -> None:
        schema = table.schema
        self._table = table
        self._read = table.reader(schema.names)
        self._read_key = table.reader(schema.key)
        self._writers = {c.name: rowjson.writer(c) for c in schema.columns}
        self._readers = {c.name: (rowjson.reader(c), checker(c)) for c in schema.columns}

    def key(self, driver: Sequence[Any]) -> list[Any]:
        """A key's JSON values, from its driver form."""
        row = self._read_key(driver)
        return [self._writers[n](row[n]) for n in self._table.schema.key]

    def text(self, driver: Sequence[Any]) -> bytes:
        """What is in the file of a row: a column that is null is left out, so that it is told from JSON's null."""
        row = self._read(driver)
        named = zip(self._table.schema.names, driver, strict=False)
        return dump({n: self._writers[n](row[n]) for n, value in named if value is not None})

    def parse(self, data: bytes, where: str) -> DriverRow:
        """The row in a file, in driver form; ``Corrupt`` naming file and column when it is none."""
        found = load(data, where)
        schema = self._table.schema
        unknown = [n for n in found if n not in schema.by_name]
        if unknown:
            raise Corrupt(f"{where}: table {schema.name!r} has no column {unknown[0]!r}")
        return self._table.encode([self._value(found, n, where) for n in schema.names])

    def parse_key(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        """A key in driver form, from its JSON values."""
        names = self._table.schema.key
        made = (self._readers[n][0](p) for n, p in zip(names, parts, strict=True))
        return tuple(self._table.encode_value(n, self._readers[n][1](v)) for n, v in zip(names, made, strict=True))

    def _value(self, found: dict[str, Any], name: str, where: str) -> Any:
        read, check = self._readers[name]
        value = found.get(name, MISSING)
        column = self._table.schema.by_name[name]
        if value is MISSING or (value is None and column.kind != "json"):
            if column.nullable:
                return None
            raise Corrupt(f"{where}: column {name!r} is missing")
        try:
            return check(read(value))
        except (InvalidInput, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise Corrupt(f"{where}: column {name!r} cannot be read: {error}") from error
