"""Five folds against one: what more heads on one frozen encoder cost in prediction.

    python benchmarks/fold_ratio.py --data FOLDER --work SCRATCH [--encoder vit_b] [--cases 3] [--repeats 3]

Plans 2d_autosam and 2d_cnn on ten cases of Dataset001_Hippocampus with a random encoder of the variant, which
lies in the weights folder once, as an official file would; writes five untrained folds of each (the weights
do not change the time), whose checkpoints leave the encoder out; and predicts a few cases with one fold and
with five, in turn. Figures stand in WORK/fold_ratio.json; start again to go on. The bars: 1.3 for 2d_autosam,
2 for 2d_cnn. `ensemble` are five folds of both methods, against the sum of the two alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measured_commands import ResultsFile, hardware
from subsets import make_test_folders, make_training_dataset

from samunet.inference.ensemble_predictor import EnsemblePredictor
from samunet.inference.files import FileOptions
from samunet.networks.sam.variants import VARIANTS
from samunet.networks.sam.weight_files import weights_sha256
from samunet.networks.sam.weights import build_parts
from samunet.networks.sam_slices import ENCODER_PREFIX
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.trainers import import_trainer
from samunet.trainers.checkpoint import BaseWeights, Checkpoint, network_state, save_checkpoint
from samunet.workspace import Workspace

DATASET = "Dataset001_Hippocampus"
METHODS = {"2d_autosam": 1.3, "2d_cnn": 2.0}
"""Method and the bar of five folds over one."""
PLANNED = 10
FOLDS = tuple(range(5))


def write_encoder(folder: Path, variant: str) -> Path:
    """A complete SAM with random weights under the variant's file name."""
    file = folder / VARIANTS[variant].file_name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        parts = build_parts(VARIANTS[variant])
        state = {
            f"{p}.{key}": value for p, module in parts.items() for key, value in module.state_dict().items()
        }
        torch.save(state, file)
    return file


def plan(workspace: Workspace, data: Path, encoder: str, input_size: int | None) -> Plan:
    """Plan both methods on a few cases through the command."""
    raw = workspace.raw / DATASET
    if not raw.exists():
        files = sorted((data / DATASET / "labelsTr").glob("*.nii.gz"))[:PLANNED]
        make_training_dataset(data / DATASET, raw, [file.name.removesuffix(".nii.gz") for file in files])
    file = workspace.plan_file(DATASET)
    if not file.exists():
        words = ["-d", "1", "-encoder", encoder, "--set", "encoder_weights=random"]
        words += ["--set", f"input_size={input_size}"] if input_size else []
        program = "from samunet.cli.plan_experiment import main; raise SystemExit(main())"
        command = [sys.executable, "-c", program, *words, "--workspace", str(workspace.raw.parent)]
        subprocess.run(command, check=True)
    return Plan.load(file)


def write_folds(model: Path, plan: Plan, method: str, encoder: Path) -> None:
    """Five untrained heads as the folds of a model; their checkpoints name the encoder's file."""
    configuration = plan.configuration(method)
    assert configuration.encoder is not None
    base = BaseWeights(
        variant=configuration.encoder,
        file=encoder.name,
        sha256=weights_sha256(encoder),
        prefix=ENCODER_PREFIX,
    )
    trainer = get_method(method).trainer
    for fold in FOLDS:
        file = model / f"fold_{fold}" / "checkpoint_final.pth"
        if file.exists():
            continue
        torch.manual_seed(1 + fold)
        network = import_trainer(trainer).build_network(plan, configuration, weights=encoder)
        checkpoint = Checkpoint(
            method=method,
            trainer=trainer,
            configuration=method,
            plan=plan,
            fold=fold,
            epoch=1,
            network=network_state(network, base),
            base_weights=base,
            seed=0,
            mirror_axes=configuration.mirror_axes,
            overrides={},
            training={},
        )
        save_checkpoint(file, checkpoint)


def predict(
    models: list[Path], folds: tuple[int, ...], work: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds to load and seconds to predict the folder, files included."""
    start = time.perf_counter()
    predictor = EnsemblePredictor.load(
        models,
        folds,
        device=arguments.device,
        mirroring=not arguments.disable_tta,
        weights_folder=work / "workspace" / "weights",
    )
    loaded = time.perf_counter()
    # With one fold there is nothing to share within a method; with more, all folds must share.
    assert all(member.shared_encoder == (len(folds) > 1) for member in predictor.members)
    predictor.predict_files(work / "images", work / "out", FileOptions())
    ended = time.perf_counter()
    return {"load_seconds": round(loaded - start, 2), "predict_seconds": round(ended - loaded, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the raw datasets")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--encoder", default="vit_b")
    parser.add_argument("--input-size", type=int, help="pixels of the encoder's square; default: the plan's")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--disable_tta", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work
    workspace = Workspace.find(work / "workspace")
    encoder = write_encoder(workspace.weights, arguments.encoder)
    planned = plan(workspace, arguments.data, arguments.encoder, arguments.input_size)
    models = {method: workspace.model_folder(DATASET, method) for method in METHODS}
    for method, model in models.items():
        write_folds(model, planned, method, encoder)
    if not (work / "images").exists():
        names = [
            file.name.removesuffix(".nii.gz")
            for file in sorted((arguments.data / DATASET / "labelsTr").iterdir())
        ]
        make_test_folders(
            arguments.data / DATASET, work / "images", work / "labels", names[-arguments.cases :]
        )
    header = {
        "what": "prediction by five folds against one, frozen random encoder",
        "encoder": arguments.encoder,
        "input_size": planned.configuration("2d_cnn").input_size,
        "patch_size": planned.configuration("2d_cnn").patch_size,
        "cases": arguments.cases,
        "mirroring": not arguments.disable_tta,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        **hardware(),
    }
    results = ResultsFile(work / "fold_ratio.json", header)
    for repeat in range(arguments.repeats):
        for method, model in models.items():
            for folds in (FOLDS[:1], FOLDS):
                measure(results, f"{method} {len(folds)} folds, run {repeat}", [model], folds, arguments)
        measure(results, f"ensemble 5 folds, run {repeat}", list(models.values()), FOLDS, arguments)
    results.save("ratios", ratios(results.steps, arguments.repeats))
    print(results.steps["ratios"])


def measure(
    results: ResultsFile, step: str, models: list[Path], folds: tuple[int, ...], arguments: argparse.Namespace
) -> None:
    """Measure a step unless it is recorded already."""
    if step not in results.steps:
        results.save(step, predict(models, folds, arguments.work, arguments))
        print(f"{step}: {results.steps[step]}", flush=True)


def ratios(steps: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Medians over the runs, five folds over one, and whether the bars are kept."""

    def median(name: str, key: str) -> float:
        return statistics.median(steps[f"{name}, run {repeat}"][key] for repeat in range(repeats))

    found: dict[str, Any] = {}
    for method, bar in METHODS.items():
        one, five = (median(f"{method} {n} folds", "predict_seconds") for n in (1, 5))
        loads = [median(f"{method} {n} folds", "load_seconds") for n in (1, 5)]
        found[method] = {
            "ratio": round(five / one, 3),
            "bar": bar,
            "kept": five / one <= bar,
            "ratio_with_loading": round((five + loads[1]) / (one + loads[0]), 3),
        }
    both = sum(median(f"{method} 5 folds", "predict_seconds") for method in METHODS)
    found["ensemble over both alone"] = round(median("ensemble 5 folds", "predict_seconds") / both, 3)
    return found


if __name__ == "__main__":
    main()
