"""Secrets: encrypted values under names, with label, provider and expiry; and other places that secrets come from. Blocking twin of ``howdah.stores.secrets``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from typing import Any

from ..stores.secrets import AsyncSecrets, SecretInfo
from ..values import KEEP
from .runner import Runner


class Secrets:
    """Secrets in a store: AES-256-GCM, a new nonce for each write, name and metadata authenticated; the key comes from the
    passphrase by PBKDF2-SHA256 with 600,000 rounds, once per unlocking. Opened by ``store.secrets(name)``.

    Locked, it looks empty, so that a chain falls through to the next; ``put`` raises ``Locked``.
    """

    def __init__(self, inner: AsyncSecrets, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def unlocked(self) -> bool:
        """Whether a passphrase has been given and not taken back."""
        return self._async.unlocked

    def unlock(self, passphrase: str) -> None:
        """Make the key from a passphrase; ``WrongPassphrase`` when it is not the one the store was made with."""
        return self._run(self._async.unlock(passphrase))

    def lock(self) -> None:
        """Forget the key."""
        return self._async.lock()

    def get(self, key: str) -> str | None:
        """The secret's value, or ``None``."""
        return self._run(self._async.get(key))

    def put(self, key: str, value: str, *, label: Any = KEEP, provider: Any = KEEP, expires_at: Any = KEEP) -> None:
        """Store a secret. Label, provider and expiry (an aware moment) stay unless given anew; ``None`` clears them.

        Raises ``Locked`` without passphrase.
        """
        return self._run(self._async.put(key, value, label=label, provider=provider, expires_at=expires_at))

    def has(self, key: str) -> bool:
        """Whether there is such a secret; ``False`` while locked."""
        return self._run(self._async.has(key))

    def keys(self) -> list[str]:
        """The names, in order; never values. Empty while locked."""
        return self._run(self._async.keys())

    def info(self, key: str) -> SecretInfo | None:
        """What is known of a secret but its value."""
        return self._run(self._async.info(key))

    def delete(self, key: str) -> bool:
        """Delete a secret; whether it was there. ``False`` while locked."""
        return self._run(self._async.delete(key))

    def clear(self) -> int:
        """Delete every secret; how many there were. Nothing while locked."""
        return self._run(self._async.clear())

    def rotate(self, passphrase: str) -> int:
        """Encrypt everything anew under another passphrase, all or nothing; how many secrets there are."""
        return self._run(self._async.rotate(passphrase))
