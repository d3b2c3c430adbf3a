"""What `generalization_runs.py` prints of its results: one table a task and target, differences in pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from real_runs import interval, seed_differences
from subsets import patient_of

from samunet.evaluation.bootstrap import FEWEST_UNITS
from samunet.networks.sam.variants import get_variant
from samunet.planning.methods import get_method

REFERENCE = "desam_grid 9"
"""The row that all others are compared with."""

Seeds = dict[int, dict[str, Any]]
"""Seed -> scores of one row."""


def rows_of(steps: dict[str, Any]) -> dict[str, dict[str, Seeds]]:
    """`task: target, augmentation, minutes` -> `arm prediction` -> seeds: scores and the training's facts."""
    tables: dict[str, dict[str, Seeds]] = {}
    for step, scores in steps.items():
        if step.endswith(" scores"):
            training, _, place = step.removesuffix(" scores").partition(" on ")
            task, arm, augmentation, seed, minutes = training.split(" ")
            target, *name = place.split(" ")
            table = tables.setdefault(f"{task}: {target}, augmentation {augmentation}, {minutes}", {})
            seeds = table.setdefault(" ".join([arm, *name]), {})
            seeds[int(seed.removeprefix("seed"))] = {**scores, "facts": steps[f"{training} facts"]}
    return tables


def report(steps: dict[str, Any]) -> None:
    """For each task and target: a row an arm and grid, and how far each is from points on a grid of 9."""
    for title, rows in sorted(rows_of(steps).items()):
        patients = {
            patient_of(case) for seeds in rows.values() for run in seeds.values() for case in run["cases"]
        }
        few = ": too few, intervals are too narrow" if len(patients) < FEWEST_UNITS else ""
        print(f"\n{title} ({len(patients)} patients{few})")
        ranked = sorted(rows.items(), key=lambda row: -_mean_dice(row[1].values()))
        for name, seeds in ranked:
            print(f"  {name:20} {_row(list(seeds.values()))}")
        others = {name: seeds for name, seeds in ranked if name != REFERENCE}
        for name, found in seed_differences(rows.get(REFERENCE, {}), others).items():
            print(
                f"    {REFERENCE} - {name}: {found.mean:+.1f} points [{found.low:+.1f}, {found.high:+.1f}] "
                f"(seeds {', '.join(f'{points:+.1f}' for points in found.each)})"
            )
    print("\nIntervals draw patients, not seeds; those of the differences under a title hold all at once.")


def _row(seeds: list[dict[str, Any]]) -> str:
    """Mean over the seeds, interval over patients, the seeds; the same masks by the paper's protocol; how
    many steps the budget had, and of what."""
    each = " ".join(f"{scores['dice']:.3f}" for scores in seeds)
    plain = _with_interval(_mean_dice(seeds), [scores["cases"] for scores in seeds])
    protocol = [scores["protocol"] for scores in seeds]
    by_paper = _with_interval(_mean_dice(protocol), [scores["cases"] for scores in protocol])
    return f"{plain} ({each}); scored as the paper does {by_paper}; {_length(seeds)}; {_encoder(seeds[0])}"


def _with_interval(mean: float, cases: list[dict[str, Any]]) -> str:
    low, high = interval(*cases)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _length(seeds: list[dict[str, Any]]) -> str:
    """Steps of a training; of each, should seeds differ (as of results made on budgets of their own)."""
    steps = [sum(p["epochs"] * p["iterations"] for p in scores["facts"]["phases"]) for scores in seeds]
    return f"{', '.join(map(str, dict.fromkeys(steps)))} steps"


def _encoder(scores: dict[str, Any]) -> str:
    """What was trained: encoder, what the head sees, batch, patch."""
    used = scores["facts"]["configuration"]
    batch = f"batch {used['batch_size']}"
    if not used["encoder"]:
        return f"{batch}, patch {' x '.join(map(str, used['patch_size']))}"
    trained = "trained too" if used["settings"].get("encoder") == "full" else "kept"
    config = get_method(used["method"]).config(**used["settings"])
    beside = ", sees the picture" if config.sees_picture(get_variant(used["encoder"])) else ""
    encoder = f"{used['encoder']} {used['encoder_weights']} at {used['input_size']} px, {trained}"
    return f"{encoder}{beside}, {batch}"


def _mean_dice(seeds: Iterable[dict[str, Any]]) -> float:
    return float(np.mean([scores["dice"] for scores in seeds]))
