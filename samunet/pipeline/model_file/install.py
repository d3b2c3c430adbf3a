"""Installing a shared model: checked in a folder of its own, then moved to its place in one step."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samunet.errors import SamunetError
from samunet.inference.postprocessing import Postprocessing
from samunet.pipeline.model_file.archive import open_model, unpack
from samunet.records import RecordError
from samunet.trainers.checkpoint import BaseWeights, find_base_weights
from samunet.trainers.portable import (
    ModelRecord,
    is_shared_model,
    load_shared_fold,
    method_of_samunet,
)
from samunet.whole_files import replace_folder
from samunet.workspace import DATASET_NAME, POSTPROCESSING_FILE, Workspace, fold_folder, user_weights

FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
"""Characters that some file system refuses in a name, or that lead elsewhere."""
LONGEST_NAME = 200
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class InstallRequest:
    """A shared model to be installed.

    Attributes:
        file: the .zip.
        folder: where to; None is the workspace's results/DATASET/CONFIGURATION__PLANS[__TAG].
        workspace: of `folder` None, and of the base weights.
        weights_folder: base weights, when they are elsewhere.
        overwrite: replace what is in the folder, be it a model or a training.
    """

    file: Path
    folder: Path | None
    workspace: Workspace
    weights_folder: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class InstallOutcome:
    """Where the model is, and what a user must know to use it."""

    folder: Path
    record: ModelRecord
    remarks: tuple[str, ...]

    def text(self) -> str:
        """The outcome in plain words, with the command that predicts."""
        folds = ", ".join(map(str, self.record.folds))
        return "\n".join(
            [
                f"{self.record.dataset} {self.record.folder_name}, folds {folds}: installed in {self.folder}",
                f"Licence: {self.record.licence}. Read {self.folder / 'MODEL_CARD.md'} before use.",
                *self.remarks,
                f"Predict: samunet_predict -i IMAGES -o OUT -m {self.folder}",
            ]
        )


def install_model(request: InstallRequest) -> InstallOutcome:
    """Check a shared model and put it where samunet_predict finds it.

    Raises:
        SamunetError: the file is refused (see `archive`), its content does not fit together, or there is a
            model or training in its place.
    """
    with open_model(request.file) as (archive, record):
        _check_names(record, request.file)
        target = request.folder or request.workspace.results / record.dataset / record.folder_name
        target = Path(os.path.abspath(target))
        _check_target(target, request.overwrite)
        with _room_beside(target, record) as scratch:
            fresh = scratch / "model"
            fresh.mkdir()
            unpack(archive, record, fresh, request.file)
            bases = _check_content(fresh, record, request.file)
            replace_folder(fresh, target)
    remarks = [*_base_remarks(request, bases), *_name_remarks(request, record)]
    return InstallOutcome(folder=target, record=record, remarks=tuple(remarks))


def _check_names(record: ModelRecord, file: Path) -> None:
    """Names that become folders must be plain names; the method must be samunet's."""
    name = record.dataset
    is_sound = 0 < len(name) <= LONGEST_NAME and not FORBIDDEN.search(name) and not name.startswith(".")
    plain = (record.plans, *([] if record.tag is None else [record.tag]))
    if not is_sound or not all(PLAIN_NAME.fullmatch(part) and "__" not in part for part in plain):
        raise SamunetError(
            f"{file} is refused: dataset {name!r}, plan {record.plans!r} and tag {record.tag!r} would become "
            "folders, and are no plain names."
        )
    method_of_samunet(record.method, str(file))
    if record.configuration != record.method and not PLAIN_NAME.fullmatch(record.configuration):
        raise SamunetError(f"{file} is refused: the configuration {record.configuration!r} is no plain name.")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if is_shared_model(target):
        holds = "an installed model"
    elif any(target.glob("fold_*/checkpoint_*.pth")):
        holds = "a model that was trained here"
    else:  # never deleted, whatever the flags: it may be anything
        raise SamunetError(f"{target} exists and is no model folder. Choose another place with -o.")
    if not overwrite:
        raise SamunetError(
            f"{target} already holds {holds}. Choose another place with -o, or replace it with --overwrite, "
            "which deletes what is there."
        )


@contextmanager
def _room_beside(target: Path, record: ModelRecord) -> Iterator[Path]:
    """A folder beside the target that goes afterwards; so does the one above it if it was made in vain."""
    parent = target.parent
    was_there = parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    try:
        _check_disk(parent, record)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".installing_") as scratch:
            yield Path(scratch)
    finally:
        if not was_there and not any(parent.iterdir()):
            parent.rmdir()


def _check_disk(folder: Path, record: ModelRecord) -> None:
    needed, free = sum(entry.bytes for entry in record.files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise SamunetError(
            f"The model needs {needed / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB. Choose another place "
            "with -o, or free some space."
        )


def _check_content(fresh: Path, record: ModelRecord, file: Path) -> list[BaseWeights]:
    """Read everything once as prediction will; returns the base weights that must be found elsewhere."""
    bases: dict[str, BaseWeights] = {}
    try:
        for fold in record.folds:
            stored = load_shared_fold(fold_folder(fresh, fold))
            if stored.fold != fold or stored.configuration != record.configuration:
                raise SamunetError(
                    f"fold_{fold} says that it is fold {stored.fold} of {stored.configuration}."
                )
            if stored.plan.dataset != record.dataset:
                raise SamunetError(f"its plan is of {stored.plan.dataset}, not of {record.dataset}.")
            if stored.base_weights is not None and not stored.base_weights.stored:
                bases[stored.base_weights.sha256] = stored.base_weights
        if POSTPROCESSING_FILE in record.files:
            Postprocessing.load(fresh / POSTPROCESSING_FILE)
    except (SamunetError, RecordError) as fault:
        told = str(fault).replace(f"{fresh}{os.sep}", "").replace(" Install the model again.", "")
        raise SamunetError(f"{file} is refused: {told} Nothing was installed.") from fault
    return list(bases.values())


def _base_remarks(request: InstallRequest, bases: list[BaseWeights]) -> list[str]:
    """Base weights that prediction will miss, and where they belong."""
    remarks = []
    for base in bases:
        try:
            find_base_weights(base, request.weights_folder or request.workspace.weights)
        except SamunetError:
            remarks.append(
                f"Needed for prediction and not found: {base.file} (SHA-256 {base.sha256}). Run "
                f"samunet_download_weights {base.variant} -w {user_weights()}, or put the file into that "
                "folder, or name its folder with -w when you predict."
            )
    return remarks


def _name_remarks(request: InstallRequest, record: ModelRecord) -> list[str]:
    """Another dataset of the same number makes the number useless."""
    match = DATASET_NAME.fullmatch(record.dataset)
    if request.folder is not None or match is None:
        return []
    others = [
        name
        for name in request.workspace.list_datasets()
        if (found := DATASET_NAME.fullmatch(name)) and found[1] == match[1] and name != record.dataset
    ]
    if not others:
        return []
    return [f"{match[1]} now means {record.dataset} and {', '.join(others)}: use full names with -d."]
