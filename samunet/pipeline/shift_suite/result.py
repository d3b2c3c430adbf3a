"""What a shift suite found: scores by method and condition, how far they fell, and between the methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from samunet.data.cases import Case
from samunet.evaluation.bootstrap import Bootstrap, Interval, ScoreTable, mean_defined
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
    """

    condition: Condition
    foreground_mean: dict[str, float]
    dice: np.ndarray
    present: np.ndarray


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
    """

    dataset: str
    fold: Fold
    seed: int
    cases: tuple[Case, ...]
    outcomes: dict[str, tuple[Outcome, ...]]
    units: np.ndarray

    @property
    def num_units(self) -> int:
        """Patients (cases)."""
        return int(self.units.max()) + 1

    def value(self, method: str, kind: str, severity: int, metric: str) -> float:
        """NaN where the condition was not asked for; severity 0 is the clean images'."""
        outcome = self._outcome(method, kind, severity)
        return math.nan if outcome is None else outcome.foreground_mean[metric]

    def mean_shifted(self, method: str, metric: str) -> float:
        """Mean over all conditions but the clean images."""
        return mean_of(o.foreground_mean[metric] for o in self.outcomes[method] if o.condition.severity)

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
        """Method, condition -> its fall; drawn once for table, record and picture."""
        return {
            (method, outcome.condition.name): self._differences([outcome.dice, outcomes[0].dice], [(0, 1)])[0]
            for method, outcomes in self.outcomes.items()
            for outcome in outcomes
        }

    @cached_property
    def between(self) -> tuple[BetweenMethods, ...]:
        """All pairs of methods, each kind of interval all at once; empty for one method."""
        methods = list(self.outcomes)
        pairs = list(combinations(range(len(methods)), 2))
        if not pairs:
            return ()
        clean, changed = [], []
        for outcomes in self.outcomes.values():
            clean.append(outcomes[0].dice)
            changed.append(mean_defined([o.dice for o in outcomes if o.condition.severity]))
        ahead = self._differences(changed, pairs)
        kept = self._differences([after - before for after, before in zip(changed, clean)], pairs)
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

    def _differences(self, dice: list[np.ndarray], pairs: list[tuple[int, int]]) -> list[Interval]:
        present = next(iter(self.outcomes.values()))[0].present  # the references are those of every outcome
        table = ScoreTable(values=np.array(dice), present=present, units=self.units)
        return Bootstrap.draw(table).differences(pairs)
