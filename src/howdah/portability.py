"""A whole store as one file of JSON lines, and back, between any two engines; the same data always gives the same bytes.

Lines: a head ``{"howdah": 1}``; for each table, by name, its declaration ``{"table", "spec"}``, its rows in key order as
lists of values, and ``{"rows", "sha256"}`` over those lines; at the end ``{"tables", "sha256"}`` over everything before.
Values are JSON where they are JSON; moments are ISO 8601 in UTC, bytes and vectors (little-endian) base64, decimals and
UUIDs text, sparse vectors ``[indices, values]``, JSON ``[value]``, so that its null is told from none. A path that ends in ``.gz`` is compressed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from . import rowjson
from .criteria import Order
from .engines.base import Engine, innermost
from .errors import BackendError, Conflict, Corrupt, InvalidInput, NotFound, TransactionError
from .rows import RowType
from .schema import Column, Schema, from_spec
from .table import AsyncTable

FORMAT: Final = 1
BATCH: Final = 1000
SIZE: Final = 4 * 1024 * 1024
PROGRESS: Final = "_howdah_imports"


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export or import held; ``sha256`` is over everything but the last line."""

    tables: int
    rows: int
    sha256: str


Progress = Callable[[str, int], None]
"""Called with a table's name and the rows done of it, now and then."""

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode


def _out(column: Column) -> Callable[[Any], Any]:
    return (lambda v: [v]) if column.kind == "json" else rowjson.writer(column)


def _in(column: Column) -> Callable[[Any], Any]:
    return (lambda v: v[0]) if column.kind == "json" else rowjson.reader(column)


