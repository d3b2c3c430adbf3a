"""Resampling against nnunetv2 in one run: the same values, seconds, and extra peak memory of each.

    python benchmarks/resample.py --peer-python PEER/bin/python [--data RAW_FOLDER] [--json RESULT]

PEER is an environment with nnunetv2; each measurement is a process of its own. With --data the intensities
come from the first CT case of that raw dataset (interpolated to the size), else from generated ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# (name, kind, shape, new shape, spacing, new spacing); channels are given by the kind
CASES = [
    ("ct_separate_z", "image", (147, 512, 512), (276, 512, 512), (3, 0.76, 0.76), (1.6, 0.76, 0.76)),
    ("ct_in_plane", "image", (147, 256, 256), (147, 336, 336), (1.6, 1, 1), (1.6, 0.76, 0.76)),
    ("ct_all_axes", "image", (110, 200, 200), (147, 256, 256), (2, 1.3, 1.3), (1.5, 1, 1)),
    ("label", "label", (147, 256, 256), (147, 336, 336), (1.6, 1, 1), (1.6, 0.76, 0.76)),
    ("logits_8", "logits", (110, 256, 256), (147, 384, 384), (2, 1, 1), (1.5, 0.67, 0.67)),
]
TOLERANCE = 1e-3
MEMORY_BAR_GB = 1.5


def make_input(kind: str, shape: tuple[int, ...], data: Path | None) -> np.ndarray:
    """(C, Z, Y, X): a normalised CT channel, a label map of six classes, or eight classes of logits."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    coarse = tuple(max(2, n // 12) for n in shape)
    factors = [n / c for n, c in zip(shape, coarse)]
    if kind == "image":
        if data is None:
            volume = zoom(rng.normal(size=coarse), factors, order=1)
            volume += 0.2 * rng.normal(size=shape)
        else:
            import SimpleITK as sitk

            file = sorted((data / "imagesTr").iterdir())[0]
            volume = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).clip(-160, 240).astype(float)
            volume = zoom(volume, [n / m for n, m in zip(shape, volume.shape)], order=1)
        return ((volume - volume.mean()) / volume.std())[None].astype(np.float32)
    channels = 6 if kind == "label" else 8
    logits = np.stack([zoom(rng.normal(size=coarse), factors, order=1) for _ in range(channels)])
    if kind == "label":
        return logits.argmax(axis=0)[None].astype(np.int16)
    return logits.astype(np.float32)


def run_ours(kind: str, array: np.ndarray, case: tuple) -> np.ndarray:
    _, _, shape, new_shape, spacing, new_spacing = case
    if kind == "image":
        from samunet.preprocessing.resampling import resample_image

        return resample_image(array, new_shape, spacing, new_spacing)
    if kind == "label":
        from samunet.preprocessing.resampling import resample_label

        return resample_label(array[0], new_shape, spacing, new_spacing)[None]
    import torch

    from samunet.data.geometry import Box, Geometry
    from samunet.preprocessing.case import SpatialRecord
    from samunet.preprocessing.restore import logit_slabs

    record = SpatialRecord(
        geometry=Geometry(shape=new_shape, spacing_mm=new_spacing),
        shape_before_crop=new_shape,
        crop_box=Box(lower=(0, 0, 0), upper=new_shape),
        shape=shape,
        spacing_before_mm=new_spacing,
        spacing_mm=spacing,
    )
    segmentation = np.empty(new_shape, np.uint8)
    for where, slab in logit_slabs(torch.from_numpy(array), record):
        segmentation[where] = torch.max(slab, dim=0)[1].numpy()
    return segmentation[None]


def run_peer(kind: str, array: np.ndarray, case: tuple) -> np.ndarray:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    _, _, _, new_shape, spacing, new_spacing = case
    order = 3 if kind == "image" else 1
    result = resample_data_or_seg_to_shape(
        array, new_shape, spacing, new_spacing, is_seg=kind == "label", order=order, force_separate_z=None
    )
    if kind == "logits":
        import torch

        return torch.from_numpy(result).argmax(0).numpy().astype(np.uint8)[None]
    return result


def measure(side: str, case: tuple, source: Path, target: Path) -> None:
    """Runs in its own process: one call, its seconds and its peak memory above the loaded input."""
    run = run_ours if side == "ours" else run_peer
    run(case[1], np.load(source)[:, :12, :12, :12].copy(), small(case))  # imports and caches
    array = np.load(source)
    before = reset_peak()
    start = time.perf_counter()
    result = run(case[1], array, case)
    seconds = time.perf_counter() - start
    extra = peak_bytes() - before
    np.save(target, result)
    print(json.dumps({"seconds": seconds, "extra_gb": extra / 1e9}))


def reset_peak() -> int:
    """Resident memory now, bytes. On Linux the recorded peak starts anew: it is inherited from the parent."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def small(case: tuple) -> tuple:
    name, kind, _, _, spacing, new_spacing = case
    return name, kind, (12, 12, 12), (14, 14, 14), spacing, new_spacing


def in_process(python: str, side: str, index: int, source: Path, target: Path) -> dict[str, float]:
    command = [python, __file__, "--worker", side, str(index), str(source), str(target)]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(kind: str, ours: np.ndarray, peers: np.ndarray) -> dict[str, float]:
    assert ours.shape == peers.shape, (ours.shape, peers.shape)
    if kind == "image":
        return {"largest_difference": max(float(np.abs(a - b).max()) for a, b in zip(ours[0], peers[0]))}
    return {"share_of_voxels_that_differ": float(np.mean(ours != peers))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer-python", help="python of an environment with nnunetv2")
    parser.add_argument("--data", type=Path, help="raw CT dataset that gives the intensities")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, index, source, target = arguments.worker
        measure(side, CASES[int(index)], Path(source), Path(target))
        return
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, case in enumerate(CASES):
            np.save(folder / "input.npy", make_input(case[1], case[2], arguments.data))
            row: dict[str, Any] = {"case": case[0], "shape": case[2], "new_shape": case[3]}
            sides = {
                "ours": sys.executable,
                **({"peer": arguments.peer_python} if arguments.peer_python else {}),
            }
            for side, python in sides.items():
                row[side] = in_process(python, side, index, folder / "input.npy", folder / f"{side}.npy")
            if "peer" in sides:
                row |= compare(case[1], *(np.load(folder / f"{side}.npy", mmap_mode="r") for side in sides))
            figures.append(row)
            print(json.dumps(row))
    first = figures[0]
    assert first["ours"]["extra_gb"] < MEMORY_BAR_GB, "memory bar missed"
    assert first.get("largest_difference", 0) < TOLERANCE, "values differ"
    if arguments.json:
        from measured_commands import hardware

        result = {"hardware": hardware(), "data": arguments.data and arguments.data.name, "cases": figures}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
