"""Documents on every engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howdah import Ambiguous, InvalidInput, ModelUnavailable, NotFound, QuerySyntaxError, Store, UnknownCollection
from howdah.corpus import Chunking
from howdah.search.analyzer import count_terms


class HashEmbedder:
    """A real embedder, if a simple one: each term adds a direction made from its hash."""

    dim = 64
    max_tokens = 128

    def __init__(self, name: str = "hash-1") -> None:
        self.name = name
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> np.ndarray:
        self.texts.extend(texts)
        made = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for term in count_terms(text)[0]:
                digest = hashlib.sha256(f"{self.name}{term}".encode()).digest()
                made[row, digest[0] % self.dim] += 1 if digest[1] % 2 else -1
        return made


DOCS = {
    "guide/keys.md": "---\ntopic: security\nlevel: 2\n---\n# Rotating keys\n\nMake a new key.\n\nSwitch every client, then revoke the old key.\n",
    "guide/backup.md": "---\ntopic: ops\n---\n# Backups\n\nBack up the database each night.\n",
    "notes.txt": "Shopping list: apples, pears and plums.\n",
    "deep/er/page.rst": "Deployment\n==========\n\nRoll out with a blue-green switch.\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name, text in DOCS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        os.utime(root / name, (1_600_000_000, 1_600_000_000))
    return root


def test_sync_search_and_read(store: Store, folder: Path) -> None:
    docs = store.corpus("c", embedder=None)
    report = docs.sync(folder)
    assert (report.added, report.updated, report.unchanged, report.removed, report.collections) == (
        4,
        0,
        0,
        0,
        ["docs"],
    )
    hits = docs.search("how do I rotate the keys?")
    assert hits.mode == "text"
    assert hits.notes
    best = hits[0]
    assert (best.path, best.title, best.uri) == (
        "guide/keys.md",
        "Rotating keys",
        "howdah://docs/guide/keys.md?corpus=c",
    )
    assert 0 < best.score <= 1
    assert best.rank == 1
    assert "key" in best.snippet
    assert DOCS["guide/keys.md"].split("\n")[best.line - 1] in best.snippet
    assert best.metadata == {"topic": "security", "level": 2}
    document = docs.get(best.uri)
    assert document.text == DOCS["guide/keys.md"]
    assert docs.get(f"#{best.id[:8]}").path == best.path
    for ref in (best.id, "docs/guide/keys.md", "guide/keys.md", "keys.md", f"sha256:{best.hash[:10]}"):
        assert docs.get(ref).path == "guide/keys.md"
    assert docs.get("keys.md", lines=(5, 1)).text == "# Rotating keys"
    assert docs.get("keys.md", lines=(7, None)).first_line == 7
    with pytest.raises(NotFound, match=r"keys\.md"):
        docs.get("guide/kays.md")
    with pytest.raises(NotFound):
        docs.get("eys.md")
    assert [d.uri.split("/", 3)[3].split("?")[0] for d in docs.ls("docs/guide")] == ["guide/backup.md", "guide/keys.md"]
    assert len(docs.ls()) == 4


def test_a_second_sync_touches_only_what_changed(store: Store, folder: Path) -> None:
    embedder = HashEmbedder()
    docs = store.corpus("c", embedder=embedder)
    assert docs.sync(folder).pending_embeddings == 0
    asked = len(embedder.texts)
    again = docs.sync(folder)
    assert (again.unchanged, again.added, again.updated, again.removed) == (4, 0, 0, 0)
    assert len(embedder.texts) == asked
    (folder / "guide/keys.md").write_text("# Keys\n\nEntirely different words about locksmiths.\n")
    (folder / "notes.txt").unlink()
    (folder / "new.md").write_text("# New\n\nA fresh page about giraffes.\n")
    os.utime(folder / "guide/backup.md", (1_700_000_000, 1_700_000_000))
    report = docs.sync()
    assert (report.added, report.updated, report.unchanged, report.removed) == (1, 1, 2, 1)
    assert docs.search("giraffes", mode="text")[0].path == "new.md"
    assert [h.path for h in docs.search("locksmiths", mode="text")] == ["guide/keys.md"]
    assert docs.search("rotating", mode="text") == []
    assert docs.search("plums", mode="text") == []
    assert {h.path for h in docs.search("anything", mode="vector", limit=None)} == {
        "guide/keys.md",
        "guide/backup.md",
        "new.md",
        "deep/er/page.rst",
    }
    with pytest.raises(NotFound):
        docs.get("notes.txt")
    assert docs.sync(folder, dry_run=True).unchanged == 4
    assert docs.sync(folder, checksum=True).unchanged == 4
    (folder / "guide/keys.md").write_text("   ")
    report = docs.sync()
    assert (report.skipped, report.removed) == (1, 1)
    assert report.problems == [("docs/guide/keys.md", "blank")]
    assert docs.search("locksmiths", mode="text") == []


def test_the_same_text_costs_one_embedding(store: Store, folder: Path) -> None:
    embedder = HashEmbedder()
    docs = store.corpus("c", embedder=embedder)
    docs.sync(folder)
    asked = len(embedder.texts)
    (folder / "copy.md").write_text((folder / "guide/backup.md").read_text())
    docs.sync(folder)
    assert len(embedder.texts) == asked
    other = store.corpus("c", embedder=HashEmbedder("hash-2"))
    assert other.status().pending == 5
    assert other.search("backup").mode == "text"
    with pytest.raises(ModelUnavailable):
        other.search("backup", mode="vector")
    assert other.embed().documents == 5
    assert other.search("backup").mode == "hybrid"


def test_modes_scores_and_explain(store: Store, folder: Path) -> None:
    docs = store.corpus("c", embedder=HashEmbedder())
    docs.sync(folder)
    for mode in ("text", "vector", "hybrid"):
        hits = docs.search("revoke the old key", mode=mode, explain=True)
        assert hits.mode == mode
        assert hits[0].path == "guide/keys.md"
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert all(0 <= h.score <= 1 for h in hits)
        assert hits[0].explain is not None
        assert (
            set(hits[0].explain["legs"]) == {"text": {"text"}, "vector": {"vector"}, "hybrid": {"text", "vector"}}[mode]
        )
        top = docs.search("revoke the old key", mode=mode, limit=1)
        assert [h.uri for h in top] == [hits[0].uri]
        assert docs.search("revoke the old key", mode=mode, min_score=1.0) == [] or hits[0].score == 1
    assert docs.search("keys", limit=0) == []
    text = docs.search("backups database", mode="text", limit=None)
    assert text[0].score > 0.3
    nonsense = docs.search("xyzzy plugh backups", mode="text")
    assert nonsense[0].score < text[0].score
    for bad, error in (
        ({"mode": "magic"}, InvalidInput),
        ({"min_score": 2}, InvalidInput),
        ({"candidates": 0}, InvalidInput),
        ({"limit": -1}, InvalidInput),
    ):
        with pytest.raises(error):
            docs.search("x", **bad)
    for query in ("", "  ", "-only"):
        with pytest.raises((InvalidInput, QuerySyntaxError)):
            docs.search(query)
    with pytest.raises(ModelUnavailable):
        store.corpus("c", embedder=None).search("x", mode="hybrid")


def test_filters_and_collections(store: Store, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(30):
        (other / f"{number}.md").write_text(f"# Key {number}\n\nkeys keys keys\n")
    docs = store.corpus("c", embedder=HashEmbedder())
    docs.collections.add("many", other, include_by_default=False)
    docs.sync(folder)
    docs.sync()
    assert [c.name for c in docs.collections.list()] == ["docs", "many"]
    for mode in ("text", "vector", "hybrid"):
        assert {h.collection for h in docs.search("keys", mode=mode, limit=None)} == {"docs"}
        assert len(docs.search("keys", mode=mode, collections=["many"], limit=25)) == 25
        assert [h.path for h in docs.search("keys backup", mode=mode, where={"topic": "ops"})] == ["guide/backup.md"]
        assert [h.path for h in docs.search("keys", mode=mode, where={"level": (">=", 2)})] == ["guide/keys.md"]
    scores = {h.uri: h.score for h in docs.search("keys", mode="text", collections=["docs", "many"], limit=None)}
    assert (
        scores["howdah://docs/guide/keys.md?corpus=c"]
        == docs.search("keys", mode="text", collections=["docs"])[0].score
    )
    with pytest.raises(UnknownCollection, match="docs"):
        docs.search("keys", collections=["nope"])
    with pytest.raises(Ambiguous):
        (other / "x").mkdir()
        (other / "x" / "keys.md").write_text("# more\n\nkeys")
        docs.sync()
        docs.get("keys.md")
    assert docs.collections.remove("many") == 31
    assert docs.search("keys", collections=["docs"], limit=None)
    assert docs.status().documents == 4
    for bad in (
        lambda: docs.collections.add("docs"),
        lambda: docs.collections.add("a/b"),
        lambda: docs.collections.add("x", tmp_path / "none"),
        lambda: docs.sync(tmp_path / "none"),
    ):
        with pytest.raises(InvalidInput):
            bad()
    with pytest.raises(UnknownCollection):
        docs.collections.remove("many")


def test_documents_by_hand(store: Store) -> None:
    docs = store.corpus("c", embedder=HashEmbedder())
    made = docs.put("memo", "a/b.md", "# Memo\n\nRemember the milk.")
    assert made.title == "Memo"
    assert docs.search("milk")[0].uri == made.uri
    docs.put("memo", "a/b.md", "# Memo\n\nForget it.")
    assert docs.search("milk", mode="text") == []
    assert docs.delete(made.uri) is True
    assert docs.delete(made.uri) is False
    for path, text in (
        ("/abs.md", "x"),
        ("../up.md", "x"),
        ("", "x"),
        ("a.md", " "),
        ("a.md", "a\0b"),
        ("a.md", "\ud800"),
    ):
        with pytest.raises(InvalidInput):
            docs.put("memo", path, text)


def test_long_documents_count_with_their_best_chunk(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "long"
    root.mkdir()
    filler = "".join(f"Line {i} speaks of ordinary matters and nothing else.\n" for i in range(400))
    (root / "long.md").write_text(f"# Long\n\n{filler}\nThe xylophone stands here.\n{filler}")
    docs = store.corpus("c", embedder=HashEmbedder(), chunking=Chunking(tokens=300, overlap=40, window=80))
    docs.sync(root)
    hits = docs.search("xylophone", mode="text")
    assert len(hits) == 1
    line = next(i for i, text in enumerate((root / "long.md").read_text().split("\n"), 1) if "xylophone" in text)
    assert hits[0].line == line
    assert hits[0].chunk.ordinal > 0
    assert docs.status().chunks > 10


def test_two_corpora_share_nothing(store: Store, folder: Path) -> None:
    one, two = store.corpus("one", embedder=None), store.corpus("two", embedder=None)
    one.sync(folder)
    assert two.search("keys") == []
    assert two.status().documents == 0


def test_engines_give_the_same_hits(url_for: Any, folder: Path) -> None:
    from tests.conftest import open_store

    results = []
    for engine in ("memory", "sqlite", "pg", "server"):
        with open_store(engine, url_for(engine)) as store:
            docs = store.corpus(embedder=HashEmbedder())
            docs.sync(folder)
            results.append(
                [
                    [(h.uri, h.score, h.line, h.snippet) for h in docs.search(q, limit=None)]
                    for q in ("rotate keys", "the database", "switch")
                ]
            )
    assert results[0] == results[1] == results[2] == results[3]
