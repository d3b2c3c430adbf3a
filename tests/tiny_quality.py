"""A tiny fingerprint, and features of cases that lie inside its envelope unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tiny_runs import CLASSES

from samunet.inference.case_features import CaseFeatures, ClassFeatures, InputFacts
from samunet.inference.pass_statistics import PassFigures
from samunet.planning.fingerprint import CaseFingerprint, ChannelStatistics, Fingerprint

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
PASSES = PassFigures(soft_dice=0.9, entropy=0.1, mirror_disagreement=0.05, intensity=(0.5,))


def channel(mean: float = 100.0, spread: float = 20.0) -> ChannelStatistics:
    return ChannelStatistics(
        mean=mean, std=spread, percentile_00_5=mean - 2 * spread, percentile_99_5=mean + 3 * spread
    )


def trained(number: int) -> CaseFingerprint:
    return CaseFingerprint(
        name=f"case_{number}",
        content=str(number),
        shape=(20, 100, 100),
        shape_after_crop=(20, 90 + number, 80),
        spacing_mm=(5.0, 0.8 + 0.05 * number, 1.0),
        direction=IDENTITY,
        is_2d=False,
        relative_size=0.9,
        channels=(channel(100 + 2 * number, 20 + number),),
        channels_in_mask=(channel(),),
        class_voxels={"organ": 2500 * (number + 1), "lesion": 500 * (number % 2)},
        class_components={"organ": 1, "lesion": 1},
    )


FINGERPRINT = Fingerprint(
    dataset="Dataset900_Tiny",
    data_hash="0",
    stamp="0",
    file_ending=".nii.gz",
    channel_names=("CT",),
    labels=CLASSES,
    cases=tuple(map(trained, range(5))),
    intensity=(),
    laterality_pairs=(),
    groups={},
    natural_image=False,
)


def facts(**changes: Any) -> InputFacts:
    usual = InputFacts(
        shape=(20, 100, 100),
        shape_after_crop=(20, 90, 80),
        spacing_mm=(5.0, 0.9, 1.0),
        direction=IDENTITY,
        is_2d=False,
        channels=(channel(104, 22),),
    )
    return replace(usual, **changes)


def case(name: str = "new", organ_ml: float = 20.0, lesion_ml: float = 2.0, **changes: Any) -> CaseFeatures:
    volumes = {"organ": organ_ml, "lesion": lesion_ml}
    classes = {
        name: ClassFeatures(volume_ml=ml, components=1, largest_share=1.0, passes=PASSES)
        for name, ml in volumes.items()
    }
    return CaseFeatures(case=name, arguments_hash="0", input=facts(**changes), classes=classes)
