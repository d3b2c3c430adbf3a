"""What the user asks of the planner, and what it refuses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden

from samunet.errors import SamunetError
from samunet.planning.explain import WIDTH, explain
from samunet.planning.methods import build_config, get_method
from samunet.planning.plan import Plan
from samunet.planning.planner import PlanningRequest, make_plan
from samunet.records import to_data, write_json

FINGERPRINTS = golden.stored_fingerprints()
ACDC = FINGERPRINTS["Dataset002_ACDC"]
HEAD_NECK = FINGERPRINTS["Dataset004_HaN_CT"]


def planned(
    fingerprint=ACDC, budget="12 GB", weights="none", unet_memory_gb=8.0, goal="accuracy", **overrides
):
    request = PlanningRequest(
        budget=budget if not isinstance(budget, str) else golden.BUDGETS[budget],
        weights=golden.WEIGHTS[weights],
        unet_memory_gb=unet_memory_gb,
        goal=goal,
        overrides=overrides,
    )
    return make_plan(fingerprint, request)


def test_plan_is_pure_and_survives_the_disk(tmp_path):
    plan = planned()
    assert plan == planned()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_copied_plan_needs_a_name_of_its_own(tmp_path):
    plan = planned()
    plan.save(tmp_path / "mine.json")
    with pytest.raises(SamunetError, match=r"mine\.json .*`name` is samunetPlans.* set it to mine"):
        Plan.load(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("data", "3d", "spacing_mm"), [0, 1, 1], r"spacing_mm\[0\]: 0.0 must be above 0"),
        (("data", "3d", "spacing_mm"), [-1, 1, 1], "must be above 0"),
        (("data", "3d", "spacing_mm"), [1, 1], "`data.3d.spacing_mm` has 2 entries for 3 axes"),
        (("data", "2d", "spacing_mm"), [1, 1, 1], "`data.2d.spacing_mm` has 3 entries for 2 axes"),
        (("data", "3d", "dimension"), 4, "dimension: 4 must be at least 2 and at most 3"),
        (("data", "3d", "normalization"), [], r"`data.3d.normalization` has 0 entries for 1 channel\(s\)"),
        (("data", "2d", "use_mask_for_norm"), [True, True], "`data.2d.use_mask_for_norm` has 2 entries"),
        (("data", "2d", "name"), "3d", "`data.2d.name` is 3d"),
        (("intensity",), [], "`intensity` has 0 entries"),
        (("transpose_forward",), [0, 0, 1], "`transpose_forward` must be an order of 0, 1, 2"),
        (("transpose_backward",), [0, 1, 3], "`transpose_backward` what undoes it"),
        (("configurations", "3d_unet", "data"), "3dx", "`configurations.3d_unet.data` is 3dx, .*2d, 3d"),
        (("configurations", "3d_unet", "patch_size"), [64, 64], "patch_size` has 2 entries for 3 axes"),
        (("configurations", "2d_unet", "patch_size"), [64, 0], r"patch_size\[1\]: 0 must be at least 1"),
        (("configurations", "2d_unet", "batch_size"), 0, "batch_size: 0 must be at least 1"),
        (("configurations", "2d_unet", "mirror_axes"), [0, 2], "mirror_axes` must be among 0, 1"),
    ],
)
def test_a_plan_edited_into_nonsense_is_refused_with_the_key(tmp_path, where, value, told):
    content = to_data(planned())
    part = content
    for key in where[:-1]:
        part = part[key]
    assert where[-1] in part
    part[where[-1]] = value
    write_json(tmp_path / "samunetPlans.json", content)
    with pytest.raises(SamunetError, match=told):
        Plan.load(tmp_path / "samunetPlans.json")


def test_every_configuration_builds_its_settings():
    for weights in golden.WEIGHTS:
        for name, chosen in planned(weights=weights).configurations.items():
            build_config(get_method(name), chosen.settings)


def test_settings_reach_the_rows_that_know_them():
    plan = planned(settings={"epochs": 7, "num_depth": 3}, weights="official")
    assert plan.configurations["2d_cnn"].settings["num_depth"] == 3
    assert plan.configurations["2d_unet"].settings == {"epochs": 7}
    assert "num_depth" not in plan.configurations["2d_linear"].settings
    assert plan.overrides["settings"] == {"epochs": 7, "num_depth": 3}


def test_settings_of_autosams_heads_do_not_reach_desam():
    asked = {"paper_compat": True, "head_width": 32}
    plan = planned(settings=asked, weights="official")
    for name in ("2d_linear", "2d_cnn", "2d_autosam"):
        assert asked.items() <= plan.configurations[name].settings.items()
    assert plan.configurations["2d_desam"] == planned(weights="official").configurations["2d_desam"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"settings": {"epoch": 3}}, "epochs"),
        ({"settings": {"epochs": "many"}}, "epochs"),
        ({"encoder": "vit_t"}, "MobileSAM"),
        ({"encoder": "vit_bb"}, "vit_b"),
        ({"encoder": "vit_l"}, "samunet_download_weights vit_l"),
        ({"settings": {"input_size": 224}}, "samunet_train DATASET CONFIGURATION FOLD --set input_size=224"),
        ({"settings": {"context_blocks": [0, 1, 40]}}, "has no block 40"),
        ({"settings": {"mode": "whole_box", "grid_side": 5}}, "no effect with mode=whole_box"),
        ({"settings": {"iou_head": False, "min_iou": 0.5}}, "no effect with iou_head=false"),
        ({"settings": {"iou_head": False, "iou_weight": 2.0}}, "no effect with iou_head=false"),
        ({"settings": {"mode": "whole_box", "iou_weight": 3.0}}, "no effect with mode=whole_box"),
        ({"settings": {"mode": "whole_box", "fusion": False}}, "fusion=false: has no effect with mode"),
        ({"settings": {"fusion": False, "top_prompts": 3}}, "no effect with fusion=false"),
        ({"settings": {"fusion": False, "grid_side": 25}}, "grid_side=25: has no effect with fusion=false"),
        ({"spacing": (1.0, 0.0, 1.0)}, "positive"),
        ({"spacings": (1.0, 1.0, 1.0)}, "spacing"),
    ],
)
def test_refusals_name_what_to_do(overrides, said):
    with pytest.raises(SamunetError, match=said):
        planned(**overrides)


def test_random_encoder_only_on_demand_and_never_recommended():
    plan = planned(settings={"encoder_weights": "random"})
    chosen = plan.configurations["2d_cnn"]
    assert (chosen.encoder, chosen.encoder_weights) == ("vit_b", "random")
    assert chosen.settings.get("encoder", "frozen") == "frozen"
    assert plan.recommended.endswith("_unet")
    for weights in golden.WEIGHTS:
        kinds = {c.encoder_weights for c in planned(weights=weights).configurations.values()}
        assert "random" not in kinds


def test_full_encoder_is_not_cached():
    chosen = planned(weights="official", settings={"encoder": "full"}).configurations["2d_autosam"]
    assert chosen.settings["encoder"] == "full"
    assert chosen.forecast.cache_gb == 0
    assert chosen.forecast.trainable == chosen.forecast.parameters


def test_a_users_setting_stands_above_the_recipe_also_where_it_is_the_methods_default():
    """Without weights the rows' recipe trains the encoder with 1e-3 and no cache; large patches are
    checkpointed."""
    default = get_method("2d_cnn").config().learning_rate
    assert planned().configurations["2d_cnn"].settings["learning_rate"] != default
    plan = planned(settings={"learning_rate": default})
    assert "learning_rate" not in plan.configurations["2d_cnn"].settings
    assert planned(budget="8 GB", weights="official").configurations["3d_adapter"].settings["checkpointing"]
    never = planned(budget="8 GB", weights="official", settings={"checkpointing": False})
    assert "checkpointing" not in getattr(never.configurations.get("3d_adapter"), "settings", {})


def test_a_small_encoder_with_weights_of_its_own_is_trained_too_and_kept_where_asked(monkeypatch):
    monkeypatch.setitem(golden.WEIGHTS, "own", {"vit_tiny": "shipped"})
    plan, scratch = planned(weights="own"), planned()
    for name in ("2d_cnn", "2d_linear", "2d_desam", "3d_adapter"):
        row, without = plan.configurations[name], scratch.configurations[name]
        assert (row.encoder, row.encoder_weights) == ("vit_tiny", "shipped")
        assert {"image_skip": True, **row.settings} == {"image_skip": True, **without.settings}
        assert row.settings["encoder"] == "full"
    assert "encoder_learning_rate_factor" not in plan.configurations["2d_cnn"].settings
    assert plan.configurations["2d_cnn"].settings["image_skip"] is True
    assert "image_skip" not in plan.configurations["2d_linear"].settings
    unseeing = planned(weights="own", settings={"image_skip": False}).configurations["2d_cnn"]
    assert not unseeing.settings["image_skip"]
    sam = planned(weights="official", encoder="vit_b").configurations["2d_cnn"]
    assert plan.configurations["2d_cnn"].input_size < sam.input_size
    for kept in ({"encoder": "frozen"}, {"cache": True}):
        row = planned(weights="own", settings=kept).configurations["2d_cnn"]
        assert "encoder" not in row.settings
        assert row.forecast.cache_gb > 0
        assert row.settings["image_skip"] is True
        assert (row.settings["learning_rate"], row.settings["weight_decay"]) == (1e-3, 0.05)


def test_a_kept_small_encoder_has_the_same_rates_whatever_it_knows_and_a_large_one_its_methods():
    settings = {"encoder": "frozen", "encoder_weights": "random"}
    row = planned(encoder="vit_tiny", settings=settings).configurations["2d_cnn"]
    assert (row.settings["learning_rate"], row.settings["weight_decay"]) == (1e-3, 0.05)
    chosen = planned(encoder="vit_tiny", settings={**settings, "learning_rate": 2e-4}).configurations[
        "2d_cnn"
    ]
    assert chosen.settings["learning_rate"] == 2e-4
    assert "learning_rate" not in planned(weights="official").configurations["2d_cnn"].settings


def test_only_sams_own_encoders_are_tuned_at_a_lower_rate():
    row = planned(weights="official", settings={"encoder": "full"}).configurations["2d_cnn"]
    assert row.settings["encoder_learning_rate_factor"] == 0.1


def test_nothing_is_frozen_without_weights_unless_it_is_meant():
    for weights, settings in (("none", {"encoder": "frozen"}), ("none", {"encoder": "frozen", "views": 1})):
        with pytest.raises(SamunetError, match="encoder_weights=random"):
            planned(weights=weights, settings=settings)
    plan = planned(weights="official", settings={"encoder": "frozen"})
    assert "encoder" not in plan.configurations["2d_cnn"].settings
    plan = planned(settings={"encoder": "frozen", "encoder_weights": "random"})
    assert plan.configurations["2d_cnn"].encoder_weights == "random"


def test_an_image_skip_on_a_frozen_encoder_is_counted_and_left_to_heads_that_have_one():
    plain = planned(weights="official", encoder="vit_b")
    plan = planned(weights="official", encoder="vit_b", settings={"image_skip": True})
    for name in ("2d_cnn", "2d_autosam"):
        before, after = plain.configurations[name], plan.configurations[name]
        assert after.settings["image_skip"] is True
        assert after.forecast.parameters > before.forecast.parameters
        embedding = [2 * 256 * (c.input_size // 16) ** 2 for c in (before, after)]
        picture = 2 * 3 * after.input_size**2
        # The forecast is rounded to a hundredth of a gigabyte.
        grown = after.forecast.cache_gb / (embedding[1] + picture)
        assert grown == pytest.approx(before.forecast.cache_gb / embedding[0], rel=2e-3)
    assert "image_skip" not in plan.configurations["2d_linear"].settings


def test_cache_is_kept_in_fewer_bits_then_views_and_then_not_when_the_disk_is_short():
    rows = []
    for disk_gb in (100.0, 8.0, 3.0, 0.1):
        budget = dataclasses.replace(golden.BUDGETS["12 GB"], disk_gb=disk_gb)
        row = planned(weights="official", budget=budget, encoder="vit_b").configurations["2d_autosam"]
        assert row.forecast.cache_gb <= disk_gb
        rows.append(row)
    found = [[row.settings.get(key) for key in ("cache_storage", "views", "cache")] for row in rows]
    # What is as by default (fp16, six views, a cache) does not stand in a row.
    assert found == [[None, None, None], ["int8", None, None], ["int8", 2, None], [None, None, False]]
    told = [any("eight bits" in reason for reason in row.reasons) for row in rows]
    assert told == [False, True, True, False]


def test_a_storage_that_is_asked_for_is_kept():
    short = dataclasses.replace(golden.BUDGETS["12 GB"], disk_gb=8.0)
    chosen = planned(weights="official", budget=short, encoder="vit_b", settings={"cache_storage": "fp16"})
    row = chosen.configurations["2d_autosam"]
    assert row.settings["views"] < 6
    assert "cache_storage" not in row.settings


def test_few_slices_are_stored_in_more_views_where_it_costs_little():
    few, vit_b = dataclasses.replace(ACDC, cases=ACDC.cases[:5]), {"weights": "official", "encoder": "vit_b"}
    row, many = (planned(cases, **vit_b).configurations["2d_cnn"] for cases in (few, ACDC))
    assert (row.settings["views"], many.settings.get("views", 6)) == (24, 6)
    assert any("by heart" in reason for reason in row.reasons)
    assert not any("by heart" in reason for reason in many.reasons)
    full = dataclasses.replace(golden.BUDGETS["12 GB"], disk_gb=row.forecast.cache_gb * 5)
    assert planned(few, full, **vit_b).configurations["2d_cnn"].settings["views"] == 12
    slow = dataclasses.replace(full, disk_gb=1e3, gflops={key: v / 3000 for key, v in full.gflops.items()})
    assert planned(few, slow, **vit_b).configurations["2d_cnn"].settings.get("views", 6) <= 6
    asked = planned(few, **vit_b, settings={"views": 6}).configurations["2d_cnn"]
    assert "views" not in asked.settings
    assert not any("by heart" in reason for reason in asked.reasons)


def test_nothing_fits():
    tiny = dataclasses.replace(golden.BUDGETS["cpu"], memory_gb=0.2)
    plan = planned(budget=tiny)
    assert plan.recommended == ""
    assert "no method fits" in explain(plan)
    assert all("memory" in verdict.reasons[0] for verdict in plan.verdicts)


def test_target_spacing_of_the_user():
    plan = planned(spacing=(2.0, 2.0, 2.0))
    assert plan.data["3d"].spacing_mm == (2.0, 2.0, 2.0)
    assert plan.data["2d"].spacing_mm == (2.0, 2.0)


@pytest.mark.parametrize("across", [1.0, 2.0, 5000.0])
def test_pictures_have_no_spacing_across(across):
    plan = planned(FINGERPRINTS["Dataset005_Nuclei"], spacing=(across, 2.0, 3.0))
    assert plan.transpose_forward == (0, 1, 2)
    assert list(plan.data) == ["2d"]
    assert plan.data["2d"].spacing_mm == (2.0, 3.0)


def test_pictures_with_pixels_of_many_sizes_stay_pictures():
    """Across a picture the nominal spacing is a multiple of its pixel; nothing is resampled along it."""
    nuclei = FINGERPRINTS["Dataset005_Nuclei"]
    pixels = [(0.1, 0.12, 0.2, 0.22, 0.3)[number % 5] for number in range(len(nuclei.cases))]
    cases = tuple(
        dataclasses.replace(case, spacing_mm=(999 * pixel, pixel, pixel))
        for case, pixel in zip(nuclei.cases, pixels)
    )
    plan = planned(dataclasses.replace(nuclei, cases=cases))
    assert list(plan.data) == ["2d"]
    assert plan.data["2d"].spacing_mm == (0.2, 0.2)
    assert min(plan.data["2d"].median_shape) > 100


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("overrides", [{}, {"spacing": (0.5, 0.7, 0.6)}])
def test_one_slice_in_a_volume_file_is_a_picture_whatever_its_thickness(axis, overrides):
    """Slices thinner than their pixels are wide must not be cut into lines."""
    shape, spacing_mm = [256] * 3, [1.4] * 3
    shape[axis], spacing_mm[axis] = 1, 1.0
    cases = tuple(
        dataclasses.replace(case, shape_after_crop=tuple(shape), spacing_mm=tuple(spacing_mm))
        for case in ACDC.cases
    )
    plan = planned(dataclasses.replace(ACDC, cases=cases), **overrides)
    assert plan.transpose_forward[0] == axis
    assert min(plan.configurations["2d_unet"].patch_size) >= 256
    assert list(plan.data) == ["2d"]  # also where the spacing across would make two of one
    assert "coarsest" not in explain(plan)
    assert ("the axis of one slice comes first" in explain(plan)) == (axis > 0)


def test_memory_target_moves_the_unet_patch():
    small = planned(HEAD_NECK, unet_memory_gb=2.0).configurations["3d_unet"]
    large = planned(HEAD_NECK, unet_memory_gb=24.0).configurations["3d_unet"]
    assert small.patch_size < large.patch_size or small.batch_size < large.batch_size


def test_left_right_axis_is_not_mirrored():
    plan = planned(HEAD_NECK)
    assert plan.configurations["3d_unet"].mirror_axes == (0, 1)
    assert plan.configurations["2d_unet"].mirror_axes == (0,)
    assert any("parotid_left" in reason for reason in plan.configurations["2d_unet"].reasons)
    assert planned().configurations["3d_unet"].mirror_axes == (0, 1, 2)


def test_left_right_axis_follows_the_direction_cosines():
    turned = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # the file's y axis runs left to right
    cases = tuple(dataclasses.replace(case, direction=turned) for case in HEAD_NECK.cases)
    plan = planned(dataclasses.replace(HEAD_NECK, cases=cases))
    dropped = set(range(3)) - set(plan.configurations["3d_unet"].mirror_axes)
    assert [plan.transpose_forward[axis] for axis in dropped] == [1]


def test_display_windows():
    low, high = planned(HEAD_NECK).data["2d"].display_window[0]
    intensity = HEAD_NECK.intensity[0]
    assert low == pytest.approx((intensity.percentile_00_5 - intensity.mean) / intensity.std, abs=1e-3)
    assert high == pytest.approx((intensity.percentile_99_5 - intensity.mean) / intensity.std, abs=1e-3)
    for low, high in planned(FINGERPRINTS["Dataset005_Nuclei"]).data["2d"].display_window:
        assert -3 < low < 0 < high < 10


def test_speed_takes_the_quickest():
    plan = planned(goal="speed")
    hours = {v.method: plan.configurations[v.method].forecast.train_hours for v in plan.verdicts}
    assert hours[plan.recommended] == min(hours.values())
    with pytest.raises(SamunetError, match="accuracy"):
        planned(goal="beauty")


def reasons_of(plan, method):
    return next(" ".join(v.reasons) for v in plan.verdicts if v.method == method)


def grouped(count):
    """ACDC with its 80 cases in so many groups."""
    groups = {case.name: f"group {i % count}" for i, case in enumerate(ACDC.cases)}
    return dataclasses.replace(ACDC, groups=groups)


@pytest.mark.parametrize(
    ("fingerprint", "goal"), [(ACDC, "generalize"), (grouped(2), "accuracy"), (grouped(16), "accuracy")]
)
def test_other_sites_take_desam_with_pretrained_weights_only(fingerprint, goal):
    plan = planned(fingerprint, weights="official", goal=goal)
    told = reasons_of(plan, "2d_desam")
    assert plan.recommended == "2d_desam"
    assert ("--goal generalize" if goal == "generalize" else "declared groups") in told
    assert "DeSAM's study trains on one site" in told
    usual = planned(weights="official").recommended
    assert f"For images of the same sites alone {usual} would be recommended." in told
    scratch = planned(fingerprint, weights="none", goal=goal)
    assert scratch.recommended == planned(weights="none").recommended
    assert "its study rests on SAM's pretrained weights" in reasons_of(scratch, scratch.recommended)


def test_weights_that_the_user_passes_over_are_not_called_absent():
    for chosen in ({"encoder": "vit_tiny"}, {"settings": {"encoder_weights": "random"}}):
        plan = planned(weights="official", goal="generalize", **chosen)
        told = reasons_of(plan, plan.recommended)
        assert "this plan leaves those at hand (vit_b, vit_h, vit_l) unused" in told
        assert "none are at hand" not in told


def test_patients_are_no_sites_and_speed_is_not_overruled():
    assert planned(grouped(40), weights="official") == dataclasses.replace(
        planned(weights="official"), fingerprint_hash=grouped(40).data_hash
    )
    quick = planned(grouped(2), weights="official", goal="speed")
    assert quick.recommended == planned(weights="official", goal="speed").recommended


def test_cases_too_small_for_a_unet_are_not_planned_for_one():
    small = tuple(
        dataclasses.replace(case, shape=(6, 7, 7), shape_after_crop=(6, 7, 7), spacing_mm=(1, 1, 1))
        for case in ACDC.cases
    )
    plan = planned(dataclasses.replace(ACDC, cases=small))
    for method in ("2d_unet", "3d_unet", "3d_student"):
        assert method not in plan.configurations
        assert "a U-Net has to halve them" in reasons_of(plan, method)
    assert plan.recommended in plan.configurations


def with_groups(sizes, patients=False):
    """ACDC with so many of its 80 cases in each group, the others undeclared; all are patients, or none."""
    names = [case.name for case in ACDC.cases]
    declared = [f"site {number}" for number, size in enumerate(sizes) for _ in range(size)]
    own = {name: name for name in names} if patients else {}
    return dataclasses.replace(ACDC, groups=dict(zip(names, declared)), patients=own)


@pytest.mark.parametrize(
    ("sizes", "patients", "sites"),
    [
        ((1, 1), False, 0),  # hardly a case is declared
        ((40,), False, 0),
        ((79, 1), False, 0),  # one site, and a case
        ((30, 10, 1), False, 3),
        ((20, 21), False, 2),
        ((20, 20), False, 0),  # half of the cases
        ((2,) * 40, False, 0),  # may be patients
        ((2,) * 40, True, 40),
        ((78, 1, 1), True, 0),
    ],
)
def test_groups_that_are_sites(sizes, patients, sites):
    fingerprint = with_groups(sizes, patients)
    plan = planned(fingerprint, weights="official")
    told = reasons_of(plan, "2d_desam")
    assert (plan.recommended == "2d_desam") == (sites > 0)
    assert (f"The cases are of {sites} declared groups" in told) == (sites > 0)


def test_low_resolution_stage_is_mentioned():
    large = tuple(
        dataclasses.replace(case, shape_after_crop=(500, 512, 512), spacing_mm=(0.7, 0.7, 0.7))
        for case in ACDC.cases
    )
    chosen = planned(dataclasses.replace(ACDC, cases=large)).configurations["3d_unet"]
    assert chosen.batch_dice
    assert any("3d_lowres" in reason for reason in chosen.reasons)


def test_outside_methods_are_planned_too(tmp_path, monkeypatch):
    (tmp_path / "my_lab_method.py").write_text(
        "from samunet.planning.methods import Method, register\n"
        "from samunet.planning.methods.cnn import CnnConfig\n"
        "from samunet.planning.candidates import Candidate\n"
        "def row(context):\n"
        "    return Candidate(method='my_lab_method', configuration=None, fits=False, score=0, reasons=())\n"
        "register(Method(name='my_lab_method', dimension=2, summary='', source='', config=CnnConfig,\n"
        "    uses_encoder=True, row=row, trainer='my_lab_method:Trainer'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from samunet.planning import methods

    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    __import__("my_lab_method")
    request = PlanningRequest(budget=golden.BUDGETS["8 GB"], extra_methods=("my_lab_method",))
    assert "my_lab_method" in {v.method for v in make_plan(ACDC, request).verdicts}


@pytest.mark.parametrize("weights", golden.WEIGHTS)
def test_explanation_reads_well(weights):
    text = explain(planned(weights=weights, encoder="vit_b" if weights == "official" else None))
    assert max(map(len, text.splitlines())) <= WIDTH + 20
    assert "Recommended: 2d_unet" in text
    assert ("samunet_download_weights vit_b" in text) == (weights == "none")
