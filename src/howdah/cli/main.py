"""The ``howdah`` command: index folders, search them, read documents, look after the store."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import Error, InvalidInput, NotFound
from . import database, operate
from .options import CorpusOption, EmbedderOption, JsonOption, StoreOption, opened
from .output import emit_json, err, out, progress, size, table

if TYPE_CHECKING:
    from ..blocking.corpus import Corpus
    from ..blocking.store import Store

app = typer.Typer(
    name="howdah",
    help="One storage layer for AI agents. Index folders of documents and search them, by words and by meaning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
collections = typer.Typer(help="The folders of a corpus.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(collections, name="collection")
app.command("export")(operate.export)
app.command("import")(operate.import_)
app.command("worker")(operate.worker)
app.command("tiers")(database.tiers)
app.command("flush")(database.flush)


def corpus_of(store: Store, name: str, embedder: str | None) -> Corpus:
    """The corpus with the embedder that was asked for."""
    return store.corpus(name, embedder=embedder or "default")


def _version(value: bool) -> None:
    if value:
        out.print(f"howdah {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One storage layer for AI agents."""


def _report(report: Any, json: bool) -> None:
    if json:
        emit_json(report)
    else:
        names = ", ".join(report.collections) or "nothing"
        out.print(
            f"{names}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, {report.removed} removed,"
            f" {report.skipped} skipped; {report.chunks} chunks in {report.seconds:.1f} s"
        )
        if report.pending_embeddings:
            err.print(f"{report.pending_embeddings} documents wait for vectors: howdah embed")
        for path, reason in report.problems[:10]:
            err.print(f"skipped {path}: {reason}")
        if len(report.problems) > 10:
            err.print(f"… and {len(report.problems) - 10} more (--json lists them)")
    if report.failed:
        raise typer.Exit(3)


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Folders to index.")],
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    mask: Annotated[str | None, typer.Option(metavar="GLOB", help="Files to read, e.g. '**/*.{md,py}'.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Files to leave out; may be repeated.")
    ] = None,
    embed: Annotated[bool, typer.Option("--embed/--no-embed", help="Make vectors, too.")] = True,
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Index folders: what is new or changed is read, what is gone is removed."""
    from ..corpus.indexer import collection_name

    for path in paths:
        if not path.is_dir():
            raise InvalidInput(f"{path}: no directory")
    with opened(store) as opened_store, progress(json) as advance:
        docs = corpus_of(opened_store, corpus, embedder)
        reports = []
        for path in paths:
            known = {c.path: c for c in docs.collections.list()}
            if (mask is not None or ignore) and str(path.expanduser().resolve()) not in known:
                docs.collections.add(collection_name(path), path, mask=mask, ignore=ignore or ())
            elif mask is not None and known[str(path.expanduser().resolve())].mask != mask:
                raise InvalidInput(f"{path} is indexed with another mask; howdah collection remove it first")
            reports.append(docs.sync(path, embed=embed, on_progress=advance))
        opened_store.maintain()
        whole = reports[0]
        for report in reports[1:]:
            whole.collections += report.collections
            whole.problems += report.problems
            for name in ("added", "updated", "unchanged", "removed", "skipped", "failed", "chunks", "seconds"):
                setattr(whole, name, getattr(whole, name) + getattr(report, name))
            whole.pending_embeddings = report.pending_embeddings
    _report(whole, json)


@app.command()
def sync(
    collection: Annotated[
        list[str] | None, typer.Option("-c", "--collection", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    checksum: Annotated[bool, typer.Option(help="Read every file, whatever its time says.")] = False,
    embed: Annotated[bool, typer.Option("--embed/--no-embed", help="Make vectors, too.")] = True,
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Bring every indexed folder up to date."""
    with opened(store, there=True) as opened_store, progress(json) as advance:
        report = corpus_of(opened_store, corpus, embedder).sync(
            collections=collection, checksum=checksum, embed=embed, on_progress=advance
        )
    _report(report, json)


