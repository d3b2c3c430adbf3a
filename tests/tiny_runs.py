"""Small plans and stored cases for tests of training: no raw data, no planner."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samunet.data.geometry import Box, Geometry
from samunet.data.labels import LabelSet
from samunet.data.splits import Split
from samunet.networks.sam.variants import VARIANTS, OfficialFile
from samunet.networks.sam.weight_files import weights_sha256
from samunet.networks.sam.weights import build_parts
from samunet.planning.methods import get_method, known_settings
from samunet.planning.plan import (
    Budget,
    Configuration,
    DataConfiguration,
    Forecast,
    IntensityProperties,
    Plan,
)
from samunet.preprocessing.case import PreprocessedCase, SpatialRecord
from samunet.preprocessing.locations import sample_locations
from samunet.preprocessing.store import CaseStore
from samunet.trainers import get_trainer
from samunet.trainers.base import Phase, TrainingModule
from samunet.trainers.history import EpochRecord
from samunet.trainers.reporter import StepReport
from samunet.trainers.run import RunRequest
from samunet.whole_files import partial_path

WEIGHTS_FILE = VARIANTS["vit_micro"].file_name
"""The name under which weights of this variant are looked for in the weights folder."""
CLASSES = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,)})
REGIONS = LabelSet(labels={"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, region_order=(1, 2))
NAMES = ("case_0", "case_1", "case_2", "case_3")
CHANNELS = 2
SHAPE = (5, 22, 14)
PATCH_2D = (16, 16)
PATCH_3D = (4, 16, 16)

PHASE = Phase(
    name="training",
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=1e-2,
    epochs=100,
    iterations=20,
    val_iterations=4,
    schedule="poly_step",
    warmup_steps=50,
)


def write_cases(folder: Path, labels: LabelSet = CLASSES) -> CaseStore:
    """Four cases of two channels whose classes differ in intensity; the last one has no lesion."""
    store = CaseStore(folder)
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
        radius = np.sqrt(sum(g**2 for g in grids))
        label = np.where(radius < 0.9, 1, 0).astype(np.int16)
        if number < 3:
            label[radius < 0.45] = 2
        image = rng.normal(0, 0.3, (CHANNELS, *SHAPE)).astype(np.float32)
        image += np.array([0.0, 1.5, -1.5], np.float32)[label] * np.array([1, -0.7])[:, None, None, None]
        label[radius > 1.4] = -1
        if labels.ignore is not None:
            label[:, :2] = labels.ignore_index
        geometry = Geometry(shape=SHAPE, spacing_mm=(3.0, 1.0, 1.0))
        record = SpatialRecord(
            geometry=geometry,
            shape_before_crop=SHAPE,
            crop_box=Box(lower=(0, 0, 0), upper=SHAPE),
            shape=SHAPE,
            spacing_before_mm=geometry.spacing_mm,
            spacing_mm=geometry.spacing_mm,
        )
        case = PreprocessedCase(image=image.astype(np.float32), label=label, record=record)
        store.write(name, case, sample_locations(label, labels), key=f"key {number}", by_slice=True)
    return store


def data_configuration(dimension: int) -> DataConfiguration:
    return DataConfiguration(
        name=f"{dimension}d",
        dimension=dimension,
        spacing_mm=(3.0, 1.0, 1.0)[3 - dimension :],
        median_shape=tuple(float(n) for n in SHAPE[3 - dimension :]),
        max_shape=SHAPE[3 - dimension :],
        normalization=("zscore",) * CHANNELS,
        use_mask_for_norm=(True, False),
        display_window=((-2.0, 2.0),) * CHANNELS,
    )


def make_configuration(name: str, **changes: Any) -> Configuration:
    """A tiny configuration of a registered method; `settings` are merged into those of a short training."""
    method = get_method(name)
    settings = {"epochs": 2, "iterations": 3, "val_iterations": 2, **changes.pop("settings", {})}
    configuration = Configuration(
        name=method.name,
        method=method.name,
        data=f"{method.dimension}d",
        patch_size=PATCH_2D if method.dimension == 2 else PATCH_3D,
        batch_size=2,
        mirror_axes=tuple(range(method.dimension)),
        settings=settings,
        forecast=Forecast(memory_gb=1, step_seconds=1, train_hours=1, cache_gb=0, parameters=1, trainable=1),
    )
    if method.uses_encoder:
        tiny = {"encoder_weights": "random", "views": 2, "warmup_steps": 1}
        configuration = replace(
            configuration,
            encoder="vit_micro",
            input_size=64 if method.dimension == 2 else None,
            settings={**known_settings(method.config, tiny), **settings},
        )
    return replace(configuration, **changes)


def make_plan(configuration: Configuration, labels: LabelSet = CLASSES) -> Plan:
    intensity = IntensityProperties(
        mean=0, median=0, std=1, min=-3, max=3, percentile_00_5=-2, percentile_99_5=2
    )
    return Plan(
        name="tinyPlans",
        dataset="Dataset900_Tiny",
        fingerprint_hash="0" * 16,
        file_ending=".nii.gz",
        channel_names=("T1", "T2"),
        labels=labels,
        num_training=len(NAMES),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        original_median_spacing_mm=(3.0, 1.0, 1.0),
        original_median_shape=tuple(float(n) for n in SHAPE),
        intensity=(intensity,) * CHANNELS,
        budget=Budget(device="cpu", memory_gb=8, hours=1, disk_gb=10, gflops={}),
        data={"2d": data_configuration(2), "3d": data_configuration(3)},
        configurations={configuration.name: configuration},
        recommended=configuration.name,
        verdicts=(),
    )


def make_module(method: str, labels: LabelSet = CLASSES, **settings: Any) -> TrainingModule:
    """The training step of a method's tiny network; settings beside those of a short training."""
    configuration = make_configuration(method, settings=settings)
    plan, trainer = make_plan(configuration, labels), get_trainer(method)
    return trainer.build_training(trainer.build_network(plan, configuration), plan, configuration)


