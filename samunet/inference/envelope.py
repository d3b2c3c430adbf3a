"""The envelope of the training cases: in which respects a new case lies outside, in plain words.

The ranges come from the fingerprint beside the model, or from its envelope in a model that was installed, and
need no calibration. A flag says that the model has
not seen the like, not that the segmentation is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samunet.inference.case_features import CaseFeatures, InputFacts
from samunet.planning.fingerprint import ChannelStatistics, Fingerprint
from samunet.planning.fingerprint_envelope import (
    ChannelSpread,
    FingerprintEnvelope,
    Spread,
    envelope_of,
    orientation,
)
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
    """Ranges of the training cases of a model.

    Args:
        ranges: of the fingerprint.
        normalization: per channel; it decides how intensities compare, see `PER_CASE_SCALE`.
        cases: intensities of each training case by name, where they are known; see `distance`.
    """

    def __init__(
        self,
        ranges: FingerprintEnvelope,
        normalization: Sequence[Normalization],
        cases: Mapping[str, Sequence[ChannelStatistics]] | None = None,
    ) -> None:
        self.ranges = ranges
        self.normalization = tuple(normalization)
        self.cases = dict(cases or {})

    @classmethod
    def of(cls, fingerprint: Fingerprint, normalization: Sequence[Normalization]) -> Envelope:
        """The envelope of a fingerprint, which knows its single cases."""
        cases = {case.name: case.channels for case in fingerprint.cases}
        return cls(envelope_of(fingerprint), normalization, cases)

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
        if features.case in self.cases:
            others = np.array([self._row(c) for name, c in self.cases.items() if name != features.case])
            if len(others) < FEWEST_CASES:
                return None
            mean, spread = others.mean(axis=0), others.std(axis=0, ddof=1)
        elif self.ranges.cases < FEWEST_CASES:
            return None
        else:
            pairs = zip(self.ranges.channels, self.normalization)
            known = [found for channel, kind in pairs for found in _spreads(channel, kind).values()]
            mean, spread = (np.array([getattr(s, key) for s in known]) for key in ("mean", "std"))
        off = np.abs(self._row(features.input.channels) - mean)
        rounding = 1e-9 * np.maximum(np.abs(mean), 1)  # a figure that is the same in all cases has no spread
        varied = spread > rounding
        scores = np.where(varied, off / np.where(varied, spread, 1), FARTHEST * (off > rounding))
        return float(np.sqrt(np.mean(np.square(scores.clip(max=FARTHEST)))))

    def _row(self, channels: Sequence[ChannelStatistics]) -> np.ndarray:
        pairs = zip(channels, self.normalization)
        return np.array([value for channel, kind in pairs for value in _measures(channel, kind).values()])

    def _dimension(self, facts: InputFacts) -> Iterator[Flag]:
        alike = self.ranges.planes if facts.is_2d else self.ranges.cases - self.ranges.planes
        if not alike:
            words = ("a plane", "volumes") if facts.is_2d else ("a volume", "planes")
            yield Flag(topic="dimension", reason=f"the image is {words[0]}; training had {words[1]}")

    def _axes(self, facts: InputFacts) -> list[tuple[int, str]]:
        return [(axis, name) for axis, name in enumerate("zyx") if not (facts.is_2d and axis == 0)]

    def _spacing(self, facts: InputFacts) -> Iterator[Flag]:
        for axis, name in self._axes(facts):
            low, high = self.ranges.spacing_mm[axis].min, self.ranges.spacing_mm[axis].max
            own = facts.spacing_mm[axis]
            if not low / SPACING_SLACK <= own <= high * SPACING_SLACK:
                reason = f"spacing {name} {own:.4g} mm; training had {_span(low, high)} mm"
                yield Flag(topic="spacing", reason=reason)

    def _extent(self, facts: InputFacts) -> Iterator[Flag]:
        for axis, name in self._axes(facts):
            low, high = self.ranges.extent_mm[axis].min, self.ranges.extent_mm[axis].max
            own = facts.shape_after_crop[axis] * facts.spacing_mm[axis]
            if not low / EXTENT_SLACK <= own <= high * EXTENT_SLACK:
                reason = f"image {own:.4g} mm long along {name}; training had {_span(low, high)} mm"
                yield Flag(topic="extent", reason=reason)

    def _orientation(self, facts: InputFacts) -> Iterator[Flag]:
        if facts.is_2d:
            return
        own = orientation(facts.direction)
        if own not in self.ranges.orientations:
            reason = f"axes run to {own} (x, y, z); training had {', '.join(self.ranges.orientations)}"
            yield Flag(topic="orientation", reason=reason)

    def _intensity(self, facts: InputFacts) -> Iterator[Flag]:
        for own, trained, kind in zip(facts.channels, self.ranges.channels, self.normalization):
            if own.std == 0:
                yield Flag(topic="intensity", reason=f"{trained.name}: all intensities are the same")
            elif self.ranges.cases >= FEWEST_CASES:
                yield from _outside(trained.name, _measures(own, kind), _spreads(trained, kind))

    def _classes(self, features: CaseFeatures) -> Iterator[Flag]:
        if self.ranges.cases < FEWEST_CASES:
            return
        for name, found in features.classes.items():
            trained = self.ranges.classes[name]
            share, volume = trained.cases / self.ranges.cases, trained.volume
            if not found.volume_ml:
                if share >= ALWAYS_THERE:
                    reason = f"no {name} was found; {share:.0%} of the training cases have it"
                    yield Flag(topic="class", reason=reason)
            elif volume is not None and not (
                volume.min / VOLUME_SLACK <= found.volume_ml <= volume.max * VOLUME_SLACK
            ):
                told = _span(volume.min, volume.max)
                reason = f"{name} has {found.volume_ml:.4g} ml; training had {told} ml"
                yield Flag(topic="volume", reason=reason)


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


def _spreads(channel: ChannelSpread, kind: Normalization) -> dict[str, Spread]:
    """The same measures over the training cases."""
    if kind not in PER_CASE_SCALE:
        return {
            "mean": channel.mean,
            "0.5th percentile": channel.percentile_00_5,
            "99.5th percentile": channel.percentile_99_5,
        }
    return {
        "0.5th percentile in SD from the mean": channel.low_in_std,
        "99.5th percentile in SD from the mean": channel.high_in_std,
    }


def _outside(name: str, own: Mapping[str, float], trained: Mapping[str, Spread]) -> Iterator[Flag]:
    for measure, value in own.items():
        low, high = trained[measure].min, trained[measure].max
        slack = INTENSITY_SLACK * (high - low)
        # A figure that is the same in all training cases (air of -1024) may differ by rounding.
        slack = max(slack, 1e-3 * max(abs(low), abs(high), 1e-6))
        if not (math.isfinite(value) and low - slack <= value <= high + slack):
            reason = f"{name}: {measure} {value:.4g}; training had {_span(low, high)}"
            yield Flag(topic="intensity", reason=reason)


def _span(low: float, high: float) -> str:
    one, other = f"{low:.4g}", f"{high:.4g}"
    return one if one == other else f"{one} to {other}"
