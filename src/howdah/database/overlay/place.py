"""Where a base is: a directory, or a prefix of an S3 bucket (credentials and endpoint from the usual AWS variables)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ...errors import InvalidInput, TierError
from ..means import Cache

CONNECT, REQUEST = 5, 30
"""Seconds until a bucket that does not answer is an error."""
PROBE = ".howdah"
READERS = 16
"""Files of a bucket that are fetched at once."""
SYNCED = 10_000
"""Files that are known to be durable."""
_synced: set[tuple[str, int, int, int]] = set()


def recorded(location: object) -> str:
    """A location as ``howdah.tiers`` has it: an absolute path, or a URL without a slash at its end."""
    if not isinstance(location, (str, os.PathLike)) or not str(location):
        raise InvalidInput(f"location={location!r:.60}: expected a directory or s3://bucket/prefix")
    text = os.fspath(location)
    parts = urlsplit(text)
    if "://" not in text or (parts.scheme == "file" and not parts.netloc):
        try:
            found = str(Path(unquote(parts.path) if "://" in text else text).expanduser().absolute())
        except RuntimeError as error:
            raise InvalidInput(f"location={text!r}: {error}") from error
        if set(found) & set("?#") or not found.isprintable():
            raise InvalidInput(f"location={text!r}: Iceberg reads ? and # in a path as something else")
        return found
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment or parts.username:
        raise InvalidInput(f"location={text!r}: expected a directory or s3://bucket/prefix")
    return text.rstrip("/")


def remote(location: str) -> bool:
    """Whether a recorded location is a bucket's."""
    return location.startswith("s3://")


def url(location: str) -> str:
    """The URL of a recorded location."""
    # Not percent-encoded: PyIceberg takes what follows the scheme as the path.
    return location if remote(location) else f"file://{location}"


def properties(location: str) -> dict[str, str]:
    """What Iceberg's file access needs to know."""
    if not remote(location):
        return {}
    known = {
        "s3.endpoint": os.environ.get("AWS_ENDPOINT_URL"),
        "s3.region": os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")),
    }
    timeouts = {"s3.connect-timeout": str(CONNECT), "s3.request-timeout": str(REQUEST)}
    return {**{k: v for k, v in known.items() if v}, **timeouts}


@lru_cache(64)
def _s3(endpoint: str | None, region: str | None) -> Any:
    from pyarrow import fs

    given = {} if region is None else {"region": region}
    if endpoint is not None:
        scheme, _, host = endpoint.rpartition("://")
        given |= {"endpoint_override": host, "scheme": scheme or "https"}
    return fs.S3FileSystem(connect_timeout=CONNECT, request_timeout=REQUEST, **given)


def files(address: str) -> tuple[Any, str]:
    """pyarrow's file system for a recorded location or a URL below it, and the path there."""
    from pyarrow import fs

    if remote(address):
        known = properties(address)
        return _s3(known.get("s3.endpoint"), known.get("s3.region")), address.removeprefix("s3://")
    return fs.LocalFileSystem(), address.removeprefix("file://")


def nearest(files_: Sequence[tuple[str, int]], cache: Cache | None) -> list[str]:
    """The addresses at which files (URL and size) are read: those of a bucket may be on this machine's disk, or come there now."""
    if cache is None or not any(remote(address) for address, _ in files_):
        return [address for address, _ in files_]

    def found(file: tuple[str, int]) -> str:
        address, size = file
        if not remote(address):
            return address

        def read() -> bytes:
            system, path = files(address)
            with system.open_input_stream(path) as source:
                return bytes(source.read())

        endpoint = properties(address).get("s3.endpoint", "")
        path = cache.file(f"{endpoint} {address}", size, read)
        return address if path is None else str(path)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(found, files_))


def of_table(root: str, schema: str, name: str) -> str:
    """The place of a table below a recorded location: whatever its name is, of this table alone, and below."""
    return f"{root}/{'.'.join(quote(part, safe='').replace('.', '%2E') for part in (schema, name))}"


def check(location: str) -> None:
    """Refuse a recorded location for a base that is not empty or new, or cannot be written to."""
    from pyarrow import fs

    system, path = files(location)
    try:
        if not remote(location):
            system.create_dir(path, recursive=True)
        if system.get_file_info(fs.FileSelector(path, allow_not_found=True)):
            raise TierError(f"{location}: the location of a tiered table must be empty")
        with system.open_output_stream(f"{path}/{PROBE}") as probe:
            probe.write(b"")
        system.delete_file(f"{path}/{PROBE}")
    except OSError as error:
        raise TierError(f"{location}: cannot be used as a location: {error.strerror or error}") from error


def below(location: str) -> Iterator[tuple[str, float]]:
    """Every file of a place: its URL, and when it was written (seconds since 1970)."""
    from pyarrow import fs

    system, path = files(location)
    for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True)):
        if info.type == fs.FileType.File:
            yield f"{'s3' if remote(location) else 'file'}://{info.path}", float(info.mtime_ns or 0) / 1e9


def delete(addresses: list[str]) -> None:
    """Delete files by URL; absent ones are no error."""
    for address in addresses:
        system, path = files(address)
        try:
            system.delete_file(path)
        except FileNotFoundError:
            continue


def clear(location: str) -> None:
    """Delete everything in a place."""
    system, path = files(location)
    if remote(location):
        delete([address for address, _ in below(location)])
    else:
        system.delete_dir_contents(path, missing_dir_ok=True)


def copy(source: str, target: str) -> None:
    """Copy a file by URL."""
    (here, path), (there, place) = files(source), files(target)
    if not remote(target):
        there.create_dir(place.rpartition("/")[0], recursive=True)
    with here.open_input_stream(path) as given, there.open_output_stream(place) as made:
        while block := given.read(8 * 1024 * 1024):
            made.write(block)


def sync(location: str, began: float | None = None) -> None:
    """Make durable what was written to a directory since a moment (seconds since 1970); a bucket is so at once."""
    if remote(location):
        return
    since = (time.time() if began is None else began) - 60
    for folder, _, names in os.walk(location):
        for name in (*names, "."):
            place = os.path.join(folder, name)
            written = os.stat(place)
            this = (place, written.st_ino, written.st_mtime_ns, written.st_size)
            if name != "." and (written.st_mtime < since or this in _synced):
                continue
            number = os.open(place, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
            if len(_synced) == SYNCED:
                _synced.clear()
            _synced.add(this)
