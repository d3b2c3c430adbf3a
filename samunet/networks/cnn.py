"""`2d_cnn`: a UNet-like convolutional decoder on SAM's embedding (AutoSAM, arXiv 2306.13731, CNN head)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.cnn_stages import cnn_stages
from samunet.networks.detail import DetailPyramid, convolution, initialise, wants_image_skip
from samunet.networks.features import Features
from samunet.networks.picture import SliceSettings
from samunet.networks.sam.variants import PAPER_CNN_WIDTH, finest_stride, get_variant
from samunet.networks.sam_slices import SamSliceNetwork, SliceHead

LOGIT_GAIN = 10.0
"""Factor on the logits, whose initial size it leaves alone. Adam moves each weight by about the learning rate
a step, too little for the few large weights and biases that the logits need; the factor lets them follow."""


@dataclass(frozen=True, kw_only=True)
class CnnHeadSettings:
    """Sizes of the CNN head.

    Attributes:
        inputs: channels of the embedding; `outputs` channels K of the logits.
        width: channels of the last of the `depth` stages; the first has width * 2 ** depth.
        normalised: instance norm and leaky ReLU (sound), else plain ReLU (the paper's code).
        finest: with an image skip, pixels of the square per cell of the logits (2 or 4); None: no skip.
    """

    inputs: int
    outputs: int
    width: int = 64
    depth: int = 4
    normalised: bool = True
    finest: int | None = None


class CnnHead(SliceHead):
    """Widen; two stages at the embedding's resolution; stages that double it; logits by a 3x3 and a 1x1.

    With an image skip, each doubled map is joined by one of equal width that was computed from the picture,
    and further stages of the last width lead down to the finest stride.

    Raises:
        SamunetError: no such number of stages.
    """

    def __init__(self, settings: CnnHeadSettings) -> None:
        super().__init__()
        depth, width, norm = settings.depth, settings.width, settings.normalised
        if not 2 <= depth <= 6:
            raise SamunetError(f"num_depth {depth}: the CNN head takes 2 to 6 stages (--set num_depth=4).")
        self.uses_image = settings.finest is not None
        stages = cnn_stages(width, depth, settings.finest)
        bottom = stages.bottom
        self.widen = nn.Sequential(_pointwise(settings.inputs, bottom), _pointwise(bottom, bottom))
        self.keep = nn.Sequential(*(_pair(w, w, w // 2, norm) for w in stages.keeping))
        if stages.finest is not None:
            self.detail = DetailPyramid(stages.after[::-1], stages.finest)
        self.rise = nn.ModuleList(_pair(a, b, b, norm) for a, b in zip(stages.joined, stages.before))
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(stages.before, stages.after)
        )
        # The paper's code has no activation here.
        self.last = convolution(stages.joined[-1], width) if norm else nn.Conv2d(width, width, 3, 1, 1)
        self.classify = nn.Conv2d(width, settings.outputs, 1)
        self.gain = 1.0
        if norm:
            initialise(self)
            self.gain = LOGIT_GAIN
            with torch.no_grad():
                self.classify.weight.div_(LOGIT_GAIN)

    def forward(self, features: Features) -> Tensor:
        x = self.keep(self.widen(features.levels[-1]))
        details: list[Tensor] = []
        if self.uses_image:
            assert features.image is not None
            details = self.detail(features.image)
        for rise, enlarge in zip(self.rise, self.enlarge):
            x = enlarge(rise(x))
            if details:
                x = torch.cat([x, details.pop()], dim=1)
        return self.gain * self.classify(self.last(x))


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True))


def _pair(inputs: int, between: int, outputs: int, normalised: bool) -> nn.Sequential:
    return nn.Sequential(
        convolution(inputs, between, normalised=normalised),
        convolution(between, outputs, normalised=normalised),
    )


def build_cnn(
    settings: SliceSettings,
    head_width: int | None = None,
    num_depth: int = 4,
    *,
    image_skip: bool | None = None,
) -> SamSliceNetwork:
    """`2d_cnn`: (B, C, H, W) -> (B, K, H, W).

    Args:
        settings: everything but the head.
        head_width: width of the last stage; None takes the variant's, the paper's 64 with `paper_compat`.
        num_depth: stages, 2 to 6.
        image_skip: join maps computed from the picture; None does so where the encoder is small and trained.
    """
    variant = get_variant(settings.variant)
    skip = wants_image_skip(settings) if image_skip is None else image_skip
    default = PAPER_CNN_WIDTH if settings.paper_compat else variant.cnn_width
    head = CnnHead(
        CnnHeadSettings(
            inputs=variant.prompt_dim,
            outputs=settings.num_outputs,
            width=default if head_width is None else head_width,
            depth=num_depth,
            normalised=not settings.paper_compat,
            finest=finest_stride(settings.input_size, settings.patch_size) if skip else None,
        )
    )
    return SamSliceNetwork(settings, head)
