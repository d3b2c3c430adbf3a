"""samunet_download_weights: fetch official SAM encoder weights, checked by SHA-256."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, open_workspace, run_command
from samunet.errors import SamunetError
from samunet.progress import Progress

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
        "-w",
        dest="weights",
        type=Path,
        metavar="FOLDER",
        help="where to put it (default: $SAMUNET_WEIGHTS, else the workspace's weights)",
    )
    parser.add_argument(
        "--url", metavar="URL", help="a mirror of the file; its SHA-256 is checked all the same"
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
    if arguments.url is not None and len(arguments.variants) > 1:
        raise SamunetError("--url names one file: give one VARIANT with it.")
    folder = arguments.weights or workspace.weights
    for variant in arguments.variants:
        with progress_bar(f"{variant} (MB)") as bar:
            file = download_weights(variant, folder, url=arguments.url, progress=_in_megabytes(bar))
        print(f"{variant}: {file}")
    return 0


def _in_megabytes(bar: Progress) -> Progress:
    return lambda done, total: bar(done // 1_000_000, total // 1_000_000)
