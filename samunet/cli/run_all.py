"""samunet_run_all: from a raw dataset to a verdict and a report, in one command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from samunet.cli.common import (
    EXIT_INTERRUPTED,
    CommandParser,
    add_common,
    add_workers,
    fold,
    open_workspace,
    run_command,
)
from samunet.cli.planning_flags import add_planning_flags, plan_options
from samunet.cli.train import add_schedule, settings_of

EXAMPLES = """\
  samunet_run_all 101 --hours 1 --time_budget 60        # the recommended method and its rival: an hour
                                                        # for each fold of each, validation not counted
  samunet_run_all 101 -c 2d_cnn 2d_unet 3d_unet -f 0 1"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_run_all",
        "Plan, preprocess, train methods fold by fold, compare them, write the report. The same command goes "
        "on where it was stopped.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset by id (101) or name")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        metavar="CONFIGURATION",
        help="methods to train (default: the plan's recommendation, and the method that it has to beat)",
    )
    parser.add_argument(
        "-f", dest="folds", nargs="+", type=fold, metavar="FOLD", help="folds (default: all of the split)"
    )
    parser.add_argument("--tag", metavar="NAME", help="keep this run apart from others")
    parser.add_argument(
        "--no_ensembles",
        action="store_true",
        help="keep no class probabilities of the validation cases (2 bytes a voxel and class, for every "
        "method) and compare single models only",
    )
    parser.add_argument(
        "--splits",
        metavar="SCHEME",
        help="kfold, group_kfold, patient_kfold or leave_one_group_out (default: kfold; with --goal "
        "generalize and a group for every case one of those by group)",
    )
    add_schedule(parser)
    add_planning_flags(parser)
    add_workers(parser, ", also of each training's samples (12 at most)")
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_run_all -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.pipeline.run_all.run import RunAllOptions, run_all

    workspace = open_workspace(arguments)
    options = RunAllOptions(
        dataset=workspace.dataset_name(arguments.dataset),
        configurations=None if arguments.configurations is None else tuple(arguments.configurations),
        folds=None if arguments.folds is None else tuple(arguments.folds),
        planning=replace(plan_options(arguments, workspace), settings={}),  # they are the trainings'
        settings=settings_of(arguments),
        time_budget_minutes=arguments.time_budget,
        device=arguments.device,
        seed=arguments.seed,
        tag=arguments.tag,
        splits=arguments.splits,
        workers=arguments.np,
        ensembles=not arguments.no_ensembles,
    )
    outcome = run_all(workspace, options, progress_bar)
    print(outcome.text())
    return EXIT_INTERRUPTED if outcome.interrupted else 0
