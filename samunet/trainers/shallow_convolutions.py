"""Convolutions of volumes that are thinner than their kernel, in bf16 on a CPU.

There PyTorch (2.13 with its oneDNN, on a processor with AVX512-BF16) gives a wrong gradient of the weights:
with a kernel of 3 for every input of two planes and 16 channels or more, with one of 5 for two to four
planes; the other two axes, a single plane, 2D and a stride of 2 are not concerned. Part of the gradient is
whatever lay in memory before, which is noise in the best case and NaN in the worst. Such inputs are small, so
they can as well be computed in single precision.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from samunet.networks.full_precision import full_precision


def guard_shallow_convolutions(network: nn.Module) -> None:
    """Let 3D convolutions of the network compute inputs thinner than their kernel in single precision."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 2:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(convolution: nn.Conv3d, volume: Tensor) -> Tensor:
    if 1 < volume.shape[2] < convolution.kernel_size[0]:
        with full_precision(volume.device.type):
            return nn.Conv3d.forward(convolution, volume.float())
    return nn.Conv3d.forward(convolution, volume)
