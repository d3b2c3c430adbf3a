"""Postprocessing is learned only where it helps on patients that it was not learned on.

For every step (components of a part, holes of a part) a rule is chosen on four fifths of the patients and
judged on the fifth left out, five times round. The step is accepted where the interval of the gain so found
lies above zero and no class is hurt on average; the rule that is kept is then chosen on all patients. Dice is
what counts, whatever the models are compared by.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from samunet.data.labels import LabelSet
from samunet.data.readers import read_header
from samunet.data.workers import map_in_workers, worker_count
from samunet.evaluation.bootstrap import FEWEST_UNITS, Bootstrap, ScoreTable
from samunet.evaluation.case_scores import Pair, pair_geometry
from samunet.evaluation.folder import BYTES_PER_VOXEL
from samunet.inference.postprocessing import Rule, part_indices, voxel_mm3
from samunet.pipeline.selection.component_counts import RuleScores, score_rules
from samunet.pipeline.selection.record import Estimate, PostprocessingStep
from samunet.pipeline.selection.verdicts import Units
from samunet.progress import Progress

logger = logging.getLogger(__name__)

NUM_PARTS = 5
SMALLEST_VOXELS, LARGEST_VOXELS = 2, 100_000
"""Minimum sizes that are tried, in voxels of the case with the smallest ones."""
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What is tried together: the gentlest rule first."""

    target: str | None
    kind: Literal["components", "holes"]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Dice of all cases.

    Attributes:
        before: (N, K); `after` (R, N, K) for the rules of all steps, `present` (N, K).
    """

    before: np.ndarray
    after: dict[Rule, np.ndarray]
    present: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Rules in their order, and every step with its gain."""

    rules: tuple[Rule, ...]
    steps: tuple[PostprocessingStep, ...]


def learn_postprocessing(
    pairs: Sequence[Pair],
    labels: LabelSet,
    units: Units,
    *,
    seed: int,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Learned:
    """Find the rules that help.

    Args:
        pairs: reference and out-of-fold prediction of every case.
        labels: of the dataset.
        units: of the cases, in the order of the pairs; with too few that hold any class nothing is learned.
        seed: of the parts and of the bootstrap.
        workers: processes.
        progress: called with (cases done, all cases) in every round.
    """
    if not units.are_enough:
        return Learned(rules=(), steps=())
    grids = [
        pair_geometry(pair, *(read_header(file, is_label=True).geometry for file in pair)) for pair in pairs
    ]
    steps = _steps(labels, min(map(voxel_mm3, grids)))
    number = worker_count(workers, BYTES_PER_VOXEL * max(int(np.prod(g.shape)) for g in grids), len(pairs))
    settled: tuple[Rule, ...] = ()
    told: list[PostprocessingStep] = []
    while steps:
        tried = [rule for step in steps for rule in step.rules]
        scored = map_in_workers(
            partial(score_rules, labels=labels, settled=settled, tried=tried),
            pairs,
            number,
            name=lambda pair: pair[1].name,
            progress=progress,
        )
        measured = _measured(scored, tried)
        if _num_holders(measured, units) < FEWEST_UNITS:
            return Learned(rules=(), steps=())
        judged = _judge(steps, measured, units, seed)
        accepted = _together(steps, [step.accepted for step in judged], labels, judged)
        if not accepted:
            return Learned(rules=settled, steps=(*told, *judged))
        told += [judged[i] for i in accepted]
        settled += tuple(rule for i in accepted if (rule := judged[i].rule) is not None)
        steps = [step for i, step in enumerate(steps) if i not in accepted]
    return Learned(rules=settled, steps=tuple(told))


def _steps(labels: LabelSet, voxel: float) -> list[_Step]:
    """All steps: components of the whole foreground, then components and holes of each class or region."""
    names: list[str | None] = [name for name in labels.foreground if part_indices(labels, name)]
    parts = [None, *names] if len(labels.values) > 2 else names
    sizes = _minimum_sizes(voxel)
    steps = []
    for name in parts:
        removing = [Rule(kind="minimum_size", target=name, minimum_mm3=size) for size in sizes]
        removing.append(Rule(kind="largest_component", target=name))
        steps.append(_Step(target=name, kind="components", rules=tuple(removing)))
        if name is not None:
            filling = (Rule(kind="fill_holes", target=name),)
            steps.append(_Step(target=name, kind="holes", rules=filling))
    return steps


def _minimum_sizes(voxel: float) -> list[float]:
    """1, 2, 5, 10 ... mm³ within the range that is tried: round numbers that no label has a say in."""
    first = int(np.floor(np.log10(voxel * SMALLEST_VOXELS)))
    last = int(np.ceil(np.log10(voxel * LARGEST_VOXELS)))
    sizes = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 2, 5)]
    return [size for size in sizes if SMALLEST_VOXELS * voxel <= size <= LARGEST_VOXELS * voxel]


