"""What the students cost and which patches they take, counted from their layers. No torch.

The residual U-Net is `networks/student.py`'s, SwinUNETR is MONAI's (Hatamizadeh et al. 2022, arXiv
2201.01266). Tests compare the counts with the networks' own parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from samunet.networks.unet_topology import UNetTopology, stage_sizes

SWIN_MULTIPLE = 32
"""SwinUNETR halves every axis five times."""
SWIN_DEPTH = 2
"""Transformer blocks a level."""
SWIN_HEADS = (3, 6, 12, 24)
SWIN_WINDOW = 7
SWIN_MLP = 4
PASSING_SCORES = 3
"""Copies of a block's attention scores that exist for a moment: raw, with the position bias, gradient."""


@dataclass(frozen=True, kw_only=True)
class StudentCost:
    """What one sample costs.

    Attributes:
        parameters: of the network.
        convolutions / transformer: multiply-adds of one forward pass by kind of work.
        values: outputs of convolutions; `token_values` tensors kept by transformer blocks.
        passing_values: largest set of values that a transformer block holds for a moment.
    """

    parameters: int
    convolutions: int
    transformer: int = 0
    values: int = 0
    token_values: int = 0
    passing_values: int = 0


@dataclass(frozen=True)
class _Convolution:
    """`voxels` of its output, `taps` that each reads; a transposed one holds `kernels` times the weights."""

    voxels: int
    channels_in: int
    channels_out: int
    taps: int
    kernels: int = 1
    extras: int = 0
    """Parameters an output channel besides the weights: bias, scale and shift of the norm."""

    @property
    def parameters(self) -> int:
        weights = self.channels_in * self.channels_out * self.taps * self.kernels
        return weights + self.extras * self.channels_out

    @property
    def multiply_adds(self) -> int:
        return self.voxels * self.channels_in * self.channels_out * self.taps


def residual_unet_cost(topology: UNetTopology, num_inputs: int, num_outputs: int) -> StudentCost:
    """Cost of the residual U-Net with all outputs of deep supervision."""
    layers = list(_residual_layers(topology, num_inputs, num_outputs))
    return StudentCost(
        parameters=sum(layer.parameters for layer in layers),
        convolutions=sum(layer.multiply_adds for layer in layers),
        values=sum(layer.voxels * layer.channels_out for layer in layers),
    )


def _residual_layers(topology: UNetTopology, num_inputs: int, num_outputs: int) -> Iterator[_Convolution]:
    voxels = [math.prod(size) for size in stage_sizes(topology)]
    taps = [math.prod(kernel) for kernel in topology.kernels]
    widths = topology.features
    yield _Convolution(voxels[0], num_inputs, widths[0], taps[0], extras=3)
    before = widths[0]
    for stage, width in enumerate(widths):
        yield _Convolution(voxels[stage], before, width, taps[stage], extras=3)
        yield _Convolution(voxels[stage], width, width, taps[stage], extras=3)
        if before != width:
            yield _Convolution(voxels[stage], before, width, 1, extras=2)
        before = width
    for stage in reversed(range(len(widths) - 1)):
        fan = math.prod(topology.strides[stage + 1])
        yield _Convolution(voxels[stage], widths[stage + 1], widths[stage], 1, kernels=fan, extras=1)
        yield _Convolution(voxels[stage], 2 * widths[stage], widths[stage], taps[stage], extras=3)
        yield _Convolution(voxels[stage], widths[stage], num_outputs, 1, extras=1)


