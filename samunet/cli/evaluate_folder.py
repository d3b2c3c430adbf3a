"""samunet_evaluate_folder: score predicted label maps against reference ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_workers,
    positive_float,
    run_command,
)

if TYPE_CHECKING:
    pass

EXAMPLES = """\
  samunet_evaluate_folder LABELS PREDICTIONS -d 101
  samunet_evaluate_folder LABELS PREDICTIONS -djfile dataset.json -o scores.json"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_evaluate_folder",
        "Score predicted label maps: Dice, IoU, surface Dice, HD95, ASSD, volume error; writes JSON and CSV.",
        EXAMPLES,
    )
    parser.add_argument("reference", type=Path, metavar="LABELS", help="folder with the reference label maps")
    parser.add_argument("prediction", type=Path, metavar="PREDICTIONS", help="folder with the predicted ones")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset whose labels these are")
    parser.add_argument(
        "-djfile",
        type=Path,
        metavar="FILE",
        help="its dataset.json, instead of -d (default: the one that prediction left in PREDICTIONS)",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FILE", help="default PREDICTIONS/summary.json"
    )
    parser.add_argument(
        "--chill", action="store_true", help="score the cases that are there; some may be missing"
    )
    parser.add_argument(
        "--tolerance_mm",
        type=positive_float,
        default=2.0,
        metavar="MM",
        help="tolerance of the surface Dice (default 2)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of the table")
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_evaluate_folder -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.evaluate import EvaluateOptions, evaluate

    labels, file_ending, groups = _labels(arguments)
    options = EvaluateOptions(
        reference=arguments.reference,
        prediction=arguments.prediction,
        labels=labels,
        file_ending=file_ending,
        groups=groups,
        output=arguments.output,
        tolerance_mm=arguments.tolerance_mm,
        missing_allowed=arguments.chill,
        workers=arguments.np,
    )
    evaluation, files = evaluate(options)
    if arguments.json:
        print(files[0].read_text(encoding="utf-8"), end="")
        return 0
    print(evaluation)
    print("Written: " + ", ".join(map(str, files)))
    return 0
