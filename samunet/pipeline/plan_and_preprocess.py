"""Raw dataset to fingerprint, plan and preprocessed cases: each step alone, each resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samunet.data.dataset import RawDataset
from samunet.data.groups import undeclared, unmatched
from samunet.data.integrity import verify_dataset
from samunet.errors import SamunetError
from samunet.networks.sam.variants import VARIANTS, get_variant
from samunet.networks.sam.weight_files import file_has_adapters, weights_at_hand, weights_kind, weights_sha256
from samunet.networks.sam.weights_card import read_card
from samunet.pipeline.calibrate import BudgetRequest, make_budget
from samunet.pipeline.replaced_plan import DEFAULT_GOAL, DEFAULT_HOURS, planning_command, save_plan
from samunet.planning.fingerprint import (
    Fingerprint,
    dataset_stamp,
    extract_fingerprint,
    load_or_extract,
    read_known,
)
from samunet.planning.methods import ALIASES, get_method
from samunet.planning.plan import RANDOM, Budget, Plan, WeightsUsed
from samunet.planning.planner import PlanningRequest, make_plan
from samunet.progress import Screen, no_screen
from samunet.workspace import DATASET_FILE, DEFAULT_PLANS, Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FingerprintRequest:
    """How to measure: worker processes (None: by memory), whether to verify first, whether to start anew."""

    workers: int | None = None
    verify: bool = False
    clean: bool = False


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the user decides about a plan; everything else is the planner's.

    Attributes:
        plans: name of the plan.
        device: to plan for; `auto` takes the best one here.
        gpu_memory_gb: plan every method for a GPU of that memory.
        hours: longest training of one fold.
        spacing_mm: target spacing z, y, x.
        encoder: SAM variant for all SAM methods.
        weights: a file, or a folder with files named after their encoders, taken alone; None takes the
            workspace's folder and the package.
        settings: method settings.
        goal: what the recommendation looks for: accuracy, speed or generalize.
    """

    plans: str = DEFAULT_PLANS
    device: str = "auto"
    gpu_memory_gb: float | None = None
    hours: float = DEFAULT_HOURS
    spacing_mm: tuple[float, float, float] | None = None
    encoder: str | None = None
    weights: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    goal: str = DEFAULT_GOAL


def extract(
    workspace: Workspace, name: str, request: FingerprintRequest, screen: Screen = no_screen
) -> Fingerprint:
    """The dataset's fingerprint, measured when absent or when the data changed.

    Raises:
        SamunetError: faults in the dataset; with `verify` all of them are listed.
    """
    # A dataset that is verified may have missing files too: they are listed with all other faults.
    dataset = RawDataset.load(workspace.raw_folder(name), strict=not request.verify)
    if request.verify:
        verify(dataset, request.workers, screen)
    for told in dataset.unused_files():
        logger.warning("%s", told)
    told = undeclared(dataset.groups, dataset.case_names)
    if told:
        logger.warning("%s: %s. Splits by group are refused until all cases have one.", name, told)
    told = unmatched(dataset.origins, dataset.declared, dataset.case_names)
    if told:
        logger.warning("%s: groups.csv or dataset.json declares %s. Names must be the cases'.", name, told)
    with screen(f"{name}: fingerprint") as progress:
        return load_or_extract(
            dataset, workspace.fingerprint_file(name), request.workers, request.clean, progress
        )


def verify(dataset: RawDataset, workers: int | None = None, screen: Screen = no_screen) -> None:
    """Read every case and refuse a dataset with faults.

    Raises:
        SamunetError: lists all faults.
    """
    with screen(f"{dataset.name}: verification") as progress:
        faults = verify_dataset(dataset, workers, progress)
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise SamunetError(f"{dataset.name} has {len(faults)} fault(s):\n{listed}")
    logger.info("%s: %d cases verified, no faults", dataset.name, len(dataset.cases))


def plan(
    workspace: Workspace,
    name: str,
    options: PlanOptions,
    *,
    save: bool = True,
    fingerprint: Fingerprint | None = None,
    workers: int | None = None,
) -> Plan:
    """Plan every method for a dataset.

    Args:
        save: write fingerprint, calibration and plan, and keep a plan of the name that was another one;
            otherwise nothing on disk is touched.
        fingerprint: as `extract` just gave it; None extracts it.
        workers: processes for a fingerprint that has to be measured first.
    """
    if fingerprint is None and save:
        fingerprint = extract(workspace, name, FingerprintRequest(workers=workers))
    elif fingerprint is None:
        fingerprint = _fingerprint_without_writing(workspace, name, workers)
    _warn_of_absent_classes(fingerprint, workspace.raw / name / DATASET_FILE)
    budget = make_budget(
        BudgetRequest(
            device=options.device,
            gpu_memory_gb=options.gpu_memory_gb,
            hours=options.hours,
            disk=workspace.preprocessed,
            cache_file=workspace.preprocessed / "calibration.json",
            write_cache=save,
        )
    )
    files = weights_in_reach(workspace, options.weights, options.encoder)
    made = make_plan(fingerprint, planning_request(options, budget, files))
    made = replace(made, weights=_weights_of(made, files))
    if save:
        save_plan(made, workspace.plan_file(name, made.name))
    return made


