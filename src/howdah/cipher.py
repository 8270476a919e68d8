"""Encryption of values at rest: AES-256-GCM under keys that are given, or made from a passphrase."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Final

from .errors import Corrupt, ModelUnavailable, WrongPassphrase

NONCE: Final = 12


def _library() -> Any:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ModelUnavailable("encryption needs a library: pip install 'howdah[crypto]'") from error
    return AESGCM, InvalidTag


def derive(passphrase: str, salt: bytes, rounds: int) -> bytes:
    """A key of 32 bytes by PBKDF2-HMAC-SHA256 (RFC 8018)."""
    import hashlib

    return hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, rounds, 32)


class Cipher:
    """One key. What is sealed is bound to a context: it cannot be opened in another place."""

    def __init__(self, key: bytes) -> None:
        aesgcm, self._bad = _library()
        self._aead = aesgcm(key)

    def encrypt(self, data: bytes, context: str) -> bytes:
        """A fresh nonce and the data encrypted under it."""
        nonce = os.urandom(NONCE)
        return bytes(nonce + self._aead.encrypt(nonce, data, context.encode()))

    def decrypt(self, sealed: bytes, context: str) -> bytes:
        """The data; ``WrongPassphrase`` when this key did not encrypt it there, ``Corrupt`` when nothing did."""
        if len(sealed) < NONCE + 16:
            raise Corrupt(f"{context}: what is stored is not encrypted")
        try:
            return bytes(self._aead.decrypt(sealed[:NONCE], sealed[NONCE:], context.encode()))
        except self._bad as error:
            raise WrongPassphrase(f"{context}: this key does not open what is stored, or it was changed") from error

    def seal(self, text: str, context: str) -> str:
        """Text, encrypted, as base64."""
        return base64.b64encode(self.encrypt(text.encode(), context)).decode()

    def open(self, sealed: str, context: str) -> str:
        """The text that ``seal`` was given."""
        try:
            data = base64.b64decode(sealed.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise Corrupt(f"{context}: what is stored is not encrypted text") from error
        return self.decrypt(data, context).decode()
