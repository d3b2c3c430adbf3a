"""samunet_shift_suite: how the scores of trained models fall when images change as between scanners."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_device,
    add_plan_name,
    fold,
    open_workspace,
    positive_int,
    run_command,
    seed_number,
)
from samunet.cli.weights_flags import add_base_weights, base_weights

KINDS = ("bias_field", "gamma", "noise", "blur", "resolution", "ghosting")
EXAMPLES = """\
  samunet_shift_suite -d 108 -c 2d_desam 2d_unet
  samunet_shift_suite -d 108 -c 2d_desam 2d_unet --tag single_source-RUNMC --disable_tta
  samunet_shift_suite -d 108 -c 2d_unet -f all -i IMAGES -l LABELS        # held-out cases
  samunet_shift_suite -d 108 -c 2d_unet --shifts noise blur --severities 1 3 5 --limit 5"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_shift_suite",
        "Change the validation cases of trained models step by step (bias field, gamma, noise, blur, "
        "resolution, ghosting), predict and score them, and draw how each method's score falls. What is "
        "finished is kept: start again to go on.",
        EXAMPLES,
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="dataset by id or name")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        required=True,
        metavar="CONFIGURATION",
        help="trained methods, side by side; 2d_unet__TAG is the training with that --tag",
    )
    add_plan_name(parser)
    parser.add_argument("--tag", metavar="NAME", help="tag, where the trainings had --tag or --splits")
    parser.add_argument(
        "-f", dest="fold", type=fold, metavar="FOLD", help="fold (default: the first trained one)"
    )
    _add_cases(parser)
    _add_conditions(parser)
    parser.add_argument("--disable_tta", action="store_true", help="do not mirror: several times faster")
    add_base_weights(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace results that were made otherwise")
    add_device(parser, "to predict on")
    parser.add_argument(
        "-np", type=positive_int, default=1, metavar="N", help="worker processes that score (default 1)"
    )
    add_common(parser)
    return parser


def _add_cases(parser: CommandParser) -> None:
    parser.add_argument(
        "-i",
        dest="images",
        type=Path,
        metavar="FOLDER",
        help="images of held-out cases, named as in imagesTr (default: the fold's validation cases)",
    )
    parser.add_argument("-l", dest="labels", type=Path, metavar="FOLDER", help="labels of the cases of -i")
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="at most N cases, evenly spread over the list"
    )


def _add_conditions(parser: CommandParser) -> None:
    parser.add_argument(
        "--shifts", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of change (default: all)"
    )
    parser.add_argument(
        "--severities",
        nargs="+",
        type=int,
        choices=range(1, 6),
        default=[1, 2, 3, 4, 5],
        help="1 (slight) to 5 (severe) (default: all)",
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, metavar="N", help="of fields and noise (default 0)"
    )
    parser.add_argument(
        "--metric",
        choices=("Dice", "IoU", "SurfaceDice", "HD95", "ASSD"),
        default="Dice",
        help="shown in table and curves (default Dice)",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FOLDER", help="default results/DATASET/shift_suite[-TAG]"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_shift_suite -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.shift_suite import files
    from samunet.pipeline.shift_suite.run import SuiteRequest, run_suite

    workspace = open_workspace(arguments)
    dataset = workspace.dataset_name(arguments.dataset)
    output = arguments.output or workspace.shift_suite_folder(dataset, arguments.tag)
    request = SuiteRequest(
        dataset=dataset,
        configurations=tuple(dict.fromkeys(arguments.configurations)),
        plans=arguments.plans,
        tag=arguments.tag,
        fold=arguments.fold,
        kinds=tuple(dict.fromkeys(arguments.shifts)),
        severities=tuple(sorted(set(arguments.severities))),
        seed=arguments.seed,
        images=arguments.images,
        labels=arguments.labels,
        limit=arguments.limit,
        output=output,
        device=arguments.device,
        weights_folder=base_weights(arguments, workspace),
        mirroring=not arguments.disable_tta,
        overwrite=arguments.overwrite,
        workers=arguments.np,
    )
    result = run_suite(workspace, request)
    curves, images = f"curves_{arguments.metric}.png", f"images_{result.cases[0].name}.png"
    files.save_csv(result, output / "shifts.csv")
    files.save_json(result, output / "shifts.json")
    files.draw_curves(result, arguments.metric, output / curves)
    files.draw_images(result, output / images)
    print(files.describe(result, arguments.metric))
    print(f"Written: {output / 'shifts.csv'}, shifts.json, {curves}, {images}")
    return 0
