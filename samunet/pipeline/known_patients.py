"""Scored cases of patients whom the training of their fold knew by other cases: their scores are too good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samunet.data.groups import Origins, Unit, of_known_units


@dataclass(frozen=True, kw_only=True)
class KnownPatients:
    """How many scored cases are of patients (or groups, which may be patients) with cases in training.

    Attributes:
        cases: 0 where there are none.
        unit: what was declared.
    """

    cases: int
    unit: Unit

    def text(self) -> str:
        """A sentence, with the split that keeps patients together; empty where there are no such cases."""
        if not self.cases:
            return ""
        start = (
            f"{self.cases} of the cases {'is of a' if self.cases == 1 else 'are of'} {self.unit}"
            f"{'s' * (self.cases > 1)} with other cases in the training of the fold: "
        )
        scheme = f"samunet_train --splits {self.unit}_kfold keeps {self.unit}s together."
        if self.unit == "patient":
            return f"{start}such scores are too good. {scheme}"
        return f"{start}where groups are patients, such scores are too good. {scheme}"


def known_patients(origins: Origins, folds: Iterable[tuple[Iterable[str], Iterable[str]]]) -> KnownPatients:
    """Count the cases.

    Args:
        origins: of all cases, those of the trainings too.
        folds: names of the training cases and of the scored ones of each fold.
    """
    found = [of_known_units(origins.units, train, scored) for train, scored in folds]
    return KnownPatients(cases=len(set().union(*found)), unit=origins.unit)
