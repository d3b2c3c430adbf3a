"""samunet_ensemble: average the saved probabilities of several prediction folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import (
    EXIT_MISTAKE,
    CommandParser,
    add_common,
    add_probabilities,
    open_workspace,
    positive_int,
    run_command,
)
from samunet.errors import SamunetError
from samunet.workspace import DATASET_FILE

EXAMPLES = """\
  samunet_ensemble -i OUT_2D OUT_3D -o OUT
  samunet_ensemble -i OUT_2D OUT_3D OUT_SAM -o OUT --save_probabilities uint8"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_ensemble",
        "Average the probabilities of several prediction folders (predicted with --save_probabilities) and "
        "write the segmentations they decide. Models at hand need no folders: samunet_predict -c A B.",
        EXAMPLES,
    )
    parser.add_argument(
        "-i", dest="inputs", nargs="+", type=Path, required=True, metavar="FOLDER", help="prediction folders"
    )
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FOLDER", help="where results go"
    )
    parser.add_argument(
        "-djfile",
        type=Path,
        metavar="FILE",
        help="dataset.json with the labels (default: the one that prediction left in the first folder)",
    )
    add_probabilities(parser, "--save_probabilities", "--save_npz", kept="averaged probabilities")
    parser.add_argument(
        "-np",
        type=positive_int,
        default=2,
        metavar="N",
        help="cases averaged at once, in threads (default 2)",
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_ensemble -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.evaluation.declared import Declared
    from samunet.inference.ensemble import EnsembleOptions, ensemble_folders
    from samunet.inference.output_folder import check_output
    from samunet.records import write_json

    check_output(arguments.output, "samunet_ensemble", open_workspace(arguments, quiet=True).raw)
    file = arguments.djfile or arguments.inputs[0] / DATASET_FILE
    if not file.is_file():
        raise SamunetError(
            f"There is no {file}, so the labels are not known: name a dataset.json with -djfile."
        )
    declared = Declared.read(file)
    outcome = ensemble_folders(
        arguments.inputs,
        arguments.output,
        EnsembleOptions(
            labels=declared.labels,
            file_ending=declared.file_ending,
            save_probabilities=arguments.storage or False,
            workers=arguments.np,
        ),
    )
    write_json(arguments.output / DATASET_FILE, declared.content)
    print(outcome.text(), file=sys.stdout if outcome.complete else sys.stderr)
    return 0 if outcome.complete else EXIT_MISTAKE
