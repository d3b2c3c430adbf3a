from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from out_of_fold_runs import DATASET, GEOMETRY, SHAPE, MadeUp, missing, reference, write_predicted
from tiny_quality import PASSES, facts
from tiny_runs import REGIONS, abandoned

from samunet.data.readers import read_label, write_segmentation
from samunet.errors import SamunetError
from samunet.inference.case_features import CaseFeatures, class_features
from samunet.inference.files import single_model_arguments
from samunet.inference.finished import arguments_hash, features_file
from samunet.pipeline.qc.model import QCModel, calibrate
from samunet.pipeline.report.verdict import verdict_content
from samunet.pipeline.selection import Selection, load_selection
from samunet.pipeline.selection.find import SelectionOptions, find_best
from samunet.pipeline.selection.out_of_fold import ModelsWanted
from samunet.pipeline.selection.text import describe
from samunet.planning.plan import Plan
from samunet.records import read_json, read_record, to_data, write_json
from samunet.workspace import DEFAULT_PLANS as PLANS

PRETRAINED = {"encoder": "vit_b", "encoder_weights": "file"}
OWN_WEIGHTS = {"encoder": "vit_tiny", "encoder_weights": "shipped"}


def find(made: MadeUp, **options: Any) -> Selection:
    wanted = {
        key: options.pop(key) for key in ("configurations", "folds", "splits", "plans") if key in options
    }
    chosen = {"ensembles": False, "postprocessing": False, **options}
    return find_best(
        made.workspace, SelectionOptions(wanted=ModelsWanted(dataset=DATASET, **wanted), **chosen)
    )


def words(selection: Selection) -> dict[tuple[str, str], str]:
    return {(c.first, c.second): c.word for c in selection.comparisons}


def test_an_ending_of_more_parts(tmp_path: Path) -> None:
    """Cases are called alike by folds, scores, ensembles and postprocessing."""
    made = MadeUp(root=tmp_path, ending=".img.nii.gz")
    made.add("3d_unet", missing(0.1), seed=1, probabilities=True)
    made.add("2d_unet", missing(0.3), seed=2, probabilities=True)
    found = find(made, ensembles=True, postprocessing=True)
    assert len(found.candidates) == 3
    assert words(found)["3d_unet", "2d_unet"] == "beats"


def test_one_beats_the_other_and_sam_does_not_help(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("3d_unet", missing(0.1), seed=1)
    made.add("2d_unet", missing(0.3), seed=2)
    made.add("2d_cnn", missing(0.3), seed=3, **PRETRAINED)
    made.add("2d_linear", missing(0.5), seed=4, **PRETRAINED)
    found = find(made)
    assert words(found)["3d_unet", "2d_cnn"] == "beats"
    assert words(found)["2d_cnn", "2d_linear"] == "beats"
    (between,) = {("2d_cnn", "2d_unet"), ("2d_unet", "2d_cnn")} & set(words(found))
    assert words(found)[between] == "undecided"
    assert found.prior.word == "does not help"
    assert found.prior.text == "SAM does not help here: use 3d_unet."
    assert (found.prior.sam, found.prior.unet) == ("2d_cnn", "3d_unet")
    assert found.prior.difference is not None
    assert found.prior.difference.high is not None
    assert found.prior.difference.high < 0
    assert [member.name for member in found.recommended] == ["3d_unet"]
    assert found.commands[0] == "samunet_predict -i INPUT -o OUTPUT -d 950 -c best"
    assert found.commands[1] == "samunet_predict -i INPUT -o OUTPUT -d 950 -c 3d_unet -f 0 1 2 3 4"
    text = describe(found)
    assert "3d_unet beats 2d_cnn: +0." in text
    assert "SAM does not help here: use 3d_unet." in text
    assert "  best SAM model - best U-Net, whichever these are: -0." in text
    shown = verdict_content(made.workspace, DATASET, PLANS, scored=True).comparisons
    assert shown is not None
    assert {row[0]: row[2] for row in shown.rows}["best SAM model - best U-Net"] == "does not help"
    assert load_selection(made.workspace, DATASET) == found


def test_sam_helps(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.4), seed=1)
    made.add("2d_cnn", missing(0.1), seed=2, **PRETRAINED)
    found = find(made)
    assert found.prior.word == "helps"
    assert found.prior.text == "SAM helps here: 2d_cnn beats every U-Net."
    assert found.recommended[0].name == "2d_cnn"


