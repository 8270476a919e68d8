"""Brings a corpus up to date: a ledger tells which files changed, batches are atomic, embeddings come after."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..criteria import And, Compare, In, Not
from ..embed import Embedder
from ..engines.base import Engine, Op
from ..errors import InvalidInput, NotFound
from ..table import AsyncTable
from . import loaders
from .chunking import Chunking, chunk, pieces
from .model import Collection, EmbedReport, SyncReport
from .tables import CorpusTables

BATCH_DOCUMENTS: Final = 64
BATCH_CHARACTERS: Final = 4_000_000
EMBED_BATCH: Final = 32
FRESH_NS: Final = 2_000_000_000
"""A file changed within two seconds of being read may change again without a new time: it is read once more."""

Progress = Callable[[str, int, int], None]
"""Called with a stage (``"index"``, ``"embed"``), how much is done and how much there is."""


def document_id(collection: str, path: str) -> str:
    """The id of a document: the same wherever the index is made anew."""
    return hashlib.sha256(f"{collection}\0{path}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class Pending:
    """A file that was read and cut."""

    document: dict[str, Any]
    chunks: list[dict[str, Any]]


class Indexer:
    """Writes to the tables of a corpus."""

    def __init__(self, engine: Engine, tables: CorpusTables, chunking: Chunking) -> None:
        self._engine = engine
        self._tables = tables
        self._chunking = chunking

    def prepare(self, collection: str, path: str, text: str, **state: Any) -> Pending:
        """A document and its chunks as rows."""
        loaded = loaders.load(text, path)
        cut = chunk(loaded.text, path=path, options=self._chunking)
        location = path.replace("/", " / ")
        rows = [
            {
                "collection": collection,
                "path": path,
                "ordinal": c.ordinal,
                "title": loaded.title,
                "location": location,
                "body": c.text,
                "start": c.start,
                "line": c.line,
                "heading": c.heading,
                "metadata": loaded.metadata,
            }
            for c in cut
        ]
        document = {
            "collection": collection,
            "path": path,
            "id": document_id(collection, path),
            "title": loaded.title,
            "text": loaded.text,
            "hash": hashlib.sha256(text.encode()).hexdigest(),
            "chunks": len(rows),
            "embedded": "",
            "metadata": loaded.metadata,
            **state,
        }
        return Pending(document, rows)

    async def write(self, batch: Sequence[Pending], vectors: Sequence[AsyncTable[Any]] = ()) -> None:
        """Replace documents with their chunks in one transaction; their vectors go and are made again."""
        if not batch:
            return
        docs, chunks = self._tables.documents, self._tables.chunks
        for table in (docs, chunks, *vectors):
            await table._ensure()
        stored = [docs._ops.encode(docs._stored(p.document)) for p in batch]
        parts = [chunks._ops.encode(chunks._stored(c)) for p in batch for c in p.chunks]
        old = [
            And((Compare("collection", "=", p.document["collection"]), Compare("path", "=", p.document["path"])))
            for p in batch
        ]
        kept = [And((w, Compare("ordinal", ">=", p.document["chunks"]))) for w, p in zip(old, batch, strict=True)]

        def work() -> Op[None]:
            yield from docs._ops.put(stored)
            if parts:
                yield from chunks._ops.put(parts)
            for where in kept:
                yield from chunks._ops.delete_where(where)
            for table in vectors:
                for where in old:
                    yield from table._ops.delete_where(where)

        await chunks._write(work)

    async def remove(self, collection: str, paths: Sequence[str], vectors: Sequence[AsyncTable[Any]] = ()) -> int:
        """Remove documents with their chunks and vectors, in one transaction; how many there were."""
        tables = [self._tables.documents, self._tables.chunks, *vectors]
        for table in tables:
            await table._ensure()

        def work() -> Op[int]:
            gone = 0
            for start in range(0, len(paths), 500):
                where = And((Compare("collection", "=", collection), In("path", tuple(paths[start : start + 500]))))
                counts = []
                for table in tables:
                    counts.append((yield from table._ops.delete_where(where)))
                gone += counts[0]
            return gone

        return int(await self._tables.chunks._write(work)) if paths else 0

    async def sync(
        self,
        collection: Collection,
        report: SyncReport,
        *,
        vectors: Sequence[AsyncTable[Any]],
        checksum: bool,
        dry_run: bool,
        progress: Progress | None,
    ) -> None:
        """Bring one folder's documents up to date."""
        root = Path(collection.path or "")
        if not root.is_dir():
            raise NotFound(f"collection {collection.name!r}: the folder {root} is not on this machine")
        ledger = await self._ledger(collection.name)
        files = list(loaders.walk(root, collection.mask, collection.ignore))
        changed: list[str] = []
        for path, entry in files:
            before = ledger.get(path)
            if before is None or checksum:
                changed.append(path)
                continue
            try:
                state = entry.stat()
            except OSError:
                changed.append(path)
                continue
            same = (state.st_size, state.st_mtime_ns, state.st_ino) == (
                before["size"],
                before["mtime"],
                before["inode"],
            )
            if same and before["seen"] - state.st_mtime_ns > FRESH_NS:
                report.unchanged += 1
            else:
                changed.append(path)
        there = {path for path, _ in files}
        async for batch in self._batches(collection, root, changed, ledger, report, there, progress, dry_run):
            if not dry_run:
                await self.write(batch, vectors)
        gone = [path for path in ledger if path not in there]
        report.removed += len(gone)
        if gone and not dry_run:
            await self.remove(collection.name, gone, vectors)

    async def _ledger(self, collection: str) -> dict[str, dict[str, Any]]:
        names = ["path", "hash", "size", "mtime", "inode", "seen", "created"]
        rows = await self._tables.documents.query(Compare("collection", "=", collection), select=names).all()
        return {r["path"]: r for r in rows}

    async def _batches(
        self,
        collection: Collection,
        root: Path,
        changed: Sequence[str],
        ledger: dict[str, dict[str, Any]],
        report: SyncReport,
        there: set[str],
        progress: Progress | None,
        dry_run: bool,
    ) -> AsyncIterator[list[Pending]]:
        batch: list[Pending] = []
        size = 0
        touched: list[dict[str, Any]] = []
        for number, path in enumerate(changed):
            if progress is not None:
                progress("index", number, len(changed))
            before = ledger.get(path)
            seen = time.time_ns()
            try:
                text, state = loaders.read_file(root, path)
                path.encode()
            except loaders.Skip as skip:
                report.skipped += 1
                report.problems.append((f"{collection.name}/{path}", str(skip)))
                there.discard(path)  # what can no longer be read is no longer a document
                continue
            except UnicodeEncodeError:
                report.skipped += 1
                report.problems.append((f"{collection.name}/{path!r}", "name_not_unicode"))
                there.discard(path)
                continue
            known = {"size": state.st_size, "mtime": state.st_mtime_ns, "inode": state.st_ino, "seen": seen}
            if before is not None and before["hash"] == hashlib.sha256(text.encode()).hexdigest():
                report.unchanged += 1
                touched.append({"collection": collection.name, "path": path, **known})
                continue
            modified = datetime.fromtimestamp(state.st_mtime, UTC)
            created = before["created"] if before is not None else modified
            made = self.prepare(collection.name, path, text, created=created, modified=modified, **known)
            report.chunks += len(made.chunks)
            report.added += before is None
            report.updated += before is not None
            batch.append(made)
            size += len(text)
            if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        if progress is not None and changed:
            progress("index", len(changed), len(changed))
        yield batch
        if touched and not dry_run:
            await self._touch(touched)

    async def _touch(self, touched: Sequence[dict[str, Any]]) -> None:
        """Record new file times of documents whose text is the same."""
        docs = self._tables.documents

        def work() -> Op[None]:
            for row in touched:
                patch = {n: row[n] for n in ("size", "mtime", "inode", "seen")}
                yield from docs._ops.update([(row["collection"], row["path"])], None, patch, ("path",))

        await docs._write(work)

    async def embed(
        self,
        embedder: Embedder,
        mark: str,
        vectors: AsyncTable[Any],
        collections: Sequence[str] | None,
        progress: Progress | None,
    ) -> EmbedReport:
        """Give every document that lacks them its vectors. No connection is held while the model works."""
        docs = self._tables.documents
        report = EmbedReport()
        began = time.monotonic()
        waiting: Any = Not(Compare("embedded", "=", mark))
        if collections is not None:
            waiting = And((waiting, In("collection", tuple(collections))))
        total = await docs.count(waiting)
        done = 0
        while True:
            rows = await docs.query(
                waiting, select=["collection", "path", "hash", "title"], limit=BATCH_DOCUMENTS // 4
            ).all()
            if not rows:
                break
            await self._embed_batch(embedder, mark, vectors, rows, report)
            done += len(rows)
            if progress is not None:
                progress("embed", min(done, total), total)
        report.seconds = time.monotonic() - began
        return report

    async def _embed_batch(
        self,
        embedder: Embedder,
        mark: str,
        vectors: AsyncTable[Any],
        rows: Sequence[dict[str, Any]],
        report: EmbedReport,
    ) -> None:
        docs, chunks = self._tables.documents, self._tables.chunks
        wanted: list[tuple[dict[str, Any], str]] = []
        room = int(embedder.max_tokens * 3.6)
        for row in rows:
            where = And((Compare("collection", "=", row["collection"]), Compare("path", "=", row["path"])))
            for found in await chunks.query(where, select=["ordinal", "body", "metadata"], order_by="ordinal").all():
                for number, piece in enumerate(pieces(found["body"], max(200, room - len(row["title"])))):
                    text = f"{row['title']}\n{piece}"
                    part = {
                        "collection": row["collection"],
                        "path": row["path"],
                        "ordinal": found["ordinal"],
                        "piece": number,
                        "hash": hashlib.sha256(text.encode()).hexdigest(),
                        "metadata": found["metadata"],
                    }
                    wanted.append((part, text))
        known = await self._known(vectors, [p["hash"] for p, _ in wanted])
        report.reused += sum(p["hash"] in known for p, _ in wanted)
        missing = {p["hash"]: text for p, text in wanted if p["hash"] not in known}
        hashes = list(missing)
        for start in range(0, len(hashes), EMBED_BATCH):
            part_hashes = hashes[start : start + EMBED_BATCH]
            made = await embedder.embed([missing[h] for h in part_hashes])
            known.update(zip(part_hashes, made, strict=True))
        stored = [vectors._ops.encode(vectors._stored({**p, "vector": known[p["hash"]]})) for p, _ in wanted]
        report.pieces += len(hashes)
        await vectors._ensure()

        def work() -> Op[int]:
            # Only documents that are still as they were read, and stay so; a changed one is pending again anyway.
            same = set()
            for row in sorted(rows, key=lambda r: (r["collection"], r["path"])):
                held = yield from docs._ops.locked((row["collection"], row["path"]), ("hash",))
                if held is not None and held[0] == row["hash"]:
                    same.add((row["collection"], row["path"]))
            for row in rows:
                if (row["collection"], row["path"]) in same:
                    key = And((Compare("collection", "=", row["collection"]), Compare("path", "=", row["path"])))
                    yield from vectors._ops.delete_where(key)
            keep = [s for s in stored if (s[0], s[1]) in same]
            if keep:
                yield from vectors._ops.put(keep)
            for collection, path in sorted(same):
                yield from docs._ops.update([(collection, path)], None, {"embedded": mark}, ("path",))
            return len(same)

        report.documents += int(await vectors._write(work))

    async def _known(self, vectors: AsyncTable[Any], hashes: Sequence[str]) -> dict[str, Any]:
        """Vectors there are already for the same text."""
        found: dict[str, Any] = {}
        for start in range(0, len(hashes), 500):
            part = tuple(dict.fromkeys(hashes[start : start + 500]))
            if part:
                rows = await vectors.query(In("hash", part), select=["hash", "vector"]).all()
                found.update((r["hash"], r["vector"]) for r in rows)
        return found


def collection_name(path: Path) -> str:
    """The name a folder gives its collection."""
    name = path.resolve().name
    if not name:
        raise InvalidInput(f"{path}: this folder has no name; give the collection one")
    return name
