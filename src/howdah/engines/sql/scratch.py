"""Where databases in memory live: files on the machine's memory disk, gone with the last handle, shared by name in one
process. SQLite's own memory databases keep readers out while a transaction is open; files with a WAL do not."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

_lock = threading.Lock()
_named: dict[tuple[int, str], tuple[str, int]] = {}
_FOLDER = re.compile(r"howdah-memory-(\d+)-")


def _base() -> str:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _remove_left_behind(base: str) -> None:
    """Remove what killed processes of this user left."""
    with suppress(OSError):
        for entry in os.scandir(base):
            found = _FOLDER.match(entry.name)
            if found is not None and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                try:
                    os.kill(int(found[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(entry.path, ignore_errors=True)
                except OSError:
                    continue


def acquire(name: str | None) -> str:
    """The path of a database in memory; the same for handles of one name."""
    key = (os.getpid(), name or secrets.token_hex(8))
    with _lock:
        path, users = _named.get(key, ("", 0))
        if not users:
            base = _base()
            _remove_left_behind(base)
            path = os.path.join(tempfile.mkdtemp(prefix=f"howdah-memory-{os.getpid()}-", dir=base), "memory.db")
        _named[key] = (path, users + 1)
    return path


def release(path: str) -> None:
    """One handle less; the last one removes the files."""
    with _lock:
        for key, (found, users) in list(_named.items()):
            if found == path:
                if users > 1:
                    _named[key] = (path, users - 1)
                    return
                del _named[key]
    shutil.rmtree(Path(path).parent, ignore_errors=True)
