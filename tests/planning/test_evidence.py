"""Reasons that rest on trainings of our own say where these are written down, and for which methods."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden

from samunet.planning.explain import WIDTH, explain
from samunet.planning.plan import Plan
from samunet.planning.planner import PlanningRequest, make_plan

PAGE = Path(__file__).resolve().parents[2] / "documentation" / "experiments.md"
LINK = re.compile(r"documentation/experiments\.md, '(.+?)'(?=[);])")
STUDY = "(documentation/experiments.md, 'The study so far')"
WEIGHTS = {"none": {}, "shipped": {"vit_tiny": "shipped"}, "official": golden.OFFICIAL}


def planned(kind: str = "shipped", goal: str = "accuracy", **overrides: object) -> Plan:
    fingerprint = golden.stored_fingerprints()["Dataset002_ACDC"]
    fingerprint = replace(fingerprint, cases=fingerprint.cases[:5])
    request = PlanningRequest(
        budget=golden.BUDGETS["12 GB"], weights=WEIGHTS[kind], goal=goal, overrides=overrides
    )
    return make_plan(fingerprint, request)


def reasons(plan: Plan, method: str) -> str:
    return " ".join(next(v.reasons for v in plan.verdicts if v.method == method))


@pytest.mark.parametrize("goal", ["accuracy", "generalize"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("none", {}), ("shipped", {}), ("official", {}), ("shipped", {"encoder": "frozen"})],
)
def test_every_record_that_is_named_is_there(kind: str, settings: dict[str, str], goal: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    headings = [line.lstrip("# ").replace("`", "") for line in lines if line.startswith("#")]
    plan = planned(kind, goal, settings=settings)
    told = " ".join(reason for verdict in plan.verdicts for reason in verdict.reasons)
    named = LINK.findall(told)
    assert named
    assert told.count("experiments.md") == len(named)
    for name in set(named):
        assert any(heading.startswith(name) for heading in headings), name


@pytest.mark.parametrize(
    ("method", "told", "trained"),
    [
        (
            "2d_cnn",
            f"was level with five, and 5 points behind with five cases of each of two other sets {STUDY}",
            "3 points better with one labelled volume, both at a rate of 1e-3, and",
        ),
        (
            "2d_autosam",
            "it was level with a U-Net with one labelled volume of the heart and 5 points behind",
            "that, at twice the rate, was 4 points better",
        ),
    ],
)
def test_what_was_measured_with_a_method_is_said_of_it(method: str, told: str, trained: str) -> None:
    found = reasons(planned(), method)
    assert told in found
    assert "vit_tiny is trained too (--set encoder=frozen freezes it): that" in found
    assert trained in found
    assert f"Not measured with {method}" not in found


@pytest.mark.parametrize("method", ["2d_linear", "2d_desam", "3d_adapter"])
def test_what_was_not_is_said_to_be_taken_over(method: str) -> None:
    found = reasons(planned(), method)
    assert f"Not measured with {method}" in found
    assert f"taken over from 2d_cnn and 2d_autosam {STUDY}" in found
    assert "it led a U-Net" not in found


def test_the_rate_on_a_kept_small_encoder_has_its_reason() -> None:
    assert "The head has a rate of 1e-3" not in reasons(planned(), "2d_cnn")
    kept = {"encoder": "frozen"}
    assert "not certainly with five (documentation" in reasons(planned(settings=kept), "2d_cnn")
    assert "not certainly with five; taken over for 2d_linear" in reasons(planned(settings=kept), "2d_linear")
    assert "The head has a rate" not in reasons(planned(settings={**kept, "learning_rate": 2e-4}), "2d_cnn")
    assert "The head has a rate" not in reasons(planned(settings={**kept, "paper_compat": True}), "2d_cnn")


def test_what_the_user_decided_is_not_given_reasons_for() -> None:
    for encoder in ("full", "frozen"):
        assert "is trained too (" not in reasons(planned(settings={"encoder": encoder}), "2d_cnn")
        kept = planned("official", settings={"encoder": encoder})
        assert "is frozen: AutoSAM" not in reasons(kept, "2d_cnn")
    assert "is frozen: AutoSAM" in reasons(planned("official"), "2d_cnn")


def test_a_large_cache_names_what_would_keep_it_small() -> None:
    told = "--set cache_storage=pca:64 would keep it in"
    assert told in reasons(planned("official"), "2d_desam")
    assert told not in reasons(planned("official", settings={"cache_storage": "int8"}), "2d_desam")
    assert told not in reasons(planned(settings={"encoder": "frozen"}), "2d_linear")


def test_a_random_encoder_is_for_timing_where_it_is_kept_only() -> None:
    random = {"encoder_weights": "random"}
    for method in ("2d_cnn", "3d_adapter"):
        assert "a Dice from it means nothing" in reasons(planned(settings=random), method)
        found = reasons(planned(settings={**random, "encoder": "full"}), method)
        assert "is trained from scratch, whatever weights are at hand" in found
        assert "means nothing" not in found


def test_the_rule_of_the_input_size_is_said_where_there_was_a_choice() -> None:
    assert "Wanted are 4 input pixels a slice pixel" in reasons(planned("official"), "2d_cnn")
    own = reasons(planned(), "2d_linear")
    assert "was better at 224 pixels than at 448, one draw; taken over for 2d_linear" in own
    random = planned("official", settings={"encoder_weights": "random"})
    assert "Wanted are" not in reasons(random, "2d_cnn")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_lines_and_reasons_stay_short(kind: str) -> None:
    plan = planned(kind)
    assert max(map(len, explain(plan).splitlines())) <= WIDTH
    assert max(len(reason) for verdict in plan.verdicts for reason in verdict.reasons) <= 4 * WIDTH


@pytest.mark.parametrize(("kind", "said"), [("none", True), ("shipped", True), ("official", False)])
def test_data_from_other_sites_without_sam(kind: str, said: bool) -> None:
    """What was measured of 2d_desam on the small encoder stands where its study does not speak for it."""
    plan = planned(kind, "generalize")
    chosen = next(v.method for v in plan.verdicts if v.status == "recommended")
    assert ("8 points [1, 15] behind 2d_cnn" in reasons(plan, chosen)) == said
    assert (chosen == "2d_desam") != said
