"""A student that learns from a trained model: which teacher may teach it, and what it is trained from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.data.cases import Case, find_cases
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.networks.sam.weight_files import file_sha256
from samunet.pipeline.models import AUTO, ModelRequest, find_model
from samunet.pipeline.soft_labels import CHECKPOINT_FLAG, Labelling, Teacher
from samunet.pipeline.train import PreparedRun, TrainOptions, TrainOutcome
from samunet.pipeline.train_folds import train_folds
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.preprocessing.soft_labels import SoftLabelIdentity, Target
from samunet.preprocessing.store import CaseStore
from samunet.trainers.batches import SoftSource
from samunet.trainers.distillation import Distillation
from samunet.trainers.identity import read_run
from samunet.trainers.portable import load_trained, shared_checkpoint
from samunet.workspace import FINAL, Fold, Workspace, split_tag

logger = logging.getLogger(__name__)

WEIGHT = 0.5
"""Lambda; about the best in AutoProSAM's ablation."""
STEP_SIZE = 0.5


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """The teacher in the user's words; None is the default, or what a run to be continued did.

    Attributes:
        configuration: method, or alias; `plans` and `tag` of its training.
        folds: whose logits are averaged; by default the student's fold.
        checkpoint: file name in each fold's folder.
        weight: lambda, share of the teacher in the loss.
        target: what the student is compared with the teacher in.
        step_size / mirroring: of the teacher's sliding window.
        unlabelled: folder of images without labels, named as in imagesTr.
        weights: folder or file of a frozen encoder that the teacher leaves out; None is the workspace's.
    """

    configuration: str
    plans: str | None = None
    tag: str | None = None
    folds: tuple[Fold, ...] | None = None
    checkpoint: str | None = None
    weight: float | None = None
    target: Target | None = None
    step_size: float | None = None
    mirroring: bool | None = None
    unlabelled: Path | None = None
    weights: Path | None = None


def distill(
    workspace: Workspace, options: TrainOptions, folds: Sequence[Fold], asked: TeacherOptions
) -> Iterator[TrainOutcome]:
    """Train folds of a student, each with its teacher, and validate them on whole cases; see `train_folds`.

    Raises:
        SamunetError: as `train_folds`; no such teacher, one that has seen a fold's validation cases or other
            preprocessed cases, or images that cannot be used.
    """

    def teaching(own: TrainOptions, prepared: PreparedRun) -> Distillation:
        return find_teacher(workspace, own, asked, prepared)

    return train_folds(workspace, options, folds, teaching)


def find_teacher(
    workspace: Workspace, options: TrainOptions, asked: TeacherOptions, prepared: PreparedRun
) -> Distillation:
    """What a prepared run is to learn from; the teacher itself is run later.

    Args:
        workspace / options / prepared: of the student's fold.
        asked: the teacher in the user's words.

    Raises:
        SamunetError: see `distill`.
    """
    asked = _settled(asked, options, prepared)
    weight = WEIGHT if asked.weight is None else asked.weight
    _check_weight(weight, asked)
    teacher = _trained_teacher(workspace, options, asked, prepared)
    images = _unlabelled_images(asked.unlabelled, prepared)
    labels = _soft_source(workspace, asked, teacher, prepared, images)
    return Distillation(
        teacher=teacher.model_folder.name,
        teacher_folder=str(teacher.model_folder),
        folds=teacher.folds,
        checkpoint=teacher.checkpoint,
        weight=weight,
        labels=labels,
        label=Labelling(
            teacher=teacher,
            labels=labels,
            plan=prepared.plan,
            data_name=prepared.plan.configuration(prepared.name).data,
            case_folder=prepared.case_folder,
            names=tuple(dict.fromkeys((*prepared.split.train, *prepared.split.val))),
            unlabelled=images,
            workers=options.workers,
        ),
        unlabelled_folder=None if asked.unlabelled is None else str(asked.unlabelled),
    )


