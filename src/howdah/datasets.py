"""Data sets as read-only tables: splits on a datasets server (Hugging Face's protocol), JSONL and Parquet files, objects too.

The rows are read once, when the table is opened, into a store in memory, and answer every query from there; nothing is
dropped silently: a set of more than ``max_scan`` rows is ``Unsupported``, a cell that the server cut off is an error.
Protocol: https://huggingface.co/docs/dataset-viewer (``/splits``, ``/rows``, ``/filter``).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from .errors import BackendError, InvalidInput, InvalidValue, ModelUnavailable, NotFound, SetupRequired, Unsupported
from .objects.client import read
from .pages import check_limit
from .readonly import ReadOnly
from .rows import RowType
from .schema import Column, Kind, build
from .store import connect_async
from .table import AsyncTable
from .values import INT_MAX, INT_MIN, check_name

if TYPE_CHECKING:
    from .blocking.table import Table

SERVER: Final = "https://datasets-server.huggingface.co"
PAGE: Final = 100
ATTEMPTS: Final = 6
INDEX: Final = "row_idx"
Rows = Iterator[dict[str, Any]]


class _Server:
    """A datasets server: pages of rows, asked again with growing pauses when it is busy."""

    def __init__(self, base: str, dataset: str, token: str | None, timeout: float) -> None:
        self._base = base.rstrip("/")
        self._dataset = dataset
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout

    def ask(self, path: str, **query: Any) -> Any:
        """The JSON of an address."""
        url = f"{self._base}/{path}?{urlencode({'dataset': self._dataset, **query})}"
        for attempt in range(ATTEMPTS):
            after: float | None = None
            try:
                request = urllib.request.Request(url, headers=self._headers)  # noqa: S310 the user's URL
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310 the user's URL
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read(500).decode(errors="replace")
                if error.code != 429 and error.code < 500:
                    kind = NotFound if error.code == 404 else BackendError
                    raise kind(f"data set {self._dataset}: HTTP {error.code}: {text}") from error
                given = error.headers.get("Retry-After", "")
                after, failure = float(given) if given.isdigit() else None, f"HTTP {error.code}"
            except (OSError, TimeoutError) as error:
                failure = f"no answer from {urlsplit(self._base).netloc}: {error}"
            except ValueError as error:
                raise BackendError(f"data set {self._dataset}: the answer of {path} is no JSON: {error}") from error
            if attempt < ATTEMPTS - 1:
                pause = min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1) if after is None else after
                time.sleep(pause)
        raise BackendError(f"data set {self._dataset}: {failure}, {ATTEMPTS} times")

    def config(self, split: str) -> str:
        """The only configuration that has the split."""
        found = [s["config"] for s in self.ask("splits")["splits"] if s["split"] == split]
        if not found:
            raise NotFound(f"data set {self._dataset} has no split {split!r}")
        if len(found) > 1:
            raise InvalidInput(
                f"data set {self._dataset} has several configurations, choose config=: {', '.join(found)}"
            )
        return str(found[0])


_TYPES: tuple[tuple[Kind, set[type]], ...] = (
    ("boolean", {bool}),
    ("integer", {int}),
    ("real", {int, float}),
    ("text", {str}),
)


def _kind(feature: Any) -> Kind:
    """The column kind of a feature; what is not a plain value is JSON."""
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        return "integer"
    if not isinstance(feature, Mapping) or feature.get("_type") != "Value":
        return "json"
    dtype = str(feature.get("dtype"))
    if dtype == "bool":
        return "boolean"
    if dtype in ("string", "large_string"):
        return "text"
    if dtype.startswith(("int", "uint")):
        return "integer"
    return "real" if dtype.startswith("float") else "json"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, (int, float)):
        return repr(value)
    raise InvalidInput(f"where: {value!r:.60} cannot be sent to the server; use text, numbers or booleans")


def _hub(server: _Server, config: str | None, split: str, where: Mapping[str, Any]) -> tuple[list[Column], Rows, int]:
    chosen = config or server.config(split)
    query: dict[str, Any] = {"config": chosen, "split": split}
    if where:
        # A null criterion means null; it must never widen the answer.
        tests = [
            '"' + n.replace('"', '""') + '"' + (" IS NULL" if v is None else f"={_literal(v)}")
            for n, v in where.items()
        ]
        query["where"] = " AND ".join(tests)
    path = "filter" if where else "rows"
    first = server.ask(path, **query, offset=0, length=PAGE)
    try:
        columns = [Column(f["name"], _kind(f["type"]), nullable=True) for f in first["features"]]
        total = int(first["num_rows_total"])
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"data set {server._dataset}: the answer is not the protocol's: {error!r}") from error

    def rows() -> Rows:
        page, seen = first, 0
        while True:
            for item in page["rows"]:
                if item.get("truncated_cells"):
                    cut = ", ".join(item["truncated_cells"])
                    raise BackendError(f"data set {server._dataset}: row {item['row_idx']}: the server cut off {cut}")
                yield {INDEX: item["row_idx"], **item["row"]}
            seen += len(page["rows"])
            if seen >= total:
                return
            if not page["rows"]:
                raise BackendError(f"data set {server._dataset}: {seen} rows came, {total} were announced")
            page = server.ask(path, **query, offset=seen, length=PAGE)

    return columns, rows(), total


def _guess(values: Sequence[Any]) -> Kind:
    kinds = {type(v) for v in values if v is not None}
    for kind, types in _TYPES:
        if kinds and kinds <= types:
            small = kind != "integer" or all(v is None or INT_MIN <= v <= INT_MAX for v in values)
            return kind if small else "json"
    return "json"


def _read(place: str) -> bytes:
    """A whole file: a path, or the URL of an object."""
    if "://" in place:
        return read(place)
    try:
        return Path(place).read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{place}: no such file") from error
    except OSError as error:
        raise BackendError(f"{place}: cannot be read: {error.strerror or error}") from error


def _jsonl(place: str) -> tuple[list[Column], Rows, int]:
    found: list[dict[str, Any]] = []
    number = 0
    try:
        for number, line in enumerate(_read(place).decode().split("\n"), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InvalidValue(f"{place}: line {number} is no JSON object")
                found.append(row)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place}: line {number} is no JSON: {error}") from error
    names = list(dict.fromkeys(n for row in found for n in row))
    columns = [Column(n, _guess([row.get(n) for row in found]), nullable=True) for n in names]
    return columns, ({INDEX: i, **row} for i, row in enumerate(found)), len(found)


def _parquet(place: str) -> tuple[list[Column], Rows, int]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ModelUnavailable("Parquet files need a reader: pip install 'howdah[datasets]'") from error
    source = place if "://" not in place and Path(place).is_dir() else pyarrow.BufferReader(_read(place))
    try:
        table = parquet.read_table(source)
    except Exception as error:
        raise BackendError(f"{place}: cannot be read as Parquet: {error}") from error
    found = table.to_pylist()
    columns = [Column(n, _guess(table.column(n).to_pylist()), nullable=True) for n in table.column_names]
    return columns, ({INDEX: i, **row} for i, row in enumerate(found)), len(found)


def _load(
    name: str,
    *,
    config: str | None,
    split: str,
    token: str | None,
    where: Mapping[str, Any] | None,
    key: str,
    max_scan: int,
    base_url: str,
    timeout: float,
) -> tuple[tuple[Column, ...], list[dict[str, Any]]]:
    """Columns and rows of a data set, checked."""
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"name={name!r:.60}: expected 'org/name', 'jsonl:PATH' or 'parquet:PATH'")
    most = check_limit(max_scan, "max_scan", least=1)
    kind, _, place = name.partition(":")
    if kind in ("jsonl", "parquet"):
        if where is not None or config is not None:
            raise InvalidInput("where= and config= are for data sets on a server")
        columns, rows, total = (_jsonl if kind == "jsonl" else _parquet)(place)
    else:
        columns, rows, total = _hub(_Server(base_url, name, token, timeout), config, split, where or {})
    if most is not None and total > most:
        raise Unsupported(
            f"data set {name}: {total:,} rows, more than max_scan={most:,}; narrow it by where=, or raise that"
        )
    columns = [c for c in columns if c.name != INDEX]
    for column in columns:
        check_name(column.name, f"data set {name}: column")
    whole = (Column(INDEX, "integer"), *columns)
    if key not in {c.name for c in whole}:
        raise InvalidInput(f"data set {name}: there is no column {key!r}; it has {', '.join(c.name for c in whole)}")
    plain = {c.name: c.kind for c in whole}
    return whole, [{n: _fit(v, plain.get(n, "json")) for n, v in row.items()} for row in rows]


def _fit(value: Any, kind: str) -> Any:
    if kind == "real" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


async def _table(engine: Any, columns: tuple[Column, ...], rows: list[dict[str, Any]], key: str) -> AsyncTable[Any]:
    schema = build("dataset", columns, key=key, internal=True)
    kind = RowType(None, columns, dict, None)
    writer: AsyncTable[Any] = AsyncTable(engine, schema, kind, "dataset")
    await writer._ensure()
    for start in range(0, len(rows), 5000):
        await writer.put_many(rows[start : start + 5000])
    if await writer.count() != len(rows):
        raise SetupRequired(f"column {key!r} is no key: several rows have the same value", findings=(key,))
    return AsyncTable(ReadOnly(engine), schema, kind, "dataset")


async def open_async(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    token: str | None = None,
    where: Mapping[str, Any] | None = None,
    key: str = INDEX,
    max_scan: int = 100_000,
    base_url: str = SERVER,
    timeout: float = 30,
) -> AsyncTable[Any]:
    """As ``open``, for async callers."""
    loop = asyncio.get_running_loop()
    columns, rows = await loop.run_in_executor(
        None,
        lambda: _load(name, config=config, split=split, token=token, where=where, key=key, max_scan=max_scan,
                      base_url=base_url, timeout=timeout),
    )  # fmt: skip
    store = await connect_async("memory:")
    return await _table(store._engine, columns, rows, key)


def open(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    token: str | None = None,
    where: Mapping[str, Any] | None = None,
    key: str = INDEX,
    max_scan: int = 100_000,
    base_url: str = SERVER,
    timeout: float = 30,
) -> Table[Any]:
    """A read-only table over a data set: ``"org/name"`` on a datasets server, ``"jsonl:PATH"`` or ``"parquet:PATH"``,
    where a path may be the URL of an object, ``s3://bucket/name``.

    ``where`` holds equalities that are sent along (``None`` means null); everything else is asked of the table. ``key`` is
    the column that tells rows apart (default ``row_idx``). Raises ``Unsupported`` for more than ``max_scan`` rows and for
    every write, ``NotFound`` for an unknown set, ``BackendError`` when the server fails six times. NaN and infinity become
    null.
    """
    from .blocking.connect import connect
    from .blocking.table import Table as BlockingTable

    columns, rows = _load(name, config=config, split=split, token=token, where=where, key=key, max_scan=max_scan,
                          base_url=base_url, timeout=timeout)  # fmt: skip
    store = connect("memory:")
    return BlockingTable(store._run(_table(store._async._engine, columns, rows, key)), store._run)
