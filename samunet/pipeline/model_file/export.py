"""Writing a trained model as one .zip: plan, weights as safetensors, scores, licences, a card; no pickle."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samunet import __version__
from samunet.errors import SamunetError
from samunet.inference.folds import check_alike, checkpoint_file, find_folds
from samunet.pipeline.model_file.archive import ModelWriter
from samunet.pipeline.model_file.calibration import shared_calibration
from samunet.pipeline.model_file.card import NOT_STATED, CardFacts, write_card
from samunet.pipeline.model_file.contents import CARD_FILE, SCORES_FILE
from samunet.pipeline.model_file.lineage import (
    brings_base,
    origins_of,
    shared_dataset_json,
    shared_overrides,
    training_of,
)
from samunet.pipeline.model_file.scores import shared_scores
from samunet.pipeline.model_file.selected import Selected, SelectionFiles, selected
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.fingerprint_envelope import FingerprintEnvelope, envelope_of
from samunet.planning.plan import Plan
from samunet.records import read_json
from samunet.trainers.checkpoint import Checkpoint, base_keys, load_checkpoint, network_from_checkpoint
from samunet.trainers.identity import read_run
from samunet.trainers.portable import (
    FOLD_FILE,
    MODEL_FILE,
    SHARED_FILE,
    WEIGHTS_FILE,
    FoldRecord,
    ModelRecord,
    is_shared_model,
    method_of_samunet,
    tensor_bytes,
)
from samunet.whole_files import atomic_path
from samunet.workspace import (
    DATASET_FILE,
    ENVELOPE_FILE,
    FINAL,
    FINGERPRINT_FILE,
    PLAN_FILE,
    POSTPROCESSING_FILE,
    QC_MODEL_FILE,
    SELECTION_FILE,
    Fold,
    fold_folder,
    split_tag,
)

logger = logging.getLogger(__name__)

NAME_PARTS = 3
"""CONFIGURATION, PLANS and perhaps TAG, with two underscores between."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A model to be written as a .zip.

    Attributes:
        model_folder: results/DATASET/CONFIGURATION__PLANS[__TAG].
        output: the file, `.zip`.
        folds: None takes every trained fold.
        checkpoint: file name in each fold's folder.
        include_base: store official base weights too, instead of leaving them to be found by their hash.
        include_cases: the scores of single cases, with their names.
        licence: of the model, in the user's words.
        weights_folder: where base weights lie.
        selection: of the dataset; taken along as far as it is about this model.
        overwrite: replace the file.
    """

    model_folder: Path
    output: Path
    folds: tuple[Fold, ...] | None = None
    checkpoint: str = FINAL
    include_base: bool = False
    include_cases: bool = False
    licence: str = NOT_STATED
    weights_folder: Path | None = None
    selection: SelectionFiles | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportOutcome:
    """The file, its record, and what a reader should know."""

    file: Path
    record: ModelRecord
    remarks: tuple[str, ...]

    def text(self) -> str:
        """What was written, in plain words."""
        folds = ", ".join(map(str, self.record.folds))
        lines = [
            f"{self.file}: {self.record.dataset} {self.record.folder_name}, folds {folds}, "
            f"{self.file.stat().st_size / 1e6:.1f} MB."
        ]
        for origin in self.record.weights:
            lines.append(f"{origin.file} ({origin.kind}, licence {origin.licence}): {origin.place}.")
        return "\n".join([*lines, *self.remarks])


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """State of all folds: what they have alike, and what each has of its own."""

    shared: dict[str, Tensor]
    own: dict[Fold, dict[str, Tensor]]


def export_model(request: ExportRequest) -> ExportOutcome:
    """Write a trained model as one file that samunet_install_model takes.

    Raises:
        SamunetError: no such model or fold, folds that do not belong together, a method outside samunet, base
            weights that are to be stored and not found, or a file that exists.
    """
    folder = request.model_folder
    _check(request)
    folds = request.folds or find_folds(folder, request.checkpoint)
    stored = {fold: _load(checkpoint_file(folder, fold, request.checkpoint)) for fold in folds}
    check_alike(folder, stored)
    first = next(iter(stored.values()))
    method_of_samunet(first.method, str(folder))
    record = _record(request, stored)
    chosen = selected(request.selection, record.configuration, record.plans, record.tag)
    facts = _facts(request, record, first.plan, chosen)
    calibration, uncalibrated = shared_calibration(folder)
    with atomic_path(request.output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        writer = ModelWriter(archive)
        _add_records(writer, request, facts, chosen)
        if calibration is not None:
            writer.add_json(QC_MODEL_FILE, calibration)
        _add_folds(writer, stored, request)
        record = replace(record, files=writer.files)
        writer.add_json(MODEL_FILE, record)
    remarks = (*_remarks(request, facts, chosen), uncalibrated, _site_in_tag(record.tag, stored))
    return ExportOutcome(file=request.output, record=record, remarks=tuple(filter(None, remarks)))


def _facts(request: ExportRequest, record: ModelRecord, plan: Plan, chosen: Selected) -> CardFacts:
    """What is said of the model besides its weights."""
    folder, rules = request.model_folder, chosen.postprocessing
    scores, unscored = shared_scores(
        folder, record.folds, plan.labels, request.checkpoint, include_cases=request.include_cases
    )
    return CardFacts(
        record=record,
        plan=plan,
        description=_description(folder),
        envelope=_envelope(folder),
        scores=scores,
        unscored=unscored,
        postprocessing=None if rules is None else rules.text(),
    )


def _add_records(writer: ModelWriter, request: ExportRequest, facts: CardFacts, chosen: Selected) -> None:
    """All files of text but those of the folds and model.json."""
    folder = request.model_folder
    overrides = shared_overrides(facts.plan.overrides)
    writer.add_json(PLAN_FILE, replace(facts.plan, overrides=overrides))
    writer.add_json(DATASET_FILE, shared_dataset_json(_dataset_json(folder), facts.plan))
    writer.add(CARD_FILE, write_card(facts).encode())
    found = {
        ENVELOPE_FILE: facts.envelope,
        SCORES_FILE: facts.scores,
        SELECTION_FILE: chosen.selection,
        POSTPROCESSING_FILE: chosen.postprocessing,
    }
    for name, content in found.items():
        if content is not None:
            writer.add_json(name, content)


def _remarks(request: ExportRequest, facts: CardFacts, chosen: Selected) -> tuple[str, ...]:
    """What the file lacks."""
    remarks = [chosen.remark] if chosen.remark else []
    if facts.envelope is None:
        remarks.append("There is no fingerprint in the model folder: the card cannot say what was seen.")
    if facts.scores is None:
        remarks.append(f"The file has no scores: {'; '.join(facts.unscored)}.")
    if request.licence == NOT_STATED:
        remarks.append("The card says that the model's licence is not stated; state it with --licence.")
    return tuple(remarks)


def _site_in_tag(tag: str | None, stored: dict[Fold, Checkpoint]) -> str:
    """That the model's own name says what is left out of its files; empty where it does not."""
    for checkpoint in stored.values():
        splits = checkpoint.overrides.get("splits") or ""
        site = splits.partition(":")[2]
        if tag is not None and site and (tag == split_tag(splits) or site in tag):
            return (
                f"The tag {tag} names a site, and it is part of the model's name. To share it without that, "
                "copy its folder to CONFIGURATION__PLANS__OTHER_TAG and export that one with -m."
            )
    return ""


