"""What is said of SAM's prior is true of the models that are named."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from samunet.evaluation.bootstrap import ScoreTable
from samunet.pipeline.selection.out_of_fold import OutOfFold
from samunet.pipeline.selection.record import Member
from samunet.pipeline.selection.verdicts import Judgement, judge

CASES = 20
STEADY, WILD = 0.01, 0.15
"""How much a model's gain differs from case to case."""


def candidate(name: str) -> OutOfFold:
    member = Member(
        configuration=name, plans="samunetPlans", tag=None, folds=(0,), checkpoint="checkpoint_final.pth"
    )
    return OutOfFold(
        name=name,
        kind="unet" if name.endswith("unet") else "sam",
        members=(member,),
        predictions={},
        scores={},
        references={},
        sources={},
    )


def judged(gains: Mapping[str, tuple[float, float]]) -> Judgement:
    """Models whose Dice differs from a common one by this mean, exactly, and this scatter."""
    rng = np.random.default_rng(1)
    common, values = rng.uniform(0.6, 0.7, CASES), []
    for mean, scatter in gains.values():
        noise = rng.normal(0, 1, CASES)
        values.append(common + mean + scatter * (noise - noise.mean()) / noise.std())
    table = ScoreTable(
        values=np.array(values)[..., None], present=np.ones((CASES, 1), bool), units=np.arange(CASES)
    )
    return judge([candidate(name) for name in gains], table, ["organ"])


def words(found: Judgement) -> dict[frozenset[str], str]:
    return {frozenset((c.first, c.second)): c.word for c in found.comparisons}


def test_the_one_that_beats_the_unets_is_named_though_another_has_a_higher_mean() -> None:
    found = judged({"2d_cnn": (0.05, WILD), "2d_linear": (0.03, STEADY), "3d_unet": (0.0, 0.0)})
    assert words(found)[frozenset(("2d_linear", "3d_unet"))] == "beats"
    assert words(found)[frozenset(("2d_cnn", "3d_unet"))] == "undecided"
    assert (found.prior.word, found.prior.sam, found.prior.unet) == ("helps", "2d_linear", "3d_unet")
    assert found.prior.text == (
        "SAM helps here: 2d_linear beats every U-Net; 2d_cnn has a higher mean, but is not shown to."
    )
    assert found.prior.difference_of == "best SAM model - best U-Net"


def test_the_unet_that_beats_the_others_is_named_though_another_has_a_higher_mean() -> None:
    found = judged({"2d_cnn": (0.0, 0.0), "2d_unet": (0.03, STEADY), "3d_unet": (0.05, WILD)})
    assert words(found)[frozenset(("2d_unet", "2d_cnn"))] == "beats"
    assert words(found)[frozenset(("3d_unet", "2d_cnn"))] == "undecided"
    assert (found.prior.word, found.prior.sam, found.prior.unet) == ("does not help", "2d_cnn", "2d_unet")
    assert found.prior.text == (
        "SAM does not help here: 2d_unet beats every model with it; 3d_unet has a higher mean, but is not "
        "shown to."
    )


def test_of_several_that_beat_the_unets_the_one_with_the_highest_mean_is_named() -> None:
    found = judged({"2d_cnn": (0.1, 0.05), "2d_linear": (0.08, STEADY), "3d_unet": (0.0, 0.0)})
    assert found.prior.text == "SAM helps here: 2d_cnn beats every U-Net."


@pytest.mark.parametrize("turned", [False, True], ids=["sam leads", "unet leads"])
def test_undecided_names_two_that_are_undecided(turned: bool) -> None:
    """The leader beats the best of the other kind, but not one that scatters widely."""
    leader, steady, wild = (
        ("2d_cnn", "2d_unet", "3d_unet") if not turned else ("2d_unet", "2d_cnn", "2d_linear")
    )
    found = judged({leader: (0.05, STEADY), steady: (0.02, STEADY), wild: (0.01, WILD)})
    assert words(found)[frozenset((leader, steady))] == "beats"
    assert words(found)[frozenset((leader, wild))] == "undecided"
    assert found.prior.word == "undecided"
    assert {found.prior.sam, found.prior.unet} == {leader, wild}
    assert "are too close for these cases" in found.prior.text
