"""Search without storage: analysis, BM25, fusion, snippets, nearest neighbours."""

from .vectors import cosine, hamming, jaccard

__all__ = ["cosine", "hamming", "jaccard"]
