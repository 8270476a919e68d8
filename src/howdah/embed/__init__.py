"""Embedders: what turns texts into vectors, and how to name one."""

from .base import Embedder, open_embedder

__all__ = ["Embedder", "open_embedder"]
