"""WordPiece as BERT's uncased models use it: clean, lower-case, split, then longest pieces first.

Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers* (2018). The vocabulary beside this module is
bert-base-uncased's (Apache-2.0).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib import resources
from typing import Final

CLS: Final = 101
SEP: Final = 102
UNKNOWN: Final = 100
_CJK: Final = "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"
_SPLIT: Final = re.compile(rf"[{_CJK}]|[!-/:-@\[-`{{-~]|\w+|[^\w\s]")


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Piece to number."""
    text = resources.files("howdah.embed").joinpath("vocab.txt").read_text(encoding="utf-8")
    return {piece: number for number, piece in enumerate(text.split("\n"))}


@lru_cache(maxsize=100_000)
def _pieces(word: str) -> tuple[int, ...]:
    pieces = vocabulary()
    if len(word) > 100:
        return (UNKNOWN,)
    found: list[int] = []
    start = 0
    while start < len(word):
        stop = len(word)
        while stop > start:
            number = pieces.get(word[start:stop] if start == 0 else "##" + word[start:stop])
            if number is not None:
                break
            stop -= 1
        else:
            return (UNKNOWN,)
        found.append(number)
        start = stop
    return tuple(found)


def _clean(text: str) -> str:
    if text.isascii():
        return (
            "".join(c if c.isprintable() else " " if c in "\t\n\r" else "" for c in text).lower()
            if not text.isprintable()
            else text.lower()
        )
    kept = []
    for char in text:
        kind = unicodedata.category(char)
        if char in "\t\n\r" or kind == "Zs":
            kept.append(" ")
        elif kind[0] != "C" and char != "\ufffd":
            kept.append(char)
    decomposed = unicodedata.normalize("NFD", "".join(kept).lower())
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def tokenize(text: str) -> list[int]:
    """Numbers of the pieces of ``text``, without the marks at its ends."""
    found: list[int] = []
    for word in _clean(text).split():
        if word.isascii() and word.isalnum():
            found.extend(_pieces(word))
            continue
        for part in _SPLIT.findall(word):
            if "_" in part and len(part) > 1:
                for inner in re.split("(_)", part):
                    if inner:
                        found.extend(_pieces(inner))
            else:
                found.extend(_pieces(part))
    return found
