"""Model folders to share: random networks as the checkpoints of folds, with all records beside them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from model_folders import save_fold
from tiny_runs import CHANNELS, CLASSES, make_configuration, make_plan

from samunet.data.labels import LabelSet
from samunet.networks.sam.weight_files import weights_sha256
from samunet.planning.fingerprint import CaseFingerprint, ChannelStatistics, Fingerprint
from samunet.planning.plan import Plan
from samunet.records import write_json
from samunet.trainers import get_trainer
from samunet.trainers.checkpoint import BaseWeights, network_state

DATASET = "Dataset900_Tiny"
PATIENT = "mueller_1951"
"""Part of the names of cases, which must not leave the house."""
SPACING = (3.0, 1.0, 1.0)


def write_model(
    results: Path,
    method: str = "2d_unet",
    folds: tuple[int | str, ...] = (0, 1),
    *,
    labels: LabelSet = CLASSES,
    base: Path | None = None,
    **changes: Any,
) -> Path:
    """A model folder results/Dataset900_Tiny/METHOD__tinyPlans.

    Args:
        base: SAM weights that the frozen encoder starts from; checkpoints leave them out.
        changes: of the configuration.
    """
    told = {"weights": f"/home/{PATIENT}/own.pth"}
    plan = replace(make_plan(make_configuration(method, **changes), labels), overrides=told)
    folder = results / DATASET / f"{method}__tinyPlans"
    for fold in folds:
        write_based_fold(folder, plan, method, fold, base)
    plan.save(folder / "plan.json")
    write_json(folder / "dataset.json", dataset_json(labels))
    write_json(folder / "fingerprint.json", make_fingerprint(plan))
    return folder


def write_based_fold(folder: Path, plan: Plan, method: str, fold: int | str, base: Path | None) -> None:
    torch.manual_seed(17 if fold == "all" else int(fold))
    network = get_trainer(method).build_network(plan, plan.configuration(method), weights=base)
    left_out = None
    if base is not None:
        left_out = BaseWeights(
            variant="vit_micro", file=base.name, sha256=weights_sha256(base), prefix="encoder."
        )
    save_fold(
        folder,
        plan,
        method,
        fold,
        epoch=3,
        network=network_state(network, left_out),
        base_weights=left_out,
        overrides={**plan.overrides, "splits": f"single_source:{PATIENT}"},
        training={"optimizer": {"state": torch.zeros(3)}},
    )


def dataset_json(labels: LabelSet) -> dict[str, Any]:
    """As Medical Decathlon writes it: with the names of all images."""
    return {
        "description": "made up",
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {name: list(v) if len(v) > 1 else v[0] for name, v in labels.labels.items()},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "training": [{"image": f"./imagesTr/{PATIENT}_0.nii.gz", "label": f"./labelsTr/{PATIENT}_0.nii.gz"}],
        "contact": PATIENT,
    }


def make_fingerprint(plan: Plan) -> Fingerprint:
    cases = tuple(
        CaseFingerprint(
            name=f"{PATIENT}_{number}",
            content="f" * 16,
            shape=(6, 30, 26),
            shape_after_crop=(6, 20 + number, 26),
            spacing_mm=(3.0 + number, 1.0, 1.0),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            is_2d=False,
            relative_size=1.0,
            channels=(channel(100.0 + number), channel(50.0)),
            channels_in_mask=(channel(100.0), channel(50.0)),
            class_voxels=dict(zip(plan.labels.foreground, (500, 10 * number))),
            class_components=dict(zip(plan.labels.foreground, (1, number))),
        )
        for number in range(3)
    )
    return Fingerprint(
        dataset=plan.dataset,
        data_hash="0" * 16,
        stamp="0" * 16,
        file_ending=plan.file_ending,
        channel_names=plan.channel_names,
        labels=plan.labels,
        cases=cases,
        intensity=plan.intensity,
        laterality_pairs=(),
        groups={case.name: PATIENT for case in cases},
        natural_image=False,
    )


def channel(mean: float) -> ChannelStatistics:
    return ChannelStatistics(mean=mean, std=10.0, percentile_00_5=mean - 30, percentile_99_5=mean + 30)


def write_images(folder: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """Two-channel volumes, zero outside a box, so that cropping acts."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in names:
        for number in range(CHANNELS):
            array = np.zeros((5, 26, 24), np.float32)
            array[1:, 2:24, 1:21] = rng.normal(100, 20, (4, 22, 20))
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(SPACING[::-1])
            sitk.WriteImage(image, str(folder / f"{name}_{number:04d}.nii.gz"))
    return folder


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    """Label maps of a folder by name."""
    files = sorted(folder.glob("*.nii.gz"))
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files}


Change = Callable[[dict[str, bytes]], None]


def changed_zip(source: Path, target: Path, change: Change, *, relist: bool = True) -> Path:
    """A copy of a shared model with other files.

    Args:
        change: changes name -> content.
        relist: list the hashes of the new content in model.json, as somebody would who means harm.
    """
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if relist:
        files["model.json"] = relisted(files)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def relisted(files: dict[str, bytes]) -> bytes:
    import hashlib

    record = json.load(io.BytesIO(files["model.json"]))
    record["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
        if name != "model.json"
    }
    return json.dumps(record).encode()
