"""Cuts a text into chunks at the best places near the target size: headings, fences, paragraphs, definitions."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidInput

_CJK: Final = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
_HEADING: Final = re.compile(r"(#{1,6})\s+\S")
_FENCE: Final = re.compile(r"\s*(`{3,}|~{3,})")
_RULE: Final = re.compile(r"\s{0,3}([-*_])(?:\s*\1){2,}\s*$")
_LIST: Final = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+\S")
_UNDERLINE: Final = re.compile(r"([=\-~^\"'`#*+:.])\1{2,}\s*$")
_HEADING_SCORES: Final = (100, 90, 80, 70, 60, 50)

_C_LIKE_FUNCTION: Final = r"(?:[\w:<>*&,~\[\]]+\s+)+[\w:~*&]+\s*\([^;]*$"
_CODE: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "py": ((100, r"class\b"), (90, r"(?:async\s+)?def\b|@\w"), (60, r"(?:import|from)\b")),
    "ts": (
        (100, r"(?:export\s+)?(?:default\s+)?(?:abstract\s+)?(?:class|interface|namespace)\b"),
        (90, r"(?:export\b|(?:async\s+)?function\b|(?:const|let)\s+\w+\s*=\s*(?:async\s*)?\()"),
        (80, r"(?:type|enum)\b"),
        (60, r"import\b"),
    ),
    "go": ((100, r"type\s+\w+\s+(?:struct|interface)\b"), (90, r"func\b"), (80, r"type\b"), (60, r"import\b")),
    "rs": (
        (100, r"(?:pub(?:\([^)]*\))?\s+)?(?:struct|trait|impl|mod)\b"),
        (90, r"(?:pub(?:\([^)]*\))?\s+)?(?:async\s+)?(?:unsafe\s+)?fn\b|#\["),
        (80, r"(?:pub\s+)?(?:enum|type)\b"),
        (60, r"use\b"),
    ),
    "java": (
        (100, r"(?:(?:public|private|protected|abstract|final|static)\s+)*(?:class|interface|record)\b"),
        (90, r"@\w|(?:(?:public|private|protected|static|final)\s+)+[\w<>\[\]]+\s+\w+\s*\("),
        (80, r"(?:public\s+)?enum\b"),
        (60, r"import\b"),
    ),
    "c": (
        (100, r"(?:typedef\s+)?(?:struct|class|namespace|template)\b"),
        (90, _C_LIKE_FUNCTION),
        (80, r"(?:typedef\s+)?enum\b"),
        (60, r"#\s*include\b"),
    ),
}
_SUFFIXES: Final = {
    **dict.fromkeys((".py", ".pyi"), "py"),
    **dict.fromkeys((".ts", ".tsx", ".js", ".jsx", ".mjs", ".cjs"), "ts"),
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh"), "c"),
    ".go": "go",
    ".rs": "rs",
    ".java": "java",
}
_PATTERNS: Final = {k: tuple((s, re.compile(r"\s{0,8}(?:" + p + ")")) for s, p in v) for k, v in _CODE.items()}


@dataclass(frozen=True, slots=True)
class Chunking:
    """Sizes in tokens, counted as four characters each, CJK characters as one."""

    tokens: int = 900
    overlap: int = 135
    window: int = 200
    code: str = "auto"

    def __post_init__(self) -> None:
        if (
            not 16 <= self.tokens <= 100_000
            or not 0 <= self.overlap <= self.tokens // 2
            or not 0 < self.window < self.tokens
        ):
            raise InvalidInput(
                "chunking: expected 16 <= tokens <= 100,000, overlap at most half of it, window below it"
            )
        if self.code not in ("auto", "off"):
            raise InvalidInput(f"chunking: code={self.code!r}: 'auto' or 'off'")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: characters ``start`` to ``stop`` of the document, its first line (from 1), the headings above it."""

    ordinal: int
    text: str
    start: int
    stop: int
    line: int
    heading: str


def token_count(text: str) -> int:
    """Tokens of a text by the rule that depends on no model."""
    wide = 0 if text.isascii() else len(_CJK.findall(text))
    return wide + (len(text) - wide + 3) // 4


@dataclass(slots=True)
class _Line:
    start: int
    score: int
    fenced: bool
    heading: tuple[int, str] | None


