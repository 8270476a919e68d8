"""Documents: loaded, cut into chunks, indexed by text and by meaning, found again with snippets and line numbers."""

from .chunking import Chunk, Chunking, chunk
from .model import CorpusStatus, Document, EmbedReport, Hit, Hits, SyncReport

__all__ = ["Chunk", "Chunking", "CorpusStatus", "Document", "EmbedReport", "Hit", "Hits", "SyncReport", "chunk"]
