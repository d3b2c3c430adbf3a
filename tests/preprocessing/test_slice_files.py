"""Slices on the disk: grey ones once or as colour, what an interruption leaves, and the room they need."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samunet.data.cases import Case
from samunet.data.dataset import LoadedCase, RawDataset
from samunet.errors import SamunetError
from samunet.preprocessing.slice_draws import Slices
from samunet.preprocessing.slice_index import INDEX, found_slices
from samunet.preprocessing.slice_progress import PROGRESS
from samunet.preprocessing.slice_room import check_slice_room, expected_bytes
from samunet.preprocessing.slices import (
    Cutting,
    cases_to_cut,
    dataset_cutting,
    folder_cutting,
    write_slices,
)


def cut(dataset: Path, folder: Path) -> Slices:
    return Slices(folder, write_slices(dataset_cutting(RawDataset.load(dataset), frozenset()), folder))


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.npy"))


def test_grey_slices_are_stored_once_and_drawn_as_three(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    Image.fromarray(grey).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "in" / "b.png")
    slices = Slices(tmp_path / "out", write_slices(folder_cutting(tmp_path / "in"), tmp_path / "out"))
    for number in range(2):
        assert np.load(tmp_path / "out" / f"{number}_image.npy").shape == (1, 1, 20, 30)
    picture, _ = slices.draw(np.random.default_rng(0), validation=False)
    assert picture.shape == (3, 20, 30)
    assert picture.flags.writeable
    assert (picture[0] == picture[2]).all()


def test_colour_keeps_its_channels(tiny_rgb_dataset: Path, tmp_path: Path) -> None:
    cut(tiny_rgb_dataset, tmp_path)
    assert np.load(tmp_path / "0_image.npy").shape[1] == 3


def test_grey_slices_that_are_stored_as_colour_are_drawn_alike(tmp_path: Path) -> None:
    """Three equal channels on the disk give the same pictures, and are not cut again."""
    one = tmp_path / "one.png"
    (tmp_path / "in").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 30), np.uint8)).save(one)
    shutil.copy(one, tmp_path / "in" / "a.png")
    cutting = folder_cutting(tmp_path / "in")
    new = Slices(tmp_path / "new", write_slices(cutting, tmp_path / "new"))
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    stored = np.load(tmp_path / "new" / "0_image.npy")
    np.save(tmp_path / "old" / "0_image.npy", np.repeat(stored, 3, axis=1))
    old = Slices(tmp_path / "old", write_slices(cutting, tmp_path / "old"))
    assert np.load(tmp_path / "old" / "0_image.npy").shape[1] == 3
    for seed in range(3):
        drawn = [slices.draw(np.random.default_rng(seed), validation=False)[0] for slices in (old, new)]
        assert np.array_equal(*drawn)


class Stopped(Exception):
    """In place of Ctrl-C."""


def stopping_at(cutting: Cutting, name: str) -> Cutting:
    def load(case: Case) -> Sequence[LoadedCase]:
        if case.name == name:
            raise Stopped
        return cutting.load(case)

    return replace(cutting, load=load)


def counting(cutting: Cutting, read: list[str]) -> Cutting:
    def load(case: Case) -> Sequence[LoadedCase]:
        read.append(case.name)
        return cutting.load(case)

    return replace(cutting, load=load)


def test_an_interrupted_cutting_goes_on_by_case(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = RawDataset.load(tiny_dataset)
    cutting = dataset_cutting(dataset, frozenset())
    whole = write_slices(cutting, tmp_path / "whole")
    folder = tmp_path / "slices"
    with pytest.raises(Stopped):
        write_slices(stopping_at(cutting, "tiny_002"), folder)
    assert not (folder / INDEX).exists()
    with (folder / PROGRESS).open("a") as file:
        file.write('{"number": 2, "sta')  # the line that the power cut off
    names = [case.name for case in cases_to_cut(cutting, folder)]
    read: list[str] = []
    assert write_slices(counting(cutting, read), folder) == whole
    assert names == read == ["tiny_002", "tiny_003", "tiny_004", "tiny_005"]
    assert not (folder / PROGRESS).exists()
    assert cases_to_cut(cutting, folder) == []
    for file in (tmp_path / "whole").glob("*.npy"):
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_what_is_kept_is_of_the_same_cases_and_files(tiny_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / tiny_dataset.name
    shutil.copytree(tiny_dataset, copy)
    dataset = RawDataset.load(copy)
    cutting = dataset_cutting(dataset, frozenset())
    folder = tmp_path / "slices"
    with pytest.raises(Stopped):
        write_slices(stopping_at(cutting, "tiny_003"), folder)
    changed = dataset.case("tiny_001").images[0]
    os.utime(changed, (1, 1))
    assert [case.name for case in cases_to_cut(cutting, folder)][:2] == ["tiny_001", "tiny_003"]
    others = dataset_cutting(dataset, frozenset({"tiny_000"}))  # the same numbers mean other cases
    assert cases_to_cut(others, folder) == list(others.cases)
    with pytest.raises(Stopped):
        write_slices(stopping_at(others, "tiny_001"), folder)
    assert cases_to_cut(cutting, folder) == list(cutting.cases)


def test_cases_whose_files_changed_are_cut_anew(
    tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A complete folder is no reason to go on with what was corrected since, in one process neither."""
    copy, folder = tmp_path / tiny_dataset.name, tmp_path / "slices"
    shutil.copytree(tiny_dataset, copy)
    before = cut(copy, folder)
    for seed in range(12):
        before.draw(np.random.default_rng(seed), validation=False)
    dataset = RawDataset.load(copy)
    cutting = dataset_cutting(dataset, frozenset())
    other = dataset.case("tiny_002")
    for here, there in zip(other.files, dataset.case("tiny_001").files):
        shutil.copy(here, there)
    assert [case.name for case in cases_to_cut(cutting, folder)] == ["tiny_001"]
    read: list[str] = []
    with caplog.at_level("INFO"):
        again = Slices(folder, write_slices(counting(cutting, read), folder))
    assert read == ["tiny_001"]
    assert "1 case (tiny_001)" in caplog.text
    fresh = cut(copy, tmp_path / "fresh")
    assert again.index == fresh.index
    for seed in range(12):
        drawn = [slices.draw(np.random.default_rng(seed), validation=False) for slices in (again, fresh)]
        assert np.array_equal(drawn[0][0], drawn[1][0])
        assert np.array_equal(drawn[0][1].labels, drawn[1][1].labels)
    assert cases_to_cut(cutting, folder) == []