def _load(file: Path) -> Checkpoint:
    """A checkpoint without the optimizer's states, which are twice as large as the network."""
    return replace(load_checkpoint(file), training={})


def _dataset_json(folder: Path) -> dict[str, Any]:
    """Of the model folder; empty where the raw data were not there when it was trained."""
    file = folder / DATASET_FILE
    return read_json(file) if file.is_file() else {}


def _check(request: ExportRequest) -> None:
    if request.output.suffix != ".zip":
        raise SamunetError(f"-o {request.output}: a shared model is a .zip file; give it that ending.")
    if request.output.exists() and not request.overwrite:
        raise SamunetError(f"{request.output} exists. Choose another name, or replace it with --overwrite.")
    if is_shared_model(request.model_folder):
        raise SamunetError(
            f"{request.model_folder} was itself installed from a shared file. Pass that file on."
        )


def _record(request: ExportRequest, stored: dict[Fold, Checkpoint]) -> ModelRecord:
    """model.json without the list of files."""
    folder, first = request.model_folder, next(iter(stored.values()))
    parts = folder.resolve().name.split("__")
    if not 2 <= len(parts) <= NAME_PARTS or parts[0] != first.configuration:
        raise SamunetError(
            f"{folder} is not named CONFIGURATION__PLANS or CONFIGURATION__PLANS__TAG, as samunet_train "
            "does; give it its name back."
        )
    runs = {fold: read_run(fold_folder(folder, fold)) for fold in stored}
    training = [training_of(fold, run) for fold, run in runs.items()]
    return ModelRecord(
        samunet=__version__,
        created=datetime.now(timezone.utc).date().isoformat(),
        dataset=first.plan.dataset,
        configuration=first.configuration,
        plans=parts[1],
        tag=parts[2] if len(parts) == NAME_PARTS else None,
        method=first.method,
        folds=tuple(stored),
        checkpoint=request.checkpoint,
        licence=request.licence,
        weights=origins_of(stored, runs, request.weights_folder, include_base=request.include_base),
        training=tuple(fold for fold in training if fold is not None),
        files={},
    )


