"""`2d_desam`: training with a point inside or outside the object, always called positive (DeSAM, section
3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        if head.pointed:
            points, inside_classes = self._draw(target, head.settings.outputs, network, batch["draw"])
        masks, iou = head.prompted(head.context(features), features, head.training_tokens(points))
        logits = network.picture.to_slice(head.with_background(masks[:, 0]), size)
        losses = self.loss(logits, target)
        if iou is not None and inside_classes is not None:
            known = labelled_voxels(target, self.settings).flatten(1).any(1)
            error = _mean_error(iou[:, 0].float(), inside_classes, known)
            losses = {**losses, "loss": losses["loss"] + self.iou_weight * error, "iou": error}
        return losses if self.training else {**losses, **patch_counts(logits, target, self.settings)}

    def _draw(
        self, target: Tensor, outputs: int, network: SamSliceNetwork, numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A point for each slice.

        Args:
            numbers: random numbers (B, 3) from 0 to 1: whether on an object, of which class, at which pixel.

        Returns:
            Points (B, 2), input pixels x, y; classes that they lie on (B, K), 0 or 1.
        """
        maps = foreground_maps(outputs, target, self.settings)
        pixels = _draw_pixels(maps.bool(), labelled_voxels(target, self.settings)[:, 0], numbers)
        found = maps.flatten(2).gather(2, pixels[:, None, None].expand(-1, outputs, 1))[..., 0]
        height, width = target.shape[2:]
        rows, columns = network.picture.covered((height, width))
        x = (pixels % width + 0.5) * (columns / width) - 0.5
        y = (pixels // width + 0.5) * (rows / height) - 0.5
        return torch.stack([x, y], dim=1), found


def _mean_error(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Mean squared error of (B, K) over the slices that are known (B,); of the others nobody can say whether
    a prompt was good."""
    each = functional.mse_loss(found, wanted, reduction="none").mean(1)
    return (each * known).sum() / known.sum().clamp_min(1)


def _draw_pixels(maps: Tensor, labelled: Tensor, numbers: Tensor) -> Tensor:
    """Places (B,) in the flattened slices of (B, K, H, W) truth values: of a random class that is present, or
    of none, 1 : 1. Nothing here waits for the device.

    Pixels that are not labelled (B, H, W) may be anything, so that they are taken only where a slice has no
    others.
    """
    maps, labelled = maps.flatten(2), labelled.flatten(1)
    side, which, where = numbers.unbind(1)
    present = maps.any(2)
    background = ~maps.any(1) & labelled
    has_object, has_background = present.any(1), background.any(1)
    on_object = has_object & ((side < INSIDE) | ~has_background)
    number = _pick(present, which)[:, None, None].expand(-1, 1, maps.shape[2])
    elsewhere = torch.where(has_background[:, None], background, ~labelled)
    return _pick(torch.where(on_object[:, None], maps.gather(1, number)[:, 0], elsewhere), where)


def _pick(choices: Tensor, number: Tensor) -> Tensor:
    """Place of a random true value in each row of (B, N), all with the same chance, by a number (B,) from 0
    to 1; any place in rows without one."""
    counts = choices.cumsum(1)
    rank = (number * counts[:, -1]).long().minimum(counts[:, -1] - 1)
    return (counts <= rank[:, None]).sum(1).clamp_max(choices.shape[1] - 1)


class DesamTrainer(SamHeadTrainer):
    """Trains the head, and the encoder too with `encoder=full`; see sam_heads.py for the recipe."""

    @classmethod
    def build_head_network(cls, settings: SliceSettings, config: DesamConfig) -> SamSliceNetwork:
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
