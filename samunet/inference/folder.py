"""A folder of images in, a folder of segmentations out, whatever predicts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.data.cases import CHANNEL_SUFFIX, Case, find_cases
from samunet.data.readers import segmentation_ending
from samunet.errors import SamunetError
from samunet.inference.files import (
    CaseStages,
    FileOptions,
    FilesOutcome,
    check_arguments,
    run_cases,
    select_part,
)
from samunet.inference.logit_storage import LogitStorage
from samunet.records import to_data, write_json


@dataclass(frozen=True, kw_only=True)
class FolderTask:
    """What is done with each case of a folder.

    Attributes:
        file_ending / num_channels: of the images.
        arguments: content of predict_args.json; other arguments may not continue a folder.
        records: file name -> content left beside the predictions.
        prepare: reads and preprocesses a case; in a thread.
        predict: what `prepare` gave, and room for logits -> result.
        export: writes a result to a segmentation file as the options say; in a thread.
    """

    file_ending: str
    num_channels: int
    arguments: dict[str, Any]
    records: dict[str, Any]
    prepare: Callable[[Case], Any]
    predict: Callable[[Any, LogitStorage], Any]
    export: Callable[[Any, Any, Path, FileOptions], Any]


def predict_folder(
    task: FolderTask, source: Path | str | Sequence[Case], output: Path | str, options: FileOptions
) -> FilesOutcome:
    """Segment the cases of a folder; a bad case is reported and the others finish.

    Args:
        task: what is done with a case.
        source: folder of images named as in imagesTr, one image file, or cases.
        output: folder for CASE.ext, the task's records and predict_args.json.
        options: which cases, and what is kept.

    Raises:
        SamunetError: no cases, missing channels (all are listed), or other arguments than before.
    """
    output = Path(output)
    _refuse_own_images(source, output)
    chosen = select_part(_cases(task, source), options)
    ending = segmentation_ending(task.file_ending)

    def target(case: Case) -> Path:
        return output / f"{case.name}{ending}"

    present = [case for case in chosen if options.skip_existing and target(case).exists()]
    output.mkdir(parents=True, exist_ok=True)
    rules = () if options.postprocessing is None else options.postprocessing.rules
    arguments = {**task.arguments, "postprocessing": to_data(rules)}
    check_arguments(output, arguments, continuing=options.skip_existing)
    for name, content in task.records.items():
        write_json(output / name, content)
    start = time.perf_counter()
    stages = CaseStages(
        prepare=task.prepare,
        predict=lambda ready: task.predict(ready, LogitStorage(output)),
        export=lambda case, result, ready: task.export(result, ready, target(case), options),
    )
    done, failed = run_cases([case for case in chosen if case not in present], stages)
    return FilesOutcome(
        output=output,
        done=tuple(done),
        skipped=tuple(case.name for case in present),
        failed=failed,
        seconds=time.perf_counter() - start,
    )


def _cases(task: FolderTask, source: Path | str | Sequence[Case]) -> Sequence[Case]:
    if not isinstance(source, (str, Path)):
        return source
    path = Path(source)
    if path.is_file():
        return (single_case(path, task.file_ending),)
    return find_cases(path, task.file_ending, task.num_channels)


def single_case(file: Path, file_ending: str) -> Case:
    """The case of one image file: that file, or all channels when its name has a channel suffix."""
    if not file.name.endswith(file_ending):
        raise SamunetError(f"{file}: this model was trained on files with the ending {file_ending}.")
    stem = file.name.removesuffix(file_ending)
    suffixed = CHANNEL_SUFFIX.fullmatch(stem)
    if suffixed is None:
        return Case(stem, (file,))
    return Case(
        suffixed[1], tuple(sorted(file.parent.glob(f"{suffixed[1]}_[0-9][0-9][0-9][0-9]{file_ending}")))
    )


def _refuse_own_images(source: Path | str | Sequence[Case], output: Path) -> None:
    """Predictions of CASE.nii.gz beside images of that name would replace the images."""
    if isinstance(source, (str, Path)):
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        if folder.resolve() == output.resolve():
            raise SamunetError(f"{output} holds the images; predictions need an output folder of their own.")
