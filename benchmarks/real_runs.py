"""Trainings on real sets through the console commands: prepared once, each step recorded, held-out cases
scored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_commands import ResultsFile
from subsets import dice_scores, held_out_cases, make_test_folders, make_training_dataset, patient_of

from samunet.evaluation.bootstrap import Bootstrap, ScoreTable
from samunet.evaluation.stratified import mean_over_runs

Scores = Mapping[str, Mapping[str, float | None]]
"""Case -> class -> Dice; None where it is in neither map."""


def setting_words(*pairs: str) -> tuple[str, ...]:
    """Words of a command for KEY=VALUE pairs."""
    return tuple(word for pair in pairs for word in ("--set", pair))


@dataclass(frozen=True)
class Training:
    """One training of a benchmark: what is trained, under which tag, with which further words.

    Attributes:
        name: of its steps in the results file.
        plans: name of the plan.
        words: of the command, besides dataset, method, fold, tag, device and plan.
        teacher: configuration that samunet_distill learns from; None trains by samunet_train.
    """

    name: str
    dataset: str
    method: str
    tag: str
    plans: str = "samunetPlans"
    words: tuple[str, ...] = ()
    teacher: str | None = None


@dataclass(frozen=True)
class Bench:
    """Folders, scripts and the results file of one run of this script.

    Attributes:
        predicting: further words of every samunet_predict.
    """

    data: Path
    work: Path
    bin: Path
    device: str
    results: ResultsFile
    predicting: tuple[str, ...] = ()

    @staticmethod
    def own_bin() -> Path:
        """Folder of the programs installed beside the running Python."""
        return Path(sys.executable).parent

    def number(self, dataset: str) -> str:
        return str(int(dataset[7:10]))

    def workspace(self) -> Path:
        return self.work / "workspace"

    def test(self, dataset: str, part: str) -> Path:
        return self.work / "test" / dataset / part

    def measure(self, step: str, script: str, *arguments: str | Path, product: Path | None = None) -> None:
        """Run one of our console commands in this workspace, unless it is done and its product there."""
        command = [self.bin / script, *arguments, "--workspace", self.workspace()]
        log = self.work / "logs" / f"{step.replace(' ', '_')}.txt"
        self.results.measure(step, command, log, product=product)

    def plan(self, step: str, dataset: str, methods: Sequence[str], *words: str | Path) -> None:
        """Plan and preprocess a prepared dataset for some methods."""
        product = self.workspace() / "preprocessed" / dataset / "samunetPlans.json"
        which = ["-d", self.number(dataset), "-device", self.device, "-c", *methods]
        self.measure(step, "samunet_plan_and_preprocess", *which, *words, product=product)

    def prepare(self, dataset: str, limit: int | None = None, training: Sequence[str] | None = None) -> None:
        """Raw dataset of the cases that are not held out, or of `training`, and folders with those that are.

        `limit` cuts both.
        """
        source = self.data / dataset
        ending = json.loads((source / "dataset.json").read_text())["file_ending"]
        names = sorted(file.name.removesuffix(ending) for file in (source / "labelsTr").glob(f"*{ending}"))
        held_out = held_out_cases(dataset)
        if training is None:
            training = [name for name in names if name not in set(held_out)]
        assert not set(training) & set(held_out)
        make_training_dataset(source, self.workspace() / "raw" / dataset, training[:limit])
        self.prepare_test(dataset, limit)

    def prepare_test(self, dataset: str, limit: int | None = None) -> None:
        """Folders with the images and labels of the held-out cases, of a dataset that is only tested on."""
        images, labels = self.test(dataset, "images"), self.test(dataset, "labels")
        make_test_folders(self.data / dataset, images, labels, held_out_cases(dataset)[:limit])

    def train(self, training: Training) -> None:
        """Train on fold `all`. A training that was interrupted is continued."""
        script = "samunet_train" if training.teacher is None else "samunet_distill"
        product = self.run_folder(training) / "checkpoint_final.pth"
        self.measure(f"{training.name} train", script, *self.train_words(training), product=product)

    def train_words(self, training: Training) -> list[str | Path]:
        """Words of samunet_train, or of samunet_distill: what is trained, anew or on, and how."""
        begun = (self.run_folder(training) / "checkpoint_latest.pth").exists()
        taught = [training.method] if training.teacher is None else [training.teacher, training.method]
        which = [self.number(training.dataset), *taught, "all", "--c" if begun else "--overwrite"]
        return [*which, *self._which(training), *training.words]

    def is_scored(self, name: str) -> bool:
        """Whether the step `name` has its scores, so that nothing of it has to be done any more."""
        return f"{name} scores" in self.results.steps

    def train_and_score(self, training: Training) -> None:
        """Train, predict the held-out cases, and score them twice: plainly, and by our command."""
        name, dataset = training.name, training.dataset
        if self.is_scored(name):
            print(f"have  {name}", flush=True)
            return
        self.train(training)
        output, labels = self.predict(name, training, dataset), self.test(dataset, "labels")
        summary = output / "summary.json"
        scored = [labels, output, "-d", self.number(dataset)]
        self.measure(f"{name} evaluate", "samunet_evaluate_folder", *scored, product=summary)
        scores = dice_scores(labels, output, self.data / dataset / "dataset.json")
        self.results.save(f"{name} length", self.length(training))
        self.results.save(f"{name} scores", scores | _own_scores(summary))

    def predict(self, step: str, training: Training, target: str, *words: str) -> Path:
        """Predict the held-out cases of `target` with a finished training; the folder with the results."""
        output, number = self.work / "predictions" / step.replace(" ", "_"), self.number(training.dataset)
        folders = ["-i", self.test(target, "images"), "-o", output, "-d", number, "-c", training.method]
        which = [*folders, *self._which(training), *self.predicting, *words]
        self.measure(f"{step} predict", "samunet_predict", *which, product=output)
        return output

    def _which(self, training: Training) -> list[str]:
        return ["-device", self.device, "--tag", training.tag, "-p", training.plans]

    def length(self, training: Training) -> dict[str, Any]:
        """How far the training came, from its own history; seconds are of all epochs, and of nothing else."""
        file = self.run_folder(training) / "history.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        seconds = sum(record["seconds"] for record in records)
        state = torch.load(self.run_folder(training) / "checkpoint_final.pth", map_location="cpu")
        return {
            "epochs": len(records),
            "seconds": round(seconds),
            "last": records[-1],
            "parameters": num_values(state["network"]),
        }

    def run_folder(self, training: Training) -> Path:
        """Where samunet_train puts fold `all` of this training."""
        name = "__".join([training.method, training.plans, training.tag])
        return self.workspace() / "results" / training.dataset / name / "fold_all"


def num_values(state: Mapping[str, torch.Tensor]) -> int:
    """Numbers in a state dict; a tensor that stands under several names (a U-Net's encoder is part of its
    decoder too) counts once."""
    return sum({values.data_ptr(): values.numel() for values in state.values()}.values())


def _own_scores(summary: Path) -> dict[str, Any]:
    """What samunet_evaluate_folder says, beside the plain scorer's Dice."""
    content = json.loads(summary.read_text())
    return {"samunet_foreground_mean": content["foreground_mean"]}


