"""Shape of the plain U-Net from spacing and patch size: pools, strides, kernels, features. No torch.

The rules are nnU-Net's (Isensee et al. 2021, supplement; default planner of nnunetv2 2.8.1): axes are pooled
together while their spacings stay within a factor of two, and a kernel stays flat along a coarse axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from samunet.errors import SamunetError

MIN_EDGE = 4
"""No axis is pooled below this many voxels."""
CONVS_PER_STAGE = 2
BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}


@dataclass(frozen=True, kw_only=True)
class UNetTopology:
    """A U-Net for one patch size; tuples run over stages from the full resolution down.

    Attributes:
        patch_size: voxels per axis, padded to what the pooling can divide.
        strides: stride of each stage's first convolution; all ones for the first stage.
        kernels: kernel of each stage's convolutions.
        features: channels of each stage.
        pools: how often each axis is halved.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    pools: tuple[int, ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the patch size must be a multiple of, per axis."""
        return tuple(2**pools for pools in self.pools)


@dataclass(frozen=True, kw_only=True)
class UNetCost:
    """What one sample costs.

    Attributes:
        elements: values that all convolutions put out; nnU-Net's stand-in for memory.
        parameters: weights, biases and norm parameters.
        multiply_adds: of one forward pass with all outputs of deep supervision.
    """

    elements: int
    parameters: int
    multiply_adds: int


def unet_topology(spacing_mm: Sequence[float], patch_size: Sequence[float]) -> UNetTopology:
    """Topology for a patch at a spacing (same axis order, two or three axes).

    Args:
        patch_size: voxels; not whole where it is the median of an even number of cases.

    Returns:
        the topology; its patch size is the given one padded up to a multiple of the divisor.
    """
    dimension = len(spacing_mm)
    spacing = [float(s) for s in spacing_mm]
    size = [float(s) for s in patch_size]
    pools = [0] * dimension
    kernel = [1] * dimension
    strides = [(1,) * dimension]
    kernels = []
    while axes := _axes_to_pool(spacing, size):
        for axis in range(dimension):
            if spacing[axis] / min(spacing) < 2:
                kernel[axis] = 3
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(dimension)))
        for axis in axes:
            pools[axis] += 1
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * dimension)
    return UNetTopology(
        patch_size=tuple(math.ceil(n / 2**p) * 2**p for n, p in zip(patch_size, pools)),
        strides=tuple(strides),
        kernels=tuple(kernels),
        features=tuple(min(BASE_FEATURES * 2**i, MAX_FEATURES[dimension]) for i in range(len(strides))),
        pools=tuple(pools),
    )


def require_divisible(topology: UNetTopology, patch_size: Sequence[int]) -> None:
    """Refuse a patch that the pooling does not divide; the planner's own are padded.

    Raises:
        SamunetError: names the next larger patch.
    """
    if tuple(patch_size) != topology.patch_size:
        raise SamunetError(
            f"A patch of {_by(patch_size)} voxels cannot be halved as often as this U-Net does; take "
            f"multiples of {_by(topology.divisor)}, such as --set patch_size={list(topology.patch_size)}."
        )


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def with_widths(topology: UNetTopology, base: int, largest: int) -> UNetTopology:
    """The same topology with `base` channels at the top, doubled per stage up to `largest`."""
    features = tuple(min(base * 2**stage, largest) for stage in range(len(topology.strides)))
    return replace(topology, features=features)


def _axes_to_pool(spacing: Sequence[float], size: Sequence[float]) -> tuple[int, ...]:
    large = [axis for axis in range(len(size)) if size[axis] >= 2 * MIN_EDGE]
    if not large:
        return ()
    finest = min(spacing[axis] for axis in large)
    axes = tuple(axis for axis in large if spacing[axis] / finest < 2)
    # A lone axis is pooled only when a useful size is left.
    if len(axes) == 1 and size[axes[0]] < 3 * MIN_EDGE:
        return ()
    return axes


@dataclass(frozen=True)
class _Layer:
    """One convolution: `voxels` of its output, `taps` that each reads, `kernels` held (transposed: more)."""

    voxels: int
    channels_in: int
    channels_out: int
    taps: int
    kernels: int = 1
    normalised: bool = True
    counted: bool = True


def unet_cost(topology: UNetTopology, num_inputs: int, num_outputs: int) -> UNetCost:
    """Memory stand-in, parameters and arithmetic of one sample."""
    elements = parameters = multiply_adds = 0
    for layer in _layers(topology, num_inputs, num_outputs):
        elements += layer.voxels * layer.channels_out * layer.counted
        weights = layer.channels_in * layer.channels_out * layer.taps
        parameters += weights * layer.kernels + layer.channels_out * (3 if layer.normalised else 1)
        multiply_adds += weights * layer.voxels
    return UNetCost(elements=elements, parameters=parameters, multiply_adds=multiply_adds)


def _layers(topology: UNetTopology, num_inputs: int, num_outputs: int) -> Iterator[_Layer]:
    sizes = stage_sizes(topology)
    taps = [math.prod(kernel) for kernel in topology.kernels]
    channels = num_inputs
    for size, features, tap in zip(sizes, topology.features, taps):
        for _ in range(CONVS_PER_STAGE):
            yield _Layer(math.prod(size), channels, features, tap)
            channels = features
    for stage in reversed(range(len(sizes) - 1)):
        voxels, features = math.prod(sizes[stage]), topology.features[stage]
        below = topology.features[stage + 1]
        # Kernel = stride: every output voxel of the transposed convolution reads one tap.
        fan = math.prod(topology.strides[stage + 1])
        yield _Layer(voxels, below, features, 1, kernels=fan, normalised=False)
        yield _Layer(voxels, 2 * features, features, taps[stage])
        for _ in range(CONVS_PER_STAGE - 1):
            yield _Layer(voxels, features, features, taps[stage])
        # nnU-Net's memory stand-in counts the output of the last stage only.
        yield _Layer(voxels, features, num_outputs, 1, normalised=False, counted=stage == 0)


def stage_sizes(topology: UNetTopology) -> list[tuple[int, ...]]:
    """Voxels per axis at every stage."""
    size = topology.patch_size
    sizes = []
    for stride in topology.strides:
        size = tuple(n // s for n, s in zip(size, stride))
        sizes.append(size)
    return sizes
