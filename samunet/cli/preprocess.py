"""samunet_preprocess: preprocess the cases of a planned dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_plan_name,
    add_workers,
    open_workspace,
    run_command,
)
from samunet.cli.planning_flags import add_datasets


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_preprocess",
        "Crop, normalise and resample the cases of a planned dataset. Finished cases are kept.",
        "  samunet_preprocess -d 101 -c 3d_unet -np 2",
    )
    add_datasets(parser)
    add_plan_name(parser, "-plans_name")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        metavar="CONFIGURATION",
        help="configurations to preprocess for, such as 2d_cnn or 3d_fullres (default: all planned)",
    )
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_preprocess -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.pipeline import plan_and_preprocess as pipeline
    from samunet.pipeline.models import load_plan

    workspace = open_workspace(arguments)
    for dataset in arguments.datasets:
        name = workspace.dataset_name(dataset)
        plan = load_plan(workspace, name, arguments.plans)
        pipeline.preprocess(workspace, plan, arguments.configurations, arguments.np, progress_bar)
    return 0
