"""Wall time of predicting one small case on the CPU from the command line, ours and nnU-Net's, in one run.

    python benchmarks/predict_small_case.py --data FOLDER [--peer FOLDER_WITH_NNUNET_PROGRAMS] [--out FILE]

`--data` is a folder with Dataset001_Hippocampus (nnU-Net raw layout). Both sides get the same five cases, a
3D U-Net with untrained weights (the weights do not change the time), one fold, mirroring on, and predict one
case. Threads are those that each program takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATASET = "Dataset001_Hippocampus"
NUM_CASES = 5

PEER_CHECKPOINT = """
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.paths import nnUNet_preprocessed
base = str(nnUNet_preprocessed) + "/Dataset001_Hippocampus"
trainer = nnUNetTrainer(
    {**load_json(base + "/nnUNetPlans.json"), "continue_training": False},
    "3d_fullres", 0, load_json(base + "/dataset.json"), device=torch.device("cpu"))
trainer.initialize()
save_json(trainer.plans_manager.plans, trainer.output_folder_base + "/plans.json")
save_json(trainer.dataset_json, trainer.output_folder_base + "/dataset.json")
trainer.save_checkpoint(trainer.output_folder + "/checkpoint_final.pth")
"""


def make_raw(data: Path, root: Path) -> tuple[Path, Path]:
    """Copy five cases as a raw dataset, and one of them as prediction input; returns raw root and input."""
    source, target = data / DATASET, root / "raw" / DATASET
    names = sorted(f.name.removesuffix("_0000.nii.gz") for f in (source / "imagesTr").glob("*_0000.nii.gz"))
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
    for name in names[:NUM_CASES]:
        shutil.copy(source / "imagesTr" / f"{name}_0000.nii.gz", target / "imagesTr")
        shutil.copy(source / "labelsTr" / f"{name}.nii.gz", target / "labelsTr")
    content = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**content, "numTraining": NUM_CASES}))
    images = root / "input"
    images.mkdir()
    shutil.copy(source / "imagesTr" / f"{names[0]}_0000.nii.gz", images)
    return root / "raw", images


def run(command: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def time_ours(programs: Path, root: Path, images: Path, repeats: int) -> list[float]:
    flags = ["--workspace", str(root)]
    run([str(programs / "samunet_plan_and_preprocess"), "-d", "1", "-c", "3d_unet", *flags], {})
    short = ["--epochs", "1", "--iterations", "1", "--set", "val_iterations=1", "-device", "cpu"]
    run([str(programs / "samunet_train"), "1", "3d_unet", "0", *short, *flags], {})
    predict = [str(programs / "samunet_predict"), "-i", str(images), "-d", "1", "-c", "3d_unet", "-f", "0"]
    predict += ["-device", "cpu", *flags]
    return [run([*predict, "-o", str(root / f"out_{i}")], {}) for i in range(repeats)]


def time_peer(programs: Path, root: Path, images: Path, repeats: int) -> list[float]:
    folders = {name: str(root / f"peer_{name}") for name in ("preprocessed", "results")}
    environment = {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": folders["preprocessed"],
        "nnUNet_results": folders["results"],
        "nnUNet_compile": "f",
    }
    plan = [
        str(programs / "nnUNetv2_plan_and_preprocess"),
        "-d",
        "1",
        "-c",
        "3d_fullres",
        "-np",
        "2",
        "-npfp",
        "2",
    ]
    run(plan, environment)
    run([str(programs / "python"), "-c", PEER_CHECKPOINT], environment)
    predict = [
        str(programs / "nnUNetv2_predict"),
        "-i",
        str(images),
        "-d",
        "1",
        "-c",
        "3d_fullres",
        "-f",
        "0",
    ]
    predict += ["-device", "cpu"]
    return [run([*predict, "-o", str(root / f"peer_out_{i}")], environment) for i in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the raw datasets")
    parser.add_argument(
        "--own", type=Path, default=Path(sys.executable).parent, help="folder of our programs"
    )
    parser.add_argument("--peer", type=Path, help="folder of nnU-Net's programs and its python")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _, images = make_raw(arguments.data, root)
        ours = time_ours(arguments.own, root, images, arguments.repeats)
        figures["samunet_seconds"] = [round(s, 2) for s in ours]
        if arguments.peer is not None:
            peer = time_peer(arguments.peer, root, images, arguments.repeats)
            figures["nnunet_seconds"] = [round(s, 2) for s in peer]
            figures["ratio_of_medians"] = round(statistics.median(peer) / statistics.median(ours), 2)
    hardware = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    text = json.dumps({"date": time.strftime("%Y-%m-%d"), "hardware": hardware, **figures}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
