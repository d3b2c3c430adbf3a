"""samunet_predict: segment a folder of images with one trained model or an ensemble of several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet.cli.common import (
    EXIT_MISTAKE,
    CommandParser,
    add_common,
    add_device,
    add_plan_name,
    add_probabilities,
    checkpoint_name,
    fold,
    open_workspace,
    parse_settings,
    positive_float,
    positive_int,
    run_command,
)
from samunet.cli.weights_flags import add_base_weights, base_weights
from samunet.errors import SamunetError
from samunet.workspace import FINAL

if TYPE_CHECKING:
    from samunet.inference.ensemble_predictor import EnsemblePredictor
    from samunet.inference.postprocessing import Postprocessing
    from samunet.inference.predictor import Predictor
    from samunet.workspace import Workspace

BEST = "best"
SEVERAL = (
    "; of several the probabilities are averaged; best is what samunet_find_best_configuration recommends, "
    "with its postprocessing"
)
EXAMPLES = """\
  samunet_predict -i IMAGES -o OUT -d 101 -c 2d_cnn          # every trained fold, averaged
  samunet_predict -i IMAGES -o OUT -d 101 -c 3d_fullres -f 0
  samunet_predict -i IMAGES -o OUT -d 101 -c 2d_cnn 3d_unet  # both, with all their folds
  samunet_predict -i IMAGES -o OUT -d 101 -c best            # what samunet_find_best_configuration chose
  samunet_predict -i IMAGES -o OUT -m MODEL_FOLDER --disable_tta
  samunet_predict -i IMAGES -o OUT -d 101 -c 2d_desam --set grid_side=25"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_predict", "Segment a folder of images with a trained model, or with several.", EXAMPLES
    )
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


def add_model(group: argparse._ActionsContainer, *, several: bool = True) -> None:
    """Add -d, -c, -tr, --tag and -m: which trained model is meant, or which ones."""
    group.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset by id or name")
    group.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="CONFIGURATION",
        help=f"configuration (default: auto){SEVERAL if several else ''}",
    )
    group.add_argument("-tr", dest="method", metavar="METHOD", help="method, where training had -tr")
    group.add_argument("--tag", metavar="NAME", help="tag, where training had --tag")
    group.add_argument(
        "-m",
        dest="models",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help=f"model folder instead of -d and -c{', or several' if several else ''}",
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
        help="folds of each model to average (default: all trained)",
    )
    group.add_argument(
        "-chk",
        dest="checkpoint",
        type=checkpoint_name,
        metavar="NAME",
        help="checkpoint_final.pth (default), checkpoint_best.pth or checkpoint_latest.pth",
    )
    add_base_weights(group)
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
    add_probabilities(parser, "--save_probabilities", kept="class probabilities")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting that the method lets a trained model change, such as grid_side=25 of 2d_desam; "
        "repeatable",
    )
    parser.add_argument(
        "--continue_prediction", action="store_true", help="skip cases that are there already"
    )
    parser.add_argument(
        "-num_parts", type=positive_int, default=1, metavar="N", help="split the cases into N parts"
    )
    parser.add_argument("-part_id", type=int, default=0, metavar="K", help="and predict part K, from 0")
    parser.add_argument(
        "-np",
        "-npp",
        "-nps",
        dest="threads",
        type=int,
        metavar="N",
        help="accepted as nnU-Net has them, without effect: one thread reads, one writes",
    )
    add_device(parser, "to predict on")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_predict -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.inference.files import FileOptions
    from samunet.inference.output_folder import check_output
    from samunet.inference.predictor import Predictor
    from samunet.pipeline.qc.predictions import assess, assess_ensemble

    if not 0 <= arguments.part_id < arguments.num_parts:
        raise SamunetError(f"-part_id {arguments.part_id}: give 0 to {arguments.num_parts - 1} (-num_parts).")
    if not 0 < arguments.step_size <= 1:
        raise SamunetError(
            f"-step_size {arguments.step_size:g}: give a share of the tile above 0, at most 1."
        )
    if arguments.threads is not None:
        print("-np, -npp and -nps have no effect here: one thread reads and one writes, whatever they say.")
    workspace = open_workspace(arguments, quiet=arguments.models is not None)
    check_output(arguments.output, "samunet_predict", workspace.raw)
    predictor, postprocessing = _load(arguments, workspace)
    print(predictor.describe())
    if predictor.device.type == "cpu" and predictor.num_mirrorings > 1:
        print(
            f"Mirroring makes this about {predictor.num_mirrorings} times slower; --disable_tta turns it off."
        )
    outcome = predictor.predict_files(
        arguments.input,
        arguments.output,
        FileOptions(
            save_probabilities=arguments.storage or False,
            skip_existing=arguments.continue_prediction,
            num_parts=arguments.num_parts,
            part=arguments.part_id,
            postprocessing=postprocessing,
        ),
    )
    try:
        if isinstance(predictor, Predictor):
            report = assess(arguments.output, predictor.model_folder, outcome.failed)
        else:
            report = assess_ensemble(arguments.output, predictor.members, outcome.failed)
        print(report.text())
    finally:
        print(outcome.text(), file=sys.stderr if outcome.failed else sys.stdout)
    return EXIT_MISTAKE if outcome.failed else 0


