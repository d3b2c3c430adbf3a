"""How far the methods of a matrix are apart, with intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from samunet.evaluation.bootstrap import Interval, ScoreTable
from samunet.evaluation.stratified import Stratum, draw_strata
from samunet.pipeline.group_matrix.collect import Cell, GroupMatrix


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean Dice of `first` less that of `second`, over the places that all methods have."""

    first: str
    second: str
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Every method against every other one, on the same places and cases.

    Attributes:
        pairs: the better one of two first, those of the best method at the front; their intervals hold all at
            once, so whichever is looked at keeps its 95 %.
        places: (source, target) that all methods are scored on, but for targets where a single patient holds
            any class: it says nothing of others.
        fewest_units: patients (cases, where none are declared) that hold the rarest class of any target.
    """

    pairs: tuple[Difference, ...]
    places: tuple[tuple[str, str], ...]
    fewest_units: int


def differences_of(matrix: GroupMatrix) -> Differences | None:
    """Compare the methods of a matrix by Dice: the mean over the targets of a source, then over the sources.

    A class counts in a place where a reference of its cases holds it. The patients (cases) of each target
    are drawn anew, the same for all sources and methods; neither other groups nor other trainings are in the
    intervals.

    Returns:
        None with fewer than two methods, or without a place that all of them have where two patients or more
        hold a class.
    """
    methods = [method for method, cells in matrix.cells.items() if cells]
    first = matrix.cells[methods[0]] if methods else {}
    places = sorted(
        place
        for place, cell in first.items()
        if cell.num_holders > 1 and all(place in matrix.cells[method] for method in methods)
    )
    if len(methods) < 2 or not places:
        return None
    targets = Counter(source for source, _ in places)
    strata = [
        _stratum(
            [matrix.cells[method][source, target] for method in methods],
            target,
            1 / len(targets) / targets[source],
        )
        for source, target in places
    ]
    bootstrap = draw_strata(strata)
    ranked = np.argsort(-bootstrap.observed, kind="stable").tolist()
    pairs = list(combinations(ranked, 2))
    found = tuple(
        Difference(first=methods[a], second=methods[b], interval=interval)
        for (a, b), interval in zip(pairs, bootstrap.differences(pairs))
    )
    return Differences(pairs=found, places=tuple(places), fewest_units=bootstrap.fewest_units)


def _stratum(cells: list[Cell], target: str, share: float) -> Stratum:
    """The runs of every method in one place; a method's mean is that of its runs'."""
    numbers = [len(cell.dice) for cell in cells]
    runs = np.repeat(np.eye(len(cells)), numbers, axis=1) / np.array(numbers)[:, None]
    table = ScoreTable(
        values=np.concatenate([cell.dice for cell in cells]),
        present=cells[0].present,
        units=cells[0].units,
    )
    return Stratum(group=target, table=table, share=share, units=cells[0].unit_names, runs=runs)
