"""What is installed, where data lie, which weights are there, which methods exist."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samunet import __version__
from samunet.errors import SamunetError
from samunet.networks.sam.variants import VARIANTS
from samunet.planning.methods import ALIASES, list_methods
from samunet.workspace import DATASET_FILE, FINAL, Workspace, fold_folders

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "SimpleITK",
    "segment-anything",
    "dynamic-network-architectures",
    "batchgeneratorsv2",
    "blosc2",
)


TEST_ENCODER = "vit_micro"
STORED = (FINAL, "weights.safetensors")
"""Of a fold that was trained here, and of an installed one."""


def collect(workspace: Workspace) -> dict[str, Any]:
    """All facts as plain data."""
    return {
        "samunet": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "workspace": _workspace(workspace),
        "datasets": {name: _dataset(workspace, name) for name in workspace.list_datasets()},
        "weights": _weights(workspace),
        "methods": {
            name: {"dimension": m.dimension, "summary": m.summary, "source": m.source}
            for name, m in list_methods().items()
        },
        "aliases": dict(ALIASES),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    from samunet.pipeline.calibrate import main_memory_bytes
    from samunet.trainers.devices import choose_device

    found: dict[str, Any] = {
        "chosen": choose_device().type,
        "cpu": {"threads": torch.get_num_threads(), "memory_gb": round(main_memory_bytes() / 1e9, 1)},
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
        }
    if torch.backends.mps.is_available():
        found["mps"] = {}
    return found


def _workspace(workspace: Workspace) -> dict[str, Any]:
    folders = {name: getattr(workspace, name) for name in ("raw", "preprocessed", "results", "weights")}
    return {
        "origin": workspace.origin,
        **{name: {"folder": str(folder), "exists": folder.is_dir()} for name, folder in folders.items()},
        "free_gb": round(_free_bytes(workspace.preprocessed) / 1e9, 1),
    }


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _dataset(workspace: Workspace, name: str) -> dict[str, Any]:
    """What has been done for a dataset, judged by the files that are there."""
    own = {workspace.fingerprint_file(name).name, "calibration.json"}
    preprocessed = workspace.preprocessed_folder(name)
    plans = sorted(
        f.stem for f in preprocessed.glob("*.json") if f.name not in own and not f.name.startswith("splits_")
    )
    models = {
        folder.name: [
            str(fold)
            for fold, fold_folder in fold_folders(folder).items()
            if any((fold_folder / stored).exists() for stored in STORED)
        ]
        for folder in sorted((workspace.results / name).glob("[!.]*__*"))
        if folder.is_dir()
    }
    return {
        "raw": (workspace.raw / name / DATASET_FILE).is_file(),
        "fingerprint": workspace.fingerprint_file(name).is_file(),
        "plans": plans,
        "trained_folds": models,
    }


def _weights(workspace: Workspace) -> dict[str, Any]:
    from samunet.networks.sam.weight_files import find_weights

    offered = [name for name in VARIANTS if name != TEST_ENCODER]
    found: dict[str, Any] = {}
    for name in offered:
        try:
            file = find_weights(workspace.weights, name)
        except SamunetError as ambiguity:
            found[name] = str(ambiguity)
        else:
            found[name] = None if file is None else str(file)
    return found


def describe(facts: dict[str, Any]) -> str:
    """The facts as text."""
    lines = [f"samunet {facts['samunet']}, Python {facts['python']}, {facts['system']}"]
    lines.append(", ".join(f"{name} {found or 'MISSING'}" for name, found in facts["packages"].items()))
    lines += ["", f"Device: {facts['devices']['chosen']} is used by default"]
    lines += [
        f"  {name}: " + ", ".join(f"{key} {value}" for key, value in found.items())
        for name, found in facts["devices"].items()
        if isinstance(found, dict)
    ]
    lines += ["", f"Workspace: {facts['workspace']['origin']}, {facts['workspace']['free_gb']} GB free"]
    for name in ("raw", "preprocessed", "results", "weights"):
        place = facts["workspace"][name]
        lines.append(f"  {name:13} {place['folder']}{'' if place['exists'] else ' (not there yet)'}")
    lines += ["", "Datasets:" if facts["datasets"] else "Datasets: none"]
    lines += [f"  {name}: {_progress_of(dataset)}" for name, dataset in facts["datasets"].items()]
    lines += ["", "SAM weights:"]
    lines += [f"  {name:10} {file or 'not here'}" for name, file in facts["weights"].items()]
    lines += ["", "Methods:"]
    lines += [f"  {name:12} {method['summary']}" for name, method in facts["methods"].items()]
    return "\n".join(lines)


def _progress_of(dataset: dict[str, Any]) -> str:
    parts = ["raw data" if dataset["raw"] else "no raw data"]
    parts += ["fingerprint"] * dataset["fingerprint"]
    parts += [f"plan {plan}" for plan in dataset["plans"]]
    parts += [
        f"{model} (folds {', '.join(folds) or 'none'})" for model, folds in dataset["trained_folds"].items()
    ]
    return ", ".join(parts)
