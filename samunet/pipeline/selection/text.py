"""A selection as a page of plain text for the screen."""

from __future__ import annotations

from collections.abc import Iterator

from samunet.evaluation.bootstrap import FEWEST_UNITS
from samunet.pipeline.selection.record import Comparison, Estimate, PostprocessingStep, Selection

SHOWN_ENSEMBLES = 5
SHOWN_CLASSES = 6
WORDS = {
    "sam": "SAM's weights",
    "own weights": "own weights",
    "encoder without prior": "no SAM weights",
    "unet": "U-Net",
    "other": "",
    "ensemble": "",
}


def describe(selection: Selection) -> str:
    """The whole result: scores, comparisons, the prior, ensembles, postprocessing, commands."""
    return "\n".join(
        [
            *_heading(selection),
            "",
            *_table(selection),
            "",
            *_comparisons(selection),
            "",
            *_prior(selection),
            *_ensembles(selection),
            *_postprocessing(selection),
            *[f"Left out: {told}" for told in selection.left_out],
            "",
            *_use(selection),
        ]
    )


def _heading(selection: Selection) -> Iterator[str]:
    folds = " ".join(map(str, selection.folds))
    yield (
        f"{selection.dataset}, {selection.plans}: mean {selection.metric} of {selection.num_cases} "
        f"out-of-fold cases (folds {folds}), 95 % intervals from {selection.resamples} draws of "
        f"{selection.num_units} {selection.unit}s."
    )
    if not selection.is_decidable:
        if selection.num_counted is not None and selection.num_counted < selection.num_units:
            yield f"The references of {selection.num_counted} {selection.unit}s hold any class."
        yield (
            f"Below {FEWEST_UNITS} {selection.unit}s no test without assumptions reaches 5 %: the intervals "
            "are not reliable, and nothing is decided."
        )
        if selection.unit == "group":
            yield (
                "If groups are sites or scanners and not patients, compare cases with --ignore_groups, or "
                "declare the patients too (column `patient` of groups.csv)."
            )


def _table(selection: Selection) -> Iterator[str]:
    singles = [c for c in selection.candidates if c.kind != "ensemble"]
    width = max(len(c.name) for c in singles)
    names = list(singles[0].classes)
    names = names if len(names) <= SHOWN_CLASSES else []
    yield f"{'model':{width}}  {selection.metric:>7}  {'95 % interval':16}  {'':14}  " + "  ".join(
        f"{name[:12]:>7}" for name in names
    )
    for c in sorted(singles, key=lambda c: -c.mean.value):
        classes = "  ".join(
            f"{'-' if c.classes[n] is None else format(c.classes[n], '.4f'):>{max(7, len(n[:12]))}}"
            for n in names
        )
        left = f"{c.name:{width}}  {c.mean.value:7.4f}  {_bounds(c.mean):16}  {WORDS[c.kind]:14}"
        yield f"{left}  {classes}".rstrip()
    yield from remarks(selection)


def remarks(selection: Selection) -> Iterator[str]:
    """What a reader of the scores should know of single models."""
    yield from (f"{c.name}: {c.remark}." for c in selection.candidates if c.remark and c.kind != "ensemble")


def _comparisons(selection: Selection) -> Iterator[str]:
    singles = [c for c in selection.candidates if c.kind != "ensemble"]
    best = max(singles, key=lambda c: c.mean.value).name
    shown = [c for c in selection.comparisons if best in (c.first, c.second)]
    if not shown:
        yield "One model: there is nothing to compare it with."
        return
    number = len(selection.comparisons)
    held = f" (intervals of all {number} pairs hold at once)" if number > 1 else ""
    yield f"The best against the others{held}:"
    yield from (f"  {_comparison(c)}" for c in shown)


def _comparison(c: Comparison) -> str:
    if c.word == "beats":
        return f"{c.first} beats {c.second}: {_gain(c.difference)}"
    return f"{c.first} or {c.second}: undecided, {_gain(c.difference)}"


def _prior(selection: Selection) -> Iterator[str]:
    prior = selection.prior
    yield prior.text
    if prior.difference is not None:
        yield f"  {prior.difference_of}, whichever these are: {_gain(prior.difference)}"


def _ensembles(selection: Selection) -> Iterator[str]:
    if not selection.ensembles:
        return
    scores = {c.name: c.mean.value for c in selection.candidates}
    ordered = sorted(selection.ensembles, key=lambda e: -scores[e.name])
    shown = sum(e.is_shown for e in ordered)
    yield (
        f"Ensembles, gain over the best single model: {shown} of {len(ordered)} with an interval above zero."
        if shown
        else "Ensembles are not recommended: no gain over the best single model is shown."
    )
    for e in ordered[:SHOWN_ENSEMBLES]:
        word = "" if e.is_shown else ", worse" if e.gain.is_below_zero else ", undecided"
        yield f"  {e.name}: {scores[e.name]:.4f}, gain {_gain(e.gain)}{word}"
    if len(ordered) > SHOWN_ENSEMBLES:
        yield f"  and {len(ordered) - SHOWN_ENSEMBLES} more in selection.json"


def _postprocessing(selection: Selection) -> Iterator[str]:
    if not selection.postprocessing_steps:
        yield "Postprocessing: not learned."
        return
    accepted = [step for step in selection.postprocessing_steps if step.accepted]
    if not accepted:
        number = len(selection.postprocessing_steps)
        yield f"Postprocessing: none of {number} steps helps on patients that it was not learned on."
        return
    yield "Postprocessing, gain in Dice on patients that it was not learned on:"
    yield from (f"  {_step(step)}" for step in accepted)


def _step(step: PostprocessingStep) -> str:
    assert step.rule is not None
    return f"{step.rule.text()}: {_gain(step.gain)}"


def _use(selection: Selection) -> Iterator[str]:
    names = " + ".join(member.name for member in selection.recommended)
    open_pairs = [c for c in selection.comparisons if c.word == "undecided" and names in (c.first, c.second)]
    others = ", ".join(c.second if c.first == names else c.first for c in open_pairs)
    yield f"Use {names}{f' (the highest mean; undecided against {others})' if others else ''}:"
    yield f"  {selection.commands[0]}"
    if len(selection.commands) > 1:
        yield "which is the same as"
        yield from (f"  {command}" for command in selection.commands[1:])


def _gain(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} {_bounds(estimate, sign='+')}"


def _bounds(estimate: Estimate, sign: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return "[no interval]"
    return f"[{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
