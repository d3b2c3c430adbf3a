"""A workspace with trained models that never were: real label files, real scores, no network.

Plan, splits, run records, predictions and scores are written by the project's own functions; only the
predictions are made up, as references in which voxels are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from conftest import write_dataset_json
from tiny_runs import CLASSES, make_configuration, make_plan

from samunet.data.geometry import Geometry
from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label, write_segmentation
from samunet.data.splits import Split, make_splits, write_splits
from samunet.evaluation.folder import evaluate_cases
from samunet.inference.probabilities import ProbabilitiesRecord, new_probabilities
from samunet.planning.plan import Plan
from samunet.records import content_hash, read_json, write_json
from samunet.trainers.identity import CacheUse, RunRecord, write_run
from samunet.workspace import Workspace, fold_folder

DATASET = "Dataset950_Made"
SHAPE = (5, 12, 14)
GEOMETRY = Geometry(shape=SHAPE, spacing_mm=(3.0, 1.0, 1.0))
Predict = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Reference (Z, Y, X) and the case's random numbers -> prediction."""


def reference(rng: np.random.Generator) -> np.ndarray:
    """Organ (1) with a lesion (2) beside it."""
    array = np.zeros(SHAPE, np.uint8)
    y, x = rng.integers(1, 4, 2)
    array[1:4, y : y + 6, x : x + 5] = 1
    array[1:4, y : y + 4, x + 5 : x + 8] = 2
    return array


