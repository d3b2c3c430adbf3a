"""Everything that is wrong with a raw dataset, in one list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from samunet.data.cases import Case, largest_reading_bytes
from samunet.data.dataset import RawDataset, label_grid_fault
from samunet.data.geometry import Geometry, grid_differences
from samunet.data.labels import LabelSet
from samunet.data.readers import read_image, read_label
from samunet.data.workers import map_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.progress import Progress


@dataclass(frozen=True)
class _Expected:
    num_channels: int
    labels: LabelSet


def verify_dataset(
    dataset: RawDataset | Path, workers: int | None = 1, progress: Progress | None = None
) -> list[str]:
    """List all faults of a raw dataset; every file is read.

    Found are: missing files and folders, a wrong number of channels or cases, files that are truncated or
    unreadable, NaN, label values that are not declared, and images and labels on different grids (shape,
    spacing, origin, direction).

    Args:
        dataset: the dataset, or its folder, which is then loaded without stopping at missing files.
        workers: processes; None takes as many as cores and memory allow.
        progress: called with (cases done, all cases).

    Returns:
        One sentence per fault, each naming its file; empty when the dataset is in order.

    Raises:
        SamunetError: dataset.json itself cannot be used.
    """
    if not isinstance(dataset, RawDataset):
        dataset = RawDataset.load(dataset, strict=False)
    faults = [*dataset.faults, *_count_faults(dataset)]
    present = [case for case in map(_existing_part, dataset.cases) if case.images]
    expected = _Expected(len(dataset.channel_names), dataset.labels)
    found = map_in_workers(
        partial(case_faults, expected),
        present,
        worker_count(workers, largest_reading_bytes(present), len(present)),
        name=lambda case: case.name,
        progress=progress,
    )
    return list(dict.fromkeys([*faults, *chain.from_iterable(found)]))


def case_faults(expected: _Expected, case: Case) -> list[str]:
    """All faults of one case's files; a missing file is the dataset's fault and not repeated here."""
    faults: list[str] = []
    geometries: list[Geometry] = []
    num_channels = 0
    for path in case.images:
        try:
            image, geometry = read_image([path])
        except SamunetError as error:
            faults.append(str(error))
            continue
        num_channels += len(image)
        if geometries:
            differences = grid_differences(geometries[0], geometry)
            faults += [f"{path} does not lie on the grid of {case.images[0]}: {d}." for d in differences]
        geometries.append(geometry)
    named_alike = len(geometries) == len(case.images) == expected.num_channels
    if named_alike and num_channels != expected.num_channels:
        faults.append(
            f"Case {case.name} has {num_channels} channel(s); dataset.json declares {expected.num_channels}."
        )
    if case.label is not None:
        faults += _label_faults(case, case.label, geometries[0] if geometries else None, expected.labels)
    return faults


def _label_faults(case: Case, path: Path, image: Geometry | None, labels: LabelSet) -> list[str]:
    try:
        label, geometry = read_label(path)
    except SamunetError as error:
        return [str(error)]
    faults = []
    try:
        labels.encode(label, str(path))
    except SamunetError as error:
        faults.append(str(error))
    fault = "" if image is None else label_grid_fault(case, image, geometry)
    return [*faults, fault] if fault else faults


def _count_faults(dataset: RawDataset) -> list[str]:
    stated, found = dataset.json.get("numTraining"), len(dataset.cases)
    where = f"{dataset.folder / 'dataset.json'}: `numTraining`"
    if stated is None:
        return [f"{where} is missing; {found} training cases were found."]
    return [] if stated == found else [f"{where} is {stated!r}, but {found} training cases were found."]


def _existing_part(case: Case) -> Case:
    label = case.label if case.label is not None and case.label.is_file() else None
    return Case(case.name, tuple(path for path in case.images if path.is_file()), label)
