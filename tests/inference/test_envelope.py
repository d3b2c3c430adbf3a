"""Flags of cases unlike the training cases, each with its figures; features measured on arrays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_quality import FINGERPRINT, IDENTITY, PASSES, case, channel, facts, trained
from tiny_runs import CLASSES, REGIONS, make_configuration, make_plan

from samunet.data.cases import Case, FilesStamp
from samunet.data.geometry import Geometry
from samunet.inference.case_features import (
    CaseFeatures,
    FeatureWriter,
    class_features,
    component_sizes,
    even_step,
    input_facts,
)
from samunet.inference.envelope import Envelope
from samunet.inference.finished import features_file
from samunet.inference.pass_statistics import PassFigures
from samunet.planning.case_measurement import CaseArrays, measure_arrays
from samunet.planning.fingerprint import ChannelStatistics
from samunet.planning.fingerprint_envelope import envelope_of, orientation
from samunet.planning.plan import Normalization
from samunet.preprocessing.case import preprocess_case
from samunet.records import read_record


def told(features: CaseFeatures, kind: str = "ct") -> dict[str, str]:
    reasons: dict[str, str] = {}
    for flag in Envelope.of(FINGERPRINT, (kind,)).flags(features):  # type: ignore[arg-type]
        reasons[flag.topic] = f"{reasons.get(flag.topic, '')} {flag.reason}"
    return reasons


def test_a_usual_case_has_no_flags() -> None:
    assert told(case()) == {}
    for number in range(5):  # nor has any training case
        own = trained(number)
        same = facts(shape_after_crop=own.shape_after_crop, spacing_mm=own.spacing_mm, channels=own.channels)
        assert told(replace(case(), input=same)) == {}


@pytest.mark.parametrize(
    ("changes", "topic", "words"),
    [
        (
            {"spacing_mm": (1.0, 0.9, 1.0), "shape_after_crop": (90, 90, 80)},
            "spacing",
            "spacing z 1 mm; training had 5 mm",
        ),
        ({"spacing_mm": (5.0, 1.3, 1.0)}, "spacing", "spacing y 1.3 mm; training had 0.8 to 1 mm"),
        ({"shape_after_crop": (200, 90, 80)}, "extent", "1000 mm long along z; training had 100 mm"),
        (
            {"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)},
            "orientation",
            "RAS (x, y, z); training had LPS",
        ),
        ({"is_2d": True}, "dimension", "the image is a plane; training had volumes"),
        ({"channels": (channel(1000, 22),)}, "intensity", "CT: mean 1000; training had 100 to 108"),
        ({"channels": (channel(100, 0),)}, "intensity", "CT: all intensities are the same"),
        ({"organ_ml": 0.0}, "class", "no organ was found; 100% of the training cases have it"),
        ({"organ_ml": 300.0}, "volume", "organ has 300 ml; training had 10 to 62.5 ml"),
    ],
)
def test_what_lies_outside_is_said(changes: dict[str, Any], topic: str, words: str) -> None:
    flags = told(case(**changes))
    assert list(flags) == [topic]
    assert words in flags[topic]


def test_a_class_that_is_often_absent_may_be_absent() -> None:
    assert told(case(lesion_ml=0.0)) == {}


def test_scale_does_not_matter_where_each_case_is_normalised_alone() -> None:
    scaled = case(channels=(channel(104e3, 22e3),))
    assert "intensity" in told(scaled, "ct")
    assert told(scaled, "zscore") == {}
    burnt = replace(channel(104, 22), percentile_99_5=5000.0)
    assert "SD from the mean" in told(case(channels=(burnt,)), "zscore")["intensity"]


def test_distance_leaves_the_case_itself_out() -> None:
    envelope = Envelope.of(FINGERPRINT, ("ct",))
    edge = case("case_4", channels=trained(4).channels)
    twin = replace(edge, case="twin")
    # Mean 108 among 100 to 106 (5 / 2.582 standard deviations), 0.5th percentile 60 as all, 99.5th 180 among
    # 160 to 175 (12.5 / 6.455).
    assert envelope.distance(edge) == pytest.approx(np.sqrt((3.75 + 0 + 3.75) / 3))
    # The same with itself among them: 4 / 3.162 and 10 / 7.906.
    assert envelope.distance(twin) == pytest.approx(np.sqrt((1.6 + 0 + 1.6) / 3))
    assert envelope.distance(case(channels=(channel(1e6, 1),))) == 10
    few = replace(FINGERPRINT, cases=FINGERPRINT.cases[:2])
    assert Envelope.of(few, ("ct",)).distance(case()) is None


def test_the_ranges_alone_judge_a_new_case_alike() -> None:
    """A model that was installed knows no single case."""
    for kind in ("ct", "zscore"):
        whole = Envelope.of(FINGERPRINT, (kind,))  # type: ignore[arg-type]
        ranges = Envelope(envelope_of(FINGERPRINT), (kind,))  # type: ignore[arg-type]
        for new in (case(), case(channels=(channel(1000, 22),)), case(organ_ml=0.0), case(is_2d=True)):
            assert ranges.flags(new) == whole.flags(new)
            assert ranges.distance(new) == whole.distance(new)


BURNT = replace(channel(104, 22), percentile_99_5=5000.0)


@pytest.mark.parametrize(
    ("kind", "own", "squares"),
    [
        ("ct", channel(104, 22), (0, 0, 0)),
        ("ct", channel(110, 25), (3.6, 0, 3.6)),  # 110 and 185 against 104 (SD 3.162) and 170 (7.906)
        ("ct", channel(107, 22), (0.9, 100, 0.144)),  # 63 where all have 60: the farthest that counts
        ("zscore", channel(107, 22), (0, 0)),  # 2 SD below and 3 SD above the mean, as all
        ("zscore", BURNT, (0, 100)),
    ],
)
def test_distance_is_the_root_mean_square_of_z_scores(
    kind: Normalization, own: ChannelStatistics, squares: tuple[float, ...]
) -> None:
    """Of mean, 0.5th and 99.5th percentile, or of the percentiles alone; single cases need not be known."""
    new, expected = case(channels=(own,)), np.sqrt(np.mean(squares))
    for envelope in (Envelope.of(FINGERPRINT, (kind,)), Envelope(envelope_of(FINGERPRINT), (kind,))):
        assert envelope.distance(new) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_orientation_codes() -> None:
    assert orientation(IDENTITY) == "LPS"
    assert orientation((0, 0, -1, 1, 0, 0, 0, 1, 0)) == "PSR"


@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1)])
def test_facts_agree_with_the_fingerprint(forward: tuple[int, int, int]) -> None:
    """The same measures as of training cases, whatever axis the plan puts first."""
    rng = np.random.default_rng(0)
    image = np.zeros((2, 9, 12, 15), np.float32)
    image[:, 1:8, 2:11, 4:] = rng.normal(100, 20, (2, 7, 9, 11))
    geometry = Geometry(shape=(9, 12, 15), spacing_mm=(3.0, 1.0, 1.5))
    backward = tuple(int(i) for i in np.argsort(forward))
    plan = replace(
        make_plan(make_configuration("3d_unet")), transpose_forward=forward, transpose_backward=backward
    )
    record = preprocess_case(image, None, geometry, plan, plan.data["3d"]).record
    own = input_facts(image, record, plan)
    label = np.zeros(geometry.shape, np.int16)
    arrays = CaseArrays(name="a", content="", image=image, indices=label, geometry=geometry)
    measured = measure_arrays(arrays, CLASSES, 10).fingerprint
    assert own.shape_after_crop == measured.shape_after_crop == (7, 9, 11)
    for one, other in zip(own.channels, measured.channels):
        assert one.mean == pytest.approx(other.mean, rel=1e-5)
        assert one.percentile_99_5 == pytest.approx(other.percentile_99_5, rel=1e-5)


def test_shape_features() -> None:
    segmentation = np.zeros((4, 6, 6), np.uint8)
    segmentation[0, 0, 0] = 2
    segmentation[1, 1, 1] = 2  # touches by a corner
    segmentation[3, 4:, 3:] = 1
    assert sorted(component_sizes(segmentation > 0)) == [2, 6]
    geometry = Geometry(shape=(4, 6, 6), spacing_mm=(5.0, 2.0, 1.0))
    found = class_features(segmentation, geometry, CLASSES, dict.fromkeys(("organ", "lesion"), PASSES))
    assert found["organ"].volume_ml == pytest.approx(0.06)
    assert found["lesion"].components == 1
    regions = class_features(segmentation, geometry, REGIONS, dict.fromkeys(("whole", "core"), PASSES))
    assert regions["whole"].volume_ml == pytest.approx(0.08)
    assert regions["whole"].largest_share == 0.75
    empty = class_features(
        np.zeros_like(segmentation), geometry, CLASSES, dict.fromkeys(("organ", "lesion"), PASSES)
    )
    assert (empty["organ"].components, empty["organ"].largest_share) == (0, None)
    plane = Geometry(shape=(1, 6, 6), spacing_mm=(999.0, 2.0, 1.0), is_2d=True)
    flat = class_features(segmentation[3:], plane, CLASSES, dict.fromkeys(("organ", "lesion"), PASSES))
    assert flat["organ"].volume_ml == pytest.approx(0.012)


def test_the_file_of_a_case_is_a_strict_record(tmp_path: Path) -> None:
    plan = make_plan(make_configuration("2d_unet"))
    image = np.random.default_rng(0).normal(100, 20, (2, 4, 20, 18)).astype(np.float32)
    geometry = Geometry(shape=(4, 20, 18), spacing_mm=(3.0, 1.0, 1.0))
    record = preprocess_case(image, None, geometry, plan, plan.data["2d"]).record
    writer = FeatureWriter(plan, tmp_path, {"models": [{"model": "anywhere", "folds": [0]}]})
    images = (tmp_path / "a_0000.nii.gz",)
    images[0].write_bytes(b"voxels")
    writer.measure(Case("a", images), image, record)
    nothing = PassFigures(soft_dice=None, entropy=None, mirror_disagreement=None, intensity=None)
    writer.write("a", np.zeros(geometry.shape, np.uint8), geometry, {"organ": PASSES, "lesion": nothing})
    file = features_file(tmp_path, "a")
    assert "NaN" not in file.read_text()
    features = read_record(CaseFeatures, file)
    assert features.input.spacing_mm == (3.0, 1.0, 1.0)
    assert features.source == FilesStamp.of(Case("a", images))
    content = json.loads(file.read_text())
    content["surprise"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="surprise"):
        read_record(CaseFeatures, file)
    elsewhere = FeatureWriter(plan, tmp_path, {"models": [{"model": "elsewhere", "folds": [0]}]})
    assert elsewhere.arguments_hash == writer.arguments_hash
    assert (
        FeatureWriter(plan, tmp_path, {"models": [{"model": "anywhere", "folds": [1]}]}).arguments_hash
        != writer.arguments_hash
    )


@pytest.mark.parametrize("planes", [485, 488, 600])
def test_intensities_are_drawn_from_all_rows_and_columns(planes: int) -> None:
    step = even_step((planes, 512, 512), 1_000_000)
    drawn = np.arange(0, planes * 512 * 512, step)
    assert 0.95e6 < len(drawn) <= 1_000_000
    for places in (drawn % 512, drawn // 512 % 512):
        counts = np.bincount(places, minlength=512)
        assert counts.min() > 0.95 * counts.mean()
    assert even_step((4, 100, 100), 1_000_000) == 1
