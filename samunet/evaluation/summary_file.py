"""Reading summary.json back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.scores import METRICS, Scores
from samunet.records import read_json


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is needed of a summary.json.

    Attributes:
        tolerance_mm: of the surface Dice.
        cases: case name -> class or region name -> metric -> value, NaN where it is not defined.
    """

    tolerance_mm: float
    cases: dict[str, dict[str, Scores]]


def read_summary(file: Path, labels: LabelSet) -> Summary:
    """Read a summary that `Evaluation.save` wrote.

    Raises:
        SamunetError: no such file, not one of ours, or scores of other classes than `labels` has.
    """
    content = read_json(file)
    expected = {labels.summary_key(name): name for name in labels.foreground}
    try:
        classes, per_case = dict(content["classes"]), list(content["metric_per_case"])
        if classes == expected:
            cases = {
                str(entry["case"]): {
                    name: {metric: float(entry["metrics"][key][metric]) for metric in METRICS}
                    for key, name in classes.items()
                }
                for entry in per_case
            }
            return Summary(tolerance_mm=float(content["tolerance_mm"]), cases=cases)
    except (KeyError, TypeError, ValueError) as fault:
        raise SamunetError(
            f"{file} is not a summary of samunet ({type(fault).__name__}: {fault}). Evaluate again."
        ) from fault
    told = ", ".join(map(str, classes.values()))
    raise SamunetError(f"{file} scores {told}, but the dataset has {', '.join(expected.values())}.")
