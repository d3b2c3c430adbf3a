"""`2d_cnn`: a UNet-like convolutional decoder on a SAM encoder (AutoSAM, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from samunet.networks.sam.variants import PAPER_CNN_WIDTH
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.head_costs import HeadInput, cnn_head_cost
from samunet.planning.methods import Method, register
from samunet.planning.sam_config import SkipHeadConfig
from samunet.planning.sam_costs import PartCost
from samunet.planning.sam_options import HeadSpec
from samunet.planning.sam_rows import sam_row
from samunet.records import Bounds


@dataclass(frozen=True, kw_only=True)
class CnnConfig(SkipHeadConfig):
    """Settings of `2d_cnn`. `head_width` is the width of the last stage, the paper's `top_channel`.

    None: 48 (vit_b), 64 (vit_l, vit_h), 16 (vit_tiny), 8 (vit_micro); 64 with `paper_compat`.
    """

    num_depth: Annotated[int, Bounds(2, 6)] = 4
    """Stages of the decoder, 2 to 6; its bottom has head_width * 2 ** num_depth channels. Paper: 4."""


def head_cost(place: HeadInput, config: CnnConfig) -> PartCost:
    """Cost of the head."""
    default = PAPER_CNN_WIDTH if config.paper_compat else place.variant.cnn_width
    return cnn_head_cost(place, config.head_width or default, config.num_depth)


def row(context: PlanningContext) -> Candidate:
    """Plan `2d_cnn`."""
    spec = HeadSpec(
        method="2d_cnn",
        prior=2.0,
        evidence="AutoSAM's table has the CNN head first with 1 and 5 labelled volumes (40.4 and 67.2 mean "
        "Dice against the U-Net's 17.6 and 51.8)",
        config=CnnConfig,
        work="conv2d",
        cost=head_cost,
    )
    return sam_row(context, spec)


register(
    Method(
        name="2d_cnn",
        dimension=2,
        summary="SAM encoder with a convolutional decoder",
        source="AutoSAM, arXiv 2306.13731, CNN head",
        config=CnnConfig,
        uses_encoder=True,
        row=row,
        trainer="samunet.trainers.cnn:CnnTrainer",
    )
)
