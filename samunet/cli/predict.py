"""samunet_predict: segment a folder of images with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.cli.common import (
    EXIT_MISTAKE,
    CommandParser,
    add_common,
    add_device,
    add_plan_name,
    fold,
    open_workspace,
    positive_float,
    positive_int,
    run_command,
)
from samunet.errors import SamunetError

if TYPE_CHECKING:
    from samunet.inference.predictor import Predictor
    from samunet.workspace import Workspace

EXAMPLES = """\
  samunet_predict -i IMAGES -o OUT -d 101 -c 2d_cnn          # every trained fold, averaged
  samunet_predict -i IMAGES -o OUT -d 101 -c 3d_fullres -f 0
  samunet_predict -i IMAGES -o OUT -m MODEL_FOLDER --disable_tta"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser("samunet_predict", "Segment a folder of images with a trained model.", EXAMPLES)
    parser.add_argument(
        "-i",
        dest="input",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of images named as in imagesTr, or one image file",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="FOLDER", help="where results go"
    )
    _add_model(parser)
    _add_inference(parser)
    add_common(parser)
    return parser


def add_model(group: argparse._ActionsContainer) -> None:
    """Add -d, -c, -tr, --tag and -m: which trained model is meant."""
    group.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset by id or name")
    group.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION", help="configuration (default: auto)"
    )
    group.add_argument("-tr", dest="method", metavar="METHOD", help="method, where training had -tr")
    group.add_argument("--tag", metavar="NAME", help="tag, where training had --tag")
    group.add_argument(
        "-m", dest="model", type=Path, metavar="FOLDER", help="model folder, instead of -d and -c"
    )


def _add_model(parser: CommandParser) -> None:
    group = parser.add_argument_group("model")
    add_model(group)
    group.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        type=fold,
        metavar="FOLD",
        help="folds to average (default: all trained)",
    )
    group.add_argument(
        "-chk",
        dest="checkpoint",
        default="checkpoint_final.pth",
        metavar="NAME",
        help="checkpoint_final.pth (default), checkpoint_best.pth or checkpoint_latest.pth",
    )
    group.add_argument(
        "-w", dest="weights", type=Path, metavar="WEIGHTS", help="folder with official SAM files"
    )
    add_plan_name(parser)


def _add_inference(parser: CommandParser) -> None:
    parser.add_argument(
        "-step_size",
        type=positive_float,
        default=0.5,
        metavar="S",
        help="tile step over tile size (default 0.5)",
    )
    parser.add_argument(
        "--disable_tta", action="store_true", help="do not mirror: faster, a little less accurate"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="keep the class probabilities too")
    parser.add_argument(
        "--continue_prediction", action="store_true", help="skip cases that are there already"
    )
    parser.add_argument(
        "-num_parts", type=positive_int, default=1, metavar="N", help="split the cases into N parts"
    )
    parser.add_argument("-part_id", type=int, default=0, metavar="K", help="and predict part K, from 0")
    parser.add_argument(
        "-np", "-npp", "-nps", type=int, metavar="N", help="threads that read and write (default 2)"
    )
    add_device(parser, "to predict on")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_predict -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.inference.predictor import FileOptions
    from samunet.pipeline.qc import assess

    if not 0 <= arguments.part_id < arguments.num_parts:
        raise SamunetError(f"-part_id {arguments.part_id}: give 0 to {arguments.num_parts - 1} (-num_parts).")
    if not 0 < arguments.step_size <= 1:
        raise SamunetError(
            f"-step_size {arguments.step_size:g}: give a share of the tile above 0, at most 1."
        )
    predictor = _load(arguments)
    print(predictor.describe())
    if predictor.device.type == "cpu" and predictor.num_mirrorings > 1:
        print(
            f"Mirroring makes this about {predictor.num_mirrorings} times slower; --disable_tta turns it off."
        )
    outcome = predictor.predict_files(
        arguments.input,
        arguments.output,
        FileOptions(
            save_probabilities=arguments.save_probabilities,
            skip_existing=arguments.continue_prediction,
            num_parts=arguments.num_parts,
            part=arguments.part_id,
        ),
    )
    print(assess(arguments.output, predictor.model_folder, outcome.failed).text())
    print(outcome.text(), file=sys.stderr if outcome.failed else sys.stdout)
    return EXIT_MISTAKE if outcome.failed else 0


def find_model_folder(arguments: argparse.Namespace) -> tuple[Path, Workspace]:
    """Folder of the model that the flags of `add_model` and -p mean, and the workspace.

    Raises:
        SamunetError: none or two are named, or it is not trained.
    """
    from samunet.pipeline.models import ModelRequest, find_model

    workspace = open_workspace(arguments)
    if (arguments.model is None) == (arguments.dataset is None):
        raise SamunetError("Name the model: either -d DATASET with -c CONFIGURATION, or -m FOLDER.")
    folder = arguments.model or find_model(
        workspace,
        ModelRequest(
            dataset=workspace.dataset_name(arguments.dataset),
            configuration=arguments.configuration or "auto",
            plans=arguments.plans,
            method=arguments.method,
            tag=arguments.tag,
        ),
    )
    return folder, workspace


def _load(arguments: argparse.Namespace) -> Predictor:
    from samunet.inference.predictor import Predictor

    folder, workspace = find_model_folder(arguments)
    return Predictor.load(
        folder,
        folds=None if arguments.folds is None else tuple(arguments.folds),
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        step_size=arguments.step_size,
        mirroring=not arguments.disable_tta,
        weights_folder=arguments.weights or workspace.weights,
    )
