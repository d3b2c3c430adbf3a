"""The JSON beside ONNX files: everything around the network that a program without samunet must do itself.

`steps_before` and `steps_after` are in their order; the numbers in them are the ones that samunet uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samunet.inference.postprocessing import Postprocessing
from samunet.inference.predictor import Predictor
from samunet.inference.sliding_window import GAUSSIAN_PEAK, GAUSSIAN_SIGMA
from samunet.pipeline.model_file.onnx_network import INPUT, OUTPUT
from samunet.pipeline.model_file.onnx_parity import Parity
from samunet.planning.plan import DataConfiguration, Plan
from samunet.preprocessing.normalization import SMALLEST_STD
from samunet.preprocessing.resampling import ANISOTROPY_THRESHOLD
from samunet.trainers.base import config_of
from samunet.trainers.portable import WeightsOrigin

SIDECAR_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: its name, its constants, and what is done, in words."""

    name: str
    constants: dict[str, Any]
    text: str


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX file of one fold, and how it compared with PyTorch."""

    file: str
    fold: int | str
    sha256: str
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Input or output of the network.

    Attributes:
        layout: letters of the axes; N is free.
        shape: without N.
        channels: name of each.
    """

    name: str
    layout: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Content of the JSON.

    Attributes:
        outputs_are: `exclusive classes` (arg-max), or `regions` (each above zero).
        labels: class or region -> values in label files.
        mirror_axes: spatial axes of the tile, 0 the first, whose flips may be averaged.
        steps_inside: what the network itself does to its input, for information.
        weights: pretrained weights inside, with their licences.
    """

    format: int = SIDECAR_FORMAT
    samunet: str
    torch: str
    opset: int
    dataset: str
    configuration: str
    method: str
    configuration_hash: str
    files: tuple[OnnxFile, ...]
    input: Tensors
    output: Tensors
    outputs_are: str
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    mirror_axes: tuple[int, ...]
    steps_before: tuple[Step, ...]
    steps_inside: tuple[Step, ...]
    steps_after: tuple[Step, ...]
    postprocessing: Postprocessing | None
    weights: tuple[WeightsOrigin, ...]


def input_tensors(predictor: Predictor) -> Tensors:
    """What the network takes: a tile, slice neighbours running within each channel."""
    plan, patch = predictor.plan, predictor.configuration.patch_size
    context = getattr(config_of(predictor.configuration), "slice_context", 0)
    names = tuple(
        f"{channel}{f' slice {offset:+d}' if context else ''}"
        for channel in plan.channel_names
        for offset in range(-context, context + 1)
    )
    layout = "NCYX" if len(patch) == 2 else "NCZYX"
    return Tensors(name=INPUT, layout=layout, shape=(len(names), *patch), dtype="float32", channels=names)


def output_tensors(predictor: Predictor) -> Tensors:
    """What it gives: a logit for each class with background, or each region."""
    taken, names = input_tensors(predictor), predictor.plan.labels.class_names
    return Tensors(
        name=OUTPUT,
        layout=taken.layout,
        shape=(len(names), *taken.shape[1:]),
        dtype="float32",
        channels=names,
    )


def steps_before(predictor: Predictor) -> tuple[Step, ...]:
    """From the image as read to tiles."""
    plan = predictor.plan
    data = plan.data_of(predictor.configuration)
    step = Step(
        name="read",
        constants={"channels": list(plan.channel_names), "file_ending": plan.file_ending, "dtype": "float32"},
        text="Array (C, Z, Y, X) in stored units (CT: Hounsfield). A plane has Z = 1.",
    )
    turn = Step(
        name="transpose",
        constants={"order": list(plan.transpose_forward)},
        text="Axis i of the result is axis order[i] of (Z, Y, X). All later steps use these axes.",
    )
    crop = Step(
        name="crop",
        constants={"nonzero_in": "any channel"},
        text="Smallest box around voxels that are not 0 in any channel. `mask` is those voxels with their "
        "holes filled (6-neighbourhood). An image of zeros keeps its box. Remember the box.",
    )
    return (step, turn, crop, _normalize(plan, data), _resample(data), *_tile(predictor))


def _normalize(plan: Plan, data: DataConfiguration) -> Step:
    channels: list[dict[str, Any]] = []
    for name, scheme, masked, intensity in zip(
        plan.channel_names, data.normalization, data.use_mask_for_norm, plan.intensity
    ):
        entry: dict[str, Any] = {"channel": name, "scheme": scheme}
        if scheme == "ct":
            entry |= {
                "clip": [intensity.percentile_00_5, intensity.percentile_99_5],
                "subtract": intensity.mean,
                "divide": max(intensity.std, SMALLEST_STD),
            }
        elif scheme == "zscore":
            entry |= {"statistics": "inside mask" if masked else "whole crop", "smallest_std": SMALLEST_STD}
        elif scheme == "rescale_to_0_1":
            entry |= {"smallest_range": SMALLEST_STD}
        elif scheme == "rgb_to_0_1":
            entry |= {"divide": 255}
        channels.append(entry)
    return Step(
        name="normalize",
        constants={"channels": channels},
        text="ct: clip, subtract, divide. zscore: subtract the mean of this image and divide by its "
        "standard deviation (of the population); `inside mask` takes both from inside the mask and leaves "
        "voxels outside it as they are. rescale_to_0_1: subtract this image's minimum, divide by the new "
        "maximum. rgb_to_0_1: divide. none: nothing.",
    )


def _resample(data: DataConfiguration) -> Step:
    axes = "all axes" if data.dimension == 3 else "the last two axes; the first keeps its spacing"
    return Step(
        name="resample",
        constants={
            "spacing_mm": list(data.spacing_mm),
            "axes": axes,
            "spline_order": 3,
            "coarse_axis_ratio": ANISOTROPY_THRESHOLD,
        },
        text="New length of an axis: round(old length * old spacing / new spacing), halves to even. Cubic "
        "splines with pixel centres at (i + 0.5), edge samples continued outside, clipped to the range of "
        "what was interpolated. Where the old spacing (else the new one) of one axis is more than "
        "coarse_axis_ratio times the smallest, that axis is resampled by nearest neighbour and the others "
        "plane by plane.",
    )


def _tile(predictor: Predictor) -> tuple[Step, ...]:
    window = predictor.window
    flat = len(window.patch_size) == 2
    constants = {
        "tile": list(window.patch_size),
        "step_share": window.step_size,
        "padding_value": 0,
        "slice_context": window.slice_context,
        "weights": {"kind": "gaussian", "sigma_share": GAUSSIAN_SIGMA, "peak": GAUSSIAN_PEAK},
    }
    text = (
        "Axes shorter than the tile are padded with zeros, half on each side, the odd one at the end. Along "
        "an axis of n voxels, tiles of t voxels start at round(i * (n - t) / (k - 1)) for i in 0..k-1, "
        "where k = ceil((n - t) / (t * step_share)) + 1."
    )
    if flat:
        text = "Every slice of the first axis is tiled by itself. " + text
    if window.slice_context:
        text += (
            " A tile holds, for every channel, its slices from -slice_context to +slice_context; beyond the "
        )
        text += "volume the last slice is repeated."
    return (Step(name="tile", constants=constants, text=text),)


def steps_inside(predictor: Predictor) -> tuple[Step, ...]:
    """What a network on a SAM encoder does to its tile first."""
    configuration = predictor.configuration
    if configuration.encoder is None:
        return ()
    window = predictor.plan.data_of(configuration).display_window
    return (
        Step(
            name="picture",
            constants={
                "display_window": [list(bounds) for bounds in window],
                "encoder": configuration.encoder,
                "input_size": configuration.input_size,
            },
            text="Normalised intensities within display_window become 0..255 per channel, channels become "
            "red, green and blue, the longer side is resized to input_size, SAM's mean and deviation of "
            "pixels are applied. Nothing of this is to be done outside.",
        ),
    )


def steps_after(predictor: Predictor) -> tuple[Step, ...]:
    """From logits of tiles to a label map on the file's grid."""
    plan, labels = predictor.plan, predictor.plan.labels
    blend = Step(
        name="blend",
        constants={"mirror_axes": list(predictor.mirror_axes)},
        text="Mean of the logits over the files (folds) and, if wanted, over all combinations of flips of "
        "mirror_axes (flip the tile, flip the logits back). Tiles are added with the Gaussian weights of "
        "`tile` (peak at t // 2, zeros replaced by the smallest weight) and divided by the sum of weights. "
        "Cut off the padding.",
    )
    back = Step(
        name="resample_logits",
        constants={"interpolation": "linear", "coarse_axis_ratio": ANISOTROPY_THRESHOLD},
        text="To the size of the crop before resampling: linear with pixel centres at (i + 0.5), edges "
        "continued; nearest neighbour along the coarse axis, by the rule of `resample` with the spacings "
        "exchanged.",
    )
    if labels.has_regions:
        decide = Step(
            name="paint",
            constants={"values": list(labels.paint_values), "threshold": 0.0},
            text="Start with 0. In the order of the channels, every voxel whose logit is above the "
            "threshold gets the channel's value.",
        )
    else:
        decide = Step(
            name="argmax",
            constants={"values": list(labels.values)},
            text="The value of the channel with the largest logit.",
        )
    place = Step(
        name="place",
        constants={"order": list(plan.transpose_backward)},
        text="Put the crop into an array of zeros at the box, and transpose back.",
    )
    return (blend, back, decide, place)
