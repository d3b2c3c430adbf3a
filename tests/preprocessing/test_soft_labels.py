"""Soft labels on disk: what is stored comes back, and the store knows what it holds."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from soft_teacher import IDENTITY, KINDS, one_hot_logits
from tiny_runs import SHAPE

from samunet.errors import SamunetError
from samunet.inference.logit_storage import LogitsOnDisk
from samunet.preprocessing import soft_labels
from samunet.preprocessing.soft_labels import (
    OUTSIDE_LOGIT,
    SoftLabelIdentity,
    SoftLabelStore,
    decode,
    draw_foreground,
    encode,
    output_of,
    pack_case,
)


@pytest.mark.parametrize("identity", KINDS, ids=lambda i: f"{i.target}-{i.regions}")
def test_logits_on_disk_are_labelled_alike(identity: SoftLabelIdentity, tmp_path: Path) -> None:
    """Those of a large case with many classes do not fit into memory."""
    torch.manual_seed(0)
    logits = torch.randn(identity.outputs, *SHAPE) * 4
    on_disk = LogitsOnDisk.create(tuple(logits.shape), tmp_path)
    on_disk[:] = logits
    assert np.array_equal(encode(on_disk, identity), encode(logits, identity))
    assert np.array_equal(draw_foreground(on_disk, identity), draw_foreground(logits, identity))


def test_foregrounds_of_few_cases_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "OPEN_CASES", 2)
    store = SoftLabelStore(tmp_path, IDENTITY)
    rows = draw_foreground(torch.ones(IDENTITY.outputs, *SHAPE), IDENTITY)
    for name in "abc":
        store.write(name, b"", "key", rows)
        store.foreground(name)
    store.foreground("b")
    kept = {name: store.foreground(name) for name in "ba"}  # c is the one that was not asked for longest
    for file in tmp_path.glob("*.foreground.npy"):
        file.unlink()
    for name, foreground in kept.items():
        assert store.foreground(name) is foreground
    with pytest.raises(SamunetError, match=r"c\.foreground\.npy"):
        store.foreground("c")


@pytest.mark.parametrize("identity", KINDS, ids=lambda i: f"{i.target}-{i.regions}")
def test_stored_values_come_back(identity: SoftLabelIdentity, tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(identity.outputs, *SHAPE) * 4
    wanted = output_of(logits[None], identity)[0]
    store = SoftLabelStore(tmp_path, identity)
    store.write("a", pack_case(logits, identity, by_slice=False), "key")
    store = pickle.loads(pickle.dumps(store))
    found = decode(torch.from_numpy(store.read("a", (0, 0, 0), SHAPE)), identity)
    torch.testing.assert_close(
        found, wanted, atol=0.5 / 255 + 1e-6 if identity.itemsize == 1 else 0.02, rtol=0
    )
    box = decode(torch.from_numpy(store.read("a", (-2, 3, 4), (4, 5, 6))), identity)
    torch.testing.assert_close(box[:, 2:], found[:, :2, 3:8, 4:10])
    outside = identity.outside()
    assert torch.equal(box[:, :2], outside[:, None, None, None].expand(-1, 2, 5, 6))


def test_outside_a_case_is_certain_background() -> None:
    assert IDENTITY.outside().tolist() == [1, 0, 0]
    logits = replace(IDENTITY, target="logits").outside()
    assert logits[0] - logits[1] == OUTSIDE_LOGIT
    assert logits.sum().abs() < 1e-5
    assert replace(IDENTITY, regions=True).outside().tolist() == [0, 0, 0]


def test_certain_probabilities_are_exact() -> None:
    label = np.random.default_rng(0).integers(0, 3, SHAPE)
    stored = encode(one_hot_logits(label), IDENTITY)
    assert stored.dtype == np.uint8
    found = decode(torch.from_numpy(stored).float(), IDENTITY)
    assert torch.equal(found, one_hot_logits(label) / 1000)


def test_the_store_knows_its_teacher_and_what_is_missing(tmp_path: Path) -> None:
    store = SoftLabelStore(tmp_path, IDENTITY)
    packed = pack_case(torch.zeros(3, *SHAPE), IDENTITY, by_slice=True)
    store.write("a", packed, "key a")
    store.write("b", packed, "key b")
    assert store.missing({"a": "key a", "b": "another", "c": "key c"}) == ["b", "c"]
    (tmp_path / "a.soft.b2nd").unlink()
    assert store.missing({"a": "key a"}) == ["a"]
    other = SoftLabelStore(tmp_path, replace(IDENTITY, checkpoints_sha256=("b" * 64,), mirroring=False))
    with pytest.raises(SamunetError, match=r"checkpoints_sha256 is.*mirroring is True there, False now"):
        other.check_identity()


def test_the_teachers_foreground(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.int64)
    label[1:3, 4:8, 5], label[2, 0, 0] = 1, 2
    store = SoftLabelStore(tmp_path, IDENTITY)
    logits = one_hot_logits(label)
    store.write("a", b"", "key", draw_foreground(logits, IDENTITY))
    found = store.foreground("a")
    assert set(found) == {"1", "2"}
    assert found["2"].tolist() == [[2, 0, 0]]
    assert {tuple(v) for v in found["1"].tolist()} == {tuple(v) for v in np.argwhere(label == 1).tolist()}
    regions = replace(IDENTITY, regions=True, outputs=2)
    both = torch.stack([logits[1] + logits[2], logits[2]]) - 1
    rows = draw_foreground(both, regions)
    assert (rows[:, 0] == 0).sum() == 9
    assert (rows[:, 0] == 1).sum() == 1
    many = draw_foreground(torch.ones(2, 30, 30, 30), regions)
    assert len(many) == 20_000
    with pytest.raises(SamunetError, match=r"b\.foreground\.npy is missing"):
        store.foreground("b")


def test_soft_labels_made_anew_from_other_content_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_labels, "OPEN_CASES", 1)
    logits = torch.randn(IDENTITY.outputs, *SHAPE)
    packed, rows = pack_case(logits, IDENTITY, by_slice=False), draw_foreground(logits, IDENTITY)
    writer = SoftLabelStore(tmp_path, IDENTITY)
    for name in "ab":
        writer.write(name, packed, "key", rows)
    writer.pin("ab")
    reader = pickle.loads(pickle.dumps(writer))
    for key, is_refused in (("key", False), ("other", True)):
        writer.write("a", packed, key, rows)
        for read in (lambda name: reader.read(name, (0, 0, 0), (2, 2, 2)), reader.foreground):
            read("b")
            if not is_refused:
                read("a")
                continue
            with pytest.raises(SamunetError, match=r"soft labels of case a in .* made anew .*Train again"):
                read("a")


def test_what_another_training_finished_is_not_written_again(tmp_path: Path) -> None:
    packed = pack_case(torch.zeros(3, *SHAPE), IDENTITY, by_slice=True)
    SoftLabelStore(tmp_path, IDENTITY).write("a", packed, "key")
    before = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    store = SoftLabelStore(tmp_path, IDENTITY)
    store.write("a", packed, "key")
    assert {file.name: file.stat().st_ino for file in tmp_path.iterdir()} == before
    store.write("a", packed, "key", draw_foreground(torch.zeros(3, *SHAPE), IDENTITY))  # without a label now
    assert store.foreground("a") == {}
