"""Our U-Nets against nnU-Net's, same five training cases, same 60 unseen cases, same length, three seeds.

    python benchmarks/nnunet_parity.py --data FOLDER --work FOLDER --side peer --peer-bin VENV/bin
    python benchmarks/nnunet_parity.py --data FOLDER --work FOLDER --side ours
    python benchmarks/nnunet_parity.py --work FOLDER --side report

Both systems get the raw dataset of held_out.json's five parity cases and train `2d` for 10 epochs and
`3d_fullres` for 3 epochs (250 steps each) on fold `all` with their own default recipe, then predict 60 cases
with their own default prediction (mirroring on). The scorer is the same few lines for both (subsets.py).
Every finished step is in the results file; start the script again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured_commands import ResultsFile, hardware
from subsets import HELD_OUT, dice_scores, held_out_cases, make_test_folders, make_training_dataset

DATASET_ID = 501
DATASET = f"Dataset{DATASET_ID}_Parity"
EPOCHS = {"2d": 10, "3d_fullres": 3}
OUR_NAMES = {"2d": "2d_unet", "3d_fullres": "3d_unet"}
TOLERANCE_POINTS = 1.5


@dataclass(frozen=True)
class Side:
    """Where one system works: its scripts and folders."""

    name: str
    bin: Path
    work: Path
    results: ResultsFile

    @property
    def raw(self) -> Path:
        return self.work / "raw"

    @property
    def test_images(self) -> Path:
        return self.work / "test" / "images"

    @property
    def test_labels(self) -> Path:
        return self.work / "test" / "labels"

    def log(self, step: str) -> Path:
        return self.work / "logs" / f"{self.name}_{step.replace(' ', '_')}.txt"

    def predictions(self, step: str) -> Path:
        return self.work / self.name / "predictions" / step.replace(" ", "_")

    def measure(self, step: str, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        self.results.measure(step, command, self.log(step), environment)

    def score(self, run: str) -> None:
        if f"{run} scores" not in self.results.steps:
            scores = dice_scores(self.test_labels, self.predictions(run), self.raw / DATASET / "dataset.json")
            self.results.save(f"{run} scores", scores)
        print(f"{self.name} {run}: mean Dice {self.results.steps[f'{run} scores']['dice']:.4f}", flush=True)


def prepare(data: Path, work: Path) -> None:
    """Raw dataset of the five cases, and folders with the 60 others."""
    parity = HELD_OUT["parity"]
    source = data / parity["dataset"]
    make_training_dataset(source, work / "raw" / DATASET, parity["training"])
    test = held_out_cases(parity["dataset"])
    assert not set(test) & set(parity["training"])
    make_test_folders(source, work / "test" / "images", work / "test" / "labels", test)


def run_peer(side: Side, seeds: Sequence[int], configurations: Sequence[str]) -> None:
    """nnunetv2: plan and preprocess once, then train, predict and score every run."""
    base = {
        "nnUNet_raw": str(side.raw),
        "nnUNet_preprocessed": str(side.work / "peer" / "preprocessed"),
        "nnUNet_results": str(side.work / "peer" / "results_plan"),
        "nnUNet_extTrainer": str(Path(__file__).with_name("nnunet_peer").resolve()),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        # nnU-Net takes every core for its threads; on a busy machine they must wait asleep, not spinning.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
    }
    planning = ["-d", str(DATASET_ID), "-c", *EPOCHS, "-np", "1", "-npfp", "1", "--no_pbar"]
    side.measure("plan", [side.bin / "nnUNetv2_plan_and_preprocess", *planning], base)
    for configuration in configurations:
        for seed in seeds:
            run = f"{configuration} seed{seed}"
            environment = {
                **base,
                "nnUNet_results": str(side.work / "peer" / f"results_seed{seed}"),
                "PARITY_EPOCHS": str(EPOCHS[configuration]),
                "PARITY_SEED": str(seed),
            }
            chosen = [str(DATASET_ID), configuration, "all", "-tr", "ParityTrainer", "-device", "cpu"]
            side.measure(f"{run} train", [side.bin / "nnUNetv2_train", *chosen], environment)
            folders = ["-i", side.test_images, "-o", side.predictions(run), "-d", str(DATASET_ID)]
            which = ["-c", configuration, "-f", "all", "-tr", "ParityTrainer", "-device", "cpu"]
            workers = ["-npp", "1", "-nps", "1"]
            predict = [side.bin / "nnUNetv2_predict", *folders, *which, *workers]
            side.measure(f"{run} predict", predict, environment)
            side.score(run)


def run_ours(side: Side, seeds: Sequence[int], configurations: Sequence[str]) -> None:
    """samunet: the same through our console scripts."""
    workspace = side.work / "ours"
    environment = {
        "samunet_raw": str(side.raw),
        "samunet_preprocessed": str(workspace / "preprocessed"),
        "samunet_results": str(workspace / "results"),
    }
    planning = ["-d", str(DATASET_ID), "-c", *(OUR_NAMES[c] for c in EPOCHS), "-np", "1"]
    side.measure("plan", [side.bin / "samunet_plan_and_preprocess", *planning], environment)
    for configuration in configurations:
        for seed in seeds:
            run, ours, tag = f"{configuration} seed{seed}", OUR_NAMES[configuration], f"seed{seed}"
            length = ["--epochs", str(EPOCHS[configuration]), "--iterations", "250"]
            chosen = [str(DATASET_ID), ours, "all", *length, "--seed", str(seed), "--tag", tag]
            train = [side.bin / "samunet_train", *chosen, "-device", "cpu", "--overwrite"]
            side.measure(f"{run} train", train, environment)
            folders = ["-i", side.test_images, "-o", side.predictions(run), "-d", str(DATASET_ID)]
            which = ["-c", ours, "-f", "all", "--tag", tag, "-device", "cpu"]
            side.measure(f"{run} predict", [side.bin / "samunet_predict", *folders, *which], environment)
            side.score(run)


def report(work: Path) -> bool:
    """Print means over seeds and the differences; true when all are within the tolerance."""
    steps = {
        name: json.loads((work / f"{name}.json").read_text())["steps"]
        if (work / f"{name}.json").exists()
        else {}
        for name in ("peer", "ours")
    }
    good = True
    for configuration in EPOCHS:
        means = {}
        for name, found in steps.items():
            runs = [
                v for k, v in found.items() if k.startswith(f"{configuration} seed") and k.endswith(" scores")
            ]
            values = [run["dice"] for run in runs]
            if not values:
                continue
            means[name] = float(np.mean(values))
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            shown = ", ".join(f"{value:.4f}" for value in values)
            print(f"{configuration:>10} {name}: {means[name]:.4f} +- {spread:.4f} over seeds ({shown})")
        if len(means) == 2:
            points = 100 * (means["ours"] - means["peer"])
            good &= abs(points) <= TOLERANCE_POINTS
            print(f"{configuration:>10} ours - peer: {points:+.2f} Dice points (bar: {TOLERANCE_POINTS})")
        else:
            good = False
    return good


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="samunet's U-Nets against nnunetv2's on Dataset001.")
    parser.add_argument("--data", type=Path, help="folder with Dataset001_Hippocampus")
    parser.add_argument(
        "--work", type=Path, required=True, help="scratch folder and results (peer.json, ours.json)"
    )
    parser.add_argument("--side", choices=["peer", "ours", "report"], required=True)
    parser.add_argument("--peer-bin", type=Path, help="folder of nnUNetv2_train (an environment of its own)")
    parser.add_argument(
        "--our-bin", type=Path, default=Path(sys.executable).parent, help="folder of samunet_train"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--configurations", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    work: Path = arguments.work.resolve()
    if arguments.side == "report":
        raise SystemExit(0 if report(work) else 1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare(arguments.data, work)
    header = {"hardware": hardware(), "epochs": EPOCHS, "training": HELD_OUT["parity"]["training"]}
    results = ResultsFile(work / f"{arguments.side}.json", header)
    if arguments.side == "peer":
        run_peer(Side("peer", arguments.peer_bin, work, results), arguments.seeds, arguments.configurations)
    else:
        run_ours(Side("ours", arguments.our_bin, work, results), arguments.seeds, arguments.configurations)
    if arguments.keep:
        shutil.copyfile(results.path, arguments.keep / f"nnunet_parity_{arguments.side}.json")
    report(work)


if __name__ == "__main__":
    main()
