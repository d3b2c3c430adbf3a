"""samunet_export_model: write a trained model as one file for others, or as ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_plan_name,
    checkpoint_name,
    fold,
    open_workspace,
    positive_int,
    run_command,
)
from samunet.cli.predict import refuse_names_beside_folder
from samunet.cli.weights_flags import add_base_weights, base_weights
from samunet.errors import SamunetError
from samunet.workspace import FINAL

if TYPE_CHECKING:
    from samunet.pipeline.model_file.selected import SelectionFiles
    from samunet.workspace import Workspace

EXAMPLES = """\
  samunet_export_model -d 101 -c 2d_cnn -o liver.zip --licence CC-BY-4.0
  samunet_export_model -d 101 -c 2d_cnn -f 0 1 -o liver.zip --include_base
  samunet_export_model -d 101 -c 2d_unet -f 0 -o liver.onnx --onnx
  samunet_export_model -m MODEL_FOLDER -o liver.onnx --onnx -i IMAGES"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_export_model",
        "Write a trained model as one .zip for others (samunet_install_model takes it), or as ONNX.",
        EXAMPLES,
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.zip, or FILE.onnx with --onnx",
    )
    _add_model(parser)
    _add_zip(parser)
    _add_onnx(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_common(parser)
    return parser


def _add_model(parser: CommandParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset by id or name")
    group.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION", help="configuration (default: auto)"
    )
    group.add_argument("-tr", dest="method", metavar="METHOD", help="method, where training had -tr")
    group.add_argument("--tag", metavar="NAME", help="tag, where training had --tag")
    group.add_argument(
        "-m", dest="model", type=Path, metavar="FOLDER", help="model folder, instead of -d and -c"
    )
    group.add_argument(
        "-f", dest="folds", nargs="+", type=fold, metavar="FOLD", help="folds (default: all trained)"
    )
    group.add_argument(
        "-chk",
        dest="checkpoint",
        type=checkpoint_name,
        default=FINAL,
        metavar="NAME",
        help="checkpoint_final.pth (default), checkpoint_best.pth or checkpoint_latest.pth",
    )
    add_base_weights(group)
    add_plan_name(parser)


def _add_zip(parser: CommandParser) -> None:
    group = parser.add_argument_group("the .zip")
    group.add_argument(
        "--include_base", action="store_true", help="store official base weights too, not only their SHA-256"
    )
    group.add_argument(
        "--include_cases", action="store_true", help="scores of single cases too, with the cases' names"
    )
    group.add_argument("--licence", metavar="TEXT", help="licence of the model, for its card")


def _add_onnx(parser: CommandParser) -> None:
    group = parser.add_argument_group("ONNX")
    group.add_argument(
        "--onnx", action="store_true", help="write FILE.onnx (one a fold) and FILE.json, which describes it"
    )
    group.add_argument(
        "-i",
        dest="images",
        type=Path,
        metavar="FOLDER",
        help="images to compare ONNX and PyTorch on (default: the dataset's imagesTr)",
    )
    group.add_argument("-num_tiles", type=positive_int, metavar="N", help="tiles to compare on (default 16)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_export_model -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.pipeline.model_file.card import NOT_STATED
    from samunet.pipeline.model_file.export import ExportRequest, export_model
    from samunet.workspace import Workspace

    if (arguments.model is None) == (arguments.dataset is None):
        raise SamunetError("Name the model: either -d DATASET with -c CONFIGURATION, or -m FOLDER.")
    if arguments.model is not None:
        refuse_names_beside_folder(arguments, arguments.configuration)
    needs_workspace = arguments.dataset is not None or arguments.workspace is not None
    workspace = open_workspace(arguments) if needs_workspace else Workspace.find()
    _refuse_mixed(arguments)
    folder = arguments.model or _model_folder(arguments, workspace)
    if arguments.onnx:
        return _export_onnx(arguments, workspace, folder)
    outcome = export_model(
        ExportRequest(
            model_folder=folder,
            output=arguments.output,
            folds=None if arguments.folds is None else tuple(arguments.folds),
            checkpoint=arguments.checkpoint,
            include_base=arguments.include_base,
            include_cases=arguments.include_cases,
            licence=arguments.licence or NOT_STATED,
            weights_folder=base_weights(arguments, workspace),
            selection=_selection(arguments, workspace),
            overwrite=arguments.overwrite,
        )
    )
    print(outcome.text())
    return 0


def _refuse_mixed(arguments: argparse.Namespace) -> None:
    """Flags of the one kind of file with the other kind would be ignored."""
    of_zip = {
        "--include_base": arguments.include_base,
        "--include_cases": arguments.include_cases,
        "--licence": arguments.licence,
    }
    of_onnx = {"-i": arguments.images, "-num_tiles": arguments.num_tiles}
    wrong = [flag for flag, value in (of_zip if arguments.onnx else of_onnx).items() if value]
    if wrong:
        told = "does not go with --onnx" if arguments.onnx else "needs --onnx"
        raise SamunetError(f"{', '.join(wrong)} {told}.")


def _model_folder(arguments: argparse.Namespace, workspace: Workspace) -> Path:
    from samunet.pipeline.models import ModelRequest, find_model

    return find_model(
        workspace,
        ModelRequest(
            dataset=workspace.dataset_name(arguments.dataset),
            configuration=arguments.configuration or "auto",
            plans=arguments.plans,
            method=arguments.method,
            tag=arguments.tag,
        ),
    )


def _export_onnx(arguments: argparse.Namespace, workspace: Workspace, folder: Path) -> int:
    from samunet.pipeline.model_file.onnx_export import OnnxRequest, export_onnx
    from samunet.pipeline.model_file.onnx_parity import NUM_TILES

    images = arguments.images
    if images is None and arguments.dataset is not None:
        images = workspace.raw_folder(workspace.dataset_name(arguments.dataset)) / "imagesTr"
    if images is None or (arguments.images is None and not images.is_dir()):
        where = "--onnx with -m" if images is None else f"There is no {images}"
        raise SamunetError(f"{where}: name a folder of images with -i, to compare ONNX and PyTorch on.")
    outcome = export_onnx(
        OnnxRequest(
            model_folder=folder,
            output=arguments.output,
            images=images,
            folds=None if arguments.folds is None else tuple(arguments.folds),
            checkpoint=arguments.checkpoint,
            weights_folder=base_weights(arguments, workspace),
            num_tiles=arguments.num_tiles or NUM_TILES,
            selection=_selection(arguments, workspace),
            overwrite=arguments.overwrite,
        )
    )
    print(outcome.text())
    return 0


def _selection(arguments: argparse.Namespace, workspace: Workspace) -> SelectionFiles | None:
    from samunet.pipeline.model_file.selected import SelectionFiles

    if arguments.dataset is None:
        return None
    dataset = workspace.dataset_name(arguments.dataset)
    return SelectionFiles(
        selection=workspace.selection_file(dataset, arguments.plans),
        postprocessing=workspace.postprocessing_file(dataset, arguments.plans),
    )