def test_a_checkpoint_that_was_chosen_on_the_cases_is_remarked(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.2), seed=1)
    folder = made.add("2d_cnn", missing(0.2), seed=2, **PRETRAINED)
    for validation in folder.glob("fold_*/validation"):
        write_predicted(validation, checkpoint="checkpoint_best.pth")
    found = find(made)
    remark = "the epoch was chosen on these cases, so the scores are optimistic"
    assert {c.name: c.remark for c in found.candidates} == {"2d_cnn": remark, "2d_unet": ""}
    assert describe(found).count(f"2d_cnn: {remark}.") == 1
    assert f"2d_cnn: {remark}." in verdict_content(made.workspace, DATASET, PLANS, scored=True).sentences


def test_undecided(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.2), seed=1)
    made.add("2d_cnn", missing(0.2), seed=2, **PRETRAINED)
    found = find(made)
    assert list(words(found).values()) == ["undecided"]
    assert found.prior.word == "undecided"
    other = found.comparisons[0].second
    assert f"Use {found.recommended[0].name} (the highest mean; undecided against {other}):" in describe(
        found
    )


def test_an_encoder_from_scratch_says_nothing_of_the_prior(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.1), seed=1)
    made.add("2d_cnn", missing(0.4), seed=2)
    found = find(made)
    assert found.prior.word == "does not help"
    assert found.prior.encoder == "encoder without prior"
    assert "says nothing of SAM's prior" in found.prior.text
    made.add("2d_linear", missing(0.4), seed=2, **PRETRAINED)
    again = find(made)
    assert (again.prior.sam, again.prior.encoder) == ("2d_linear", "sam")  # only this one has the prior


def test_weights_of_a_small_encoder_are_not_called_sam(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.4), seed=1)
    made.add("2d_cnn", missing(0.1), seed=2, **OWN_WEIGHTS)
    found = find(made)
    assert found.prior.word == "helps"
    assert found.prior.text.startswith(
        "An encoder with weights of its own helps here: 2d_cnn beats every U-Net."
    )
    assert "It says nothing of SAM's prior" in found.prior.text
    assert "SAM helps" not in describe(found)
    made.add("2d_linear", missing(0.2), seed=3, **PRETRAINED)
    again = find(made)
    assert (again.prior.sam, again.prior.encoder) == ("2d_linear", "sam")  # the one with SAM's weights


