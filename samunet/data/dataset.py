"""A raw dataset in nnU-Net's layout: dataset.json, imagesTr, labelsTr."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.cases import (
    Case,
    absent,
    cases_of_map,
    empty_folder,
    file_faults,
    find_cases,
    group_files,
    passed_over,
)
from samunet.data.geometry import Geometry, grid_differences, same_voxels
from samunet.data.groups import Origins, origins_of_cases, read_origins
from samunet.data.labels import LabelSet
from samunet.data.readers import file_kind, read_image, read_label, segmentation_ending
from samunet.errors import SamunetError, unknown_name
from samunet.listing import listed
from samunet.records import read_json
from samunet.workspace import DATASET_FILE

__all__ = ["Case", "LoadedCase", "RawDataset", "find_cases"]

logger = logging.getLogger(__name__)

READERS_LIKE_OURS = ("None", "NaturalImage2DIO", "SimpleITKIO", "NibabelIO", "Tiff3DIO")
"""nnU-Net's readers whose arrays ours equal; `overwrite_image_reader_writer` may name them."""


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory.

    Attributes:
        image: float32 (C, Z, Y, X), finite.
        label: integers of the file (Z, Y, X), or None.
        geometry: of the image; the label lies on the same grid.
    """

    image: np.ndarray
    label: np.ndarray | None
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """What dataset.json and the folders say. The files themselves are not read.

    Attributes:
        name: of the folder, `Dataset101_Heart`.
        channel_names: in channel order.
        file_ending: of the images; labels have `label_ending` (the same, but .png for JPEG images).
        cases: training cases by name.
        origins: groups and patients of the cases, as far as they are declared.
        declared: the same of all names that are declared, be they of training cases or of others.
        json: content of dataset.json.
        faults: what is wrong with files and names; empty unless loaded with `strict=False`.
    """

    name: str
    folder: Path
    channel_names: tuple[str, ...]
    labels: LabelSet
    file_ending: str
    cases: tuple[Case, ...]
    origins: Origins = field(default_factory=Origins)
    declared: Origins = field(default_factory=Origins)
    json: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path, strict: bool = True, *, labels_optional: bool = False) -> RawDataset:
        """Read dataset.json and find the cases.

        Args:
            folder: the dataset's raw folder.
            strict: refuse a dataset with missing files; else keep the list in `faults`.
            labels_optional: cases without a label file have the label None.

        Raises:
            SamunetError: dataset.json is missing or malformed (names the key); with `strict` also missing
                channels, missing labels and empty folders, all of them in one message.
        """
        folder = Path(folder)
        file = folder / DATASET_FILE
        if not file.is_file():
            raise SamunetError(f"There is no {file}. It declares channel_names, labels and file_ending.")
        content = read_json(file)
        if not isinstance(content, dict):
            raise SamunetError(f"{file} must hold an object with channel_names, labels and file_ending.")
        channel_names = parse_channel_names(content, str(file))
        labels = LabelSet.from_dataset_json(content, str(file))
        ending = parse_ending(content, file)
        _mention_reader(content, file)
        cases, faults = _find_training_cases(folder, content, ending, len(channel_names), labels_optional)
        if faults and strict:
            raise SamunetError("\n".join([f"{folder} cannot be used:", *faults]))
        declared = read_origins(folder, content)
        return cls(
            name=Path(os.path.abspath(folder)).name,
            folder=folder,
            channel_names=channel_names,
            labels=labels,
            file_ending=ending,
            cases=cases,
            origins=origins_of_cases(declared, (case.name for case in cases), ending, folder),
            declared=declared,
            json=content,
            faults=tuple(faults),
        )

    def unused_files(self) -> list[str]:
        """In words, images and labels that no case has, as by another ending or a missing partner."""
        if "dataset" in self.json:
            return []
        images, labels = self.folder / "imagesTr", self.folder / "labelsTr"
        found = [passed_over(images, self.file_ending)]
        if labels.is_dir():
            known = {f"{name}{self.label_ending}" for name in self.case_names}
            alone = sorted(file.name for file in labels.glob(f"[!.]*{self.label_ending}"))
            alone = [name for name in alone if name not in known]
            found += [f"{labels}: labels without an image: {listed(alone)}."] if alone else []
        return [told for told in found if told]

    @property
    def groups(self) -> Mapping[str, str]:
        """Case name -> group; empty when none are declared."""
        return self.origins.groups

    @property
    def label_ending(self) -> str:
        return segmentation_ending(self.file_ending)

    @property
    def case_names(self) -> tuple[str, ...]:
        return tuple(case.name for case in self.cases)

    def case(self, name: str) -> Case:
        """The case of that name.

        Raises:
            SamunetError: there is none; lists the closest names.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise unknown_name(f"case of {self.name}", name, self.case_names)

    def read(self, case: Case) -> LoadedCase:
        """Read image and label of a case and see that they fit together.

        Raises:
            SamunetError: unreadable, NaN, wrong number of channels, or image and label on different grids;
                names the file. Label values are checked by `labels.encode`.
        """
        image, geometry = read_image(case.images)
        if len(image) != len(self.channel_names):
            raise SamunetError(
                f"Case {case.name} has {len(image)} channel(s) in {', '.join(map(str, case.images))}; "
                f"dataset.json declares {len(self.channel_names)}."
            )
        if case.label is None:
            return LoadedCase(image, None, geometry)
        label, label_geometry = read_label(case.label)
        check_label_grid(case, geometry, label_geometry)
        return LoadedCase(image, label, geometry)


