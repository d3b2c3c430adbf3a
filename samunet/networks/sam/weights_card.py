"""The card of weights trained with samunet: where they come from and how to make them again. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.networks.sam.weight_files import ENCODER_ENDING, weights_sha256
from samunet.records import read_record, write_json

CARD_ENDING = "_card.json"


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """A source of training images.

    Attributes:
        name: dataset, folder, or `synthetic`.
        licence: of the images, such as CC0-1.0; `not declared` where nobody said.
        images: how many different ones there were; None without end.
        share: of all draws, 0..1.
        case_names_hash: `content_hash` of the sorted names of its cases; None where it has none, or its
            card does not say.
        excluded_names: of cases that were kept out.
    """

    name: str
    licence: str
    images: int | None
    share: float
    case_names_hash: str | None = None
    excluded_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CardTeacher:
    """Another SAM that went into a pretraining: whose embeddings were learnt, or whose weights it began with.

    Attributes:
        name: of its file.
        variant / sha256 / input_size: what it is, and the side in pixels of what it was shown.
        licence: of its weights; `unknown` where no card says it, the sources' where it has a card.
        card: its own, or None.
    """

    name: str
    variant: str
    sha256: str
    input_size: int
    licence: str
    card: WeightsCard | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """What a weights file is and what it was made from.

    Attributes:
        variant: encoder, such as vit_tiny.
        sha256: of the weights, as `weights_sha256` gives it.
        sources: training images, each with its licence.
        excluded: source -> number of its cases that were kept out.
        objectives: names of the objectives with their weights.
        steps / batch / seed: of the training; `seconds` is its wall time.
        settings: everything else that one needs to repeat it.
        validation: last losses and scores of the training.
        hardware: it ran on.
        versions: of samunet, torch and other packages by name.
        teacher: whose embeddings were distilled, or None.
        start: whose weights it began with (and kept, with adapters), or None.
    """

    variant: str
    sha256: str
    sources: tuple[CardSource, ...]
    excluded: dict[str, int]
    objectives: dict[str, float]
    steps: int
    batch: int
    seed: int
    seconds: float
    settings: dict[str, Any]
    validation: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    teacher: CardTeacher | None = None
    start: CardTeacher | None = None


def card_file(weights: Path) -> Path:
    """`x_card.json` beside `x.pth`, or beside the pair `x_encoder.safetensors`, `x_decoder.safetensors`."""
    name = weights.name
    stem = name.removesuffix(ENCODER_ENDING) if name.endswith(ENCODER_ENDING) else weights.stem
    return weights.with_name(stem + CARD_ENDING)


def write_card(weights: Path, card: WeightsCard) -> Path:
    """Write the card beside complete weights; returns its file."""
    assert card.sha256 == weights_sha256(weights)
    write_json(card_file(weights), card)
    return card_file(weights)


def read_card(weights: Path) -> WeightsCard | None:
    """The card beside a weights file, or None where there is none.

    Raises:
        SamunetError: the card is damaged, or it describes other weights.
    """
    path = card_file(weights)
    if not path.is_file():
        return None
    card = read_record(WeightsCard, path)
    found = weights_sha256(weights)
    if card.sha256 != found:
        raise SamunetError(
            f"{path} describes other weights (SHA-256 {card.sha256[:12]}...) than {weights.name} holds "
            f"({found[:12]}...). Put the right card beside the file, or remove it."
        )
    return card
