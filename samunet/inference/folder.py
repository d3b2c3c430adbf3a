"""A folder of images in, a folder of segmentations out, whatever predicts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.data.cases import Case, channel_faults, find_cases, group_files
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
from samunet.inference.finished import features_file, is_finished, prediction_hash
from samunet.inference.logit_storage import LogitStorage
from samunet.inference.output_folder import check_output, refuse_foreign_files
from samunet.inference.probabilities import probability_files, storage_of
from samunet.records import read_json, write_json
from samunet.whole_files import remove_partials
from samunet.workspace import ARGUMENTS_FILE, PLAN_FILE, QC_FILE


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the result of a case goes; `file` is of the segmentation."""

    case: str
    file: Path
    options: FileOptions


@dataclass(frozen=True, kw_only=True)
class FolderTask:
    """What is done with each case of a folder.

    Attributes:
        file_ending / num_channels: of the images.
        arguments: content of predict_args.json; other arguments may not continue a folder.
        records: file name -> content left beside the predictions.
        prepare: reads and preprocesses a case; in a thread.
        predict: what `prepare` gave, and room for logits -> result.
        export: writes a result and last its features, given what `prepare` gave and where it goes; in a
            thread.
    """

    file_ending: str
    num_channels: int
    arguments: dict[str, Any]
    records: dict[str, Any]
    prepare: Callable[[Case], Any]
    predict: Callable[[Any, LogitStorage], Any]
    export: Callable[[Any, Any, Target], Any]


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
        SamunetError: no cases, missing channels (all are listed), other arguments than before, or an output
            that is of a raw dataset or holds another command's results.
    """
    output = Path(output)
    check_output(output, "samunet_predict")
    _refuse_own_images(source, output)
    chosen = select_part(_cases(task, source), options)
    ending = segmentation_ending(task.file_ending)

    def target(case: Case) -> Target:
        return Target(case=case.name, file=output / f"{case.name}{ending}", options=options)

    refuse_foreign_files(output, [target(case).file for case in chosen], ARGUMENTS_FILE)
    made_so = prediction_hash(task.arguments)
    present = [case for case in chosen if options.skip_existing and _is_complete(target(case), case, made_so)]
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    if not options.skip_existing:
        # A segmentation stays until its successor is there; without its features it counts for nothing.
        for case in chosen:
            features_file(output, case.name).unlink(missing_ok=True)
    alone = options.num_parts == 1 and (not isinstance(source, (str, Path)) or Path(source).is_dir())
    _forget_quality(output, made_so, alone=alone)
    check_arguments(output, task.arguments, continuing=options.skip_existing)
    if PLAN_FILE not in task.records:
        (output / PLAN_FILE).unlink(missing_ok=True)  # of one model, where now several have predicted
    for name, content in task.records.items():
        write_json(output / name, content)
    start = time.perf_counter()
    stages = CaseStages(
        prepare=task.prepare,
        predict=lambda ready: task.predict(ready, LogitStorage(output)),
        export=lambda case, result, ready: task.export(result, ready, target(case)),
    )
    done, failed = run_cases([case for case in chosen if case not in present], stages)
    return FilesOutcome(
        output=output,
        done=tuple(done),
        skipped=tuple(case.name for case in present),
        failed=failed,
        seconds=time.perf_counter() - start,
    )


def _forget_quality(output: Path, made_so: str, alone: bool) -> None:
    """Remove a qc.json that judges an earlier prediction; that of another part or file of this one stays.

    Args:
        alone: no other part or file is meant: an earlier one would tell of cases that failed and are gone.
    """
    file = output / QC_FILE
    if alone:
        file.unlink(missing_ok=True)
        return
    if not file.is_file():
        return
    try:
        judged = read_json(file)
    except SamunetError:  # nobody can tell what it says
        judged = None
    if not isinstance(judged, dict) or judged.get("arguments_hash") != made_so:
        file.unlink(missing_ok=True)


def _is_complete(target: Target, case: Case, made_so: str) -> bool:
    """Whether all that is asked for is there, made of these images by these networks in this way; features
    come last."""
    wanted = [target.file]
    if storage_of(target.options.save_probabilities) is not None:
        wanted += probability_files(target.file)
    there = all(file.exists() for file in wanted)
    return there and is_finished(target.file.parent, target.case, made_so, case)


def _cases(task: FolderTask, source: Path | str | Sequence[Case]) -> Sequence[Case]:
    if not isinstance(source, (str, Path)):
        if not all(isinstance(case, Case) for case in source):
            raise SamunetError("Give a folder of images, one image file, or cases (`find_cases`), not names.")
        return source
    path = Path(source)
    if path.is_file():
        return (single_case(path, task.file_ending, task.num_channels),)
    return find_cases(path, task.file_ending, task.num_channels)


def single_case(file: Path, file_ending: str, num_channels: int) -> Case:
    """The case that an image file belongs to, with all its channels; named as it would be in its folder.

    Raises:
        SamunetError: another file ending, or channels missing.
    """
    if not file.name.endswith(file_ending):
        raise SamunetError(f"{file}: this model was trained on files with the ending {file_ending}.")
    cases, of_names = group_files(file.parent, file_ending, num_channels)
    case = next((case for case in cases if file in case.images), None)
    if case is None:
        raise SamunetError(f"{file}: its name is no name of a case. Rename it, or give its folder.")
    faults = [of_names[case.name]] if case.name in of_names else channel_faults(case, num_channels)
    if faults:
        raise SamunetError("\n".join(faults))
    return case


def _refuse_own_images(source: Path | str | Sequence[Case], output: Path) -> None:
    """Predictions of CASE.nii.gz beside images of that name would replace the images."""
    if isinstance(source, (str, Path)):
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        if folder.resolve() == output.resolve():
            raise SamunetError(f"{output} holds the images; predictions need an output folder of their own.")
