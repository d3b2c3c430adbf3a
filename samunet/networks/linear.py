"""`2d_linear`: a learned fourfold upsampling and a pixel-wise classifier on SAM's embedding."""

from __future__ import annotations

from torch import Tensor, nn

from samunet.networks.features import Features
from samunet.networks.picture import SliceSettings
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import PAPER_LINEAR_WIDTH, get_variant
from samunet.networks.sam_slices import SamSliceNetwork, SliceHead


class LinearHead(SliceHead):
    """Two transposed convolutions and two 1x1 convolutions (AutoSAM, linear head).

    Args:
        inputs: channels of the embedding.
        outputs: channels K of the logits.
        width: channels after the first upsampling.
        relu_on_logits: end in a ReLU as the public code does, which forbids negative logits.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = PAPER_LINEAR_WIDTH, *, relu_on_logits: bool = False
    ) -> None:
        super().__init__()
        half = width // 2
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(inputs, width, 2, 2),
            modeling.mask_decoder.LayerNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, half, 2, 2),
            nn.GELU(),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, outputs, 1),
            nn.ReLU() if relu_on_logits else nn.Identity(),
        )

    def forward(self, features: Features) -> Tensor:
        return self.layers(features.levels[-1])


def build_linear(settings: SliceSettings, head_width: int | None = None) -> SamSliceNetwork:
    """`2d_linear`: (B, C, H, W) -> (B, K, H, W)."""
    head = LinearHead(
        get_variant(settings.variant).prompt_dim,
        settings.num_outputs,
        PAPER_LINEAR_WIDTH if head_width is None else head_width,
        relu_on_logits=settings.paper_compat,
    )
    return SamSliceNetwork(settings, head)
