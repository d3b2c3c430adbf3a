"""What a shift suite found: scores by method and condition, how far they fell, and between the methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from samunet.data.cases import Case
from samunet.evaluation.bootstrap import Bootstrap, Interval, ScoreTable
from samunet.evaluation.scores import mean_of
from samunet.evaluation.shifts import Condition
from samunet.workspace import Fold as Fold  # for those who read a result


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Scores of one method under one condition.

    Attributes:
        foreground_mean: metric -> mean over the classes of the means over the cases.
        dice: (cases, classes), NaN where it is not defined.
        present: bool (cases, classes), which references hold which classes.
        missed: objects (a class of a case) that are not found at all, and have no distance.
    """

    condition: Condition
    foreground_mean: dict[str, float]
    dice: np.ndarray
    present: np.ndarray
    missed: int = 0


@dataclass(frozen=True, kw_only=True)
class BetweenMethods:
    """Points in which `first` is ahead of `second`: in mean Dice on changed images, and in how little it lost
    against its clean images."""

    first: str
    second: str
    changed: Interval
    kept: Interval


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Outcomes by method, the clean images first.

    Attributes:
        units: (cases,) number of the patient of each case; the case's own where none are declared.
        colours: channels that hold colours of 8 bits.
    """

    dataset: str
    fold: Fold
    seed: int
    cases: tuple[Case, ...]
    outcomes: dict[str, tuple[Outcome, ...]]
    units: np.ndarray
    colours: tuple[int, ...] = ()

    @property
    def fewest_units(self) -> int:
        """Patients (cases) who hold the rarest class."""
        return self._drawn.fewest_units

    def value(self, method: str, kind: str, severity: int, metric: str) -> float:
        """NaN where the condition was not asked for; severity 0 is the clean images'."""
        outcome = self._outcome(method, kind, severity)
        return math.nan if outcome is None else outcome.foreground_mean[metric]

    def mean_shifted(self, method: str, metric: str) -> float:
        """Mean over all conditions but the clean images."""
        return mean_of(o.foreground_mean[metric] for o in self.outcomes[method] if o.condition.severity)

    def missed(self, method: str, kind: str, severity: int) -> int:
        """Objects that were not found at all; 0 where the condition was not asked for."""
        outcome = self._outcome(method, kind, severity)
        return 0 if outcome is None else outcome.missed

    def fall(self, method: str, kind: str, severity: int) -> Interval:
        """Mean Dice less that of the clean images, with its interval: patients are drawn, each with both.

        A class counts where a reference holds it. No bounds with a single patient.
        """
        outcome = self._outcome(method, kind, severity)
        if outcome is None:
            return Interval(math.nan, math.nan, math.nan)
        return self._falls[method, outcome.condition.name]

    @cached_property
    def _falls(self) -> dict[tuple[str, str], Interval]:
        """Method, condition -> its fall; for table, record and picture."""
        falls, clean = {}, 0
        for method, outcomes in self.outcomes.items():
            for number, outcome in enumerate(outcomes, start=clean):
                falls[method, outcome.condition.name] = self._drawn.differences([(number, clean)])[0]
            clean += len(outcomes)
        return falls

    @cached_property
    def between(self) -> tuple[BetweenMethods, ...]:
        """All pairs of methods, each kind of interval all at once; empty for one method."""
        methods = list(self.outcomes)
        pairs = list(combinations(range(len(methods)), 2))
        if not pairs:
            return ()
        conditions = [outcome.condition for outcome in self.outcomes[methods[0]]]
        is_changed = np.array([condition.severity > 0 for condition in conditions], float)
        own = np.eye(len(methods))
        changed = np.kron(own, is_changed / is_changed.sum())
        clean = np.kron(own, (1 - is_changed) / (1 - is_changed).sum())
        ahead = self._drawn.combined(changed).differences(pairs)
        kept = self._drawn.combined(changed - clean).differences(pairs)
        return tuple(
            BetweenMethods(first=methods[a], second=methods[b], changed=one, kept=other)
            for (a, b), one, other in zip(pairs, ahead, kept)
        )

    def _outcome(self, method: str, kind: str, severity: int) -> Outcome | None:
        for outcome in self.outcomes[method]:
            condition = outcome.condition
            if condition.severity == severity and (severity == 0 or condition.kind == kind):
                return outcome
        return None

    @cached_property
    def _drawn(self) -> Bootstrap:
        """Every method under every condition, one method after the other: the same patients for all."""
        outcomes = [outcome for of_method in self.outcomes.values() for outcome in of_method]
        table = ScoreTable(
            values=np.array([outcome.dice for outcome in outcomes]),
            present=outcomes[0].present,  # the references are those of every outcome
            units=self.units,
        )
        return Bootstrap.draw(table)
