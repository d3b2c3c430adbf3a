"""samunet_train: train folds of one configuration, then predict and score their validation cases."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from samunet.cli.common import (
    EXIT_INTERRUPTED,
    CommandParser,
    add_common,
    add_device,
    add_overrides,
    add_plan_name,
    add_probabilities,
    add_sample_workers,
    checkpoint_name,
    fold,
    open_workspace,
    parse_settings,
    positive_float,
    positive_int,
    run_command,
    seed_number,
)
from samunet.cli.weights_flags import chosen_weights
from samunet.errors import SamunetError
from samunet.workspace import FINAL

if TYPE_CHECKING:
    from samunet.pipeline.train import TrainOptions, TrainOutcome
    from samunet.workspace import Workspace

EXAMPLES = """\
  samunet_train 101 auto 0                       # the plan's recommendation
  samunet_train 101 2d_cnn all --time_budget 30
  samunet_train 101 2d_unet 0 --c                # continue; nothing where it is finished
  samunet_train 101 2d_cnn 0 1 2 3 4             # one after the other; --c skips those that are finished
  samunet_train 101 2d_autosam 0 --set learning_rate=1e-4 --tag low_rate
  samunet_train 108 2d_desam 0 --splits single_source:RUNMC  # its tag: single_source-RUNMC"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_train",
        "Train folds of one configuration; after each one its validation cases are predicted and scored.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset by id (101) or name")
    parser.add_argument(
        "configuration",
        help="method, such as 2d_cnn, 2d_autosam, 2d_linear, 2d_unet (2d), 3d_unet (3d_fullres); or auto",
    )
    parser.add_argument(
        "fold",
        type=fold,
        nargs="+",
        help="fold 0..4, or all to train on every case; several are trained one after the other",
    )
    parser.add_argument(
        "-tr", dest="method", metavar="METHOD", help="another method on this configuration's data"
    )
    add_plan_name(parser)
    add_device(parser, "to train on")
    add_overrides(add_schedule(parser))
    add_run(parser)
    add_sample_workers(parser)
    add_common(parser)
    return parser


def add_schedule(parser: CommandParser) -> argparse._ArgumentGroup:
    """Add --epochs, --iterations, --time_budget and --seed; returns their group for more settings."""
    group = parser.add_argument_group("settings (recorded in the run folder)")
    group.add_argument("--epochs", type=positive_int, metavar="N", help="length of the schedule")
    group.add_argument("--iterations", type=positive_int, metavar="N", help="training steps an epoch")
    group.add_argument(
        "--time_budget",
        type=positive_float,
        metavar="MINUTES",
        help="fit the schedule into this time, for each fold (samunet_run_all: each fold of each method), "
        "caches included, validation excluded; without it a fold may take up to the plan's hours, 24 unless "
        "planned otherwise",
    )
    group.add_argument("--seed", type=seed_number, metavar="N", help="random seed (default 0)")
    return group


def add_run(parser: CommandParser) -> None:
    """Add what decides on the run folder and its validation."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--tag",
        metavar="NAME",
        help="keep this run apart from others of the same configuration (with --splits the scheme's name "
        "unless one is given)",
    )
    group.add_argument(
        "--c",
        dest="resume",
        action="store_true",
        help="do what is left: continue an interrupted training, validate one that lacks it, pass over what "
        "is finished, begin what was never started (as the other folds, where there are some)",
    )
    group.add_argument("--val", action="store_true", help="only predict and score the validation cases")
    group.add_argument(
        "-chk",
        dest="checkpoint",
        type=checkpoint_name,
        default=FINAL,
        metavar="NAME",
        help="checkpoint that --val predicts with (default checkpoint_final.pth)",
    )
    add_probabilities(group, "--npz", kept="probabilities of the validation cases")
    group.add_argument(
        "--overwrite", action="store_true", help="replace the run that is there, a finished one too"
    )
    group.add_argument(
        "--splits",
        metavar="SCHEME",
        help="how to split: kfold (default: nnU-Net's five folds), group_kfold, patient_kfold, "
        "leave_one_group_out, "
        "single_source (train on one group, validate on the others) or single_source:GROUP",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_train -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.train_folds import train_folds

    workspace = open_workspace(arguments)
    chosen = {
        "method": arguments.method,
        "encoder": arguments.encoder,
        "weights": chosen_weights(arguments, workspace),
    }
    folds = arguments.fold
    options = train_options(arguments, workspace, arguments.configuration, folds[0], **chosen)
    return tell_folds(train_folds(workspace, options, folds))


def tell_folds(outcomes: Iterable[TrainOutcome]) -> int:
    """Print what became of each fold as it ends; returns the command's exit code."""
    for outcome in outcomes:
        print(outcome.text())
        if outcome.interrupted:
            return EXIT_INTERRUPTED
    return 0


def train_options(
    arguments: argparse.Namespace, workspace: Workspace, configuration: str, fold: int | str, **chosen: Any
) -> TrainOptions:
    """The flags that every command which trains has, as options of the training.

    Args:
        arguments: as parsed.
        workspace: of the dataset.
        configuration / fold: what is trained.
        chosen: options that only this command has.

    Raises:
        SamunetError: flags that contradict each other, or an unknown dataset.
    """
    from samunet.pipeline.train import TrainOptions

    check_run_flags(arguments)
    options = TrainOptions(
        dataset=workspace.dataset_name(arguments.dataset),
        configuration=configuration,
        fold=fold,
        plans=arguments.plans,
        device=arguments.device,
        settings=settings_of(arguments),
        time_budget_minutes=arguments.time_budget,
        seed=arguments.seed,
        tag=arguments.tag,
        resume=arguments.resume,
        only_validate=arguments.val,
        checkpoint=arguments.checkpoint,
        save_probabilities=arguments.storage or False,
        overwrite=arguments.overwrite,
        splits=arguments.splits,
        workers=arguments.np,
        **chosen,
    )
    if options.run_tag != options.tag:
        told = "Because of --splits the run is kept apart; predict with it by --tag %s."
        logging.getLogger(__name__).info(told, options.run_tag)
    return options


def check_run_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if arguments.val and arguments.resume:
        raise SamunetError("--val and --c exclude each other: --val trains nothing.")
    for flag, given in (("--c", arguments.resume), ("--val", arguments.val)):
        if given and arguments.overwrite:
            raise SamunetError(f"{flag} and --overwrite exclude each other: keep the run, or replace it.")
    if arguments.checkpoint != FINAL and not arguments.val:
        raise SamunetError("-chk chooses what --val predicts with; without --val it has no meaning here.")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """--set with --epochs and --iterations, which are settings too."""
    settings = parse_settings(arguments.settings)
    for name in ("epochs", "iterations"):
        value = getattr(arguments, name)
        if value is None:
            continue
        if name in settings:
            raise SamunetError(f"--{name} and --set {name}=... say the same; keep one.")
        settings[name] = value
    return settings
