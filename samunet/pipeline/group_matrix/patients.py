"""Target cases of patients who have cases in the source too: the training knew them, so they say nothing of
another group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from samunet.data.groups import Origins, of_known_units

Place = tuple[str, str]
"""Source and target group."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The cases of each target that count for each source.

    Attributes:
        counted: (source, target) -> cases by name; none where all patients of the target are in the source.
        members: group -> all of its cases.
    """

    counted: dict[Place, tuple[str, ...]]
    members: Mapping[str, Sequence[str]]

    def testable(self, source: str) -> list[str]:
        """The targets of a source that have cases that count."""
        return [target for (own, target), cases in self.counted.items() if own == source and cases]

    def left_out(self) -> dict[Place, int]:
        """Number of cases that do not count, where there are any."""
        lacking = {place: len(self.members[place[1]]) - len(cases) for place, cases in self.counted.items()}
        return {place: number for place, number in lacking.items() if number}

    def untestable(self) -> tuple[Place, ...]:
        """Places without a case that counts."""
        return tuple(place for place, cases in self.counted.items() if not cases)


def known_to_source(origins: Origins, source: str, names: Iterable[str]) -> set[str]:
    """The cases among `names` of patients who have cases in the source group, as both are declared today."""
    own = [case for case, group in origins.groups.items() if group == source]
    return of_known_units(origins.patients, own, names)


def targets_of(origins: Origins, members: Mapping[str, Sequence[str]], sources: Sequence[str]) -> Targets:
    """Which cases count, by the patients that are declared today; where none are, all do.

    Args:
        members: group -> its cases by name.
        sources: groups that can be trained on.
    """
    counted = {}
    for source in sources:
        for target in sorted(members):
            if target != source:
                known = known_to_source(origins, source, members[target])
                counted[source, target] = tuple(case for case in members[target] if case not in known)
    return Targets(counted=counted, members=members)
