"""Scores of many cases: means that skip what is not defined, counts of what was skipped, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from samunet.data.labels import LabelSet
from samunet.records import write_json
from samunet.whole_files import write_text

OVERLAP_METRICS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")
"""nnU-Net's keys."""
OTHER_METRICS = ("SurfaceDice", "HD95", "ASSD", "VolumeError_ml", "VolumeError_percent")
METRICS = OVERLAP_METRICS + OTHER_METRICS
SHARES = ("Dice", "IoU", "SurfaceDice")
"""From 0 to 1."""
DISTANCES = ("HD95", "ASSD")
"""In mm, lower is better; not defined for a structure that was missed."""
MOST_SHOWN_GROUPS = 12
"""More groups are patients rather than sites, and no table for a screen."""

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ReferenceContent:
    """What a case was scored against, to tell whether the label was corrected between two evaluations.

    Attributes:
        voxels: class or region name -> voxels of the reference, ignored ones not counted.
        digest: of the reference's classes, voxel by voxel; None in the summaries of earlier versions.
    """

    voxels: dict[str, float]
    digest: str | None

    def differs(self, other: ReferenceContent) -> bool:
        """Whether the two were not the same label; where a digest is missing, as far as voxels tell."""
        if self.digest is None or other.digest is None:
            return self.voxels != other.voxels
        return self.digest != other.digest


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """Scores of one case.

    Attributes:
        group / patient: where it comes from, as far as that is declared.
        metrics: class or region name -> metric -> value, NaN where it is not defined.
        reference_digest: see `ReferenceContent`.
    """

    name: str
    reference_file: str
    prediction_file: str
    group: str | None
    metrics: dict[str, Scores]
    patient: str | None = None
    reference_digest: str | None = None

    @property
    def reference(self) -> ReferenceContent:
        """What it was scored against."""
        voxels = {name: scores["n_ref"] for name, scores in self.metrics.items()}
        return ReferenceContent(voxels=voxels, digest=self.reference_digest)


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases of a folder.

    Attributes:
        labels: what the keys mean.
        tolerance_mm: of the surface Dice.
        cases: in the order of their names.
        skipped: references without a prediction that were left out on request.
    """

    labels: LabelSet
    tolerance_mm: float
    cases: tuple[CaseScores, ...]
    skipped: tuple[str, ...] = ()

    @cached_property
    def mean(self) -> dict[str, Scores]:
        """Class name -> metric -> mean over the cases where it is defined; NaN where it never is."""
        return self._mean(self.cases)

    @cached_property
    def foreground_mean(self) -> Scores:
        """Metric -> mean over the classes that have a mean."""
        return _over_classes(self.mean)

    @cached_property
    def absent_everywhere(self) -> tuple[str, ...]:
        """Classes that neither a reference nor a prediction of any case holds; the means leave them out."""
        return tuple(
            name for name in self.labels.foreground if self.counts[name]["absent"] == len(self.cases)
        )

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Class name -> cases in all, found, missed, spurious (predicted only), absent (in neither)."""
        return {name: self._count(name) for name in self.labels.foreground}

    @property
    def missed(self) -> int:
        """Objects (a class of a case) that are not found at all, and have no distance."""
        return sum(counted["missed"] for counted in self.counts.values())

    def by_group(self) -> dict[str, dict[str, Any]]:
        """Group -> number of cases, means per class, foreground mean. Empty without groups."""
        groups = sorted({case.group for case in self.cases if case.group is not None})
        result = {}
        for group in groups:
            members = [case for case in self.cases if case.group == group]
            mean = self._mean(members)
            result[group] = {
                "cases": len(members),
                "foreground_mean": _over_classes(mean),
                "mean": self._keyed(mean),
            }
        return result

    def save(self, path: Path) -> None:
        """Write summary.json: nnU-Net's keys, and ours beside them."""
        per_case = [
            {
                "case": case.name,
                "group": case.group,
                **({} if case.patient is None else {"patient": case.patient}),
                "metrics": self._keyed(case.metrics),
                "prediction_file": case.prediction_file,
                "reference_file": case.reference_file,
                **({} if case.reference_digest is None else {"reference_digest": case.reference_digest}),
            }
            for case in self.cases
        ]
        content = {
            "foreground_mean": self.foreground_mean,
            "mean": self._keyed(self.mean),
            "metric_per_case": per_case,
            "classes": {self.labels.summary_key(name): name for name in self.labels.foreground},
            "counts": self._keyed(self.counts),
            "absent_everywhere": list(self.absent_everywhere),
            "tolerance_mm": self.tolerance_mm,
            "by_group": self.by_group(),
            "skipped": list(self.skipped),
        }
        write_json(path, content)

    def save_csv(self, path: Path) -> None:
        """Write one row per case and class; an empty cell is a value that is not defined."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "group", "class", "label", *METRICS])
        for case in self.cases:
            for name, scores in case.metrics.items():
                cells = [csv_score(scores[m]) for m in METRICS]
                row = [case.name, case.group or "", name, self.labels.summary_key(name), *cells]
                writer.writerow(row)
        write_text(path, text.getvalue())

    def describe(self) -> str:
        """A table of the means for the screen, with what the means leave out."""
        columns = f"{'Dice':>7} {'sDice':>7} {'HD95 mm':>8} {'ASSD mm':>8} {'error ml':>9}"
        lines = [f"{'class':24} {columns} {'cases':>6}"]
        for name, scores in self.mean.items():
            if name not in self.absent_everywhere:
                lines.append(_row(name, scores, len(self.cases) - self.counts[name]["absent"]))
        lines.append(_row("mean of the classes", self.foreground_mean, len(self.cases)))
        by_group = self.by_group()
        for group in shown_groups(by_group):
            found = by_group[group]
            lines.append(_row(f"  of group {group}", found["foreground_mean"], found["cases"]))
        for name in self.absent_everywhere:
            lines.append(f"{name} is in no reference and no prediction; the means leave it out.")
        for name, count in self.counts.items():
            one_sided = count["missed"] + count["spurious"]
            if one_sided:
                lines.append(
                    f"{name}: missed in {count['missed']} case(s), predicted where it is not in "
                    f"{count['spurious']}; these have Dice 0 and no distance."
                )
        return "\n".join(lines)

    def _mean(self, cases: Sequence[CaseScores]) -> dict[str, Scores]:
        return {
            name: {metric: mean_of(case.metrics[name][metric] for case in cases) for metric in METRICS}
            for name in self.labels.foreground
        }

    def _count(self, name: str) -> dict[str, int]:
        present = [(c.metrics[name]["n_ref"] > 0, c.metrics[name]["n_pred"] > 0) for c in self.cases]
        return {
            "cases": len(present),
            "found": present.count((True, True)),
            "missed": present.count((True, False)),
            "spurious": present.count((False, True)),
            "absent": present.count((False, False)),
        }

    def _keyed(self, by_name: dict[str, Any]) -> dict[str, Any]:
        return {self.labels.summary_key(name): value for name, value in by_name.items()}


def shown_groups(groups: Iterable[str | None]) -> list[str]:
    """The groups that a table shows, sorted: none where there is one alone, or more than a table is for."""
    found = sorted({group for group in groups if group is not None})
    return found if 1 < len(found) <= MOST_SHOWN_GROUPS else []


def mean_of(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def shown_score(value: float) -> str:
    """A score in a table for the screen; `-` where there is none."""
    return "-" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def csv_score(value: float) -> str:
    """A score in a CSV file, with all its digits; empty where there is none."""
    return "" if math.isnan(value) else repr(value)


def json_score(value: float) -> float | None:
    """A score in a JSON file; null where there is none."""
    return None if math.isnan(value) else value


def _over_classes(mean: dict[str, Scores]) -> Scores:
    return {metric: mean_of(scores[metric] for scores in mean.values()) for metric in METRICS}


def _row(name: str, scores: Scores, num_cases: int) -> str:
    return (
        f"{name[:24]:24} {scores['Dice']:7.4f} {scores['SurfaceDice']:7.4f} {scores['HD95']:8.2f} "
        f"{scores['ASSD']:8.2f} {scores['VolumeError_ml']:9.3g} {num_cases:6d}"
    )
