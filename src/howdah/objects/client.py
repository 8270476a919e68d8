"""An area of object storage: put by stream, read ranges, delete, sign; errors in Howdah's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from ..errors import BackendError, Error, InvalidInput, NotFound, Unsupported


class ObjectArea:
    """Objects under one obstore store."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Write an object from a stream; if the stream fails, nothing stays behind."""
        import obstore

        try:
            await obstore.put_async(self._store, name, chunks)
        except Error:
            raise
        except Exception as error:
            raise BackendError(f"object storage: {name} could not be written: {error}") from error

    async def range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of an object from ``start`` up to ``stop``."""
        import obstore

        try:
            return bytes(await obstore.get_range_async(self._store, name, start=start, end=stop))
        except FileNotFoundError as error:
            raise NotFound(f"object storage: {name} is gone") from error
        except Exception as error:
            raise BackendError(f"object storage: {name} could not be read: {error}") from error

    async def delete(self, name: str) -> None:
        """Delete an object; an absent one is no error."""
        import obstore

        try:
            await obstore.delete_async(self._store, name)
        except FileNotFoundError:
            return
        except Exception as error:
            raise BackendError(f"object storage: {name} could not be deleted: {error}") from error

    async def url(self, name: str, expires: float) -> str:
        """A signed URL for reading, valid for ``expires`` seconds."""
        import obstore

        try:
            return str(await obstore.sign_async(self._store, "GET", name, timedelta(seconds=expires)))
        except Exception as error:
            raise Unsupported(f"this object storage signs no URLs: {error}") from error


def open_area(at: Any) -> ObjectArea:
    """The area of an obstore store, or of a URL such as ``s3://bucket/prefix`` or ``file:///dir``."""
    try:
        import obstore.store
    except ImportError as error:
        raise InvalidInput("object storage needs an extra: pip install 'howdah[objects]'") from error
    if not isinstance(at, str):
        return ObjectArea(at)
    try:
        return ObjectArea(
            obstore.store.from_url(at, mkdir=True) if at.startswith("file:") else obstore.store.from_url(at)
        )
    except Exception as error:
        raise InvalidInput(f"{at!r}: not an object-storage URL: {error}") from error


def read(url: str) -> bytes:
    """The object of a URL such as ``s3://bucket/name``, or ``file:///path``."""
    import obstore

    folder, _, name = url.rpartition("/")
    area = open_area(folder)
    try:
        return bytes(obstore.get(area._store, unquote(name)).bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such object") from error
    except Exception as error:
        raise BackendError(f"{url}: could not be read: {error}") from error
