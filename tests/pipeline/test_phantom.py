"""The phantom is honest: neither grey value nor place alone finds its organs; and it is a raw dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import zoom

from samunet.errors import SamunetError
from samunet.pipeline.demo.phantom import (
    ORGANS,
    PhantomCase,
    PhantomSettings,
    generate_case,
    write_phantom_dataset,
)

NUM_TRAINING, NUM_TEST, NUM_BINS = 12, 4, 256


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [
        generate_case(PhantomSettings(), np.random.default_rng([0, i]))
        for i in range(NUM_TRAINING + NUM_TEST)
    ]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def standardise(case: PhantomCase, inside_body: bool) -> np.ndarray:
    """Grey values freed of the scanner's gain: z-scored, or relative to the body's median."""
    image = case.image.astype(np.float64)
    if inside_body:
        return image / np.median(image[image > 0.25 * np.percentile(image, 99)])
    return (image - image.mean()) / image.std()


@pytest.mark.parametrize("inside_body", [False, True])
def test_best_intensity_classifier_scores_under_a_half(cases: list[PhantomCase], inside_body: bool) -> None:
    """For every organ the set of grey values with the best possible Dice, found on the cases it is scored on.

    Sorting the bins of a histogram by P(organ | grey value) and cutting where Dice peaks is the Dice-optimal
    per-voxel rule; chosen for each organ alone and on the scored cases themselves it bounds every classifier
    of the voxel's intensity from above.
    """
    values = [standardise(case, inside_body) for case in cases]
    edges = np.quantile(np.concatenate([v.ravel() for v in values]), np.linspace(0, 1, NUM_BINS + 1))[1:-1]
    bins = np.concatenate([np.digitize(v, edges).ravel() for v in values])
    labels = np.concatenate([case.label.ravel() for case in cases])
    total = np.bincount(bins, minlength=NUM_BINS)
    best = []
    for organ in range(1, len(ORGANS) + 1):
        hits = np.bincount(bins[labels == organ], minlength=NUM_BINS)
        order = np.argsort(-hits / np.maximum(total, 1))
        scores = 2 * np.cumsum(hits[order]) / (np.cumsum(total[order]) + hits.sum())
        best.append(scores.max())
    assert np.mean(best) < 0.25  # the promise is 0.5; measured 0.18


def test_place_alone_does_not_suffice(cases: list[PhantomCase]) -> None:
    """An average label map of the training cases, cut at its best level, stays far off."""
    height = 20

    def aligned(case: PhantomCase) -> np.ndarray:
        return zoom(case.label, (height / case.label.shape[0], 1, 1), order=0)

    training = [aligned(case) for case in cases[:NUM_TRAINING]]
    scores = []
    for organ in range(1, len(ORGANS) + 1):
        share = np.mean([label == organ for label in training], axis=0)
        for case in cases[NUM_TRAINING:]:
            target = aligned(case) == organ
            scores.append(max(dice(share > level, target) for level in (0.1, 0.2, 0.3, 0.4, 0.5)))
    assert np.mean(scores) < 0.65  # the networks must reach 0.70 and 0.80


def test_every_case_has_every_organ_and_its_own_shape(cases: list[PhantomCase]) -> None:
    shapes = {case.image.shape for case in cases}
    spacings = {case.geometry.spacing_mm for case in cases}
    assert len(shapes) > 1
    assert len(spacings) == len(cases)
    for case in cases:
        counts = np.bincount(case.label.ravel(), minlength=len(ORGANS) + 1)
        assert np.all(counts[1:] > 100), counts
        assert case.image.min() >= 0
        assert case.image.dtype == np.int16
    right, left = (ORGANS.index(name) + 1 for name in ("kidney_right", "kidney_left"))
    for case in cases:  # x grows to the patient's left
        assert np.argwhere(case.label == right)[:, 2].mean() < np.argwhere(case.label == left)[:, 2].mean()


def test_same_seed_same_case() -> None:
    settings = PhantomSettings(shape=(6, 32, 40), spacing_mm=(18.0, 10.0, 10.0))
    first, second = (generate_case(settings, np.random.default_rng(3)) for _ in range(2))
    other = generate_case(settings, np.random.default_rng(4))
    assert np.array_equal(first.image, second.image)
    assert first.geometry == second.geometry
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_written_dataset(tmp_path: Path) -> None:
    settings = PhantomSettings(shape=(6, 32, 40), spacing_mm=(18.0, 10.0, 10.0))
    folder = write_phantom_dataset(
        tmp_path / "Dataset900_Phantom", num_training=2, num_test=1, settings=settings
    )
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert list(description["labels"]) == ["background", *ORGANS]
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    assert files == [
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    ]
    image, label = (sitk.ReadImage(str(folder / files[i])) for i in (0, 3))
    assert image.GetSize() == label.GetSize()
    assert image.GetSpacing() == label.GetSpacing()
    assert image.GetOrigin() == label.GetOrigin()
    with pytest.raises(SamunetError, match="not empty"):
        write_phantom_dataset(folder)
