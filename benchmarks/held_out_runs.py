"""Real data through the console commands: plan, train for minutes, predict and score held-out cases.

    python benchmarks/held_out_runs.py --data FOLDER --work FOLDER --minutes 15
    python benchmarks/held_out_runs.py --data FOLDER --work FOLDER --random-vit-b

Each set is trained on its cases outside held_out.json by `2d_cnn` and one U-Net and scored on the held-out
ones. `--random-vit-b` runs a randomly initialised ViT-B once through plan, embedding cache, training and
prediction with five cases: for time, memory and disk, its Dice means nothing. Every finished step, with its
command line, stands in WORK/held_out_runs.json (WORK/random_vit_b.json); start again to go on.

`--methods cnn` and `--methods unet` split the work into two runs with a WORK each, for instance on a core
each (`taskset -c 0`, `taskset -c 1`; the header says how many cores a run had). `--beside` names the results
file of the other one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured_commands import ResultsFile, hardware, machine_load
from real_runs import Bench, Training, interval

UNETS = {
    "Dataset001_Hippocampus": "3d_unet",
    "Dataset002_ACDC": "2d_unet",
    "Dataset004_HaN_CT": "2d_unet",
    "Dataset005_Nuclei": "2d_unet",
}
"""The plan's 3d_unet of Dataset004 fills an 8 GB GPU: 26 steps in 15 minutes on two cores teach nothing."""
UNET_WORDS = ("--set", "batch_size=2")
"""Planned are up to 12 slices a step, which on a CPU leaves a few dozen steps in 15 minutes."""
VIT_B_DATASET = "Dataset002_ACDC"
VIT_B_CASES = 5
LEAST_SHARE = 0.5
"""A method under this share of the U-Net's Dice is a defect until it is explained."""


def run_dataset(bench: Bench, dataset: str, minutes: float, kinds: Sequence[str]) -> None:
    """One set by `2d_cnn` and its U-Net, or by one of the two."""
    bench.prepare(dataset)
    chosen = {"cnn": "2d_cnn", "unet": UNETS[dataset]}
    methods = [chosen[kind] for kind in kinds]
    bench.plan(f"{dataset} plan", dataset, methods, "--verify_dataset_integrity")
    for method in methods:
        bench.train_and_score(
            Training(
                name=f"{dataset} {method} {minutes:g}min",
                dataset=dataset,
                method=method,
                tag=f"{minutes:g}min",
                words=("--time_budget", f"{minutes:g}", *(UNET_WORDS if method != "2d_cnn" else ())),
            )
        )


def run_random_vit_b(bench: Bench, minutes: float, input_size: int | None) -> None:
    """Plan, cache, train and predict with a random ViT-B on five cases; time, memory and disk."""
    dataset = VIT_B_DATASET
    bench.prepare(dataset, limit=VIT_B_CASES)
    number = bench.number(dataset)
    random = ["-encoder", "vit_b", "--set", "encoder_weights=random"]
    if input_size is not None:
        random += ["--set", f"input_size={input_size}"]
    which = ["-device", bench.device]
    planning = ["-d", number, "-c", "2d_cnn", *random[:4]]
    bench.measure("plan", "samunet_plan_and_preprocess", *planning, *which)
    budget = ["--time_budget", f"{minutes:g}", "--overwrite"]
    bench.measure("cache and train", "samunet_train", number, "2d_cnn", "all", *budget, *random, *which)
    folders = ["-i", bench.test(dataset, "images"), "-o", bench.work / "predictions" / "vit_b"]
    bench.measure("predict", "samunet_predict", *folders, "-d", number, "-c", "2d_cnn", *which)
    preprocessed = bench.workspace() / "preprocessed" / dataset
    plan = json.loads((preprocessed / "samunetPlans.json").read_text())["configurations"]["2d_cnn"]
    caches = sorted(preprocessed.glob("*_embeddings"))
    disk = {
        "preprocessed_gb": _size_gb(preprocessed) - sum(map(_size_gb, caches)),
        "embeddings_gb": sum(map(_size_gb, caches)),
        "results_gb": _size_gb(bench.workspace() / "results" / dataset),
    }
    bench.results.save("disk", disk)
    bench.results.save("planned", plan)


def _size_gb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9, 4)


def report(steps: dict[str, Any]) -> None:
    """Print the table, and which methods fall under half of the U-Net."""
    print(
        f"{'dataset':24} {'method':8} {'Dice':>6} {'95 % interval':14} {'classes':58} train s  GB   predict s"
    )
    for name in [step.removesuffix(" scores") for step in steps if step.endswith(" scores")]:
        dataset, method, length = name.split(" ")
        scores, train, predict = (steps[f"{name} {part}"] for part in ("scores", "train", "predict"))
        shown = " ".join(f"{key} {value:.3f}" for key, value in scores["by_class"].items())
        low, high = interval(scores["cases"])
        print(
            f"{dataset:24} {method:8} {scores['dice']:6.3f} [{low:.3f}, {high:.3f}] {shown:58} "
            f"{train['seconds']:7.0f} "
            f"{train['peak_memory_gb']:4.1f} {predict['seconds']:9.0f}"
        )
        baseline = steps.get(f"{dataset} {UNETS[dataset]} {length} scores")
        if baseline and scores["dice"] < LEAST_SHARE * baseline["dice"]:
            print(f"  under half of {UNETS[dataset]}'s {baseline['dice']:.3f}: a defect until explained")


def _beside(file: Path | None) -> dict[str, Any]:
    """Steps of another results file, as far as it has come."""
    return json.loads(file.read_text())["steps"] if file is not None and file.exists() else {}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Real data through the console commands.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--minutes", type=float, default=15.0, help="time budget of each training")
    parser.add_argument("--datasets", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--methods", nargs="+", choices=["cnn", "unet"], default=["cnn", "unet"])
    parser.add_argument(
        "--beside", type=Path, help="results file of a run of the other methods, for the table"
    )
    parser.add_argument("--random-vit-b", action="store_true", help="the run for time, memory and disk")
    parser.add_argument("--input-size", type=int, help="of the random ViT-B; default: the plan's")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    work: Path = arguments.work.resolve()
    name = "random_vit_b" if arguments.random_vit_b else "held_out_runs"
    header = {"hardware": hardware(), "load_at_start": machine_load()}
    results = ResultsFile(work / f"{name}.json", header)
    scratch = work / name
    bench = Bench(arguments.data, scratch, arguments.bin, arguments.device, results)
    if arguments.random_vit_b:
        run_random_vit_b(bench, arguments.minutes, arguments.input_size)
        print(json.dumps(results.steps, indent=1))
    else:
        for dataset in arguments.datasets:
            run_dataset(bench, dataset, arguments.minutes, arguments.methods)
            report(_beside(arguments.beside) | results.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.path, arguments.keep / f"{name}.json")


if __name__ == "__main__":
    main()
