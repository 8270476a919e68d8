"""``Corpus``: folders of documents, kept in step with their files, searched by words and by meaning. Blocking twin of ``howdah.corpus.corpus``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..corpus.corpus import AsyncCollections, AsyncCorpus
from ..corpus.indexer import Progress
from ..corpus.model import Collection, CorpusStatus, Document, EmbedReport, Hits, Listed, SyncReport
from ..criteria import Where
from .runner import Runner


class Collections:
    """The collections of a corpus: ``docs.collections``."""

    def __init__(self, inner: AsyncCollections, run: Runner) -> None:
        self._async = inner
        self._run = run

    def add(
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
        return self._run.wait(
            self._async.add(name, path, mask=mask, ignore=ignore, include_by_default=include_by_default)
        )

    def list(self) -> list[Collection]:
        """Every collection, by name."""
        return self._run.wait(self._async.list())

    def get(self, name: str) -> Collection:
        """One collection; ``UnknownCollection`` listing those there are."""
        return self._run.wait(self._async.get(name))

    def remove(self, name: str) -> int:
        """Remove a collection with its documents; how many documents there were."""
        return self._run.wait(self._async.remove(name))


class Corpus:
    """A named index of documents. Opened by ``store.corpus(name)``."""

    def __init__(self, inner: AsyncCorpus, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def name(self) -> str:
        """The corpus' name."""
        return self._async.name

    @property
    def collections(self) -> Collections:
        """Its collections."""
        return Collections(self._async.collections, self._run)

    def sync(
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
        return self._run.wait(
            self._async.sync(
                source,
                collections=collections,
                embed=embed,
                checksum=checksum,
                dry_run=dry_run,
                on_progress=on_progress,
            )
        )

    def embed(self, *, collections: Sequence[str] | None = None, on_progress: Progress | None = None) -> EmbedReport:
        """Give documents the vectors they lack. Interrupted, it goes on where it stopped.

        Raises ``ModelUnavailable`` when the corpus has no embedder.
        """
        return self._run.wait(self._async.embed(collections=collections, on_progress=on_progress))

    def put(self, collection: str, path: str, text: str, *, embed: bool = True) -> Document:
        """Store one document under a path of a collection, which is made if there is none of that name."""
        return self._run.wait(self._async.put(collection, path, text, embed=embed))

    def delete(self, ref: str) -> bool:
        """Delete a document by reference; whether it was there."""
        return self._run.wait(self._async.delete(ref))

    def search(
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
        return self._run.wait(
            self._async.search(
                query,
                mode=mode,
                collections=collections,
                where=where,
                limit=limit,
                min_score=min_score,
                candidates=candidates,
                explain=explain,
                snippet_chars=snippet_chars,
            )
        )

    def get(self, ref: str, *, lines: tuple[int, int | None] | None = None) -> Document:
        """One document by id, URI, ``collection/path``, path, or suffix of whole path parts.

        ``lines=(first, count)`` gives just those lines, counted from 1. Raises ``NotFound`` with similar paths, or
        ``Ambiguous`` with the candidates.
        """
        return self._run.wait(self._async.get(ref, lines=lines))

    def ls(self, prefix: str = "") -> list[Listed]:
        """Documents below ``collection`` or ``collection/prefix`` of whole path parts, by URI."""
        return self._run.wait(self._async.ls(prefix))

    def migration(self) -> list[str]:
        """The SQL that would create or grow the tables of this corpus; empty when everything is in place."""
        return self._run.wait(self._async.migration())

    def migrate(self) -> None:
        """Create or grow the tables of this corpus now instead of on first use."""
        return self._run.wait(self._async.migrate())

    def status(self) -> CorpusStatus:
        """What the corpus holds, and how many documents wait for vectors."""
        return self._run.wait(self._async.status())
