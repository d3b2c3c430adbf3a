"""What keeps a model out of the comparison is said in one message, with the command that mends it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from out_of_fold_runs import (
    DATASET,
    GEOMETRY,
    MadeUp,
    as_earlier_versions,
    missing,
    no_lesion,
    turned,
    write_predicted,
)
from shared_models import make_fingerprint
from tiny_runs import REGIONS

from samunet.data.readers import write_segmentation
from samunet.data.splits import Split, write_splits
from samunet.errors import SamunetError
from samunet.pipeline.selection.out_of_fold import Collected, ModelsWanted, collect
from samunet.planning.plan import Plan
from samunet.records import content_hash, read_json, write_json


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.2))
    return made


def gather(made: MadeUp, *names: str, **wanted: Any) -> Collected:
    return collect(made.workspace, ModelsWanted(dataset=DATASET, configurations=names, **wanted))


def test_all_cases_of_all_folds(made: MadeUp) -> None:
    made.add("2d_cnn__wide", missing(0.2))
    found = gather(made)
    assert [model.name for model in found.models] == ["2d_cnn__wide", "2d_unet"]
    assert found.cases == tuple(made.names)
    assert found.folds == (0, 1, 2, 3, 4)
    member = found.models[0].members[0]
    assert (member.configuration, member.tag, member.checkpoint) == ("2d_cnn", "wide", "checkpoint_final.pth")
    assert gather(made, "2d").models[0].name == "2d_unet"  # nnU-Net's name


def test_missing_folds_name_the_trainings(made: MadeUp) -> None:
    folder = made.add("2d_cnn__wide", missing(0.2))
    shutil.rmtree(folder / "fold_1")
    shutil.rmtree(folder / "fold_4")
    shutil.rmtree(folder / "fold_2" / "validation")
    shutil.rmtree(folder / "fold_3" / "validation")
    (folder / "fold_3" / "checkpoint_final.pth").rename(folder / "fold_3" / "checkpoint_latest.pth")
    found = gather(made)
    assert [model.name for model in found.models] == ["2d_unet"]
    (told,) = found.left_out
    assert "folds 1 4 not trained: samunet_train 950 2d_cnn 1 4 --tag wide" in told
    assert "fold 2 trained, but without scores" in told
    assert "samunet_train 950 2d_cnn 2 --tag wide --val" in told
    assert "fold 3 not trained to the end: samunet_train 950 2d_cnn 3 --tag wide --c" in told
    with pytest.raises(SamunetError, match="cannot be compared yet"):
        gather(made, "2d_cnn__wide", "2d_unet")
    assert len(gather(made, folds=(0,)).models) == 2
    assert gather(made, folds=(0,)).cases == made.splits[0].val


def test_predictions_that_are_gone(made: MadeUp) -> None:
    validation = made.workspace.model_folder(DATASET, "2d_unet") / "fold_0" / "validation"
    next(validation.glob("*.nii.gz")).unlink()
    with pytest.raises(SamunetError, match="fold 0 trained, but without scores and predictions of all"):
        gather(made)


def test_another_split(made: MadeUp) -> None:
    swapped = [Split(split.train, split.val) for split in (*made.splits[1:], made.splits[0])]
    write_splits(made.workspace.splits_file(DATASET), swapped)
    with pytest.raises(SamunetError) as error:
        gather(made)
    assert "folds 0 1 2 3 4 trained on another split; name its scheme with --splits" in str(error.value)
    assert "samunet_train 950 2d_unet 0 1 2 3 4 --overwrite" in str(error.value)


def test_a_fold_of_another_plan(made: MadeUp) -> None:
    folder = made.workspace.model_folder(DATASET, "2d_unet")
    run = read_json(folder / "fold_3" / "run.json")
    write_json(folder / "fold_3" / "run.json", {**run, "configuration_hash": "1234"})
    with pytest.raises(SamunetError) as error:
        gather(made)
    assert "folds 0 1 2 4 and fold 3 were trained on different plans or with different" in str(error.value)
    assert "all like folds 0 1 2 4: samunet_train 950 2d_unet 3 --overwrite" in str(error.value)
    assert "all like fold 3: samunet_train 950 2d_unet 0 1 2 4 --overwrite" in str(error.value)


def test_commands_repeat_the_settings_and_the_teacher_of_the_folds_that_are_there(made: MadeUp) -> None:
    folder = made.add("3d_student__small", missing(0.2))
    told = {"overrides": {"settings": {"epochs": 3, "base_width": 8}}, "seed": 5}
    taught = {
        **{"teacher": "3d_adapter__samunetPlans__big", "weight": 0.25, "target": "logits", "mirroring": True},
        **{"checkpoint": "checkpoint_final.pth", "step_size": 0.5, "unlabelled_folder": None},
    }
    for fold in range(5):
        file = folder / f"fold_{fold}" / "run.json"
        write_json(file, {**read_json(file), **told, "distillation": {**taught, "folds": [fold]}})
    shutil.rmtree(folder / "fold_1")
    (folder / "fold_3" / "checkpoint_final.pth").rename(folder / "fold_3" / "checkpoint_latest.pth")
    shutil.rmtree(folder / "fold_3" / "validation")
    shutil.rmtree(folder / "fold_4" / "validation")
    (left,) = gather(made).left_out
    distill = "samunet_distill 950 3d_adapter 3d_student"
    settings = "--epochs 3 --set base_width=8 --seed 5 --teacher_tag big --lambda 0.25 --target logits"
    assert f"fold 1 not trained: {distill} 1 --tag small {settings};" in left
    assert f"to the end: {distill} 3 --tag small --teacher_tag big --c;" in left
    assert "of all its cases: samunet_train 950 3d_student 4 --tag small --val." in left


def test_a_model_of_other_data_or_labels(made: MadeUp) -> None:
    folder = made.workspace.model_folder(DATASET, "2d_unet")
    plan = Plan.load(folder / "plan.json")
    file = made.workspace.plan_file(DATASET)
    current = replace(plan, name=file.stem)
    replace(current, fingerprint_hash="f" * 16).save(file)
    with pytest.raises(SamunetError, match="trained on another plan, made from other data than"):
        gather(made)
    current.save(file)
    assert gather(made)
    replace(plan, labels=REGIONS).save(folder / "plan.json")
    with pytest.raises(SamunetError, match="trained with other labels than"):
        gather(made)
    (folder / "plan.json").unlink()
    with pytest.raises(SamunetError, match="There is no plan"):
        gather(made)


def test_groups_declared_later_do_not_make_a_model_one_of_other_data(made: MadeUp) -> None:
    """A plan of an earlier version keeps a hash with groups; that of the model is without any."""
    folder = made.workspace.model_folder(DATASET, "2d_unet")
    plan = replace(Plan.load(folder / "plan.json"), dataset=DATASET)
    without = replace(make_fingerprint(plan), groups={})
    told = [without.dataset, without.channel_names, without.labels, without.file_ending, {}]
    earlier = content_hash([told, [[case.name, case.content] for case in without.cases]])
    replace(plan, fingerprint_hash=earlier).save(folder / "plan.json")
    file = made.workspace.plan_file(DATASET)
    replace(plan, name=file.stem).save(file)
    with pytest.raises(SamunetError, match="made from other data than"):
        gather(made)
    now = replace(make_fingerprint(plan), data_hash=plan.fingerprint_hash)
    assert now.groups
    write_json(made.workspace.fingerprint_file(DATASET), now)
    assert gather(made)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "checkpoint_best.pth"}, "checkpoint_best.pth, step 0.5, mirroring"),
        ({"settings": {"min_iou": 0.7}}, "checkpoint_final.pth, step 0.5, mirroring, min_iou=0.7"),
        ({"step_size": 0.25}, "checkpoint_final.pth, step 0.25, mirroring"),
        ({"mirroring": False}, "checkpoint_final.pth, step 0.5, no mirroring"),
    ],
)
def test_one_fold_that_was_predicted_otherwise(made: MadeUp, changes: dict[str, Any], words: str) -> None:
    write_predicted(made.workspace.model_folder(DATASET, "2d_unet") / "fold_2" / "validation", **changes)
    with pytest.raises(SamunetError) as fault:
        gather(made)
    assert "were predicted in different ways" in str(fault.value)
    assert f"fold 2: {words}" in str(fault.value)
    assert "samunet_train 950 2d_unet 2 --val" in str(fault.value)


def test_predictions_of_other_folds_are_no_out_of_fold_ones(made: MadeUp) -> None:
    """As after `samunet_predict -o .../fold_2/validation`, which all folds predict."""
    validation = made.workspace.model_folder(DATASET, "2d_unet") / "fold_2" / "validation"
    write_predicted(validation, folds=[2])
    gather(made)
    write_predicted(validation, folds=[0, 1, 2, 3, 4])
    with pytest.raises(SamunetError, match=r"by other folds, 0, 1, 2, 3, 4, which .* 2d_unet 2 --val"):
        gather(made)


def test_folds_that_were_predicted_otherwise_alike(made: MadeUp) -> None:
    folder = made.workspace.model_folder(DATASET, "2d_unet")
    for validation in folder.glob("fold_*/validation"):
        write_predicted(validation, checkpoint="checkpoint_best.pth")
    assert gather(made).models[0].members[0].checkpoint == "checkpoint_best.pth"
    for validation in folder.glob("fold_*/validation"):
        write_predicted(validation, settings={"min_iou": 0.7})
    (member,) = gather(made).models[0].members
    assert (member.checkpoint, member.settings) == ("checkpoint_final.pth", {"min_iou": 0.7})
    (folder / "fold_2" / "validation" / "predict_args.json").unlink()
    with pytest.raises(SamunetError, match=r"not known how its cases .*: samunet_train 950 2d_unet 2 --val"):
        gather(made)


def test_other_tolerances(made: MadeUp) -> None:
    file = made.workspace.model_folder(DATASET, "2d_unet") / "fold_2" / "validation" / "summary.json"
    write_json(file, {**read_json(file), "tolerance_mm": 1.0})
    with pytest.raises(SamunetError, match=r"different tolerances of the surface Dice \(1, 2 mm\)"):
        gather(made)


@pytest.mark.parametrize("change", [no_lesion, turned])
@pytest.mark.parametrize("names", [("2d_cnn__wide", "2d_unet"), ("2d_unet", "3d_unet")])
def test_scores_of_other_labels(
    made: MadeUp, names: tuple[str, str], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Whichever model stands first, the one that was scored before the label was corrected is left out."""
    label = made.correct(made.splits[1].val[0], change)
    (newer,) = {*names} - {"2d_unet"}
    made.add(newer, missing(0.2))
    found = gather(made)
    assert [model.name for model in found.models] == [newer]
    (told,) = found.left_out
    assert told == (
        "2d_unet: fold 1 scored on other labels; validate again: samunet_train 950 2d_unet 1 --val."
    )
    with pytest.raises(SamunetError, match="fold 1 scored on other labels; validate again: samunet_train"):
        gather(made, *names)

    write_segmentation(np.ones(GEOMETRY.shape, np.uint8), GEOMETRY, label)  # corrected once more
    with pytest.raises(SamunetError) as fault:
        gather(made)
    assert all(f"{name}: fold 1 scored on other labels" in str(fault.value) for name in names)
    for validation in made.workspace.results.glob("*/*/fold_1/validation"):
        made.score(validation)
    assert len(gather(made).models) == 2


