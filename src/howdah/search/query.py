"""The grammar of a text query: words ORed and ranked, ``"phrases"``, ``+must``, ``-not``, ``field:`` and ``prefix*``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..errors import InvalidInput, QuerySyntaxError
from .analyzer import analyse_unit, is_stop_word, query_terms, sequence, units

_PIECE: Final = re.compile(
    r'(?P<sign>[+-])?(?:(?P<field>[A-Za-z][A-Za-z0-9_]*):)?(?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+))|(?P<rest>\S)'
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One word or phrase. ``terms`` are ORed and ranked; with ``phrase`` they must stand in a row."""

    terms: tuple[str, ...]
    phrase: tuple[str, ...] = ()
    field: str | None = None
    prefix: str | None = None
    stop: bool = False


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A parsed query: what ranks, what is required, what is excluded."""

    should: tuple[Clause, ...]
    must: tuple[Clause, ...]
    must_not: tuple[Clause, ...]

    def ranking(self) -> tuple[Clause, ...]:
        """The clauses that score: function words only when there is nothing else."""
        clauses = (*self.must, *self.should)
        strong = tuple(c for c in clauses if not c.stop)
        return strong or clauses


def parse(text: str, fields: Collection[str] = ()) -> TextQuery:
    """Parse ``text``; ``fields`` are the names that may stand before a colon.

    Raises ``InvalidInput`` for a blank query and ``QuerySyntaxError`` when it only excludes.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"query: expected text, got {type(text).__name__}")
    return _parse(text, tuple(fields))


@lru_cache(maxsize=256)
def _parse(text: str, fields: tuple[str, ...]) -> TextQuery:
    should: list[Clause] = []
    must: list[Clause] = []
    must_not: list[Clause] = []
    for match in _PIECE.finditer(text.replace("“", '"').replace("”", '"')):
        sign, field = match["sign"], match["field"]
        phrase, word = match["phrase"], match["word"]
        if word is not None and field is not None and field not in fields:
            word, field = f"{field}:{word}", None
        if phrase is not None and field is not None and field not in fields:
            should.extend(_words(field, None))
            field = None
        if word is not None and sign is not None and not units(word):
            continue
        if phrase is not None:
            clauses = _phrase(phrase, field)
        elif word is not None:
            clauses = _words(word, field, whole=sign is not None)
        else:
            continue
        if sign == "-":
            must_not.extend(clauses)
        elif sign == "+" or phrase is not None:
            must.extend(clauses)
        else:
            should.extend(clauses)
    if not (should or must):
        if must_not:
            raise QuerySyntaxError(f"query {text!r:.80} only excludes; add a word to look for")
        raise InvalidInput(f"query {text!r:.80} is blank: it holds no word to look for")
    return TextQuery(tuple(should), tuple(must), tuple(must_not))


def _phrase(text: str, field: str | None) -> list[Clause]:
    terms = sequence(text)
    if not terms:
        return []
    return [Clause(tuple(dict.fromkeys(terms)), tuple(terms), field)]


def _words(text: str, field: str | None, whole: bool = False) -> list[Clause]:
    found = units(text)
    clauses = []
    for place, unit in enumerate(found):
        if text.endswith("*") and place == len(found) - 1 and text.rstrip("*").endswith(unit):
            clauses.append(Clause((), field=field, prefix=unit.casefold()))
            continue
        terms = query_terms(unit)
        if not terms:
            continue
        parts = analyse_unit(unit).parts
        row = parts if whole and len(parts) > 1 else ()
        clauses.append(Clause(terms, row, field, stop=is_stop_word(unit) and not whole))
    return clauses
