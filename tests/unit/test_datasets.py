"""Data sets: against a local server that speaks the protocol, and files."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import howdah
from howdah import InvalidInput, NotFound, Unsupported, datasets

FEATURES = [
    {"feature_idx": 0, "name": "text", "type": {"dtype": "string", "_type": "Value"}},
    {"feature_idx": 1, "name": "label", "type": {"names": ["neg", "pos"], "_type": "ClassLabel"}},
    {"feature_idx": 2, "name": "score", "type": {"dtype": "float32", "_type": "Value"}},
    {"feature_idx": 3, "name": "tags", "type": [{"dtype": "string", "_type": "Value"}]},
]


class Server(ThreadingHTTPServer):
    """A small datasets server."""

    rows: list[dict[str, Any]]
    asked: list[str]
    failures: list[int]
    cut: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server, url = self.server, urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        server.asked.append(self.path)
        if server.failures:
            self.answer({"error": "busy"}, server.failures.pop(0))
        elif self.headers.get("Authorization") != "Bearer secret":
            self.answer({"error": "no token"}, 401)
        elif query["dataset"] != "org/näme & more":
            self.answer({"error": "unknown"}, 404)
        elif url.path == "/splits":
            splits = [{"config": c, "split": s} for c, s in (("default", "train"), ("a", "test"), ("b", "test"))]
            self.answer({"splits": splits})
        else:
            found = list(enumerate(server.rows))
            if url.path == "/filter":
                for name, null, text, number in re.findall(
                    r'"((?:[^"]|"")*)"(?:( IS NULL)|=(?:\'((?:[^\']|\'\')*)\'|([^ ]+)))', query["where"]
                ):
                    wanted = None if null else json.loads(number) if number else text.replace("''", "'")
                    found = [(i, r) for i, r in found if r[name.replace('""', '"')] == wanted]
            part = found[int(query["offset"]) :][: int(query["length"])]
            rows = [{"row_idx": i, "row": r, "truncated_cells": server.cut} for i, r in part]
            self.answer({"features": FEATURES, "rows": rows, "num_rows_total": len(found)})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.rows = [
        {"text": f"it's {i}" if i % 3 else None, "label": i % 2, "score": i / 2, "tags": ["x"] * (i % 3)}
        for i in range(250)
    ]
    made.asked, made.failures, made.cut = [], [], []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def open_set(server: Server, **options: Any) -> Any:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    return datasets.open("org/näme & more", token="secret", base_url=base, **options)


def test_a_split_is_a_read_only_table(server: Server) -> None:
    table = open_set(server)
    assert table.count() == 250
    assert table.get(7) == {"row_idx": 7, "text": "it's 7", "label": 1, "score": 3.5, "tags": ["x"]}
    assert table.count({"text": None}) == 84
    found = table.query((table.c.label == 1) & (table.c.score > 100), order_by="-score", limit=3).all()
    assert [r["row_idx"] for r in found] == [249, 247, 245]
    assert len([r for page in table.pages(size=90) for r in page]) == 250
    assert len(server.asked) == 4  # the configuration, then three pages
    writes: list[Callable[[], Any]] = [
        lambda: table.put({"row_idx": 1}), lambda: table.clear(), lambda: table.changes().start(),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises((Unsupported, howdah.SetupRequired)):
            write()


def test_equalities_are_sent_along(server: Server) -> None:
    assert open_set(server, where={"text": "it's 7"}).query().all()[0]["row_idx"] == 7
    assert open_set(server, where={"text": None, "label": 1}).count() == 42
    assert open_set(server, where={"text": "' OR 1=1"}).count() == 0
    with pytest.raises(InvalidInput):
        open_set(server, where={"tags": ["x"]})


def test_a_busy_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.datasets.random.uniform", lambda low, high: 0.0)
    server.failures = [429, 503, 500]
    assert open_set(server).count() == 250
    server.failures = [503] * 6
    with pytest.raises(howdah.BackendError, match="6 times"):
        open_set(server)


def test_what_cannot_be_had_is_said(server: Server) -> None:
    with pytest.raises(Unsupported, match="250 rows"):
        open_set(server, max_scan=249)
    with pytest.raises(InvalidInput, match="a, b"):
        open_set(server, split="test")
    assert open_set(server, split="test", config="a").count() == 250
    with pytest.raises(NotFound):
        open_set(server, split="nowhere")
    base = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(NotFound):
        datasets.open("org/other", token="secret", base_url=base)
    with pytest.raises(howdah.BackendError, match="401"):
        datasets.open("org/näme & more", base_url=base)
    with pytest.raises(InvalidInput, match="no column"):
        open_set(server, key="id")
    with pytest.raises(howdah.Error):
        open_set(server, key="label")
    server.cut = ["text"]
    with pytest.raises(howdah.BackendError, match="cut off text"):
        open_set(server)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"a": 1, "b": "x", "c": 1, "d": True}, {"a": 2, "c": 2.5, "e": {"n": [1]}}, {"a": None, "b": "ü"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")

    async def main() -> None:
        table = await datasets.open_async(f"jsonl:{path}")
        assert await table.count() == 3
        assert await table.get(1) == {"row_idx": 1, "a": 2, "b": None, "c": 2.5, "d": None, "e": {"n": [1]}}
        assert [r["b"] async for r in table.query(table.c.b.is_not_null(), order_by="b")] == ["x", "ü"]
        await table._engine._engine.close()  # type: ignore[attr-defined]  # of the read-only one

    asyncio.run(main())
    for bad in ("not json\n", "[1]\n"):
        path.write_text(bad)
        with pytest.raises(howdah.InvalidValue):
            datasets.open(f"jsonl:{path}")
    with pytest.raises(NotFound):
        datasets.open("jsonl:/nowhere/at/all")
    wrong: Any
    for wrong in ("", None, 5):
        with pytest.raises(InvalidInput):
            datasets.open(wrong)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": ["a", "b"], "n": [1, None], "v": [[1.0], []]}), tmp_path / "x.parquet")
    table = datasets.open(f"parquet:{tmp_path / 'x.parquet'}", key="id")
    assert table.get("a") == {"row_idx": 0, "id": "a", "n": 1, "v": [1.0]}
    with pytest.raises(NotFound):
        datasets.open(f"parquet:{tmp_path / 'y.parquet'}")


def test_objects(s3: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import obstore
    from obstore.store import from_url

    parquet.write_table(pyarrow.table({"id": ["a", "b"]}), tmp_path / "x.parquet")
    area = from_url(s3)
    obstore.put(area, "x.parquet", tmp_path / "x.parquet")
    obstore.put(area, "x.jsonl", b'{"id": "\xc3\xbc"}\n')
    assert datasets.open(f"parquet:{s3}/x.parquet", key="id").count() == 2
    assert datasets.open(f"jsonl:{s3}/x.jsonl").query().all() == [{"row_idx": 0, "id": "ü"}]
    for name in ("jsonl", "parquet"):
        with pytest.raises(NotFound):
            datasets.open(f"{name}:{s3}/nothing")
        with pytest.raises(InvalidInput):
            datasets.open(f"{name}:nonsense://x/y")
    folder = tmp_path / "of files"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"id": ["c"]}), folder / "sp ace.parquet")
    assert datasets.open(f"parquet:{folder}").count() == 1
    assert datasets.open(f"parquet:{(folder / 'sp ace.parquet').as_uri()}").count() == 1