def swin_unetr_cost(
    feature_size: int, patch_size: Sequence[int], num_inputs: int, num_outputs: int
) -> StudentCost:
    """Cost of MONAI's SwinUNETR on a patch."""
    layers = list(_swin_convolutions(feature_size, patch_size, num_inputs, num_outputs))
    parameters = sum(layer.parameters for layer in layers)
    values = sum(layer.voxels * layer.channels_out for layer in layers)
    transformer = token_values = passing = 0
    for level, heads in enumerate(SWIN_HEADS):
        width = feature_size * 2**level
        size = [n // 2 ** (level + 1) for n in patch_size]
        parameters += SWIN_DEPTH * _block_parameters(width, heads) + 16 * width**2 + 16 * width
        work = _block_work(width, heads, size)
        transformer += SWIN_DEPTH * work.multiply_adds + math.prod(size) * 2 * width**2
        token_values += SWIN_DEPTH * (work.kept + work.scores) + math.prod(size) * width
        passing = max(passing, PASSING_SCORES * work.scores)
    return StudentCost(
        parameters=parameters,
        convolutions=sum(layer.multiply_adds for layer in layers),
        transformer=transformer,
        values=values,
        token_values=token_values,
        passing_values=passing,
    )


def _swin_convolutions(
    width: int, patch_size: Sequence[int], num_inputs: int, num_outputs: int
) -> Iterator[_Convolution]:
    """Patch embedding, residual blocks on the levels' outputs, decoder, logits."""
    voxels = [math.prod(n // 2**level for n in patch_size) for level in range(6)]
    yield _Convolution(voxels[1], num_inputs, width, 8, extras=1)
    yield from _residual_block(voxels[0], num_inputs, width)
    for level, factor in ((1, 1), (2, 2), (3, 4), (5, 16)):
        yield from _residual_block(voxels[level], factor * width, factor * width)
    for level, factor_below, factor in ((4, 16, 8), (3, 8, 4), (2, 4, 2), (1, 2, 1), (0, 1, 1)):
        yield _Convolution(voxels[level], factor_below * width, factor * width, 1, kernels=8)
        yield from _residual_block(voxels[level], 2 * factor * width, factor * width)
    yield _Convolution(voxels[0], width, num_outputs, 1, extras=1)


def _residual_block(voxels: int, channels_in: int, channels_out: int) -> Iterator[_Convolution]:
    yield _Convolution(voxels, channels_in, channels_out, 27)
    yield _Convolution(voxels, channels_out, channels_out, 27)
    if channels_in != channels_out:
        yield _Convolution(voxels, channels_in, channels_out, 1)


def _block_parameters(width: int, heads: int) -> int:
    """Two norms, attention with its table of relative positions, and the two linear layers."""
    attention = 4 * width**2 + 4 * width + (2 * SWIN_WINDOW - 1) ** 3 * heads
    return 4 * width + attention + 2 * SWIN_MLP * width**2 + (SWIN_MLP + 1) * width


@dataclass(frozen=True)
class _BlockWork:
    """Of a transformer block: multiply-adds, values kept besides the attention scores, and the scores."""

    multiply_adds: int
    kept: int
    scores: int


def _block_work(width: int, heads: int, size: Sequence[int]) -> _BlockWork:
    """Work of a block on a token grid, padded to whole windows."""
    window = [min(SWIN_WINDOW, n) for n in size]
    padded = math.prod(math.ceil(n / w) * w for n, w in zip(size, window))
    tokens, within = math.prod(size), math.prod(window)
    return _BlockWork(
        multiply_adds=padded * (4 * width**2 + 2 * within * width) + tokens * 2 * SWIN_MLP * width**2,
        kept=padded * 5 * width + tokens * (5 + 2 * SWIN_MLP) * width,
        scores=padded * heads * within,
    )


def fitting_swin_patch(patch_size: Sequence[int]) -> tuple[int, ...]:
    """The largest patch within the given one that suits SwinUNETR: multiples of 32, one axis 64 at least.

    Axes shorter than 32 become 32; where all would be 32, a single voxel would be left to normalise at the
    bottom, so the longest becomes 64.
    """
    fitting = [max(1, n // SWIN_MULTIPLE) * SWIN_MULTIPLE for n in patch_size]
    if max(fitting) == SWIN_MULTIPLE:
        fitting[max(range(len(fitting)), key=lambda axis: patch_size[axis])] = 2 * SWIN_MULTIPLE
    return tuple(fitting)
