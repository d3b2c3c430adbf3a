"""Postprocessing of label maps by fixed rules: components that are kept, holes that are filled.

A voxel that a rule removes becomes background. Components touch by faces, edges or corners; holes are
background that is enclosed in all directions (in the plane for an image of one slice). Sizes are in mm³; a
pixel of a 2D image counts as a voxel of 1 mm thickness, one of a picture as 1 mm³, as in the evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from samunet.data.geometry import Box, Geometry, bounding_box, voxel_volume_mm3
from samunet.data.labels import LabelSet
from samunet.data.names import files_with_ending
from samunet.data.readers import read_header, read_label, segmentation_ending, write_segmentation
from samunet.data.workers import map_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.evaluation.declared import Declared, labels_text
from samunet.inference.finished import refuse_unfinished
from samunet.inference.output_folder import check_output, refuse_foreign_files
from samunet.listing import listed
from samunet.progress import Progress
from samunet.records import read_json, read_record, write_json
from samunet.whole_files import remove_partials
from samunet.workspace import (
    DATASET_FILE,
    PLAN_FILE,
    POSTPROCESSING_FILE,
    POSTPROCESSING_UNFINISHED_FILE,
)

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 24
"""Memory of one case in work: the map as read, as indices, a mask and its numbered components."""

Kind = Literal["largest_component", "minimum_size", "fill_holes"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One step.

    Attributes:
        kind: `largest_component` keeps the largest (all of equal size), `minimum_size` those of at least
            `minimum_mm3`, `fill_holes` turns enclosed background into the class.
        target: name of a class or region; None is all foreground together.
        minimum_mm3: for `minimum_size` only.
    """

    kind: Kind
    target: str | None
    minimum_mm3: float | None = None

    def text(self) -> str:
        """The rule in plain words."""
        of = "of the whole foreground" if self.target is None else f"of {self.target}"
        if self.kind == "largest_component":
            return f"keep the largest component {of}"
        if self.kind == "minimum_size":
            return f"remove components {of} smaller than {self.minimum_mm3:g} mm3"
        return f"fill holes {of}"


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """Content of postprocessing.json: rules in their order, for label maps of these labels."""

    version: Literal[1] = 1
    labels: LabelSet
    rules: tuple[Rule, ...]

    @classmethod
    def load(cls, path: Path) -> Postprocessing:
        """Read and check a file.

        Raises:
            SamunetError: no such file, unknown keys, or rules that do not fit its labels.
        """
        postprocessing = read_record(cls, Path(path))
        faults = postprocessing.faults()
        if faults:
            raise SamunetError(f"{path} cannot be used: {'; '.join(faults)}.")
        return postprocessing

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self)

    def faults(self) -> list[str]:
        """In words, every rule that cannot be applied."""
        told = []
        for number, rule in enumerate(self.rules):
            if rule.target is not None and rule.target not in self.labels.foreground:
                known = ", ".join(self.labels.foreground)
                told.append(f"rules[{number}] names {rule.target!r}, which is none of {known}")
            if (rule.kind == "minimum_size") != (rule.minimum_mm3 is not None and rule.minimum_mm3 > 0):
                told.append(f"rules[{number}]: `minimum_mm3` above 0 belongs to minimum_size, and only there")
            if rule.kind == "fill_holes" and rule.target is None:
                told.append(f"rules[{number}]: fill_holes needs a class or region to fill with")
        return told

    def apply(self, label_map: np.ndarray, geometry: Geometry, where: str = "label map") -> np.ndarray:
        """Apply the rules to a label map (Z, Y, X) in the file's integers; voxels to ignore stay as they are.

        Returns:
            The map in its own type, or in a larger one where that cannot hold the value of a filled hole.

        Raises:
            SamunetError: the map holds values that the labels do not declare.
        """
        indices = self.labels.encode(label_map, where)
        apply_rules(indices, self.rules, self.labels, voxel_mm3(geometry))
        values = [*self.labels.values, *([] if self.labels.ignore is None else [self.labels.ignore])]
        result = np.asarray(values)[indices]
        return result.astype(_type_for(label_map.dtype, int(result.max(initial=0))))

    def text(self) -> str:
        """The rules in plain words."""
        return "; ".join(rule.text() for rule in self.rules) or "none"


