"""Upkeep in the background: sweeping expired rows, merging postings, building vector segments. Never needed for right
answers, only for speed and space."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import Error
from ...schema import Column
from ..base import Op, Stmt
from .sqlite_table import SqliteTable
from .table import SqlTable
from .text import MERGE_PARTS

if TYPE_CHECKING:
    from .sqlite import SqliteEngine

log = logging.getLogger("howdah")
SWEEP_EVERY = 60.0
SWEEP_BATCH = 1000
QUIET = 0.5


def sweep_step(table: SqlTable) -> Op[bool]:
    """Delete one batch of expired rows; whether there may be more."""
    return (yield from table.sweep(SWEEP_BATCH)) == SWEEP_BATCH


def merge_begin(table: SqlTable, parts: int) -> Op[bool]:
    """Sum up the totals if more than ``parts`` wait, which also marks the merge as begun."""
    assert table.text is not None
    if not (yield from table.text.needs_merge(parts)):
        return False
    yield from table.text.merge_totals((yield from table.numbers.allocate(1))[0])
    return True


def merge_step(table: SqlTable, start: str) -> Op[str | None]:
    """Merge the next stretch of terms."""
    assert table.text is not None
    return (yield from table.text.merge_terms(start, (yield from table.numbers.allocate(16))))


class UpkeepThread:
    """One thread of a SQLite engine that looks after the tables in use."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = weakref.ref(engine)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self, table: SqlTable) -> None:
        """Look after the tables soon."""
        if self._thread is None and (table.hidden or table.schema.ttl) and not self._stop.is_set():
            self._thread = threading.Thread(target=self._loop, name="howdah-upkeep", daemon=True)
            self._thread.start()
        if table.hidden:
            self._wake.set()

    def stop(self) -> None:
        """End after the step under way."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(SWEEP_EVERY)
            self._wake.clear()
            # A burst of writes is let pass, so that one round serves them all.
            if self._stop.wait(QUIET) or self._engine() is None:
                return
            try:
                self.run_all()
            except Error as error:
                if not self._stop.is_set():
                    log.warning("upkeep will be tried again: %s", error)

    def run_all(self, parts: int = MERGE_PARTS) -> bool:
        """Everything that waits; whether there was anything. Postings are merged when more than ``parts`` lie apart."""
        engine = self._engine()
        if engine is None:
            return False
        did = False
        with self._busy:
            for table in engine.tables():
                if self._stop.is_set():
                    break
                did = self._table(engine, table, parts) or did
        return did

    def _table(self, engine: SqliteEngine, table: SqliteTable, parts: int) -> bool:
        did = False
        if table.schema.ttl:
            while not self._stop.is_set() and engine.writer.write_here(lambda: sweep_step(table)):
                did = True
        if table.text is not None and engine.read_here(partial(table.text.needs_merge, parts)):
            if engine.writer.write_here(lambda: merge_begin(table, parts)):
                start: str | None = ""
                while start is not None and not self._stop.is_set():
                    start = engine.writer.write_here(partial(merge_step, table, start))
                did = True
        for column in table.versioned:
            if column.vector is not None and column.vector.index is not None and not self._stop.is_set():
                did = self._vectors(engine, table, column) or did
        return did

    def _vectors(self, engine: SqliteEngine, table: SqliteTable, column: Column) -> bool:
        index = table.segments(column)
        if engine.read_here(index.plan) is None:
            return False
        with _only_one(index.folder / f"{index.name}.lock") as mine:
            if not mine:
                return False
            plan = engine.read_here(index.plan)
            if plan is None:
                return False
            old, low = plan
            rows = engine.read_here(lambda: table.vectors_above(column, low))
            made = index.build(rows, low) if rows else None
            engine.writer.write_here(lambda: index.swap(old, made))
            _remove_orphans(engine, index.folder, index.name)
        return True


@contextmanager
def _only_one(path: Path) -> Iterator[bool]:
    """Whether this is the one process that builds; the kernel gives the lock back if it dies."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows: one process at a time is assumed
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove_orphans(engine: SqliteEngine, folder: Path, name: str) -> None:
    """Delete files that no record names: left by a crash, or replaced. Open ones stay readable until closed."""

    def listed() -> Op[set[str]]:
        rows = yield Stmt("SELECT file FROM _howdah_segments WHERE name = ?1", (name,))
        return {file for (file,) in rows}

    known = engine.read_here(listed)
    for path in folder.glob(f"{name}-*"):
        if path.name not in known:
            with suppress(OSError):
                path.unlink()
