from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samunet.data.geometry import Box, Geometry
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.preprocessing import store as module
from samunet.preprocessing.case import PreprocessedCase, SpatialRecord
from samunet.preprocessing.locations import Locations, sample_locations
from samunet.preprocessing.store import CaseStore, layout, load_array
from samunet.records import read_json, write_json

LABELS = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,), "absent": (3,)})


def some_case(shape: tuple[int, int, int] = (7, 40, 35)) -> PreprocessedCase:
    rng = np.random.default_rng(0)
    label = rng.integers(-1, 3, shape).astype(np.int16)
    record = SpatialRecord(
        geometry=Geometry(shape=shape, spacing_mm=(3.0, 1.0, 1.0)),
        shape_before_crop=shape,
        crop_box=Box(lower=(0, 0, 0), upper=shape),
        shape=shape,
        spacing_before_mm=(3.0, 1.0, 1.0),
        spacing_mm=(3.0, 1.0, 1.0),
    )
    return PreprocessedCase(image=rng.normal(size=(2, *shape)).astype(np.float32), label=label, record=record)


@pytest.mark.parametrize("by_slice", [False, True])
def test_what_is_written_is_read(tmp_path: Path, by_slice: bool) -> None:
    store, case = CaseStore(tmp_path), some_case()
    locations = sample_locations(case.label, LABELS)
    store.write("case.one", case, locations, key="abc", by_slice=by_slice)
    stored = CaseStore(tmp_path).open("case.one")
    np.testing.assert_array_equal(stored.image[:], case.image)
    np.testing.assert_array_equal(stored.image[:, 2, 5:9], case.image[:, 2, 5:9])
    np.testing.assert_array_equal(stored.label[1:3], case.label[1:3])
    assert (stored.image.dtype, stored.label.dtype) == (np.float32, np.int16)
    assert stored.record == case.record
    assert list(stored.locations) == ["organ", "lesion", "absent"]
    for name, voxels in stored.locations.items():
        np.testing.assert_array_equal(voxels, locations.classes[name])
    assert stored.annotated is None
    assert store.names() == ("case.one",)
    assert store.open("case.one").entry.key == "abc"


def test_case_without_label(tmp_path: Path) -> None:
    store = CaseStore(tmp_path)
    store.write("a", replace(some_case(), label=None), Locations())
    stored = store.open("a")
    assert stored.label is None
    assert stored.locations == {}
    assert store.open("a").entry.key == ""


def test_missing_damaged_and_foreign_cases(tmp_path: Path) -> None:
    store, case = CaseStore(tmp_path), some_case()
    with pytest.raises(SamunetError, match="samunet_preprocess"):
        store.open("a")
    assert store.finished("a") is None
    store.write("a", case, Locations(), key="k")
    (tmp_path / "a.image.b2nd").write_bytes(b"nothing")
    with pytest.raises(SamunetError, match=r"a\.image\.b2nd"):
        _ = store.open("a").image
    (tmp_path / "a.label.b2nd").unlink()
    assert store.finished("a") is None
    (tmp_path / "a.json").write_text('{"format": 0}')
    assert store.finished("a") is None
    with pytest.raises(SamunetError, match=r"a\.json"):
        store.open("a")


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY cut"])
@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, mapped: bool) -> None:
    file = tmp_path / "a.npy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SamunetError, match=r"a\.npy is missing or damaged .*Preprocess again"):
        load_array(file, "Preprocess again.", mapped=mapped)


