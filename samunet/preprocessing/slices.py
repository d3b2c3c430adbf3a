"""Raw images as 2D pictures of 8 bits for pretraining: written once, to be drawn from (`slice_draws`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.cases import Case
from samunet.data.dataset import LoadedCase, RawDataset
from samunet.data.geometry import slice_axis
from samunet.data.groups import Origins
from samunet.data.readers import ENDINGS, file_kind, has_alpha, read_image
from samunet.errors import SamunetError
from samunet.listing import counted_cases
from samunet.networks.picture import channel_matrix
from samunet.preprocessing.slice_index import (
    INDEX,
    UNANNOTATED,
    VAL_EVERY,
    SlicedCase,
    SliceIndex,
    found_slices,
    mapped,
    stamp,
)
from samunet.preprocessing.slice_progress import add_progress, begin_progress, end_progress, read_progress
from samunet.records import content_hash, write_json
from samunet.whole_files import atomic_path

logger = logging.getLogger(__name__)

NOT_DECLARED = "not declared"
"""Begins the licence of a source that declares none."""
PERCENTILES = (0.5, 99.5)
SMALLEST_SIDE = 16
MOST_FRAMES = 10
"""Of a 4D file that is given without a dataset."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """Cases of a source that are to become slices; no image has been read yet.

    Attributes:
        source / licence: as in the index.
        cases: with their files; `excluded` names those that are left out.
        load: reads a case; a file with several volumes is a case of several.
        framed: a file's channels are volumes of their own.
        ignore: label value that is taken for background.
        patients: case -> patient, as far as it is known.
    """

    source: str
    licence: str
    cases: tuple[Case, ...]
    load: Callable[[Case], Sequence[LoadedCase]]
    excluded: tuple[str, ...] = ()
    framed: bool = False
    ignore: int | None = None
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(case.name for case in self.cases)

    @property
    def names_hash(self) -> str:
        """Of which cases these are, in whatever order."""
        return content_hash(sorted(self.names))

    def stamp(self, number: int) -> str:
        """Of the files of the case with that number, as they are now."""
        return stamp(self.cases[number].files, self.ignore)


def dataset_cutting(dataset: RawDataset, excluded: frozenset[str]) -> Cutting:
    """A raw dataset's training cases without those that must not be seen.

    Raises:
        SamunetError: nothing is left.
    """
    kept = tuple(case for case in dataset.cases if case.name not in excluded)
    if not kept:
        raise SamunetError(f"{dataset.name}: no case is left after --exclude. Leave the dataset out.")
    return Cutting(
        source=dataset.name,
        licence=declared_licence(dataset.json),
        cases=kept,
        excluded=tuple(sorted(excluded & set(dataset.case_names))),
        load=lambda case: [_loaded(dataset, case)],
        ignore=dataset.labels.ignore,
        patients=_patients(dataset.origins),
    )


def _patients(origins: Origins) -> Mapping[str, str]:
    """Declared ones; else groups, which may be patients, but hardly are where there are few."""
    return origins.patients or (origins.groups if len(set(origins.groups.values())) >= VAL_EVERY else {})


def _loaded(dataset: RawDataset, case: Case) -> LoadedCase:
    """A case with voxels that nobody annotated under a number of their own."""
    loaded, ignore = dataset.read(case), dataset.labels.ignore
    loaded = replace(loaded, image=_without_alpha(loaded.image, case.images))
    if loaded.label is None or ignore is None:
        return loaded
    return replace(loaded, label=np.where(loaded.label == ignore, UNANNOTATED, loaded.label.astype(np.int32)))


def _without_alpha(image: np.ndarray, files: Sequence[Path]) -> np.ndarray:
    """Red, green and blue of an RGBA picture, which a fourth channel would be mixed into."""
    return image[:3] if len(image) == 4 and len(files) == 1 and has_alpha(files[0]) else image


def declared_licence(content: Mapping[str, Any]) -> str:
    """The licence of a dataset.json, under either spelling; its `note` where there is none."""
    for key in ("licence", "license"):
        if content.get(key):
            return str(content[key])
    return f"{NOT_DECLARED} (note: {content['note']})" if content.get("note") else NOT_DECLARED


def folder_cutting(source: Path) -> Cutting:
    """All images below a folder, without labels.

    Raises:
        SamunetError: there is no such folder, or no image in it.
    """
    if not source.is_dir():
        raise SamunetError(f"There is no folder {source} (--images).")
    files = sorted(p for p in source.rglob("[!.]*") if p.is_file() and p.name.lower().endswith(ENDINGS))
    if not files:
        raise SamunetError(f"{source} holds no images; supported endings: {', '.join(ENDINGS)}.")
    return Cutting(
        source=str(source),
        licence=NOT_DECLARED,
        cases=tuple(Case(name=str(f.relative_to(source)), images=(f,)) for f in files),
        load=lambda case: _frames(case.images[0]),
        framed=True,
    )


def _frames(file: Path) -> list[LoadedCase]:
    """An image of one file; volumes of a 4D one stand for themselves: nothing says that they are channels.

    Of more than MOST_FRAMES that many are taken, evenly spread: they are nearly alike.
    """
    image, geometry = read_image([file])
    image = _without_alpha(image, [file])
    count = len(image)
    if file_kind(file) != "volume" or count == 1 or _is_colour(image):
        return [LoadedCase(image, None, geometry)]
    chosen = np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int)
    logger.info("%s holds %d volumes; %d of them are taken.", file.name, count, len(chosen))
    return [LoadedCase(image[frame : frame + 1], None, geometry) for frame in chosen.tolist()]


def write_slices(cutting: Cutting, folder: Path) -> SliceIndex:
    """Write the slices of a source; a complete folder of the same cases and files is taken as it is.

    Cases of a complete folder, and those that an interrupted cutting has finished, are kept unless their
    files changed since, or nothing tells what they were cut from (as in a folder of an earlier version).

    Raises:
        SamunetError: a case cannot be read, or none has a picture in it.
    """
    found = found_slices(folder)
    if found is not None and found.of(cutting):
        changed = found.changed(cutting)
        if not changed:
            return found
        _say_changed(found, changed, folder)
    kept = _cut_before(cutting, folder)
    mapped.cache_clear()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    cases = tuple(_write_cases(cutting, folder, kept))
    index = SliceIndex(
        source=cutting.source, licence=cutting.licence, excluded=len(cutting.excluded), cases=cases
    )
    if not index.slices:
        raise SamunetError(f"{index.source}: all images are constant or below {SMALLEST_SIDE} pixels.")
    write_json(folder / INDEX, index)
    end_progress(folder)
    return index


def _say_changed(found: SliceIndex, changed: Sequence[str], folder: Path) -> None:
    if not any(case.stamp for case in found.cases):
        logger.warning(
            "%s: the slices in %s are of an earlier version, which did not write down of which files they "
            "were cut. They are cut anew.",
            found.source,
            folder,
        )
        return
    logger.warning(
        "%s: the files of %s are not as they were when they were cut into slices. They are cut anew.",
        found.source,
        counted_cases(changed),
    )


def cases_to_cut(cutting: Cutting, folder: Path) -> list[Case]:
    """Cases whose slices are not there yet, or of other files; none for a complete folder."""
    before = _cut_before(cutting, folder)
    return [case for number, case in enumerate(cutting.cases) if number not in before]


def _cut_before(cutting: Cutting, folder: Path) -> dict[int, SlicedCase]:
    """Cases of this cutting, by number, whose slices are there and of the files as they are now."""
    found = found_slices(folder)
    complete = () if found is None else found.cases
    there = {case.number: case for case in complete} | read_progress(folder)
    return {
        number: case
        for number, case in there.items()
        if number < len(cutting.cases)
        and case.name == cutting.cases[number].name
        and case.stamp == cutting.stamp(number)
    }


def _write_cases(cutting: Cutting, folder: Path, before: Mapping[int, SlicedCase]) -> list[SlicedCase]:
    begin_progress(folder, before.values())
    cut = []
    for number, case in enumerate(cutting.cases):
        sliced = before.get(number)
        if sliced is None:
            mark = cutting.stamp(number)
            sliced = replace(_write_case(_volumes(cutting, case), folder, case.name, number), stamp=mark)
            add_progress(folder, sliced)
        cut.append(sliced)
    return cut


def _volumes(cutting: Cutting, case: Case) -> Sequence[LoadedCase]:
    """A case as it is read; of a folder of images nothing where it cannot be, for others are there."""
    try:
        return cutting.load(case)
    except SamunetError as fault:
        if not cutting.framed:
            raise
        logger.warning("%s", fault)
        return ()


def _write_case(volumes: Sequence[LoadedCase], folder: Path, name: str, number: int) -> SlicedCase:
    if not volumes:
        return SlicedCase(name=name, number=number, slices=0, labelled=())
    found = [case_slices(volume) for volume in volumes]
    pictures = np.concatenate([pictures for pictures, _ in found])
    labels = found[0][1]  # what has labels is one volume
    if not len(pictures):
        logger.warning("%s has no slice with an image in it; it is left out.", name)
    grey = bool((pictures == pictures[:, :1]).all())
    _save(folder / f"{number}_image.npy", pictures[:, :1] if grey else pictures)
    if labels is not None:
        _save(folder / f"{number}_label.npy", labels)
    labelled = () if labels is None else tuple(np.flatnonzero(_has_objects(labels)).tolist())
    return SlicedCase(name=name, number=number, slices=len(pictures), labelled=labelled)


def _has_objects(labels: np.ndarray) -> np.ndarray:
    """Which slices (N,) of labels (N, H, W) show more than background and what nobody annotated."""
    return ((labels > 0) & (labels != UNANNOTATED)).any((1, 2))


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def case_slices(case: LoadedCase) -> tuple[np.ndarray, np.ndarray | None]:
    """Slices of a case across the axis of the largest spacing, or of one voxel where there is such an axis.

    Colour of 8 bits stays as it is; else each channel's percentiles become 0 and 255. Constant slices are
    dropped.

    Args:
        case: image (C, Z, Y, X).

    Returns:
        pictures uint8 (slices, 3, H, W), and labels uint16 (slices, H, W), negative ones 0, or None.
    """
    image = case.image
    axis = slice_axis(case.geometry.spacing_mm, image.shape[1:])
    image = np.moveaxis(image, axis + 1, 1)
    if min(image.shape[2:]) < SMALLEST_SIDE:
        return np.zeros((0, 3, *image.shape[2:]), np.uint8), None
    windows = [(0.0, 1.0)] * 3 if _is_colour(image) else [_window(channel) for channel in image]
    low, factor = (np.array(values)[:, None, None] for values in zip(*windows))
    matrix = channel_matrix(len(image)).numpy()
    pictures = np.empty((image.shape[1], 3, *image.shape[2:]), np.uint8)
    for number, picture in enumerate(pictures):  # one by one: in double precision a volume takes a lot
        shown = (image[:, number] - low) * factor
        picture[:] = np.einsum("rc,cyx->ryx", matrix, shown).round().clip(0, 255)
    kept = pictures.max((1, 2, 3)) > pictures.min((1, 2, 3))
    if case.label is None:
        return pictures[kept], None
    labels = np.moveaxis(case.label, axis, 0)[kept]
    return pictures[kept], labels.clip(0).astype(np.uint16)


def _is_colour(image: np.ndarray) -> bool:
    in_range = len(image) == 3 and image.min() >= 0 and 1 < image.max() <= 255
    return bool(in_range) and all(np.array_equal(channel, np.rint(channel)) for channel in image)


def _window(channel: np.ndarray) -> tuple[float, float]:
    """Least value that is shown, and what the distance from it is multiplied by for 0 to 255."""
    low, high = map(float, np.percentile(channel, PERCENTILES))
    if high <= low:
        low, high = float(channel.min()), float(channel.max())
    return low, 255 / max(high - low, 1e-6)
