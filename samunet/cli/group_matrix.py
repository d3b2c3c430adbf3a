"""samunet_group_matrix: scores of trainings on one group, tested on every other, method beside method."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, add_plan_name, open_workspace, run_command

EXAMPLES = """\
  samunet_group_matrix -d 108
  samunet_group_matrix -d 108 -c 2d_desam 2d_unet --metric HD95
  samunet_group_matrix -d 108 --tag seed0 seed1 seed2"""
METRIC_NAMES = ("Dice", "IoU", "SurfaceDice", "HD95", "ASSD", "VolumeError_ml", "VolumeError_percent")


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_group_matrix",
        "Collect the validation scores of trainings on a single group (site, scanner): source -> target, as "
        "CSV, JSON and a picture. What is missing is named with the command that makes it (samunet_train "
        "with --splits single_source:GROUP).",
        EXAMPLES,
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="dataset by id or name")
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="CONFIGURATION",
        help="methods side by side (default: all that were trained on a single group)",
    )
    add_plan_name(parser)
    parser.add_argument(
        "--tag",
        dest="tags",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tags of the trainings, where they had --tag; runs of one source are averaged, such as seeds "
        "(default: the tags that --splits single_source gives by itself)",
    )
    parser.add_argument(
        "--metric", choices=METRIC_NAMES, default="Dice", help="shown in table and picture (default Dice)"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FOLDER", help="default results/DATASET/group_matrix"
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_group_matrix -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.group_matrix import files
    from samunet.pipeline.group_matrix.collect import collect_matrix
    from samunet.pipeline.group_matrix.differences import differences_of
    from samunet.pipeline.group_matrix.runs import MatrixRequest

    workspace = open_workspace(arguments)
    dataset = workspace.dataset_name(arguments.dataset)
    request = MatrixRequest(
        dataset=dataset,
        configurations=tuple(arguments.configurations),
        plans=arguments.plans,
        tags=tuple(arguments.tags),
    )
    matrix = collect_matrix(workspace, request)
    differences = differences_of(matrix)
    output = arguments.output or workspace.group_matrix_folder(dataset)
    files.save_csv(matrix, output / "matrix.csv")
    files.save_json(matrix, differences, output / "matrix.json")
    files.draw(matrix, arguments.metric, output / f"matrix_{arguments.metric}.png")
    print(files.describe(matrix, differences, arguments.metric))
    print(f"Written: {output / 'matrix.csv'}, matrix.json and matrix_{arguments.metric}.png")
    return 0
