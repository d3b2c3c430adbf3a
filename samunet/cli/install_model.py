"""samunet_install_model: check and install a model that somebody shared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, open_workspace, run_command
from samunet.cli.weights_flags import add_base_weights, base_weights

EXAMPLES = """\
  samunet_install_model liver.zip                   # into the workspace's results
  samunet_install_model liver.zip -o models/liver   # anywhere; samunet_predict -m models/liver"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_install_model",
        "Install a model that samunet_export_model wrote. The file is checked first: nothing in it is run, "
        "unpacked elsewhere, or taken when its SHA-256 is not the listed one.",
        EXAMPLES,
    )
    parser.add_argument("file", type=Path, metavar="FILE.zip", help="the shared model")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FOLDER",
        help="model folder to make (default: results/DATASET/CONFIGURATION__PLANS of the workspace)",
    )
    add_base_weights(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model or training in that place"
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_install_model -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.model_file.install import InstallRequest, install_model

    workspace = open_workspace(arguments, quiet=arguments.output is not None)
    outcome = install_model(
        InstallRequest(
            file=arguments.file,
            folder=arguments.output,
            workspace=workspace,
            weights_folder=base_weights(arguments, workspace),
            overwrite=arguments.overwrite,
        )
    )
    print(outcome.text())
    return 0
