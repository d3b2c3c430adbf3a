"""What a method's planner row is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from samunet.planning.plan import RANDOM, Budget, Configuration, DataConfiguration
from samunet.planning.rules import MAX_BATCH_2D, UNetRequest


@dataclass(frozen=True, kw_only=True)
class PlanningContext:
    """Everything a planner row may look at. Pure data; the row must not touch disk or devices.

    Attributes:
        data: data configurations by name; `3d` is absent for natural or single-slice 2D images.
        num_cases: training cases; `num_slices` all slices of the 2D data configuration.
        num_channels / num_outputs: of the network; `exclusive` unless the outputs are regions.
        num_labels: names under `labels` (nnU-Net's count).
        dataset_voxels: median case at the target spacing times the cases, voxels (nnU-Net's estimate).
        batch_dice_3d: nnU-Net's rule (True only where nnU-Net would make a low-resolution stage).
        mirror_axes: axes of (z, y, x after transpose) that may be mirrored (left/right pairs removed).
        mirror_reason: why an axis is left out, or empty.
        budget: the SAM rows' budget; `unet_memory_gb` the U-Net rows' (8 unless the user gave one).
        weights: SAM variant -> `official`, `shipped` or `file` for every variant whose weights are at hand.
        adapted: SAM variants whose weights at hand have adapters in the encoder's blocks.
        encoder: variant the user asked for, or None for the planner's choice.
        settings: method settings the user overrode, applied to every row that knows them.
        natural_image: RGB or other non-medical 2D images.
        sites: number of declared groups, where they are sites (`count_sites`).
    """

    data: dict[str, DataConfiguration]
    num_cases: int
    num_slices: int
    num_channels: int
    num_outputs: int
    num_labels: int
    exclusive: bool
    dataset_voxels: float
    batch_dice_3d: bool
    mirror_axes: tuple[int, ...]
    mirror_reason: str = ""
    budget: Budget
    unet_memory_gb: float
    weights: dict[str, str]
    adapted: frozenset[str] = frozenset()
    encoder: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    natural_image: bool = False
    sites: int = 0
    goal: str = "accuracy"

    def starts_adapted(self, variant: str, weights: str) -> bool:
        """Whether an encoder that starts from weights of this kind comes with adapters."""
        return variant in self.adapted and weights not in ("none", RANDOM)

    def patch_mirror_axes(self, data: DataConfiguration) -> tuple[int, ...]:
        """`mirror_axes` as axes of a patch: a slice has no axis 0."""
        missing = 3 - data.dimension
        return tuple(axis - missing for axis in self.mirror_axes if axis >= missing)

    def unet_request(self, data: DataConfiguration) -> UNetRequest:
        """What nnU-Net's patch and batch rules need of a data configuration."""
        return UNetRequest(
            spacing_mm=data.spacing_mm,
            median_shape=data.median_shape,
            num_inputs=self.num_channels,
            num_labels=self.num_labels,
            dataset_voxels=self.dataset_voxels,
            memory_gb=self.unet_memory_gb,
            max_batch=MAX_BATCH_2D[self.budget.device] if data.dimension == 2 else None,
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method's row: a configuration when it can run at all, whether it fits, and why.

    Attributes:
        configuration: None when the method is unsuitable for the data.
        fits: within memory, hours and disk of the budget.
        score: expected standing among the methods that fit; the highest is recommended.
        potential: the score that it would have with time enough; None means the score.
        reasons: plain sentences, the deciding one first.
    """

    method: str
    configuration: Configuration | None
    fits: bool
    score: float
    potential: float | None = None
    reasons: tuple[str, ...]

    @classmethod
    def unsuitable(cls, method: str, reason: str) -> Candidate:
        """The row of a method that the data do not suit."""
        return cls(method=method, configuration=None, fits=False, score=0.0, reasons=(reason,))
