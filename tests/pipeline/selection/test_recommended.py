"""`samunet_predict -c best`: the recommended members, averaged, then postprocessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_volume
from out_of_fold_runs import DATASET, MadeUp, missing
from tiny_quality import FINGERPRINT
from tiny_runs import CHANNELS, SHAPE

from samunet.cli.predict import main
from samunet.data.readers import read_label
from samunet.inference.ensemble_predictor import EnsemblePredictor
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.inference.predictor import Predictor
from samunet.pipeline.qc.predictions import assess_ensemble
from samunet.pipeline.selection import load_selection
from samunet.pipeline.selection.find import SelectionOptions, _commands, find_best
from samunet.pipeline.selection.out_of_fold import ModelsWanted
from samunet.pipeline.selection.recommended import load_recommended
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.records import read_json, write_json
from samunet.trainers import get_trainer
from samunet.trainers.checkpoint import Checkpoint, save_checkpoint

FOLDS = (0, 1)


def add_network(folder: Path, method: str, fold: int) -> None:
    """An untrained network as the checkpoint of a fold."""
    plan = Plan.load(folder / "plan.json")
    torch.manual_seed(fold)
    checkpoint = Checkpoint(
        method=method,
        trainer=get_method(method).trainer,
        configuration=method,
        plan=plan,
        fold=fold,
        epoch=1,
        network=dict(get_trainer(method).build_network(plan, plan.configuration(method)).state_dict()),
        base_weights=None,
        seed=0,
        mirror_axes=(),
        overrides={},
        training={},
    )
    save_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", checkpoint)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    """Two models whose ensemble is recommended on the folds 0 and 1, with one rule."""
    made = MadeUp(root=tmp_path_factory.mktemp("best") / "workspace", num_cases=20)
    for seed, method in enumerate(("2d_unet", "3d_unet")):
        folder = made.add(method, missing(0.3), folds=FOLDS, seed=seed, probabilities=True)
        for fold in FOLDS:
            add_network(folder, method, fold)
    wanted = ModelsWanted(dataset=DATASET, folds=FOLDS)
    selection = find_best(made.workspace, SelectionOptions(wanted=wanted, postprocessing=False))
    assert [member.name for member in selection.recommended] == ["2d_unet", "3d_unet"]
    rule = Rule(kind="largest_component", target="organ")
    rules = Postprocessing(labels=made.labels, rules=(rule,))
    write_json(made.workspace.selection_file(DATASET), replace(selection, postprocessing=rules))
    images = made.root / "images"
    for channel in range(CHANNELS):
        image = np.random.default_rng(channel).normal(0, 1, SHAPE).astype(np.float32)
        write_volume(images / f"new_{channel:04d}.nii.gz", image, (3.0, 1.0, 1.0))
    return made


def test_best_is_the_ensemble_with_its_rules(made: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-i", str(made.root / "images"), "-d", "950", "-device", "cpu", "--workspace", str(made.root)]
    assert main([*words, "-o", str(made.root / "best"), "-c", "best"]) == 0
    assert "Postprocessing: keep the largest component of organ." in capsys.readouterr().out
    assert main([*words, "-o", str(made.root / "plain"), "-c", "2d_unet", "3d_unet"]) == 0
    plain, geometry = read_label(made.root / "plain" / "new.nii.gz")
    best, _ = read_label(made.root / "best" / "new.nii.gz")
    rules = load_selection(made.workspace, DATASET).postprocessing
    assert np.array_equal(best, rules.apply(plain, geometry))
    assert not np.array_equal(best, plain)
    told = read_json(made.root / "best" / "predict_args.json")
    assert [model["folds"] for model in told["models"]] == [[0, 1], [0, 1]]
    assert told["postprocessing"][0]["kind"] == "largest_component"


def test_members_are_predicted_with_the_settings_they_were_scored_with(
    made: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `--val --set grid_side=5` in all folds; what the user sets now has the last word."""
    used: list[dict[str, object]] = []
    monkeypatch.setattr(Predictor, "load", lambda *of, **how: used.append(how) or of)
    monkeypatch.setattr("samunet.pipeline.selection.recommended.EnsemblePredictor", list)
    selection = load_selection(made.workspace, DATASET)
    first, second = selection.recommended
    scored = replace(first, settings={"grid_side": 5, "min_iou": 0.5})
    load_recommended(made.workspace, replace(selection, recommended=(scored, second)), device="cpu")
    load_recommended(made.workspace, replace(selection, recommended=(scored,)), settings={"grid_side": 1})
    assert [how["settings"] for how in used] == [
        {"grid_side": 5, "min_iou": 0.5},
        {},
        {"grid_side": 1, "min_iou": 0.5},
    ]
    assert _commands(made.workspace, DATASET, (scored,), has_rules=False)[1].endswith(
        "--set grid_side=5 --set min_iou=0.5"
    )
    assert len(_commands(made.workspace, DATASET, (scored, second), has_rules=False)) == 1


