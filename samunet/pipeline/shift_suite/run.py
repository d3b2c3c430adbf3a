"""Trained models on images that are changed step by step: predicted, scored, put side by side."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from samunet.data.cases import Case, file_faults, find_cases
from samunet.data.dataset import RawDataset
from samunet.data.geometry import Geometry, slice_axis
from samunet.data.groups import Origins, unit_numbers
from samunet.data.labels import LabelSet
from samunet.data.readers import read_header, segmentation_ending
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import score_array
from samunet.evaluation.folder import evaluate_cases
from samunet.evaluation.scores import Evaluation
from samunet.evaluation.shifts import SEVERITIES, SHIFTS, Condition, check_condition, shifted
from samunet.evaluation.summary_file import read_summary
from samunet.inference.files import FileOptions
from samunet.inference.folds import checkpoint_file, find_folds
from samunet.inference.predictor import Predictor
from samunet.listing import counted_cases, listed
from samunet.networks.sam.weight_files import file_sha256
from samunet.pipeline.models import ModelRequest, find_model
from samunet.pipeline.shift_suite.result import Fold, Outcome, SuiteResult
from samunet.planning.rules import normalization_scheme
from samunet.records import hash_files, read_json, write_json
from samunet.trainers.identity import read_run
from samunet.workspace import DEFAULT_PLANS, FINAL, SUMMARY_FILE, Workspace, fold_folder

logger = logging.getLogger(__name__)

CLEAN = "clean"
CONDITION_FILE = "condition.json"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What is tested on what.

    Attributes:
        dataset: full name; configurations: methods; plans / tag: of their trainings.
        fold: whose model predicts, and whose validation cases are changed; None takes the first trained
            one.
        kinds / severities: of shifts.SHIFTS.
        seed: of everything that is drawn.
        images / labels: folders of held-out cases; None takes the validation cases of the fold.
        limit: most cases, evenly spread over the list; None takes all.
        output: folder of predictions and results.
        device / weights_folder / mirroring: of the predictions.
        overwrite: replace conditions that were predicted with something else.
    """

    dataset: str
    configurations: tuple[str, ...]
    plans: str = DEFAULT_PLANS
    tag: str | None = None
    fold: Fold | None = None
    kinds: tuple[str, ...] = tuple(SHIFTS)
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0
    images: Path | None = None
    labels: Path | None = None
    limit: int | None = None
    output: Path
    device: str = "auto"
    weights_folder: Path | None = None
    mirroring: bool = True
    overwrite: bool = False
    workers: int | None = 1


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A trained fold of one method; `name` is its configuration, with the tag where it is not the suite's."""

    name: str
    folder: Path
    fold: Fold
    sha256: str
    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all predictions of a suite share.

    Attributes:
        contents: case name -> hash of the bytes of its files; names alone do not tell whether they are those
            that were predicted before.
        slice_axes: case name -> axis across its slices, of those that have another one than the first.
        colours: channels that hold colours of 8 bits.
    """

    request: SuiteRequest
    cases: tuple[Case, ...]
    contents: Mapping[str, str]
    slice_axes: Mapping[str, int]
    labels: LabelSet
    ending: str
    colours: tuple[int, ...]
    origins: Origins = field(default_factory=Origins)


def run_suite(workspace: Workspace, request: SuiteRequest) -> SuiteResult:
    """Predict and score every method under every condition; what is there already is kept.

    Raises:
        SamunetError: an unknown shift, a method that is not trained or named twice, methods with different
            validation cases, cases that were trained on or whose files are gone, or results of another
            model, seed or other files in the output folder.
    """
    for kind in request.kinds:
        for severity in request.severities:
            check_condition(kind, severity)
    dataset = RawDataset.load(workspace.raw_folder(request.dataset), strict=False)
    models = [_model(workspace, request, name) for name in request.configurations]
    if len({model.folder for model in models}) < len(models):
        raise SamunetError(f"-c {' '.join(request.configurations)} names a model twice; each has one curve.")
    if request.images is None:
        cases = tuple(dataset.case(name) for name in _common_cases(models))
    else:
        cases = _held_out_cases(request, dataset, models)
    cases = tuple(chosen_cases(cases, request.limit))
    origins = dataset.declared.of_cases(case.name for case in cases)  # held-out cases may be declared too
    bench = _Bench(
        request=request,
        cases=cases,
        contents=_contents(cases, len(dataset.channel_names)),
        slice_axes=_slice_axes(cases),
        labels=dataset.labels,
        ending=segmentation_ending(dataset.file_ending),
        colours=tuple(
            number
            for number, name in enumerate(dataset.channel_names)
            if normalization_scheme(name) == "rgb_to_0_1"
        ),
        origins=origins,
    )
    conditions = [
        Condition(kind=CLEAN, severity=0, seed=request.seed),
        *(
            Condition(kind=kind, severity=severity, seed=request.seed)
            for kind in request.kinds
            for severity in request.severities
        ),
    ]
    return SuiteResult(
        dataset=request.dataset,
        fold=models[0].fold,
        seed=request.seed,
        cases=bench.cases,
        outcomes={model.name: tuple(_outcomes(bench, model, conditions)) for model in models},
        colours=bench.colours,
        units=unit_numbers([case.name for case in bench.cases], origins.without_groups),
    )


def chosen_cases(cases: Sequence[T], limit: int | None) -> Sequence[T]:
    """So many cases as the limit says, evenly spread over the list, always the same; all without a limit."""
    if limit is None or limit >= len(cases):
        return cases
    return [cases[number * len(cases) // limit] for number in range(limit)]


def _model(workspace: Workspace, request: SuiteRequest, word: str) -> _Model:
    folder = find_model(
        workspace,
        ModelRequest(dataset=request.dataset, configuration=word, plans=request.plans, tag=request.tag),
    )
    configuration, _, *tag = folder.name.split("__")
    fold = find_folds(folder, flag=None)[0] if request.fold is None else request.fold
    record = read_run(fold_folder(folder, fold))
    train = () if record is None else record.train
    val = () if record is None else tuple(sorted(set(record.val) - set(train)))
    if not val and request.images is None:
        raise SamunetError(
            f"Fold {fold} of {folder.name} keeps no case out of training, so there is nothing to test it on. "
            "Name a numbered fold with -f, or give held-out cases with -i and -l."
        )
    return _Model(
        name="__".join([configuration, *(part for part in tag if part != request.tag)]),
        folder=folder,
        fold=fold,
        sha256=file_sha256(checkpoint_file(folder, fold, FINAL, flag=None)),
        train=train,
        val=val,
    )


def _common_cases(models: Sequence[_Model]) -> tuple[str, ...]:
    """The validation cases, which must be the same for all: otherwise curves could not be compared."""
    first = models[0]
    for model in models[1:]:
        if model.val != first.val:
            raise SamunetError(
                f"{model.name} (fold {model.fold}) and {first.name} (fold {first.fold}) keep different cases "
                "out of training, so their curves could not be compared. Name a fold of the same split with "
                "-f, or test them one by one."
            )
    return first.val


def _held_out_cases(request: SuiteRequest, dataset: RawDataset, models: Sequence[_Model]) -> tuple[Case, ...]:
    """The cases of -i with their labels of -l; none of them may have been trained on."""
    assert request.images is not None
    if request.labels is None:
        raise SamunetError(f"-i {request.images}: give the folder of their labels with -l.")
    found = find_cases(request.images, dataset.file_ending, len(dataset.channel_names))
    ending = segmentation_ending(dataset.file_ending)
    cases = [replace(case, label=request.labels / f"{case.name}{ending}") for case in found]
    lacking = [case.name for case in cases if case.label is None or not case.label.is_file()]
    if lacking:
        raise SamunetError(f"{request.labels} lacks the labels of {counted_cases(lacking)}.")
    for model in models:
        seen = sorted({case.name for case in cases} & set(model.train))
        if seen:
            raise SamunetError(
                f"-i {request.images}: {len(seen)} case(s) have the names of training cases of "
                f"{model.folder.name}, fold {model.fold}: {listed(seen)}. Take them out, or rename "
                "them if they are others."
            )
    return tuple(cases)


def _contents(cases: Sequence[Case], num_channels: int) -> dict[str, str]:
    """Case name -> hash of the bytes of its files.

    Raises:
        SamunetError: files are missing; lists all.
    """
    faults = [fault for case in cases for fault in file_faults(case, num_channels)]
    if faults:
        raise SamunetError("\n".join(["These cases cannot be tested on:", *faults]))
    return {case.name: hash_files(case.files) for case in cases}


def _slice_axes(cases: Sequence[Case]) -> dict[str, int]:
    """Axes that are written down with the results: earlier commits took the first one for every case's."""
    headers = {case.name: read_header(case.images[0]).geometry for case in cases}
    axes = {name: slice_axis(found.spacing_mm, found.shape) for name, found in headers.items()}
    return {name: axis for name, axis in axes.items() if axis}