def _warn_of_absent_classes(fingerprint: Fingerprint, file: Path) -> None:
    for name in fingerprint.labels.foreground:
        if not any(case.class_voxels.get(name) for case in fingerprint.cases):
            logger.warning(
                "No case contains %s, so it cannot be learnt. Take it out of the labels in %s, or correct "
                "the label files.",
                name,
                file,
            )


def _fingerprint_without_writing(workspace: Workspace, name: str, workers: int | None) -> Fingerprint:
    dataset = RawDataset.load(workspace.raw_folder(name))
    known = read_known(workspace.fingerprint_file(name))
    if known is not None and known.stamp == dataset_stamp(dataset):
        return known
    return extract_fingerprint(dataset, workers)


def planning_request(options: PlanOptions, budget: Budget, files: Mapping[str, Path]) -> PlanningRequest:
    """The planner's request: budget, kinds of the weights files in reach, and what the user overrode."""
    overrides = {
        key: value
        for key, value in (
            ("spacing", options.spacing_mm),
            ("encoder", options.encoder),
            ("weights", None if options.weights is None else os.path.abspath(options.weights)),
            ("settings", options.settings),
        )
        if value
    }
    return PlanningRequest(
        name=options.plans,
        budget=budget,
        unet_memory_gb=options.gpu_memory_gb or 8.0,
        weights={name: weights_kind(path, name) for name, path in files.items()},
        adapted=frozenset(name for name, path in files.items() if file_has_adapters(path)),
        goal=options.goal,
        overrides=overrides,
    )


def _weights_of(plan: Plan, files: Mapping[str, Path]) -> dict[str, WeightsUsed]:
    """The weights of the encoders that start from a file; only these are read for their hash."""
    starting = {c.encoder: c.encoder_weights for c in plan.configurations.values() if c.encoder is not None}
    return {
        name: WeightsUsed(
            kind=kind,
            file=files[name].name,
            sha256=weights_sha256(files[name]),
            adapted=file_has_adapters(files[name]),
        )
        for name, kind in starting.items()
        if name in files and kind not in ("none", RANDOM)
    }


def weights_in_reach(workspace: Workspace, weights: Path | None, encoder: str | None) -> dict[str, Path]:
    """Weights file by encoder: of the workspace's folder and the package, or of what was given alone.

    Raises:
        SamunetError: no such file or folder, a file that does not say whose weights it holds, or a folder
            without those of the encoder, or of any.
    """
    if weights is None:
        return weights_at_hand(workspace.weights)
    if not weights.is_dir():
        variant = encoder or encoder_of_file(weights)
        return {variant: weights}
    found = weights_at_hand(weights, shipped=False)
    if not found or (encoder is not None and encoder not in found):
        whose = encoder or "any encoder"
        raise SamunetError(
            f"-w {weights}: this folder holds no weights of {whose} by the names of its files. Name a file."
        )
    return found


def encoder_of_file(weights: Path) -> str:
    """The encoder that a weights file is of: as its card says, else the one whose name its name contains.

    Raises:
        SamunetError: there is no such file, its card is of other weights, or neither card nor name says it.
    """
    if not weights.is_file():
        raise SamunetError(f"-w {weights}: there is no such file or folder.")
    card = read_card(weights)
    if card is not None:
        return get_variant(card.variant).name
    named = [variant for variant in VARIANTS if variant in weights.stem]
    if len(named) != 1:
        raise SamunetError(
            f"-w {weights}: say whose weights these are with -encoder, such as -encoder vit_b."
        )
    return named[0]


def data_names(plan: Plan, configurations: Sequence[str] | None) -> tuple[str, ...]:
    """Data configurations that these configurations train on; all that are used, without a choice.

    Raises:
        SamunetError: an unknown configuration, or one that the planner found unsuitable; says why.
    """
    wanted = plan.configurations if configurations is None else [ALIASES.get(c, c) for c in configurations]
    for name in wanted:
        if name not in plan.configurations:
            get_method(name)  # of one that is out of scope it says more than the plan
    return tuple(dict.fromkeys(plan.configuration(name).data for name in wanted))


def preprocess(
    workspace: Workspace,
    plan: Plan,
    configurations: Sequence[str] | None = None,
    workers: int | None = None,
    screen: Screen = no_screen,
) -> None:
    """Preprocess the cases that the configurations need; finished cases are kept.

    A label that was corrected after planning is taken as it is now, with a warning that the plan is older.
    """
    from samunet.preprocessing.dataset import preprocess_folders

    dataset = RawDataset.load(workspace.raw_folder(plan.dataset))
    _warn_of_changed_files(dataset, workspace.fingerprint_file(plan.dataset), plan)
    names = data_names(plan, configurations)
    folders = {name: workspace.case_folder(plan.dataset, plan.name, name) for name in names}
    with screen(f"{plan.dataset}: preprocessing {', '.join(names)}") as progress:
        preprocess_folders(dataset, plan, folders, workers, progress)


def _warn_of_changed_files(dataset: RawDataset, file: Path, plan: Plan) -> None:
    if file.is_file() and Fingerprint.load(file).stamp != dataset_stamp(dataset):
        logger.warning(
            "%s was measured on other files than %s holds now (names, sizes, times or what is declared of "
            "them differ). Cases are made from what is there now, but by a plan for the earlier data. If "
            "more than a few labels changed, plan again: %s.",
            file,
            dataset.folder,
            planning_command(plan),
        )
