"""Keeps one readable JSON file per row beside a SQLite database, in step with every commit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from ...errors import BackendError, StartupError
from ...schema import Schema, from_spec
from .dialect import Params, derived_name, quote
from .filemoves import DDL, OWN, Moves, fetch
from .rowfiles import LAST_FILE, TABLE_FILE, RowFiles, dump, file_name
from .sqlite_table import SqliteTable

ROOT_FILE: Final = "howdah.json"
FORMAT: Final = "howdah files 1"
BATCH: Final = 500
# ``_howdah_files`` has the state of every row's file, ``_howdah_mirrored`` the shape that a folder shows.
SYSTEM: Final = f"""{DDL}
CREATE TABLE IF NOT EXISTS _howdah_files (folder TEXT, name TEXT, key TEXT NOT NULL, size INTEGER NOT NULL,
  changed INTEGER NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _howdah_mirrored (folder TEXT PRIMARY KEY, shape TEXT NOT NULL, last INTEGER) WITHOUT ROWID;
"""
KEEP: Final = """
INSERT INTO _howdah_files VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (folder, name) DO UPDATE SET key = ?3, size = ?4, changed = ?5
"""
EVENTS: Final = (("insert", ("new",)), ("update", ("old", "new")), ("delete", ("old",)))


def prepare(folder: str) -> str:
    """Make the directory of a store, or see that it is one; the path of the database inside."""
    root = Path(folder)
    own = root / OWN
    try:
        root.mkdir(exist_ok=True)
        others = [e.name for e in root.iterdir() if e.name != OWN]
        # Looked for after the listing: another process may be making the directory.
        if others and not (root / ROOT_FILE).exists() and not (own / "store.db").exists():
            raise StartupError(f"{folder}: holds {others[0]!r} and no {ROOT_FILE}: name an empty or new directory")
        own.mkdir(exist_ok=True)
        (own / "moves").mkdir(exist_ok=True)
        if not (own / ".gitignore").exists():
            (own / ".gitignore").write_text("*\n")
    except OSError as error:
        raise StartupError(f"{folder}: cannot be used as a directory of files: {error.strerror}") from error
    return str(own / "store.db")


class Tracked:
    """One table whose rows have files."""

    def __init__(self, table: SqliteTable, shape: str) -> None:
        self.table = table
        self.shape = shape
        self.folder = table.physical
        self.files = RowFiles(table)
        self.dirty = f"temp.{quote(derived_name(table.physical, 'dirty'))}"
        self.key = ", ".join(map(quote, table.schema.key))
        auto = table.schema.auto
        self.counts = auto is not None and auto.kind == "integer"

    def names(self) -> set[str]:
        """What is in the connection's temporary schema for it."""
        return {derived_name(self.folder, kind) for kind in ("dirty", *(f"dirty_{e}" for e, _ in EVENTS))}

    def statements(self) -> Iterable[str]:
        """What notes the keys of rows that are written on this connection."""
        columns = [quote(f"k{i}") for i, _ in enumerate(self.table.schema.key)]
        yield f"CREATE TABLE {self.dirty} ({', '.join(columns)})"
        bare = self.dirty.removeprefix("temp.")
        for event, rows in EVENTS:
            name = quote(derived_name(self.folder, f"dirty_{event}"))
            values = (", ".join(f"{row}.{quote(k)}" for k in self.table.schema.key) for row in rows)
            body = "; ".join(f"INSERT INTO {bare} VALUES ({v})" for v in values)
            yield f"CREATE TEMP TRIGGER {name} AFTER {event.upper()} ON main.{self.table.name} BEGIN {body}; END"

    def drops(self) -> Iterable[str]:
        """Statements that undo them."""
        for event, _ in EVENTS:
            yield f"DROP TRIGGER IF EXISTS temp.{quote(derived_name(self.folder, f'dirty_{event}'))}"
        yield f"DROP TABLE IF EXISTS {self.dirty}"

    def note(self, connection: apsw.Connection, keys: Iterable[Sequence[Any]]) -> None:
        """Have the files of these rows written, or removed."""
        marks = ", ".join("?" for _ in self.table.schema.key)
        connection.executemany(f"INSERT INTO {self.dirty} VALUES ({marks})", keys)

    def note_all(self, connection: apsw.Connection) -> None:
        """Have every row's file written."""
        connection.execute(f"INSERT INTO {self.dirty} SELECT {self.key} FROM main.{self.table.name}")

    def rows(self, connection: apsw.Connection, keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows with these keys, in driver form, expired ones too."""
        params = Params(self.table.dialect)
        test = self.table.keys_test(keys, params)
        names = ", ".join(f"t.{quote(n)}" for n in self.table.schema.names)
        return fetch(connection, f"SELECT {names} FROM {self.table.name} t WHERE {test}", params.values)


class Mirror:
    """The files of one store, driven by the process's writer while it holds the turn."""

    def __init__(self, folder: str, make: Callable[[Schema, str], SqliteTable]) -> None:
        self.root = Path(folder)
        self.make = make
        self.moves = Moves(self.root)
        self.tracked: dict[str, Tracked] = {}
        self._seen: int | None = None
        self._ready = False
        self._anew: set[str] = set()

    def _is_ready(self, connection: apsw.Connection) -> bool:
        """Whether the bookkeeping is there: with ``create=False`` another process may make it later."""
        if not self._ready:
            names = "'_howdah_tables', '_howdah_moves', '_howdah_mirrored'"
            found = fetch(connection, f"SELECT count(*) FROM main.sqlite_master WHERE name IN ({names})")
            self._ready = found[0][0] == 3
        return self._ready

    # Around a transaction ----------------------------------------------------------------------------------------

    def begin(self, connection: apsw.Connection) -> None:
        """At the start of a transaction: finish what another process left, and watch the tables there are."""
        if self._is_ready(connection):
            self.moves.finish(connection)
            self.track(connection)
            self._anew.clear()  # their own processes have written those

    def prepare(self, connection: apsw.Connection) -> None:
        """Before the commit: write the files of what changed under temporary names, and note what is to be moved."""
        if not self._is_ready(connection):
            return
        try:
            whole = self._reshape(connection)
            for tracked in self.tracked.values():
                self._write(connection, tracked, whole=tracked.folder in whole)
            self._reroot(connection)
            self.moves.save(connection)
        except OSError as error:
            raise BackendError(
                f"{self.root}: a row's file cannot be written: {error.strerror}; nothing was changed"
            ) from error

    def publish(self, connection: apsw.Connection) -> None:
        """After the commit: put the files in their places."""
        self.moves.publish(connection)

    def roll_back(self) -> None:
        """After a rollback: remove the temporary files, and look at everything anew."""
        self.moves.roll_back()
        self._anew.clear()
        self._seen = None

    # Tables ------------------------------------------------------------------------------------------------------

    def track(self, connection: apsw.Connection) -> None:
        """Note the keys of rows that will be written, in every table that is new, was made anew or has another shape."""
        seen = fetch(connection, "PRAGMA main.schema_version")[0][0]
        if seen == self._seen:
            return
        there = dict(fetch(connection, "SELECT name, spec FROM _howdah_tables"))
        known = {row[0] for row in fetch(connection, "SELECT name FROM temp.sqlite_master")}
        for name in [n for n in self.tracked if n not in there]:
            for statement in self.tracked.pop(name).drops():
                connection.execute(statement)
        for name, shape in there.items():
            found = self.tracked.get(name)
            if found is not None and found.shape == shape and found.names() <= known:
                continue
            made = Tracked(self.make(from_spec(name, json.loads(shape)), name), shape)
            self.tracked[name] = made
            self._anew.add(name)
            for statement in (*made.drops(), *made.statements()):
                connection.execute(statement)
        self._seen = fetch(connection, "PRAGMA main.schema_version")[0][0]

    def _reshape(self, connection: apsw.Connection) -> set[str]:
        """The tables that were made or changed in this transaction, all of whose files are to be written; the files of
        those that were dropped go."""
        self._seen = None
        self.track(connection)
        shown = dict(fetch(connection, "SELECT folder, shape FROM _howdah_mirrored WHERE folder <> ''"))
        whole = {n for n, t in self.tracked.items() if shown.get(n) != t.shape or n in self._anew}
        self._anew.clear()
        for folder in shown.keys() - self.tracked.keys():
            self._remove_files(connection, folder, set())
            for name in (TABLE_FILE, LAST_FILE):
                self.moves.remove(f"{folder}/{name}", *self._state(f"{folder}/{name}"))
            self.moves.remove_folder(folder)
            connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ?1", (folder,))
        for folder in whole:
            tracked = self.tracked[folder]
            spec = json.loads(tracked.shape)
            self.moves.put(f"{folder}/{TABLE_FILE}", dump({"table": folder, **spec}))
            connection.execute(f"DELETE FROM {tracked.dirty}")
            tracked.note_all(connection)
            self.record(connection, folder, tracked.shape)
        return whole

    def _state(self, target: str) -> tuple[int, int]:
        try:
            found = os.stat(self.root / target)
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    def _remove_files(self, connection: apsw.Connection, folder: str, kept: set[str]) -> None:
        """Remove the files of a table's rows but those kept."""
        for name, size, changed in fetch(
            connection, "SELECT name, size, changed FROM _howdah_files WHERE folder = ?1", (folder,)
        ):
            if name not in kept:
                self.moves.remove(f"{folder}/{name}", size, changed)
                connection.execute("DELETE FROM _howdah_files WHERE folder = ?1 AND name = ?2", (folder, name))

    def _reroot(self, connection: apsw.Connection) -> None:
        """The file that marks the directory and remembers declared migrations."""
        wanted = "FROM _howdah_migrations WHERE component NOT LIKE 'shape:%'"
        shape = str(fetch(connection, f"SELECT count(*) {wanted}")[0][0])
        if fetch(connection, "SELECT shape FROM _howdah_mirrored WHERE folder = ''") != [(shape,)]:
            rows = fetch(connection, f"SELECT component, version, description, statements, applied_at {wanted}")
            self.moves.put(ROOT_FILE, dump({"format": FORMAT, "migrations": [list(r) for r in rows]}))
            self.record(connection, "", shape)

    def record(self, connection: apsw.Connection, folder: str, shape: str) -> None:
        """Remember which shape a folder shows."""
        connection.execute(
            "INSERT INTO _howdah_mirrored (folder, shape) VALUES (?1, ?2) ON CONFLICT (folder) DO UPDATE SET shape = ?2",
            (folder, shape),
        )

    # Rows --------------------------------------------------------------------------------------------------------

    def _write(self, connection: apsw.Connection, tracked: Tracked, *, whole: bool) -> None:
        """Write the files of rows that changed; of a ``whole`` table, files that no row has go."""
        keys = fetch(connection, f"SELECT DISTINCT * FROM {tracked.dirty}")
        if keys:
            connection.execute(f"DELETE FROM {tracked.dirty}")
        kept: set[str] = set()
        for start in range(0, len(keys), BATCH):
            kept |= self._write_batch(connection, tracked, keys[start : start + BATCH])
        if whole:
            self._remove_files(connection, tracked.folder, kept)
        if tracked.counts and (keys or whole):
            self._write_counter(connection, tracked)

    def _write_batch(self, connection: apsw.Connection, tracked: Tracked, keys: Sequence[tuple[Any, ...]]) -> set[str]:
        """The names of the files of those rows that are there."""
        folder, places = tracked.folder, tracked.table.key_places
        kept = []
        for row in tracked.rows(connection, keys):
            key = tracked.files.key([row[p] for p in places])
            name = file_name(key)
            move = self.moves.put(f"{folder}/{name}", tracked.files.text(row))
            kept.append((folder, name, json.dumps(key), move.size, move.changed))
        connection.executemany(KEEP, kept)
        names = {k[1] for k in kept}
        for name in {file_name(tracked.files.key(k)) for k in keys} - names:
            for size, changed in fetch(
                connection,
                "DELETE FROM _howdah_files WHERE folder = ?1 AND name = ?2 RETURNING size, changed",
                (folder, name),
            ):
                self.moves.remove(f"{folder}/{name}", size, changed)
        return names

    def _write_counter(self, connection: apsw.Connection, tracked: Tracked) -> None:
        """Generated keys go on from here, should the database be lost."""
        found = fetch(connection, "SELECT value FROM _howdah_counters WHERE name = ?1", (tracked.table.numbers.name,))
        last = found[0][0] if found else 0
        if fetch(connection, "SELECT last FROM _howdah_mirrored WHERE folder = ?1", (tracked.folder,)) != [(last,)]:
            self.moves.put(f"{tracked.folder}/{LAST_FILE}", dump({"last": last}))
            connection.execute("UPDATE _howdah_mirrored SET last = ?2 WHERE folder = ?1", (tracked.folder, last))
