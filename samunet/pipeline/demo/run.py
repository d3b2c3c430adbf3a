"""The whole way on generated data in minutes: phantom, plan, two trainings, prediction, scores, a summary.

Everything is done by the functions behind the console scripts. The two methods train for minutes instead of
hours, with a schedule to match; which settings differ from the plan stands in DEMO_METHODS and on the page.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samunet.data.dataset import find_cases
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.folder import evaluate_folder
from samunet.evaluation.scores import Evaluation
from samunet.listing import shown_command
from samunet.pipeline.demo.page import DemoPage, MethodResult, draw_comparisons, write_page
from samunet.pipeline.demo.phantom import FILE_ENDING, PHANTOM_DATASET, write_phantom_dataset
from samunet.pipeline.plan_and_preprocess import PlanOptions, plan, preprocess
from samunet.pipeline.qc.predictions import assess
from samunet.pipeline.setting_flags import setting_flags
from samunet.pipeline.train import TrainOptions, train
from samunet.planning.plan import Plan
from samunet.records import read_json
from samunet.workspace import DATASET_FILE, SUMMARY_FILE, Workspace

logger = logging.getLogger(__name__)

FOLD = "all"
"""Both methods train on every training case; the held-out cases lie in imagesTs and are never trained on."""
ENCODER = "vit_tiny"
TAG = "by_hand"
"""Of the trainings that the page's commands make."""
QUICK_EPOCHS = 3
"""Fewer epochs, fewer checkpoints."""


@dataclass(frozen=True, kw_only=True)
class DemoMethod:
    """One training of the demo.

    Attributes:
        minutes: time budget of the training; `quick_minutes` of the quick form.
        settings: what differs from the plan, so that minutes suffice.
        why: the reason in plain words, for the page.
    """

    name: str
    minutes: float
    quick_minutes: float
    settings: dict[str, Any]
    why: str

    def chosen(self, quick: bool) -> tuple[float, dict[str, Any]]:
        """Minutes and settings of the full or the quick form."""
        if quick:
            return self.quick_minutes, {**self.settings, "epochs": QUICK_EPOCHS}
        return self.minutes, self.settings


_SHORT = {"epochs": 10, "val_iterations": 1, "augmentation": "light", "mirror_axes": []}
"""A few hundred steps learn where organs lie sooner when the pictures are not turned over as well."""

