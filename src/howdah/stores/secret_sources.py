"""Secrets from elsewhere: the environment, and several sources one after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidInput, Unsupported


class AsyncEnvSecrets:
    """Secrets from a mapping, else the environment: ``PREFIX_KEY``, else ``KEY``, in upper case with ``-`` as ``_``.
    Read-only."""

    def __init__(self, mapping: Mapping[str, str] | None = None, prefix: str | None = None) -> None:
        self._mapping = dict(mapping or {})
        self._prefix = prefix

    def _names(self, key: str) -> list[str]:
        plain = key.upper().replace("-", "_")
        return [f"{self._prefix.upper()}_{plain}", plain] if self._prefix else [plain]

    async def get(self, key: str) -> str | None:
        """The value, or ``None``."""
        if key in self._mapping:
            return self._mapping[key]
        return next((os.environ[n] for n in self._names(key) if n in os.environ), None)

    async def has(self, key: str) -> bool:
        """Whether it is there."""
        return await self.get(key) is not None

    async def keys(self) -> list[str]:
        """The names of the mapping; the environment is not listed."""
        return sorted(self._mapping)

    async def put(self, key: str, value: str, **about: Any) -> None:
        """Refused: the process's environment is not ours to change."""
        raise Unsupported("secrets of the environment are read-only")

    async def delete(self, key: str) -> bool:
        """``False``: nothing is deleted here."""
        return False

    async def clear(self) -> int:
        """0: nothing is deleted here."""
        return 0


class AsyncChainedSecrets:
    """Several sources: the first hit wins, ``put`` goes to the first, ``delete`` and ``clear`` to all."""

    def __init__(self, sources: Sequence[Any]) -> None:
        if not sources:
            raise InvalidInput("a chain needs at least one source of secrets")
        self._sources = list(sources)

    async def get(self, key: str) -> str | None:
        """The value of the first source that has it."""
        for source in self._sources:
            found: str | None = await source.get(key)
            if found is not None:
                return found
        return None

    async def has(self, key: str) -> bool:
        """Whether any source has it."""
        return await self.get(key) is not None

    async def put(self, key: str, value: str, **about: Any) -> None:
        """Store it in the first source."""
        await self._sources[0].put(key, value, **about)

    async def delete(self, key: str) -> bool:
        """Delete it everywhere; whether it was anywhere."""
        return any([await source.delete(key) for source in self._sources])

    async def clear(self) -> int:
        """Delete everything everywhere; how many there were."""
        return sum([await source.clear() for source in self._sources])

    async def keys(self) -> list[str]:
        """The names of all sources."""
        return sorted({key for source in self._sources for key in await source.keys()})


class Waiting:
    """A blocking source, whose methods can be awaited."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._source, name)

        async def call(*given: Any, **named: Any) -> Any:
            return method(*given, **named)

        return call
