"""samunet_report: everything that is trained for a dataset, in one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from samunet.cli.common import CommandParser, add_common, open_workspace, run_command

EXAMPLES = """\
  samunet_report 101
  samunet_report 101 -o liver.html --no_pictures        # no patient's picture in it"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_report",
        "Write one HTML file about everything that is trained for a dataset: verdict, scores with intervals, "
        "pictures, curves, plan, hardware. It needs no network.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset by id (101) or name")
    parser.add_argument("-p", dest="plans", metavar="PLANS", help="only models of this plan (default: all)")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help="the file (default: report.html in the dataset's results)",
    )
    parser.add_argument(
        "--no_pictures", action="store_true", help="leave out the cases' pictures, which show patients"
    )
    parser.add_argument(
        "--ignore_groups",
        action="store_true",
        help="declared groups are sites or scanners, not patients: draw patients (cases, where none are "
        "declared) for the intervals",
    )
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_report -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.report.write import ReportOptions, write_report

    workspace = open_workspace(arguments)
    options = ReportOptions(
        dataset=workspace.dataset_name(arguments.dataset),
        plans=arguments.plans,
        output=arguments.output,
        pictures=not arguments.no_pictures,
        ignore_groups=arguments.ignore_groups,
    )
    file = write_report(workspace, options)
    print(f"Report: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0
