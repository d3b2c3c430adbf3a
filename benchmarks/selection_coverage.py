"""How often are the words of the selection wrong? Made-up scores whose truth is known.

For candidates that are truly equal it counts how often "the best of one kind" is called better than the best
of the other, by four ways to make the interval: the two best taken as they come; the choice repeated in every
draw; the choice made on the drawn cases and judged on those not drawn; and samunet's simultaneous intervals.

    python benchmarks/selection_coverage.py --trials 400
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from samunet.evaluation.bootstrap import Bootstrap, ScoreTable, best_against_best

KINDS = {"1 against 1": (1, 1), "4 against 2": (4, 2), "6 against 1": (6, 1)}


def made_up(rng: np.random.Generator, cases: int, candidates: int, skewed: bool) -> np.ndarray:
    """Scores (M, N) of equal candidates that share how hard a case is; skewed ones fail badly now and
    then."""
    if skewed:
        return 0.9 - 0.1 * rng.exponential(1, cases) - 0.08 * rng.exponential(1, (candidates, cases))
    return 0.8 + 0.1 * rng.normal(size=cases) + 0.08 * rng.normal(size=(candidates, cases))


def excludes_zero(values: np.ndarray) -> bool:
    low, high = np.quantile(values, (0.025, 0.975))
    return bool(low > 0 or high < 0)


def left_out(values: np.ndarray, ours: list[int], others: list[int], draws: int, seed: int) -> np.ndarray:
    """Best against best, chosen on the drawn cases, judged on the others."""
    rng, cases = np.random.default_rng(seed), values.shape[1]
    found = []
    for _ in range(draws):
        drawn = rng.integers(0, cases, cases)
        unseen = np.setdiff1d(np.arange(cases), drawn)
        if unseen.size:
            inside, outside = values[:, drawn].mean(1), values[:, unseen].mean(1)
            first, second = (max(group, key=lambda i: inside[i]) for group in (ours, others))
            found.append(outside[first] - outside[second])
    return np.array(found)


def trial(values: np.ndarray, ours: list[int], others: list[int], draws: int, seed: int) -> dict[str, bool]:
    """Which ways call a difference where there is none."""
    candidates, cases = values.shape
    table = ScoreTable(values=values[:, :, None], present=np.ones((cases, 1), bool), units=np.arange(cases))
    bootstrap = Bootstrap.draw(table, seed=seed, resamples=draws)
    pairs = list(combinations(range(candidates), 2))
    found = dict(zip(pairs, bootstrap.differences(pairs)))
    asked = [(a, b) for a in ours for b in others]
    best = best_against_best([found[pair] for pair in asked], asked, ours)
    replicates, observed = bootstrap.replicates, bootstrap.observed
    first, second = (max(group, key=lambda i: observed[i]) for group in (ours, others))
    again = replicates[:, ours].max(1) - replicates[:, others].max(1)
    return {
        "as they come": excludes_zero(replicates[:, first] - replicates[:, second]),
        "choice repeated": excludes_zero(again),
        "judged on the rest": excludes_zero(left_out(values, ours, others, draws, seed)),
        "simultaneous": bool(best.low > 0 or best.high < 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--cases", type=int, nargs="+", default=[6, 10, 20, 60])
    parser.add_argument("-o", dest="output", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    result = []
    for skewed in (False, True):
        for cases in arguments.cases:
            for name, (many, few) in KINDS.items():
                ours, others = list(range(many)), list(range(many, many + few))
                counts: dict[str, int] = {}
                for seed in range(arguments.trials):
                    values = made_up(np.random.default_rng(seed), cases, many + few, skewed)
                    for way, wrong in trial(values, ours, others, arguments.draws, seed).items():
                        counts[way] = counts.get(way, 0) + wrong
                row = {way: round(count / arguments.trials, 3) for way, count in counts.items()}
                result.append({"cases": cases, "skewed": skewed, "candidates": name, **row})
                print(result[-1], flush=True)
    if arguments.output:
        record = {"trials": arguments.trials, "draws": arguments.draws, "wrong": result}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
