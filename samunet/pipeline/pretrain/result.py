"""What a pretraining leaves: a SAM state dict, and a card that says what it was made of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.networks.sam.weight_files import weights_sha256
from samunet.networks.sam.weights_card import (
    CardSource,
    CardTeacher,
    WeightsCard,
    card_file,
    read_card,
    write_card,
)
from samunet.networks.sam.weights_writer import write_pair, write_weights
from samunet.records import to_data, write_json
from samunet.trainers.devices import hardware, versions
from samunet.trainers.history import read_history
from samunet.trainers.pretrain_run import PretrainRun
from samunet.workspace import PRETRAINING_FILE

logger = logging.getLogger(__name__)


def check_target(weights: Path, *, overwrite: bool) -> None:
    """Refuse to write over a weights file that is not a pretraining's, or over one without `overwrite`.

    Raises:
        SamunetError: says which.
    """
    if not weights.exists():
        return
    if read_card(weights) is None:
        raise SamunetError(f"{weights} was not made by samunet_pretrain; take another name with -o.")
    if not overwrite:
        raise SamunetError(f"{weights} exists. Replace it with --overwrite, or take another name with -o.")


def write_result(run: PretrainRun, weights: Path, start: CardTeacher | None) -> Path:
    """Write the state dict, then its card; each is complete or absent.

    Args:
        run: finished.
        weights: NAME.pth; the card is NAME_card.json beside it.
        start: the weights it began with, as they and their card were then: the result may replace both.
    """
    card_file(weights).unlink(missing_ok=True)  # of what is replaced
    write_weights(run.sam_state(), weights)
    write_card(weights, card(run, weights, start))
    return weights


def write_half(run: PretrainRun, weights: Path, start: CardTeacher | None) -> Path:
    """Write the result as a pair of fp16 files too, in a folder of its own so that no file is mistaken."""
    encoder = write_pair(run.sam_state(), weights.with_name(f"{weights.stem}_fp16"), weights.stem)
    write_card(encoder, card(run, encoder, start))
    return encoder


def write_record(run: PretrainRun, start: CardTeacher | None) -> None:
    """What is trained, on what and for how long, beside the history: as the card will say it at the end."""
    write_json(run.folder / PRETRAINING_FILE, _made_of(run, start))


def card(run: PretrainRun, weights: Path, start: CardTeacher | None) -> WeightsCard:
    """What a finished pretraining's weights are and came from."""
    history = read_history(run.folder)
    last = history[-1] if history else None
    return WeightsCard(
        sha256=weights_sha256(weights),
        seconds=round(sum(record.seconds for record in history), 1),
        validation={} if last is None else {"loss": last.val, "pixel_dice": last.patch_dice},
        **_made_of(run, start),
    )


def _made_of(run: PretrainRun, start: CardTeacher | None) -> dict[str, Any]:
    """The fields of the card that are known before a step is made."""
    settings = run.settings
    return {
        "variant": settings.encoder,
        "sources": tuple(_source(entry, run.licences) for entry in run.data),
        "excluded": {entry["source"]: entry.get("excluded_cases", 0) for entry in run.data},
        "objectives": dict(zip(settings.tasks, settings.weights)),
        "steps": run.steps,
        "batch": settings.batch_size,
        "seed": settings.seed,
        "settings": to_data(settings),
        "hardware": hardware(run.device),
        "versions": versions(),
        "teacher": None if run.teacher is None else run.teacher.card,
        "start": start,
    }


def _source(entry: dict[str, Any], licences: dict[str, str]) -> CardSource:
    return CardSource(
        name=entry["source"],
        licence=licences.get(entry["source"], entry["licence"]),
        images=entry.get("slices"),
        share=entry["share"],
        case_names_hash=entry.get("case_names_hash"),
        excluded_names=tuple(entry.get("excluded_names", ())),
    )
