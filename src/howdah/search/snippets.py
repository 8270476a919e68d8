"""Snippets: the lines of a passage that best answer a query, with their line numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .analyzer import match_terms

BEFORE: Final = 1
AFTER: Final = 2
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True, slots=True)
class Snippet:
    """Lines of a text. ``line`` is the one that matched, ``start`` the first one shown, ``count`` how many;
    ``before`` and ``after`` how many lines the text has on either side. Lines count from 1."""

    text: str
    line: int
    start: int
    count: int
    before: int
    after: int

    @property
    def header(self) -> str:
        """``@@ -21,4 @@ (20 before, 87 after)``"""
        return f"@@ -{self.start},{self.count} @@ ({self.before} before, {self.after} after)"


def extract(
    text: str, terms: Iterable[str], *, first_line: int = 1, total: int | None = None, limit: int = 500
) -> Snippet:
    """The line of ``text`` with most of ``terms`` as analysed, one line before it and two after, at most ``limit``
    characters, cut between words. ``first_line`` is the number of the text's first line, ``total`` how many lines the
    whole document has."""
    wanted = set(terms)
    lines = [line.rstrip("\n") for line in _LINE.findall(text)] or [""]
    best, place = 0, next((i for i, line in enumerate(lines) if line.strip()), 0)
    for number, line in enumerate(lines):
        score = match_terms(line, wanted) if wanted else 0
        if score > best:
            best, place = score, number
    start = max(0, place - BEFORE)
    shown = lines[start : place + AFTER + 1]
    while len(shown) > 1 and not shown[-1].strip():
        shown.pop()
    while start < place and not shown[0].strip():
        shown.pop(0)
        start += 1
    body = "\n".join(shown)
    if len(body) > limit:
        if len(lines[place]) >= limit:
            shown, start = [_around(lines[place], wanted, limit)], place
            body = shown[0]
        else:
            body = (
                _cut(body, limit)
                if sum(map(len, lines[start : place + 1])) < limit
                else _cut("\n".join(lines[place : place + AFTER + 1]), limit)
            )
            start = start if body.startswith(shown[0][:20]) else place
            shown = body.split("\n")
    whole = total if total is not None else first_line - 1 + len(lines)
    first = first_line + start
    return Snippet(body, first_line + place, first, len(shown), first - 1, max(0, whole - first - len(shown) + 1))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    space = text.rfind(" ", limit // 2, limit)
    return text[: space if space > 0 else limit].rstrip() + "…"


def _around(line: str, wanted: set[str], limit: int) -> str:
    """The part of a long line around its first match."""
    words = list(re.finditer(r"\S+", line))
    hit = next((w.start() for w in words if match_terms(w.group(), wanted)), 0)
    begin = max(0, hit - limit // 4)
    if begin:
        begin = line.find(" ", begin) + 1 or begin
    return ("…" if begin else "") + _cut(line[begin:], limit)
