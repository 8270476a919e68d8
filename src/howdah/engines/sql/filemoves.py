"""Files of a transaction: written under temporary names before its commit, put in their places after it, by whoever is there.

What is to be moved is part of the transaction: a crash in between is finished by the next one, in whichever process.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from ...errors import BackendError

log = logging.getLogger("howdah")
OWN: Final = ".howdah"
FEW: Final = 16
"""Files up to which each is flushed by itself; more are flushed together."""
DDL: Final = """
CREATE TABLE IF NOT EXISTS _howdah_moves (number INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, source TEXT,
  size INTEGER, changed INTEGER);
"""


class Move(NamedTuple):
    """A file to be put in its place. Without ``source``: one to be removed, as it is recorded; without ``size``, too, a
    folder to be removed if it is empty."""

    target: str
    source: str | None = None
    size: int | None = None
    changed: int | None = None


def fetch(connection: apsw.Connection, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    """All rows of a statement."""
    return connection.execute(sql, params).fetchall()


class Moves:
    """The files that one process's writer is about to move. It holds the turn while any of this runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / OWN / "moves"
        self._done = 0
        self._now: list[Move] = []
        self._left: list[Move] = []

    def put(self, target: str, data: bytes) -> Move:
        """Write a file under a temporary name; its size and time are those it keeps."""
        source = uuid.uuid4().hex
        self._now.append(Move(target, source))
        with open(self.folder / source, "wb") as file:
            file.write(data)
            file.flush()
            found = os.fstat(file.fileno())
        self._now[-1] = Move(target, source, found.st_size, found.st_mtime_ns)
        return self._now[-1]

    def remove(self, target: str, size: int, changed: int) -> None:
        """Remove a file after the commit."""
        self._now.append(Move(target, None, size, changed))

    def remove_folder(self, target: str) -> None:
        """Remove a folder after the commit, unless something is left in it."""
        self._now.append(Move(target))

    # Around a transaction ----------------------------------------------------------------------------------------

    def finish(self, connection: apsw.Connection) -> None:
        """Do what another process left undone."""
        left = fetch(
            connection,
            "SELECT number, target, source, size, changed FROM _howdah_moves WHERE number > ?1 ORDER BY number",
            (self._done,),
        )
        if left:
            self._left += [m for m, _ in self._move([Move(*row[1:]) for row in left], anew=True)]
            self._done = left[-1][0]

    def save(self, connection: apsw.Connection) -> None:
        """Before the commit: make the temporary files durable and note the moves."""
        if not self._now:
            return
        self._flush([m.source for m in self._now if m.source is not None])
        self._now[:0] = self._left
        connection.execute("DELETE FROM _howdah_moves WHERE number <= ?1", (self._done,))
        connection.executemany(
            "INSERT INTO _howdah_moves (target, source, size, changed) VALUES (?1, ?2, ?3, ?4)", self._now
        )

    def publish(self, connection: apsw.Connection) -> None:
        """After the commit: move. What cannot be moved is tried again with the next transaction."""
        moves, self._now = self._now, []
        if not moves:
            return
        before = len(self._left)
        failed = self._move(moves[before:])
        old = self._move(moves[:before], anew=True)
        self._left = [m for m, _ in (*old, *failed)]
        self._done = fetch(connection, "SELECT max(number) FROM _howdah_moves")[0][0]
        if not self._left:
            # Without waiting for the disk: what is done twice after a power failure does no harm.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("DELETE FROM _howdah_moves")
            connection.execute("PRAGMA synchronous = FULL")
        if failed:
            move, error = failed[0]
            raise BackendError(
                f"{self.root / move.target}: a row's file cannot be put in its place: {error.strerror}; the write itself is"
                " stored, and the file is tried again with the next one"
            ) from error

    def roll_back(self) -> None:
        """After a rollback: remove the temporary files of this transaction."""
        kept = {m.source for m in self._left}
        for move in self._now:
            if move.source is not None and move.source not in kept:
                (self.folder / move.source).unlink(missing_ok=True)
        self._now = []

    def sweep(self, connection: apsw.Connection) -> None:
        """Remove the temporary files of processes that died before their commit."""
        sources = {r[0] for r in fetch(connection, "SELECT source FROM _howdah_moves WHERE source IS NOT NULL")}
        for name in os.listdir(self.folder):
            if name not in sources:
                (self.folder / name).unlink()

    # Moving ------------------------------------------------------------------------------------------------------

    def _flush(self, sources: Sequence[str]) -> None:
        if len(sources) > FEW and sys.platform == "linux":
            os.sync()
            return
        for source in sources:
            fsync(self.folder / source)
        fsync(self.folder)

    def _move(self, moves: Sequence[Move], *, anew: bool = False) -> list[tuple[Move, OSError]]:
        """Put files in their places; what cannot be. Done ``anew``, a file that is not as recorded is somebody else's."""
        failed: list[tuple[Move, OSError]] = []
        folders = set()
        for move in moves:
            target = self.root / move.target
            folders.add(target.parent)
            try:
                if move.source is not None:
                    self.place(self.folder / move.source, target, folders)
                elif move.size is None:
                    with suppress(OSError):  # something of its owner's is in it
                        target.rmdir()
                else:
                    with suppress(FileNotFoundError):
                        found = target.stat()
                        if not anew or (found.st_size, found.st_mtime_ns) == (move.size, move.changed):
                            target.unlink()
            except OSError as error:
                failed.append((move, error))
                log.warning("%s: cannot be put in its place: %s", target, error.strerror)
        for folder in folders:
            with suppress(FileNotFoundError):
                fsync(folder)
        return failed

    def place(self, source: Path, target: Path, folders: set[Path]) -> None:
        """Move one file; one that is not there any more has been moved."""
        try:
            os.replace(source, target)
        except FileNotFoundError:
            if not source.exists():
                return
            target.parent.mkdir(exist_ok=True)
            folders.add(self.root)
            os.replace(source, target)


def fsync(path: Path) -> None:
    """Make a file or folder durable."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
