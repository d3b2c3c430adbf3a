"""`2d_autosam`: SAM's mask decoder without prompts, one set of tokens a class (AutoSAM, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.head_costs import HeadInput, autosam_head_cost
from samunet.planning.methods import Method, register
from samunet.planning.sam_config import SkipHeadConfig
from samunet.planning.sam_costs import PartCost
from samunet.planning.sam_options import HeadSpec
from samunet.planning.sam_rows import sam_row
from samunet.records import Count


@dataclass(frozen=True, kw_only=True)
class AutoSamConfig(SkipHeadConfig):
    """Settings of `2d_autosam`. `head_width` None: the encoder's prompt width (256 for the official ones)."""

    class_chunk: Count | None = None
    """Classes decoded at once (copies of the embedding in memory); None decodes all together."""


def head_cost(place: HeadInput, config: AutoSamConfig) -> PartCost:
    """Cost of the head."""
    return autosam_head_cost(place, config.head_width or place.variant.prompt_dim)


def row(context: PlanningContext) -> Candidate:
    """Plan `2d_autosam`."""
    spec = HeadSpec(
        method="2d_autosam",
        prior=1.0,
        evidence="AutoSAM's table has this head level with the CNN head (39.3 and 67.1 mean Dice with 1 and "
        "5 labelled volumes) and best in surface distance",
        config=AutoSamConfig,
        work="vit",
        cost=head_cost,
    )
    return sam_row(context, spec)


register(
    Method(
        name="2d_autosam",
        dimension=2,
        summary="SAM encoder with SAM's own mask decoder, without prompts",
        source="AutoSAM, arXiv 2306.13731, ViT head",
        config=AutoSamConfig,
        uses_encoder=True,
        row=row,
        trainer="samunet.trainers.autosam:AutoSamTrainer",
    )
)
