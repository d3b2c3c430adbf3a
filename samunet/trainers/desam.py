"""`2d_desam`: training with a point inside or outside the object, always called positive (DeSAM, section
3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.errors import SamunetError
from samunet.networks.desam import DesamHead, DesamSettings, build_desam
from samunet.networks.picture import SliceSettings
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.planning.methods.desam import DesamConfig
from samunet.planning.plan import Configuration, Plan
from samunet.preprocessing.embedding_build import cached_features
from samunet.trainers.base import TrainingModule, config_of, loss_settings
from samunet.trainers.losses import (
    LossSettings,
    SegmentationLoss,
    foreground_maps,
    labelled_voxels,
    patch_counts,
)
from samunet.trainers.sam_heads import SamHeadTrainer

INSIDE = 0.5
"""Chance of a point on the object."""


class DesamModule(TrainingModule):
    """Dice + CE of the masks, whatever the prompt, and the squared error of the predicted IoU.

    The mask's target never depends on the point; the IoU's target is 1 for the classes that the point lies
    on, else 0.
    """

    def __init__(self, network: SamSliceNetwork, settings: LossSettings, iou_weight: float) -> None:
        super().__init__(network)
        self.settings = settings
        self.loss = SegmentationLoss(settings)
        self.iou_weight = iou_weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        network, target = self.network, batch["target"]
        assert isinstance(network, SamSliceNetwork)
        assert isinstance(network.head, DesamHead)
        size = tuple(target.shape[2:])
        features = cached_features(batch, size)
        if features is None:
            features = network.encode(batch["image"])
        features = network.as_head_type(features)
        head = network.head
        inside_classes: Tensor | None = None
        points: Tensor | None = None
        if head.judged:
            points, inside_classes = self._draw(target, head.settings.outputs, network, batch["draw"])
        masks, iou = head.prompted(head.context(features), features, head.training_tokens(points))
        logits = network.picture.to_slice(head.with_background(masks[:, 0]), size)
        losses = self.loss(logits, target)
        if iou is not None and inside_classes is not None:
            error = functional.mse_loss(iou[:, 0].float(), inside_classes)
            losses = {**losses, "loss": losses["loss"] + self.iou_weight * error, "iou": error}
        return losses if self.training else {**losses, **patch_counts(logits, target, self.settings)}

    def _draw(
        self, target: Tensor, outputs: int, network: SamSliceNetwork, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A point for each slice, by its seed (B,): points (B, 2), input pixels x, y; classes that it lies on
        (B, K), 0 or 1."""
        maps = foreground_maps(outputs, target, self.settings)
        labelled = labelled_voxels(target, self.settings)
        pixels = torch.stack([_draw_pixel(*slice_) for slice_ in zip(maps, labelled[:, 0], seeds.tolist())])
        rows, columns = pixels.unbind(1)
        numbers = torch.arange(len(maps), device=maps.device)
        covered = network.picture.covered(tuple(target.shape[2:]))
        scale = pixels.new_tensor([c / n for c, n in zip(covered, target.shape[2:])], dtype=torch.float32)
        places = (pixels + 0.5) * scale - 0.5
        return places.flip(1), maps[numbers, :, rows, columns]


def _draw_pixel(maps: Tensor, labelled: Tensor, seed: int) -> Tensor:
    """Row and column of a pixel of (K, H, W) maps: of a random class that is present, or of none, 1 : 1.

    Pixels that are not labelled (H, W) may be anything, so they are taken only where a slice has no others.
    """
    generator = torch.Generator().manual_seed(seed)
    present = maps.flatten(1).any(1).nonzero()[:, 0]
    wants_object = bool(torch.rand((), generator=generator) < INSIDE)
    background = ~maps.bool().any(0) & labelled
    if len(present) and (wants_object or not background.any()):
        chosen = maps[present[_any(len(present), generator)]].bool()
    else:
        chosen = background if background.any() else ~labelled
    places = chosen.nonzero()
    return places[_any(len(places), generator)]


def _any(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))


class DesamTrainer(SamHeadTrainer):
    """Trains the head, and the encoder too with `encoder=full`; see sam_heads.py for the recipe."""

    @classmethod
    def build_head_network(cls, settings: SliceSettings, config: DesamConfig) -> SamSliceNetwork:
        if config.head_width is not None:
            raise SamunetError("2d_desam has no head_width: its widths follow from the encoder.")
        if config.paper_compat:
            raise SamunetError(
                "2d_desam has no paper_compat, which means AutoSAM's public code. Where DeSAM's code "
                "differs, its page names the settings (min_iou, iou_weight)."
            )
        head = DesamSettings(
            variant=get_variant(settings.variant),
            outputs=settings.num_outputs - settings.exclusive,
            background=settings.exclusive,
            input_size=settings.input_size,
            mode=config.mode,
            grid_side=config.grid_side,
            top_prompts=config.top_prompts,
            min_iou=config.min_iou,
            context_blocks=config.context_blocks,
            iou_head=config.iou_head,
            fusion=config.fusion,
        )
        return build_desam(settings, head)

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        config = config_of(configuration)
        assert isinstance(config, DesamConfig)
        assert isinstance(network, SamSliceNetwork)
        return DesamModule(network, loss_settings(plan, configuration), config.iou_weight)
