"""samunet_accumulate_crossval_results: gather the folds' validation predictions and score them as one set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_plan_name,
    add_workers,
    open_workspace,
    run_command,
)

EXAMPLES = """\
  samunet_accumulate_crossval_results -d 101 -c 2d_cnn
  samunet_accumulate_crossval_results -d 101 -c 2d_cnn --tag low_rate -o SCORES"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_accumulate_crossval_results",
        "Gather the validation predictions of all trained folds, so that every case is there once, predicted "
        "by a network that has not seen it, and score them together.",
        EXAMPLES,
    )
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument(
        "dataset", nargs="?", default=argparse.SUPPRESS, metavar="DATASET", help="dataset by id or name"
    )
    named.add_argument("-d", dest="dataset", metavar="DATASET", help="the same")
    parser.add_argument(
        "-c",
        dest="configuration",
        default="auto",
        metavar="CONFIGURATION",
        help="configuration (default: auto)",
    )
    parser.add_argument("-tr", dest="method", metavar="METHOD", help="method, where training had -tr")
    parser.add_argument("--tag", metavar="NAME", help="tag, where training had --tag")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FOLDER",
        help="default: crossval_results_folds_0_1_2_3_4 in the model folder",
    )
    add_plan_name(parser)
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_accumulate_crossval_results -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.pipeline.crossval import accumulate_crossval
    from samunet.pipeline.models import ModelRequest, find_model

    workspace = open_workspace(arguments)
    request = ModelRequest(
        dataset=workspace.dataset_name(arguments.dataset),
        configuration=arguments.configuration,
        plans=arguments.plans,
        method=arguments.method,
        tag=arguments.tag,
    )
    folder = find_model(workspace, request)
    with progress_bar("Scoring") as progress:
        result = accumulate_crossval(
            workspace, folder, arguments.output, workers=arguments.np, progress=progress
        )
    print(result.text())
    return 0
