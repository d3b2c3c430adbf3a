"""`2d_desam`: decoupled decoder of SAM, for data from sites never seen (DeSAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.desam_costs import DEPTHS, desam_head_cost
from samunet.planning.head_costs import HeadInput
from samunet.planning.methods import Method, register
from samunet.planning.sam_config import SamHeadConfig
from samunet.planning.sam_costs import PartCost
from samunet.planning.sam_rows import HeadSpec, sam_row
from samunet.records import Bounds, Count, Natural, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class DesamConfig(SamHeadConfig):
    """Settings of `2d_desam` (DeSAM, arXiv 2306.00499)."""

    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW (the paper's, for Adam)."""
    mode: Literal["grid_points", "whole_box"] = "grid_points"
    """Prompts: points in or off the object (at prediction those of a grid), or one box around everything."""
    grid_side: Count = 9
    """Points along a side of the grid at prediction."""
    top_prompts: Count = 1
    """Masks that each class averages, weighted by predicted IoU; 1 takes the best."""
    min_iou: Annotated[float, Bounds(0, below=1)] = 0.0
    """Least predicted IoU of a prompt; a class without one is absent from the slice (the code: 0.5)."""
    context_blocks: tuple[Natural, ...] | None = None
    """Three 0-based encoder blocks that give the context; None takes the global ones but the last."""
    iou_weight: NotNegative = 10.0
    """Weight of the squared error of the predicted IoU beside Dice and cross entropy."""
    iou_head: bool = True
    """Learn how good a prompt is (the paper's ablation switches it off)."""
    fusion: bool = True
    """Join the mask embedding of the prompt at the bottom of the mask module (the ablation's switch)."""


def head_cost(place: HeadInput, config: DesamConfig) -> PartCost:
    """Cost of the head."""
    return desam_head_cost(place, prompted=config.fusion or config.iou_head, fused=config.fusion)


def row(context: PlanningContext) -> Candidate:
    """Plan `2d_desam`."""
    spec = HeadSpec(
        method="2d_desam",
        prior=0.5,
        evidence="DeSAM's study trains on one site and tests on five others (79.0 mean Dice against 48.8 of "
        "nnU-Net); few labelled volumes were not its question",
        config=DesamConfig,
        work="conv2d",
        cost=head_cost,
        cached_blocks=DEPTHS,
        elsewhere="DeSAM's study trains on one site of prostate MR and tests on five others (79.0 mean Dice "
        "against nnU-Net's 48.8, on foreground slices by its own protocol)",
    )
    return sam_row(context, spec)


register(
    Method(
        name="2d_desam",
        dimension=2,
        summary="SAM encoder with a decoder whose masks hardly depend on the prompt",
        source="DeSAM, arXiv 2306.00499",
        config=DesamConfig,
        uses_encoder=True,
        row=row,
        trainer="samunet.trainers.desam:DesamTrainer",
        prediction_settings=("grid_side", "top_prompts", "min_iou"),
    )
)
