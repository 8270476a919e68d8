"""Physical names of tables: a table's own name in lower case, a store's under an underscore that no table may begin with."""

from __future__ import annotations

import hashlib
import re


def physical_name(name: str) -> str:
    """The database's name of a table; case is folded, so that it means the same on every engine."""
    return name.lower()


def store_table(kind: str, name: str) -> str:
    """The database's name of a store's table: readable, and unique for any name."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        return f"_{kind}_{name}"
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:20]
    return f"_{kind}_{slug}__{hashlib.sha256(name.encode()).hexdigest()[:10]}"
