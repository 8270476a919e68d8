"""Blobs: bytes under keys, streamed in and out, in the database or on object storage."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from ..criteria import And, Compare, Criteria, Prefix, Where
from ..engines.base import Engine, Op, innermost
from ..errors import BackendError, InvalidInput, InvalidKey, InvalidValue, LimitExceeded, NotFound, Unsupported
from ..naming import store_table
from ..objects import ObjectArea, open_area
from ..pages import Page
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from ..values import check_text, seconds
from .common import check_key, moment
from .owned import Owners

CHUNK: Final = 256 * 1024
IN_ROWS: Final = 10 * 1024 * 1024
UNFINISHED: Final = 24 * 3600.0
GRACE: Final = 300.0
SCHEME: Final = "howdah-blob://"

META = (
    Column("key", "text"),
    Column("body", "text"),
    Column("size", "integer"),
    Column("sha256", "text"),
    Column("mime_type", "text"),
    Column("metadata", "json", nullable=True),
    Column("created_at", "timestamp"),
)
BODY = (
    Column("body", "text"),
    Column("part", "integer"),
    Column("data", "bytes"),
    Column("expires_at", "timestamp", nullable=True),
)
# Objects to delete once their time has come: replaced ones, and ones whose upload has not been finished.
DOOMED = (Column("body", "text"), Column("due", "timestamp"))


@dataclass(frozen=True, slots=True)
class BlobRef:
    """What describes a blob; ``size`` is in bytes, ``sha256`` hex."""

    uri: str
    key: str
    size: int
    sha256: str
    mime_type: str
    metadata: dict[str, Any] | None
    created_at: datetime


class _Body(NamedTuple):
    name: str
    size: int
    sha256: str


Bytes = bytes  # inside a class whose method is called so


class AsyncBlob:
    """An open blob: it keeps reading what it was opened on, whatever is written meanwhile."""

    def __init__(self, store: AsyncBlobs, ref: BlobRef, body: str) -> None:
        self._store = store
        self._body = body
        self.ref = ref

    async def bytes(self) -> bytes:
        """All of it."""
        return b"".join([part async for part in self])

    async def text(self, encoding: str = "utf-8") -> str:
        """All of it, decoded."""
        try:
            return (await self.bytes()).decode(encoding)
        except UnicodeDecodeError as error:
            raise InvalidValue(
                f"{self.ref.uri} is not {encoding} text: {error.reason} at byte {error.start}"
            ) from error

    async def range(self, start: int, stop: int) -> Bytes:
        """Bytes from ``start`` up to but without ``stop``; cut at the end."""
        if start < 0 or stop < start:
            raise InvalidInput(f"range({start}, {stop}): expected 0 <= start <= stop")
        stop = min(stop, self.ref.size)
        if start >= stop:
            return b""
        return await self._store._range(self._body, start, stop)

    async def __aiter__(self) -> AsyncIterator[Bytes]:
        for start in range(0, self.ref.size, 4 * CHUNK):
            yield await self._store._range(self._body, start, min(start + 4 * CHUNK, self.ref.size))


def check_path(key: Any) -> str:
    """A relative path: no empty, ``.`` or ``..`` part."""
    check_key(key, empty=False)
    parts = key.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in key:
        raise InvalidKey(
            f"blob key {key!r}: expected a relative path such as 'images/a.png', without empty parts, . or .."
        )
    return str(key)


class AsyncBlobs:
    """Bytes under keys. Opened by ``store.blobs(name)``."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        max_bytes: int | None,
        at: Any,
        owner: Any = None,
        grace: float | timedelta = 86400,
        prefix: str = "",
    ) -> None:
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < -1):
            raise InvalidInput(f"max_bytes={max_bytes!r}: expected an integer >= 0, or None for no limit")
        self._engine = engine
        self._name = name
        self._prefix = prefix
        self._owners = None if owner is None else Owners(engine, owner)
        self._grace = seconds(grace, "grace")
        self._looked = engine.now()
        self._area: ObjectArea | None = None if at is None else open_area(at)
        self._max = (IN_ROWS if at is None else None) if max_bytes == -1 else max_bytes
        meta = store_table("blob", name)
        schema = build(meta, META, key="key", internal=True)
        self._table: AsyncTable[Any] = AsyncTable(
            engine, schema, RowType(None, META, dict, None), meta, mapping_column="metadata"
        )
        body = store_table("blobdata", name)
        schema = build(body, BODY, key=("body", "part"), ttl="expires_at", internal=True)
        self._bodies: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, BODY, dict, None), body)
        doomed = store_table("blobgone", name)
        schema = build(doomed, DOOMED, key="body", internal=True)
        self._doomed: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, DOOMED, dict, None), doomed)

    # Keys and references -----------------------------------------------------------------------------------------

    def _uri(self, key: str) -> str:
        return f"{SCHEME}{quote(self._name, safe='')}/{quote(key, safe='/')}"

    def _key(self, ref: Any) -> str:
        if isinstance(ref, BlobRef):
            return ref.key
        if isinstance(ref, str) and ref.startswith(SCHEME):
            name, _, key = ref[len(SCHEME) :].partition("/")
            if unquote(name) != self._name:
                raise InvalidKey(f"{ref} belongs to the blob store {unquote(name)!r}, this is {self._name!r}")
            return check_path(unquote(key))
        return check_path(ref)

    def _ref(self, row: dict[str, Any]) -> BlobRef:
        key = row["key"][len(self._prefix) :]
        return BlobRef(
            self._uri(key), key, row["size"], row["sha256"], row["mime_type"], row["metadata"], row["created_at"]
        )

    # Writing -----------------------------------------------------------------------------------------------------

    async def put(
        self, key: str | None, data: Any, *, mime_type: str | None = None, metadata: dict[str, Any] | None = None
    ) -> BlobRef:
        """Store bytes, text (UTF-8), a binary file, or an (async) iterator of bytes; ``key=None`` makes a random one.

        Replaces content, type and metadata at once. Past ``max_bytes`` it raises ``LimitExceeded`` and leaves nothing.
        """
        name = check_path(key) if key is not None else secrets.token_hex(16)
        if metadata is not None and type(metadata) is not dict:
            raise InvalidValue(f"metadata: expected a JSON object (dict), got {type(metadata).__name__}")
        if mime_type is not None and not isinstance(mime_type, str):
            raise InvalidValue(f"mime_type={mime_type!r:.60}: expected text")
        kind = mime_type or ("text/plain; charset=utf-8" if isinstance(data, str) else "application/octet-stream")
        check_text(kind, "mime_type")
        now = self._engine.now()
        head = {"key": self._prefix + name, "mime_type": kind, "metadata": metadata, "created_at": moment(now)}
        self._table._stored({**head, "body": "", "size": 0, "sha256": ""})  # refuse before anything is written
        source = _chunks(data)
        body = await (self._put_rows(source, name) if self._area is None else self._put_objects(source, name))
        row = {**head, "body": body.name, "size": body.size, "sha256": body.sha256}
        stored = self._table._ops.encode(self._table._stored(row))
        await self._side()._ensure()
        await self._table._write(lambda: self._switch(stored, body.name))
        await self._tidy()
        return self._ref(row)

    def _side(self) -> AsyncTable[Any]:
        """The table that is written together with the references."""
        return self._bodies if self._area is None else self._doomed

    def _limit(self, size: int, name: str) -> None:
        if self._max is not None and size > self._max:
            raise LimitExceeded(
                f"blob {name!r}: more than max_bytes={self._max:,} bytes (at least {size:,} were given)"
            )

    async def _put_rows(self, source: AsyncIterator[bytes], name: str) -> _Body:
        """Parts are written as they come and expire by themselves unless the blob is finished."""
        body, digest, size, part = secrets.token_hex(16), hashlib.sha256(), 0, 0
        due = moment(self._engine.now() + UNFINISHED)
        try:
            async for chunk in source:
                size += len(chunk)
                self._limit(size, name)
                digest.update(chunk)
                await self._bodies.put_stored([[body, part, chunk, due]])
                part += 1
        except BaseException:
            if part:
                await self._bodies.delete_where(Compare("body", "=", body))
            raise
        return _Body(body, size, digest.hexdigest())

    async def _put_objects(self, source: AsyncIterator[bytes], name: str) -> _Body:
        assert self._area is not None
        body, digest, size = f"{quote(self._name, safe='')}/{secrets.token_hex(16)}", hashlib.sha256(), 0

        failure: list[BaseException] = []

        async def counted() -> AsyncIterator[Bytes]:
            nonlocal size
            try:
                async for chunk in source:
                    size += len(chunk)
                    self._limit(size, name)
                    digest.update(chunk)
                    yield chunk
            except Exception as error:
                failure.append(error)
                raise

        due = moment(self._engine.now() + UNFINISHED)
        await self._doomed.put({"body": body, "due": due})
        try:
            await self._area.put(body, counted())
        except BackendError:
            if failure:  # the source's own error, not what object storage makes of it
                raise failure[0] from None
            raise
        return _Body(body, size, digest.hexdigest())

    def _switch(self, row: list[Any], body: str) -> Op[None]:
        """Point the key at the new body and let the old one go, in one transaction."""
        ops, bodies = self._table._ops, self._bodies._ops
        while True:
            old = yield from ops.locked((row[0],), ("body",))
            if old is not None:
                yield from ops.put([row])
                break
            if (yield from ops.create(row)):
                break
        if self._area is None:
            yield from bodies.update(None, Compare("body", "=", body), {"expires_at": None}, ("part",))
        else:
            yield from self._doomed._ops.delete([(body,)])
        if old is not None:
            yield from self._expire(old[0])

    def _expire(self, body: str) -> Op[None]:
        """Let a body go after a while, so that whoever reads it can finish."""
        due = moment(self._engine.now() + GRACE)
        if self._area is None:
            ops = self._bodies._ops
            patch = {"expires_at": ops.encode_value("expires_at", due)}
            yield from ops.update(None, Compare("body", "=", body), patch, ("part",))
        else:
            doomed = self._doomed._ops
            yield from doomed.put([[body, doomed.encode_value("due", due)]])

    async def _collect(self) -> None:
        """Delete the objects whose time has come."""
        if self._area is None or innermost(self._engine) is not None:
            return
        now = moment(self._engine.now())
        for row in await self._doomed.query(Compare("due", "<=", now), limit=100).all():
            await self._area.delete(row["body"])
            await self._doomed.delete(row["body"])

    async def _tidy(self) -> None:
        """What a write does beside its own: at most once an hour blobs without an owner go, too."""
        await self._collect()
        now = self._engine.now()
        if self._owners is None or innermost(self._engine) is not None or now - self._looked < min(self._grace, 3600):
            return
        self._looked = now
        await self.collect()

    async def collect(self) -> int:
        """Delete the blobs that no row of the ``owner`` columns names and that are older than ``grace``; how many.

        Writes do this by themselves, at most once an hour. Raises ``InvalidInput`` without ``owner``.
        """
        if self._owners is None:
            raise InvalidInput("collect() needs to know who owns blobs: store.blobs(name, owner=(table, 'column'))")
        await self._side()._ensure()
        await self._owners.ensure()
        total, after = 0, ""
        while True:
            rows = await self._table.query(self._older(after), order_by="key", limit=500, select=["key"]).all()
            if not rows:
                return total
            keys = [r["key"] for r in rows]
            total += await self._table._write(partial(self._remove_ownerless, keys))
            after = keys[-1]

    def _older(self, after: str) -> Criteria:
        edge = moment(self._engine.now() - self._grace)
        parts: list[Criteria] = [Compare("created_at", "<=", edge), Compare("key", ">", after)]
        return And((*parts, Prefix("key", self._prefix)) if self._prefix else tuple(parts))

    def _remove_ownerless(self, keys: Sequence[str]) -> Op[int]:
        assert self._owners is not None
        names = {(key := k[len(self._prefix) :]): self._uri(key) for k in keys}
        total = 0
        edge = moment(self._engine.now() - self._grace)
        for key in (yield from self._owners.ownerless(names)):
            total += yield from self._remove(self._prefix + key, put_before=edge)
        return total

    async def delete(self, ref: Any) -> bool:
        """Delete a blob; whether it was there."""
        key = self._prefix + self._key(ref)
        await self._side()._ensure()
        found = await self._table._write(partial(self._remove, key))
        await self._tidy()
        return bool(found)

    def _remove(self, key: str, put_before: datetime | None = None) -> Op[bool]:
        old = yield from self._table._ops.locked((key,), ("body", "created_at"))
        if old is None or (put_before is not None and old[1] > self._table._ops.encode_value("created_at", put_before)):
            return False
        yield from self._table._ops.delete([(key,)])
        yield from self._expire(old[0])
        return True

    async def clear(self) -> int:
        """Delete every blob of this store; how many there were."""
        total = 0
        while True:
            page = await self.list(limit=500)
            for ref in page.items:
                total += await self.delete(ref)
            if page.next_cursor is None:
                return total

    # Reading -----------------------------------------------------------------------------------------------------

    async def _find(self, ref: Any) -> dict[str, Any] | None:
        return await self._table.get(self._prefix + self._key(ref))

    async def get(self, ref: Any) -> bytes | None:
        """All bytes by URI, reference or key; ``None`` if there is no such blob."""
        row = await self._find(ref)
        return None if row is None else await AsyncBlob(self, self._ref(row), row["body"]).bytes()

    async def open(self, ref: Any) -> AsyncBlob:
        """An open blob, to stream or read in parts; ``NotFound`` with its URI if there is none."""
        row = await self._find(ref)
        if row is None:
            raise NotFound(f"no blob {self._uri(self._key(ref))}")
        return AsyncBlob(self, self._ref(row), row["body"])

    async def stat(self, ref: Any) -> BlobRef | None:
        """What describes a blob, without its bytes; ``None`` if there is none."""
        row = await self._find(ref)
        return None if row is None else self._ref(row)

    async def list(
        self, prefix: str = "", *, where: Where | None = None, limit: int | None = 100, cursor: str | None = None
    ) -> Page[BlobRef]:
        """One page of references under a literal prefix; a mapping as ``where`` names fields of the metadata."""
        found = self._table._criteria(where)
        parts: list[Criteria] = [] if found is None else [found]
        if self._prefix or prefix:
            parts.append(Prefix("key", self._prefix + check_key(prefix, empty=True)))
        page = await self._table.page(And(tuple(parts)) if parts else None, limit=limit, cursor=cursor)
        return Page([self._ref(r) for r in page.items], page.next_cursor)

    async def count(self) -> int:
        """How many blobs there are."""
        return await self._table.count(Prefix("key", self._prefix) if self._prefix else None)

    async def url(self, ref: Any, *, expires: float = 3600) -> str:
        """A signed URL for reading, where the bytes are in a bucket that has them; else ``Unsupported``."""
        row = await self._find(ref)
        if row is None:
            raise NotFound(f"no blob {self._uri(self._key(ref))}")
        if self._area is None:
            raise Unsupported('signed URLs need blobs on a bucket: open the store with at="s3://…"')
        return await self._area.url(row["body"], expires)

    async def _range(self, body: str, start: int, stop: int) -> bytes:
        if self._area is not None:
            return await self._area.range(body, start, stop)
        where = And(
            (
                Compare("body", "=", body),
                Compare("part", ">=", start // CHUNK),
                Compare("part", "<=", (stop - 1) // CHUNK),
            )
        )
        rows = await self._bodies.query(where, order_by=["body", "part"]).all()
        data = b"".join(r["data"] for r in rows)
        first = start // CHUNK * CHUNK
        found = data[start - first : stop - first]
        if len(found) < stop - start:
            raise NotFound("the blob was deleted while it was being read")
        return found


async def _chunks(data: Any) -> AsyncIterator[bytes]:
    """``data`` in parts of exactly ``CHUNK`` bytes, the last one shorter."""
    waiting = bytearray()
    async for piece in _pieces(data):
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise InvalidValue(f"blob: the iterator gave {type(piece).__name__}, expected bytes")
        waiting += piece
        while len(waiting) >= CHUNK:
            yield bytes(waiting[:CHUNK])
            del waiting[:CHUNK]
    if waiting:
        yield bytes(waiting)


async def _pieces(data: Any) -> AsyncIterator[Any]:
    if isinstance(data, str):
        yield check_text(data, "blob").encode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        yield bytes(data)
    elif hasattr(data, "read"):
        while piece := data.read(CHUNK):
            yield piece
    elif isinstance(data, AsyncIterable):
        async for piece in data:
            yield piece
    elif isinstance(data, Iterable):
        for piece in data:
            yield piece
    else:
        raise InvalidValue(f"blob: expected bytes, text, a file or an iterator of bytes, got {type(data).__name__}")
