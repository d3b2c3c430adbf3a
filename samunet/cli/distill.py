"""samunet_distill: train a student on the labels and on a trained teacher's outputs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_device,
    add_plan_name,
    add_sample_workers,
    add_settings,
    checkpoint_name,
    fold,
    open_workspace,
    positive_float,
    run_command,
    share,
)
from samunet.cli.train import add_run, add_schedule, tell_folds, train_options
from samunet.cli.weights_flags import add_base_weights, base_weights
from samunet.errors import SamunetError

EXAMPLES = """\
  samunet_distill 101 3d_adapter 3d_student 0
  samunet_distill 101 3d_adapter 3d_student 0 1 2 3 4
  samunet_distill 101 3d_adapter 3d_student 0 --lambda 1 --tag teacher_only
  samunet_distill 101 3d_unet 3d_student all --teacher_folds 0 1 2 3 4
  samunet_distill 101 3d_adapter 3d_student 0 --unlabelled MORE_IMAGES"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_distill",
        "Train folds of a small network on the labels and on the outputs of a trained one, which is run once "
        "over the cases; after each fold its validation cases are predicted and scored.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset by id (101) or name")
    parser.add_argument("teacher", help="trained configuration to learn from, such as 3d_adapter")
    parser.add_argument("student", help="configuration to train, such as 3d_student")
    parser.add_argument(
        "fold",
        type=fold,
        nargs="+",
        help="fold 0..4 (taught by the teacher's same fold), or all; several are trained one after the other",
    )
    _add_teacher(parser)
    add_plan_name(parser)
    add_device(parser, "for teacher and student")
    add_settings(add_schedule(parser))
    add_run(parser)
    add_sample_workers(parser)
    add_common(parser)
    return parser


def _add_teacher(parser: CommandParser) -> None:
    group = parser.add_argument_group("teacher (recorded in the run folder)")
    group.add_argument(
        "--lambda",
        dest="weight",
        type=share,
        metavar="SHARE",
        help="share of the teacher in the loss, 0 to 1 (default 0.5)",
    )
    group.add_argument(
        "--target",
        choices=("probabilities", "logits"),
        help="what is compared with the teacher (default probabilities)",
    )
    group.add_argument(
        "--teacher_folds",
        nargs="+",
        type=fold,
        metavar="FOLD",
        help="for fold all: folds of the teacher to average (default its fold all)",
    )
    group.add_argument("--teacher_tag", metavar="NAME", help="--tag of the teacher's training")
    group.add_argument("--teacher_plans", metavar="NAME", help="the teacher's plan (default that of -p)")
    group.add_argument(
        "--teacher_checkpoint",
        type=checkpoint_name,
        metavar="NAME",
        help="checkpoint_final.pth (default), checkpoint_best.pth or checkpoint_latest.pth",
    )
    group.add_argument(
        "-step_size",
        type=positive_float,
        metavar="S",
        help="the teacher's tile step over tile size (default 0.5)",
    )
    group.add_argument(
        "--disable_tta",
        action="store_true",
        help="the teacher does not mirror: faster, a little less accurate",
    )
    add_base_weights(group)
    group.add_argument(
        "--unlabelled",
        type=Path,
        metavar="FOLDER",
        help="more images, named as in imagesTr, to learn from the teacher alone",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_distill -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.distill import TeacherOptions, distill

    if arguments.step_size is not None and arguments.step_size > 1:
        raise SamunetError(f"-step_size {arguments.step_size:g}: give a share of the tile, at most 1.")
    workspace = open_workspace(arguments)
    folds = arguments.fold
    options = train_options(arguments, workspace, arguments.student, folds[0])
    asked = TeacherOptions(
        configuration=arguments.teacher,
        plans=arguments.teacher_plans,
        tag=arguments.teacher_tag,
        folds=None if arguments.teacher_folds is None else tuple(arguments.teacher_folds),
        checkpoint=arguments.teacher_checkpoint,
        weight=arguments.weight,
        target=arguments.target,
        step_size=arguments.step_size,
        mirroring=False if arguments.disable_tta else None,
        unlabelled=arguments.unlabelled,
        weights=base_weights(arguments, workspace),
    )
    return tell_folds(distill(workspace, options, folds, asked))
