"""samunet_find_best_configuration: compare the trained models on out-of-fold cases and say which to use."""

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
    seed_number,
)

EXAMPLES = """\
  samunet_find_best_configuration 101                       # everything that is trained on all folds
  samunet_find_best_configuration 101 -c 2d_cnn 3d_unet
  samunet_find_best_configuration 101 -f 0 1 --no_ensembles"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_find_best_configuration",
        "Compare the trained models of a dataset, their pairs and the ensemble of all on the cases that each "
        "fold did not see; say who beats whom, whether SAM helped, and which command to predict with.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset by id (101) or name")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="NAME",
        help="models to compare, 2d_cnn or 2d_cnn__TAG (default: all that are trained and validated)",
    )
    parser.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        type=_number,
        default=[],
        metavar="FOLD",
        help="compare on these folds only (default: all)",
    )
    add_plan_name(parser)
    parser.add_argument("--splits", default="kfold", metavar="SCHEME", help="split scheme of the trainings")
    parser.add_argument(
        "--metric", choices=("Dice", "SurfaceDice"), default="Dice", help="what decides (default Dice)"
    )
    parser.add_argument(
        "--no_ensembles", "--disable_ensembling", action="store_true", help="compare single models only"
    )
    parser.add_argument(
        "--disable_postprocessing", action="store_true", help="learn no rules for postprocessing"
    )
    parser.add_argument(
        "--ignore_groups",
        action="store_true",
        help="declared groups are sites or scanners, not patients: draw patients (cases, where none are "
        "declared) in the bootstrap",
    )
    parser.add_argument("--seed", type=seed_number, metavar="N", help="of the bootstrap (default 12345)")
    add_workers(parser)
    add_common(parser)
    return parser


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a fold that holds out cases; give a number from 0."
        )
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_find_best_configuration -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.evaluation.bootstrap import SEED
    from samunet.pipeline.selection.find import SelectionOptions, find_best
    from samunet.pipeline.selection.out_of_fold import ModelsWanted
    from samunet.pipeline.selection.text import describe

    workspace = open_workspace(arguments)
    selection = find_best(
        workspace,
        SelectionOptions(
            wanted=ModelsWanted(
                dataset=workspace.dataset_name(arguments.dataset),
                configurations=tuple(arguments.configurations),
                plans=arguments.plans,
                splits=arguments.splits,
                folds=tuple(arguments.folds),
            ),
            metric=arguments.metric,
            ensembles=not arguments.no_ensembles,
            postprocessing=not arguments.disable_postprocessing,
            ignore_groups=arguments.ignore_groups,
            seed=SEED if arguments.seed is None else arguments.seed,
            workers=arguments.np,
            bar=progress_bar,
        ),
    )
    print(describe(selection))
    print(f"Written: {workspace.selection_file(selection.dataset, selection.plans)}")
    return 0
