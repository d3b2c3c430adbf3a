"""An epoch from the embedding cache against one that encodes on the fly.

python benchmarks/cached_epoch.py --data FOLDER [--cases 5] [--steps 24] [--out FILE]

FOLDER is a raw dataset (Dataset001_Hippocampus for the figures that are quoted). A few cases are planned and
preprocessed, then each head is trained on a frozen ViT-B with random weights at 224 pixels, fp32, with the
planned batch, twice with the same seed: with the cache, and without. Compared are the seconds of the last of
two epochs; building the cache is reported apart (one view a slice, because an epoch does not depend on their
number). No Dice is meant: the encoder is random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured_commands import run_command
from subsets import make_training_dataset

from samunet.pipeline.plan_and_preprocess import PlanOptions, plan, preprocess
from samunet.planning.plan import Plan
from samunet.trainers.history import read_history
from samunet.workspace import Workspace, fold_folder

BARS = {"2d_autosam": 8.0, "2d_cnn": 2.5}
ENCODER = {"encoder": "frozen", "encoder_weights": "random"}
"""Without weights the plan trains vit_tiny as a whole; here ViT-B is frozen and random."""
DATASET = "Dataset001_CachedEpoch"


def prepare(source: Path, cases: int, workspace: Workspace) -> Plan:
    names = sorted(path.name for path in (source / "labelsTr").iterdir())[:cases]
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    chosen = [name.removesuffix(ending) for name in names]
    make_training_dataset(source, workspace.raw / DATASET, chosen)
    made = plan(workspace, DATASET, PlanOptions(device="cpu", encoder="vit_b", settings=dict(ENCODER)))
    assert all(made.configurations[name].input_size == 224 for name in BARS)
    preprocess(workspace, made, ["2d_cnn"])
    return made


def run(workspace: Workspace, method: str, steps: int, cache: bool) -> dict[str, Any]:
    """One training through the command, which sets up threads as users have them."""
    tag = "cached" if cache else "on_the_fly"
    settings = {**ENCODER, "epochs": 2, "iterations": steps, "val_iterations": 1, "cache": cache, "views": 1}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [Path(sys.executable).parent / "samunet_train", DATASET, method, "all", "-encoder", "vit_b"]
    where = ["-device", "cpu", "--tag", tag, "--workspace", workspace.raw.parent]
    measured = run_command([*command, *where, *words], workspace.raw.parent / f"{method}_{tag}.txt")
    folder = fold_folder(workspace.model_folder(DATASET, method, "samunetPlans", tag), "all")
    records = read_history(folder)
    epochs = [record.seconds for record in records]
    return {
        "epoch_seconds": round(epochs[-1], 2),
        "step_seconds": round(epochs[-1] / (steps + 1), 3),
        "other_seconds": round(measured.seconds - sum(epochs), 1),
        "waiting_seconds": round(records[-1].waiting_seconds, 2),
        "memory_gb": round(records[-1].memory_gb, 2),
        "loss": round(records[-1].train["loss"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a raw dataset")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="training steps an epoch")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.find(Path(folder))
        made = prepare(arguments.data, arguments.cases, workspace)
        figures: dict[str, Any] = {}
        for method, bar in BARS.items():
            cached = run(workspace, method, arguments.steps, cache=True)
            plain = run(workspace, method, arguments.steps, cache=False)
            ratio = plain["epoch_seconds"] / cached["epoch_seconds"]
            figures[method] = {"cached": cached, "on_the_fly": plain, "ratio": round(ratio, 1), "bar": bar}
    configuration = made.configurations["2d_cnn"]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "patch_size": configuration.patch_size,
        "batch_size": configuration.batch_size,
        "figures": figures,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
