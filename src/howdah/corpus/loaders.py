"""Reads documents from files: which files count, their text by line, title, front matter."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ..errors import InvalidInput

DEFAULT_MASK: Final = "**/*.{md,markdown,mdx,txt,rst,org}"
MAX_BYTES: Final = 10 * 1024 * 1024
EXCLUDED: Final = frozenset({"node_modules", ".git", ".cache", "vendor", "dist", "build"})
_HEADING: Final = re.compile(r"(#{1,2})\s+(.+?)\s*#*\s*$")
_FENCE: Final = re.compile(r"\s*(`{3,}|~{3,})")
_ORG: Final = re.compile(r"#\+title:\s*(.+)$|\*+\s+(.+)$", re.IGNORECASE)
_UNDERLINE: Final = re.compile(r"([=\-~^\"'`#*+:.])\1{2,}\s*$")
_NOTES: Final = re.compile(r"\W*notes\W*$", re.IGNORECASE)


@dataclass(slots=True)
class Loaded:
    """A document's text, title and front matter."""

    text: str
    title: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Skip(Exception):
    """A file that is passed over; the text says why."""


def _expand(pattern: str) -> list[str]:
    """Braces expanded: ``*.{md,txt}`` to ``*.md`` and ``*.txt``."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [p for option in found[1].split(",") for p in _expand(head + option + tail)]


def _split(mask: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, char in enumerate(mask):
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            parts.append(mask[start:place])
            start = place + 1
    parts.append(mask[start:])
    return [p.strip() for p in parts if p.strip()]


def glob_pattern(mask: str) -> re.Pattern[str]:
    """One pattern for a comma-separated list of globs over relative paths: ``**`` crosses folders, ``*`` does not."""
    options = [p for part in _split(mask) for p in _expand(part)]
    if not options:
        raise InvalidInput(f"mask {mask!r}: expected one or more globs such as '**/*.md'")
    made = []
    for option in options:
        out, place = [], 0
        while place < len(option):
            if option.startswith("**/", place):
                out.append("(?:[^/]+/)*")
                place += 3
            elif option.startswith("**", place):
                out.append(".*")
                place += 2
            elif option[place] == "*":
                out.append("[^/]*")
                place += 1
            elif option[place] == "?":
                out.append("[^/]")
                place += 1
            elif option[place] == "[" and "]" in option[place + 1 :]:
                end = option.index("]", place + 1)
                out.append(fnmatch.translate(option[place : end + 1]).removeprefix("(?s:").removesuffix(")\\Z"))
                place = end + 1
            else:
                out.append(re.escape(option[place]))
                place += 1
        made.append("".join(out))
    return re.compile(f"(?:{'|'.join(made)})")


def walk(root: Path, mask: str | None, ignore: Sequence[str] = ()) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below ``root`` that the mask wants and no rule hides, as relative paths, sorted within each folder.

    Hidden parts and ``node_modules .git .cache vendor dist build`` are left out, unless ``ignore`` brings one back by
    ``!name``. Links to folders are not followed.
    """
    wanted = glob_pattern(mask or DEFAULT_MASK)
    back = {p[1:].strip("/") for p in ignore if p.startswith("!")}
    hidden = [glob_pattern(p if "/" in p else f"**/{p}") for p in ignore if not p.startswith("!")]
    excluded = EXCLUDED - back

    def visit(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda e: e.name)
        for entry in found:
            path = prefix + entry.name
            if (entry.name.startswith(".") and entry.name not in back) or entry.name in excluded:
                continue
            if any(h.fullmatch(path) for h in hidden):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from visit(folder / entry.name, f"{path}/")
            elif wanted.fullmatch(path) and entry.is_file():
                yield path, entry

    yield from visit(root, "")


