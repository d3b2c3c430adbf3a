"""Reading summary.json back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.scores import METRICS, CaseScores, ReferenceContent, Scores
from samunet.records import read_json


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is needed of a summary.json.

    Attributes:
        tolerance_mm: of the surface Dice.
        entries: the cases with their files, groups and scores.
    """

    tolerance_mm: float
    entries: tuple[CaseScores, ...]

    @property
    def cases(self) -> dict[str, dict[str, Scores]]:
        """Case name -> class or region name -> metric -> value, NaN where it is not defined."""
        return {entry.name: entry.metrics for entry in self.entries}

    @property
    def references(self) -> dict[str, ReferenceContent]:
        """Case name -> what it was scored against."""
        return {entry.name: entry.reference for entry in self.entries}

    @property
    def origins(self) -> Origins:
        """Groups and patients of the cases, as they were declared when they were scored."""
        return origins_of(self.entries)


class ScoredEntry(Protocol):
    """A case with what was declared of where it comes from."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str | None: ...
    @property
    def patient(self) -> str | None: ...


def origins_of(entries: Iterable[ScoredEntry]) -> Origins:
    """Groups and patients of scored cases."""
    entries = list(entries)
    return Origins(
        groups={entry.name: entry.group for entry in entries if entry.group is not None},
        patients={entry.name: entry.patient for entry in entries if entry.patient is not None},
    )


def read_summary(file: Path, labels: LabelSet) -> Summary:
    """Read a summary that `Evaluation.save` wrote.

    Raises:
        SamunetError: no such file, not one of ours, or scores of other classes than `labels` has.
    """
    content = read_json(file)
    expected = {labels.summary_key(name): name for name in labels.foreground}
    try:
        classes, per_case = dict(content["classes"]), list(content["metric_per_case"])
        if classes == expected:
            entries = tuple(_entry(entry, classes) for entry in per_case)
            return Summary(tolerance_mm=float(content["tolerance_mm"]), entries=entries)
    except (KeyError, TypeError, ValueError) as fault:
        raise SamunetError(
            f"{file} is not a summary of samunet ({type(fault).__name__}: {fault}). Evaluate again."
        ) from fault
    told = ", ".join(map(str, classes.values()))
    raise SamunetError(f"{file} scores {told}, but the dataset has {', '.join(expected.values())}.")


def _entry(entry: Mapping[str, Any], classes: Mapping[str, str]) -> CaseScores:
    return CaseScores(
        name=str(entry["case"]),
        reference_file=str(entry["reference_file"]),
        prediction_file=str(entry["prediction_file"]),
        group=_text_or_none(entry["group"]),
        patient=_text_or_none(entry.get("patient")),
        reference_digest=_text_or_none(entry.get("reference_digest")),
        metrics={
            name: {metric: float(entry["metrics"][key][metric]) for metric in METRICS}
            for key, name in classes.items()
        },
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
