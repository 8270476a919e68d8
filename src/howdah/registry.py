"""Which engine opens which URL scheme; others join by the entry-point group ``howdah.engines``."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import Any, Final

from .engines.base import Engine
from .errors import InvalidInput
from .urls import KNOWN, Url

Opener = Callable[..., Awaitable[Engine]]
_BUILT_IN: Final = {
    "sqlite": "howdah.engines.sql.open:open_sqlite",
    "files": "howdah.engines.sql.open:open_files",
    "memory": "howdah.engines.sql.open:open_memory",
    "postgresql": "howdah.engines.sql.open:open_postgres",
    "pg": "howdah.engines.sql.open:open_embedded",
}


def opener(url: Url) -> Opener:
    """The function that opens stores of this scheme."""
    target = _BUILT_IN.get(url.scheme)
    if target is not None:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]  # one of ours
    for found in entry_points(group="howdah.engines", name=url.scheme):
        return found.load()  # type: ignore[no-any-return]  # the plug-in's promise
    raise InvalidInput(f"{url.shown()}: no engine for {url.scheme!r}; there are {', '.join(KNOWN)}")


def option(url: Url, options: dict[str, Any], name: str, default: Any, convert: Callable[[str], Any]) -> Any:
    """An option given in code, else in the URL, else the default."""
    if options.get(name) is not None:
        return options[name]
    if name in url.options:
        try:
            return convert(url.options[name])
        except ValueError:
            raise InvalidInput(f"{url.shown()}: {name}={url.options[name]!r} is not a valid value") from None
    return default
