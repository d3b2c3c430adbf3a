"""Plan: every decision that later stages read. Frozen records, JSON on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError, unknown_name
from samunet.listing import listed
from samunet.networks.sam.variants import get_variant
from samunet.records import Bounds, Count, Positive, content_hash, read_record, write_json
from samunet.workspace import PLAN_FILE

PLAN_VERSION = 1
RANDOM = "random"
"""`encoder_weights` of an encoder that is random on purpose."""

Normalization = Literal["zscore", "ct", "none", "rescale_to_0_1", "rgb_to_0_1"]
EXPECTED = ("forecast", "reasons")
"""Keys of a configuration that say what is expected, not what is trained."""


@dataclass(frozen=True, kw_only=True)
class IntensityProperties:
    """Statistics of one channel over the foreground voxels of all training cases, stored units."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class DataConfiguration:
    """How cases are preprocessed; shared by every method that names it.

    Axes are those after `Plan.transpose_forward` (coarsest, or of one voxel, first). A 2D data configuration
    keeps the slices of a volume apart: its spacing and median shape have two entries, and the slice axis is
    never resampled.

    Attributes:
        name: `2d` or `3d`; also the folder of the preprocessed cases.
        spacing_mm: target spacing per axis.
        median_shape: median case shape in voxels at that spacing.
        max_shape: largest case shape in voxels at that spacing.
        normalization: scheme per channel.
        use_mask_for_norm: per channel, statistics only inside the nonzero mask.
        display_window: per channel, the (low, high) *stored* (normalised) intensities that SAM sees as 0 and
            255.
    """

    name: str
    dimension: Annotated[int, Bounds(2, 3)]
    spacing_mm: tuple[Positive, ...]
    median_shape: tuple[Positive, ...]
    max_shape: tuple[Count, ...]
    normalization: tuple[Normalization, ...]
    use_mask_for_norm: tuple[bool, ...]
    display_window: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the planner expects a configuration to need on the planned device.

    Attributes:
        memory_gb: peak memory of training, GB (1e9 bytes): GPU memory, or resident memory on a CPU.
        step_seconds: seconds of one training step (one batch).
        train_hours: hours for the whole schedule with cache building.
        cache_gb: disk for the embedding cache, GB; 0 without a cache.
        parameters: all parameters; `trainable` those that are trained.
    """

    memory_gb: float
    step_seconds: float
    train_hours: float
    cache_gb: float
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One resolved way to train: a method on a data configuration.

    Attributes:
        name: what the user types, `2d_cnn`; `method` is the registry key, the same.
        data: name of the data configuration.
        patch_size: voxels that the network sees, per axis of the data configuration's dimension.
        batch_size: samples a step (before accumulation).
        encoder: SAM variant, or None for a U-Net.
        encoder_weights: `official`, `shipped`, `file`, `none` (trained from scratch) or `random` (tests,
            speed).
        input_size: side in pixels of the square that the encoder sees, or None.
        batch_dice: Dice over the batch instead of per sample.
        mirror_axes: spatial axes of the patch that training and test-time augmentation may mirror.
        settings: fields of the method's Config that differ from its defaults (architecture and recipe).
        forecast: expected cost; `reasons` say in plain words how the numbers came about.
    """

    name: str
    method: str
    data: str
    patch_size: tuple[Count, ...]
    batch_size: Count
    encoder: str | None = None
    encoder_weights: str = "none"
    input_size: Count | None = None
    batch_dice: bool = True
    mirror_axes: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    forecast: Forecast
    reasons: tuple[str, ...] = ()

    @property
    def has_sam_weights(self) -> bool:
        """Whether it starts from SAM's weights, or such as were tuned from them."""
        return self.encoder is not None and get_variant(self.encoder).prior(self.encoder_weights) == "sam"


