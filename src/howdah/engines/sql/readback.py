"""Takes over what was edited, added or removed by hand in a directory of row files, and all of it when the database is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from ...errors import Corrupt, Error, InvalidInput, SetupRequired
from ...schema import from_spec
from .connection import run
from .filemoves import fetch
from .mirror import BATCH, KEEP, ROOT_FILE, Mirror, Tracked
from .rowfiles import LAST_FILE, TABLE_FILE, file_name, load
from .setup import Setup


class ReadBack:
    """One look at every file, in a write transaction when the store is opened."""

    def __init__(self, mirror: Mirror, setup: Setup, connection: apsw.Connection) -> None:
        self._mirror = mirror
        self._setup = setup
        self._connection = connection
        self._root = mirror.root
        self._place = str(mirror.root)

    def run(self) -> None:
        """Take everything over; ``Corrupt`` naming a file that cannot be read."""
        try:
            self._run()
        except OSError as error:
            raise Corrupt(f"{error.filename or self._root}: cannot be read: {error.strerror}") from error

    def _run(self) -> None:
        connection, mirror = self._connection, self._mirror
        mirror.moves.sweep(connection)
        if (self._root / ROOT_FILE).exists():
            self._migrations()
        else:
            connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ''")
        with os.scandir(self._root) as listed:
            folders = sorted(e.name for e in listed if e.is_dir() and not e.name.startswith("."))
        for folder in folders:
            if any(n.endswith(".json") for n in os.listdir(self._root / folder)):
                self._shape(folder)
        mirror._seen = None
        mirror.track(connection)
        mirror._anew.clear()
        for folder, tracked in mirror.tracked.items():
            if folder in folders:
                self._compare(tracked)
            else:  # a table is dropped by a call; here its folder is lost, and written again
                connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ?1", (folder,))
                connection.execute("DELETE FROM _howdah_files WHERE folder = ?1", (folder,))

    # Tables ------------------------------------------------------------------------------------------------------

    def _shape(self, folder: str) -> None:
        """Make or grow the table of a folder whose declaration says more than the database knows."""
        where = self._root / folder / TABLE_FILE
        known = self._mirror.tracked.get(folder)
        if known is not None and not where.exists():
            self._connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ?1", (folder,))
            return
        spec = load(_read(where), str(where))
        spec.pop("table", None)
        if known is not None and spec == json.loads(known.shape):
            return
        try:
            table = self._mirror.make(from_spec(folder, spec), folder)
            table.migrating.declared = False
            run(self._connection, self._setup.ensure(table), self._place)
        except (KeyError, TypeError, IndexError, AttributeError, InvalidInput, SetupRequired) as error:
            raise Corrupt(f"{where}: the table's declaration cannot be used: {error}") from error
        rows = fetch(self._connection, "SELECT spec FROM _howdah_tables WHERE name = ?1", (folder,))
        if json.loads(rows[0][0]) == spec:
            self._mirror.record(self._connection, folder, rows[0][0])
        with suppress(FileNotFoundError):
            last = load((self._root / folder / LAST_FILE).read_bytes(), str(where)).get("last")
            if isinstance(last, int):
                run(self._connection, table.numbers.raise_to(last), self._place)

    def _migrations(self) -> None:
        where = self._root / ROOT_FILE
        rows = load(_read(where), str(where)).get("migrations", [])
        try:
            self._connection.executemany(
                "INSERT OR IGNORE INTO _howdah_migrations (component, version, description, statements, applied_at)"
                " VALUES (?1, ?2, ?3, ?4, ?5)",
                rows,
            )
        except (apsw.Error, TypeError, ValueError) as error:
            raise Corrupt(f"{where}: its migrations cannot be read: {error}") from error

    # Rows --------------------------------------------------------------------------------------------------------

    def _compare(self, tracked: Tracked) -> None:
        """Find the files that are not as recorded."""
        connection, folder = self._connection, self._root / tracked.folder
        known = {
            name: (size, changed, key)
            for name, size, changed, key in fetch(
                connection, "SELECT name, size, changed, key FROM _howdah_files WHERE folder = ?1", (tracked.folder,)
            )
        }
        edited: list[tuple[str, str | None]] = []
        with os.scandir(folder) as listed:
            entries = [e for e in listed if e.name.endswith(".json") and not e.name.startswith((".", "_"))]
        for entry in entries:
            state = known.pop(entry.name, None)
            found = entry.stat()
            if state is None or state[:2] != (found.st_size, found.st_mtime_ns):
                edited.append((entry.name, None if state is None else state[2]))
        gone = [tracked.files.parse_key(json.loads(key)) for _, _, key in known.values()]
        run(connection, tracked.table.delete(gone), self._place)
        edited.sort()
        where: dict[tuple[Any, ...], str] = {}
        for start in range(0, len(edited), BATCH):
            gone += self._take_over(tracked, edited[start : start + BATCH], where)
        connection.execute(f"DELETE FROM {tracked.dirty}")
        tracked.note(connection, gone)

    def _take_over(
        self, tracked: Tracked, names: Sequence[tuple[str, str | None]], where: dict[tuple[Any, ...], str]
    ) -> list[tuple[Any, ...]]:
        """Store the rows of files that were edited or are new; the keys of those to be written as others are."""
        table, folder, connection = tracked.table, self._root / tracked.folder, self._connection
        rows: dict[tuple[Any, ...], Any] = {}
        as_written, rewrite, left = [], [], []
        for name, recorded in names:
            path = str(folder / name)
            data = _read(folder / name)
            row = tracked.files.parse(data, path)
            key = tuple(row[p] for p in table.key_places)
            shown = tracked.files.key(key)
            proper = file_name(shown)
            found = (folder / name).stat()
            if key in where or (name != proper and (folder / proper).exists()):
                raise Corrupt(f"{path}: another file holds a row with the same key: {where.get(key, proper)}")
            where[key] = name
            if recorded is not None and (old := tracked.files.parse_key(json.loads(recorded))) != key:
                left.append(old)  # its key was edited: the row is another one now
            if name != proper:
                self._mirror.moves.remove(f"{tracked.folder}/{name}", found.st_size, found.st_mtime_ns)
                connection.execute("DELETE FROM _howdah_files WHERE folder = ?1 AND name = ?2", (tracked.folder, name))
            if name == proper and data == tracked.files.text(row):
                as_written.append((tracked.folder, name, json.dumps(shown), found.st_size, found.st_mtime_ns))
            else:
                rewrite.append(key)
            rows[key] = row
        same = {tuple(r[p] for p in table.key_places): r for r in tracked.rows(connection, list(rows))}
        fresh = [row for key, row in rows.items() if same.get(key) != tuple(row)]
        self._store(tracked, fresh, left, [k for k, r in rows.items() if k in same and same[k] != tuple(r)])
        connection.executemany(KEEP, as_written)
        return rewrite + [k for k in left if k not in rows]

    def _store(self, tracked: Tracked, fresh: list[Any], left: list[Any], changed: list[Any]) -> None:
        table = tracked.table
        try:
            # First all old ones go: two rows may have changed places in a unique index.
            run(self._connection, table.delete([*left, *changed]), self._place)
            run(self._connection, table.put(fresh), self._place)
            if fresh and tracked.counts and table.schema.auto is not None:
                place = table.schema.names.index(table.schema.auto.name)
                run(self._connection, table.numbers.raise_to(max(r[place] for r in fresh)), self._place)
        except Error as error:
            raise Corrupt(
                f"{self._root / tracked.folder}: what was edited by hand cannot be stored: {error}"
            ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Corrupt(f"{path}: this file cannot be read: {error.strerror}; repair it, or move it away") from error
