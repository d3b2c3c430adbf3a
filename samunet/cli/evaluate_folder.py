"""samunet_evaluate_folder: score predicted label maps against reference ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.cli.common import (
    CommandParser,
    add_common,
    add_workers,
    open_workspace,
    positive_float,
    run_command,
)
from samunet.errors import SamunetError
from samunet.workspace import DATASET_FILE

if TYPE_CHECKING:
    from samunet.data.groups import Origins
    from samunet.evaluation.scores import Evaluation

EXAMPLES = """\
  samunet_evaluate_folder LABELS PREDICTIONS -d 101
  samunet_evaluate_folder LABELS PREDICTIONS -djfile dataset.json -o scores.json
  samunet_evaluate_folder LABELS PREDICTIONS -d 108 --desam_protocol"""


def build_parser() -> CommandParser:
    """The command's arguments."""
    parser = CommandParser(
        "samunet_evaluate_folder",
        "Score predicted label maps: Dice, IoU, surface Dice, HD95, ASSD, volume error; writes JSON and CSV.",
        EXAMPLES,
    )
    parser.add_argument("reference", type=Path, metavar="LABELS", help="folder with the reference label maps")
    parser.add_argument("prediction", type=Path, metavar="PREDICTIONS", help="folder with the predicted ones")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset whose labels these are")
    parser.add_argument(
        "-djfile",
        type=Path,
        metavar="FILE",
        help="its dataset.json, instead of -d (default: the one that prediction left in PREDICTIONS)",
    )
    parser.add_argument("-pfile", type=Path, metavar="FILE", help="nnU-Net's; has no effect")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help="JSON file, a .csv is written beside it (default PREDICTIONS/summary.json)",
    )
    parser.add_argument(
        "--chill", action="store_true", help="score the cases that are there; some may be missing"
    )
    parser.add_argument(
        "--tolerance_mm",
        type=positive_float,
        default=2.0,
        metavar="MM",
        help="tolerance of the surface Dice (default 2)",
    )
    parser.add_argument(
        "--desam_protocol",
        action="store_true",
        help="also score as the DeSAM paper's code does (foreground slices only, borders blanked), into "
        "summary_desam_protocol.json; comparable with that paper's figures only",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of the table")
    add_workers(parser)
    add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `samunet_evaluate_folder -h`."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.cli.screen import progress_bar
    from samunet.data.readers import segmentation_ending
    from samunet.evaluation.declared import Declared
    from samunet.evaluation.folder import evaluate_folder
    from samunet.inference.finished import refuse_unfinished
    from samunet.workspace import SUMMARY_FILE

    output = arguments.output or arguments.prediction / SUMMARY_FILE
    if output.suffix.lower() == ".csv" or output.is_dir():
        raise SamunetError(
            f"-o {output}: name the JSON file, such as {output.with_suffix('.json')}; the table is written "
            "beside it as .csv."
        )
    _check_folders(arguments, output)
    if arguments.pfile is not None and not arguments.json:
        print("-pfile has no effect here: label files are read alike whatever the plan.")
    file, origins = _dataset_json(arguments)
    declared = Declared.read(file)
    refuse_unfinished(arguments.prediction, segmentation_ending(declared.file_ending))
    with progress_bar("Scoring") as progress:
        evaluation = evaluate_folder(
            arguments.reference,
            arguments.prediction,
            declared.labels,
            declared.file_ending,
            chill=arguments.chill,
            tolerance_mm=arguments.tolerance_mm,
            origins=origins,
            workers=arguments.np,
            progress=None if arguments.json else progress,
        )
    evaluation.save(output)
    evaluation.save_csv(output.with_suffix(".csv"))
    if arguments.json:
        print(output.read_text(encoding="utf-8"), end="")
    else:
        print(evaluation.describe())
        print(f"Written: {output} and {output.with_suffix('.csv').name}")
    if arguments.desam_protocol:
        _score_by_protocol(evaluation, output.with_name(f"{output.stem}_desam_protocol.json"), arguments.json)
    return 0


def _check_folders(arguments: argparse.Namespace, output: Path) -> None:
    """Refuse what is no folder, scores beside raw labels, as when both are swapped, and the name of a
    training's own scores."""
    from samunet.inference.output_folder import refuse_raw_data, refuse_results
    from samunet.workspace import SUMMARY_FILE

    for name, folder in (("LABELS", arguments.reference), ("PREDICTIONS", arguments.prediction)):
        if not folder.is_dir():
            kind = "is no folder" if folder.exists() else "does not exist"
            raise SamunetError(
                f"{name}, {folder}, {kind}. Name the folder of the reference label maps first."
            )
    try:
        refuse_raw_data(output.parent)
    except SamunetError as fault:
        raise SamunetError(
            f"The scores would be written into raw data, {output.parent}. Are both folders swapped? "
            "The references come first, then the predictions; or say where the scores go with -o."
        ) from fault
    if output.name != SUMMARY_FILE:
        return
    try:
        refuse_results(output.parent)
    except SamunetError as fault:
        raise SamunetError(
            f"The scores would be written to {output}, where a training keeps its own, by which models are "
            "compared and bounds are made. Name another file with -o, such as -o scores.json."
        ) from fault


def _score_by_protocol(evaluation: Evaluation, output: Path, quiet: bool) -> None:
    """The same cases by the DeSAM paper's evaluation, in files of their own."""
    from samunet.evaluation.desam_protocol import evaluate_by_protocol

    cases = evaluation.cases
    scores = evaluate_by_protocol(
        {case.name: (Path(case.reference_file), Path(case.prediction_file)) for case in cases},
        evaluation.labels,
        {case.name: case.group for case in cases if case.group is not None},
    )
    scores.save(output)
    if not quiet:
        print(f"\n{scores.describe()}\nWritten: {output} and {output.with_suffix('.csv').name}")


def _dataset_json(arguments: argparse.Namespace) -> tuple[Path, Origins]:
    """The dataset.json that says what the labels are; groups and patients that it or a table beside it
    declares."""
    from samunet.data.dataset import RawDataset
    from samunet.data.groups import read_origins
    from samunet.records import read_json

    if arguments.dataset is not None and arguments.djfile is not None:
        raise SamunetError("-d and -djfile say the same; keep one.")
    if arguments.dataset is None:
        file = arguments.djfile or arguments.prediction / DATASET_FILE
        if arguments.djfile is None and not file.is_file():
            raise SamunetError(
                f"Say what the labels are with -d DATASET or -djfile FILE (there is no {file})."
            )
        content = read_json(file)
        return file, read_origins(file.parent, content if isinstance(content, dict) else {})
    workspace = open_workspace(arguments, quiet=arguments.json)
    folder = workspace.raw_folder(workspace.dataset_name(arguments.dataset))
    return folder / DATASET_FILE, RawDataset.load(folder, strict=False).declared
