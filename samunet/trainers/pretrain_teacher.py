"""The frozen SAM that a pretraining learns from, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.weights import SamWeights, read_any_weights
from samunet.networks.sam.weights_card import CardTeacher, read_card
from samunet.networks.teacher import teacher_embedding


@dataclass(frozen=True)
class Teacher:
    """Never part of the trained network, so that neither checkpoints nor optimizers hold it.

    Attributes:
        card: name, variant, hash and input size.
        encoder: frozen.
    """

    card: CardTeacher
    encoder: SamImageEncoder = field(repr=False)

    @property
    def channels(self) -> int:
        """Of its embedding."""
        return self.encoder.variant.prompt_dim

    def embed(self, picture: Tensor) -> Tensor:
        """Pictures (B, 3, S, S), normalised -> (B, T, h, h)."""
        return teacher_embedding(self.encoder, picture)


def load_teacher(path: Path, size: int | None, device: torch.device) -> Teacher:
    """Read a teacher from any SAM weights file; which variant it is, its keys say.

    Args:
        path: official, MedSAM's, or our own.
        size: side in pixels of its input; None takes the one its tables are made for.
        device: it computes there.

    Raises:
        SamunetError: the file is no SAM, or the size no multiple of 16.
    """
    weights = read_any_weights(path)
    variant = weights.variant
    encoder = SamImageEncoder(variant, size or variant.native_size)
    encoder.load_tables(weights.image_encoder)
    encoder.eval().requires_grad_(False)
    return Teacher(card_of(weights, encoder.img_size), encoder.to(device))


def card_of(weights: SamWeights, input_size: int) -> CardTeacher:
    """What a card says of another SAM that went into a pretraining, its own card within.

    Raises:
        SamunetError: the card beside the weights is damaged, or of others.
    """
    official, card = weights.variant.official, read_card(weights.path)
    if official is not None and official.sha256 == weights.sha256:
        licence = official.licence
    elif card is not None:
        licence = "; ".join(f"{source.name}: {source.licence}" for source in card.sources)
    else:
        licence = "unknown"
    return CardTeacher(
        name=weights.path.name,
        variant=weights.variant.name,
        sha256=weights.sha256,
        input_size=input_size,
        licence=licence,
        card=card,
    )
