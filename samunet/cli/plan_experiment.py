"""samunet_plan_experiment: plan every method for a dataset, or only show the plan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from samunet.cli.common import CommandParser, add_common, add_workers, open_workspace, run_command
from samunet.cli.planning_flags import add_datasets, add_planning_flags, plan_options

EXAMPLES = """\
  samunet_plan_experiment -d 101 --explain                        # touches nothing
  samunet_plan_experiment -d 101 -gpu_memory_target 12 --hours 8"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_plan_experiment",
        "Plan every method for a dataset and say which one is recommended and why.",
        EXAMPLES,
    )
    add_datasets(parser)
    add_planning_flags(parser)
    parser.add_argument("--explain", action="store_true", help="print the plan's table; write nothing at all")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of the table")
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_plan_experiment -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline import plan_and_preprocess as pipeline
    from samunet.planning.explain import explain
    from samunet.records import to_data

    workspace = open_workspace(arguments, quiet=arguments.json)
    options = plan_options(arguments, workspace)
    for dataset in arguments.datasets:
        name = workspace.dataset_name(dataset)
        plan = pipeline.plan(workspace, name, options, save=not arguments.explain, workers=arguments.np)
        print(json.dumps(to_data(plan), indent=1) if arguments.json else explain(plan))
        if not (arguments.explain or arguments.json):
            print(f"Plan: {workspace.plan_file(name, plan.name)}")
    return 0
