"""samunet_plan_and_preprocess: raw dataset to fingerprint, plan and preprocessed cases."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from samunet.cli.common import CommandParser, add_common, add_workers, open_workspace, run_command
from samunet.cli.planning_flags import add_datasets, add_fingerprint_flags, add_planning_flags, plan_options

if TYPE_CHECKING:
    from samunet.planning.fingerprint import Fingerprint
    from samunet.planning.plan import Plan

EXAMPLES = """\
  samunet_plan_and_preprocess -d 101 --verify_dataset_integrity
  samunet_plan_and_preprocess -d 101 102 -c 2d_cnn 3d_unet -np 4
  samunet_plan_and_preprocess -d 101 -gpu_memory_target 24 -p plans24GB"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_plan_and_preprocess",
        "Measure the dataset, plan every method, say which one is recommended and why, preprocess the cases.",
        EXAMPLES,
    )
    add_datasets(parser)
    add_fingerprint_flags(parser)
    add_planning_flags(parser)
    parser.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        metavar="CONFIGURATION",
        help="preprocess for these configurations only, such as 2d_cnn or 3d_fullres (default: all planned)",
    )
    parser.add_argument("--no_pp", action="store_true", help="stop after the plan")
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_plan_and_preprocess -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.pipeline import plan_and_preprocess as pipeline
    from samunet.planning.explain import explain
    from samunet.planning.methods import get_method

    workspace = open_workspace(arguments)
    options = plan_options(arguments, workspace)
    request = pipeline.FingerprintRequest(
        workers=arguments.np, verify=arguments.verify_dataset_integrity, clean=arguments.clean
    )
    names = [workspace.dataset_name(dataset) for dataset in arguments.datasets]
    for configuration in arguments.configurations or ():
        get_method(configuration)  # a name that does not exist is no reason to plan first
    for name in names:
        fingerprint = pipeline.extract(workspace, name, request, progress_bar)
        plan = pipeline.plan(workspace, name, options, fingerprint=fingerprint)
        print(explain(plan))
        print(f"Plan: {workspace.plan_file(name, plan.name)}")
        if not arguments.no_pp:
            pipeline.preprocess(workspace, plan, arguments.configurations, arguments.np, progress_bar)
            print("\n".join(_how_to_go_on(plan, fingerprint, arguments.configurations)))
    return 0


def _how_to_go_on(
    plan: Plan, fingerprint: Fingerprint, configurations: Sequence[str] | None
) -> Iterator[str]:
    """Training the recommended configuration, unless cases were prepared for others alone."""
    from samunet.pipeline.goal_split import same_sites_only, training_for_goal
    from samunet.pipeline.run_commands import TrainedAs
    from samunet.pipeline.setting_flags import setting_flags
    from samunet.planning.methods import ALIASES

    asked = [ALIASES.get(name, name) for name in configurations or ()]
    chosen = plan.recommended or "2d_unet"
    if asked and chosen not in asked:
        chosen = asked[0]
    splits, settings = training_for_goal(plan, fingerprint.groups, len(fingerprint.cases))
    trained = TrainedAs(dataset=plan.dataset, configuration=chosen, plans=plan.name, splits=splits)
    # A single case cannot be held out.
    command = trained.command([0 if len(fingerprint.cases) > 1 else "all"], *setting_flags(settings))
    yield f"{plan.dataset} is ready. Train with: {command}"
    lack = same_sites_only(plan, fingerprint.groups, len(fingerprint.cases))
    if lack:
        yield lack
