"""`2d_linear`: a linear head with a learned fourfold upsampling on a SAM encoder (AutoSAM, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.networks.sam.variants import PAPER_LINEAR_WIDTH
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.head_costs import HeadInput, linear_head_cost
from samunet.planning.methods import Method, register
from samunet.planning.sam_config import PaperHeadConfig
from samunet.planning.sam_costs import PartCost
from samunet.planning.sam_options import HeadSpec
from samunet.planning.sam_rows import sam_row

PROBE = -45.0
"""Below every method that fits, however short its schedule: the head shows what the encoder knows."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig(PaperHeadConfig):
    """Settings of `2d_linear`. `head_width` None: 64 channels after the first upsampling, then half."""


def head_cost(place: HeadInput, config: LinearConfig) -> PartCost:
    """Cost of the head."""
    return linear_head_cost(place, config.head_width or PAPER_LINEAR_WIDTH)


def row(context: PlanningContext) -> Candidate:
    """Plan `2d_linear`."""
    spec = HeadSpec(
        method="2d_linear",
        prior=PROBE,
        evidence="AutoSAM's table gives the linear head 22.9 and 31.1 mean Dice with 1 and 5 labelled "
        "volumes, with 5 below even the U-Net's 51.8",
        config=LinearConfig,
        work="conv2d",
        cost=head_cost,
    )
    return sam_row(context, spec)


register(
    Method(
        name="2d_linear",
        dimension=2,
        summary="SAM encoder with a linear head (the smallest)",
        source="AutoSAM, arXiv 2306.13731, linear head",
        config=LinearConfig,
        uses_encoder=True,
        row=row,
        trainer="samunet.trainers.linear:LinearTrainer",
    )
)