DEMO_METHODS = (
    DemoMethod(
        name="2d_unet",
        minutes=2.0,
        quick_minutes=0.25,
        settings={**_SHORT, "iterations": 60, "batch_size": 2, "learning_rate": 0.1, "momentum": 0.9},
        why="nnU-Net's momentum of 0.99 and rate of 0.01 are made for 250000 steps and have hardly got going "
        "after a few hundred; small batches give more steps in the same time",
    ),
    DemoMethod(
        name="2d_cnn",
        minutes=2.0,
        quick_minutes=0.35,
        settings={
            **_SHORT,
            "iterations": 60,
            "batch_size": 4,
            "learning_rate": 2e-3,
            "cache": True,
            "views": 1,
        },
        why="pretrained weights are kept and cached: in so short a time that gives twice the steps, and "
        "phantoms are like what they were made from; small batches give more steps again",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the user chooses.

    Attributes:
        workspace: folder for everything; data of an earlier demo in it are replaced.
        quick: fewer cases and shorter trainings, to see that everything runs; the scores are then low.
    """

    workspace: Path
    quick: bool = False
    seed: int = 0
    device: str = "auto"

    @property
    def num_training(self) -> int:
        return 8 if self.quick else 20

    @property
    def num_test(self) -> int:
        return 2 if self.quick else 6


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Where the results lie, and the held-out scores: method -> mean foreground Dice, class -> mean Dice."""

    folder: Path
    page: Path
    pictures: tuple[Path, ...]
    mean_dice: dict[str, float]
    seconds: float
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    def text(self) -> str:
        """The result in plain words."""
        scores = ", ".join(f"{name} {dice:.3f}" for name, dice in self.mean_dice.items())
        return "\n".join(
            [
                f"Mean Dice on held-out cases: {scores}",
                f"Done in {self.seconds / 60:.1f} minutes. Everything lies in {self.folder}:",
                f"  {self.page}  (open it in a browser)",
                f"  {self.pictures[0].parent}  ({len(self.pictures)} pictures)",
            ]
        )


def run_demo(options: DemoOptions) -> DemoReport:
    """Generate, plan, preprocess, train, predict, score, and write the page.

    Raises:
        SamunetError: the folder holds a dataset of that name that no demo made.
        KeyboardInterrupt: training was interrupted.
    """
    clock = _Clock()
    root = Path(options.workspace).resolve()
    workspace = _open_workspace(root)
    _clear(workspace)
    raw = workspace.raw / PHANTOM_DATASET
    with clock.stage("generate the phantom"):
        write_phantom_dataset(
            raw, num_training=options.num_training, num_test=options.num_test, seed=options.seed
        )
    with clock.stage("plan and preprocess"):
        names = [method.name for method in DEMO_METHODS]
        made = plan(workspace, PHANTOM_DATASET, PlanOptions(device=options.device, encoder=ENCODER))
        preprocess(workspace, made, names)
    results = []
    for method in DEMO_METHODS:
        with clock.stage(f"train {method.name}"):
            _train(workspace, method, options)
        with clock.stage(f"predict and score {method.name}"):
            results.append(_predict(workspace, method, options))
    page = DemoPage(
        root=root,
        plan=made,
        results=tuple(results),
        quick=options.quick,
        num_training=options.num_training,
        commands=_commands(options),
        machine=_machine(options),
    )
    with clock.stage("draw"):
        pictures = draw_comparisons(raw, page)
    file = write_page(page, pictures, clock.seconds)
    return DemoReport(
        folder=root,
        page=file,
        pictures=pictures,
        mean_dice={r.name: r.evaluation.foreground_mean["Dice"] for r in results},
        seconds=sum(clock.seconds.values()),
        evaluations={r.name: r.evaluation for r in results},
    )


class _Clock:
    """Seconds of each stage, said as they pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        logger.info("Demo: %s ...", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        logger.info("Demo: %s took %.0f s", name, self.seconds[name])


def _open_workspace(root: Path) -> Workspace:
    """The demo's own workspace; weights that lie elsewhere are left alone, so that every demo is alike."""
    return Workspace(
        raw=root / "raw",
        preprocessed=root / "preprocessed",
        results=root / "results",
        weights=root / "weights",
        origin=f"{root} (the demo's)",
    )


def _clear(workspace: Workspace) -> None:
    """Remove what an earlier demo left; refuse to touch anything else of that name.

    Trainings of the phantom with a tag are the user's, and stay.
    """
    raw, prepared = workspace.raw / PHANTOM_DATASET, workspace.preprocessed / PHANTOM_DATASET
    models = [workspace.model_folder(PHANTOM_DATASET, method.name) for method in DEMO_METHODS]
    predicted = [_prediction_folder(workspace, method.name) for method in DEMO_METHODS]
    description = raw / DATASET_FILE
    known = read_json(description).get("description", "") if description.is_file() else ""
    if not str(known).startswith("generated by samunet"):
        for folder in (raw, prepared, *models, *predicted):
            if folder.exists():
                raise SamunetError(
                    f"{folder} was not made by the demo and would be replaced. Choose another --workspace, "
                    "or remove that folder."
                )
    for folder in (raw, prepared, *models, *predicted):
        shutil.rmtree(folder, ignore_errors=True)


def _prediction_folder(workspace: Workspace, method: str) -> Path:
    return workspace.raw.parent / "predictions" / PHANTOM_DATASET / method


def _train(workspace: Workspace, method: DemoMethod, options: DemoOptions) -> None:
    minutes, settings = method.chosen(options.quick)
    outcome = train(
        workspace,
        TrainOptions(
            dataset=PHANTOM_DATASET,
            configuration=method.name,
            fold=FOLD,
            device=options.device,
            settings=settings,
            time_budget_minutes=minutes,
            seed=options.seed,
        ),
    )
    if outcome.interrupted:
        raise KeyboardInterrupt


def _predict(workspace: Workspace, method: DemoMethod, options: DemoOptions) -> MethodResult:
    """Predict and score the held-out cases from the checkpoint alone."""
    from samunet.inference.predictor import Predictor

    raw = workspace.raw / PHANTOM_DATASET
    folder = workspace.model_folder(PHANTOM_DATASET, method.name)
    predictor = Predictor.load(folder, folds=(FOLD,), device=options.device)
    output = _prediction_folder(workspace, method.name)
    outcome = predictor.predict_files(find_cases(raw / "imagesTs", FILE_ENDING, 1), output)
    if outcome.failed:
        raise SamunetError(outcome.text())
    assess(output, folder)
    labels = LabelSet.from_dataset_json(read_json(raw / DATASET_FILE), str(raw / DATASET_FILE))
    evaluation = evaluate_folder(raw / "labelsTs", output, labels, FILE_ENDING)
    evaluation.save(output / SUMMARY_FILE)
    trained: Plan = predictor.plan
    return MethodResult(
        name=method.name,
        folder=output,
        evaluation=evaluation,
        why=method.why,
        settings=method.chosen(options.quick)[1],
        configuration=trained.configuration(method.name),
        parameters=sum(p.numel() for network in predictor.networks for p in network.parameters()),
        history=folder / f"fold_{FOLD}" / "history.jsonl",
    )


def _commands(options: DemoOptions) -> tuple[str, ...]:
    """The same by hand, from the folder above the workspace; with a tag, for the demo's runs are there."""
    place = ["--workspace", str(options.workspace)]
    device = [] if options.device == "auto" else ["-device", options.device]
    images = str(Path(options.workspace) / "raw" / PHANTOM_DATASET / "imagesTs")
    names = [method.name for method in DEMO_METHODS]
    lines = [["samunet_plan_and_preprocess", "-d", "900", "-c", *names, "-encoder", ENCODER, *device]]
    for method in DEMO_METHODS:
        minutes, settings = method.chosen(options.quick)
        chosen = ["--time_budget", f"{minutes:g}", "--seed", str(options.seed)]
        chosen += [*setting_flags(settings), *device]
        lines.append(["samunet_train", "900", method.name, FOLD, "--tag", TAG, *chosen])
        lines.append(["samunet_predict", "-i", images, "-o", f"OUT_{method.name}", "-d", "900"])
        lines[-1] += ["-c", method.name, "--tag", TAG, *device]
    return tuple(shown_command([*line, *place]) for line in lines)


def _machine(options: DemoOptions) -> str:
    import torch

    from samunet.trainers.devices import choose_device

    device = choose_device(options.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{device.type}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
