"""Embedders of two libraries that bring their own models: fastembed and sentence-transformers (extras)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ModelUnavailable
from .base import FunctionEmbedder


def _in_thread(function: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    async def call(texts: list[str]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, texts)

    return call


def fastembed(model: str) -> FunctionEmbedder:
    """A fastembed model by name."""
    try:
        from fastembed import TextEmbedding
    except ImportError as error:
        raise ModelUnavailable("fastembed models need an extra: pip install 'howdah[fastembed]'") from error
    try:
        loaded = TextEmbedding(model)
    except Exception as error:
        raise ModelUnavailable(f"fastembed model {model!r} cannot be loaded: {error}") from error
    probe = next(iter(loaded.embed(["dimension"])))
    run = _in_thread(lambda texts: np.stack(list(loaded.embed(texts))))
    return FunctionEmbedder(run, name=f"fastembed:{model}", dim=len(probe))


def sentence_transformers(model: str) -> FunctionEmbedder:
    """A sentence-transformers model by name or path."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelUnavailable(
            "sentence-transformers models need an extra: pip install 'howdah[sentence-transformers]'"
        ) from error
    try:
        loaded = SentenceTransformer(model)
    except Exception as error:
        raise ModelUnavailable(f"sentence-transformers model {model!r} cannot be loaded: {error}") from error
    run = _in_thread(lambda texts: loaded.encode(texts, convert_to_numpy=True, normalize_embeddings=True))
    dim = int(loaded.get_sentence_embedding_dimension())
    return FunctionEmbedder(run, name=f"sentence-transformers:{model}", dim=dim, max_tokens=int(loaded.max_seq_length))