def _trained_teacher(
    workspace: Workspace, options: TrainOptions, asked: TeacherOptions, prepared: PreparedRun
) -> Teacher:
    """The teacher, its folds and data checked."""
    model = find_model(
        workspace,
        ModelRequest(
            dataset=options.dataset,
            configuration=asked.configuration,
            plans=asked.plans or options.plans,
            tag=asked.tag or split_tag(prepared.splits),
        ),
    )
    if model.resolve() == prepared.model_folder.resolve():
        raise SamunetError(
            f"Teacher and student would both be {model}. Give the student a name of its own with --tag."
        )
    checkpoint = asked.checkpoint or FINAL
    shared_checkpoint(model, checkpoint, flag=CHECKPOINT_FLAG)
    teacher = Teacher(
        model_folder=model,
        folds=teacher_folds(asked.folds, options.fold),
        checkpoint=checkpoint,
        device=options.device,
        weights_folder=asked.weights or workspace.weights,
    )
    for file in teacher.files:
        stored = load_trained(file)
        check_same_data((stored.plan, stored.configuration), (prepared.plan, prepared.name), model.name)
    _check_unseen(teacher, prepared, options.fold)
    return teacher


def _soft_source(
    workspace: Workspace,
    asked: TeacherOptions,
    teacher: Teacher,
    prepared: PreparedRun,
    images: tuple[Case, ...],
) -> SoftSource:
    """Where the teacher's outputs go."""
    plan = prepared.plan
    data_name = plan.configuration(prepared.name).data
    identity = SoftLabelIdentity(
        checkpoints_sha256=tuple(file_sha256(file) for file in teacher.files),
        target=asked.target or "probabilities",
        regions=plan.labels.has_regions,
        outputs=plan.labels.num_outputs,
        step_size=STEP_SIZE if asked.step_size is None else asked.step_size,
        mirroring=True if asked.mirroring is None else asked.mirroring,
        data_hash=plan.data_hash(data_name),
    )
    place = (plan.dataset, plan.name, data_name)
    return SoftSource(
        folder=workspace.soft_label_folder(*place, identity.signature),
        identity=identity,
        unlabelled_folder=workspace.unlabelled_folder(*place) if images else None,
        unlabelled=tuple(image.name for image in images),
    )


def _settled(asked: TeacherOptions, options: TrainOptions, prepared: PreparedRun) -> TeacherOptions:
    """What was not given again is what the run did that is continued, or that a new one is begun like."""
    record = prepared.found if options.resume else options.like
    kept = None if record is None else record.distillation
    if record is None or kept is None:
        return asked
    folder, (plans, tag) = kept["unlabelled_folder"], _kept_place(asked.configuration, kept["teacher"])
    return replace(
        asked,
        plans=asked.plans or plans,
        tag=asked.tag or tag,
        folds=asked.folds or (tuple(kept["folds"]) if record.fold == options.fold else None),
        checkpoint=asked.checkpoint or kept["checkpoint"],
        weight=kept["weight"] if asked.weight is None else asked.weight,
        target=asked.target or kept["target"],
        step_size=asked.step_size or kept["step_size"],
        mirroring=kept["mirroring"] if asked.mirroring is None else asked.mirroring,
        unlabelled=asked.unlabelled or (None if folder is None else Path(folder)),
    )


def _kept_place(configuration: str, teacher: str) -> tuple[str | None, str | None]:
    """Plan and tag of the teacher that a run had, by the name of its model folder; none of another method."""
    name, plans, *tag = teacher.split("__")
    is_meant = configuration == AUTO or ("__" not in configuration and get_method(configuration).name == name)
    return (plans, tag[0] if tag else None) if is_meant else (None, None)