def test_scores_of_earlier_versions(made: MadeUp) -> None:
    """Their summaries hold no digest of the references, so that voxels are all there is to tell by."""
    for summary in made.workspace.results.glob("*/*/fold_*/validation/summary.json"):
        as_earlier_versions(summary)
    made.correct(made.splits[1].val[0], turned)
    made.add("3d_unet", missing(0.2))
    assert len(gather(made).models) == 2
    made.correct(made.splits[2].val[0], no_lesion)
    made.add("3d_unet", missing(0.2))
    (told,) = gather(made).left_out
    assert told.startswith("2d_unet: fold 2 scored on other labels")


def test_a_model_is_validated_again_as_it_was(made: MadeUp) -> None:
    """Labels were corrected since; its other folds stay, and only those predicted alike are pooled."""
    for validation in made.workspace.results.glob("*/2d_unet__*/fold_*/validation"):
        write_predicted(validation, checkpoint="checkpoint_best.pth", settings={"grid_side": 1})
    made.correct(made.splits[1].val[0], no_lesion)
    made.add("3d_unet", missing(0.2))
    (told,) = gather(made).left_out
    assert told.endswith("samunet_train 950 2d_unet 1 --val -chk checkpoint_best.pth --set grid_side=1.")


def test_what_cannot_be_asked(made: MadeUp) -> None:
    with pytest.raises(SamunetError, match=r"Unknown trained model .* '2d_linear'"):
        gather(made, "2d_linear")
    with pytest.raises(SamunetError, match="No fold of Dataset950_Made is trained with the plan others"):
        gather(made, plans="others")
    with pytest.raises(SamunetError, match="has no fold 7; it has 5 folds"):
        gather(made, folds=(7,))
    with pytest.raises(SamunetError, match="There is no split"):
        gather(made, splits="group_kfold")
    with pytest.raises(SamunetError, match="Unknown split scheme"):
        gather(made, splits="halves")


