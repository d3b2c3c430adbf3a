"""samunet_apply_postprocessing: apply learned rules to a folder of predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, add_workers, open_workspace, run_command

EXAMPLES = """\
  samunet_apply_postprocessing -i OUT -o OUT_PP -pp_file results/Dataset101_Heart/postprocessing.json"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_apply_postprocessing",
        "Apply the rules of a postprocessing.json (samunet_find_best_configuration writes it) to a folder of "
        "predicted label maps.",
        EXAMPLES,
    )
    parser.add_argument("-i", dest="input", type=Path, required=True, metavar="FOLDER", help="predictions")
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FOLDER", help="where results go"
    )
    parser.add_argument(
        "-pp_file", dest="file", type=Path, required=True, metavar="FILE", help="postprocessing.json"
    )
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_apply_postprocessing -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.inference.output_folder import check_output
    from samunet.inference.postprocessing import Postprocessing, postprocess_folder

    check_output(arguments.output, "samunet_apply_postprocessing", open_workspace(arguments, quiet=True).raw)
    postprocessing = Postprocessing.load(arguments.file)
    print(f"Rules: {postprocessing.text()}.")
    with progress_bar("Postprocessing") as progress:
        number, changed = postprocess_folder(
            arguments.input, arguments.output, postprocessing, workers=arguments.np, progress=progress
        )
    print(f"{changed} of {number} cases changed. Written: {arguments.output}")
    return 0
