"""The one text analyzer: Unicode words, Snowball stems, CJK bigrams, identifiers whole and in parts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import Stemmer

MAX_TERM: Final = 64
STOP_WORDS: Final = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "for",
        "from",
        "get",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "may",
        "me",
        "might",
        "more",
        "most",
        "my",
        "no",
        "not",
        "of",
        "off",
        "on",
        "one",
        "or",
        "our",
        "out",
        "over",
        "own",
        "per",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "until",
        "up",
        "use",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)

# A unit is a run of word characters that single - . _ or ' may join: snake_case, v1.2.3, utf-8, don't.
_UNIT: Final = re.compile(r"\w+(?:['’.\-]\w+)*")
_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_CJK_RUN: Final = re.compile(f"([{_CJK}]+)")
_HUMP: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[^\W\d_A-Za-z]+")
_JOIN: Final = re.compile(r"[.\-_]+")
_stemmer = Stemmer.Stemmer("english", 0)


class Unit(NamedTuple):
    """What one unit of text becomes: the terms at its positions, and whole forms that stand over them."""

    parts: tuple[str, ...]
    whole: tuple[str, ...]


def stem(word: str) -> str:
    """The Snowball English stem of a lower-case word."""
    return str(_stemmer.stemWord(word))


def _word(text: str) -> str:
    return stem(text.casefold().replace("’", "'"))[:MAX_TERM]


@lru_cache(maxsize=200_000)
def analyse_unit(unit: str) -> Unit:
    """Terms of one unit of text."""
    if unit.isascii() and unit.isalpha() and (unit.islower() or unit.isupper() or unit[1:].islower()):
        return Unit((stem(unit.lower())[:MAX_TERM],), ())
    if not unit.isascii():
        unit = unicodedata.normalize("NFKC", unit)
        if _CJK_RUN.search(unit):
            return _cjk(unit)
    pieces = [p for p in _JOIN.split(unit) if p]
    parts: list[str] = []
    for piece in pieces:
        if "'" in piece or "’" in piece:
            parts.append(_word(piece))
        else:
            parts.extend(_word(h) for h in _HUMP.findall(piece))
    if not parts:
        return Unit((), ())
    if len(parts) == 1:
        return Unit(tuple(parts), ())
    whole = _JOIN.sub("_", unit.casefold()).strip("_")[: MAX_TERM * 2]
    wholes = {whole, *(p.casefold() for p in pieces if len(pieces) > 1 and len(_HUMP.findall(p)) > 1)}
    return Unit(tuple(parts), tuple(sorted(wholes - set(parts))))


def _cjk(unit: str) -> Unit:
    parts: list[str] = []
    whole: list[str] = []
    for run in _CJK_RUN.split(unit):
        if not run:
            continue
        if _CJK_RUN.fullmatch(run):
            parts.extend(run)
            whole.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            for found in _UNIT.findall(run):
                inner = analyse_unit(found)
                parts.extend(inner.parts)
                whole.extend(inner.whole)
    return Unit(tuple(parts), tuple(whole))


def units(text: str) -> list[str]:
    """The units of a text, as written."""
    return _UNIT.findall(text)


def positions(text: str) -> list[Unit]:
    """The analysed units of a text, in order."""
    return [analyse_unit(u) for u in _UNIT.findall(text)]


# Nearly every unit is one plain word: its term, found without a call.
_words: dict[str, str] = {}
_MOST_WORDS: Final = 500_000


def count_terms(text: str) -> tuple[dict[str, int], int]:
    """How often each term occurs, and the length of the text in positions."""
    found = _UNIT.findall(text)
    terms = list(map(_words.get, found))
    if None not in terms:
        return dict(Counter(terms)), len(terms)  # type: ignore[arg-type]  # no None among them
    counts: dict[str, int] = {}
    length = 0
    for unit, term in zip(found, terms, strict=True):
        if term is not None:
            length += 1
            counts[term] = counts.get(term, 0) + 1
            continue
        parts, whole = analyse_unit(unit)
        length += len(parts)
        for part in parts:
            counts[part] = counts.get(part, 0) + 1
        for part in whole:
            counts[part] = counts.get(part, 0) + 1
        if len(parts) == 1 and not whole:
            if len(_words) > _MOST_WORDS:
                _words.clear()
            _words[unit] = parts[0]
    return counts, length


def sequence(text: str) -> list[str]:
    """The terms of a text at its positions, for phrases."""
    return [term for unit in positions(text) for term in unit.parts]


def contains_phrase(text: str, phrase: list[str]) -> bool:
    """Whether the terms of ``phrase`` stand in a row in ``text``."""
    terms = sequence(text)
    first, size = phrase[0], len(phrase)
    return any(t == first and terms[i : i + size] == phrase for i, t in enumerate(terms))


def query_terms(unit: str) -> tuple[str, ...]:
    """The terms that one unit of a query looks for: CJK by its bigrams, a compound whole and in parts."""
    found = analyse_unit(unit)
    if _CJK_RUN.search(unit):
        normal = unicodedata.normalize("NFKC", unit)
        wanted: list[str] = []
        for run in _CJK_RUN.split(normal):
            if _CJK_RUN.fullmatch(run):
                wanted.extend([run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)])
            elif run:
                for piece in _UNIT.findall(run):
                    inner = analyse_unit(piece)
                    wanted.extend((*inner.whole, *inner.parts))
        return tuple(dict.fromkeys(wanted))
    return tuple(dict.fromkeys((*found.whole, *found.parts)))


def is_stop_word(unit: str) -> bool:
    """Whether a query unit is a function word."""
    return unit.lower() in STOP_WORDS


def match_terms(text: str, wanted: Iterable[str]) -> int:
    """How many of ``wanted`` occur in ``text`` as analysed."""
    found = set(count_terms(text)[0])
    return sum(term in found for term in wanted)