def missing(share: float, spread: float = 0.1) -> Predict:
    """Lose about this share of the foreground; how much more or less differs from case to case."""

    def predict(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        lost = rng.random(truth.shape) < np.clip(share + spread * rng.uniform(-1, 1), 0, 1)
        return np.where(lost, 0, truth).astype(np.uint8)

    return predict


def write_predicted(
    validation: Path, step_size: float = 0.5, mirroring: bool = True, **model: object
) -> None:
    """Say that one model predicted a folder, as samunet_train does by itself but for what `model` changes."""
    usual = {"checkpoint": "checkpoint_final.pth", "settings": {}}
    shared = {"step_size": step_size, "mirroring": mirroring, "postprocessing": []}
    write_json(validation / "predict_args.json", {"models": [{**usual, **model}], **shared})


def no_lesion(label: np.ndarray) -> np.ndarray:
    """A correction that changes the voxels of a class."""
    return np.where(label == 2, 0, label)


def turned(label: np.ndarray) -> np.ndarray:
    """A correction that leaves as many voxels of every class: it had been mirrored."""
    return label[:, :, ::-1].copy()


def as_earlier_versions(summary: Path) -> None:
    """Take out of a summary what earlier versions did not write."""
    content = read_json(summary)
    for entry in content["metric_per_case"]:
        del entry["reference_digest"]
    write_json(summary, content)


@dataclass(kw_only=True)
class MadeUp:
    """A workspace that fills up with models."""

    root: Path
    labels: LabelSet = CLASSES
    num_cases: int = 20
    groups: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    truth: Callable[[np.random.Generator], np.ndarray] = reference
    ending: str = ".nii.gz"

    def __post_init__(self) -> None:
        self.workspace = Workspace.find(self.root)
        self.raw = self.workspace.raw / DATASET
        self.names = [f"case_{i:02d}" for i in range(self.num_cases)]
        values = {name: list(v) if len(v) > 1 else v[0] for name, v in self.labels.labels.items()}
        order = {} if self.labels.region_order is None else {"regions_class_order": self.labels.region_order}
        ignore = {} if self.labels.ignore is None else {"ignore": self.labels.ignore}
        write_dataset_json(
            self.raw,
            channel_names={"0": "T1", "1": "T2"},
            labels={**values, **ignore},
            file_ending=self.ending,
            groups=dict(self.groups),
            patients=dict(self.patients),
            numTraining=self.num_cases,
            **order,
        )
        (self.raw / "imagesTr").mkdir()
        for number, name in enumerate(self.names):
            for channel in range(2):
                (self.raw / "imagesTr" / f"{name}_{channel:04d}{self.ending}").touch()
            label = self.truth(np.random.default_rng(number))
            write_segmentation(label, GEOMETRY, self.raw / "labelsTr" / f"{name}{self.ending}")
        self.splits = make_splits(self.names)
        write_splits(self.workspace.splits_file(DATASET), self.splits)

    def add(
        self,
        name: str,
        predict: Predict,
        *,
        folds: Sequence[int] = range(5),
        seed: int = 0,
        probabilities: bool = False,
        **changes: object,
    ) -> Path:
        """Add a model (`2d_cnn` or `2d_cnn__TAG`); `changes` go to its configuration. Returns its folder."""
        method, _, tag = name.partition("__")
        plan = replace(make_plan(make_configuration(method, **changes), self.labels), file_ending=self.ending)
        folder = self.workspace.model_folder(DATASET, method, tag=tag or None)
        plan.save(folder / "plan.json")
        for fold in folds:
            write_run(fold_folder(folder, fold), self.run(plan, fold, self.splits[fold]))
            (fold_folder(folder, fold) / "checkpoint_final.pth").touch()
            validation = fold_folder(folder, fold) / "validation"
            for case in self.splits[fold].val:
                self._predict(validation / f"{case}{self.ending}", predict, seed, probabilities)
            self.score(validation)
        return folder

    def run(self, plan: Plan, fold: int, split: Split) -> RunRecord:
        (name,) = plan.configurations
        configuration = plan.configuration(name)
        return RunRecord(
            configuration_hash=plan.configuration_hash(name),
            data_hash=plan.data_hash(configuration.data),
            split_hash=content_hash([sorted(split.train), sorted(split.val)]),
            configuration={
                "method": configuration.method,
                "encoder": configuration.encoder,
                "encoder_weights": configuration.encoder_weights,
            },
            fold=fold,
            seed=0,
            train=split.train,
            val=split.val,
            overrides={},
            time_budget_minutes=None,
            phases=(),
            batch_workers=0,
            weights=None,
            cache=CacheUse(mode="none"),
            device="cpu",
            precision="fp32",
        )

    def score(self, validation: Path) -> None:
        """Write summary.json of the predictions that lie in a folder."""
        files = sorted(validation.glob(f"*{self.ending}"))
        pairs = {
            file.name.removesuffix(self.ending): (self.raw / "labelsTr" / file.name, file) for file in files
        }
        origins = Origins(groups=self.groups, patients=self.patients)
        evaluate_cases(pairs, self.labels, origins=origins).save(validation / "summary.json")
        write_predicted(validation)

    def correct(self, case: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
        """Correct the label of a case, scored before or not. Returns its file."""
        file = self.raw / "labelsTr" / f"{case}{self.ending}"
        label, geometry = read_label(file)
        write_segmentation(change(label), geometry, file)
        return file

    def _predict(self, file: Path, predict: Predict, seed: int, probabilities: bool) -> None:
        truth, geometry = read_label(self.raw / "labelsTr" / file.name)
        number = self.names.index(file.name.removesuffix(self.ending))
        array = predict(truth, np.random.default_rng([seed, number]))
        write_segmentation(array, geometry, file)
        if probabilities:
            self._doubt(file, array, truth, geometry)

    def _doubt(self, file: Path, array: np.ndarray, truth: np.ndarray, geometry: Geometry) -> None:
        """Sure where it is right, hardly sure where it is wrong: what ensembles live on."""
        record = ProbabilitiesRecord(
            class_names=self.labels.class_names, has_regions=self.labels.has_regions, geometry=geometry
        )
        sure = np.where(array == truth, 0.9, 0.55)
        with new_probabilities(file, record) as stored:
            for index in range(self.labels.num_outputs):
                is_class = array == self.labels.values[index]
                if self.labels.has_regions:
                    is_class = np.isin(array, list(self.labels.labels.values())[index + 1])
                stored[index] = np.where(is_class, sure, (1 - sure) / (self.labels.num_outputs - 1))