def test_rewriting_replaces_and_removing_leaves_nothing(tmp_path: Path) -> None:
    store, case = CaseStore(tmp_path), some_case()
    store.write("a", case, Locations())
    store.write("a", replace(case, image=case.image + 1), Locations())
    np.testing.assert_array_equal(store.open("a").image[:], case.image + 1)
    store.remove("a")
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_was_cut_off_is_not_finished(tmp_path: Path) -> None:
    """Else the advice to preprocess again would keep it, for ever."""
    store, case = CaseStore(tmp_path), some_case()
    store.write("a", case, Locations())
    assert store.finished("a") is not None
    for file in sorted(tmp_path.glob("a.*.*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert store.finished("a") is None
        file.write_bytes(whole)
    entry = read_json(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {key: value for key, value in entry.items() if key != "sizes"})
    assert store.finished("a") is not None  # of an earlier version


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, case = CaseStore(tmp_path), some_case()
    store.write("a", case, Locations(), key="old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        store.write("a", case, Locations(), key="new")
    assert store.open("a").entry.key == "old"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    with pytest.raises(OSError, match="No space"):
        store.write("b", case, Locations(), key="new")
    assert store.names() == ("a",)


def pieces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_finds_the_old_or_the_new_case_while_one_is_replaced(tmp_path: Path) -> None:
    store, big = CaseStore(tmp_path / "p"), some_case((60, 120, 120))
    store.write("a", big, Locations(), key="0")
    keys = ("1", "2", "3")

    def rewrite() -> None:
        for key in keys:
            store.write("a", replace(big, image=big.image + int(key)), Locations(), key=key)

    writer, found = threading.Thread(target=rewrite), set()
    writer.start()
    while writer.is_alive():
        case = store.open_whole("a")
        assert case.image[0, 0, 0, 0] == pytest.approx(big.image[0, 0, 0, 0] + int(case.entry.key))
        found.add(case.entry.key)
    writer.join()
    assert found <= {"0", *keys}
    assert len(found) > 1
    assert pieces(store.folder) == ["a.image.b2nd", "a.json", "a.label.b2nd", "a.locations.npy"]


def test_a_case_that_another_process_has_finished_meanwhile_stays(tmp_path: Path) -> None:
    """Its arrays may be open in a training."""
    store, case = CaseStore(tmp_path / "p"), some_case()
    store.write("a", case, Locations(), key="first", content="made-bytes")
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    store.write("a", case, Locations(), key="second", content="made-bytes")
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
    store.write("a", case, Locations(), key="third", content="made-otherwise")
    assert store.open("a").entry.key == "third"
    (store.folder / "a.image.b2nd").write_bytes(b"cut off")
    store.write("a", case, Locations(), key="fourth", content="made-otherwise")
    assert store.open_whole("a").entry.key == "fourth"


def test_a_case_without_a_label_leaves_none_of_the_one_that_it_replaces(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "p")
    store.write("a", some_case(), Locations())
    store.write("a", replace(some_case(), label=None), Locations())
    assert pieces(store.folder) == ["a.image.b2nd", "a.json", "a.locations.npy"]


def test_the_key_of_a_copy_is_noted_at_the_case_that_was_compared(tmp_path: Path) -> None:
    """Another process may have made the case in another way while the raw files were read."""
    store, case = CaseStore(tmp_path / "p"), some_case()
    store.write("a", case, Locations(), key="k", content="other-bytes")
    store.note_copy("a", "copy", content="made-bytes")
    assert store.open("a").entry.copied_from == ""
    store.note_copy("a", "copy", content="other-bytes")
    assert store.open("a").entry.copied_from == "copy"


def test_a_case_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CaseStore(tmp_path / "p")
    store.write("a", some_case(), Locations())
    (store.folder / "a.json").unlink()
    waited: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append))
    with pytest.raises(SamunetError, match="no preprocessed case a "):
        store.open("a")
    assert 0 < sum(waited) < 5  # half of one: its rest may be coming
    waited.clear()
    store.remove("a")
    with pytest.raises(SamunetError, match="no preprocessed case a "):
        store.open("a")
    assert not waited


def test_layout_follows_use_and_shape() -> None:
    assert layout((2, 200, 300, 300), 4, by_slice=False) == ((1, 50, 100, 100), (1, 25, 25, 25))
    assert layout((9, 20, 20), 2, by_slice=False) == ((9, 20, 20), (9, 20, 20))
    assert layout((2, 200, 300, 300), 4, by_slice=True) == ((1, 5, 300, 300), (1, 1, 109, 300))
    assert layout((2, 30, 20, 20), 4, by_slice=True) == ((1, 30, 20, 20), (1, 1, 20, 20))
    assert layout((3, 1, 9000, 9000), 4, by_slice=True) == ((1, 1, 24, 9000), (1, 1, 3, 9000))


def test_locations_are_right_distinct_and_repeatable() -> None:
    label = some_case((12, 60, 50)).label
    found = sample_locations(label, LABELS)
    again = sample_locations(label, LABELS)
    for index, name in enumerate(["organ", "lesion", "absent"], start=1):
        voxels = found.classes[name]
        assert len(voxels) == min(10_000, int((label == index).sum()))
        assert np.all(label[tuple(voxels.T)] == index)
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        np.testing.assert_array_equal(voxels, again.classes[name])


def test_one_percent_of_a_large_class() -> None:
    label = np.ones((30, 210, 200), np.int16)
    voxels = sample_locations(label, LABELS).classes["organ"]
    assert len(voxels) == 12_600
    assert len(np.unique(voxels, axis=0)) == len(voxels)
    assert np.all(np.abs(voxels.mean(axis=0) - (14.5, 104.5, 99.5)) < 2)


def test_a_region_with_the_background_lies_everywhere() -> None:
    labels = LabelSet(labels={"background": (0,), "body": (0, 1), "tumour": (1,)}, region_order=(0, 1))
    label = np.zeros((4, 8, 8), np.int16)
    label[0, 0, 0], label[3] = 1, -1
    found = sample_locations(label, labels)
    assert len(found.classes["body"]) == 3 * 64
    assert found.classes["tumour"].tolist() == [[0, 0, 0]]


def test_regions_and_ignore_label() -> None:
    labels = LabelSet(
        labels={"background": (0,), "whole": (1, 2), "core": (2,)}, ignore=3, region_order=(1, 2)
    )
    label = np.zeros((4, 8, 8), np.int16)
    label[1:3, 2:6, 2:6] = 1
    label[2, 3:5, 3:5] = 2
    label[3] = 3
    label[0, 0, 0] = -1
    found = sample_locations(label, labels)
    assert len(found.classes["whole"]) == int(np.isin(label, (1, 2)).sum())
    assert len(found.classes["core"]) == 4
    assert found.annotated is not None
    assert len(found.annotated) == int((label != 3).sum())
    assert np.all(label[tuple(found.annotated.T)] != 3)