@app.command()
def embed(
    collection: Annotated[
        list[str] | None, typer.Option("-c", "--collection", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Make the vectors that documents lack."""
    with opened(store, there=True) as opened_store, progress(json) as advance:
        report = corpus_of(opened_store, corpus, embedder).embed(collections=collection, on_progress=advance)
    if json:
        emit_json(report)
    else:
        out.print(
            f"{report.documents} documents: {report.pieces} passages embedded, {report.reused} known, in {report.seconds:.1f} s"
        )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help='Words, "a phrase", -not, +must, prefix*, title:word.')],
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    mode: Annotated[str, typer.Option(help="auto, text, vector or hybrid.")] = "auto",
    limit: Annotated[int, typer.Option("-n", "--limit", help="How many hits.")] = 10,
    every: Annotated[bool, typer.Option("--all", help="Every document that matches.")] = False,
    min_score: Annotated[float, typer.Option("--min-score", help="Leave out hits below, 0 to 1.")] = 0.0,
    collection: Annotated[
        list[str] | None, typer.Option("-c", "--collection", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Front matter to match; may be repeated.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Show each leg's rank and score.")] = False,
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Find documents by words and by meaning."""
    with opened(store, there=True) as opened_store:
        hits = corpus_of(opened_store, corpus, embedder).search(
            query,
            mode=mode,
            limit=None if every else limit,
            min_score=min_score,
            collections=collection,
            where=_filters(where),
            explain=explain,
            snippet_chars=300 if json else 500,
        )
    if json:
        emit_json([_hit(h, explain) for h in hits])
    else:
        for hit in hits:
            out.print(f"{hit.uri}:{hit.line}  #{hit.id[:8]}", style="bold", markup=False)
            out.print(f"{hit.score:.0%}  {hit.title}", markup=False)
            out.print(hit.snippet, style="dim", markup=False)
            if explain and hit.explain is not None:
                for leg, part in hit.explain["legs"].items():
                    out.print(
                        f"  {leg}: rank {part['rank']}, score {part['score']:.4f}, raw {part['raw']:.4f} ({part['plan']})",
                        markup=False,
                    )
            out.print()
        if not hits:
            err.print("Nothing found.")
    for note in hits.notes:
        err.print(note, markup=False)


def _filters(given: list[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidInput(f"--where {item!r}: expected FIELD=VALUE")
        number = value.removeprefix("-")
        found[name] = int(value) if number.isdigit() else {"true": True, "false": False, "null": None}.get(value, value)
    return found


def _hit(hit: Any, explain: bool) -> dict[str, Any]:
    names = [
        "id",
        "uri",
        "collection",
        "path",
        "line",
        "score",
        "title",
        "metadata",
        "snippet",
        *(["explain"] if explain else []),
    ]
    return {n: getattr(hit, n) for n in names}


@app.command()
def get(
    ref: Annotated[str, typer.Argument(help="#id, howdah://… URI, or a path; :FROM:COUNT selects lines.")],
    start: Annotated[int | None, typer.Option("--from", help="First line.")] = None,
    count: Annotated[int | None, typer.Option("-l", "--lines", help="How many lines.")] = None,
    numbers: Annotated[bool, typer.Option("--line-numbers/--no-line-numbers", help="Number the lines.")] = True,
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    json: JsonOption = False,
) -> None:
    """Print a document, or some of its lines."""
    import re

    found = re.fullmatch(r"(.+?)(?::(\d+))?(?::(\d+))?", ref, re.DOTALL)
    if found is not None and found[2] and not ref.rstrip("0123456789:").endswith("//"):
        ref = found[1]
        start = int(found[2]) if start is None else start
        count = int(found[3]) if count is None and found[3] else count
    lines = None if start is None and count is None else (start or 1, count)
    with opened(store, there=True) as opened_store:
        document = opened_store.corpus(corpus, embedder=None).get(ref, lines=lines)
    if json:
        emit_json(document)
        return
    out.print(f"{document.uri}  #{document.id[:8]}", markup=False)
    out.print("---")
    for number, line in enumerate(document.text.rstrip("\n").split("\n"), document.first_line):
        sys.stdout.write(f"{number}: {line}\n" if numbers else f"{line}\n")


@app.command()
def ls(
    prefix: Annotated[str, typer.Argument(metavar="[COLLECTION[/PREFIX]]", help="Only documents below.")] = "",
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    json: JsonOption = False,
) -> None:
    """List documents."""
    with opened(store, there=True) as opened_store:
        found = opened_store.corpus(corpus, embedder=None).ls(prefix)
    if json:
        emit_json(found)
        return
    shown = table("size", "modified", "document")
    for item in found:
        shown.add_row(size(item.size), f"{item.modified:%Y-%m-%d %H:%M}", item.uri)
    out.print(shown)


@app.command()
def status(
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Show where the data is and what it holds."""
    with opened(store, there=True) as opened_store:
        engine = opened_store.status()
        held = corpus_of(opened_store, corpus, embedder).status()
    if json:
        emit_json({"store": engine, "corpus": held})
        return
    model = f"{held.embedder} ({held.dim} dimensions)" if held.embedder else "none (pip install 'howdah[local]')"
    out.print(f"Store:      {engine.engine} {engine.version}, {engine.place}, {size(engine.size)}", markup=False)
    out.print(f"Corpus:     {held.corpus}: {held.documents} documents, {held.chunks} chunks")
    out.print(f"Embedder:   {model}; {held.pending} documents wait for vectors", markup=False)
    if held.collections:
        shown = table("collection", "documents", "folder", "mask")
        for collection, count in held.collections:
            shown.add_row(collection.name, str(count), collection.path or "-", collection.mask or "default")
        out.print(shown)


@app.command()
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead of running them.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only tell what is missing; status 1 if anything is.")] = False,
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Create or grow the tables of a store and its corpus, or print how."""
    with opened(store, create=not (sql or check)) as opened_store:
        docs = corpus_of(opened_store, corpus, embedder)
        statements = docs.migration()
        if not (sql or check):
            docs.migrate()
    if json:
        emit_json({"statements": statements, "applied": not (sql or check)})
    elif sql:
        for statement in statements:
            sys.stdout.write(f"{statement};\n")
    else:
        out.print(
            f"{len(statements)} statements {'to run' if check else 'run'}." if statements else "Everything is in place."
        )
    if check and statements:
        raise typer.Exit(1)


@collections.command("add")
def collection_add(
    path: Annotated[Path, typer.Argument(help="The folder.")],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    mask: Annotated[str | None, typer.Option(metavar="GLOB", help="Files to read.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Files to leave out; may be repeated.")
    ] = None,
    exclude: Annotated[bool, typer.Option(help="Search it only when named.")] = False,
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    embedder: EmbedderOption = None,
    json: JsonOption = False,
) -> None:
    """Declare a folder and index it."""
    from ..corpus.indexer import collection_name

    with opened(store) as opened_store, progress(json) as advance:
        docs = corpus_of(opened_store, corpus, embedder)
        made = docs.collections.add(
            name or collection_name(path), path, mask=mask, ignore=ignore or (), include_by_default=not exclude
        )
        report = docs.sync(collections=[made.name], on_progress=advance)
    _report(report, json)


@collections.command("list")
def collection_list(store: StoreOption = None, corpus: CorpusOption = "default", json: JsonOption = False) -> None:
    """List the collections."""
    with opened(store, there=True) as opened_store:
        found = opened_store.corpus(corpus, embedder=None).collections.list()
    if json:
        emit_json(found)
        return
    shown = table("collection", "folder", "mask")
    for item in found:
        shown.add_row(item.name, item.path or "-", item.mask or "default")
    out.print(shown)


@collections.command("remove")
def collection_remove(
    name: Annotated[str, typer.Argument()],
    store: StoreOption = None,
    corpus: CorpusOption = "default",
    json: JsonOption = False,
) -> None:
    """Remove a collection with its documents; the files stay."""
    with opened(store, there=True) as opened_store:
        count = opened_store.corpus(corpus).collections.remove(name)
    if json:
        emit_json({"removed": name, "documents": count})
    else:
        out.print(f"{name}: {count} documents removed from the index")


def run() -> None:
    """Run the command line: errors as one line, status 1 (failed, not found), 2 (bad usage), 3 (some items failed)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except Error as error:
        err.print(f"howdah: {error}", markup=False)
        sys.exit(2 if isinstance(error, InvalidInput) and not isinstance(error, NotFound) else 1)
    except BrokenPipeError:
        os._exit(0)  # the reader has had enough
    except OSError as error:
        sys.stderr.write(f"howdah: {error.strerror or error}\n")
        os._exit(1)  # whatever could not be written cannot be flushed either
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


if __name__ == "__main__":
    run()