def _type_for(kind: np.dtype, largest: int) -> np.dtype:
    """A label map's type, or a larger one that holds a value."""
    if kind.kind not in "iu" or largest <= np.iinfo(kind).max:
        return kind
    return np.promote_types(kind, np.min_scalar_type(largest))


def voxel_mm3(geometry: Geometry) -> float:
    """Volume of a voxel; a plane is 1 mm thick."""
    return voxel_volume_mm3(geometry.spacing_mm, geometry.is_2d)


def part_indices(labels: LabelSet, target: str | None) -> tuple[int, ...]:
    """Class indices of a class, a region, or the whole foreground; never background or the ignore label."""
    if target is None:
        return tuple(range(1, len(labels.values)))
    return tuple(index for index in labels.foreground[target] if index)


def apply_rules(indices: np.ndarray, rules: Sequence[Rule], labels: LabelSet, voxel: float) -> None:
    """Apply rules in place to class indices (Z, Y, X); `voxel` is the volume of one in mm³."""
    for rule in rules:
        box, mask = masked_box(indices, part_indices(labels, rule.target))
        if not mask.any():
            continue
        inside = indices[box.slices]
        components, sizes = number_components(mask)
        if rule.kind == "fill_holes":
            assert rule.target is not None
            inside[holes(components, inside, indices.shape)] = fill_index(labels, rule.target)
            continue
        if rule.kind == "largest_component":
            keep = sizes == sizes[1:].max()
        else:
            assert rule.minimum_mm3 is not None
            keep = sizes * voxel >= rule.minimum_mm3
        mask[mask] = ~keep[components[mask]]
        inside[mask] = 0


def masked_box(indices: np.ndarray, part: Sequence[int]) -> tuple[Box, np.ndarray]:
    """Box around a part and its mask inside the box; the whole array where the part is absent."""
    chosen = np.zeros(max(int(indices.max(initial=0)), *part) + 1, bool)
    chosen[list(part)] = True
    mask = chosen[indices]
    box = bounding_box(mask)
    return box, mask[box.slices]