def test_without_a_baseline_the_prior_is_not_judged(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_cnn", missing(0.1), **PRETRAINED)
    found = find(made)
    assert found.prior.word == "not compared"
    assert "no U-Net is among the models compared" in found.prior.text
    assert "nothing to compare it with" in describe(found)


def test_means_are_those_of_the_summaries(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=12)
    folder = made.add("2d_unet", missing(0.3, 0.3))
    dices: dict[str, list[float]] = {"organ": [], "lesion": []}
    for fold in range(5):
        summary = read_json(folder / f"fold_{fold}" / "validation" / "summary.json")
        for case in summary["metric_per_case"]:
            for key, name in summary["classes"].items():
                dices[name].append(case["metrics"][key]["Dice"])
    score = find(made).candidates[0]
    assert score.classes == pytest.approx({name: np.mean(values) for name, values in dices.items()})
    assert score.mean.value == pytest.approx(np.mean([np.mean(v) for v in dices.values()]))
    other = find(made, metric="SurfaceDice")
    assert other.metric == "SurfaceDice"
    assert other.candidates[0].mean.value != pytest.approx(score.mean.value)


def test_few_patients_decide_nothing(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=5)
    made.add("2d_unet", missing(0.1), seed=1)
    made.add("2d_cnn", missing(0.6), seed=2, **PRETRAINED)
    found = find(made, postprocessing=True)
    assert not found.is_decidable
    assert set(words(found).values()) == {"undecided"}
    assert found.prior.word == "undecided"
    assert found.postprocessing_steps == ()
    assert "Below 6 cases" in describe(found)


def test_few_cases_that_hold_a_class_decide_nothing_and_that_is_said(tmp_path: Path) -> None:
    """Cases without any class add nothing to a comparison, however many they are."""
    numbers = itertools.count()

    def truth(rng: np.random.Generator) -> np.ndarray:
        made = reference(rng)
        return made if next(numbers) < 5 else np.zeros_like(made)

    made = MadeUp(root=tmp_path, num_cases=10, truth=truth)
    made.add("2d_unet", missing(0.6), seed=1)
    made.add("2d_cnn", missing(0.1), seed=2, **PRETRAINED)
    found = find(made)
    assert (found.num_units, found.num_counted, found.is_decidable) == (10, 5, False)
    assert set(words(found).values()) == {"undecided"}
    assert "too few cases tell 2d_cnn and 2d_unet apart" in found.prior.text
    assert "The references of 5 cases hold any class." in describe(found)


def test_cases_of_a_patient_are_no_independent_cases(tmp_path: Path) -> None:
    """A difference that one patient with many cases makes is decided by cases, and not by patients."""
    groups = {f"case_{i:02d}": "big" if i < 13 else f"patient_{i}" for i in range(20)}
    made = MadeUp(root=tmp_path, groups=groups)
    made.add("2d_unet", missing(0.2, 0.0), seed=1)

    def better_on_one(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        case = int(rng.bit_generator.seed_seq.entropy[1])  # type: ignore[attr-defined]
        return missing(0.1 if case < 13 else 0.2, 0.0)(truth, rng)

    made.add("2d_cnn", better_on_one, seed=2, **PRETRAINED)
    together, apart = find(made), find(made, ignore_groups=True)
    assert (together.unit, together.num_units, apart.unit, apart.num_units) == ("group", 8, "case", 20)
    assert together.prior.word == "undecided"
    assert apart.prior.word == "helps"
    assert "draws of 8 groups" in describe(together)


def test_patients_are_drawn_where_groups_are_sites(tmp_path: Path) -> None:
    """Two sites say nothing; ten patients of two cases do."""
    cases = [f"case_{i:02d}" for i in range(20)]
    groups = {case: f"site {number // 10}" for number, case in enumerate(cases)}
    patients = {case: f"p{number // 2}" for number, case in enumerate(cases)}
    made = MadeUp(root=tmp_path, groups=groups, patients=patients)
    made.add("2d_unet", missing(0.2, 0.0), seed=1)
    for ignore in (False, True):
        found = find(made, ignore_groups=ignore)
        assert (found.unit, found.num_units) == ("patient", 10)
    assert "draws of 10 patients" in describe(found)


def test_an_ensemble_whose_gain_is_shown_is_recommended(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.3), seed=1, probabilities=True)
    made.add("2d_cnn", missing(0.3), seed=2, probabilities=True, **PRETRAINED)
    found = find(made, ensembles=True)
    (gain,) = found.ensembles
    assert gain.name == "2d_cnn+2d_unet"
    assert gain.is_shown
    assert [member.name for member in found.recommended] == ["2d_cnn", "2d_unet"]
    assert found.commands[1].endswith("-d 950 -c 2d_cnn 2d_unet -f 0 1 2 3 4")
    assert "1 of 1 with an interval above zero" in describe(found)


def test_members_of_different_tags_are_named_by_folder(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    folders = [
        made.add(name, missing(0.3), seed=seed, probabilities=True)
        for seed, name in enumerate(("2d_unet", "2d_unet__wide"))
    ]
    found = find(made, ensembles=True)
    assert len(found.recommended) == 2
    assert found.commands[1].endswith(f"-m {folders[0]} {folders[1]} -f 0 1 2 3 4")
    alone = find(made, configurations=("2d_unet__wide",))
    assert alone.commands[1].endswith("-d 950 -c 2d_unet --tag wide -f 0 1 2 3 4")


def test_an_ensemble_without_a_gain_is_not_recommended(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=8)
    for name in ("2d_unet", "3d_unet", "2d_cnn"):
        made.add(name, missing(0.3), seed=1, probabilities=True)  # the same mistakes
    found = find(made, ensembles=True)
    assert len(found.ensembles) == 4  # three pairs and all
    assert not any(gain.is_shown for gain in found.ensembles)
    assert len(found.recommended) == 1
    assert "Ensembles are not recommended" in describe(found)


def test_ensembles_are_made_once(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.3), seed=1, probabilities=True)
    made.add("2d_cnn", missing(0.3), seed=2, probabilities=True)
    first = find(made, ensembles=True)
    folder = made.workspace.fold_ensemble_folder(DATASET, "samunetPlans", ["2d_cnn", "2d_unet"])
    file = folder / "case_00.nii.gz"
    before = file.stat().st_mtime_ns
    assert find(made, ensembles=True) == first
    assert file.stat().st_mtime_ns == before
    left = abandoned(folder)
    (folder / "summary.json").unlink()
    find(made, ensembles=True)
    assert not left.exists()
    assert file.stat().st_mtime_ns == before
    made.add("2d_cnn", missing(0.1), seed=2, probabilities=True)
    again = find(made, ensembles=True)
    assert file.stat().st_mtime_ns != before
    assert again.candidates[-1].mean.value > first.candidates[-1].mean.value


def test_labels_that_changed_since_all_models_were_scored(tmp_path: Path) -> None:
    """Ensembles are scored now: on other labels than their members, and a class may be gone."""
    made = MadeUp(root=tmp_path, num_cases=6)
    for name in ("2d_cnn__wide", "2d_unet"):
        made.add(name, missing(0.3), seed=len(name), probabilities=True)
    held = made.splits[2].val
    for case in held:
        write_segmentation(np.zeros(SHAPE, np.uint8), GEOMETRY, made.raw / "labelsTr" / f"{case}.nii.gz")
    words = "fold 2 scored on other labels; validate again: samunet_train 950"
    for _ in range(2):  # what was averaged is kept, and never taken for scored
        with pytest.raises(SamunetError) as fault:
            find(made, ensembles=True)
        assert f"2d_cnn__wide: {words} 2d_cnn 2 --tag wide --val --npz" in str(fault.value)
        assert f"2d_unet: {words} 2d_unet 2 --val --npz" in str(fault.value)
    for folder in made.workspace.results.glob("*/2d_*/fold_2/validation"):
        made.score(folder)
    found = find(made, ensembles=True)
    assert len(found.candidates) == 3


def test_an_ensemble_scored_on_other_labels_is_scored_again(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    for name in ("2d_cnn", "2d_unet"):
        made.add(name, missing(0.3), seed=len(name), probabilities=True)
    first = find(made, ensembles=True)
    folder = made.workspace.fold_ensemble_folder(DATASET, "samunetPlans", ["2d_cnn", "2d_unet"])
    content = read_json(folder / "summary.json")
    content["metric_per_case"][0]["metrics"]["2"] |= {"n_ref": 0, "Dice": math.nan}
    content["metric_per_case"][0]["reference_digest"] = "of another label"
    write_json(folder / "summary.json", content)
    assert find(made, ensembles=True) == first


def test_missing_probabilities_name_the_command(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.3), seed=1, probabilities=True)
    made.add("2d_cnn__wide", missing(0.3), seed=2)
    found = find(made, ensembles=True)
    assert found.ensembles == ()
    (told,) = found.left_out
    assert told.startswith("2d_cnn__wide takes part in no ensemble: the probabilities of 6 of 6 cases")
    assert "samunet_train 950 2d_cnn 0 1 2 3 4 --tag wide --val --npz" in told


def test_ensembles_that_were_not_asked_for_are_said_to_be_left_out(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.3), seed=1, probabilities=True)
    assert find(made, ensembles=False).left_out == ()  # there is nothing to put together
    made.add("2d_cnn", missing(0.3), seed=2, probabilities=True)
    (told,) = find(made, ensembles=False).left_out
    assert "--no_ensembles" in told


