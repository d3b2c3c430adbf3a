"""The envelope of the training cases: in which respects a new case lies outside, in plain words.

The ranges come from the fingerprint beside the model and need no calibration. A flag says that the model has
not seen the like, not that the segmentation is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from samunet.inference.case_features import CaseFeatures, InputFacts, voxel_volume_ml
from samunet.planning.fingerprint import CaseFingerprint, ChannelStatistics, Fingerprint
from samunet.planning.plan import Normalization

SPACING_SLACK = 1.1
"""Factor beyond the training range of spacings."""
EXTENT_SLACK = 1.5
"""Factor beyond the training range of lengths in mm of the image (after the crop)."""
VOLUME_SLACK = 2.0
"""Factor beyond the training range of a class's volume."""
INTENSITY_SLACK = 0.5
"""Share of the width of the training range that is added on both sides."""
ALWAYS_THERE = 0.95
"""A class in at least this share of the training cases is expected in every case."""
FEWEST_CASES = 3
"""Below this many training cases intensities and volumes have no range worth the name."""
FARTHEST = 10.0
"""Standard deviations from the training cases count up to here."""
PER_CASE_SCALE = ("zscore", "rescale_to_0_1")
"""Normalisations that make the scale of intensities irrelevant: only their shape is compared."""

Topic = Literal["dimension", "spacing", "extent", "orientation", "intensity", "class", "volume"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One respect in which a case is unlike the training cases; the reason has the figures."""

    topic: Topic
    reason: str


class Envelope:
    """Ranges of the training cases of a model."""

    def __init__(self, fingerprint: Fingerprint, normalization: Sequence[Normalization]) -> None:
        """The normalisation per channel decides how intensities compare; see `PER_CASE_SCALE`."""
        self.fingerprint = fingerprint
        self.normalization = tuple(normalization)

    def flags(self, features: CaseFeatures) -> tuple[Flag, ...]:
        """Everything in which a case lies outside; empty when nothing does."""
        facts = features.input
        found = [*self._dimension(facts)]
        if not found:  # a slice of a volume has no spacing or length in common with volumes
            found += [*self._spacing(facts), *self._extent(facts), *self._orientation(facts)]
        found += self._intensity(facts)
        found += self._classes(features)
        return tuple(found)

    def distance(self, features: CaseFeatures) -> float | None:
        """Root mean square z-score of the image's intensity statistics among the training cases.

        A training case itself (by name) is compared with the others, so that a case of the validation is no
        nearer than a new one. None below three others.
        """
        others = self._table[[case.name != features.case for case in self.fingerprint.cases]]
        if len(others) < FEWEST_CASES:
            return None
        off = np.abs(self._row(features.input.channels) - others.mean(axis=0))
        spread = others.std(axis=0, ddof=1)
        scores = np.where(spread > 0, off / np.where(spread > 0, spread, 1), FARTHEST * (off > 0))
        return float(np.sqrt(np.mean(np.square(scores.clip(max=FARTHEST)))))

    @cached_property
    def _table(self) -> np.ndarray:
        """Intensity measures of the training cases, one case a row."""
        return np.array([self._row(case.channels) for case in self.fingerprint.cases])

    def _row(self, channels: Sequence[ChannelStatistics]) -> np.ndarray:
        pairs = zip(channels, self.normalization)
        return np.array([value for channel, kind in pairs for value in _measures(channel, kind).values()])

    def _dimension(self, facts: InputFacts) -> Iterator[Flag]:
        kinds = {case.is_2d for case in self.fingerprint.cases}
        if facts.is_2d not in kinds:
            words = ("a plane", "volumes") if facts.is_2d else ("a volume", "planes")
            yield Flag(topic="dimension", reason=f"the image is {words[0]}; training had {words[1]}")

    def _axes(self, facts: InputFacts) -> list[tuple[int, str]]:
        return [(axis, name) for axis, name in enumerate("zyx") if not (facts.is_2d and axis == 0)]

    def _spacing(self, facts: InputFacts) -> Iterator[Flag]:
        for axis, name in self._axes(facts):
            low, high = _range(case.spacing_mm[axis] for case in self.fingerprint.cases)
            own = facts.spacing_mm[axis]
            if not low / SPACING_SLACK <= own <= high * SPACING_SLACK:
                reason = f"spacing {name} {own:.4g} mm; training had {_span(low, high)} mm"
                yield Flag(topic="spacing", reason=reason)

    def _extent(self, facts: InputFacts) -> Iterator[Flag]:
        for axis, name in self._axes(facts):
            low, high = _range(c.shape_after_crop[axis] * c.spacing_mm[axis] for c in self.fingerprint.cases)
            own = facts.shape_after_crop[axis] * facts.spacing_mm[axis]
            if not low / EXTENT_SLACK <= own <= high * EXTENT_SLACK:
                reason = f"image {own:.4g} mm long along {name}; training had {_span(low, high)} mm"
                yield Flag(topic="extent", reason=reason)

    def _orientation(self, facts: InputFacts) -> Iterator[Flag]:
        if facts.is_2d:
            return
        known = sorted({orientation(case.direction) for case in self.fingerprint.cases})
        own = orientation(facts.direction)
        if own not in known:
            reason = f"axes run to {own} (x, y, z); training had {', '.join(known)}"
            yield Flag(topic="orientation", reason=reason)

    def _intensity(self, facts: InputFacts) -> Iterator[Flag]:
        cases = self.fingerprint.cases
        for channel, kind in enumerate(self.normalization):
            name, own = self.fingerprint.channel_names[channel], facts.channels[channel]
            if own.std == 0:
                yield Flag(topic="intensity", reason=f"{name}: all intensities are the same")
            elif len(cases) >= FEWEST_CASES:
                trained = [_measures(case.channels[channel], kind) for case in cases]
                yield from _outside(name, _measures(own, kind), trained)

    def _classes(self, features: CaseFeatures) -> Iterator[Flag]:
        cases = self.fingerprint.cases
        if len(cases) < FEWEST_CASES:
            return
        for name, found in features.classes.items():
            volumes = [v for case in cases if (v := class_volume_ml(case, name)) > 0]
            share = len(volumes) / len(cases)
            if not found.volume_ml:
                if share >= ALWAYS_THERE:
                    reason = f"no {name} was found; {share:.0%} of the training cases have it"
                    yield Flag(topic="class", reason=reason)
            elif volumes and not (
                min(volumes) / VOLUME_SLACK <= found.volume_ml <= max(volumes) * VOLUME_SLACK
            ):
                told = _span(min(volumes), max(volumes))
                reason = f"{name} has {found.volume_ml:.4g} ml; training had {told} ml"
                yield Flag(topic="volume", reason=reason)


def class_volume_ml(case: CaseFingerprint, name: str) -> float:
    """Volume of a class or region in a training case."""
    return case.class_voxels[name] * voxel_volume_ml(case.spacing_mm, case.is_2d)


def orientation(direction: Sequence[float]) -> str:
    """Where the image's x, y and z axes run to in the patient: `LPS` for an identity in SimpleITK's frame."""
    matrix = np.asarray(direction).reshape(3, 3)
    letters = ("RL", "AP", "IS")
    nearest = [int(np.argmax(np.abs(column))) for column in matrix.T]
    return "".join(letters[row][int(matrix[row, axis] > 0)] for axis, row in enumerate(nearest))


def _measures(channel: ChannelStatistics, kind: Normalization) -> dict[str, float]:
    """What is compared of a channel: stored units, or no scale where each case is normalised alone."""
    if kind not in PER_CASE_SCALE:
        return {
            "mean": channel.mean,
            "0.5th percentile": channel.percentile_00_5,
            "99.5th percentile": channel.percentile_99_5,
        }
    scale = channel.std or 1.0
    return {
        "0.5th percentile in SD from the mean": (channel.percentile_00_5 - channel.mean) / scale,
        "99.5th percentile in SD from the mean": (channel.percentile_99_5 - channel.mean) / scale,
    }


def _outside(name: str, own: dict[str, float], trained: Sequence[dict[str, float]]) -> Iterator[Flag]:
    for measure, value in own.items():
        low, high = _range(case[measure] for case in trained)
        slack = INTENSITY_SLACK * (high - low)
        # A figure that is the same in all training cases (air of -1024) may differ by rounding.
        slack = max(slack, 1e-3 * max(abs(low), abs(high), 1e-6))
        if not (math.isfinite(value) and low - slack <= value <= high + slack):
            reason = f"{name}: {measure} {value:.4g}; training had {_span(low, high)}"
            yield Flag(topic="intensity", reason=reason)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values)
    return min(known), max(known)


def _span(low: float, high: float) -> str:
    one, other = f"{low:.4g}", f"{high:.4g}"
    return one if one == other else f"{one} to {other}"
