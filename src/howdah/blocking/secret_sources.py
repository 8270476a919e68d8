"""Secrets from elsewhere: the environment, and several sources one after the other. Blocking twin of ``howdah.stores.secret_sources``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..stores.secret_sources import AsyncChainedSecrets, AsyncEnvSecrets, Waiting
from .runner import Inline


class EnvSecrets:
    """Secrets from a mapping, else the environment: ``PREFIX_KEY``, else ``KEY``, in upper case with ``-`` as ``_``.
    Read-only."""

    def __init__(self, mapping: Mapping[str, str] | None = None, prefix: str | None = None) -> None:
        self._async = AsyncEnvSecrets(mapping, prefix)
        self._run = Inline()

    def get(self, key: str) -> str | None:
        """The value, or ``None``."""
        return self._run(self._async.get(key))

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return self._run(self._async.has(key))

    def keys(self) -> list[str]:
        """The names of the mapping; the environment is not listed."""
        return self._run(self._async.keys())

    def put(self, key: str, value: str, **about: Any) -> None:
        """Refused: the process's environment is not ours to change."""
        return self._run(self._async.put(key, value, **about))

    def delete(self, key: str) -> bool:
        """``False``: nothing is deleted here."""
        return self._run(self._async.delete(key))

    def clear(self) -> int:
        """0: nothing is deleted here."""
        return self._run(self._async.clear())


class ChainedSecrets:
    """Several sources: the first hit wins, ``put`` goes to the first, ``delete`` and ``clear`` to all."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._async = AsyncChainedSecrets([Waiting(source) for source in sources])
        self._run = Inline()

    def get(self, key: str) -> str | None:
        """The value of the first source that has it."""
        return self._run(self._async.get(key))

    def has(self, key: str) -> bool:
        """Whether any source has it."""
        return self._run(self._async.has(key))

    def put(self, key: str, value: str, **about: Any) -> None:
        """Store it in the first source."""
        return self._run(self._async.put(key, value, **about))

    def delete(self, key: str) -> bool:
        """Delete it everywhere; whether it was anywhere."""
        return self._run(self._async.delete(key))

    def clear(self) -> int:
        """Delete everything everywhere; how many there were."""
        return self._run(self._async.clear())

    def keys(self) -> list[str]:
        """The names of all sources."""
        return self._run(self._async.keys())