def test_regions(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, labels=REGIONS)
    made.add("2d_unet", missing(0.3), seed=1, probabilities=True)
    made.add("3d_unet", missing(0.3), seed=2, probabilities=True)
    found = find(made, ensembles=True, postprocessing=True)
    assert set(found.candidates[0].classes) == {"whole", "core"}
    assert found.ensembles[0].is_shown
    assert load_selection(made.workspace, DATASET).postprocessing.labels == REGIONS


def add_features(folder: Path) -> None:
    """What prediction leaves beside the validation cases of a 2d_unet for quality control."""
    plan = Plan.load(folder / "plan.json")
    write_json(folder / "dataset.json", {"labels": {"background": 0, "organ": 1, "lesion": 2}})
    for validation in folder.glob("fold_*/validation"):
        plan.save(validation / "plan.json")
        fold = int(validation.parent.name.removeprefix("fold_"))
        own = {"model": "anywhere", "configuration_hash": plan.configuration_hash("2d_unet"), "folds": [fold]}
        own |= {"checkpoint": "checkpoint_final.pth", "settings": {}}
        shared = {"step_size": 0.5, "mirroring": True, "postprocessing": []}
        write_json(validation / "predict_args.json", {"models": [own], **shared})
        hashed = arguments_hash(single_model_arguments(validation))
        for file in validation.glob("*.nii.gz"):
            label_map, geometry = read_label(file)
            passes = dict.fromkeys(plan.labels.foreground, PASSES)
            classes = class_features(label_map, geometry, plan.labels, passes)
            name = file.name.removesuffix(".nii.gz")
            features = CaseFeatures(case=name, arguments_hash=hashed, input=facts(), classes=classes)
            write_json(features_file(validation, name), features)