def _outcomes(bench: _Bench, model: _Model, conditions: Sequence[Condition]) -> Iterator[Outcome]:
    predictor: Predictor | None = None
    for number, condition in enumerate(conditions, start=1):
        folder = bench.request.output / model.name / condition.name
        if not _is_done(bench, model, condition, folder):
            if predictor is None:
                predictor = Predictor.load(
                    model.folder,
                    folds=(model.fold,),
                    device=bench.request.device,
                    mirroring=bench.request.mirroring,
                    weights_folder=bench.request.weights_folder,
                )
            logger.info("%s, %s (%d of %d)", model.name, condition.name, number, len(conditions))
            _predict_and_score(bench, predictor, condition, folder)
        yield _read(bench, condition, folder)


def _is_done(bench: _Bench, model: _Model, condition: Condition, folder: Path) -> bool:
    """Whether the folder holds the scores; an unfinished one is prepared to go on.

    Raises:
        SamunetError: it was made with something else.
    """
    made = {
        "checkpoint_sha256": model.sha256,
        "condition": {"kind": condition.kind, "severity": condition.severity, "strength": condition.strength},
        "seed": bench.request.seed,
        "mirroring": bench.request.mirroring,
        "cases": dict(bench.contents),
    }
    if condition.severity and bench.slice_axes:
        made["slice_axes"] = dict(bench.slice_axes)
    file = folder / CONDITION_FILE
    before = read_json(file) if file.exists() else made
    if before != made:
        if not bench.request.overwrite:
            raise SamunetError(
                f"{folder} was made with something else ({', '.join(_differences(before, made))}). Give "
                "another folder with -o, or replace it with --overwrite."
            )
        shutil.rmtree(folder)
    if not file.exists():
        write_json(file, made)
    return (folder / SUMMARY_FILE).exists()


