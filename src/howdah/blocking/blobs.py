"""Blobs: bytes under keys, streamed in and out, in the database or on object storage. Blocking twin of ``howdah.stores.blobs``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..criteria import Where
from ..pages import Page
from ..stores.blobs import AsyncBlob, AsyncBlobs, BlobRef, Bytes
from .runner import Runner, iterate


class Blob:
    """An open blob: it keeps reading what it was opened on, whatever is written meanwhile."""

    def __init__(self, inner: AsyncBlob, run: Runner) -> None:
        self._async = inner
        self._run = run

    def bytes(self) -> bytes:
        """All of it."""
        return self._run.wait(self._async.bytes())

    def text(self, encoding: str = "utf-8") -> str:
        """All of it, decoded."""
        return self._run.wait(self._async.text(encoding))

    def range(self, start: int, stop: int) -> Bytes:
        """Bytes from ``start`` up to but without ``stop``; cut at the end."""
        return self._run.wait(self._async.range(start, stop))

    def __iter__(self) -> Iterator[Bytes]:
        return iterate(self._run.wait, self._async)

    @property
    def ref(self) -> BlobRef:
        """What describes it."""
        return self._async.ref


class Blobs:
    """Bytes under keys. Opened by ``store.blobs(name)``."""

    def __init__(self, inner: AsyncBlobs, run: Runner) -> None:
        self._async = inner
        self._run = run

    def put(
        self, key: str | None, data: Any, *, mime_type: str | None = None, metadata: dict[str, Any] | None = None
    ) -> BlobRef:
        """Store bytes, text (UTF-8), a binary file, or an (async) iterator of bytes; ``key=None`` makes a random one.

        Replaces content, type and metadata at once. Past ``max_bytes`` it raises ``LimitExceeded`` and leaves nothing.
        """
        return self._run.wait(self._async.put(key, data, mime_type=mime_type, metadata=metadata))

    def collect(self) -> int:
        """Delete the blobs that no row of the ``owner`` columns names and that are older than ``grace``; how many.

        Writes do this by themselves, at most once an hour. Raises ``InvalidInput`` without ``owner``.
        """
        return self._run.wait(self._async.collect())

    def delete(self, ref: Any) -> bool:
        """Delete a blob; whether it was there."""
        return self._run.wait(self._async.delete(ref))

    def clear(self) -> int:
        """Delete every blob of this store; how many there were."""
        return self._run.wait(self._async.clear())

    def get(self, ref: Any) -> bytes | None:
        """All bytes by URI, reference or key; ``None`` if there is no such blob."""
        return self._run.wait(self._async.get(ref))

    def open(self, ref: Any) -> Blob:
        """An open blob, to stream or read in parts; ``NotFound`` with its URI if there is none."""
        return Blob(self._run.wait(self._async.open(ref)), self._run)

    def stat(self, ref: Any) -> BlobRef | None:
        """What describes a blob, without its bytes; ``None`` if there is none."""
        return self._run.wait(self._async.stat(ref))

    def list(
        self, prefix: str = "", *, where: Where | None = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[BlobRef]:
        """One page of references under a literal prefix; a mapping as ``where`` names fields of the metadata."""
        return self._run.wait(self._async.list(prefix, where=where, limit=limit, cursor=cursor))

    def count(self) -> int:
        """How many blobs there are."""
        return self._run.wait(self._async.count())

    def url(self, ref: Any, *, expires: float = 3600) -> str:
        """A signed URL for reading, where the bytes are in a bucket that has them; else ``Unsupported``."""
        return self._run.wait(self._async.url(ref, expires=expires))
