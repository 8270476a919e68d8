"""What commands have in common: the store, the corpus, JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from ..blocking.store import Store

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", envvar="HOWDAH_URL", metavar="URL", help="agent.db, postgresql://…, pg:./data or files:./dir"
    ),
]
CorpusOption = Annotated[str, typer.Option("--corpus", envvar="HOWDAH_CORPUS", metavar="NAME", help="Which index.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EmbedderOption = Annotated[
    str | None,
    typer.Option("--embedder", envvar="HOWDAH_EMBEDDER", metavar="NAME", help="bundled, none, openai:MODEL, a URL …"),
]


def default_store() -> str:
    """The file in the user's data directory."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    folder = Path(base) / "howdah"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / "howdah.db")


@contextmanager
def opened(url: str | None, *, create: bool = True, there: bool = False) -> Iterator[Store]:
    """The store, closed at the end; with ``there`` it must exist, so that looking at a mistyped file makes none."""
    from ..blocking.connect import connect
    from ..urls import parse

    if url is not None and not url.strip():
        raise InvalidInput("--store (or HOWDAH_URL) is empty: give a URL, or leave it out")
    place = url or default_store()
    parsed = parse(place)
    if there and parsed.scheme == "sqlite" and not Path(parsed.rest).exists():
        raise NotFound(f"no store {parsed.rest}: index a folder into it first, howdah index PATH")
    with connect(place, create=create) as store:
        yield store