def _markdown_lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    fence: str | None = None
    raw = _LINE.findall(text)
    place = 0
    for number, line in enumerate(raw):
        score, heading = 1, None
        opening = _FENCE.match(line)
        inside = fence is not None
        if fence is None and opening:
            fence, score = opening[1], 80
        elif fence is not None and opening and opening[1][0] == fence[0] and len(opening[1]) >= len(fence):
            fence = None
        elif fence is None:
            found = _HEADING.match(line)
            following = raw[number + 1] if number + 1 < len(raw) else ""
            if found:
                level = len(found[1])
                score, heading = _HEADING_SCORES[level - 1], (level, line.strip().strip("#").strip())
            elif (
                line.strip()
                and _UNDERLINE.match(following)
                and len(following.strip()) >= len(line.strip()) - 2
                and (number == 0 or not raw[number - 1].strip() or _UNDERLINE.match(raw[number - 1]))
            ):
                level = 1 if following[0] in "=#*" else 2
                score, heading = _HEADING_SCORES[level - 1], (level, line.strip())
            elif _RULE.match(line):
                score = 60
            elif not line.strip():
                score = 20
            elif _LIST.match(line):
                score = 5
        lines.append(_Line(place, score, inside, heading))
        place += len(line)
    return lines


def _code_lines(text: str, language: str) -> list[_Line]:
    lines: list[_Line] = []
    place = 0
    for line in _LINE.findall(text):
        score = 20 if not line.strip() else 1
        for value, pattern in _PATTERNS[language]:
            if pattern.match(line):
                indent = len(line) - len(line.lstrip())
                score = max(5, value - 4 * indent)
                break
        lines.append(_Line(place, score, False, None))
        place += len(line)
    return lines


def chunk(text: str, *, path: str = "", options: Chunking | None = None) -> list[Chunk]:
    """The chunks of a text: cuts between characters, no gap, each but the first beginning with the end of the one before.

    Among the break points of the window before the target the one with the greatest
    ``score · (1 − 0.7 · (distance / window)²)`` wins; inside fences only where a fence is longer than a chunk.
    """
    options = options or Chunking()
    if not text.strip():
        return []
    suffix = next((s for s in _SUFFIXES if path.endswith(s)), None)
    if suffix is not None and options.code == "auto":
        lines = _code_lines(text, _SUFFIXES[suffix])
    else:
        lines = _markdown_lines(text)
    wide = 0 if text.isascii() else len(_CJK.findall(text))
    per_token = 4 - 3 * wide / len(text)
    size, overlap, window = (int(n * per_token) for n in (options.tokens, options.overlap, options.window))
    starts = [line.start for line in lines]
    chunks: list[Chunk] = []
    begin, at = 0, 0
    while True:
        stop = (
            len(text)
            if len(text) - begin <= size
            else _cut(lines, starts, begin + size, max(at + 1, begin + size - window))
        )
        chunks.append(_make(text, lines, starts, len(chunks), begin, stop))
        if stop >= len(text):
            return chunks
        at = stop
        begin = _overlap_start(text, starts, max(chunks[-1].start + 1, stop - overlap), stop)


def _cut(lines: list[_Line], starts: list[int], target: int, low: int) -> int:
    best, place = -1.0, target
    found = lines[bisect_left(starts, low) : bisect_right(starts, target)]
    for fenced in (False, True):
        for line in found:
            if line.fenced == fenced and line.start > 0:
                distance = (target - line.start) / max(1, target - low)
                value = line.score * (1 - 0.7 * distance * distance)
                if value >= best:
                    best, place = value, line.start
        if best > 0:
            break
    return place


def _overlap_start(text: str, starts: list[int], wanted: int, stop: int) -> int:
    """The first line or word that begins at ``wanted`` or after, before ``stop``."""
    place = bisect_left(starts, wanted)
    if place < len(starts) and starts[place] < stop:
        return starts[place]
    space = text.find(" ", wanted, stop)
    return space + 1 if 0 <= space < stop - 1 else wanted


def _make(text: str, lines: list[_Line], starts: list[int], ordinal: int, begin: int, stop: int) -> Chunk:
    number = bisect_right(starts, begin)
    trail: list[tuple[int, str]] = []
    for line in lines[:number]:
        if line.heading is not None:
            while trail and trail[-1][0] >= line.heading[0]:
                trail.pop()
            trail.append(line.heading)
    return Chunk(ordinal, text[begin:stop], begin, stop, number, " > ".join(t for _, t in trail)[:500])


def pieces(text: str, size: int) -> list[str]:
    """A chunk in pieces of at most about ``size`` characters, cut at line ends, sentences or words."""
    found: list[str] = []
    begin = 0
    while len(text) - begin > size:
        part = text[begin : begin + size]
        for mark in ("\n\n", "\n", ". ", " "):
            place = part.rfind(mark, size // 2)
            if place > 0:
                place += len(mark)
                break
        else:
            place = size
        found.append(text[begin : begin + place])
        begin += place
    found.append(text[begin:])
    return [p for p in found if p.strip()]
