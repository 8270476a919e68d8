"""URLs: which engine a text names, and with which options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from .errors import InvalidInput

KNOWN: Final = ("agent.db", "sqlite:///agent.db", "memory:", "memory:name", "postgresql://user@host/db", "pg:./data",
                "files:./dir")  # fmt: skip
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):")
_QUERY: Final = re.compile(r"\?(\w+=[^?]*)$")


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed URL: scheme, what follows, and the options after the question mark."""

    scheme: str
    rest: str
    text: str
    options: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """The URL without a password."""
        if "://" not in self.text:
            return self.text
        parts = urlsplit(self.text)
        if parts.fragment:  # most likely a part of a password that should be percent-encoded
            return f"{self.scheme}://…"
        if parts.password is None:
            return self.text
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def parse(url: object) -> Url:
    """Parse a store URL; a plain path is a SQLite file."""
    text = str(url) if hasattr(url, "__fspath__") else url
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f"store URL {url!r}: expected text such as {', '.join(KNOWN)}")
    found = _SCHEME.match(text)
    options: dict[str, str] = {}
    scheme, rest = ("sqlite", text) if found is None or len(found[1]) == 1 else (found[1].lower(), text[found.end() :])
    query = _QUERY.search(rest)
    if query is not None:
        options = dict(parse_qsl(query[1], keep_blank_values=True))
        if scheme not in ("postgresql", "postgres"):
            rest = rest[: query.start()]
    if scheme == "sqlite" and found is not None and rest.startswith("//"):
        rest = rest[3:] if rest.startswith("///") else rest[2:]
    if scheme in ("postgresql", "postgres"):
        try:
            urlsplit(text)
        except ValueError as error:
            raise InvalidInput(f"store URL {text!r}: {error}") from error
    if "\0" in rest:
        raise InvalidInput(f"store URL {text!r} contains U+0000")
    return Url("postgresql" if scheme == "postgres" else scheme, rest, text, options)
