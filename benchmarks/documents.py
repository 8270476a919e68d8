"""Documents: indexing by stage, and a second sync of files that have not changed."""

from __future__ import annotations

import time
from pathlib import Path

import howdah
from howdah.corpus.chunking import chunk
from howdah.corpus.loaders import load
from howdah.embed.bundled import BundledEmbedder
from howdah.search.bm25 import invert

from .common import Results
from .text import corpus

FILES = 1500


async def run(results: Results, folder: Path) -> None:
    """1,500 files of about 500 words."""
    words, _ = corpus(FILES * 6)
    root = folder / "files"
    root.mkdir()
    texts = []
    for number in range(FILES):
        text = f"# Document {number}\n\n" + "\n\n".join(words[number * 6 : number * 6 + 6]) + "\n"
        texts.append(text)
        (root / f"{number:04}.md").write_text(text)
    began = time.perf_counter()
    cut = [chunk(load(t, "a.md").text) for t in texts]
    results.fact(f"loading and cutting {FILES} documents", f"{FILES / (time.perf_counter() - began):,.0f}/s")
    began = time.perf_counter()
    invert([(i, (c[0].text,)) for i, c in enumerate(cut)], [1.0])
    results.fact("analysing and inverting them", f"{FILES / (time.perf_counter() - began):,.0f}/s")
    sample = [t[:900] for t in texts[:64]]
    embedder = BundledEmbedder()
    embedder.embed_now(sample[:8])
    began = time.perf_counter()
    embedder.embed_now(sample)
    results.fact("embedding passages of 900 characters", f"{len(sample) / (time.perf_counter() - began):,.0f}/s")
    with howdah.connect(str(folder / "docs.db")) as store:
        docs = store.corpus(embedder=None)
        first = docs.sync(root)
        results.fact(f"first sync of {FILES} files, without vectors", f"{FILES / first.seconds:,.0f}/s")
        time.sleep(2.5)  # files younger than two seconds are read once more
        docs.sync(root)
        times = sorted(docs.sync(root).seconds for _ in range(5))
        results.fact(f"second sync of {FILES} unchanged files", f"{times[2] * 1000:.0f} ms", "<= 500 ms")