def number_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components (Z, Y, X) of a mask that is not empty, from 1; and the voxels of each, entry 0 unused."""
    from scipy.ndimage import generate_binary_structure, label

    components, _ = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    return components, np.bincount(components[mask])


def holes(components: np.ndarray, indices: np.ndarray, image: Sequence[int]) -> np.ndarray:
    """Background voxels (bool) that a component encloses; those of other classes are no holes.

    A hole has one component around it (background touches by faces, components by corners too), so each is
    filled within its own box: stray voxels far away cost nothing.

    Args:
        components: of the class, in a box of the image.
        indices: class indices in that box.
        image: shape of the whole image; an axis of length one is no direction in which a hole could be open.
    """
    from scipy.ndimage import binary_fill_holes, find_objects

    found = np.zeros(components.shape, bool)
    for number, box in enumerate(find_objects(components), start=1):
        inside = components[box] == number
        flat = inside.reshape([n for n, whole in zip(inside.shape, image) if whole > 1])
        if flat.ndim and min(flat.shape) > 2:
            found[box] |= binary_fill_holes(flat).reshape(inside.shape) & (indices[box] == 0)
    return found


def fill_index(labels: LabelSet, target: str) -> int:
    """Class index that a filled hole gets: the class, or what the region is painted with."""
    part = part_indices(labels, target)
    if labels.region_order is None:
        return part[0]
    painted = labels.values.index(labels.region_order[list(labels.foreground).index(target)])
    return painted if painted in part else part[0]


def postprocess_folder(
    source: Path,
    output: Path,
    postprocessing: Postprocessing,
    *,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Apply the rules to every label map of a folder and write them under the same names.

    Args:
        source: predictions with the dataset.json that predicting left there (or of one kind of file only).
        output: another folder.

    Returns:
        Number of cases, and of those that were changed.

    Raises:
        SamunetError: no label maps, or some that an earlier prediction left, the same folder twice, an output
            that is of a raw dataset or holds another command's results or label maps of other rules that
            would stay there, other labels in dataset.json or in a map.
    """
    source, output = Path(source), Path(output)
    if source.resolve() == output.resolve():
        raise SamunetError(f"{output} holds the input; postprocessing needs an output folder of its own.")
    check_output(output, "samunet_apply_postprocessing")
    ending = _ending(source, postprocessing.labels)
    files = files_with_ending(source, ending)
    if not files:
        raise SamunetError(f"{source} holds no label maps with the ending {ending}.")
    refuse_unfinished(source, ending)
    output.mkdir(parents=True, exist_ok=True)
    remove_partials(output)
    record, unfinished = output / POSTPROCESSING_FILE, output / POSTPROCESSING_UNFINISHED_FILE
    if not _is_made_by(output, postprocessing):
        _refuse_others(output, ending, files)
        refuse_foreign_files(output, [output / file.name for file in files], record.name, unfinished.name)
        # An interruption leaves no word on maps of which some are replaced, but that they are ours.
        postprocessing.save(unfinished)
        record.unlink(missing_ok=True)
    largest = max(files, key=lambda path: path.stat().st_size)
    voxels = int(np.prod(read_header(largest, is_label=True).geometry.shape))
    changed = map_in_workers(
        partial(postprocess_file, output=output, postprocessing=postprocessing),
        files,
        worker_count(workers, BYTES_PER_VOXEL * voxels, len(files)),
        name=lambda path: path.name,
        progress=progress,
    )
    postprocessing.save(record)
    unfinished.unlink(missing_ok=True)
    for name in (DATASET_FILE, PLAN_FILE):
        if (source / name).is_file():
            write_json(output / name, read_json(source / name))
    return len(files), sum(changed)


def postprocess_file(file: Path, output: Path, postprocessing: Postprocessing) -> bool:
    """Postprocess one file into a folder; returns whether it changed."""
    label_map, geometry = read_label(file)
    result = postprocessing.apply(label_map, geometry, str(file))
    write_segmentation(result, geometry, output / file.name)
    return not np.array_equal(result, label_map)


def _is_made_by(output: Path, postprocessing: Postprocessing) -> bool:
    """Whether the record in a folder says that its label maps went through these rules."""
    try:
        found = Postprocessing.load(output / POSTPROCESSING_FILE)
    except SamunetError:  # none, or nobody can tell what it says
        return False
    alike = replace(found, labels=postprocessing.labels) == postprocessing
    return alike and found.labels.means_the_same(postprocessing.labels)


def _refuse_others(output: Path, ending: str, files: Sequence[Path]) -> None:
    """Refuse a folder with label maps that would stay: the record would speak of them too."""
    replaced = {file.name for file in files}
    others = [file.name for file in files_with_ending(output, ending) if file.name not in replaced]
    if others:
        raise SamunetError(
            f"{output} holds {len(others)} label map(s) that were made by other rules, or nobody knows how, "
            f"and that this input does not replace: {listed(others)}. {POSTPROCESSING_FILE} would speak "
            "of them too. Give another output folder with -o, or take them out of this one."
        )


def _ending(folder: Path, labels: LabelSet) -> str:
    """Ending of the label maps of a folder, as its dataset.json declares it; they must have these labels."""
    if not folder.is_dir():
        raise SamunetError(f"There is no folder {folder}.")
    declared = folder / DATASET_FILE
    if not declared.is_file():
        raise SamunetError(
            f"{folder} has no dataset.json, which says the ending of its label maps. samunet_predict leaves "
            "one there; else copy it from the dataset."
        )
    found = Declared.read(declared)
    if not found.labels.means_the_same(labels):
        raise SamunetError(
            f"The rules are for label maps with the labels {labels_text(labels)}, but {declared} says "
            f"{labels_text(found.labels)}. "
            "Take the rules of this dataset, or correct the file where it is wrong."
        )
    return segmentation_ending(found.file_ending)
