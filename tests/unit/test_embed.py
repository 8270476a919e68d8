"""Embedders: the bundled model, an endpoint that speaks OpenAI's protocol, callables, names."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from howdah import InvalidInput, InvalidValue, ModelUnavailable
from howdah.embed import open_embedder
from howdah.embed.base import FunctionEmbedder, fingerprint
from howdah.embed.remote import OpenAIEmbedder
from howdah.search import cosine


class Endpoint(BaseHTTPRequestHandler):
    """``POST /v1/embeddings`` as OpenAI's API reference describes it; some calls fail first."""

    failures: ClassVar[list[int]] = []
    calls: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.calls.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        if self.failures:
            status = self.failures.pop(0)
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no"}}')
            return
        rows = [
            {"object": "embedding", "index": i, "embedding": [len(t), 1.0, 0.5]} for i, t in enumerate(body["input"])
        ]
        answer = {
            "object": "list",
            "data": rows[::-1],
            "model": body["model"],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.failures, Endpoint.calls = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_openai_endpoint(endpoint: str) -> None:
    embedder = OpenAIEmbedder("m", base=endpoint, key="secret")
    assert embedder.dim == 3
    Endpoint.failures = [429, 503]
    texts = ["x" * (i % 50 + 1) for i in range(300)]
    found = asyncio.run(embedder.embed(texts))
    assert found.shape == (300, 3)
    assert found[:, 0].tolist() == [len(t) for t in texts]
    assert Endpoint.calls[-1]["key"] == "Bearer secret"
    assert Endpoint.calls[-1]["path"] == "/v1/embeddings"
    assert max(len(c["input"]) for c in Endpoint.calls) == 128
    Endpoint.failures = [400]
    with pytest.raises(ModelUnavailable, match="400"):
        asyncio.run(embedder.embed(["a"]))
    by_url = open_embedder(f"{endpoint}?model=m&dim=3")
    assert by_url is not None
    assert (by_url.dim, by_url.name) == (3, "m@127.0.0.1")
    with pytest.raises(InvalidInput, match="model"):
        open_embedder(endpoint)
    with pytest.raises(ModelUnavailable):
        OpenAIEmbedder("m", base="http://127.0.0.1:1/v1")


def test_the_bundled_model_knows_meaning() -> None:
    embedder = open_embedder("bundled")
    assert embedder is not None
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A cheetah is running behind its prey.", ""]
    found = asyncio.run(embedder.embed(texts))
    assert found.shape == (4, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-3)
    assert cosine(found[0], found[1]) > 0.7  # the full-precision model gives 0.755 and 0.14
    assert cosine(found[0], found[2]) < 0.2
    again = asyncio.run(embedder.embed(texts[:1]))
    assert cosine(again[0], found[0]) > 0.99


def test_callables_and_names() -> None:
    made = FunctionEmbedder(lambda texts: [[1.0, 2.0]] * len(texts), name="f", dim=2)
    assert asyncio.run(made.embed(["a", "b"])).tolist() == [[1, 2], [1, 2]]

    async def later(texts: list[str]) -> Any:
        return [[float("nan"), 0.0]] * len(texts)

    with pytest.raises(InvalidValue, match="finite"):
        asyncio.run(FunctionEmbedder(later, name="g", dim=2).embed(["a"]))
    with pytest.raises(InvalidValue, match="expected"):
        asyncio.run(FunctionEmbedder(lambda t: [[1.0]], name="h", dim=2).embed(["a"]))
    assert fingerprint(made) != fingerprint(FunctionEmbedder(lambda t: t, name="f2", dim=2))
    assert open_embedder(None) is None
    assert open_embedder("none") is None
    assert open_embedder(made) is made
    for bad in ("magic", "magic:model"):
        with pytest.raises(ModelUnavailable):
            open_embedder(bad)
    with pytest.raises(InvalidInput):
        open_embedder(object())