def test_slices_of_which_nothing_tells_the_files_are_cut_anew(
    tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As earlier versions wrote them: read, known by their names, but not taken."""
    cutting = dataset_cutting(RawDataset.load(tiny_dataset), frozenset())
    whole = write_slices(cutting, tmp_path)
    content = json.loads((tmp_path / INDEX).read_text())
    for case in content["cases"]:
        del case["stamp"]
    (tmp_path / INDEX).write_text(json.dumps(content))
    found = found_slices(tmp_path)
    assert found is not None
    assert found.of(cutting)
    read: list[str] = []
    with caplog.at_level("INFO"):
        assert write_slices(counting(cutting, read), tmp_path) == whole
    assert read == list(cutting.names)
    assert "an earlier version" in caplog.text


def test_the_room_is_counted_from_headers(
    tiny_dataset: Path, tiny_rgb_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuttings = {
        tmp_path / place.name: dataset_cutting(RawDataset.load(place), frozenset())
        for place in (tiny_dataset, tiny_rgb_dataset)
    }
    with caplog.at_level("INFO"):
        check_slice_room(cuttings)
    assert f"{tiny_dataset.name}: 6 cases are cut into slices, at most about " in caplog.text
    assert not any(folder.exists() for folder in cuttings)
    for folder, cutting in cuttings.items():
        size = expected_bytes(cutting.cases, framed=cutting.framed)
        write_slices(cutting, folder)
        assert 0.3 * size < bytes_in(folder) < 1.1 * size + 256 * len(cutting.cases)
    caplog.clear()
    with caplog.at_level("INFO"):
        check_slice_room(cuttings)
    assert not caplog.text  # nothing is left to cut


def test_a_disk_without_the_room_is_refused_before_anything_is_cut(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    folder = tmp_path / "slices" / tiny_dataset.name
    with pytest.raises(SamunetError, match=r"The slices need up to .* MB in .*slices; 0\.0 MB can be used"):
        check_slice_room({folder: dataset_cutting(RawDataset.load(tiny_dataset), frozenset())})
    assert not folder.exists()
