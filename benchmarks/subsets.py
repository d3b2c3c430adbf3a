"""Raw datasets made of chosen cases, and one plain scorer that serves every system alike."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

HELD_OUT = json.loads(Path(__file__).with_name("held_out.json").read_text())


def held_out_cases(dataset: str) -> list[str]:
    """Names of the cases that no training may see."""
    return list(HELD_OUT["datasets"][dataset]["held_out"])


def patient_of(case: str) -> str:
    """Whose a case is: Dataset002 has two frames of a patient, the other sets one case."""
    return case.split("_frame")[0]


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it, a copy elsewhere; a link that is there stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):  # another process may have made it just now
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def make_training_dataset(source: Path, target: Path, names: Sequence[str]) -> None:
    """Write a raw dataset with the chosen training cases of `source` (groups.csv goes along)."""
    description: dict[str, Any] = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    for name in names:
        for image in images_of(source, name, ending):
            link_or_copy(image, target / "imagesTr" / image.name)
        link_or_copy(source / "labelsTr" / f"{name}{ending}", target / "labelsTr" / f"{name}{ending}")
    description["numTraining"] = len(names)
    (target / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    if (source / "groups.csv").exists():
        lines = (source / "groups.csv").read_text().splitlines()
        kept = [line for line in lines[1:] if line.split(",")[0] in set(names)]
        (target / "groups.csv").write_text("\n".join([lines[0], *kept]) + "\n")


def make_test_folders(source: Path, images: Path, labels: Path, names: Sequence[str]) -> None:
    """Put the chosen cases' images and labels into two folders."""
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    for name in names:
        for image in images_of(source, name, ending):
            link_or_copy(image, images / image.name)
        link_or_copy(source / "labelsTr" / f"{name}{ending}", labels / f"{name}{ending}")


def images_of(dataset: Path, name: str, ending: str) -> list[Path]:
    """Channel files of a case in order; a natural image is one file with all its channels."""
    return sorted((dataset / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))


def dice_scores(labels: Path, predictions: Path, dataset_json: Path) -> dict[str, Any]:
    """Dice per class and case over all files of `labels`; absent in both is None and left out of means.

    Raises:
        FileNotFoundError: a prediction is missing.
    """
    description = json.loads(dataset_json.read_text())
    classes = {name: value for name, value in description["labels"].items() if value not in (0, [0])}
    cases: dict[str, dict[str, float | None]] = {}
    for reference_file in sorted(labels.glob(f"*{description['file_ending']}")):
        reference = _array(reference_file)
        predicted = _array(predictions / reference_file.name)
        assert reference.shape == predicted.shape, reference_file.name
        case = reference_file.name.removesuffix(description["file_ending"])
        cases[case] = class_dice(reference, predicted, classes)
    return scores_of(cases)


def class_dice(
    reference: np.ndarray, predicted: np.ndarray, classes: Mapping[str, int]
) -> dict[str, float | None]:
    """Dice of each class of one case; None where it is in neither."""
    row: dict[str, float | None] = {}
    for name, value in classes.items():
        a, b = reference == value, predicted == value
        size = int(a.sum()) + int(b.sum())
        row[name] = 2 * int((a & b).sum()) / size if size else None
    return row


def scores_of(cases: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Mean Dice of classes and over them, with the cases' own."""
    names = next(iter(cases.values()))
    by_class = {
        name: float(np.mean([row[name] for row in cases.values() if row[name] is not None])) for name in names
    }
    return {"dice": float(np.mean(list(by_class.values()))), "by_class": by_class, "cases": cases}


def _array(file: Path) -> np.ndarray:
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
