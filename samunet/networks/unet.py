"""`2d_unet` and `3d_unet`: the plain convolutional U-Net, set up as nnU-Net does."""

from __future__ import annotations

from collections.abc import Sequence

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.unet_topology import CONVS_PER_STAGE, UNetTopology, require_divisible, unet_topology

SLOPE = 1e-2
"""Slope of the leaky ReLU below zero; the weights are initialised for it."""


class UNet(PlainConvUNet):
    """(B, C, *patch) -> (B, K, *patch); `decoder.deep_supervision` switches to a list, finest first.

    `topology` tells what the patch size must be a multiple of.

    Raises:
        SamunetError: the patch is too small to be pooled once.
    """

    def __init__(self, num_inputs: int, num_outputs: int, topology: UNetTopology) -> None:
        if len(topology.strides) < 2:
            raise SamunetError(
                f"A patch of {topology.patch_size} voxels is too small for a U-Net, which halves it. "
                "Plan with a finer spacing (-overwrite_target_spacing)."
            )
        flat = len(topology.patch_size) == 2
        super().__init__(
            input_channels=num_inputs,
            n_stages=len(topology.strides),
            features_per_stage=topology.features,
            conv_op=nn.Conv2d if flat else nn.Conv3d,
            kernel_sizes=topology.kernels,
            strides=topology.strides,
            n_conv_per_stage=CONVS_PER_STAGE,
            num_classes=num_outputs,
            n_conv_per_stage_decoder=CONVS_PER_STAGE,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"negative_slope": SLOPE, "inplace": True},
            deep_supervision=False,
        )
        self.topology = topology
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.decoder(self.encoder(x))


def initialise(layer: nn.Module) -> None:
    """He initialisation of a convolution for the leaky ReLU, bias zero."""
    if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def build_unet(
    num_inputs: int,
    num_outputs: int,
    patch_size: Sequence[int],
    spacing_mm: Sequence[float],
) -> UNet:
    """The U-Net whose stages follow from patch size and spacing (same axis order, two or three axes).

    Raises:
        SamunetError: the stages do not divide the patch.
    """
    topology = unet_topology(spacing_mm, patch_size)
    require_divisible(topology, patch_size)
    return UNet(num_inputs, num_outputs, topology)
