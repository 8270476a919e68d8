"""Runs every comparison and writes ``docs/benchmarks.md``; ``--quick`` uses small sizes and writes nothing."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from howdah.engines.sql.embedded import EmbeddedServer

from . import documents, jobs, keyvalue, text, vectors
from .common import Results, write

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


async def main(quick: bool) -> None:
    """Everything, on a fresh folder and an embedded Postgres."""
    folder = Path(tempfile.mkdtemp(prefix="howdah-bench-"))
    folder.chmod(0o755)
    server = EmbeddedServer(str(folder / "pg"))
    server.open()
    url = f"pg:{folder / 'pg'}"
    dsn = {"host": str(server.socket_directory), "user": "postgres", "database": "postgres", "ssl": False}
    results = Results()
    try:
        await keyvalue.sqlite(results, folder)
        await keyvalue.postgres(results, url, dsn)
        await jobs.run(results, folder, url, dsn, 1_000 if quick else 100_000)
        await text.run(results, folder, url, dsn, 5_000 if quick else 100_000)
        await documents.run(results, folder)
        await vectors.run(results, folder, url, dsn, 10_500, ("SQLite", "Postgres"))
        if not quick:
            await vectors.run(results, folder, url, dsn, 100_000, ("SQLite", "Postgres"))
            write(results, PAGE, "make bench")
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main("--quick" in sys.argv))