def _add_folds(writer: ModelWriter, stored: dict[Fold, Checkpoint], request: ExportRequest) -> None:
    tensors = _gather(stored, request)
    if tensors.shared:
        writer.add(SHARED_FILE, tensor_bytes(tensors.shared, {"samunet": __version__}))
    for fold, checkpoint in stored.items():
        base = checkpoint.base_weights
        if base is not None:
            base = replace(base, stored=brings_base(checkpoint, request.include_base))
        fold_record = FoldRecord(
            fold=fold,
            method=checkpoint.method,
            configuration=checkpoint.configuration,
            epoch=checkpoint.epoch,
            seed=checkpoint.seed,
            mirror_axes=checkpoint.mirror_axes,
            overrides=shared_overrides(checkpoint.overrides),
            base_weights=base,
        )
        writer.add_json(f"fold_{fold}/{FOLD_FILE}", fold_record)
        content = tensor_bytes(tensors.own[fold], {"samunet": __version__, "fold": str(fold)})
        writer.add(f"fold_{fold}/{WEIGHTS_FILE}", content)


def _gather(stored: dict[Fold, Checkpoint], request: ExportRequest) -> _Tensors:
    """Tensors of all folds; those that all have alike (a frozen encoder) are kept once."""
    states: dict[Fold, dict[str, Tensor]] = {}
    first: dict[str, Tensor] = {}
    differing: set[str] = set()
    base: set[str] = set()
    for fold, checkpoint in stored.items():
        state = checkpoint.network
        if brings_base(checkpoint, request.include_base):
            assert checkpoint.base_weights is not None
            network = network_from_checkpoint(checkpoint, request.weights_folder)
            state = network.state_dict()
            base |= base_keys(network, checkpoint.base_weights)
        first = first or state
        differing |= {key for key in state if not _same(first.get(key), state[key])}
        # What is as in the first fold is not held a second time.
        states[fold] = {key: first[key] if _same(first.get(key), state[key]) else state[key] for key in state}
    candidates = base if len(stored) == 1 else set(first)
    shared = {key for key in candidates if all(key in state for state in states.values())} - differing
    return _Tensors(
        shared={key: first[key] for key in sorted(shared)},
        own={f: {k: v for k, v in state.items() if k not in shared} for f, state in states.items()},
    )


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


def _envelope(folder: Path) -> FingerprintEnvelope | None:
    file = folder / FINGERPRINT_FILE
    return envelope_of(Fingerprint.load(file)) if file.is_file() else None


def _description(folder: Path) -> str:
    content = _dataset_json(folder)
    licence = content.get("licence") or content.get("license")
    told = [str(content.get("description") or "")]
    told += [f"Licence of the data as its dataset.json states it: {licence}."] if licence else []
    return " ".join(text for text in told if text)
