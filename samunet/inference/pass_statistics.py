"""What the single passes of the networks say about a case: how sure they are, and whether flipping matters.

Every figure is a ratio of sums over tiles and over *single* passes of *single* networks, taken before
anything is averaged. So it means the same for an out-of-fold case, which one network predicts, as for a new
case, which all folds predict; and nothing of the image's size is kept, only a few numbers a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from samunet.data.labels import LabelSet
from samunet.inference.sliding_window import WindowSettings, gaussian_weights, inside_padding

_FOUND, _OVERLAP, _EXPECTED, _ENTROPY, _AGREED, _COMPARED = range(6)
_INTENSITY = 6
"""First of the sums of intensities, one a channel."""


@dataclass(frozen=True, kw_only=True)
class PassFigures:
    """One class in the passes of the networks; None where it is not defined.

    Attributes:
        soft_dice: Dice that the unflipped passes expect of themselves, 2 sum(p m) / (sum(p) + sum(m)), m
            being where the class is found and p its probability everywhere.
        entropy: mean over m of the voxel's entropy, over its largest value (0 sure, 1 not at all).
        mirror_disagreement: 1 - Dice of the flipped passes' m with the unflipped pass's, all flips pooled;
            None without mirroring.
        intensity: mean over m of each channel of the preprocessed image.
    """

    soft_dice: float | None
    entropy: float | None
    mirror_disagreement: float | None
    intensity: tuple[float, ...] | None


def mean_figures(parts: Sequence[tuple[Mapping[str, PassFigures], int]]) -> dict[str, PassFigures]:
    """Figures of several configurations as one: means over their networks.

    Args:
        parts: figures by class, and from how many networks they come.

    Returns:
        Figures by class, each the mean over those that define it. Intensities are left out: configurations
        may preprocess images differently.
    """

    def mean(name: str, key: str) -> float | None:
        known = [(getattr(figures[name], key), number) for figures, number in parts]
        known = [(value, number) for value, number in known if value is not None]
        total = sum(number for _, number in known)
        return sum(value * number for value, number in known) / total if total else None

    return {
        name: PassFigures(
            soft_dice=mean(name, "soft_dice"),
            entropy=mean(name, "entropy"),
            mirror_disagreement=mean(name, "mirror_disagreement"),
            intensity=None,
        )
        for name in parts[0][0]
    }


class PassStatistics:
    """Observer of the sliding window (`PassObserver`) that keeps a few sums a class.

    Voxels are weighted as the window weights them, those of its padding not at all. Memory: a few planes of a
    batch of tiles, and the found classes of one batch for each network.
    """

    def __init__(self, labels: LabelSet, window: WindowSettings, image_shape: Sequence[int]) -> None:
        """For an image (C, Z, Y, X) of that shape."""
        self.has_regions = labels.has_regions
        first = 0 if labels.has_regions else 1  # background is not scored
        self.channels = {name: i for i, name in enumerate(labels.class_names) if i >= first}
        self.context = window.slice_context
        self.weights = _weights(window.patch_size, image_shape[1:]).to(window.device)
        self.sums = torch.zeros(len(self.channels), _INTENSITY + image_shape[0], device=window.device)
        self._plain: dict[int, Tensor] = {}

    def __call__(self, tiles: Tensor, logits: Tensor, network: int, flipped: tuple[int, ...]) -> None:
        """Take in one pass; see `PassObserver`."""
        found = logits > 0 if self.has_regions else torch.max(logits, dim=1)[1].to(torch.int16)
        if not flipped:
            self._plain[network] = found
            self._add_confidence(tiles, logits, found)
            return
        plain = self._plain[network]
        for row, channel in enumerate(self.channels.values()):
            one, other = self._mask(plain, channel), self._mask(found, channel)
            self.sums[row, _AGREED] += self._total(one & other)
            self.sums[row, _COMPARED] += self._total(one) + self._total(other)

    def restart(self) -> None:
        """Forget everything that was seen."""
        self.sums.zero_()
        self._plain.clear()

    def figures(self) -> dict[str, PassFigures]:
        """Class or region name -> its figures over everything that was seen."""
        return {name: _figures(row) for name, row in zip(self.channels, self.sums.tolist())}

    def _add_confidence(self, tiles: Tensor, logits: Tensor, found: Tensor) -> None:
        # Neighbouring slices stand beside each image channel; the middle one is the slice itself.
        image = tiles[:, self.context :: 2 * self.context + 1]
        for row, (channel, chance, entropy) in enumerate(self._chances(logits)):
            mask = self._mask(found, channel)
            parts = [mask, mask * chance, chance, mask * entropy]
            sums = [self._total(part) for part in parts]
            inside = [self._total(mask * image[:, c]) for c in range(image.shape[1])]
            self.sums[row, : len(sums)] += torch.stack(sums)
            self.sums[row, _INTENSITY:] += torch.stack(inside)

    def _chances(self, logits: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Channel, probability (B, *patch) and entropy from 0 to 1, one class after the other."""
        if self.has_regions:
            for channel in self.channels.values():
                values = logits[:, channel]
                chance = values.sigmoid()
                yield channel, chance, (softplus(values) - values * chance) / math.log(2)
            return
        scale = logits.logsumexp(1)
        entropy = scale.clone()
        for channel in range(logits.shape[1]):
            entropy -= (logits[:, channel] - scale).exp() * logits[:, channel]
        entropy /= math.log(logits.shape[1])
        for channel in self.channels.values():
            yield channel, (logits[:, channel] - scale).exp(), entropy

    def _mask(self, found: Tensor, channel: int) -> Tensor:
        return found[:, channel] if self.has_regions else found == channel

    def _total(self, values: Tensor) -> Tensor:
        return (values * self.weights).sum()


def _weights(patch: tuple[int, ...], size: Sequence[int]) -> Tensor:
    """Weight of each voxel of a tile in an image (Z, Y, X): none where the image is padded to the tile."""
    size = size[-len(patch) :]
    is_whole_slice = len(patch) == 2 and all(p >= n for p, n in zip(patch, size))
    weights = torch.ones(patch) if is_whole_slice else gaussian_weights(patch)
    # An axis that is padded has one tile, so the image lies in all tiles alike; a longer one fills them.
    inner = inside_padding(size, patch)
    inside = torch.zeros(patch)
    inside[inner] = 1
    return weights * inside


def _figures(sums: Sequence[float]) -> PassFigures:
    found, compared = sums[_FOUND], sums[_COMPARED]
    mass = found + sums[_EXPECTED]
    if not all(map(math.isfinite, sums)):  # of a network that has come to nothing; JSON has no NaN
        return PassFigures(soft_dice=None, entropy=None, mirror_disagreement=None, intensity=None)
    return PassFigures(
        soft_dice=2 * sums[_OVERLAP] / mass if mass > 0 else None,
        entropy=min(1.0, max(0.0, sums[_ENTROPY] / found)) if found > 0 else None,
        mirror_disagreement=max(0.0, 1 - 2 * sums[_AGREED] / compared) if compared > 0 else None,
        intensity=tuple(value / found for value in sums[_INTENSITY:]) if found > 0 else None,
    )
