"""`2d_desam`: decoupled decoder of SAM, for data from sites never seen (DeSAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from samunet.errors import SamunetError
from samunet.networks.desam_blocks import DEPTHS, chosen_blocks
from samunet.networks.sam.variants import get_variant
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.desam_costs import desam_head_cost
from samunet.planning.head_costs import HeadInput
from samunet.planning.methods import Method, register
from samunet.planning.sam_config import SamHeadConfig
from samunet.planning.sam_costs import PartCost
from samunet.planning.sam_options import HeadSpec
from samunet.planning.sam_rows import sam_row
from samunet.records import Bounds, Count, Natural, NotNegative, Positive

PROMPT_SETTINGS = ("grid_side", "top_prompts", "min_iou")
"""What prediction makes of the prompts' predicted IoU; nothing trained depends on it."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, cause in self._without_effect().items():
            value = getattr(self, name)
            if value != getattr(DesamConfig, name):
                shown = str(value).lower() if isinstance(value, bool) else value
                raise SamunetError(f"--set {name}={shown}: has no effect with {cause}. Leave it out.")

    def _without_effect(self) -> dict[str, str]:
        """Settings that nothing depends on -> because of what."""
        found: dict[str, str] = {}
        if self.mode == "whole_box":
            cause = "mode=whole_box, where no prompt is judged"
            found |= dict.fromkeys((*PROMPT_SETTINGS, "iou_weight", "iou_head"), cause)
        elif not self.iou_head:
            cause = "iou_head=false, where no prompt is judged"
            found |= dict.fromkeys(("top_prompts", "min_iou", "iou_weight"), cause)
        if not self.fusion:
            found["top_prompts"] = "fusion=false, where all prompts give one mask"
            if self.mode == "whole_box":
                found["fusion"] = (
                    "mode=whole_box, where the box has no other use (the mask module alone: iou_head=false "
                    "and fusion=false)"
                )
            elif not self.iou_head or not self.min_iou:
                found["grid_side"] = "fusion=false unless prompts are judged by min_iou"
        return found

    @property
    def judged(self) -> bool:
        """Whether the IoU of prompts is learnt."""
        return self.iou_head and self.mode == "grid_points"


def head_cost(place: HeadInput, config: DesamConfig) -> PartCost:
    """Cost of the head."""
    return desam_head_cost(place, judged=config.judged, fused=config.fusion)


def row(context: PlanningContext) -> Candidate:
    """Plan `2d_desam`."""
    spec = HeadSpec(
        method="2d_desam",
        prior=0.5,
        evidence="DeSAM's study trains on one site and tests on five others (79.0 mean Dice against 70.1 of "
        "CSDG and 48.8 of nnU-Net); few labelled volumes were not its question",
        config=DesamConfig,
        work="conv2d",
        cost=head_cost,
        cached_blocks=DEPTHS,
        elsewhere="DeSAM's study trains on one site of prostate MR and tests on five others: 79.0 mean Dice "
        "on foreground slices by its own protocol, against 70.1 of CSDG, a U-Net with augmentation made for "
        "one site, and 48.8 of nnU-Net as it is. Nobody has repeated that here",
    )
    candidate = sam_row(context, spec)
    asked, planned = context.settings.get("context_blocks"), candidate.configuration
    if asked is not None and planned is not None and planned.encoder is not None:
        chosen_blocks(get_variant(planned.encoder), tuple(asked))  # refuses blocks that are not there
    return candidate


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
        prediction_settings=PROMPT_SETTINGS,
    )
)
