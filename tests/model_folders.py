"""Model folders of untrained tiny networks, and images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tiny_runs import CHANNELS, CLASSES, make_configuration, make_plan

from samunet.data.labels import LabelSet
from samunet.inference.predictor import Predictor
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.trainers import get_trainer
from samunet.trainers.checkpoint import Checkpoint, save_checkpoint
from samunet.workspace import FINAL

SPACING = (3.0, 1.0, 1.0)


def save_fold(model: Path, plan: Plan, method: str, fold: int | str, **fields: object) -> None:
    """The checkpoint of a fold; `fields` are those of `Checkpoint`, its `network` among them."""
    usual = {"epoch": 1, "base_weights": None, "seed": 0, "overrides": {}, "training": {}}
    checkpoint = Checkpoint(
        method=method,
        trainer=get_method(method).trainer,
        configuration=method,
        plan=plan,
        fold=fold,
        mirror_axes=plan.configuration(method).mirror_axes,
        **{**usual, **fields},
    )
    save_checkpoint(model / f"fold_{fold}" / FINAL, checkpoint)


def write_fold(
    model: Path,
    fold: int | str,
    *,
    method: str = "2d_unet",
    labels: LabelSet = CLASSES,
    encoder: dict[str, torch.Tensor] | None = None,
    network_seed: int | None = None,
    **changes: object,
) -> dict[str, torch.Tensor]:
    """An untrained network as the checkpoint of a fold.

    Args:
        encoder: tensors for its encoder; empty ones are random.
        network_seed: of its weights, by default the fold's.

    Returns:
        The encoder's tensors, to be given to the next network.
    """
    plan = make_plan(make_configuration(method, **changes), labels)
    torch.manual_seed(network_seed or (17 if fold == "all" else int(fold)))
    network = get_trainer(method).build_network(plan, plan.configuration(method))
    if encoder:
        network.encoder.load_state_dict(encoder)
    save_fold(model, plan, method, fold, network=dict(network.state_dict()))
    return dict(network.encoder.state_dict()) if method.startswith("2d") and hasattr(network, "head") else {}


def load(model: Path, **settings: object) -> Predictor:
    return Predictor.load(model, device="cpu", **settings)  # type: ignore[arg-type]


def write_images(folder: Path, names: tuple[str, ...]) -> None:
    """Two-channel cases of (4, 20, 18) voxels."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in names:
        for channel in range(CHANNELS):
            image = sitk.GetImageFromArray(rng.normal(100, 20, (4, 20, 18)).astype(np.float32))
            image.SetSpacing(SPACING[::-1])
            sitk.WriteImage(image, str(folder / f"{name}_{channel:04d}.nii.gz"))
