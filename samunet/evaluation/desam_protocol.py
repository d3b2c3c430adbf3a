"""The evaluation of the DeSAM paper's public code, for figures that are to stand beside the paper's.

It is mostly kinder than scores of whole volumes: the reference chooses the slices, and false positives near
the border do not count (what the reference has there is missed, though). So its figures are named after it
wherever they appear. By the released code (arXiv 2306.00499):

1. slices from the first to the last that hold the class in the reference, the last one excluded;
2. resized to 256 x 256 pixels (here both label maps, by the nearest pixel), and of these only those that
   hold the class then;
3. islands and holes of the prediction under 1000 pixels removed, slice by slice;
4. rows and columns of the prediction within 50 pixels of each border set to background;
5. Dice of each case over its slices together, 0 where nothing is in either; the mean over the cases.

What belongs to the prediction stays there: one mask a slice is `top_prompts=1`, and that masks of a
predicted IoU of at most 0.5 are dropped is `min_iou=0.5` of `2d_desam`.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.geometry import slice_axis
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label
from samunet.errors import SamunetError
from samunet.evaluation.case_scores import Pair, pair_geometry, shape_fault
from samunet.evaluation.scores import csv_score, mean_of
from samunet.records import write_json
from samunet.whole_files import write_text

SIZE = 256
BORDER = 50
LEAST_AREA = 1000
LABEL = "DeSAM protocol"
EXPLANATION = (
    f"{LABEL} (arXiv 2306.00499, public code): only slices that hold the class in the reference, without the "
    f"last; {SIZE} x {SIZE} pixels, islands and holes under {LEAST_AREA} pixels removed, {BORDER} pixels at "
    "each border of the prediction blanked. Comparable with that paper's figures only, not with scores of "
    "whole volumes."
)
NOTHING_COUNTS = (
    "no case holds it in two slices, of which the last does not count; images of one slice have no score by "
    "this protocol"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProtocolScores:
    """Dice by the protocol.

    Attributes:
        cases: case -> class -> Dice, NaN where the class has no slice that counts.
        groups: case -> group, where groups are known.
    """

    labels: LabelSet
    cases: dict[str, dict[str, float]]
    groups: Mapping[str, str]

    def mean(self, names: Iterable[str] | None = None) -> dict[str, float]:
        """Class -> mean Dice over the cases (those named) where it is defined."""
        chosen = list(self.cases if names is None else names)
        return {
            label: mean_of(self.cases[name][label] for name in chosen) for label in self.labels.foreground
        }

    def by_group(self) -> dict[str, dict[str, Any]]:
        """Group -> number of cases, mean per class, mean over the classes."""
        found: dict[str, dict[str, Any]] = {}
        for group in sorted({self.groups[name] for name in self.cases if name in self.groups}):
            members = [name for name in self.cases if self.groups.get(name) == group]
            mean = self.mean(members)
            found[group] = {
                "cases": len(members),
                "foreground_mean": {"Dice": mean_of(mean.values())},
                "mean": self._keyed(mean),
            }
        return found

    def save(self, path: Path) -> None:
        """Write the scores as JSON, marked as the protocol's, and as CSV beside it."""
        mean = self.mean()
        content = {
            "protocol": LABEL,
            "explanation": EXPLANATION,
            "foreground_mean": {"Dice": mean_of(mean.values())},
            "mean": self._keyed(mean),
            "metric_per_case": [
                {"case": name, "group": self.groups.get(name), "metrics": self._keyed(row)}
                for name, row in self.cases.items()
            ],
            "by_group": self.by_group(),
        }
        write_json(path, content)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "group", "class", f"Dice ({LABEL})"])
        for name, row in self.cases.items():
            for label, value in row.items():
                shown = csv_score(value)
                writer.writerow([name, self.groups.get(name, ""), label, shown])
        write_text(path.with_suffix(".csv"), text.getvalue())

    def describe(self) -> str:
        """The figures for the screen, named as the protocol's."""
        mean = self.mean()
        lines = [EXPLANATION]
        shown = {**mean, "mean of the classes": mean_of(mean.values())}
        for label, value in shown.items():
            lines.append(f"{label[:24]:24} Dice ({LABEL}) {'none' if math.isnan(value) else f'{value:.4f}'}")
        return "\n".join(lines)

    def _keyed(self, by_name: Mapping[str, float]) -> dict[str, dict[str, float]]:
        return {self.labels.summary_key(name): {"Dice": value} for name, value in by_name.items()}