def test_cases_held_out_twice(made: MadeUp) -> None:
    twice = [*made.splits[:4], Split(made.splits[0].train, made.splits[0].val)]
    write_splits(made.workspace.splits_file(DATASET), twice)
    with pytest.raises(SamunetError, match="holds out cases in several folds"):
        gather(made)


def test_patients_on_both_sides_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = MadeUp(root=tmp_path, num_cases=6, groups={f"case_{i:02d}": f"p{i // 2}" for i in range(6)})
    made.add("2d_unet", missing(0.2))
    with caplog.at_level(logging.WARNING):
        gather(made)
    assert "of groups with other cases in the training of the fold: where groups are patients" in caplog.text
    assert "--splits group_kfold" in caplog.text


def test_sites_on_both_sides_are_no_matter_where_patients_are_declared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = {f"case_{i:02d}": "north" for i in range(6)}
    made = MadeUp(root=tmp_path / "apart", num_cases=6, groups=sites, patients={name: name for name in sites})
    made.add("2d_unet", missing(0.2))
    with caplog.at_level(logging.WARNING):
        gather(made)
    assert "same fold" not in caplog.text
    torn = {f"case_{i:02d}": f"p{i // 2}" for i in range(6)}
    made = MadeUp(root=tmp_path / "torn", num_cases=6, groups=sites, patients=torn)
    made.add("2d_unet", missing(0.2))
    with caplog.at_level(logging.WARNING):
        gather(made)
    assert "of patients with other cases in the training of the fold: such scores are too good" in caplog.text
    assert "--splits patient_kfold" in caplog.text
