"""Overrides that change what the planner decides from give a configuration of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samunet.errors import SamunetError
from samunet.pipeline import calibrate, train, train_folds
from samunet.pipeline.plan_and_preprocess import PlanOptions, plan
from samunet.pipeline.replan import Overrides, planned_weights, replan
from samunet.pipeline.train import PreparedRun, TrainOptions, TrainOutcome, prepare_run
from samunet.planning import sam_options
from samunet.planning.plan import EXPECTED, Configuration, Plan, WeightsUsed
from samunet.trainers.identity import CacheUse, RunRecord, identify, write_run
from samunet.trainers.settings import apply_overrides
from samunet.workspace import LATEST, Workspace, fold_folder

NAME = "Dataset901_Tiny3D"


@pytest.fixture
def workspace(tiny_copy: Path) -> Workspace:
    return Workspace.find(tiny_copy, {})


@pytest.fixture
def planned(workspace: Workspace) -> Plan:
    return plan(workspace, NAME, PlanOptions(device="cpu", hours=100), workers=1)


def test_recipe_settings_leave_the_plan_alone(workspace: Workspace, planned: Plan) -> None:
    overrides = Overrides(settings={"epochs": 3, "learning_rate": 1e-3, "momentum": 0.9})
    for name in ("2d_cnn", "2d_unet"):
        assert replan(workspace, planned, name, overrides) is planned


def test_another_encoder(workspace: Workspace, planned: Plan) -> None:
    derived = replan(workspace, planned, "2d_cnn", Overrides(encoder="vit_micro"))
    assert derived.configuration("2d_cnn").encoder == "vit_micro"
    assert derived.configuration("2d_linear") == planned.configuration("2d_linear")
    assert derived.configuration_hash("2d_cnn") != planned.configuration_hash("2d_cnn")
    assert derived.budget == planned.budget
    again = replan(workspace, planned, "2d_cnn", Overrides(encoder=planned.configuration("2d_cnn").encoder))
    assert again is planned


def test_the_encoder_of_the_plan_stays_where_it_is_named(workspace: Workspace, planned: Plan) -> None:
    """Random weights of no named encoder are those of ViT-B, for figures of speed."""
    named = Overrides(encoder="vit_tiny", settings={"encoder_weights": "random"})
    assert planned.configuration("2d_cnn").encoder == "vit_tiny"
    assert replan(workspace, planned, "2d_cnn", named).configuration("2d_cnn").encoder == "vit_tiny"


def test_structural_settings(workspace: Workspace, planned: Plan) -> None:
    derived = replan(workspace, planned, "2d_cnn", Overrides(settings={"slice_context": 1, "epochs": 2}))
    assert derived.configuration("2d_cnn").settings["slice_context"] == 1
    assert Plan.load(workspace.plan_file(NAME)) == planned


def test_what_is_told_leaves_out_what_the_user_gave(
    workspace: Workspace, planned: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    """A patch that the user gave is used, whatever the planner would have chosen: do not name another."""
    caplog.set_level("INFO")
    given = {"token_size": [4, 4, 4], "patch_size": [32, 48, 32]}
    replan(workspace, planned, "3d_adapter", Overrides(settings=given))
    told = next(line for line in caplog.messages if "planned again" in line)
    assert "(token_size=[4, 4, 4])" in told
    assert "patch " not in told


def test_a_method_from_outside(workspace: Workspace, planned: Plan) -> None:
    derived = replan(workspace, planned, "examples.small_fcn", Overrides())
    assert derived.configuration("examples.small_fcn").method == "examples.small_fcn"


def test_an_unsuitable_method_is_refused_with_the_reason(workspace: Workspace) -> None:
    pictures = plan(workspace, "Dataset902_TinyRGB", PlanOptions(device="cpu"), workers=1)
    with pytest.raises(SamunetError, match="3d_unet cannot be trained"):
        replan(workspace, pictures, "3d_unet", Overrides())


def test_without_a_fingerprint(workspace: Workspace, planned: Plan) -> None:
    workspace.fingerprint_file(NAME).unlink()
    with pytest.raises(SamunetError, match="samunet_extract_fingerprint"):
        replan(workspace, replace(planned, configurations={}), "2d_cnn", Overrides())


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    """A file with the name of vit_tiny's weights; planning does not read it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    file = folder / "samunet_vit_tiny.pth"
    file.write_bytes(b"")
    return file