def read_file(root: Path, path: str) -> tuple[str, os.stat_result]:
    """Text and state of a file; raises ``Skip`` with the reason for what cannot be a document."""
    full = root / path
    try:
        if full.is_symlink() and not full.resolve().is_relative_to(root.resolve()):
            raise Skip("outside_collection")
        with full.open("rb") as handle:
            state = os.fstat(handle.fileno())
            if state.st_size > MAX_BYTES:
                raise Skip("too_large")
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise Skip(error.strerror or type(error).__name__) from error
    if b"\0" in data:
        raise Skip("not_text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Skip("not_text") from None
    if not text.strip():
        raise Skip("blank")
    return text.replace("\r\n", "\n").replace("\r", "\n"), state


def load(text: str, path: str) -> Loaded:
    """Title, front matter and text of a document. HTML becomes text of the same lines."""
    suffix = PurePosixPath(path).suffix.lower()
    name = PurePosixPath(path).stem
    if suffix in (".html", ".htm", ".xhtml"):
        page = _Page()
        page.feed(text)
        page.close()
        return Loaded("".join(page.out), " ".join(page.title.split()) or name)
    metadata = front_matter(text) if suffix in (".md", ".markdown", ".mdx") else {}
    given = metadata.get("title")
    title = str(given) if isinstance(given, (str, int, float)) and str(given).strip() else _title(text, suffix)
    return Loaded(text, title or name, metadata)


def _title(text: str, suffix: str) -> str | None:
    if suffix == ".org":
        for line in text.splitlines():
            found = _ORG.match(line)
            if found:
                return (found[1] or found[2]).strip()
        return None
    if suffix not in (".md", ".markdown", ".mdx", ".rst", ".txt"):
        return None
    fence = None
    first = None
    lines = text.splitlines()
    for number, line in enumerate(lines[:500]):
        mark = _FENCE.match(line)
        if mark:
            fence = None if fence and mark[1].startswith(fence) else fence or mark[1]
            continue
        if fence:
            continue
        found = _HEADING.match(line) if suffix != ".rst" else None
        title = found[2].strip() if found else None
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if title is None and line.strip() and not line[0].isspace() and _UNDERLINE.match(following):
            title = None if _UNDERLINE.match(line) or len(following.strip()) < len(line.strip()) - 2 else line.strip()
        if title:
            if first is None and _NOTES.match(title):
                first = title
                continue
            return title
    return first


def front_matter(text: str) -> dict[str, Any]:
    """The flat part of YAML front matter: ``key: value``, ``[a, b]`` and ``- item`` lists."""
    if not text.startswith("---\n"):
        return {}
    end = text.find("\n---", 3)
    if end < 0:
        return {}
    found: dict[str, Any] = {}
    key = None
    for line in text[4:end].splitlines():
        item = re.match(r"\s*-\s+(.*)$", line)
        if item and key is not None and (found[key] == "" or isinstance(found[key], list)):
            found[key] = [*(found[key] or []), _scalar(item[1])]
            continue
        pair = re.match(r"([A-Za-z_][\w\-]*):\s*(.*)$", line)
        if pair:
            key, value = pair[1], pair[2].strip()
            if value.startswith("[") and value.endswith("]"):
                found[key] = [_scalar(v) for v in value[1:-1].split(",") if v.strip()]
            else:
                found[key] = _scalar(value)
    return found


def _scalar(text: str) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d{1,15}\.\d{1,15}", text) else text


class _Page(HTMLParser):
    """Text of a page with every line where it was, headings marked."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.title = ""
        self._skip = 0
        self._in_title = False

    def _catch_up(self) -> None:
        """As many line ends as the source has had by now."""
        behind = self.getpos()[0] - 1 - sum(part.count("\n") for part in self.out)
        if behind > 0:
            self.out.append("\n" * behind)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._catch_up()
        if tag in ("script", "style", "template", "noscript"):
            self._skip += 1
        elif tag == "title":
            self._in_title = not self.title
        elif re.fullmatch("h[1-6]", tag):
            self.out.append("#" * int(tag[1]) + " ")
        elif tag in ("li", "p", "td", "th", "br", "div"):
            self.out.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "template", "noscript") and self._skip:
            self._skip -= 1
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        self._catch_up()
        self.out.append("\n" * data.count("\n") if self._skip or self._in_title else data)
