"""Plans of the six shared sets: nnU-Net's, and the recommendations reviewed by eye."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden

from samunet.planning.explain import explain
from samunet.planning.planner import PlanningRequest, make_plan
from samunet.planning.rules import MAX_BATCH_2D

NNUNET_PLANS = (
    Path(__file__).resolve().parents[3] / "shared" / "reference" / "nnunet_plans_of_shared_data.json"
)
SCHEMES = {"ZScoreNormalization": "zscore", "CTNormalization": "ct"}
FINGERPRINTS = golden.stored_fingerprints()


def test_recommendations_are_the_reviewed_ones():
    """After a deliberate change: run golden.py, review the difference, commit it."""
    expected = json.loads(golden.RECOMMENDATIONS.read_text())
    found = json.loads(json.dumps(golden.all_summaries()))
    assert found.keys() == expected.keys()
    for key, plan in found.items():
        assert plan == expected[key], key


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(FINGERPRINTS))
def test_plans_agree_with_nnunet(name):
    if not NNUNET_PLANS.exists():
        pytest.skip("nnU-Net's plans are not at hand")
    reference = json.loads(NNUNET_PLANS.read_text())["datasets"][name]
    plan = golden.golden_plan(FINGERPRINTS[name], "8 GB", "none")
    assert list(plan.transpose_forward) == reference["transpose_forward"]
    assert list(plan.original_median_spacing_mm) == pytest.approx(
        reference["original_median_spacing_after_transp"]
    )
    assert [round(n) for n in plan.original_median_shape] == reference["original_median_shape_after_transp"]
    for ours, theirs in (("2d", "2d"), ("3d", "3d_fullres")):
        assert (ours in plan.data) == (theirs in reference["configurations"])
        if ours in plan.data:
            compare(plan, ours, reference["configurations"][theirs])
    for number, intensity in enumerate(plan.intensity):
        for key, value in reference["foreground_intensity_properties_per_channel"][str(number)].items():
            assert getattr(intensity, key) == pytest.approx(value, rel=0.01, abs=1e-6), key


def compare(plan, dimension, reference):
    data, configuration = plan.data[dimension], plan.configurations[f"{dimension}_unet"]
    assert list(data.spacing_mm) == pytest.approx(reference["spacing"], rel=1e-9)
    assert list(data.median_shape) == reference["median_image_size_in_voxels"]
    assert list(data.normalization) == [SCHEMES[s] for s in reference["normalization_schemes"]]
    assert list(data.use_mask_for_norm) == reference["use_mask_for_norm"]
    assert list(configuration.patch_size) == reference["patch_size"]
    assert configuration.batch_dice == reference["batch_dice"]
    cap = MAX_BATCH_2D["cuda"] if dimension == "2d" else np.inf
    assert configuration.batch_size == min(reference["batch_size"], cap)


@pytest.mark.parametrize("weights", golden.WEIGHTS)
@pytest.mark.parametrize("name", sorted(FINGERPRINTS))
def test_a_larger_budget_never_shrinks_anything(name, weights):
    order = ["vit_tiny", "vit_b", "vit_l", "vit_h"]
    previous = {}
    for budget in golden.BUDGETS:
        plan = golden.golden_plan(FINGERPRINTS[name], budget, weights)
        for method, chosen in plan.configurations.items():
            before = previous.get(method)
            if before is not None:
                assert all(a >= b for a, b in zip(chosen.patch_size, before.patch_size))
                assert (chosen.input_size or 0) >= (before.input_size or 0)
                if chosen.encoder:
                    assert order.index(chosen.encoder) >= order.index(before.encoder)
            previous[method] = chosen


@pytest.mark.parametrize("weights", golden.WEIGHTS)
@pytest.mark.parametrize("budget", golden.BUDGETS)
@pytest.mark.parametrize("name", sorted(FINGERPRINTS))
def test_only_what_fits_is_recommended(name, budget, weights):
    plan = golden.golden_plan(FINGERPRINTS[name], budget, weights)
    chosen = plan.configuration(plan.recommended)
    assert chosen.forecast.memory_gb <= plan.budget.memory_gb
    assert chosen.forecast.cache_gb <= plan.budget.disk_gb
    assert chosen.forecast.train_hours <= plan.budget.hours
    status = {verdict.method: verdict.status for verdict in plan.verdicts}
    assert status[plan.recommended] == "recommended"
    if name == "Dataset005_Nuclei":
        assert status["3d_unet"] == "unsuitable"
        assert "3d" not in plan.data
    if weights == "none":
        reasons = " ".join(plan.configurations["2d_cnn"].reasons)
        assert "samunet_download_weights vit_b" in reasons
        assert plan.configurations["2d_cnn"].settings["encoder"] == "full"


def test_few_cases_with_official_weights_take_a_sam_head():
    for name in ("Dataset002_ACDC", "Dataset001_Hippocampus"):
        few = with_cases(FINGERPRINTS[name], 5)
        assert golden.golden_plan(few, "12 GB", "official").recommended == "2d_cnn"
        assert golden.golden_plan(few, "12 GB", "none").recommended.endswith("_unet")
        assert golden.golden_plan(FINGERPRINTS[name], "12 GB", "official").recommended.endswith("_unet")


@pytest.mark.parametrize("name", ["Dataset002_ACDC", "Dataset003_MSCMR_LGE"])
@pytest.mark.parametrize("hours", [0.5, 1.0, 2.0, 4.0])
def test_the_probe_is_not_recommended_where_another_method_fits(name: str, hours: float) -> None:
    """`2d_linear` fits hours that cut the schedules of the others very short."""
    weights = {"vit_b": "official", "vit_tiny": "shipped"}
    budget = replace(golden.BUDGETS["cpu"], hours=hours)
    plan = make_plan(with_cases(FINGERPRINTS[name], 5), PlanningRequest(budget=budget, weights=weights))
    others = {v.method for v in plan.verdicts if v.status in ("fits", "recommended")} - {"2d_linear"}
    assert others
    assert plan.recommended in others


@pytest.mark.parametrize("name", ["Dataset003_MSCMR_LGE", "Dataset004_HaN_CT"])
def test_an_adapter_on_the_smallest_patches_is_not_recommended(name: str) -> None:
    """It fits hours that no U-Net fits, with 8 tokens a side: a hundredth of a slice."""
    budget = replace(golden.BUDGETS["cpu"], hours=0.5)
    request = PlanningRequest(budget=budget, weights={"vit_tiny": "shipped"})
    plan = make_plan(with_cases(FINGERPRINTS[name], 5), request)
    status = {verdict.method: verdict.status for verdict in plan.verdicts}
    assert status["3d_adapter"] == "fits"
    assert max(plan.configuration("3d_adapter").patch_size[1:]) == 32
    assert "The smallest patch shows too little" in " ".join(plan.configuration("3d_adapter").reasons)


def test_a_small_encoders_own_weights_are_not_taken_for_sams():
    few = with_cases(FINGERPRINTS["Dataset002_ACDC"], 5)
    for goal in ("accuracy", "generalize"):
        request = PlanningRequest(budget=golden.BUDGETS["12 GB"], weights={"vit_tiny": "shipped"}, goal=goal)
        plan = make_plan(few, request)
        assert plan.recommended.endswith("_unet")
        for verdict in plan.verdicts:
            told = " ".join(verdict.reasons)
            assert "SAM heads at" not in told
            if plan.configurations[verdict.method].encoder == "vit_tiny":
                assert "not SAM's" in told
        assert "samunet_download_weights" in explain(plan)
    with_sam = PlanningRequest(
        budget=golden.BUDGETS["12 GB"], weights={**golden.OFFICIAL, "vit_tiny": "shipped"}
    )
    assert make_plan(few, with_sam).recommended == "2d_cnn"


def with_cases(fingerprint, count):
    import dataclasses

    return dataclasses.replace(fingerprint, cases=fingerprint.cases[:count])


@pytest.mark.parametrize("name", ["Dataset001_Hippocampus", "Dataset002_ACDC"])
def test_hashes_of_earlier_versions_are_known(name):
    """They held name and groups; a model trained before the groups were declared is of the same data."""
    stored = golden.stored_fingerprints()[name]
    now = replace(stored, data_hash="a" * 16)
    assert now.describes(stored.data_hash)
    if not stored.groups:
        grouped = replace(now, groups={case.name: "one" for case in now.cases})
        assert grouped.describes(stored.data_hash)
    assert not replace(now, cases=now.cases[1:]).describes(stored.data_hash)
