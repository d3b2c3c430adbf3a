"""Which configuration and which trained model a user means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from shared_models import make_fingerprint
from tiny_runs import make_configuration, make_plan

from samunet.errors import SamunetError
from samunet.pipeline.models import (
    ModelRequest,
    configuration_name,
    find_model,
    load_plan,
    recommended_for_longer,
)
from samunet.records import write_json
from samunet.workspace import Workspace

DATASET = "Dataset900_Tiny"


@pytest.mark.parametrize(
    ("configuration", "method", "expected"),
    [
        ("auto", None, "2d_cnn"),
        ("auto", "2d_linear", "2d_linear"),
        ("2d", None, "2d_unet"),
        ("3d_fullres", None, "3d_unet"),
        ("2d", "2d_autosam", "2d_autosam"),
        ("2d_autosam", "2d", "2d_unet"),
    ],
)
def test_names(configuration: str, method: str | None, expected: str) -> None:
    assert configuration_name(configuration, method, "2d_cnn") == expected


@pytest.mark.parametrize(
    ("configuration", "method", "recommended", "words"),
    [
        ("auto", None, "", "recommends no method"),
        ("3d_fullres", "2d_cnn", "", "2D"),
        ("3d_lowres", None, "", "out of scope"),
        ("2d_cn", None, "", "2d_cnn"),
    ],
)
def test_refusals(configuration: str, method: str | None, recommended: str, words: str) -> None:
    with pytest.raises(SamunetError, match=words):
        configuration_name(configuration, method, recommended)


def test_a_recommendation_for_far_longer_trainings_is_told() -> None:
    plan = replace(make_plan(make_configuration("2d_cnn")), recommended="2d_cnn")  # for an hour
    told = recommended_for_longer(plan, 15)
    assert told.startswith("The plan recommends 2d_cnn for trainings of up to 1.0 hours; for 15 minutes")
    assert told.endswith("--hours 0.25")
    for minutes in (None, 31, 60, 600):
        assert not recommended_for_longer(plan, minutes)
    assert not recommended_for_longer(replace(plan, recommended=""), 15)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.find(tmp_path, {})


def make_trained(workspace: Workspace, name: str, tag: str | None = None) -> Path:
    folder = workspace.model_folder(DATASET, name, "tinyPlans", tag)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0/checkpoint_final.pth").write_bytes(b"")
    return folder


def request(configuration: str = "auto", tag: str | None = None) -> ModelRequest:
    return ModelRequest(dataset=DATASET, configuration=configuration, plans="tinyPlans", tag=tag)


def test_the_only_model_is_meant(workspace: Workspace) -> None:
    folder = make_trained(workspace, "2d_cnn")
    make_trained(workspace, "2d_unet", "tagged")
    assert find_model(workspace, request()) == folder
    assert find_model(workspace, request("2d", "tagged")).name == "2d_unet__tinyPlans__tagged"


def test_among_several_the_recommended_one(workspace: Workspace) -> None:
    make_trained(workspace, "2d_cnn")
    folder = make_trained(workspace, "2d_linear")
    with pytest.raises(SamunetError, match="2d_cnn__tinyPlans, 2d_linear__tinyPlans"):
        find_model(workspace, request())
    plan = make_plan(make_configuration("2d_linear"))
    plan.save(workspace.plan_file(DATASET, "tinyPlans"))
    assert find_model(workspace, request()) == folder


def test_a_model_by_the_name_that_the_selection_gives_it(workspace: Workspace) -> None:
    folder = make_trained(workspace, "2d_cnn", "wide")
    make_trained(workspace, "2d_cnn")
    assert find_model(workspace, request("2d_cnn__wide")) == folder
    assert find_model(workspace, request("2d_cnn", "wide")) == folder


def test_a_model_that_is_not_trained(workspace: Workspace) -> None:
    make_trained(workspace, "2d_cnn")
    with pytest.raises(SamunetError, match="samunet_train 900 2d_linear 0"):
        find_model(workspace, request("2d_linear"))
    with pytest.raises(SamunetError, match="2d_cnn__tinyPlans"):
        find_model(workspace, request("2d_cnn", "other"))


def test_a_plan_survives_groups_that_are_declared_later(workspace: Workspace) -> None:
    plan = make_plan(make_configuration("2d_unet"))
    plan.save(workspace.plan_file(DATASET, plan.name))
    measured = make_fingerprint(plan)
    file = workspace.fingerprint_file(DATASET)
    write_json(file, replace(measured, groups={case.name: "one" for case in measured.cases}))
    assert load_plan(workspace, DATASET, plan.name) == plan
    write_json(file, replace(measured, data_hash="1" * 16))
    with pytest.raises(SamunetError, match="made from other data"):
        load_plan(workspace, DATASET, plan.name)