def _load(
    arguments: argparse.Namespace, workspace: Workspace
) -> tuple[Predictor | EnsemblePredictor, Postprocessing | None]:
    """The models that are meant, and the rules that follow them; only `-c best` has some."""
    from samunet.inference.ensemble_predictor import EnsemblePredictor
    from samunet.inference.predictor import Predictor

    settings = {
        "device": arguments.device,
        "step_size": arguments.step_size,
        "mirroring": not arguments.disable_tta,
        "weights_folder": base_weights(arguments, workspace),
        "settings": parse_settings(arguments.settings),
    }
    if BEST in arguments.configurations:
        return _load_best(arguments, workspace, settings)
    folders = model_folders(arguments, workspace)
    settings |= {
        "folds": None if arguments.folds is None else tuple(arguments.folds),
        "checkpoint": arguments.checkpoint or FINAL,
    }
    if len(folders) == 1:
        return Predictor.load(folders[0], **settings), None
    return EnsemblePredictor.load(folders, **settings), None


def _load_best(
    arguments: argparse.Namespace, workspace: Workspace, settings: dict[str, Any]
) -> tuple[Predictor | EnsemblePredictor, Postprocessing | None]:
    """What samunet_find_best_configuration recommends, rules included."""
    from samunet.pipeline.selection import load_selection
    from samunet.pipeline.selection.recommended import load_recommended

    given = {
        "other names after -c": len(arguments.configurations) > 1,
        "-m": arguments.models,
        "-f": arguments.folds,
        "-chk": arguments.checkpoint,
        "-tr": arguments.method,
        "--tag": arguments.tag,
    }
    foreign = [flag for flag, value in given.items() if value]
    if foreign:
        raise SamunetError(
            f"-c best says which models, folds and checkpoints; leave out {', '.join(foreign)}."
        )
    if arguments.dataset is None:
        raise SamunetError("-c best is the best model of a dataset: name it with -d DATASET.")
    selection = load_selection(workspace, workspace.dataset_name(arguments.dataset), arguments.plans)
    postprocessing = selection.postprocessing
    if postprocessing.rules:
        print(f"Postprocessing: {postprocessing.text()}.")
    return load_recommended(workspace, selection, **settings), postprocessing


def refuse_names_beside_folder(arguments: argparse.Namespace, configurations: object) -> None:
    """Refuse flags that name a trained model where -m names its folder: they would be ignored.

    Raises:
        SamunetError: lists them.
    """
    from samunet.workspace import DEFAULT_PLANS

    given = {
        "-c": configurations,
        "-tr": arguments.method,
        "--tag": arguments.tag,
        "-p": arguments.plans != DEFAULT_PLANS,
    }
    wrong = [flag for flag, value in given.items() if value]
    if wrong:
        raise SamunetError(f"-m FOLDER names the model already; leave {', '.join(wrong)} out.")


def model_folders(arguments: argparse.Namespace, workspace: Workspace) -> tuple[Path, ...]:
    """The model folders that -m, or -d and -c, mean.

    Raises:
        SamunetError: neither or both are given, or nothing of that name is trained.
    """
    from samunet.pipeline.models import ModelRequest, find_models

    if (arguments.models is None) == (arguments.dataset is None):
        raise SamunetError("Name the model: either -d DATASET with -c CONFIGURATION, or -m FOLDER.")
    if arguments.models is not None:
        refuse_names_beside_folder(arguments, arguments.configurations)
        return tuple(arguments.models)
    request = ModelRequest(
        dataset=workspace.dataset_name(arguments.dataset),
        plans=arguments.plans,
        method=arguments.method,
        tag=arguments.tag,
    )
    return find_models(workspace, request, arguments.configurations)
