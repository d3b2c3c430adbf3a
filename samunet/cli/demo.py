"""samunet_demo: the whole way on generated data, in minutes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_device, run_command, seed_number

EXAMPLES = """\
  samunet_demo
  samunet_demo --quick --workspace /tmp/demo"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_demo",
        "Generate a labelled body phantom, plan, train 2d_cnn and 2d_unet for minutes, predict held-out "
        "cases, score them; write pictures and a one-page summary.",
        EXAMPLES,
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer cases, shorter training")
    parser.add_argument(
        "--workspace",
        type=Path,
        default=Path("samunet_demo"),
        metavar="FOLDER",
        help="where everything goes, in place of an earlier demo's (default ./samunet_demo)",
    )
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="random seed (default 0)")
    parser.add_argument("--verbose", action="store_true", help="say more")
    add_device(parser, "to train on")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_demo -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.demo.run import DemoOptions, run_demo

    print(f"Workspace: {arguments.workspace} (everything the demo makes is in there)")
    options = DemoOptions(
        workspace=arguments.workspace, quick=arguments.quick, seed=arguments.seed, device=arguments.device
    )
    print(run_demo(options).text())
    return 0
