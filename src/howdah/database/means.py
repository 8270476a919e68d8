"""What a client may take: memory for what is under way, and disk for files of object storage that it has read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEMORY, CACHE = 64, 256
"""MiB, unless said otherwise."""
SHARE = 16
"""How many files at least a cache has room for: larger ones are read where they are."""
PATIENCE = 60.0
"""Seconds for which a file that was asked for stays: somebody may be about to open it."""


@dataclass(frozen=True, slots=True)
class Means:
    """``memory`` (bytes) bounds what is held beyond the rows that a caller keeps; ``cache`` are files of buckets, on disk."""

    memory: int = MEMORY * 2**20
    cache: Cache | None = None


DEFAULT = Means()
"""Memory as it is unless said otherwise, and no cache."""


class Cache:
    """A folder with whole files of buckets, of which what was asked for last stays; processes may share it. The files never change."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size

    def file(self, address: str, size: int, read: Callable[[], bytes]) -> Path | None:
        """Where a file is on disk, fetched by ``read`` if it is not there yet; ``None`` for one that is too large, or where there is
        no room."""
        if size * SHARE > self._size:
            return None
        path = self._folder / hashlib.sha256(address.encode()).hexdigest()
        with suppress(OSError):
            if path.stat().st_size == size:
                os.utime(path)
                return path
        data = read()
        if len(data) != size:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._room(size):
                return None
            handle, name = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())  # only its size is looked at later
                os.replace(name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError:  # a full disk, or a folder of somebody else: it is no worse than without
            return None
        return path

    def _room(self, size: int) -> bool:
        """Make room for so many bytes."""
        found = []
        for entry in os.scandir(self._folder):
            with suppress(OSError):
                about = entry.stat()
                found.append((about.st_mtime, about.st_size, entry.path))
        there, edge = sum(size for _, size, _ in found), time.time() - PATIENCE
        for at, bytes_, path in sorted(found):
            if there + size <= self._size or at > edge:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            there -= bytes_
        return there + size <= self._size


def folder() -> Path:
    """Where caches are, unless said otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "howdah" / "objects"