def make_request(root: Path, method: str, labels: LabelSet = CLASSES, **changes: Any) -> RunRequest:
    """A request to train `method` on cases of its own; `configuration_changes` change the configuration."""
    configuration = make_configuration(method, **changes.pop("configuration_changes", {}))
    cases = root / "cases"
    if not cases.exists():
        write_cases(cases, labels)
    request = RunRequest(
        plan=make_plan(configuration, labels),
        configuration=configuration.name,
        fold=0,
        split=Split(train=NAMES[:3], val=NAMES[3:] + NAMES[:1]),
        case_folder=cases,
        folder=root / "run" / "fold_0",
        embedding_folder=lambda signature: root / "embeddings" / signature,
        device="cpu",
        workers=0,
    )
    return replace(request, **changes)


class SilentReporter:
    """Says nothing."""

    def message(self, text: str) -> None:
        pass

    def status(self, text: str) -> None:
        pass

    def step(self, report: StepReport) -> None:
        pass

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        pass

    def close(self) -> None:
        pass


class Listener(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def write_weights(folder: Path, seed: int = 0) -> Path:
    """A complete tiny SAM with random weights, named as a shipped one."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    parts = build_parts(VARIANTS["vit_micro"])
    state: dict[str, Tensor] = {
        f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()
    }
    torch.save(state, folder / WEIGHTS_FILE)
    return folder / WEIGHTS_FILE


def publish_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make what `write_weights` has written the official file of its variant."""
    file = folder / WEIGHTS_FILE
    official = OfficialFile(name=file.name, size=file.stat().st_size, sha256=weights_sha256(file))
    monkeypatch.setitem(VARIANTS, "vit_micro", replace(VARIANTS["vit_micro"], official=official))


def abandoned(folder: Path) -> Path:
    """What a process that was killed days ago left half written in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (left := partial_path(folder / "case.nii.gz")).write_text("half")
    os.utime(left, (0, 0))
    return left
