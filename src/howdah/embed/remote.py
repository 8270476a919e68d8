"""Embeddings from any HTTP endpoint that speaks OpenAI's protocol, with batches, retries and back-off."""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import numpy as np

from ..errors import InvalidInput, ModelUnavailable
from .base import as_matrix

BATCH: Final = 128
ATTEMPTS: Final = 5
KNOWN: Final = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}


class OpenAIEmbedder:
    """``POST {base}/embeddings`` with a bearer key. ``dim`` is asked of the endpoint where it is not known."""

    def __init__(
        self, model: str, *, base: str = "https://api.openai.com/v1", key: str | None = None, dim: int | None = None,
        timeout: float = 60, max_tokens: int = 8191,
    ) -> None:  # fmt: skip
        self._model = model
        self._base = base.rstrip("/")
        self._key = key if key is not None else os.environ.get("OPENAI_API_KEY")
        self._timeout = timeout
        self._given = dim
        self.max_tokens = max_tokens
        self.name = f"{model}@{urlsplit(self._base).hostname}"
        self.dim = dim or KNOWN.get(model) or self._ask_dim()

    @classmethod
    def from_text(cls, text: str) -> OpenAIEmbedder:
        """``openai:MODEL`` or ``http(s)://host/v1?model=MODEL[&dim=N]``."""
        if text.startswith("openai:"):
            return cls(text.removeprefix("openai:"))
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query))
        if "model" not in options:
            raise InvalidInput(f"embedder {text!r}: name the model, e.g. {text}?model=NAME")
        dim = options.get("dim")
        if dim is not None and not dim.isdigit():
            raise InvalidInput(f"embedder {text!r}: dim={dim!r} is no number")
        return cls(options["model"], base=urlunsplit(parts._replace(query="")), dim=int(dim) if dim else None)

    def _ask_dim(self) -> int:
        try:
            return len(self._post(["dimension"])[0])
        except _Later as later:
            raise ModelUnavailable(f"{self.name}: {later}") from later.__cause__

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        """One row for each text, in batches; a busy or failing endpoint is asked again, with growing pauses."""
        found: list[Any] = []
        loop = asyncio.get_running_loop()
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            for attempt in range(ATTEMPTS):
                try:
                    found.extend(await loop.run_in_executor(None, self._post, part))
                    break
                except _Later as later:
                    if attempt == ATTEMPTS - 1:
                        raise ModelUnavailable(f"{self.name}: {later}") from later.__cause__
                    pause = later.after if later.after is not None else min(30.0, 0.5 * 2**attempt)
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
        return as_matrix(found, len(texts), self.dim, self.name)

    def _post(self, texts: list[str]) -> list[list[float]]:
        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._given is not None and self._model in KNOWN:
            body["dimensions"] = self._given
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self._base}/embeddings", json.dumps(body).encode(), headers)  # noqa: S310 the user's URL
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310 the user's URL
                found = json.load(answer)
            rows = sorted(found["data"], key=lambda row: row["index"])
            return [row["embedding"] for row in rows]
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(500).decode(errors="replace")
            if error.code == 429 or error.code >= 500:
                after = error.headers.get("Retry-After")
                raise _Later(f"HTTP {error.code}", float(after) if after and after.isdigit() else None) from error
            raise ModelUnavailable(f"{self.name}: HTTP {error.code}: {text}") from error
        except (OSError, TimeoutError) as error:
            raise _Later(f"no answer from {urlsplit(self._base).netloc}: {error}", None) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(f"{self.name}: the answer is not OpenAI's format: {error!r}") from error


class _Later(Exception):
    def __init__(self, text: str, after: float | None) -> None:
        super().__init__(text)
        self.after = after
