"""Keeps one readable JSON file per row beside a SQLite database, in step with every commit, and reads back what was edited.

A transaction writes the files of the rows it changed under temporary names and flushes them, commits, and moves them to
their places; what it has to move is part of the transaction, so that whoever comes next finishes what a crash left undone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from ...errors import BackendError, Corrupt, Error, InvalidInput, StartupError
from ...schema import Schema, from_spec
from .connection import run
from .dialect import Params, derived_name, quote
from .rowfiles import TABLE_FILE, RowFiles, dump, file_name, load

if TYPE_CHECKING:
    from .setup import Setup
    from .sqlite_table import SqliteTable

ROOT_FILE: Final = "howdah.json"
FORMAT: Final = "howdah files 1"
OWN: Final = ".howdah"
BATCH: Final = 500
FEW: Final = 16
"""Files up to which each is flushed by itself; more are flushed together."""

SYSTEM: Final = """
CREATE TABLE IF NOT EXISTS _howdah_files (folder TEXT, name TEXT, key TEXT NOT NULL, size INTEGER NOT NULL,
  changed INTEGER NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _howdah_moves (number INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, source TEXT,
  size INTEGER, changed INTEGER);
CREATE TABLE IF NOT EXISTS _howdah_mirrored (folder TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
"""
KEEP: Final = """
INSERT INTO _howdah_files VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (folder, name) DO UPDATE SET key = ?3, size = ?4, changed = ?5
"""


def prepare(folder: str) -> str:
    """Make the directory of a store, or see that it is one; the path of the database inside."""
    root = Path(folder)
    try:
        root.mkdir(exist_ok=True)
        if not (root / ROOT_FILE).exists():
            others = [e.name for e in root.iterdir() if e.name != OWN]
            if others:
                raise StartupError(f"{folder}: holds {others[0]!r} and no {ROOT_FILE}: name an empty or new directory")
        own = root / OWN
        own.mkdir(exist_ok=True)
        (own / "moves").mkdir(exist_ok=True)
        if not (own / ".gitignore").exists():
            (own / ".gitignore").write_text("*\n")
    except OSError as error:
        raise StartupError(f"{folder}: cannot be used as a directory of files: {error.strerror}") from error
    return str(own / "store.db")


class _Move(NamedTuple):
    """A file to be put in its place; without ``source`` a file (of that ``size`` and time) or folder to be removed."""

    target: str
    source: str | None
    size: int | None = None
    changed: int | None = None


class _Tracked:
    """One table whose rows have files."""

    def __init__(self, table: SqliteTable, version: int, spec: dict[str, Any]) -> None:
        self.table = table
        self.version = version
        self.spec = spec
        self.files = RowFiles(table)
        self.dirty = f"temp.{quote(derived_name(table.physical, 'dirty'))}"
        self.key = ", ".join(map(quote, table.schema.key))

    def statements(self) -> Iterable[str]:
        """What notes the keys of rows that are written on this connection."""
        columns = [quote(f"k{i}") for i, _ in enumerate(self.table.schema.key)]
        yield f"CREATE TABLE {self.dirty} ({', '.join(columns)})"
        bare = self.dirty.removeprefix("temp.")
        for event, rows in (("INSERT", ("new",)), ("UPDATE", ("old", "new")), ("DELETE", ("old",))):
            name = quote(derived_name(self.table.physical, f"dirty_{event.lower()}"))
            values = (", ".join(f"{row}.{quote(k)}" for k in self.table.schema.key) for row in rows)
            body = "; ".join(f"INSERT INTO {bare} VALUES ({v})" for v in values)
            yield f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.{self.table.name} BEGIN {body}; END"

    def drops(self) -> Iterable[str]:
        """Statements that undo them."""
        for event in ("insert", "update", "delete"):
            yield f"DROP TRIGGER IF EXISTS temp.{quote(derived_name(self.table.physical, f'dirty_{event}'))}"
        yield f"DROP TABLE IF EXISTS {self.dirty}"


class Mirror:
    """The files of one store, driven by the process's writer while it holds the turn."""

    def __init__(self, folder: str, make: Callable[[Schema, str], SqliteTable], setup: Setup) -> None:
        self._root = Path(folder)
        self._moves = self._root / OWN / "moves"
        self._make = make
        self._setup = setup
        self._tracked: dict[str, _Tracked] = {}
        self._shape: int | None = None
        self._done = 0
        self._waiting: list[_Move] = []
        self._strangers: list[_Move] = []

    # Around a transaction ----------------------------------------------------------------------------------------

    def begin(self, connection: apsw.Connection) -> None:
        """At the start of a transaction: finish what another process left, and watch the tables there are."""
        left = _fetch(
            connection,
            "SELECT number, target, source, size, changed FROM _howdah_moves WHERE number > ?1 ORDER BY number",
            (self._done,),
        )
        if left:
            self._move([_Move(*row[1:]) for row in left])
            self._done = left[-1][0]
        self._track(connection)

    def prepare(self, connection: apsw.Connection) -> None:
        """Before the commit: write the files of what changed under temporary names, and note what is to be moved."""
        moves: list[_Move] = []
        self._waiting = moves
        try:
            self._reshape(connection, moves)
            for tracked in self._tracked.values():
                keys = _fetch(connection, f"SELECT DISTINCT * FROM {tracked.dirty}")
                if keys:
                    connection.execute(f"DELETE FROM {tracked.dirty}")
                for start in range(0, len(keys), BATCH):
                    self._write_rows(connection, tracked, keys[start : start + BATCH], moves)
            moves += self._strangers
            if not moves:
                return
            self._flush([m.source for m in moves if m.source is not None])
        except OSError as error:
            raise BackendError(
                f"{self._root}: a row's file cannot be written: {error.strerror}; nothing was changed"
            ) from error
        connection.execute("DELETE FROM _howdah_moves WHERE number <= ?1", (self._done,))
        connection.executemany(
            "INSERT INTO _howdah_moves (target, source, size, changed) VALUES (?1, ?2, ?3, ?4)", moves
        )

    def publish(self, connection: apsw.Connection) -> None:
        """After the commit: put the files in their places."""
        moves, self._waiting, self._strangers = self._waiting, [], []
        if not moves:
            return
        self._move(moves)
        self._done = _fetch(connection, "SELECT max(number) FROM _howdah_moves")[0][0]

    def roll_back(self) -> None:
        """After a rollback: remove the temporary files, and look at everything anew."""
        for move in self._waiting:
            if move.source is not None:
                (self._moves / move.source).unlink(missing_ok=True)
        self._waiting, self._strangers = [], []
        self._shape = None

    # Tables ------------------------------------------------------------------------------------------------------

    def _track(self, connection: apsw.Connection) -> None:
        """Note the keys of rows that will be written, in every table that is new or has another shape."""
        shape = _fetch(connection, "PRAGMA main.schema_version")[0][0]
        if shape == self._shape:
            return
        there = {
            name: (version, spec)
            for name, version, spec in _fetch(connection, "SELECT name, version, spec FROM _howdah_tables")
        }
        known = {row[0] for row in _fetch(connection, "SELECT name FROM temp.sqlite_master WHERE type = 'table'")}
        for name in [n for n in self._tracked if n not in there]:
            for statement in self._tracked.pop(name).drops():
                connection.execute(statement)
        for name, (version, spec) in there.items():
            found = self._tracked.get(name)
            if found is not None and found.version == version and derived_name(name, "dirty") in known:
                continue
            shaped = json.loads(spec)
            self._tracked[name] = made = _Tracked(self._make(from_spec(name, shaped), name), version, shaped)
            for statement in (*made.drops(), *made.statements()):
                connection.execute(statement)
        self._shape = shape

    def _reshape(self, connection: apsw.Connection, moves: list[_Move]) -> None:
        """Tables that were made, changed or dropped in this transaction."""
        changed = _fetch(
            connection,
            "SELECT coalesce(t.name, m.folder), t.version FROM _howdah_tables t FULL JOIN _howdah_mirrored m"
            " ON m.folder = t.name WHERE t.version IS NOT m.version AND coalesce(m.folder, 'x') <> ''",
        )
        if changed:
            self._shape = None
            self._track(connection)
        for folder, version in changed:
            if version is None:
                connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ?1", (folder,))
                connection.execute("DELETE FROM _howdah_files WHERE folder = ?1", (folder,))
                moves.append(_Move(folder, None))
                continue
            tracked = self._tracked[folder]
            self._put(moves, f"{folder}/{TABLE_FILE}", dump({"table": folder, **tracked.spec}))
            connection.execute(f"DELETE FROM {tracked.dirty}")
            connection.execute(f"INSERT INTO {tracked.dirty} SELECT {tracked.key} FROM main.{tracked.table.name}")
            self._record(connection, folder, version)
        self._reroot(connection, moves)

    def _reroot(self, connection: apsw.Connection, moves: list[_Move]) -> None:
        """The file that marks the directory and remembers declared migrations."""
        wanted = "FROM _howdah_migrations WHERE component NOT LIKE 'shape:%'"
        count = _fetch(connection, f"SELECT count(*) {wanted}")[0][0]
        known = _fetch(connection, "SELECT version FROM _howdah_mirrored WHERE folder = ''")
        if known != [(count,)]:
            rows = _fetch(connection, f"SELECT component, version, description, statements, applied_at {wanted}")
            self._put(moves, ROOT_FILE, dump({"format": FORMAT, "migrations": [list(r) for r in rows]}))
            self._record(connection, "", count)

    def _record(self, connection: apsw.Connection, folder: str, version: int) -> None:
        connection.execute(
            "INSERT INTO _howdah_mirrored VALUES (?1, ?2) ON CONFLICT (folder) DO UPDATE SET version = ?2",
            (folder, version),
        )

    # Rows --------------------------------------------------------------------------------------------------------

    def _rows(
        self, connection: apsw.Connection, tracked: _Tracked, keys: Sequence[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """The rows with these keys, in driver form, expired ones too."""
        params = Params(tracked.table.dialect)
        test = tracked.table.keys_test(keys, params)
        names = ", ".join(f"t.{quote(n)}" for n in tracked.table.schema.names)
        sql = f"SELECT {names} FROM {tracked.table.name} t WHERE {test}"
        return _fetch(connection, sql, params.values)

    def _write_rows(
        self,
        connection: apsw.Connection,
        tracked: _Tracked,
        keys: Sequence[tuple[Any, ...]],
        moves: list[_Move],
    ) -> None:
        folder, places = tracked.table.physical, tracked.table.key_places
        kept = []
        for row in self._rows(connection, tracked, keys):
            key = tracked.files.key([row[p] for p in places])
            name = file_name(key)
            move = self._put(moves, f"{folder}/{name}", tracked.files.text(row))
            kept.append((folder, name, json.dumps(key), move.size, move.changed))
        connection.executemany(KEEP, kept)
        for name in {file_name(tracked.files.key(k)) for k in keys} - {k[1] for k in kept}:
            gone = _fetch(
                connection,
                "DELETE FROM _howdah_files WHERE folder = ?1 AND name = ?2 RETURNING size, changed",
                (folder, name),
            )
            moves.extend(_Move(f"{folder}/{name}", None, *row) for row in gone)

    def _put(self, moves: list[_Move], target: str, data: bytes) -> _Move:
        """Write a file under a temporary name."""
        source = uuid.uuid4().hex
        move = _Move(target, source)
        moves.append(move)
        with open(self._moves / source, "wb") as file:
            file.write(data)
            file.flush()
            found = os.fstat(file.fileno())
        moves[-1] = move._replace(size=found.st_size, changed=found.st_mtime_ns)
        return moves[-1]

    def _flush(self, sources: Sequence[str]) -> None:
        """Make temporary files durable."""
        if len(sources) > FEW and sys.platform == "linux":
            os.sync()
            return
        for source in sources:
            _fsync(self._moves / source)
        _fsync(self._moves)

    def _move(self, moves: Sequence[_Move]) -> None:
        """Put files in their places; what is there already is done."""
        folders = set()
        try:
            for move in moves:
                target = self._root / move.target
                folders.add(target.parent)
                if move.source is not None:
                    self._place(self._moves / move.source, target, folders)
                elif move.size is None:
                    shutil.rmtree(target, ignore_errors=True)
                else:
                    with suppress(FileNotFoundError):
                        found = target.stat()
                        if (found.st_size, found.st_mtime_ns) == (move.size, move.changed):
                            target.unlink()
            for folder in folders:
                with suppress(FileNotFoundError):
                    _fsync(folder)
        except OSError as error:
            raise BackendError(
                f"{error.filename}: a row's file cannot be put in its place: {error.strerror}; the write itself is stored,"
                " and the next one tries again"
            ) from error

    def _place(self, source: Path, target: Path, folders: set[Path]) -> None:
        try:
            os.replace(source, target)
        except FileNotFoundError:
            if not source.exists():
                return
            target.parent.mkdir(exist_ok=True)
            folders.add(self._root)
            os.replace(source, target)

    # Reading back ------------------------------------------------------------------------------------------------

    def read_back(self, connection: apsw.Connection) -> None:
        """Take over what was edited, added or removed by hand; ``Corrupt`` naming a file that cannot be read."""
        sources = {row[0] for row in _fetch(connection, "SELECT source FROM _howdah_moves WHERE source IS NOT NULL")}
        for entry in os.scandir(self._moves):  # of a process that died before its commit
            if entry.name not in sources:
                os.unlink(entry.path)
        if not (self._root / ROOT_FILE).exists():
            connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ''")
        folders = sorted(e.name for e in os.scandir(self._root) if e.is_dir() and e.name != OWN)
        for folder in folders:
            if folder not in self._tracked and any(n.endswith(".json") for n in os.listdir(self._root / folder)):
                self._adopt(connection, folder)
        if self._shape is None:
            self._adopt_migrations(connection)
            self._track(connection)
        for folder, tracked in self._tracked.items():
            if folder in folders:
                self._compare(connection, tracked)
            else:  # a table is dropped by a call; here its folder is lost, and written again
                connection.execute("DELETE FROM _howdah_mirrored WHERE folder = ?1", (folder,))
                connection.execute("DELETE FROM _howdah_files WHERE folder = ?1", (folder,))

    def _adopt(self, connection: apsw.Connection, folder: str) -> None:
        """Make the table of a folder that the database does not know."""
        where = self._root / folder / TABLE_FILE
        spec = load(_read(where), str(where))
        try:
            table = self._make(from_spec(folder, spec), folder)
        except (KeyError, TypeError, IndexError, AttributeError, InvalidInput) as error:
            raise Corrupt(f"{where}: the table's declaration cannot be read: {error!r}") from error
        run(connection, self._setup.ensure(table), str(self._root))
        version = _fetch(connection, "SELECT version FROM _howdah_tables WHERE name = ?1", (folder,))
        self._record(connection, folder, version[0][0])
        self._shape = None

    def _adopt_migrations(self, connection: apsw.Connection) -> None:
        where = self._root / ROOT_FILE
        rows = load(_read(where), str(where)).get("migrations", [])
        try:
            connection.executemany(
                "INSERT OR IGNORE INTO _howdah_migrations (component, version, description, statements, applied_at)"
                " VALUES (?1, ?2, ?3, ?4, ?5)",
                rows,
            )
        except (apsw.Error, TypeError, ValueError) as error:
            raise Corrupt(f"{where}: its migrations cannot be read: {error}") from error

    def _compare(self, connection: apsw.Connection, tracked: _Tracked) -> None:
        folder = tracked.table.physical
        known = {
            name: (size, changed, key)
            for name, size, changed, key in _fetch(
                connection, "SELECT name, size, changed, key FROM _howdah_files WHERE folder = ?1", (folder,)
            )
        }
        edited = []
        for entry in os.scandir(self._root / folder):
            if not entry.name.endswith(".json") or entry.name.startswith((".", "_")):
                continue
            state = known.pop(entry.name, None)
            found = entry.stat()
            if state is None or state[:2] != (found.st_size, found.st_mtime_ns):
                edited.append(entry.name)
        gone = [tracked.files.parse_key(json.loads(key)) for _, _, key in known.values()]
        run(connection, tracked.table.delete(gone), str(self._root))
        edited.sort()
        for start in range(0, len(edited), BATCH):
            gone += self._take_over(connection, tracked, edited[start : start + BATCH])
        connection.execute(f"DELETE FROM {tracked.dirty}")
        marks = ", ".join("?" for _ in tracked.table.schema.key)
        connection.executemany(f"INSERT INTO {tracked.dirty} VALUES ({marks})", gone)

    def _take_over(self, connection: apsw.Connection, tracked: _Tracked, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Store the rows of files that were edited or are new; the keys of those to be written as others are."""
        table, folder = tracked.table, self._root / tracked.table.physical
        rows: dict[tuple[Any, ...], Any] = {}
        as_written, rewrite = [], []
        for name in names:
            where = str(folder / name)
            data = _read(folder / name)
            row = tracked.files.parse(data, where)
            key = tuple(row[p] for p in table.key_places)
            shown = tracked.files.key(key)
            proper = file_name(shown)
            found = (folder / name).stat()
            if name != proper:
                if key in rows or (folder / proper).exists():
                    raise Corrupt(f"{where}: another file of this table holds a row with the same key: {proper}")
                self._strangers.append(_Move(f"{table.physical}/{name}", None, found.st_size, found.st_mtime_ns))
            if name == proper and data == tracked.files.text(row):
                as_written.append((table.physical, name, json.dumps(shown), found.st_size, found.st_mtime_ns))
            else:
                rewrite.append(key)
            rows[key] = row
        same = {tuple(r[p] for p in table.key_places): r for r in self._rows(connection, tracked, list(rows))}
        fresh = [row for key, row in rows.items() if same.get(key) != tuple(row)]
        place = None
        if table.schema.auto is not None and table.schema.auto.kind == "integer":
            place = table.schema.names.index(table.schema.auto.name)
        try:
            run(connection, table.put(fresh), str(self._root))
            if fresh and place is not None:
                run(connection, table.numbers.raise_to(max(r[place] for r in fresh)), str(self._root))
        except Error as error:
            raise Corrupt(f"{folder}: what was edited by hand cannot be stored: {error}") from error
        connection.executemany(KEEP, as_written)
        return rewrite


def _fetch(connection: apsw.Connection, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    return connection.execute(sql, params).fetchall()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Corrupt(f"{path}: this file cannot be read: {error.strerror}; repair it, or move it away") from error


def _fsync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
