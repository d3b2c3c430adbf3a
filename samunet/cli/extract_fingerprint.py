"""samunet_extract_fingerprint: measure a raw dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from samunet.cli.common import CommandParser, add_common, add_workers, open_workspace, run_command
from samunet.cli.planning_flags import add_datasets, add_fingerprint_flags


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_extract_fingerprint",
        "Measure spacings, shapes, intensities and classes of a raw dataset, once until the data change.",
        "  samunet_extract_fingerprint -d 101 --verify_dataset_integrity",
    )
    add_datasets(parser)
    add_fingerprint_flags(parser)
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_extract_fingerprint -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.pipeline import plan_and_preprocess as pipeline

    workspace = open_workspace(arguments)
    request = pipeline.FingerprintRequest(
        workers=arguments.np, verify=arguments.verify_dataset_integrity, clean=arguments.clean
    )
    for dataset in arguments.datasets:
        name = workspace.dataset_name(dataset)
        pipeline.extract(workspace, name, request, progress_bar)
        print(f"Fingerprint: {workspace.fingerprint_file(name)}")
    return 0
