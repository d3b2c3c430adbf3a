"""From five folds to one answer on a real set: train, select, report, and check the answer on held-out cases.

    python benchmarks/five_folds.py --data FOLDER --work FOLDER --dataset Dataset001_Hippocampus --minutes 2.5

Four methods are trained on five folds of cases outside held_out.json through the console commands, with a
short schedule of `--minutes` a fold; samunet_find_best_configuration gives its verdict, samunet_report its
page. Then the best method and the members of the best ensembles predict the held-out cases with their five
folds. What an ensemble gains there over the method that was best on the out-of-fold cases is given with a
paired interval over the held-out patients. `--coverage METHOD` counts how often the bounds of that method's
qc.json hold there. SAM methods are `vit_tiny` trained from scratch unless `--words -w NAME` gives weights.

Finished steps are in WORK/five_folds_DATASET.json; start again to go on. Two sets can run side by side with a
core each (`taskset -c 0`, `taskset -c 1`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measured_commands import ResultsFile, hardware, machine_load
from qc_coverage import measure as measure_coverage
from qc_coverage import show as show_coverage
from qc_coverage import true_dice
from real_runs import Bench, interval, paired_interval
from subsets import dice_scores, held_out_cases

METHODS = ("2d_cnn", "2d_autosam", "2d_unet", "3d_unet")
FOLDS = ("0", "1", "2", "3", "4")
BATCH_SIZE = {"2d_cnn": 4, "2d_autosam": 4, "2d_unet": 4, "3d_unet": 2}
"""Planned are 2 to 12; on a core, minutes are only a few dozen steps of those."""


@dataclass(frozen=True)
class Setup:
    """What a set needs to be trained in minutes.

    Attributes:
        planning: further words of samunet_plan_and_preprocess.
        splits: split scheme; by group where several scans are of one patient.
        patient: patient of a case by its name.
        more: method -> words of samunet_train that overrule the others.
    """

    planning: tuple[str, ...] = ()
    splits: str = "kfold"
    patient: Callable[[str], str] = str
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def scheme(self) -> tuple[str, ...]:
        return () if self.splits == "kfold" else ("--splits", self.splits)


SETS = {
    "Dataset001_Hippocampus": Setup(),
    # The planned 3d_unet of 256 x 224 pixels a slice takes 28 s a step; half the resolution in plane serves
    # all four methods alike.
    "Dataset002_ACDC": Setup(
        planning=("-overwrite_target_spacing", "10", "3.125", "3.125"),
        splits="group_kfold",
        patient=lambda name: name.split("_")[0],
        # 2.5 minutes were 40 steps and a Dice of 0.001.
        more={"3d_unet": ("--time_budget", "8", "--set", "val_iterations=1")},
    ),
}


@dataclass(frozen=True)
class Study:
    """One set with its folders and words."""

    bench: Bench
    dataset: str
    setup: Setup
    minutes: float
    words: tuple[str, ...]

    @property
    def number(self) -> str:
        return self.bench.number(self.dataset)

    def predictions(self, name: str) -> Path:
        return self.bench.work / "predictions" / name

    def model(self, method: str) -> Path:
        # Other splits than the default one give the run folder their name.
        tag = f"__{self.setup.splits}" if self.setup.scheme else ""
        return self.bench.workspace() / "results" / self.dataset / f"{method}__samunetPlans{tag}"

    def prepare(self, cases: int) -> None:
        """Raw data with patients declared, plan, preprocessed cases."""
        source = self.bench.data / self.dataset / "labelsTr"
        held_out = set(held_out_cases(self.dataset))
        names = sorted(file.name.removesuffix(".nii.gz") for file in source.glob("*.nii.gz"))
        self.bench.prepare(self.dataset, training=[name for name in names if name not in held_out][:cases])
        if self.setup.scheme:
            raw = self.bench.workspace() / "raw" / self.dataset
            training = sorted(file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir())
            rows = [f"{name},{self.setup.patient(name)}" for name in training]
            (raw / "groups.csv").write_text("\n".join(["case,group", *rows]) + "\n")
        words = ["-d", self.number, "-c", *METHODS, "-device", self.bench.device, *self.setup.planning]
        self.bench.measure("plan", "samunet_plan_and_preprocess", *words, "--verify_dataset_integrity")

    def train(self) -> None:
        """Five folds of every method, one command a method."""
        for method in METHODS:
            words = ["--time_budget", f"{self.minutes:g}", "--npz", "uint8", "-device", self.bench.device]
            words += ["--set", f"batch_size={BATCH_SIZE[method]}", *self.words, *self.setup.scheme]
            words += self.setup.more.get(method, ())
            if self.model(method).exists():
                words.append("--c")
            self.bench.measure(f"{method} train", "samunet_train", self.number, method, *FOLDS, *words)

    def select(self) -> dict[str, Any]:
        """The verdict and the report; what selection.json says."""
        self.bench.measure(
            "select", "samunet_find_best_configuration", self.number, *self.setup.scheme, "-np", "1"
        )
        self.bench.measure("report", "samunet_report", self.number)
        file = self.bench.workspace() / "results" / self.dataset / "selection.json"
        selection: dict[str, Any] = json.loads(file.read_text())
        kept = ("num_cases", "num_units", "unit", "candidates", "comparisons", "prior", "ensembles")
        kept += ("recommended", "postprocessing", "postprocessing_steps", "commands")
        self.bench.results.save("selection", {key: selection[key] for key in kept if key in selection})
        return selection

    def predict(self, method: str) -> None:
        """The held-out cases by all folds of a method, with probabilities, and their Dice."""
        out = self.predictions(method)
        words = ["-i", self.bench.test(self.dataset, "images"), "-o", out, "-m", self.model(method)]
        words += ["--save_probabilities", "uint8", "-device", self.bench.device, "--continue_prediction"]
        self.bench.measure(f"{method} predict", "samunet_predict", *words)
        self.score(method)

    def ensemble(self, members: Sequence[str]) -> str:
        """Average the predictions of several methods; the ensemble's name."""
        name = "+".join(members)
        folders = [self.predictions(member) for member in members]
        words = ["-i", *folders, "-o", self.predictions(name)]
        self.bench.measure(f"{name} predict", "samunet_ensemble", *words)
        self.score(name)
        return name

    def score(self, name: str) -> None:
        if f"{name} scores" not in self.bench.results.steps:
            labels, description = self.bench.test(self.dataset, "labels"), self.bench.data / self.dataset
            scores = dice_scores(labels, self.predictions(name), description / "dataset.json")
            self.bench.results.save(f"{name} scores", scores)

    def compare(self, name: str, single: str) -> None:
        """Save and print what `name` gains over `single` on the held-out cases."""
        steps = self.bench.results.steps
        first, second = steps[f"{name} scores"], steps[f"{single} scores"]
        patients = [self.setup.patient(case) for case in first["cases"]]
        low, high = paired_interval(first["cases"], second["cases"], self.setup.patient)
        gain = {
            "over": single,
            "gain": first["dice"] - second["dice"],
            "interval_95": (low, high),
            "cases": len(patients),
            "patients": len(set(patients)),
        }
        self.bench.results.save(f"{name} gain", gain)
        print(f"{name} over {single}: {gain['gain']:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)

    def cover(self, method: str) -> None:
        """How often the bounds of qc.json hold."""
        dice = true_dice(self.bench.test(self.dataset, "labels"), self.predictions(method))
        patients = {case: self.setup.patient(case) for case in dice}
        figures = measure_coverage(self.predictions(method), dice, patients)
        self.bench.results.save(f"{method} coverage", figures)
        show_coverage(method, figures)


def best_first(selection: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Single methods and ensembles of a selection, each by falling mean; tags are left out."""
    singles, ensembles = [], []
    for candidate in sorted(selection["candidates"], key=lambda c: -c["mean"]["value"]):
        members = tuple(member.split("__")[0] for member in candidate["members"])
        if candidate["kind"] == "ensemble":
            ensembles.append(members)
        else:
            singles.append(members[0] if members else candidate["name"].split("__")[0])
    return singles, ensembles


def table(results: ResultsFile) -> None:
    for step, scores in results.steps.items():
        if step.endswith(" scores"):
            low, high = interval(scores["cases"])
            classes = " ".join(f"{name} {value:.3f}" for name, value in scores["by_class"].items())
            name = step.removesuffix(" scores")
            print(f"{name:40} {scores['dice']:.4f} [{low:.3f}, {high:.3f}]  {classes}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Five folds of four methods on a real set, and the answer.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--dataset", choices=list(SETS), required=True)
    parser.add_argument("--minutes", type=float, default=2.5, help="time budget of a fold")
    parser.add_argument("--cases", type=int, default=50, help="training cases at most")
    parser.add_argument(
        "--ensembles", type=int, default=2, help="how many, the best first, are checked on held-out cases"
    )
    parser.add_argument("--coverage", nargs="*", default=[], choices=METHODS, help="methods whose bounds are")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[], help="of samunet_train; last")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    header = {
        "hardware": hardware(),
        "load_at_start": machine_load(),
        "minutes": arguments.minutes,
        "cases": arguments.cases,
        "batch_size": BATCH_SIZE,
        "words": arguments.words,
    }
    work: Path = arguments.work.resolve()
    results = ResultsFile(work / f"five_folds_{arguments.dataset}.json", header)
    bench = Bench(
        arguments.data, work / "five_folds" / arguments.dataset, arguments.bin, arguments.device, results
    )
    setup = SETS[arguments.dataset]
    study = Study(bench, arguments.dataset, setup, arguments.minutes, tuple(arguments.words))
    study.prepare(arguments.cases)
    study.train()
    singles, ensembles = best_first(study.select())
    checked = ensembles[: arguments.ensembles]
    needed = {singles[0], *arguments.coverage, *(member for members in checked for member in members)}
    for method in [name for name in singles if name in needed]:
        study.predict(method)
        if method in arguments.coverage:
            study.cover(method)
    for members in checked:
        study.compare(study.ensemble(members), singles[0])
    table(results)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.path, arguments.keep / results.path.name)


if __name__ == "__main__":
    main()
