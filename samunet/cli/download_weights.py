"""samunet_download_weights: fetch official SAM encoder weights, checked by SHA-256."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, open_workspace, run_command

EXAMPLES = """\
  samunet_download_weights vit_b
  samunet_download_weights vit_b -w /shared/sam_weights"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_download_weights",
        "Fetch official SAM weights. An interrupted download is continued; the file's SHA-256 is checked. "
        "Without a network it says which file to put where.",
        EXAMPLES,
    )
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="vit_b, vit_l or vit_h")
    parser.add_argument(
        "-w", dest="weights", type=Path, metavar="FOLDER", help="where to put it (default: the workspace's)"
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_download_weights -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.networks.sam.download import download_weights

    workspace = open_workspace(arguments)
    folder = arguments.weights or workspace.weights
    for variant in arguments.variants:
        with progress_bar(f"{variant} (MB)") as progress:
            file = download_weights(variant, folder, progress)
        print(f"{variant}: {file}")
    return 0