def _check_weight(weight: float, asked: TeacherOptions) -> None:
    if not 0 <= weight <= 1:
        raise SamunetError(
            f"--lambda {weight:g}: give a share from 0 (no teacher) to 1 (the teacher alone); {WEIGHT:g} is "
            "the default."
        )
    if weight == 0 and asked.unlabelled is not None:
        raise SamunetError(
            "--unlabelled with --lambda 0: images without labels teach by the teacher's outputs alone, which "
            "then count for nothing. Leave one of them out."
        )


def teacher_folds(asked: Sequence[Fold] | None, fold: Fold) -> tuple[Fold, ...]:
    """Folds of the teacher that may teach a student's fold.

    Args:
        asked: --teacher_folds; None takes the student's fold.
        fold: of the student.

    Raises:
        SamunetError: other folds for a numbered fold: they have been trained on its validation cases.
    """
    folds = (fold,) if asked is None else tuple(dict.fromkeys(asked))
    if fold != "all" and folds != (fold,):
        shown = " ".join(map(str, folds))
        raise SamunetError(
            f"--teacher_folds {shown} for fold {fold}: folds other than {fold} were trained on validation "
            f"cases of fold {fold}, whose score would then be too good. Leave --teacher_folds out (fold "
            f"{fold} learns from the teacher's fold {fold}), or train the student on fold all and score it "
            "on other cases."
        )
    return folds


def check_same_data(teacher: tuple[Plan, str], student: tuple[Plan, str], model: str) -> None:
    """See that teacher and student read the same preprocessed cases.

    Args:
        teacher: plan of the teacher's checkpoint, and name of the configuration.
        student: plan of the run, and name of the configuration.
        model: name of the teacher's model folder.

    Raises:
        SamunetError: their data configurations differ; names the keys.
    """
    theirs, ours = (plan.data_of(plan.configuration(name)) for plan, name in (teacher, student))
    if teacher[0].data_hash(theirs.name) == student[0].data_hash(ours.name):
        return
    keys = ("name", "spacing_mm", "normalization", "use_mask_for_norm")
    told = [
        f"{key} is {getattr(theirs, key)} there, {getattr(ours, key)} here"
        for key in keys
        if getattr(theirs, key) != getattr(ours, key)
    ]
    if teacher[0].labels != student[0].labels:
        told.append("the labels")
    raise SamunetError(
        f"The teacher {model} was trained on other preprocessed cases than {student[1]} reads: "
        f"{'; '.join(told) or 'the intensity statistics or the order of the axes'}. Both need the same data "
        "configuration: train the teacher with this plan, or give the teacher's plan with -p."
    )


def _check_unseen(teacher: Teacher, prepared: PreparedRun, fold: Fold) -> None:
    """No teacher of a numbered fold may have been trained on the fold's validation cases."""
    if fold == "all":
        return
    for file in teacher.files:
        record = read_run(file.parent)
        if record is None:
            logger.warning("%s has no run.json: which cases the teacher has seen is unknown.", file.parent)
            continue
        seen = sorted(set(record.train) & set(prepared.split.val))
        if seen:
            raise SamunetError(
                f"The teacher in {file.parent} was trained on {len(seen)} of the validation "
                f"cases of fold {fold} ({listed(seen)}), so the student's score on them would be too "
                "good. Train both with the same split (--splits)."
            )


def _unlabelled_images(folder: Path | None, prepared: PreparedRun) -> tuple[Case, ...]:
    """Cases of --unlabelled; none of them may be a case of the dataset."""
    if folder is None:
        return ()
    plan = prepared.plan
    images = find_cases(folder, plan.file_ending, len(plan.channel_names))
    known = {*CaseStore(prepared.case_folder).names(), *prepared.split.train, *prepared.split.val}
    both = [image.name for image in images if image.name in known]
    if both:
        raise SamunetError(
            f"--unlabelled {folder}: {len(both)} of {len(images)} images have the names of cases of the "
            f"dataset ({listed(both)}), among them perhaps validation cases. Take them out, or rename "
            "them if they are others."
        )
    return images
