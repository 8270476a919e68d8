"""Encryption of values at rest: AES-256-GCM under keys made from a passphrase, with the key's number in front."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Final

from ..errors import Corrupt, ModelUnavailable, WrongPassphrase

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

    def seal(self, text: str, context: str) -> str:
        """Text, encrypted under a fresh nonce, as base64."""
        nonce = os.urandom(NONCE)
        return base64.b64encode(nonce + self._aead.encrypt(nonce, text.encode(), context.encode())).decode()

    def open(self, sealed: str, context: str) -> str:
        """The text; ``WrongPassphrase`` when this key did not seal it there, ``Corrupt`` when it is no sealed text."""
        try:
            data = base64.b64decode(sealed.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise Corrupt(f"{context}: what is stored is not encrypted text") from error
        if len(data) < NONCE + 16:
            raise Corrupt(f"{context}: what is stored is not encrypted text")
        try:
            return str(self._aead.decrypt(data[:NONCE], data[NONCE:], context.encode()).decode())
        except self._bad as error:
            raise WrongPassphrase(f"{context}: this key does not open what is stored, or it was changed") from error
