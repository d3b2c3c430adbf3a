"""The planner's forecasts against short trainings on this machine: seconds a step, and memory.

    python benchmarks/forecast_check.py --data FOLDER --work FOLDER [--methods 2d_cnn 2d_unet] [--out FILE]

Every set is planned (which measures the machine once) and preprocessed, then each method trains one short
epoch with the planned batch. The seconds of its training steps and the largest resident memory of the process
come from its own history; a validation step counts as a third of a training step, as in the forecast. Run it
on a machine that does nothing else: the calibration is part of what is tested. The bars: time within 2x,
memory within 30 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measured_commands import ResultsFile, hardware
from real_runs import Bench

from samunet.planning.plan import Forecast, Plan
from samunet.trainers.history import EpochRecord, read_history
from samunet.workspace import Workspace, fold_folder

DATASETS = ("Dataset001_Hippocampus", "Dataset002_ACDC", "Dataset004_HaN_CT", "Dataset005_Nuclei")
METHODS = ("2d_linear", "2d_cnn", "2d_autosam", "2d_unet", "3d_unet")
STEPS, VAL_STEPS = 10, 2
LONGEST_STEP = 15.0
"""Seconds; methods whose forecast step is longer than this are left out, and named."""
TIME_BAR, MEMORY_BAR = 2.0, 1.3


def check(bench: Bench, dataset: str, methods: list[str]) -> dict[str, Any]:
    """Forecast and measurement of each method on one set."""
    bench.prepare(dataset)
    number = bench.number(dataset)
    bench.measure(f"{dataset} plan", "samunet_plan_and_preprocess", "-d", number, "-device", bench.device)
    workspace = Workspace.find(bench.workspace())
    plan = Plan.load(workspace.plan_file(dataset, "samunetPlans"))
    found: dict[str, Any] = {}
    for method in [name for name in methods if name in plan.configurations]:
        forecast = plan.configurations[method].forecast
        if forecast.step_seconds > LONGEST_STEP:
            found[method] = {"left_out": f"forecast {forecast.step_seconds:.0f} s a step"}
            continue
        length = ["--epochs", "1", "--iterations", str(STEPS), "--set", f"val_iterations={VAL_STEPS}"]
        where = ["-device", bench.device, "--tag", "forecast", "--overwrite"]
        bench.measure(f"{dataset} {method}", "samunet_train", number, method, "all", *length, *where)
        folder = fold_folder(workspace.model_folder(dataset, method, plan.name, "forecast"), "all")
        record = read_history(folder)[-1]
        found[method] = against_forecast(forecast, record, STEPS + VAL_STEPS / 3)
    return found


def against_forecast(forecast: Forecast, record: EpochRecord, steps: float) -> dict[str, float]:
    """Time of a step and memory, forecast and measured in an epoch of so many training steps (a validation
    step being a third of one)."""
    seconds = record.seconds / steps
    return {
        "forecast_step_seconds": forecast.step_seconds,
        "step_seconds": round(seconds, 4),
        "time_ratio": round(forecast.step_seconds / seconds, 2),
        "forecast_memory_gb": forecast.memory_gb,
        "memory_gb": round(record.memory_gb, 2),
        "memory_ratio": round(forecast.memory_gb / record.memory_gb, 2),
    }


def report(results: dict[str, Any]) -> None:
    """Print the table and what misses a bar."""
    for dataset, methods in results.items():
        for method, row in methods.items():
            if "left_out" in row:
                print(f"{dataset:24} {method:10} left out: {row['left_out']}")
                continue
            time, memory = row["time_ratio"], row["memory_ratio"]
            good = 1 / TIME_BAR <= time <= TIME_BAR and 1 / MEMORY_BAR <= memory <= MEMORY_BAR
            print(
                f"{dataset:24} {method:10} step {row['step_seconds']:7.3f} s, forecast x {time:4.2f}; memory "
                f"{row['memory_gb']:5.2f} GB, forecast x {memory:4.2f}{'' if good else '   MISSES A BAR'}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecasts of time and memory against short trainings.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--bin", type=Path, help="folder of samunet_train (default: this Python's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    results = ResultsFile(work / "forecast_check.json", {"hardware": hardware()})
    bin_folder = arguments.bin or Bench.own_bin()
    bench = Bench(arguments.data, work / "forecast_check", bin_folder, arguments.device, results)
    found = {dataset: check(bench, dataset, arguments.methods) for dataset in arguments.datasets}
    report(found)
    if arguments.out is not None:
        content = {"hardware": hardware(), "steps": STEPS, "figures": found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