def check_label_grid(case: Case, image: Geometry, label: Geometry) -> None:
    """See that the label of a case lies on its image's grid.

    Raises:
        SamunetError: it does not; names both files and what differs.
    """
    fault = label_grid_fault(case, image, label)
    if fault:
        raise SamunetError(fault)


def label_grid_fault(case: Case, image: Geometry, label: Geometry) -> str:
    """What to say where a label does not lie on its image's grid; empty where it does."""
    differences = label_differences(case, image, label)
    if not differences:
        return ""
    remedy = "Resample or re-export the label on the image's grid."
    if same_voxels(image, label):
        remedy = (
            "If the two overlay voxel by voxel, only a header is wrong: give the label the image's (in "
            "SimpleITK label.CopyInformation(image)). If they do not, resample the label onto the image's "
            "grid."
        )
    return f"{case.label} does not lie on the grid of {case.images[0]}: {'; '.join(differences)}. {remedy}"


def label_differences(case: Case, image: Geometry, label: Geometry) -> list[str]:
    """How the grid of a label differs from its image's; a label without own spacing takes the image's."""
    from samunet.data import tiff

    assert case.label is not None
    states_spacing = file_kind(case.label) != "tiff" or tiff.sidecar(case.label) is not None
    return grid_differences(image, label, compare_spacing=states_spacing)


def parse_channel_names(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names in channel order from `channel_names`, or from the legacy key `modality`.

    Raises:
        SamunetError: missing, or keys that are not channel numbers.
    """
    key = "channel_names" if "channel_names" in content else "modality"
    declared = content.get(key)
    if not isinstance(declared, Mapping) or not declared:
        close = get_close_matches("channel_names", [str(name) for name in content if name != key], n=1)
        hint = f" There is a key `{close[0]}`; is it meant?" if close else ""
        raise SamunetError(
            f'{where}: key `channel_names` must be an object such as {{"0": "T1", "1": "T2"}}.{hint}'
        )
    for number, name in declared.items():
        if not str(number).strip().isdecimal():
            raise SamunetError(
                f"{where}: `{key}` has the key {number!r} where a channel number is expected; "
                f'write "0": {str(number)!r} rather than {number!r}: {name!r}.'
            )
        if not isinstance(name, (str, int)):
            raise SamunetError(f"{where}: `{key}.{number}` must be the channel's name, found {name!r}.")
    return tuple(str(declared[number]) for number in sorted(declared, key=int))


def parse_ending(content: Mapping[str, Any], file: Path) -> str:
    """`file_ending` of a dataset.json with that content.

    Raises:
        SamunetError: it is missing, no text with a dot, or of no kind of file that can be read.
    """
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise SamunetError(
            f'{file}: key `file_ending` must be an ending with its dot, ".nii.gz": {ending!r}.'
        )
    try:
        file_kind(f"x{ending}")
    except SamunetError as error:
        raise SamunetError(f"{file}: `file_ending` {str(error).removeprefix('x')}") from error
    return ending


def _mention_reader(content: Mapping[str, Any], file: Path) -> None:
    wanted = content.get("overwrite_image_reader_writer")
    if wanted is not None and str(wanted) not in READERS_LIKE_OURS:
        logger.warning(
            "%s: `overwrite_image_reader_writer` = %s is ignored; axes stay as stored.", file, wanted
        )


def _find_training_cases(
    folder: Path, content: Mapping[str, Any], ending: str, num_channels: int, labels_optional: bool
) -> tuple[tuple[Case, ...], list[str]]:
    """Training cases with their labels, and all faults of names and files."""
    if "dataset" in content:
        cases = cases_of_map(folder, content["dataset"], str(folder / DATASET_FILE))
        faults = [] if cases else [f"{folder / 'dataset.json'}: `dataset` lists no case."]
    else:
        images, labels = folder / "imagesTr", folder / "labelsTr"
        needed = (images,) if labels_optional else (images, labels)
        missing = [absent(f, "folder") for f in needed if not f.is_dir()]
        if missing:
            return (), missing
        found, of_names = group_files(images, ending, num_channels)
        faults = list(of_names.values())
        label_ending = segmentation_ending(ending)
        cases = tuple(Case(c.name, c.images, labels / f"{c.name}{label_ending}") for c in found)
        faults += [] if cases else [empty_folder(images, ending, num_channels)]
    if labels_optional:
        cases = tuple(c if c.label is None or c.label.is_file() else replace(c, label=None) for c in cases)
    for case in cases:
        faults += file_faults(case, num_channels)
    return cases, faults
