"""Left and right structures: found by name, so that mirroring along that axis can be left out."""

from __future__ import annotations

import re
from collections.abc import Iterable

LEFT = frozenset({"left", "l", "lt", "lft", "sin", "sinister", "links"})
RIGHT = frozenset({"right", "r", "rt", "rgt", "dex", "dexter", "rechts"})


def left_right_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of class names that are equal but for the side, in the order of the left ones.

    A side is a word of its own (`kidney_left`, `Left Kidney`, `R-parotid`, `kidneyLeft`); letters inside
    abbreviations such as LV and RV do not count.
    """
    lefts: dict[tuple[str, ...], str] = {}
    rights: dict[tuple[str, ...], str] = {}
    for name in names:
        words = _words(name)
        if any(word in LEFT for word in words):
            lefts[_without_side(words)] = name
        elif any(word in RIGHT for word in words):
            rights[_without_side(words)] = name
    return tuple((left, rights[key]) for key, left in lefts.items() if key in rights)


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]


def _without_side(words: list[str]) -> tuple[str, ...]:
    return tuple("*" if word in LEFT or word in RIGHT else word for word in words)