def strewn(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slice is missing, and pieces lie about where nothing is."""
    array = truth.copy()
    array[1] = 0
    array[0, 10:, int(rng.integers(0, 8)) :: 2] = 1
    return array


def test_the_rules_have_a_calibration_of_their_own(tmp_path: Path) -> None:
    """The recommended command applies the rules: its bounds are those of maps after the rules."""
    made = MadeUp(root=tmp_path)
    folder = made.add("2d_unet", strewn)
    add_features(folder)
    found = find(made, postprocessing=True)
    assert found.postprocessing.rules
    calibrated = read_record(QCModel, folder / "qc_model_postprocessed.json")
    assert calibrated.settings["postprocessing"] == to_data(found.postprocessing.rules)
    assert calibrated.is_calibrated
    assert calibrated.folds == ("0", "1", "2", "3", "4")
    plain = calibrate(folder)
    for name, quality in plain.classes.items():
        assert quality.model is not None
        after = calibrated.classes[name].model
        assert after is not None
        assert after.intercept >= quality.model.intercept  # the mean Dice: the rules helped
    assert calibrated.classes["organ"] != plain.classes["organ"]


def test_rules_without_features_leave_the_selection_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = MadeUp(root=tmp_path)
    folder = made.add("2d_unet", strewn)
    write_json(folder / "dataset.json", {"labels": {"background": 0, "organ": 1, "lesion": 2}})
    assert find(made, postprocessing=True).postprocessing.rules
    assert "after postprocessing cannot be calibrated" in caplog.text


def test_a_stale_selection_is_refused(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    with pytest.raises(SamunetError, match=r"which model is best\. Run samunet_find_best_config.* 950"):
        load_selection(made.workspace, DATASET)
    folder = made.add("2d_unet", missing(0.3))
    find(made)
    assert load_selection(made.workspace, DATASET).recommended[0].name == "2d_unet"
    made.add("2d_unet", missing(0.3), folds=[2], seed=9)
    with pytest.raises(SamunetError, match=r"1 of 5 summaries changed .*fold_2.* again"):
        load_selection(made.workspace, DATASET)
    (folder / "fold_1" / "validation" / "summary.json").unlink()
    with pytest.raises(SamunetError, match="2 of 5 summaries changed or are gone"):
        load_selection(made.workspace, DATASET)


def newer(made: MadeUp, caplog: pytest.LogCaptureFixture) -> str:
    """What is warned of when the selection is used, which the report says too."""
    caplog.clear()
    load_selection(made.workspace, DATASET)
    told = "".join(caplog.messages)
    assert (told in verdict_content(made.workspace, DATASET, PLANS, scored=True).sentences) == bool(told)
    return told


def test_models_that_the_selection_does_not_know_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.3))
    made.add("2d_cnn", missing(0.3), folds=[0, 1, 2, 4])
    find(made, splits="kfold", seed=7)
    assert newer(made, caplog) == ""  # left out, and said to be
    made.add("2d_cnn", missing(0.3), folds=[3])
    made.add("2d_linear__wide", missing(0.3))
    made.add("3d_unet", missing(0.3), folds=[0])
    told = newer(made, caplog)
    assert told.startswith(
        "Not among the models compared, though scored on the same folds: 2d_cnn, 2d_linear"
    )
    assert told.endswith(
        "Compare again: samunet_find_best_configuration 950 --no_ensembles --disable_postprocessing --seed 7"
    )
    find(made, configurations=("2d_unet", "2d_cnn"))
    assert newer(made, caplog) == ""  # others were not asked for
    made.add("3d_unet", missing(0.3))
    assert " 950 -c 2d_unet 2d_cnn 3d_unet --no_ensembles" in newer(made, caplog)


def test_the_seed_is_kept_and_repeats(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=8)
    made.add("2d_unet", missing(0.3))
    one, two, other = find(made, seed=3), find(made, seed=3), find(made, seed=4)
    assert one == two
    assert one.seed == 3
    assert one.candidates[0].mean.low != other.candidates[0].mean.low
