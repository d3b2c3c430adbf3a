"""What is planned where the weights at hand have adapters in the encoder's blocks already."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden

from samunet.networks.sam.weight_files import adapters_refused
from samunet.planning.explain import explain
from samunet.planning.plan import Plan, WeightsUsed
from samunet.planning.planner import PlanningRequest, make_plan

HEADS = ("2d_linear", "2d_cnn", "2d_autosam", "2d_desam")


def planned(
    weights: dict[str, str], adapted: tuple[str, ...], budget: str = "12 GB", **overrides: object
) -> Plan:
    request = PlanningRequest(
        budget=golden.BUDGETS[budget], weights=weights, adapted=frozenset(adapted), overrides=overrides
    )
    return make_plan(golden.stored_fingerprints()["Dataset002_ACDC"], request)


@pytest.mark.parametrize("encoder", ["vit_tiny", "vit_b"])
@pytest.mark.parametrize("method", HEADS)
def test_an_adapted_encoder_is_kept_and_cached_whatever_its_size(encoder: str, method: str) -> None:
    chosen = planned({encoder: "file"}, (encoder,)).configuration(method)
    assert chosen.settings.get("encoder", "frozen") == "frozen"
    assert chosen.settings.get("cache", True)
    assert "adapters from a pretraining, so the encoder is frozen" in " ".join(chosen.reasons)


def test_without_adapters_the_small_encoder_is_trained_as_before() -> None:
    chosen = planned({"vit_tiny": "file"}, ()).configuration("2d_cnn")
    assert chosen.settings["encoder"] == "full"
    assert "adapters" not in " ".join(chosen.reasons)


def test_the_user_may_train_it_all() -> None:
    plan = planned({"vit_tiny": "file"}, ("vit_tiny",), settings={"encoder": "full"})
    chosen = plan.configuration("2d_cnn")
    assert chosen.settings["encoder"] == "full"
    assert "trained further with all of the encoder, as you set" in " ".join(chosen.reasons)


def test_a_random_encoder_has_no_adapters() -> None:
    plan = planned({"vit_b": "file"}, ("vit_b",), settings={"encoder_weights": "random"})
    assert "3d_adapter" in plan.configurations
    assert "adapters from a pretraining" not in explain(plan)


def verdict(plan: Plan) -> tuple[str, str]:
    return next((v.status, " ".join(v.reasons)) for v in plan.verdicts if v.method == "3d_adapter")


def test_3d_adapter_is_ruled_out_in_the_words_of_its_training() -> None:
    plan = planned({"vit_tiny": "file"}, ("vit_tiny",))
    assert verdict(plan) == ("unsuitable", adapters_refused("What is at hand of vit_tiny"))
    assert "3d_adapter" not in plan.configurations
    named = planned({"vit_b": "file", "vit_l": "official"}, ("vit_b",), encoder="vit_b")
    assert verdict(named)[0] == "unsuitable"


@pytest.mark.parametrize(
    ("weights", "adapted", "taken"),
    [
        ({"vit_b": "file", "vit_l": "official"}, ("vit_b",), "vit_l"),
        ({"vit_b": "file", "vit_tiny": "shipped"}, ("vit_b",), "vit_tiny"),
    ],
)
def test_3d_adapter_passes_over_adapted_weights_where_there_are_others_and_says_so(
    weights: dict[str, str], adapted: tuple[str, ...], taken: str
) -> None:
    plan = planned(weights, adapted)
    assert plan.configuration("3d_adapter").encoder == taken
    assert "Passed over: what is at hand of vit_b is an encoder with adapters" in verdict(plan)[1]
    unhurt = planned({"vit_b": "official", "vit_tiny": "file"}, ("vit_tiny",))
    assert unhurt.configuration("3d_adapter").encoder == "vit_b"
    assert "Passed over" not in verdict(unhurt)[1]


def test_the_plan_names_weights_with_adapters(tmp_path: Path) -> None:
    plan = planned({"vit_tiny": "file"}, ("vit_tiny",))
    used = WeightsUsed(file="mine.pth", kind="file", sha256="a" * 64, adapted=True)
    plan = replace(plan, weights={"vit_tiny": used})
    plan.save(tmp_path / f"{plan.name}.json")
    assert Plan.load(tmp_path / f"{plan.name}.json") == plan
    assert "mine.pth (SHA-256 aaaaaaaaaaaa...), with adapters" in explain(plan)