def test_weights_given_with_the_training(workspace: Workspace, planned: Plan, tiny_weights: Path) -> None:
    assert planned.configuration("2d_cnn").encoder_weights == "none"
    for weights in (tiny_weights, tiny_weights.parent):
        chosen = replan(workspace, planned, "2d_cnn", Overrides(weights=weights)).configuration("2d_cnn")
        assert (chosen.encoder, chosen.encoder_weights) == ("vit_tiny", "file")


def test_weights_that_came_after_the_plan_are_said(
    workspace: Workspace, planned: Plan, tiny_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_weights.parent.rename(workspace.weights)
    assert replan(workspace, planned, "2d_cnn", Overrides()) is planned
    assert [r.levelname for r in caplog.records if "vit_tiny are here now" in r.message] == ["WARNING"]
    again = replan(workspace, planned, "2d_cnn", Overrides(encoder="vit_tiny"))
    assert again.configuration("2d_cnn").encoder_weights == "file"


def test_sams_weights_that_came_after_the_plan_are_said(
    workspace: Workspace, planned: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a plan with the weights that ship too, which nobody would notice otherwise."""
    workspace.weights.mkdir()
    (workspace.weights / "sam_vit_b_01ec64.pth").write_bytes(b"")
    began = replace(planned.configuration("2d_cnn"), encoder_weights="shipped")
    shipped = replace(planned, configurations={**planned.configurations, "2d_cnn": began})
    assert replan(workspace, shipped, "2d_cnn", Overrides(settings={"epochs": 2})) is shipped
    assert [r.levelname for r in caplog.records if "those of vit_b are here now" in r.message] == ["WARNING"]
    caplog.clear()
    chosen = replace(shipped, overrides={**shipped.overrides, "encoder": "vit_tiny"})
    assert replan(workspace, chosen, "2d_cnn", Overrides()) is chosen
    known = {"vit_b": WeightsUsed(file="sam_vit_b_01ec64.pth", kind="official", sha256="0")}
    assert replan(workspace, replace(shipped, weights=known), "2d_cnn", Overrides()).weights == known
    assert "here now" not in caplog.text


def test_weights_of_the_plan_are_those_of_its_trainings(workspace: Workspace, tiny_weights: Path) -> None:
    named = plan(workspace, NAME, PlanOptions(device="cpu", hours=100, weights=tiny_weights), workers=1)
    assert Plan.load(workspace.plan_file(NAME)).overrides["weights"] == str(tiny_weights)
    assert named.configuration("2d_cnn").encoder_weights == "file"
    assert planned_weights(named, "2d_cnn") == tiny_weights
    assert planned_weights(named, "2d_unet") is None
    again = replan(workspace, named, "2d_cnn", Overrides(settings={"slice_context": 1}))
    assert again.configuration("2d_cnn").encoder_weights == "file"
    tiny_weights.unlink()
    with pytest.raises(
        SamunetError, match=r"made with the weights .*samunet_vit_tiny.pth, which are not there"
    ):
        planned_weights(named, "2d_cnn")


def test_a_plan_without_named_weights_leaves_them_to_the_folder(planned: Plan) -> None:
    assert planned_weights(planned, "2d_cnn") is None


def test_weights_that_do_not_say_whose_they_are(workspace: Workspace, planned: Plan, tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"")
    with pytest.raises(SamunetError, match="-encoder"):
        replan(workspace, planned, "2d_cnn", Overrides(weights=file))
    derived = replan(workspace, planned, "2d_cnn", Overrides(weights=file, encoder="vit_tiny"))
    assert derived.configuration("2d_cnn").encoder_weights == "file"


def test_a_unet_has_no_encoder(workspace: Workspace, planned: Plan) -> None:
    with pytest.raises(SamunetError, match="2d_unet has no encoder"):
        replan(workspace, planned, "2d_unet", Overrides(encoder="vit_b"))


def begin(workspace: Workspace, settings: dict[str, Any], tag: str | None = None) -> TrainOptions:
    """Fold 0 of 2d_cnn as a training leaves it that was stopped; returns what continues it."""
    options = TrainOptions(dataset=NAME, configuration="2d_cnn", fold=0, settings=settings, tag=tag)
    prepared = prepare_run(workspace, options)
    trained = apply_overrides(prepared.plan, "2d_cnn", settings)
    cases = (prepared.split.train, prepared.split.val)
    identity = identify(trained, "2d_cnn", cases, 0)
    record = RunRecord(
        configuration_hash=identity.configuration_hash,
        data_hash=identity.data_hash,
        split_hash=identity.split_hash,
        configuration=identity.configuration,
        fold=0,
        seed=0,
        train=cases[0],
        val=cases[1],
        overrides={"settings": settings},
        time_budget_minutes=None,
        phases=(),
        batch_workers=0,
        weights=None,
        cache=CacheUse(mode="none"),
        device="cpu",
        precision="fp32",
    )
    folder = fold_folder(prepared.model_folder, 0)
    folder.mkdir(parents=True)
    write_run(folder, record)
    (folder / LATEST).touch()
    return replace(options, settings={}, resume=True)


def trained_part(configuration: Configuration) -> dict[str, Any]:
    """What of a configuration decides on the training."""
    return {key: value for key, value in vars(configuration).items() if key not in EXPECTED}


@pytest.fixture
def no_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases count as preprocessed."""
    monkeypatch.setattr(train, "preprocessed_names", lambda dataset, *_: dataset.case_names)


def folds_like(workspace: Workspace, options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> PreparedRun:
    """Fold 1, never started, as --c begins it beside fold 0."""
    begun: list[PreparedRun] = []

    def pretend(root: Workspace, own: TrainOptions, *_: object, **__: object) -> TrainOutcome:
        begun.append(prepare_run(root, own))
        return TrainOutcome(folder=root.results)

    monkeypatch.setattr(train_folds, "train", pretend)
    list(train_folds.train_folds(workspace, options, [0, 1]))
    return begun[1]


@pytest.mark.parametrize("case", ["chain", "random", "weights that came"])
@pytest.mark.usefixtures("no_cases")
def test_a_run_that_goes_on_is_not_planned_again(
    case: str, workspace: Workspace, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a fold that is begun beside it, however the planner would decide now."""
    wanted = {"sam": 20, "own weights": 20, "encoder without prior": 2}
    monkeypatch.setattr(sam_options, "ENLARGEMENT", wanted)
    settings: dict[str, Any] = {"slice_context": 1}
    if case == "random":
        settings = {"encoder_weights": "random"}
        rates = dict.fromkeys(
            calibrate.measure_gflops("cpu"), 1000.0
        )  # the session's, which measures nothing
        monkeypatch.setattr(calibrate, "measure_gflops", lambda _: rates)
    elif case == "chain":
        settings = {"views": 12, "encoder": "frozen"}
        tiny_weights.with_name("sam_vit_b_01ec64.pth").touch()
        tiny_weights.parent.rename(workspace.weights)
    plan(workspace, NAME, PlanOptions(device="cpu", hours=12), workers=1)
    options = begin(workspace, settings)
    begun = prepare_run(workspace, replace(options, resume=False, settings=settings))
    there = trained_part(begun.plan.configuration("2d_cnn"))
    if case == "weights that came":
        tiny_weights.parent.rename(workspace.weights)
    for given in ({}, settings):
        again = prepare_run(workspace, replace(options, settings=given)).plan.configuration("2d_cnn")
        assert trained_part(again) == there | {"settings": there["settings"] | settings}
    beside = folds_like(workspace, options, monkeypatch).plan.configuration("2d_cnn")
    assert trained_part(beside) == trained_part(again)


@pytest.mark.usefixtures("no_cases")
def test_what_is_given_beside_c_is_planned(workspace: Workspace, planned: Plan) -> None:
    options = begin(workspace, {"slice_context": 1})
    for given, told in (({"slice_context": 2}, 2), ({"epochs": 2}, 1)):
        other = prepare_run(workspace, replace(options, fold=1, settings=given)).plan.configuration("2d_cnn")
        assert other.settings["slice_context"] == told
    named = prepare_run(workspace, replace(options, encoder="vit_micro")).plan.configuration("2d_cnn")
    assert (named.encoder, named.settings["slice_context"]) == ("vit_micro", 1)


@pytest.mark.usefixtures("no_cases")
def test_a_plan_that_was_made_again_is_said_and_changes_nothing(
    workspace: Workspace, planned: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    options = begin(workspace, {"epochs": 2})
    prepare_run(workspace, options)
    assert "made again" not in caplog.text
    cnn = planned.configuration("2d_cnn")
    smaller = replace(
        planned, configurations={**planned.configurations, "2d_cnn": replace(cnn, batch_size=2)}
    )
    smaller.save(workspace.plan_file(NAME))
    assert prepare_run(workspace, options).plan.configuration("2d_cnn").batch_size == cnn.batch_size
    assert f"made again since 2d_cnn was begun (batch_size: {cnn.batch_size} there, 2 now)" in caplog.text