def test_an_ensemble_flags_cases_and_has_no_bounds(
    made: MadeUp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["-i", str(made.root / "images"), "-d", "950", "-device", "cpu", "--workspace", str(made.root)]
    assert main([*words, "-o", str(out), "-c", "best"]) == 0
    assert "lower bounds are made for single models" in capsys.readouterr().out
    (case,) = read_json(out / "qc.json")["cases"]
    assert case["case"] == "new"
    found = case["classes"]["organ"]
    assert (found["status"], found["lower_bound"]) == ("not calibrated", None)
    # The networks' own estimate is the mean over both models' networks; each alone has another.
    own = []
    for name in ("2d_unet", "3d_unet"):
        assert main([*words, "-o", str(tmp_path / name), "-c", name, "-f", "0", "1"]) == 0
        (alone,) = read_json(tmp_path / name / "qc.json")["cases"]
        own.append(alone["classes"]["organ"]["features"]["passes"]["soft_dice"])
    assert own[0] != own[1]
    assert found["features"]["passes"]["soft_dice"] == pytest.approx(np.mean(own), rel=1e-5)
    assert found["features"]["passes"]["intensity"] is None

    first = made.workspace.model_folder(DATASET, "2d_unet")
    cases = tuple(replace(one, channels=one.channels * CHANNELS) for one in FINGERPRINT.cases)
    write_json(first / "fingerprint.json", replace(FINGERPRINT, channel_names=("T1", "T2"), cases=cases))
    try:
        members = EnsemblePredictor.load([first], FOLDS, device="cpu").members
        report = assess_ensemble(out, members)
    finally:
        (first / "fingerprint.json").unlink()
    assert report.input_checked
    assert "spacing" in {flag.topic for flag in report.cases[0].flags}
    assert "Unlike the training cases" in report.text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-d", "950", "-c", "best", "2d_unet"], "leave out other names after -c"),
        (["-d", "950", "-c", "best", "-f", "0", "--tag", "a"], "leave out -f, --tag"),
        (["-d", "950", "-c", "best", "-p", "others"], "Run samunet_find_best_configuration 950 -p others"),
        (["-c", "best"], "name it with -d DATASET"),
    ],
)
def test_what_best_does_not_go_with(
    made: MadeUp, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-i", str(made.root / "images"), "-o", str(made.root / "out"), "--workspace", str(made.root)]
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err


def test_other_rules_do_not_continue_a_folder(made: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-i", str(made.root / "images"), "-o", str(made.root / "again"), "-device", "cpu"]
    words += ["-d", "950", "--workspace", str(made.root)]
    assert main([*words, "-c", "2d_unet", "3d_unet"]) == 0
    assert main([*words, "-c", "best", "--continue_prediction"]) == 2
    assert "postprocessing was []" in capsys.readouterr().err
