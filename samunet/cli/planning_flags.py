"""Flags of the commands that plan, and what becomes of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from samunet.cli.common import (
    CommandParser,
    add_device,
    add_overrides,
    add_plan_name,
    parse_settings,
    positive_float,
)
from samunet.cli.weights_flags import chosen_weights

if TYPE_CHECKING:
    from samunet.pipeline.plan_and_preprocess import PlanOptions
    from samunet.workspace import Workspace


def add_datasets(parser: CommandParser) -> None:
    """Add -d with one or several datasets."""
    parser.add_argument(
        "-d",
        dest="datasets",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="datasets by id (101) or name (Dataset101_Liver)",
    )


def add_fingerprint_flags(parser: CommandParser) -> None:
    """Add the flags of the fingerprint."""
    parser.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="read every case first and list all faults (recommended once)",
    )
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint anew")


def add_planning_flags(parser: CommandParser) -> None:
    """Add the flags that decide a plan."""
    add_plan_name(parser, "-overwrite_plans_name")
    parser.add_argument(
        "-gpu_memory_target",
        type=positive_float,
        metavar="GB",
        help="plan for a GPU of this memory; otherwise the U-Nets are planned for nnU-Net's 8 GB and the SAM "
        "methods for the GPU that is here, or for this machine's memory and --hours",
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        nargs="+",
        type=positive_float,
        metavar="MM",
        help="target spacing z y x in the files' order of axes; of pictures and planes z is ignored, and 2D "
        "configurations take the part in plane",
    )
    parser.add_argument(
        "--hours",
        type=positive_float,
        default=24.0,
        metavar="H",
        help="longest training of one fold that a recommended method may take (default 24)",
    )
    parser.add_argument(
        "--goal",
        choices=("accuracy", "speed", "generalize"),
        default="accuracy",
        help="what is recommended: the best segmentation expected (default), the quickest training, or the "
        "best expected on data from sites that training has not seen",
    )
    add_overrides(parser)
    add_device(parser, "to plan for")


def plan_options(arguments: argparse.Namespace, workspace: Workspace) -> PlanOptions:
    """The planner's options from the command line."""
    from samunet.errors import SamunetError
    from samunet.pipeline.plan_and_preprocess import PlanOptions

    spacing = arguments.overwrite_target_spacing
    if spacing is not None and len(spacing) != 3:
        raise SamunetError(f"-overwrite_target_spacing takes three numbers (z y x), not {len(spacing)}.")
    return PlanOptions(
        plans=arguments.plans,
        device=arguments.device,
        gpu_memory_gb=arguments.gpu_memory_target,
        hours=arguments.hours,
        spacing_mm=None if spacing is None else tuple(spacing),
        encoder=arguments.encoder,
        weights=chosen_weights(arguments, workspace),
        settings=parse_settings(arguments.settings),
        goal=arguments.goal,
    )
