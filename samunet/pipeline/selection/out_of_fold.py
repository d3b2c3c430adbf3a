"""The out-of-fold predictions of all trained models of a dataset, checked so that they can be compared.

A model that lacks something is left out and named with the command that mends it; one that the user named is
refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.data.splits import SCHEMES, Split, read_splits
from samunet.errors import SamunetError, unknown_name
from samunet.evaluation.scores import ReferenceContent, Scores
from samunet.listing import fold_words, listed
from samunet.networks.sam.variants import get_variant
from samunet.pipeline.known_patients import known_patients
from samunet.pipeline.run_commands import TrainedAs
from samunet.pipeline.selection.model_folder import ModelFolder, look_at
from samunet.pipeline.selection.record import Kind, Member, file_digest
from samunet.pipeline.selection.references import mark_outdated
from samunet.pipeline.selection.trained_models import trained_models
from samunet.planning.methods import ALIASES
from samunet.trainers.identity import RunRecord
from samunet.workspace import DEFAULT_PLANS, SUMMARY_FILE, Workspace

logger = logging.getLogger(__name__)

UNETS = ("2d_unet", "3d_unet")


@dataclass(frozen=True, kw_only=True)
class ModelsWanted:
    """Which models are compared.

    Attributes:
        dataset: full name.
        configurations: names (`2d_cnn`, `2d_cnn__TAG`); empty takes every complete one.
        splits: scheme of the split that they share.
        folds: empty takes all of the split.
    """

    dataset: str
    configurations: tuple[str, ...] = ()
    plans: str = DEFAULT_PLANS
    splits: str = "kfold"
    folds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """A model, or an ensemble of models, with each case as predicted by a fold that has not seen it.

    Attributes:
        predictions: case -> segmentation file.
        scores: case -> class -> metric -> value.
        references: case -> what it was scored against.
        sources: file below results/DATASET -> SHA-256.
    """

    name: str
    kind: Kind
    members: tuple[Member, ...]
    predictions: dict[str, Path]
    scores: dict[str, dict[str, Scores]]
    references: dict[str, ReferenceContent]
    sources: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """All that is compared.

    Attributes:
        cases: out-of-fold cases by name, the same for all models.
        fold_of_case: the fold that held it out.
        folds: that they come from.
        folders: model name -> where it lies.
        left_out: in words, models that are not complete.
    """

    raw: RawDataset
    models: tuple[OutOfFold, ...]
    cases: tuple[str, ...]
    fold_of_case: dict[str, int]
    folds: tuple[int, ...]
    folders: dict[str, ModelFolder]
    tolerance_mm: float
    left_out: tuple[str, ...]

    def reference(self, case: str) -> Path:
        """Label file of a case."""
        label = self.raw.case(case).label
        assert label is not None
        return label


def collect(workspace: Workspace, wanted: ModelsWanted) -> Collected:
    """Find the models of a dataset and read the scores of their out-of-fold cases.

    Raises:
        SamunetError: no raw data, split or model; a model that was named is not complete (all faults are
            listed); or no model is.
    """
    raw = RawDataset.load(workspace.raw_folder(wanted.dataset))
    splits = _splits(workspace, wanted, raw)
    models = [look_at(workspace, raw, trained, splits) for trained in _trainings(workspace, wanted)]
    models = mark_outdated(raw, models)
    left_out = tuple(model.told() for model in models if model.faults)
    models = [model for model in models if not model.faults]
    if left_out and (wanted.configurations or not models):
        hint = "Or compare on the folds that are there with -f, or leave models out with -c."
        raise SamunetError("\n".join(["These models cannot be compared yet:", *left_out, hint]))
    tolerances = {fold.summary.tolerance_mm for model in models for fold in model.folds.values()}
    if len(tolerances) > 1:
        told = ", ".join(f"{tolerance:g}" for tolerance in sorted(tolerances))
        raise SamunetError(
            f"The models were scored with different tolerances of the surface Dice ({told} mm). Validate "
            "them again with samunet_train ... --val."
        )
    _mention_leaks(raw, splits)
    fold_of_case = {name: fold for fold, split in splits.items() for name in split.val}
    return Collected(
        raw=raw,
        models=tuple(_out_of_fold(workspace, raw, model, splits) for model in models),
        cases=tuple(sorted(fold_of_case)),
        fold_of_case=fold_of_case,
        folds=tuple(splits),
        folders={model.trained.name: model for model in models},
        tolerance_mm=tolerances.pop(),
        left_out=left_out,
    )


def _splits(workspace: Workspace, wanted: ModelsWanted, raw: RawDataset) -> dict[int, Split]:
    """Fold -> its split, only the folds that were asked for."""
    if wanted.splits.partition(":")[0] not in SCHEMES:
        raise unknown_name("split scheme", wanted.splits, SCHEMES)
    file = workspace.splits_file(wanted.dataset, wanted.splits)
    if not file.is_file():
        command = _first_fold(wanted, "auto")
        raise SamunetError(
            f"There is no split {file}. Training makes it ({command}); another one is named with --splits."
        )
    splits = dict(enumerate(read_splits(file)))
    absent = sorted(set(wanted.folds) - set(splits))
    if absent or not splits:
        raise SamunetError(f"{file} has no {fold_words(absent or [0])}; it has {len(splits)} folds.")
    chosen = {fold: split for fold, split in splits.items() if fold in (wanted.folds or splits)}
    names = [name for split in chosen.values() for name in split.val]
    if len(set(names)) < len(names):
        raise SamunetError(
            f"{file} holds out cases in several folds, so a case has several predictions. Compare on a split "
            "that holds out each case once (kfold, group_kfold, patient_kfold, leave_one_group_out), or on "
            "one fold of this one with -f."
        )
    foreign = sorted(set(names) - set(raw.case_names))
    if foreign:
        raise SamunetError(f"{file} names cases that {raw.folder} does not have: {listed(foreign)}.")
    return chosen


def _first_fold(wanted: ModelsWanted, configuration: str) -> str:
    """The command that trains the first fold of a model that could be compared."""
    trained = TrainedAs(
        dataset=wanted.dataset, configuration=configuration, plans=wanted.plans, splits=wanted.splits
    )
    return trained.command([0])


def _trainings(workspace: Workspace, wanted: ModelsWanted) -> list[TrainedAs]:
    """The models to look at."""
    found = {}
    for name in trained_models(workspace.results / wanted.dataset, wanted.plans):
        configuration, _, tag = name.partition("__")
        found[name] = TrainedAs(
            dataset=wanted.dataset,
            configuration=configuration,
            plans=wanted.plans,
            tag=tag or None,
            splits=wanted.splits,
        )
    if not found:
        command = _first_fold(wanted, "2d_unet")
        raise SamunetError(
            f"No fold of {wanted.dataset} is trained with the plan {wanted.plans}. Train some first: "
            f"{command}, and so on for folds and methods."
        )
    if not wanted.configurations:
        return list(found.values())
    chosen = []
    for name in dict.fromkeys(wanted.configurations):
        configuration, _, tag = name.partition("__")
        full = ALIASES.get(configuration, configuration) + (f"__{tag}" if tag else "")
        if full not in found:
            raise unknown_name(f"trained model of {wanted.dataset}", full, found)
        chosen.append(found[full])
    return chosen


def _out_of_fold(
    workspace: Workspace, raw: RawDataset, model: ModelFolder, splits: dict[int, Split]
) -> OutOfFold:
    first = next(iter(model.folds.values()))
    member = Member(
        configuration=model.trained.configuration,
        plans=model.trained.plans,
        tag=model.trained.tag,
        folds=tuple(splits),
        checkpoint=first.predicted.checkpoint,
        settings=first.predicted.settings,
    )
    predictions, scores, references, sources = {}, {}, {}, {}
    for fold, split in splits.items():
        validation, summary = model.validation(fold), model.folds[fold].summary
        found, content = summary.cases, summary.references
        for case in split.val:
            predictions[case] = validation / f"{case}{raw.label_ending}"
            scores[case], references[case] = found[case], content[case]
        digest = file_digest(validation / SUMMARY_FILE)
        assert digest is not None
        name = (validation / SUMMARY_FILE).relative_to(workspace.results / model.trained.dataset)
        sources[name.as_posix()] = digest
    return OutOfFold(
        name=member.name,
        kind=_kind(first.run),
        members=(member,),
        predictions=predictions,
        scores=scores,
        references=references,
        sources=sources,
    )


def _kind(run: RunRecord) -> Kind:
    """A distilled network is neither a baseline nor a method on SAM's encoder, whatever its shape."""
    if run.distillation is not None:
        return "other"
    if run.configuration.get("encoder"):
        weights = run.configuration.get("encoder_weights", "none")
        return get_variant(run.configuration["encoder"]).prior(weights)
    return "unet" if run.configuration.get("method") in UNETS else "other"


def _mention_leaks(raw: RawDataset, splits: dict[int, Split]) -> None:
    """Say it where a patient, or a group that may be one, is on both sides of a fold: scores are too good."""
    known = known_patients(raw.origins, [(split.train, split.val) for split in splits.values()])
    if known.cases:
        logger.warning("%s", known.text())