def interval(*seeds: Scores) -> tuple[float, float]:
    """95 % interval of the mean over classes of the mean Dice, and over seeds; patients drawn, expanded for
    few of them."""
    table = _table(seeds, patient_of)
    found = mean_over_runs(table.values, table.units)
    return found.low, found.high


def paired_interval(
    first: Scores, second: Scores, patient: Callable[[str], str] = patient_of
) -> tuple[float, float]:
    """95 % interval of the difference of two systems on the same cases, patients drawn.

    `patient` names the one of a case.
    """
    found = Bootstrap.draw(_table([first, second], patient)).differences([(0, 1)])[0]
    return found.low, found.high


@dataclass(frozen=True)
class SeedDifference:
    """One system over another in points: of each seed that both have, and a 95 % interval over patients."""

    each: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.each))


def seed_difference(
    first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]
) -> SeedDifference | None:
    """Compare the scores (`dice`, `cases`) of two systems by seed; None without a seed that both have."""
    return seed_differences(first, {"second": second}).get("second")


def seed_differences(
    reference: Mapping[int, Mapping[str, Any]], others: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> dict[str, SeedDifference]:
    """A reference over each of several systems, over the seeds that all have; the intervals hold all at once.

    Empty where no seed is common to all.
    """
    shared = sorted(set(reference).intersection(*others.values()))
    if not shared or not others:
        return {}
    systems = [reference, *others.values()]
    table = _table([system[seed]["cases"] for system in systems for seed in shared], patient_of)
    means = np.kron(np.eye(len(systems)), np.full(len(shared), 1 / len(shared)))
    pairs = [(0, number) for number in range(1, len(systems))]
    found = Bootstrap.draw(table).combined(means).differences(pairs)
    differences = {}
    for (name, other), interval in zip(others.items(), found):
        each = tuple(100 * (reference[seed]["dice"] - other[seed]["dice"]) for seed in shared)
        differences[name] = SeedDifference(each, 100 * interval.low, 100 * interval.high)
    return differences


def _table(systems: Sequence[Scores], patient: Callable[[str], str]) -> ScoreTable:
    """The systems' scores on the cases of the first; a class counts where all of them have a score."""
    names = sorted(systems[0])
    values = np.array([[list(scores[name].values()) for name in names] for scores in systems], float)
    patients = list(dict.fromkeys(map(patient, names)))
    units = np.array([patients.index(patient(name)) for name in names])
    return ScoreTable(values=values, present=~np.isnan(values).any(axis=0), units=units)
