"""The planner's row of `3d_student`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden

from samunet.planning.planner import PlanningRequest, make_plan

FINGERPRINTS = golden.stored_fingerprints()
VOLUMES = [name for name in sorted(FINGERPRINTS) if name != "Dataset005_Nuclei"]


def planned(name: str, budget: str = "12 GB", **settings: object):
    request = PlanningRequest(budget=golden.BUDGETS[budget], overrides={"settings": settings})
    return make_plan(FINGERPRINTS[name], request)


@pytest.mark.parametrize("budget", ["cpu", "80 GB"])
@pytest.mark.parametrize("name", VOLUMES)
def test_at_most_five_million_parameters_on_the_unets_patch(name: str, budget: str) -> None:
    plan = planned(name, budget)
    student, unet = plan.configurations["3d_student"], plan.configurations["3d_unet"]
    assert student.forecast.parameters <= 5_000_000
    assert student.forecast.memory_gb < unet.forecast.memory_gb
    assert student.forecast.step_seconds < unet.forecast.step_seconds
    assert (student.patch_size, student.batch_size) == (unet.patch_size, unet.batch_size)


@pytest.mark.parametrize("goal", ["accuracy", "speed"])
@pytest.mark.parametrize("name", VOLUMES)
def test_it_is_never_recommended(name: str, goal: str) -> None:
    plan = make_plan(
        FINGERPRINTS[name], PlanningRequest(budget=golden.BUDGETS["8 GB"], goal=goal, overrides={})
    )
    assert plan.recommended != "3d_student"
    (verdict,) = (v for v in plan.verdicts if v.method == "3d_student")
    assert verdict.status == "fits"
    assert any("below 3d_unet" in reason for reason in verdict.reasons)


def test_single_images_are_refused_with_the_2d_methods() -> None:
    plan = planned("Dataset005_Nuclei")
    (verdict,) = (v for v in plan.verdicts if v.method == "3d_student")
    assert verdict.status == "unsuitable"
    assert "2d_unet" in verdict.reasons[0]


@pytest.mark.parametrize("name", VOLUMES)
def test_swin_unetr_gets_a_patch_that_suits_it(name: str) -> None:
    plan = planned(name, network="swin_unetr_tiny")
    chosen = plan.configurations["3d_student"]
    assert all(n % 32 == 0 for n in chosen.patch_size)
    assert max(chosen.patch_size) >= 64
    assert chosen.settings["learning_rate"] == 5e-4
    assert 4.0e6 < chosen.forecast.parameters < 4.2e6
    own = planned(name, network="swin_unetr_tiny", learning_rate=1e-4).configurations["3d_student"]
    assert own.settings["learning_rate"] == 1e-4
