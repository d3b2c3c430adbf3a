"""samunet_calibrate_qc: calibrate the predicted Dice of new cases on the out-of-fold cases of a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from samunet.cli.common import CommandParser, add_common, add_plan_name, fold, open_workspace, run_command
from samunet.cli.predict import add_model, model_folders
from samunet.errors import SamunetError

EXAMPLES = """\
  samunet_calibrate_qc -d 101 -c 2d_cnn              # from every validated fold
  samunet_calibrate_qc -m MODEL_FOLDER --by case     # groups are sites, not patients"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_calibrate_qc",
        "Calibrate the predicted Dice of new cases on the out-of-fold cases of a model's folds; writes "
        "qc_model.json into its folder. Training does it by itself once all folds are validated.",
        EXAMPLES,
    )
    group = parser.add_argument_group("model")
    add_model(group, several=False)
    group.add_argument(
        "-f", dest="folds", nargs="+", type=fold, metavar="FOLD", help="folds to use (default: all validated)"
    )
    add_plan_name(parser)
    parser.add_argument(
        "--by",
        choices=("group", "case"),
        default="group",
        help="what a patient is where none are declared: a declared group (default; a case where there are "
        "no groups), or always a case, as groups are sites",
    )
    parser.add_argument(
        "--coverage",
        type=_coverage,
        default=0.9,
        metavar="SHARE",
        help="share of patients for whom the lower bound shall hold (default 0.9)",
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_calibrate_qc -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.qc.model import calibrate

    folders = model_folders(arguments, open_workspace(arguments))
    if len(folders) > 1:
        raise SamunetError("Quality control is calibrated for one model at a time; name one with -c or -m.")
    folder = folders[0]
    model = calibrate(folder, arguments.folds, by_case=arguments.by == "case", coverage=arguments.coverage)
    print(model.text())
    print(f"Written: {folder / 'qc_model.json'}")
    return 0


def _coverage(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.5 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0.5 to below 1.")
    return number
