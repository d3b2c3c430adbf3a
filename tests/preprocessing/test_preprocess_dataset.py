from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet import whole_files
from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.planning.plan import Plan
from samunet.preprocessing import dataset as module
from samunet.preprocessing.dataset import (
    CaseOrder,
    largest_case_bytes,
    preprocess_folders,
)
from samunet.preprocessing.store import CaseStore


@pytest.fixture
def raw(tiny_copy: Path) -> RawDataset:
    return RawDataset.load(tiny_copy / "raw" / "Dataset901_Tiny3D")


@pytest.fixture
def plan(make_plan: Callable[..., Plan], raw: RawDataset) -> Plan:
    built = make_plan(spacing_mm=(4.0, 1.25, 1.25), normalization=("zscore", "zscore"), labels=raw.labels)
    return replace(built, channel_names=raw.channel_names)


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_every_case_is_stored_and_kept_the_next_time(raw: RawDataset, plan: Plan, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = preprocess_folders(
        raw, plan, {"3d": tmp_path / "p"}, workers=1, progress=lambda *n: calls.append(n)
    )
    assert report.written == raw.case_names
    assert calls == [(i, 6) for i in range(7)]
    store = CaseStore(tmp_path / "p")
    assert store.names() == raw.case_names
    stored = store.open(raw.case_names[0])
    assert stored.image.shape[0] == 2
    assert stored.label.shape == stored.image.shape[1:]
    assert len(stored.locations["organ"]) == int((stored.label[:] == 1).sum())
    assert len(store.open("tiny_005").locations["organ"]) == 0

    before = modified(tmp_path / "p")
    again = preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
    assert again.kept == raw.case_names
    assert modified(tmp_path / "p") == before


def test_only_what_changed_is_made_anew(raw: RawDataset, plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    preprocess_folders(raw, plan, {"2d": folder}, workers=1)
    touched = raw.cases[2]
    with touched.images[0].open("ab") as file:  # a byte after the end changes nothing but the file
        file.write(b"\0")
    (folder / f"{raw.case_names[4]}.label.b2nd").unlink()
    fewer = replace(raw, cases=raw.cases[1:])
    report = preprocess_folders(fewer, plan, {"2d": folder}, workers=1)
    assert report.written == (touched.name, raw.case_names[4])
    assert raw.case_names[0] not in CaseStore(folder).names()
    coarser = replace(plan.data["2d"], spacing_mm=(2.0, 2.0))
    changed = replace(plan, data={**plan.data, "2d": coarser})
    assert len(preprocess_folders(fewer, changed, {"2d": folder}, workers=1).written) == 5


def test_a_corrected_spacing_of_a_tiff_stack_is_preprocessed_again(
    make_plan: Callable[..., Plan], stack_dataset: Path, tmp_path: Path
) -> None:
    raw = RawDataset.load(stack_dataset)
    built = make_plan(spacing_mm=(2.0, 0.5, 0.5), normalization=("zscore",), labels=raw.labels)
    plan = replace(built, channel_names=raw.channel_names)
    store = CaseStore(tmp_path / "p")
    for slices, spacing in ((6, 2), (9, 3)):
        (stack_dataset / "imagesTr" / "a.json").write_text(f'{{"spacing": [{spacing}, 0.5, 0.5]}}')
        preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
        assert store.open("a").image.shape == (1, slices, 20, 22)


def test_a_copy_of_the_files_is_not_preprocessed_again(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"
    preprocess_folders(raw, plan, {"2d": folder}, workers=1)
    case = raw.cases[2]
    key, image = CaseStore(folder).open(case.name).entry.key, modified(folder)[f"{case.name}.image.b2nd"]
    for path in [*case.images, case.label]:
        os.utime(path, ns=(1, 1))
    assert preprocess_folders(raw, plan, {"2d": folder}, workers=1).kept == raw.case_names
    assert modified(folder)[f"{case.name}.image.b2nd"] == image
    assert CaseStore(folder).open(case.name).entry.key == key  # embeddings made from the case stay valid
    monkeypatch.setattr(module, "hash_files", None)  # the second look reads nothing
    assert preprocess_folders(raw, plan, {"2d": folder}, workers=1).kept == raw.case_names
    monkeypatch.undo()

    content = bytearray(case.label.read_bytes())
    content[-1] ^= 1
    case.label.write_bytes(content)
    assert not module.is_current(case, plan, "2d", folder)


def test_bad_cases_are_named_and_the_others_finish(raw: RawDataset, plan: Plan, tmp_path: Path) -> None:
    short, foreign = raw.cases[1], raw.cases[3]
    content = short.images[0].read_bytes()
    short.images[0].write_bytes(content[: len(content) // 2])
    assert foreign.label is not None
    only_organ = replace(raw.labels, labels={"background": (0,), "organ": (1,)})
    with pytest.raises(SamunetError) as error:
        preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
    assert "1 of 6" in str(error.value)
    assert short.name in str(error.value)
    assert len(CaseStore(tmp_path / "p").names()) == 5
    with pytest.raises(SamunetError, match="does not declare"):
        preprocess_folders(raw, replace(plan, labels=only_organ), {"3d": tmp_path / "q"}, workers=1)


def test_a_label_elsewhere_in_space_is_refused(raw: RawDataset, plan: Plan, tmp_path: Path) -> None:
    file = raw.cases[1].label
    moved = sitk.ReadImage(str(file))
    moved.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(file))
    with pytest.raises(SamunetError, match=r"1 of 6 (.|\n)*tiny_001\.nii\.gz does not lie on .*origin"):
        preprocess_folders(raw, plan, {"2d": tmp_path / "p"}, workers=1)
    assert raw.case_names[1] not in CaseStore(tmp_path / "p").names()


def test_no_space_left_is_one_clear_error(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    folder = tmp_path / "p"
    whole = whole_files.partial_path

    def leads_to_a_full_device(path: Path) -> Path:
        partial = whole(path)
        if path.name.endswith(".image.b2nd"):
            partial.symlink_to(full)
        return partial

    monkeypatch.setattr(whole_files, "partial_path", leads_to_a_full_device)
    with pytest.raises(SamunetError, match="No space is left"):
        preprocess_folders(raw, plan, {"3d": folder}, workers=1)
    assert CaseStore(folder).names() == ()


def test_another_error_of_the_system_is_passed_on_as_it_is(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_processes(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "_run", no_processes)
    with pytest.raises(OSError, match="temporarily unavailable") as error:
        preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
    assert error.value.__cause__ is None


def die_on_the_second(order: CaseOrder, plan: Plan, folders: dict[str, Path]) -> str | None:
    if order.case.name.endswith("1"):
        os._exit(9)
    return module.preprocess_to_store(order, plan, folders)


def test_a_death_is_named_and_the_others_finish(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(module, "preprocess_to_store", die_on_the_second)
    monkeypatch.setattr(module, "worker_count", lambda *_: 2)
    three = replace(raw, cases=raw.cases[:3])
    with pytest.raises(SamunetError) as error:
        preprocess_folders(three, plan, {"3d": tmp_path / "p"}, workers=2)
    assert raw.case_names[1] in str(error.value)
    assert "died" in str(error.value)
    assert 'if __name__ == "__main__":' in str(error.value)
    assert CaseStore(tmp_path / "p").names() == (raw.case_names[0], raw.case_names[2])


def test_several_configurations_read_each_case_once(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    original = module.read_image
    monkeypatch.setattr(module, "read_image", lambda paths: read.append(paths) or original(paths))
    preprocess_folders(raw, plan, {"2d": tmp_path / "2d"}, workers=1)
    CaseStore(tmp_path / "2d").remove(raw.case_names[1])
    read.clear()
    folders = {"2d": tmp_path / "2d", "3d": tmp_path / "3d"}
    report = preprocess_folders(raw, plan, folders, workers=1)
    assert len(read) == 6
    assert report.written == raw.case_names
    assert CaseStore(tmp_path / "3d").names() == CaseStore(tmp_path / "2d").names() == raw.case_names


def test_memory_estimate_covers_the_arrays(raw: RawDataset, plan: Plan) -> None:
    orders = [CaseOrder(case=case, keys={"3d": "", "2d": ""}) for case in raw.cases]
    estimate = largest_case_bytes(orders, plan)
    voxels = 12 * 34 * 36
    assert 2 * 4 * voxels < estimate < 100 * voxels


def test_interrupted_run_leaves_no_half_case(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = np.save
    count = iter(range(100))

    def interrupted(*args: object, **kwargs: object) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
    assert CaseStore(tmp_path / "p").names() == raw.case_names[:2]
    monkeypatch.setattr(np, "save", original)
    report = preprocess_folders(raw, plan, {"3d": tmp_path / "p"}, workers=1)
    assert report.kept == raw.case_names[:2]


def test_what_another_process_has_preprocessed_since_the_list_was_made_is_left_alone(
    raw: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"3d": tmp_path / "p"}
    orders = module._open_orders(raw.cases, plan, folders)
    preprocess_folders(raw, plan, folders, workers=1)
    before = modified(tmp_path / "p")
    monkeypatch.setattr(module, "read_image", None)
    assert len(orders) == 6
    for order in orders:
        assert module.preprocess_to_store(order, plan, folders) is None
    assert modified(tmp_path / "p") == before
