"""From scores to words: who beats whom, whether SAM's prior helped, whether an ensemble is worth it.

Two questions are asked, and each has its own 95 %: how the single models stand to each other (all pairs; the
verdict on the prior is read from the same intervals), and what the ensembles gain over the single models.
Within a question all intervals hold at once, so that picking the best afterwards makes no word wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

import numpy as np

from samunet.data.groups import Origins, Unit, unit_numbers
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import (
    FEWEST_UNITS,
    SEED,
    Bootstrap,
    Interval,
    ScoreTable,
    best_against_best,
    score_array,
)
from samunet.evaluation.scores import Scores
from samunet.networks.sam.variants import Prior
from samunet.pipeline.predicted_as import chosen_on
from samunet.pipeline.selection.out_of_fold import OutOfFold
from samunet.pipeline.selection.record import (
    CandidateScore,
    Comparison,
    EnsembleGain,
    Estimate,
    Metric,
    PriorVerdict,
    PriorWord,
)

Pair = tuple[int, int]
MODELS: dict[Prior, str] = {
    "sam": "SAM model",
    "own weights": "model on an encoder with own weights",
    "encoder without prior": "model on an encoder without weights",
}
"""Those whose best is compared with the best U-Net."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """What the bootstrap draws: cases, or those of a patient or group together.

    Attributes:
        of_case: number of the unit of each case.
        kind: what a unit is.
    """

    of_case: np.ndarray
    kind: Unit

    @classmethod
    def of(cls, cases: Sequence[str], origins: Origins) -> Units:
        """Patients, else groups where they are declared; a case without one stands for itself."""
        return cls(of_case=unit_numbers(cases, origins), kind=origins.unit)

    @property
    def number(self) -> int:
        return int(self.of_case.max()) + 1

    @property
    def are_enough(self) -> bool:
        return self.number >= FEWEST_UNITS


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The words and the numbers behind them.

    Attributes:
        num_counted: units whose references hold any class; too few of them decide nothing.
        chosen: index of the candidate to use.
    """

    num_counted: int
    candidates: tuple[CandidateScore, ...]
    comparisons: tuple[Comparison, ...]
    prior: PriorVerdict
    ensembles: tuple[EnsembleGain, ...]
    chosen: int


def score_table(
    scores: Sequence[Mapping[str, Mapping[str, Scores]]],
    cases: Sequence[str],
    labels: LabelSet,
    metric: Metric,
    units: Units,
) -> ScoreTable:
    """Scores of candidates (each case -> class -> metric) as arrays.

    Raises:
        SamunetError: no reference holds any class.
    """
    names = list(labels.foreground)
    values = np.array([score_array((one[case] for case in cases), names, metric) for one in scores])
    present = score_array((scores[0][case] for case in cases), names, "n_ref") > 0
    if not present.any():
        raise SamunetError(
            "No reference of the out-of-fold cases holds any class, so there is nothing to compare by."
        )
    return ScoreTable(values=values, present=present, units=units.of_case)


def judge(
    candidates: Sequence[OutOfFold], table: ScoreTable, names: Sequence[str], seed: int = SEED
) -> Judgement:
    """Compare candidates, single models before ensembles.

    With too few patients that hold any class every word is `undecided`.

    Args:
        candidates: in the order of the table.
        table: their scores.
        names: classes or regions, in the order of the table.
        seed: of the bootstrap.
    """
    bootstrap = Bootstrap.draw(table, seed=seed)
    enough = bootstrap.num_units >= FEWEST_UNITS
    singles = [i for i, c in enumerate(candidates) if c.kind != "ensemble"]
    pairs = list(combinations(singles, 2))
    differences = dict(zip(pairs, bootstrap.differences(pairs)))
    gains = _ensemble_gains(candidates, bootstrap, singles, enough)
    return Judgement(
        num_counted=bootstrap.num_units,
        candidates=tuple(_scores(candidates, table, bootstrap, names)),
        comparisons=tuple(
            _comparison(candidates, pair, difference, enough) for pair, difference in differences.items()
        ),
        prior=_prior(candidates, bootstrap, differences, enough),
        ensembles=tuple(gains.values()),
        chosen=_choose(candidates, bootstrap, singles, gains),
    )