def _differences(before: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """What of a condition is not as it was, in words; cases of the same names by their files."""
    words = [key for key, value in made.items() if before.get(key) != value]
    then, now = before.get("cases"), made["cases"]
    if "cases" in words and then is not None and sorted(then) == sorted(now):
        told = "not written down then"
        if isinstance(then, dict):
            changed = sorted(name for name in now if then[name] != now[name])
            told = listed(changed)
        words[words.index("cases")] = f"files of the cases: {told}"
    return words


def _predict_and_score(bench: _Bench, predictor: Predictor, condition: Condition, folder: Path) -> None:
    options = FileOptions(skip_existing=True, change=partial(_changed, condition, bench.colours))
    outcome = predictor.predict_files(bench.cases, folder, options)
    if outcome.failed:
        raise SamunetError(outcome.text())
    pairs = {}
    for case in bench.cases:
        assert case.label is not None
        pairs[case.name] = (case.label, folder / f"{case.name}{bench.ending}")
    evaluation = evaluate_cases(pairs, bench.labels, origins=bench.origins, workers=bench.request.workers)
    evaluation.save(folder / SUMMARY_FILE)


def _changed(
    condition: Condition, colours: tuple[int, ...], case: str, image: np.ndarray, geometry: Geometry
) -> np.ndarray:
    return shifted(image, geometry.spacing_mm, case, condition, colours)


def _read(bench: _Bench, condition: Condition, folder: Path) -> Outcome:
    """Scores of a finished condition."""
    summary = read_summary(folder / SUMMARY_FILE, bench.labels)
    evaluation = Evaluation(bench.labels, summary.tolerance_mm, summary.entries)
    cases, names = [summary.cases[case.name] for case in bench.cases], bench.labels.foreground
    return Outcome(
        condition=condition,
        foreground_mean=evaluation.foreground_mean,
        dice=score_array(cases, names, "Dice"),
        present=score_array(cases, names, "n_ref") > 0,
        missed=evaluation.missed,
    )
