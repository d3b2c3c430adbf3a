"""Every method on a device: trained for some steps, then predicting there and on the CPU. Do both agree?

    python benchmarks/device_check.py --data FOLDER --work FOLDER --device cuda [--methods 2d_cnn 3d_unet]

One call for a machine that is lent for minutes. Each method is planned for the device and trained for two
short epochs from the commands; a few held-out cases are predicted on the device (in its number format) and on
the CPU. Shown are how far the class probabilities lie apart, which says whether the device computes the same
network, seconds of a step, peak memory, and both against the forecast. Methods that fail are named with their
last words, the others go on. Finished steps stand in WORK/device_check.json; start again to go on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forecast_check import against_forecast
from measured_commands import CommandFailed, ResultsFile, hardware
from real_runs import Bench, Training

from samunet.inference.probabilities import open_probabilities
from samunet.planning.methods import list_methods
from samunet.planning.plan import Plan
from samunet.trainers.history import read_history
from samunet.workspace import Workspace

METHODS = tuple(sorted(list_methods()))
CASES = 8
"""Trained on, and at most as many predicted."""
STEPS, VAL_STEPS = 20, 2
FAR_APART = 0.05
"""A probability that differs by more than this; bf16 has steps of 0.004 below 1, and adds up many of them."""
MOST_APART = 0.01
"""Share of voxels that may, at borders."""


def check(bench: Bench, dataset: str, method: str) -> dict[str, Any]:
    """Train, predict twice, compare.

    Raises:
        CommandFailed: one of the commands did.
    """
    length = ("--epochs", "2", "--iterations", str(STEPS), "--set", f"val_iterations={VAL_STEPS}")
    training = Training(method, dataset, method, "device", words=length)
    bench.train(training)
    there = bench.predict(f"{method} there", training, dataset, "--save_probabilities")
    on_cpu = replace(bench, device="cpu")
    here = on_cpu.predict(f"{method} on the CPU", training, dataset, "--save_probabilities")
    folder = bench.run_folder(training)
    record, run = read_history(folder)[-1], json.loads((folder / "run.json").read_text())
    plan = Plan.load(Workspace.find(bench.workspace()).plan_file(dataset, "samunetPlans"))
    forecast = plan.configurations[method].forecast
    ending = json.loads((bench.data / dataset / "dataset.json").read_text())["file_ending"]
    apart = [distances(file, here / file.name) for file in sorted(there.glob(f"*{ending}"))]
    steps = bench.results.steps
    return {
        "largest_difference": max(float(case.max()) for case in apart),
        "far_apart": float(np.mean([(case > FAR_APART).mean() for case in apart])),
        "precision": run["precision"],
        **against_forecast(forecast, record, STEPS + VAL_STEPS / 3),
        "predict_seconds": steps[f"{method} there predict"]["seconds"],
        "predict_seconds_cpu": steps[f"{method} on the CPU predict"]["seconds"],
    }


def distances(first: Path, second: Path) -> np.ndarray:
    """Largest difference of a class's probability at each voxel of two predictions."""
    values = [np.asarray(open_probabilities(file)[0]) for file in (first, second)]
    return np.abs(values[0] - values[1]).max(axis=0)


def report(method: str, row: dict[str, Any]) -> None:
    """A line of a method."""
    if "failed" in row:
        print(f"{method:11} FAILED\n{row['failed']}")
        return
    differs = "   DIFFERS" if row["far_apart"] > MOST_APART else ""
    print(
        f"{method:11} {row['precision']}: probabilities differ from the CPU's by over {FAR_APART} at "
        f"{row['far_apart']:.2%} of voxels, by {row['largest_difference']:.3f} at most; step "
        f"{row['step_seconds']:.3f} s (forecast x {row['time_ratio']:.2f}), {row['memory_gb']:.2f} GB "
        f"(forecast x {row['memory_ratio']:.2f}); predicts in {row['predict_seconds']:.0f} s, on the CPU "
        f"{row['predict_seconds_cpu']:.0f} s{differs}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method on a device, against the CPU.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--dataset", default="Dataset001_Hippocampus")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    head = {"hardware": hardware(), "device": arguments.device}
    if arguments.device.startswith("cuda"):
        head["gpu"] = torch.cuda.get_device_name(arguments.device)
    results = ResultsFile(work / "device_check.json", head)
    bench = Bench(arguments.data, work / "device_check", arguments.bin, arguments.device, results)
    bench.prepare(arguments.dataset, limit=arguments.cases)
    bench.plan("plan", arguments.dataset, arguments.methods)
    found: dict[str, Any] = {}
    for method in arguments.methods:
        try:
            found[method] = check(bench, arguments.dataset, method)
        except CommandFailed as fault:
            found[method] = {"failed": str(fault)}
        report(method, found[method])
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({**head, "methods": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