def _scores(
    candidates: Sequence[OutOfFold], table: ScoreTable, bootstrap: Bootstrap, names: Sequence[str]
) -> list[CandidateScore]:
    class_means = table.class_means()[0]
    return [
        CandidateScore(
            name=candidate.name,
            kind=candidate.kind,
            members=tuple(member.name for member in candidate.members),
            mean=Estimate.of(bootstrap.mean(i)),
            classes={n: None if np.isnan(m) else float(m) for n, m in zip(names, class_means[i])},
            remark=next(
                filter(None, (chosen_on(m.checkpoint, "these cases") for m in candidate.members)), ""
            ),
        )
        for i, candidate in enumerate(candidates)
    ]


def _comparison(
    candidates: Sequence[OutOfFold], pair: Pair, difference: Interval, enough: bool
) -> Comparison:
    first, second = pair
    if difference.value < 0:
        first, second, difference = second, first, _negative(difference)
    estimate = Estimate.of(difference)
    beats = enough and estimate.is_above_zero
    return Comparison(
        first=candidates[first].name,
        second=candidates[second].name,
        difference=estimate,
        word="beats" if beats else "undecided",
    )


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


def _prior(
    candidates: Sequence[OutOfFold], bootstrap: Bootstrap, differences: Mapping[Pair, Interval], enough: bool
) -> PriorVerdict:
    """Best model on SAM's encoder against the best U-Net; with SAM's weights where there are any."""
    kinds = [candidate.kind for candidate in candidates]
    encoder: Prior = next((kind for kind in get_args(Prior) if kind in kinds), "encoder without prior")
    ours = [i for i, kind in enumerate(kinds) if kind == encoder]
    unets = [i for i, kind in enumerate(kinds) if kind == "unet"]
    if not ours or not unets:
        return PriorVerdict(
            word="not compared",
            encoder=encoder,
            sam=None,
            unet=None,
            difference=None,
            text=f"Whether SAM helps is not known: {_lacking(bool(ours))}",
        )
    ordered = {
        (a, b): differences[a, b] if (a, b) in differences else _negative(differences[b, a])
        for a in ours
        for b in unets
    }
    found = Estimate.of(best_against_best(list(ordered.values()), list(ordered), ours))
    word: PriorWord = "undecided"
    if enough:
        word = "helps" if found.is_above_zero else "does not help" if found.is_below_zero else "undecided"
    named = _named((ours, unets), _beaten(ordered) if enough else {}, bootstrap.observed)
    best = [max(group, key=lambda i: bootstrap.observed[i]) for group in (ours, unets)]
    sam, unet = (candidates[i].name for i in named)
    higher = "" if word == "undecided" else next((candidates[b].name for b in best if b not in named), "")
    return PriorVerdict(
        word=word,
        encoder=encoder,
        sam=sam,
        unet=unet,
        difference=found,
        difference_of=f"best {MODELS[encoder]} - best U-Net",
        text=_prior_text(word if enough else "too few", (sam, unet), encoder, higher),
    )


def _beaten(differences: Mapping[Pair, Interval]) -> dict[int, set[int]]:
    """Model -> those of the other kind that it is shown to beat."""
    beaten: dict[int, set[int]] = {}
    for (first, second), difference in differences.items():
        if difference.low > 0:
            beaten.setdefault(first, set()).add(second)
        if difference.high < 0:
            beaten.setdefault(second, set()).add(first)
    return beaten


