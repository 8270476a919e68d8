"""Indexes more than a thousand real documents found on this machine and answers questions in plain language."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import howdah
from howdah.cli.output import err, out, progress, size

WANTED = 1200
SUFFIXES = (".md", ".rst", ".markdown")
SMALLEST, LARGEST = 600, 6_000
FEW = 3
QUESTIONS = (
    "how do I report a security problem?",
    "what is the licence of this package?",
    "how to install it from source",
    "which versions of Python are supported?",
    "how can I contribute a change?",
    "what changed in the last release?",
    "parse command line arguments",
    "how does asynchronous input and output work?",
)


def roots() -> list[Path]:
    """Where packages put their documents: this environment, the interpreter, the system, language tool chains."""
    home = Path.home()
    found = [
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path("/usr/share/doc"),
        Path("/usr/lib"),
        Path("/usr/share"),
        Path("/usr/local"),
    ]
    found += [home / name for name in (".pyenv", ".rustup", ".cargo", ".npm", ".local", ".cache", "go")]
    return [p for p in dict.fromkeys(found) if p.is_dir()]


def documents() -> Iterator[tuple[str, str]]:
    """Markdown and reStructuredText files, then the documentation inside Python modules, each text once."""
    seen: set[str] = set()
    for pick, few in ((_files, FEW), (_docstrings, FEW), (_files, None), (_docstrings, None)):
        for name, text in pick(few):
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                yield name, text


def _walk(suffixes: tuple[str, ...], few: int | None) -> list[Path]:
    """Files from all over the machine: few of each folder, in an order that mixes them."""
    found: list[Path] = []
    for root in roots():
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in ("proc", "sys", "__pycache__"))
            fitting = sorted(f for f in files if f.endswith(suffixes))
            found += [Path(folder) / f for f in fitting[:few]]
    random.Random(1).shuffle(found)
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if SMALLEST <= path.stat().st_size <= LARGEST else None
    except (OSError, UnicodeDecodeError):
        return None


def _files(few: int | None) -> Iterator[tuple[str, str]]:
    for path in _walk(SUFFIXES, few):
        text = _read(path)
        if text is not None and "\0" not in text:
            yield f"{path.parent.name}-{path.name}", text


def _docstrings(few: int | None) -> Iterator[tuple[str, str]]:
    import ast
    import warnings

    for path in _walk((".py",), few):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        except (OSError, SyntaxError, ValueError):
            continue
        if text and SMALLEST <= len(text) <= LARGEST:
            yield f"{path.parent.name}-{path.stem}.rst", f"{path.stem}\n{'=' * len(path.stem)}\n\n{text}\n"


def main() -> int:
    """Run the demonstration."""
    work = Path(tempfile.mkdtemp(prefix="howdah-demo-"))
    try:
        folder = work / "documents"
        folder.mkdir()
        count = total = 0
        for name, text in documents():
            data = text.encode()
            (folder / f"{count:04}-{name}").write_bytes(data)
            count, total = count + 1, total + len(data)
            if count == WANTED:
                break
        out.print(f"{count} documents found on this machine, {size(total)}")
        with howdah.connect(str(work / "demo.db")) as store:
            docs = store.corpus()
            with progress(False) as advance:
                report = docs.sync(folder, on_progress=advance)
            out.print(f"Indexed in {report.seconds:.1f} s: {report.added} documents, {report.chunks} chunks")
            again = docs.sync(folder)
            out.print(f"A second sync of {again.unchanged} unchanged files: {again.seconds * 1000:.0f} ms")
            docs.search("warm up")
            for question in QUESTIONS:
                began = time.perf_counter()
                hits = docs.search(question, limit=3)
                spent = (time.perf_counter() - began) * 1000
                out.print(f"\n[bold]{question}[/bold]  ({hits.mode}, {spent:.1f} ms)")
                for hit in hits:
                    snippet = " ".join(hit.snippet.split())[:100]
                    out.print(f"  {hit.score:.2f}  {hit.path}:{hit.line}  {hit.title}", markup=False)
                    out.print(f"        {snippet}", style="dim", markup=False)
            status = store.status()
            out.print(f"\nAll of it in one file: {size(status.size)}")
        if count < 1000:
            err.print(f"This machine has only {count} documents.")
            return 1
        return 0
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
