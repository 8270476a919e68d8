"""Encrypted columns: values sealed under the current key of a keyring before any engine sees them, opened when they are read.

Stored are the bytes ``1``, the length of the key's name, the name (UTF-8), a nonce of 12 bytes, and AES-256-GCM (NIST SP
800-38D) of the value's JSON, authenticated together with the names of table and column: a sealed value cannot be moved to
another column. Moving it to another row of its column is not noticed.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from . import rowjson
from .check import checker
from .cipher import Cipher
from .errors import Corrupt, InvalidInput, WrongPassphrase
from .schema import Column
from .values import check_text, decode_json

VERSION: Final = 1
KEY_BYTES: Final = 32


class Keyring:
    """Keys for encrypted columns, by name: 32 bytes each, or their base64. ``current`` (default: the last) encrypts, all of
    them decrypt. Make a key with ``Keyring.new_key()``, and keep it outside of the store."""

    def __init__(self, keys: Mapping[str, bytes | str], *, current: str | None = None) -> None:
        if not isinstance(keys, Mapping) or not keys:
            raise InvalidInput("Keyring: expected a mapping of names to keys")
        self._ciphers = {_name(n): Cipher(_key(n, k)) for n, k in keys.items()}
        self.current = list(keys)[-1] if current is None else current
        if self.current not in self._ciphers:
            raise InvalidInput(f"Keyring: current={current!r}: there are {', '.join(self._ciphers)}")
        self._head = _head(self.current)

    def __repr__(self) -> str:
        return f"<keyring of {', '.join(self._ciphers)}, current {self.current}>"

    @staticmethod
    def new_key() -> str:
        """A fresh random key as base64."""
        return base64.b64encode(os.urandom(KEY_BYTES)).decode()

    def seal(self, data: bytes, context: str) -> bytes:
        """Encrypted under the current key."""
        return self._head + self._ciphers[self.current].encrypt(data, context)

    def open(self, sealed: bytes, context: str) -> bytes:
        """What was encrypted; ``WrongPassphrase`` when no key here did it, ``Corrupt`` when nothing did."""
        size = 2 + sealed[1] if len(sealed) > 2 and sealed[0] == VERSION else len(sealed)
        try:
            name = sealed[2:size].decode()
        except UnicodeDecodeError:
            size = len(sealed)
        if size >= len(sealed):
            raise Corrupt(f"{context}: what is stored is not encrypted")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise WrongPassphrase(f"{context}: encrypted with key {name!r}, which this keyring does not have")
        return cipher.decrypt(sealed[size:], context)

    def is_current(self, sealed: bytes) -> bool:
        """Whether the current key encrypted it."""
        return sealed.startswith(self._head)


def _name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(check_text(name, "key name").encode()) <= 255:
        raise InvalidInput(f"Keyring: {name!r:.60}: a key's name is text of 1 to 255 bytes")
    return name


def _key(name: str, key: object) -> bytes:
    found: object = key
    if isinstance(key, str):
        try:
            found = base64.b64decode(key.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            found = None
    if not isinstance(found, bytes) or len(found) != KEY_BYTES:
        raise InvalidInput(
            f"Keyring: key {name!r} is not {KEY_BYTES} bytes or their base64: make one with Keyring.new_key()"
        )
    return found


def _head(name: str) -> bytes:
    data = name.encode()
    return bytes((VERSION, len(data))) + data


class Sealed:
    """How the values of one column are sealed and opened."""

    def __init__(self, keys: Keyring, table: str, column: Column) -> None:
        self.keys = keys
        self.kind = column.kind
        self._context = f"{table}.{column.name}"
        self._check = checker(column)
        self._write, self._read = rowjson.writer(column), rowjson.reader(column)

    def check(self, value: Any) -> bytes:
        """A value, checked and sealed."""
        shown = self._write(self._check(value))
        return self.keys.seal(json.dumps(shown, ensure_ascii=False).encode(), self._context)

    def open(self, sealed: bytes) -> Any:
        """The value."""
        shown = json.loads(self.keys.open(bytes(sealed), self._context))
        return decode_json(shown) if self.kind == "json" else self._read(shown)

    def current(self, sealed: bytes) -> bool:
        """Whether the current key encrypted it."""
        return self.keys.is_current(sealed)

    def reseal(self, sealed: bytes) -> bytes:
        """The same value under the current key."""
        return self.keys.seal(self.keys.open(sealed, self._context), self._context)


def seal_columns(
    table: str, columns: Iterable[Column], encrypted: Iterable[str], keys: Keyring | None
) -> tuple[Column, ...]:
    """The columns with those named in ``encrypted`` sealed."""
    if isinstance(encrypted, str):
        raise InvalidInput(f"encrypted={encrypted!r}: expected a list of column names")
    wanted = list(encrypted)
    if wanted and not isinstance(keys, Keyring):
        raise InvalidInput("encrypted columns need keys=howdah.Keyring({name: key})")
    if keys is not None and not wanted:
        raise InvalidInput("keys= is given and encrypted= names no column")
    by_name = {c.name: c for c in columns}
    for name in wanted:
        if name not in by_name:
            raise InvalidInput(f"table {table!r}: encrypted={name!r}: it has {', '.join(by_name)}")
        column = by_name[name]
        if column.vector is not None or column.auto:
            raise InvalidInput(f"table {table!r}: column {name!r} is {column.describe()} and cannot be encrypted")
        assert keys is not None
        by_name[name] = replace(column, kind="bytes", encrypted=column.kind, sealed=Sealed(keys, table, column))
    return tuple(by_name.values())
