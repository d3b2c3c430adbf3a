"""samunet_info: what is installed, where data lie, which weights are there, which methods exist."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from samunet.cli.common import CommandParser, add_common, open_workspace, run_command


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_info",
        "What is installed, where data lie, which plans, models and weights are there, which methods exist.",
        "  samunet_info --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_info -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.info import collect, describe

    facts = collect(open_workspace(arguments, quiet=True))
    print(json.dumps(facts, indent=1) if arguments.json else describe(facts))
    return 0
