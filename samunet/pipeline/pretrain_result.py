"""What a pretraining leaves: a SAM state dict, and a card that says what it was made of."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from samunet.errors import SamunetError
from samunet.networks.sam.tensor_files import write_sam_pair
from samunet.networks.sam.weight_files import ENCODER_ENDING, file_sha256
from samunet.records import atomic_path, read_json, to_data, write_json
from samunet.trainers.devices import hardware, versions
from samunet.trainers.history import read_history
from samunet.trainers.pretrain_run import PretrainRun

logger = logging.getLogger(__name__)

CARD_KIND = "samunet pretraining card"


def check_target(weights: Path, *, overwrite: bool) -> None:
    """Refuse to write over a weights file that is not a pretraining's, or over one without `overwrite`.

    Raises:
        SamunetError: says which.
    """
    if not weights.exists():
        return
    card = weights.with_suffix(".json")
    if not card.is_file() or read_json(card).get("kind") != CARD_KIND:
        raise SamunetError(f"{weights} was not made by samunet_pretrain; take another name with -o.")
    if not overwrite:
        raise SamunetError(f"{weights} exists. Replace it with --overwrite, or take another name with -o.")


def write_result(run: PretrainRun, weights: Path) -> Path:
    """Write the state dict, then its card; each is complete or absent.

    Args:
        run: finished.
        weights: NAME.pth; the card is NAME.json beside it.
    """
    with atomic_path(weights) as temporary, temporary.open("wb") as file:
        torch.save(run.sam_state(), file)
    write_json(weights.with_suffix(".json"), card(run, weights))
    return weights


def write_pair(run: PretrainRun, weights: Path) -> tuple[Path, Path]:
    """Write the result in fp16 too, into a folder of its own so that no file can be mistaken for another."""
    folder = weights.with_name(f"{weights.stem}_fp16")
    encoder = folder / f"{weights.stem}{ENCODER_ENDING}"
    words = {"encoder": run.settings.encoder, "made_from_sha256": file_sha256(weights)}
    pair = write_sam_pair(encoder, run.sam_state(), words)
    hashes = {file.name: file_sha256(file) for file in pair}
    write_json(folder / f"{weights.stem}.json", {**card(run, weights), "fp16_sha256": hashes})
    return pair


def card(run: PretrainRun, weights: Path) -> dict[str, Any]:
    """Facts about a finished pretraining in plain data."""
    settings, history = run.settings, read_history(run.folder)
    last = history[-1] if history else None
    return {
        "kind": CARD_KIND,
        "file": weights.name,
        "sha256": file_sha256(weights),
        "encoder": settings.encoder,
        "parameters": sum(p.numel() for p in run.module.network.sam.parameters()),
        "objective": dict(zip(settings.tasks, settings.weights)),
        "steps": run.steps,
        "seed": settings.seed,
        "settings": to_data(settings),
        "sources": run.data,
        "last_validation": None if last is None else {"loss": last.val, "pixel_dice": last.patch_dice},
        "training_hours": round(sum(record.seconds for record in history) / 3600, 3),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "precision": run.precision.name,
        "hardware": hardware(run.device),
        "versions": versions(),
    }
