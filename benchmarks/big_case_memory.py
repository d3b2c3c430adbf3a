"""Peak memory of exporting and averaging a case of 512 x 512 x 300 voxels with 15 classes.

    python benchmarks/big_case_memory.py --work SCRATCH [--shape 300 512 512] [--network 150 256 256]

Each step runs in a process of its own on random logits of the network's grid: one model exported, with
probabilities too, three models averaged, the same with their logits on disk, and the saved probabilities of
two folders averaged. Memory is what the step adds to the process: anonymous memory (RssAnon) and the peak
resident size, mapped files included, which the system may drop at any time. It is held against the bound that
documentation/inference.md states.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_commands import hardware

from samunet.data.geometry import Box, Geometry
from samunet.data.labels import LabelSet
from samunet.inference.ensemble import average_probabilities
from samunet.inference.ensemble_predictor import MemberLogits, restore_mean
from samunet.inference.export import write_case
from samunet.inference.logit_storage import Logits, LogitStorage
from samunet.planning.plan import Budget, Plan
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.restore import SLAB_BYTES

SLABS = 6
"""Slabs that exist at once: stated in documentation/inference.md."""
BYTES_PER_VOXEL = 4
"""Of the file's grid: the segmentation, and its copies while it is written."""
STEPS = ("export", "export with probabilities", "ensemble", "ensemble on disk", "saved probabilities")


def make_plan(classes: int) -> Plan:
    labels = {"background": (0,), **{f"organ_{k}": (k,) for k in range(1, classes)}}
    return Plan(
        name="samunetPlans",
        dataset="Dataset999_Big",
        fingerprint_hash="0" * 16,
        file_ending=".nii.gz",
        channel_names=("CT",),
        labels=LabelSet(labels=labels),
        num_training=1,
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        original_median_spacing_mm=(1.0, 1.0, 1.0),
        original_median_shape=(1.0, 1.0, 1.0),
        intensity=(),
        budget=Budget(device="cpu", memory_gb=8, hours=1, disk_gb=10, gflops={}),
        data={},
        configurations={},
        recommended="",
        verdicts=(),
    )


def make_record(shape: tuple[int, ...], network: tuple[int, ...]) -> SpatialRecord:
    spacing = tuple(n / m for n, m in zip(shape, network))
    return SpatialRecord(
        geometry=Geometry(shape=shape, spacing_mm=(1.0, 1.0, 1.0)),
        shape_before_crop=shape,
        crop_box=Box(lower=(0, 0, 0), upper=shape),
        shape=network,
        spacing_before_mm=(1.0, 1.0, 1.0),
        spacing_mm=spacing,
    )


def random_logits(shape: tuple[int, ...], storage: LogitStorage) -> Logits:
    """Logits of a smooth kind, filled plane by plane."""
    room = storage(shape)
    rng = np.random.default_rng(0)
    for plane in range(shape[1]):
        room[:, plane] = torch.from_numpy(rng.normal(0, 3, (shape[0], *shape[2:])).astype(np.float32))
    return room


def run_step(step: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, then measure one step."""
    torch.set_num_threads(arguments.threads)
    shape, network = tuple(arguments.shape), tuple(arguments.network)
    plan, record, work = make_plan(arguments.classes), make_record(shape, network), arguments.work
    work.mkdir(parents=True, exist_ok=True)
    models = 1 if step.startswith("export") else 3
    storage = LogitStorage(work, 0 if step.endswith("disk") else 2**40)
    members = [
        MemberLogits(logits=random_logits((arguments.classes, *network), storage), record=record, plan=plan)
        for _ in range(models if step != "saved probabilities" else 0)
    ]
    kept = "uint8" if step in ("export with probabilities", "ensemble on disk") else False

    def act() -> None:
        if step == "saved probabilities":
            files = [work / "export with probabilities.nii.gz", work / "ensemble on disk.nii.gz"]
            average_probabilities(files, plan.labels, work / "mean.nii.gz")
            return
        path = work / f"{step}.nii.gz"
        write_case(path, plan.labels, record.geometry, kept, lambda out: restore_mean(members, out))

    watch = Watch()
    start = time.perf_counter()
    watch.start()
    act()
    watch.stop()
    logits = sum(4 * prod(m.logits.shape) for m in members if isinstance(m.logits, torch.Tensor))
    bound = SLABS * SLAB_BYTES + BYTES_PER_VOXEL * prod(shape)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "anonymous_gb": round(watch.anonymous / 1e9, 3),
        "resident_gb": round(watch.resident / 1e9, 3),
        "bound_gb": round(bound / 1e9, 3),
        "kept": watch.anonymous <= bound,
        "logits_in_memory_gb": round(logits / 1e9, 3),
        "all_classes_at_full_size_gb": round(4 * arguments.classes * prod(shape) / 1e9, 2),
    }


class Watch(threading.Thread):
    """Largest growth of the process's memory, sampled (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self._read()
        self.anonymous = self.resident = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            now = self._read()
            self.anonymous = max(self.anonymous, now["RssAnon"] - self.first["RssAnon"])
            self.resident = max(self.resident, now["VmRSS"] - self.first["VmRSS"])

    def stop(self) -> None:
        self._ended.set()
        self.join()

    @staticmethod
    def _read() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {
            line.split(":")[0]: int(line.split()[1]) * 1024
            for line in lines
            if line.startswith(("RssAnon", "VmRSS"))
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder with some 10 GB")
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], help="of the case, z y x")
    parser.add_argument("--network", type=int, nargs=3, default=[150, 256, 256], help="of the network's grid")
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {}
    for step in STEPS:
        with context.Pool(1) as pool:
            figures[step] = pool.apply(run_step, (step, arguments))
        print(f"{step}: {figures[step]}", flush=True)
    case = {key: getattr(arguments, key) for key in ("shape", "network", "classes", "threads")}
    text = json.dumps({**hardware(), **case, "slab_bytes": SLAB_BYTES, "steps": figures}, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