def _measured(scored: Sequence[RuleScores], tried: Sequence[Rule]) -> _Measured:
    after = np.stack([case.after for case in scored], axis=1)
    return _Measured(
        before=np.stack([case.before for case in scored]),
        after=dict(zip(tried, after)),
        present=np.stack([case.present for case in scored]),
    )


def _num_holders(measured: _Measured, units: Units) -> int:
    """Units whose references hold any class, as the models are compared by."""
    values = measured.before[None]
    return ScoreTable(values=values, present=measured.present, units=units.of_case).num_holders


def _judge(steps: Sequence[_Step], measured: _Measured, units: Units, seed: int) -> list[PostprocessingStep]:
    """Gain of each step on left-out patients; the intervals hold for all steps at once."""
    parts = _parts(units, seed)
    crossed = [_cross_fit(step, measured, parts) for step in steps]
    table = ScoreTable(
        values=np.stack([measured.before, *crossed]), present=measured.present, units=units.of_case
    )
    gains = Bootstrap.draw(table, seed=seed).differences([(i + 1, 0) for i in range(len(steps))])
    classes = table.class_means()[0]
    judged = []
    for number, (step, gain) in enumerate(zip(steps, gains), start=1):
        rule = _best_rule(step, measured, np.ones(len(measured.before), bool))
        estimate = Estimate.of(gain)
        hurts = bool(np.any(classes[number] < classes[0] - ROUNDING))
        judged.append(
            PostprocessingStep(
                target=step.target,
                kind=step.kind,
                rule=rule,
                gain=estimate,
                accepted=rule is not None and estimate.is_above_zero and not hurts,
            )
        )
    return judged


def _parts(units: Units, seed: int) -> np.ndarray:
    """Part of each case; the cases of a unit share one."""
    number = min(NUM_PARTS, units.number)
    part_of_unit = np.random.default_rng(seed).permutation(units.number) % number
    return np.asarray(part_of_unit[units.of_case])


def _cross_fit(step: _Step, measured: _Measured, parts: np.ndarray) -> np.ndarray:
    """(N, K) Dice of each case under the rule that the other parts chose."""
    result = measured.before.copy()
    for part in range(parts.max() + 1):
        rule = _best_rule(step, measured, parts != part)
        if rule is not None:
            result[parts == part] = measured.after[rule][parts == part]
    return result


def _best_rule(step: _Step, measured: _Measured, chosen: np.ndarray) -> Rule | None:
    """The rule with the highest mean on the chosen cases that hurts no class; the gentlest of equals."""
    table = ScoreTable(
        values=np.stack([measured.before, *(measured.after[rule] for rule in step.rules)])[:, chosen],
        present=measured.present[chosen],
        units=np.arange(int(chosen.sum())),
    )
    classes, means = table.class_means()[0], table.means()[0]
    harmless = ~np.any(classes < classes[0] - ROUNDING, axis=1) & (means > means[0] + ROUNDING)
    if not harmless.any():
        return None
    best = int(np.argmax(np.where(harmless, means, -np.inf).round(9)))
    return step.rules[best - 1]


def _together(
    steps: Sequence[_Step], accepted: Sequence[bool], labels: LabelSet, judged: Sequence[PostprocessingStep]
) -> list[int]:
    """Steps that can be settled at once; the others are measured again after these.

    Steps of different classes do not touch each other; those of the whole foreground, of regions, and the two
    of one class do, so the one with the largest gain goes first.
    """
    able = sorted((i for i, is_good in enumerate(accepted) if is_good), key=lambda i: -judged[i].gain.value)
    if not able:
        return []
    if labels.has_regions or any(steps[i].target is None for i in able):
        return able[:1]
    taken: dict[str | None, int] = {}
    for i in able:
        taken.setdefault(steps[i].target, i)
    return sorted(taken.values())