def _path(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or "\0" in text or not text.isprintable():
        raise InvalidInput(f"path={path!r}: expected the name of a file")
    return Path(text)


def _schema(name: str, spec: Any) -> Schema:
    try:
        return from_spec(name, spec)
    except (KeyError, TypeError, IndexError, AttributeError, InvalidInput) as error:
        raise Corrupt(f"table {name!r}: its declaration in the file cannot be read: {error!r}") from error


def _table(engine: Engine, name: str, schema: Schema) -> AsyncTable[dict[str, Any]]:
    return AsyncTable(engine, schema, RowType(None, schema.columns, dict, None), name)


class _Lines:
    """Lines on their way out, hashed as they go."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.whole = hashlib.sha256()

    def write(self, value: Any) -> bytes:
        line = (_dumps(value) + "\n").encode()
        self.whole.update(line)
        self._file.write(line)
        return line


@contextmanager
def _open(path: Path, mode: Literal["rb", "wb"]) -> Iterator[Any]:
    with path.open(mode) as raw:
        if path.name.removesuffix(".part").endswith(".gz"):
            with gzip.GzipFile(filename="", mode=mode, fileobj=raw, mtime=0) as packed:
                yield packed
        else:
            yield raw


async def export_store(engine: Engine, path: str | os.PathLike[str], progress: Progress | None = None) -> Summary:
    """Write every table, from one snapshot, beside ``path`` and move it there when it is whole."""
    if innermost(engine) is not None:
        raise TransactionError("export() inside a transaction of the same store: end the transaction first")
    target = _path(path)
    part = target.with_name(f"{target.name}.part")
    catalog = await engine.catalog()
    snapshot = await engine.snapshot()
    try:
        with _open(part, "wb") as file:
            lines = _Lines(file)
            lines.write({"howdah": FORMAT})
            total = 0
            for name, spec in sorted(catalog.items()):
                if name == PROGRESS:
                    continue
                total += await _export_table(engine, snapshot, name, spec, lines, progress)
            count = len(catalog.keys() - {PROGRESS})
            summary = Summary(count, total, lines.whole.hexdigest())
            lines.write({"sha256": summary.sha256, "tables": count})
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BackendError(f"{target}: the export could not be written: {error.strerror or error}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        await snapshot.close()
    return summary


async def _export_table(
    engine: Engine, snapshot: Any, name: str, spec: dict[str, Any], lines: _Lines, progress: Progress | None
) -> int:
    schema = from_spec(name, spec)
    ops = engine.table(schema, name)
    read = ops.reader(schema.names)
    codecs = [(c.name, _out(c)) for c in schema.columns]
    lines.write({"spec": spec, "table": name})
    orders, after, total, own = [Order(k) for k in schema.key], None, 0, hashlib.sha256()
    while True:
        rows = await snapshot.read(_page(ops, orders, schema.names, after))
        for driver in rows:
            row = read(driver)
            there = zip(codecs, driver, strict=False)
            own.update(lines.write([None if d is None else c(row[n]) for (n, c), d in there]))
        total += len(rows)
        if progress is not None:
            progress(name, total)
        if len(rows) < BATCH:
            break
        after = list(rows[-1][len(schema.names) :])
    lines.write({"rows": total, "sha256": own.hexdigest()})
    return total


def _page(ops: Any, orders: list[Order], names: Sequence[str], after: list[Any] | None) -> Callable[[], Any]:
    return lambda: ops.select(None, orders, names=names, limit=BATCH, after=after, sort_keys=True)


# Importing ---------------------------------------------------------------------------------------------------------------


def check_export(path: str | os.PathLike[str]) -> Summary:
    """Read a whole export and compare its checksums; ``Corrupt`` saying where it is damaged or cut off."""
    whole, tables, rows = hashlib.sha256(), 0, 0
    own, count = hashlib.sha256(), 0
    for number, line, value in _read(_path(path)):
        if isinstance(value, list):
            own.update(line)
            count += 1
        elif "table" in value:
            if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", str(value["table"])):
                raise Corrupt(f"{path}: line {number}: {value['table']!r:.80} cannot be the name of a table")
            own, count = hashlib.sha256(), 0
            tables += 1
        elif "rows" in value:
            if value["rows"] != count or value["sha256"] != own.hexdigest():
                raise Corrupt(f"{path}: line {number}: the rows above it are not those that were written")
            rows += count
        elif "tables" in value:
            if value["tables"] != tables or value["sha256"] != whole.hexdigest():
                raise Corrupt(f"{path}: line {number}: the file is not as it was written")
            return Summary(tables, rows, value["sha256"])
        whole.update(line)
    raise Corrupt(f"{path}: the file is cut off: its last line is missing")


def _read(path: Path) -> Iterator[tuple[int, bytes, Any]]:
    number = 0
    try:
        with _open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                value = json.loads(line)
                if number == 1 and value != {"howdah": FORMAT}:
                    raise InvalidInput(f"{path}: this is no export of format {FORMAT}")
                yield number, line, value
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (ValueError, EOFError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise Corrupt(f"{path}: line {number + 1} cannot be read: {error}") from error
    except OSError as error:
        raise BackendError(f"{path}: cannot be read: {error.strerror or error}") from error


async def import_store(engine: Engine, path: str | os.PathLike[str], progress: Progress | None = None) -> Summary:
    """Read an export into a store whose tables of those names are not there or empty, after checking it whole.

    An import that was cut short goes on where it stopped when the same file is given again.
    """
    if innermost(engine) is not None:
        raise TransactionError("import inside a transaction of the same store: end the transaction first")
    summary = check_export(path)
    done = _table(engine, PROGRESS, _PROGRESS)
    loader: _Loader | None = None
    for _, _, value in _read(_path(path)):
        if isinstance(value, list):
            assert loader is not None
            await loader.add(value)
        elif "table" in value:
            loader = _Loader(engine, value["table"], value["spec"], done, summary.sha256, progress)
            await loader.begin()
        elif "rows" in value and loader is not None:
            await loader.flush()
    for row in await done.query({"export": summary.sha256}, select=["name"]).all():
        await done.delete((summary.sha256, row["name"]))
    if not await done.count():
        await done.drop()
    return summary


_PROGRESS: Final = from_spec(
    PROGRESS,
    {
        "columns": [
            {
                "name": n,
                "kind": k,
                "nullable": False,
                "auto": False,
                "dim": None,
                "dtype": None,
                "metric": None,
                "hnsw": None,
            }
            for n, k in (("export", "text"), ("name", "text"), ("rows", "integer"))
        ],
        "key": ["export", "name"],
        "indexes": [],
        "unique": [],
        "text": {},
        "ttl": None,
    },
)


class _Loader:
    """One table on its way in: batches of rows, each written together with how far it is."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        spec: dict[str, Any],
        done: AsyncTable[dict[str, Any]],
        export: str,
        progress: Progress | None,
    ) -> None:
        self._schema = _schema(name, spec)
        self._table = _table(engine, name, self._schema)
        checks = dict(self._table._checkers)
        self._codecs = [(_in(c), checks[c.name]) for c in self._schema.columns]
        self._done = done
        self._mark = {"export": export, "name": name}
        self._progress = progress
        self._batch: list[list[Any]] = []
        self._size = 0
        self._skip = 0
        self._rows = 0

    async def begin(self) -> None:
        """Make the table; ``Conflict`` when it holds rows that are not of this import."""
        await self._done._ensure()
        await self._table._ensure()
        before = await self._done.get(self._mark)
        self._skip = before["rows"] if before is not None else 0
        if before is None and await self._table.query(limit=1).first() is not None:
            raise Conflict(f"table {self._schema.name!r} holds rows already: import into a store without it")

    async def add(self, values: list[Any]) -> None:
        """One row."""
        self._rows += 1
        if self._rows <= self._skip:
            return
        row = []
        for (codec, check), value in zip(self._codecs, values, strict=True):
            row.append(None if value is None else check(codec(value)))
            self._size += len(value) if isinstance(value, str) else 64
        self._batch.append(row)
        if len(self._batch) >= BATCH or self._size >= SIZE:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits."""
        rows, self._batch, self._size = self._batch, [], 0
        if rows:
            table, done = self._table, self._done
            mark = done._ops.encode(done._stored({**self._mark, "rows": self._rows}))
            await table.put_stored(rows, also=lambda: done._ops.put([mark]))
        if self._progress is not None:
            self._progress(self._schema.name, self._rows)
