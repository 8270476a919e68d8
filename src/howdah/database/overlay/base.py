"""The base of a tiered table: an Iceberg table whose current metadata file Postgres names.

No catalog decides anything: a commit writes a new metadata file beside the old ones, and counts when ``howdah.tiers`` names it.
What a crash leaves unnamed is never read.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...errors import StartupError, TierError

IDENTIFIER = "howdah.base"
PROPERTIES = {
    "write.parquet.compression-codec": "zstd",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    "commit.manifest-merge.enabled": "true",
}
KEPT = 16


def library() -> Any:
    """PyIceberg, or an error that names what to install."""
    try:
        import pyiceberg.catalog.memory
        import pyiceberg.expressions
        import pyiceberg.table
    except ImportError as error:
        raise StartupError("tiering needs its libraries: pip install 'howdah[tiering]'") from error
    return pyiceberg


def check_location(location: str) -> str:
    """The directory of a base, absolute; it must be empty or new, and writable."""
    path = Path(location).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise TierError(f"{path}: the location of a tiered table must be empty")
        probe = path / ".howdah"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise TierError(f"{path}: cannot be used as a location: {error.strerror}") from error
    return str(path)


def commit(location: str, metadata: str | None, schema: Any, rows: Any, dead: Any) -> tuple[str, int]:
    """Drop the rows that the expression ``dead`` selects, add ``rows`` (Arrow), and give the new metadata file and snapshot."""
    ice = library()
    url, began = f"file://{quote(location)}", time.time()
    catalog = ice.catalog.memory.InMemoryCatalog("howdah", warehouse=url)
    try:
        catalog.create_namespace("howdah")
        if metadata is None:
            table = catalog.create_table(IDENTIFIER, schema=schema, location=url, properties=PROPERTIES)
        else:
            table = catalog.register_table(IDENTIFIER, metadata)
        with table.transaction() as change:
            if dead is not None and metadata is not None:
                change.delete(dead)
            if rows is not None and rows.num_rows:
                change.append(rows)
    except OSError as error:
        raise TierError(f"{location}: the base cannot be written: {error}") from error
    finally:
        catalog.engine.dispose()
    _sync(location, began)
    snapshot = table.metadata.current_snapshot_id
    return str(table.metadata_location), int(snapshot or 0)


def _sync(location: str, began: float) -> None:
    """Make what was written since then durable before Postgres names it; what is older was made so by its own commit."""
    for folder, _, names in os.walk(location):
        for name in (*names, "."):
            if name != "." and os.stat(os.path.join(folder, name)).st_mtime < began - 60:
                continue
            number = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@lru_cache(KEPT)
def _open(metadata: str) -> Any:
    return library().table.StaticTable.from_metadata(metadata)


def read(metadata: str | None, condition: Any, columns: tuple[str, ...] | None = None) -> Any:
    """The rows of a base that may fit a condition, as batches of Arrow; an error for a file that is missing or broken."""
    if metadata is None:
        return None
    try:
        scan = _open(metadata).scan(
            **({} if condition is None else {"row_filter": condition}),
            **({} if columns is None else {"selected_fields": columns}),
        )
        return scan.to_arrow_batch_reader().read_all()
    except (OSError, ValueError) as error:
        raise TierError(f"a file of the base is missing or cannot be read: {error}") from error