@dataclass(frozen=True, kw_only=True)
class WeightsUsed:
    """Pretrained file that an encoder starts from; `kind` is official, shipped or file.

    `adapted`: its blocks have adapters. Plans made before this was written down say false.
    """

    file: str
    kind: str
    sha256: str
    adapted: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The planner's judgement of one method: chosen, fits, too large, unsuitable."""

    method: str
    status: Literal["recommended", "fits", "does not fit", "unsuitable"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What training may use.

    Attributes:
        device: `cuda`, `mps` or `cpu`.
        memory_gb: GPU memory, or RAM on a CPU.
        hours: longest training of one fold that the user accepts.
        disk_gb: what a cache may take of the free disk, as training allows it.
        gflops: sustained throughput of a training step by kind of work (`conv2d`, `conv3d`, `vit`), GFLOP/s
            (2 x multiply-adds, forward and backward), measured on the machine or assumed for a GPU class.
    """

    device: Literal["cuda", "mps", "cpu"]
    memory_gb: float
    hours: float
    disk_gb: float
    gflops: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All decisions for one dataset; see documentation/plan_file.md for every key.

    `transpose_forward[i]` is the axis of the file's (z, y, x) that becomes axis i; `transpose_backward`
    undoes it. `weights` are those of every encoder that starts from a file; plans made before they were
    written down have none.
    """

    version: int = PLAN_VERSION
    name: str
    dataset: str
    fingerprint_hash: str
    file_ending: str
    channel_names: tuple[str, ...]
    labels: LabelSet
    num_training: int
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    original_median_spacing_mm: tuple[float, ...]
    original_median_shape: tuple[float, ...]
    intensity: tuple[IntensityProperties, ...]
    budget: Budget
    goal: str = "accuracy"
    data: dict[str, DataConfiguration]
    configurations: dict[str, Configuration]
    recommended: str
    verdicts: tuple[Verdict, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, WeightsUsed] = field(default_factory=dict)

    def configuration(self, name: str) -> Configuration:
        """The configuration of that name.

        Raises:
            SamunetError: there is none; says why the planner made none, or lists the closest.
        """
        if name not in self.configurations:
            for verdict in self.verdicts:
                if verdict.method == name and verdict.status == "unsuitable":
                    reasons = " ".join(verdict.reasons)
                    raise SamunetError(f"{name} cannot be trained on {self.dataset}. {reasons}")
            raise unknown_name(f"configuration of plan {self.name}", name, self.configurations)
        return self.configurations[name]

    def data_of(self, configuration: Configuration) -> DataConfiguration:
        return self.data[configuration.data]

    def data_hash(self, data_name: str) -> str:
        """Identifies the preprocessed cases: everything that preprocessing reads, nothing else."""
        data = self.data[data_name]
        used_intensity = self.intensity if "ct" in data.normalization else ()
        kept = [data.name, data.dimension, data.spacing_mm, data.normalization, data.use_mask_for_norm]
        labels = (self.labels, *self.labels.regions_in_order)
        return content_hash([kept, self.transpose_forward, used_intensity, *labels])

    def configuration_hash(self, name: str) -> str:
        """Identifies what a training reads: its configuration without forecast and reasons, and its data."""
        chosen = self.configuration(name)
        identity = {key: getattr(chosen, key) for key in chosen.__dataclass_fields__ if key not in EXPECTED}
        window = self.data[chosen.data].display_window if chosen.encoder else None
        return content_hash([identity, window, self.data_hash(chosen.data)])

    def save(self, path: Path) -> None:
        write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan file.

        Raises:
            SamunetError: no such file, another version, unknown or missing keys (with their path), parts
                that do not fit together, or a name that is not the file's, by which another plan's cases and
                models would be taken.
        """
        path = Path(path)
        if not path.exists():
            raise SamunetError(
                f"There is no plan {path}. Run `samunet_plan_and_preprocess -d DATASET` first, "
                "or name another plan with -p."
            )
        plan = read_record(cls, path)
        if plan.version != PLAN_VERSION:
            raise SamunetError(
                f"{path} has plan version {plan.version}; this samunet reads version {PLAN_VERSION}. "
                "Plan again."
            )
        if path.stem != plan.name and path.name != PLAN_FILE:
            raise SamunetError(
                f"{path} cannot be used: its `name` is {plan.name}, whose cases and models belong to "
                f"{plan.name}.json. For a plan of its own set it to {path.stem}, or rename the file."
            )
        faults = list(_faults(plan))
        if faults:
            raise SamunetError(f"{path} cannot be used: {' '.join(faults)} Correct it, or plan again.")
        return plan


def _faults(plan: Plan) -> Iterator[str]:
    """What does not fit together, as after an edit by hand."""
    forward, backward = plan.transpose_forward, plan.transpose_backward
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward if axis in forward] != [0, 1, 2]:
        yield "`transpose_forward` must be an order of 0, 1, 2, and `transpose_backward` what undoes it."
    channels = len(plan.channel_names)
    if len(plan.intensity) != channels:
        yield f"`intensity` has {len(plan.intensity)} entries for {channels} channel(s)."
    for name, data in plan.data.items():
        wanted = dict.fromkeys(("spacing_mm", "median_shape", "max_shape"), (data.dimension, "axes"))
        wanted |= dict.fromkeys(
            ("normalization", "use_mask_for_norm", "display_window"), (channels, "channel(s)")
        )
        for key, (number, of) in wanted.items():
            found = len(getattr(data, key))
            if found != number:
                yield f"`data.{name}.{key}` has {found} entries for {number} {of}."
        if data.name != name:
            yield f"`data.{name}.name` is {data.name}."
    for name, chosen in plan.configurations.items():
        if chosen.name != name:
            yield f"`configurations.{name}.name` is {chosen.name}."
        if chosen.data not in plan.data:
            known = listed(list(plan.data))
            yield f"`configurations.{name}.data` is {chosen.data}, which is not among {known}."
            continue
        axes = plan.data[chosen.data].dimension
        if len(chosen.patch_size) != axes:
            yield f"`configurations.{name}.patch_size` has {len(chosen.patch_size)} entries for {axes} axes."
        if not set(chosen.mirror_axes) <= set(range(axes)):
            yield f"`configurations.{name}.mirror_axes` must be among {listed(range(axes))}."
