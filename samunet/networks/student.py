"""Networks of `3d_student`: a small residual U-Net, and MONAI's SwinUNETR in two small sizes."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.student_costs import SWIN_MULTIPLE, fitting_swin_patch
from samunet.networks.unet import SLOPE, initialise
from samunet.networks.unet_topology import UNetTopology


class StudentUNet(ResidualEncoderUNet):
    """(B, C, *patch) -> (B, K, *patch); one residual block a stage, one convolution a decoder stage.

    `decoder.deep_supervision` switches to a list of logits, finest first. Each residual branch starts at
    zero, so that the network starts as a plain stack of strided projections.

    Args:
        num_inputs: channels of the image.
        num_outputs: channels of the logits.
        topology: strides, kernels and widths per stage.

    Raises:
        SamunetError: the patch is too small to be halved once.
    """

    def __init__(self, num_inputs: int, num_outputs: int, topology: UNetTopology) -> None:
        if len(topology.strides) < 2:
            raise SamunetError(
                f"A patch of {topology.patch_size} voxels is too small for a U-Net, which halves it. "
                "Plan with a finer spacing (-overwrite_target_spacing)."
            )
        super().__init__(
            input_channels=num_inputs,
            n_stages=len(topology.strides),
            features_per_stage=topology.features,
            conv_op=nn.Conv3d,
            kernel_sizes=topology.kernels,
            strides=topology.strides,
            n_blocks_per_stage=1,
            num_classes=num_outputs,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"negative_slope": SLOPE, "inplace": True},
            deep_supervision=False,
        )
        self.topology = topology
        self.apply(initialise)
        self.apply(_start_at_zero)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.decoder(self.encoder(x))


def _start_at_zero(layer: nn.Module) -> None:
    if isinstance(layer, BasicBlockD):
        nn.init.zeros_(layer.conv2.norm.weight)


def build_swin_unetr(
    num_inputs: int, num_outputs: int, patch_size: Sequence[int], feature_size: int
) -> nn.Module:
    """MONAI's SwinUNETR, (B, C, *patch) -> (B, K, *patch).

    Raises:
        SamunetError: MONAI is not installed, or the patch does not suit the network.
    """
    check_swin_patch(patch_size)
    try:
        from monai.networks.nets import SwinUNETR
    except ImportError as error:
        raise SamunetError(
            f"The SwinUNETR students are MONAI's, and MONAI cannot be imported here ({error}). Install it "
            "with `pip install monai`, or leave the default --set network=residual_unet."
        ) from error
    settings: dict[str, Any] = {
        "in_channels": num_inputs,
        "out_channels": num_outputs,
        "feature_size": feature_size,
    }
    # MONAI asked for the size of the patch up to 1.4 and does not know the word since 1.5.
    if "img_size" in signature(SwinUNETR.__init__).parameters:
        settings["img_size"] = tuple(patch_size)
    return SwinUNETR(**settings)


def check_swin_patch(patch_size: Sequence[int]) -> None:
    """See that SwinUNETR can take patches of this size.

    Raises:
        SamunetError: an axis is no multiple of 32, or all of them are 32, so that a single voxel would be
            left to normalise at the bottom.
    """
    fitting = fitting_swin_patch(patch_size)
    if tuple(patch_size) != fitting:
        raise SamunetError(
            f"SwinUNETR halves every axis five times, so its patch needs multiples of {SWIN_MULTIPLE} with "
            f"one axis of {2 * SWIN_MULTIPLE} at least; the patch is {_shown(patch_size)}. "
            f"Give --set patch_size=[{','.join(map(str, fitting))}], or --set network=residual_unet."
        )


def _shown(patch_size: Sequence[int]) -> str:
    return " x ".join(map(str, patch_size))