def evaluate_by_protocol(
    pairs: Mapping[str, Pair], labels: LabelSet, groups: Mapping[str, str] | None = None
) -> ProtocolScores:
    """Score pairs of label files, sliced as the methods slice them.

    Args:
        pairs: case -> (reference, prediction).
        labels: classes or regions, each by itself (the paper has one class).
        groups: case -> group.

    Raises:
        SamunetError: the shapes of a pair differ.
    """
    cases: dict[str, dict[str, float]] = {}
    for name, pair in pairs.items():
        reference, stated = read_label(pair[0])
        prediction, predicted = read_label(pair[1])
        fault = shape_fault(pair, (stated.shape, predicted.shape))
        if fault is not None:
            raise SamunetError(fault)
        axis = slice_axis(pair_geometry(pair, stated, predicted).spacing_mm, reference.shape)
        reference, prediction = (np.moveaxis(array, axis, 0) for array in (reference, prediction))
        ignored = None if labels.ignore is None else reference == labels.ignore
        cases[name] = {
            label: protocol_dice(
                np.isin(reference, labels.labels[label]), np.isin(prediction, labels.labels[label]), ignored
            )
            for label in labels.foreground
        }
    scores = ProtocolScores(labels, cases, dict(groups or {}))
    without = [label for label, value in scores.mean().items() if math.isnan(value)]
    if without:
        logger.warning("The %s has no Dice of %s: %s.", LABEL, ", ".join(without), NOTHING_COUNTS)
    return scores


def protocol_dice(reference: np.ndarray, prediction: np.ndarray, ignored: np.ndarray | None = None) -> float:
    """Dice of two masks (Z, Y, X) by the protocol; NaN where no slice counts.

    Voxels that are `ignored` (no paper's matter: ours, as in all scores) count as not predicted.
    """
    counted = counted_slices(reference)
    both = sizes = 0
    for index, sought in counted.items():
        found = blank_border(without_small_parts(to_square(prediction[index])))
        if ignored is not None:
            found &= ~to_square(ignored[index])
        both += int(np.count_nonzero(sought & found))
        sizes += int(np.count_nonzero(sought)) + int(np.count_nonzero(found))
    return 2 * both / sizes if counted else math.nan


def counted_slices(reference: np.ndarray) -> dict[int, np.ndarray]:
    """Number -> mask (SIZE, SIZE) of the slices that hold the class, less the last of them and those in which
    it is too small for a pixel of the square."""
    held = np.flatnonzero(reference.any((1, 2)))[:-1].tolist()
    squares = {index: to_square(reference[index]) for index in held}
    return {index: square for index, square in squares.items() if square.any()}


def to_square(mask: np.ndarray) -> np.ndarray:
    """A mask (Y, X) on SIZE x SIZE pixels by the nearest pixel."""
    rows, columns = (((np.arange(SIZE) + 0.5) * n / SIZE).astype(int) for n in mask.shape)
    return mask[np.ix_(rows, columns)]


def without_small_parts(mask: np.ndarray) -> np.ndarray:
    """A mask without holes and islands under LEAST_AREA pixels (8 neighbours).

    Holes first, as SAM's mask generator. Where every island is small the largest stays.
    """
    filled = mask | _small(~mask)
    small = _small(filled)
    return filled & ~small if (filled & ~small).any() else _largest(filled)


def _small(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    parts, _ = label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())
    is_small = areas < LEAST_AREA
    is_small[0] = False
    return np.asarray(is_small[parts])


def _largest(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    parts, number = label(mask, np.ones((3, 3)))
    if not number:
        return mask
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def blank_border(mask: np.ndarray) -> np.ndarray:
    """A mask (SIZE, SIZE) with BORDER rows and columns at each side set to background."""
    blanked = np.zeros_like(mask)
    inner = slice(BORDER, SIZE - BORDER)
    blanked[inner, inner] = mask[inner, inner]
    return blanked
