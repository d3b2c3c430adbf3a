"""Wall time of planning and preprocessing Dataset001 with two workers, ours and nnU-Net's, in one run.

    python benchmarks/plan_preprocess_speed.py --data FOLDER [--peer-bin FOLDER] [--repeats N] [--json FILE]

`--data` is a folder with Dataset001_Hippocampus (nnU-Net raw layout), `--peer-bin` holds nnU-Net's programs.
Both start from the raw dataset in an empty workspace and make fingerprint, plan and the 2D and 3D cases. The
stored images and labels of both are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured_commands import hardware

DATASET = "Dataset001_Hippocampus"
BAR = 3.0


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command that must succeed."""
    start, used = time.perf_counter(), cpu_seconds_of_children()
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, cpu_seconds_of_children() - used


def cpu_seconds_of_children() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def time_ours(programs: Path, root: Path) -> tuple[float, float]:
    program = str(programs / "samunet_plan_and_preprocess")
    return run([program, "-d", "1", "-np", "2", "--workspace", str(root)], {})


def time_peer(programs: Path, root: Path) -> tuple[float, float]:
    folders = {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "peer"),
        "nnUNet_results": str(root / "peer_results"),
    }
    program = str(programs / "nnUNetv2_plan_and_preprocess")
    return run([program, "-d", "1", "-npfp", "2", "-np", "2", "2", "2"], folders)


def compare(root: Path) -> dict[str, Any]:
    """Largest difference of images and labels between the stored 3D cases of both sides."""
    import blosc2
    import numpy as np

    from samunet.preprocessing.store import CaseStore

    store = CaseStore(root / "preprocessed" / DATASET / "samunetPlans_3d")
    theirs = root / "peer" / DATASET / "nnUNetPlans_3d_fullres"
    image, label = 0.0, 0
    for name in store.names():
        case = store.open(name)
        image = max(
            image, float(np.abs(case.image[:] - blosc2.open(str(theirs / f"{name}.b2nd"), mode="r")[:]).max())
        )
        label += int((case.label[:] != blosc2.open(str(theirs / f"{name}_seg.b2nd"), mode="r")[:][0]).sum())
    return {"cases": len(store.names()), "largest_image_difference": image, "differing_label_voxels": label}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with Dataset001_Hippocampus")
    parser.add_argument("--peer-bin", type=Path, help="folder of nnU-Net's programs")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, taken in turn")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    agreement: dict[str, Any] = {}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "raw").mkdir()
            (root / "raw" / DATASET).symlink_to((arguments.data / DATASET).resolve())
            seconds["ours"].append(time_ours(Path(sys.executable).parent, root))
            if arguments.peer_bin:
                seconds["peer"].append(time_peer(arguments.peer_bin, root))
                agreement = compare(root)
    figures: dict[str, Any] = {
        "wall_and_cpu_seconds": seconds,
        "agreement": agreement,
        "hardware": hardware(),
    }
    if arguments.peer_bin:
        for index, kind in enumerate(("wall", "cpu")):
            medians = [statistics.median(run[index] for run in seconds[side]) for side in ("peer", "ours")]
            figures[f"times_faster_{kind}"] = medians[0] / medians[1]
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    assert figures.get("times_faster_wall", BAR) >= BAR, "speed bar missed"


if __name__ == "__main__":
    main()