def _named(
    kinds: tuple[Sequence[int], Sequence[int]], beaten: Mapping[int, set[int]], observed: np.ndarray
) -> tuple[int, int]:
    """Of each kind the model that the sentence may name.

    One is shown to beat all of the other kind, whose best stands beside it. Where none is, they are two that
    are not told apart: a model with a higher mean than all of the other kind is beaten by none of them. Of
    several the highest mean is taken.
    """

    def best(group: Sequence[int]) -> int:
        return max(group, key=lambda i: observed[i])

    sides = (kinds, kinds[::-1])
    winners = [i for own, other in sides for i in own if beaten.get(i, set()).issuperset(other)]
    leader = best(winners or [*kinds[0], *kinds[1]])
    other = kinds[1] if leader in kinds[0] else kinds[0]
    partner = best([i for i in other if i not in beaten.get(leader, set())] or other)
    return (leader, partner) if other is kinds[1] else (partner, leader)


def _lacking(has_sam: bool) -> str:
    if has_sam:
        return "no U-Net is among the models compared (2d_unet, 3d_unet)."
    return "no method on SAM's encoder is among the models compared."


def _prior_text(word: str, named: tuple[str, str], encoder: Prior, higher: str) -> str:
    """The sentence on the prior.

    Args:
        word: of the verdict, or `too few`.
        named: model on SAM's encoder and U-Net of which it may be said.
        encoder: kind of the models on SAM's encoder.
        higher: model of the winning kind with a higher mean than the named one, if there is any.
    """
    sam, unet = named
    what, lack = {
        "sam": ("SAM", ""),
        "own weights": (
            "an encoder with weights of its own",
            " It says nothing of SAM's prior, for the weights are not SAM's.",
        ),
        "encoder without prior": (
            "SAM's encoder without pretrained weights",
            " It says nothing of SAM's prior, for no weights of it were used.",
        ),
    }[encoder]
    use = f"{unet} beats every model with it" if higher else f"use {unet}"
    text = {
        "helps": f"{what} helps here: {sam} beats every U-Net",
        "does not help": f"{what} does not help here: {use}",
        "too few": f"undecided whether {what} helps here: too few cases tell {sam} and {unet} apart",
        "undecided": f"undecided whether {what} helps here: {sam} and {unet} are too close for these cases",
    }[word]
    but = f"; {higher} has a higher mean, but is not shown to" if higher else ""
    return f"{text[0].upper()}{text[1:]}{but}.{lack}"


def _ensemble_gains(
    candidates: Sequence[OutOfFold], bootstrap: Bootstrap, singles: Sequence[int], enough: bool
) -> dict[int, EnsembleGain]:
    """Gain of each ensemble over the best single model, whichever of them it is."""
    ensembles = [i for i in range(len(candidates)) if i not in singles]
    pairs = [(e, s) for e in ensembles for s in singles]
    found = dict(zip(pairs, bootstrap.differences(pairs)))
    gains = {}
    for e in ensembles:
        own = [(e, s) for s in singles]
        gain = Estimate.of(best_against_best([found[pair] for pair in own], own, [e]))
        gains[e] = EnsembleGain(name=candidates[e].name, gain=gain, is_shown=enough and gain.is_above_zero)
    return gains


def _choose(
    candidates: Sequence[OutOfFold],
    bootstrap: Bootstrap,
    singles: Sequence[int],
    gains: Mapping[int, EnsembleGain],
) -> int:
    """The single model with the highest mean, unless an ensemble's gain is shown.

    Of several such ensembles the best of two; the larger one, which costs more, only where it is shown to be
    better than that.
    """
    shown = [i for i, gain in gains.items() if gain.is_shown]
    if not shown:
        return max(singles, key=lambda i: bootstrap.observed[i])
    fewest = min(len(candidates[i].members) for i in shown)
    small = [i for i in shown if len(candidates[i].members) == fewest]
    best = max(small, key=lambda i: bootstrap.observed[i])
    large = [i for i in shown if i not in small]
    better = [
        i
        for i, d in zip(large, bootstrap.differences([(i, best) for i in large]))
        if Estimate.of(d).is_above_zero
    ]
    return max(better, key=lambda i: bootstrap.observed[i]) if better else best
