from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from samunet.data.groups import Origins
from samunet.data.splits import (
    Split,
    kept_together,
    load_or_create_splits,
    make_splits,
    read_splits,
    select_fold,
)
from samunet.errors import SamunetError

NAMES = [f"case_{i:03d}" for i in range(20)]


def test_nnunets_five_folds() -> None:
    """Golden vector of nnU-Net 2.8.1 for 20 names and seed 12345."""
    splits = make_splits(reversed(NAMES))
    held_out = [{int(name[-3:]) for name in split.val} for split in splits]
    assert held_out == [{3, 8, 13, 16}, {0, 10, 12, 15}, {6, 7, 11, 17}, {9, 14, 18, 19}, {1, 2, 4, 5}]
    for split in splits:
        assert sorted(split.train + split.val) == NAMES
        assert list(split.train) == sorted(split.train)


def test_folds_differ_by_one_case_at_most() -> None:
    sizes = [len(split.val) for split in make_splits(NAMES[:13])]
    assert sizes == [3, 3, 3, 2, 2]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_cases_leave_one_out(count: int) -> None:
    splits = make_splits(NAMES[:count])
    assert [split.val for split in splits] == [(name,) for name in NAMES[:count]]


def test_one_case_knows_only_all() -> None:
    assert make_splits(NAMES[:1]) == ()
    assert select_fold((), "all", NAMES[:1]) == Split(("case_000",), ("case_000",))
    with pytest.raises(SamunetError, match="Train fold `all`"):
        select_fold((), 0, NAMES[:1])


@pytest.mark.parametrize("fold", [5, -1, 7, "x"])
def test_a_fold_out_of_range_says_which_exist(fold: int | str) -> None:
    with pytest.raises(SamunetError, match=rf"Fold {fold} does not exist: .* 0 to 4, and `all`"):
        select_fold(make_splits(NAMES), fold, NAMES)
    assert select_fold(make_splits(NAMES), "3", NAMES) == make_splits(NAMES)[3]


def test_groups_stay_together() -> None:
    groups = {name: f"patient_{i // 2}" for i, name in enumerate(NAMES)}
    for split in make_splits(NAMES, groups, "group_kfold"):
        assert len(split.val) == 4
        assert not {groups[n] for n in split.val} & {groups[n] for n in split.train}
    one_out = make_splits(NAMES, groups, "leave_one_group_out")
    assert len(one_out) == 10
    assert one_out[0].val == ("case_000", "case_001")


def test_patients_stay_together_whatever_their_site() -> None:
    origins = Origins(
        groups=dict.fromkeys(NAMES, "one site"),
        patients={name: f"patient_{i // 2}" for i, name in enumerate(NAMES)},
    )
    known = kept_together(origins, "patient_kfold")
    assert make_splits(NAMES, known, "patient_kfold") == make_splits(NAMES, known, "group_kfold")
    assert kept_together(origins, "group_kfold") == origins.groups


def test_a_fold_with_one_training_case_is_said(tmp_path: Path) -> None:
    told: list[str] = []
    groups = {name: "many" for name in NAMES} | {NAMES[0]: "lonely"}
    words = {"groups": groups, "scheme": "leave_one_group_out", "warn": told.append}
    for _ in range(2):  # who trains it may not be who had it written
        load_or_create_splits(tmp_path / "splits.json", NAMES, **words)
    assert told == [f"{tmp_path / 'splits.json'}: fold 1 trains on a single case."] * 2


def test_group_splits_need_groups() -> None:
    with pytest.raises(SamunetError, match="20 have none: case_000"):
        make_splits(NAMES, {}, "leave_one_group_out")
    with pytest.raises(SamunetError, match="two groups"):
        make_splits(NAMES, dict.fromkeys(NAMES, "one"), "group_kfold")
    with pytest.raises(SamunetError, match=r"needs a patient .* 20 have none.*columns case,patient"):
        make_splits(NAMES, {}, "patient_kfold")
    with pytest.raises(SamunetError, match="two patients"):
        make_splits(NAMES, dict.fromkeys(NAMES, "one"), "patient_kfold")
    with pytest.raises(SamunetError, match="Did you mean kfold"):
        make_splits(NAMES, None, "k_fold")


def test_single_source_trains_on_one_group() -> None:
    groups = {name: "abc"[i % 3] for i, name in enumerate(NAMES)}
    folds = make_splits(NAMES, groups, "single_source")
    assert [{groups[n] for n in split.train} for split in folds] == [{"a"}, {"b"}, {"c"}]
    for split in folds:
        assert sorted(split.train + split.val) == sorted(NAMES)
    assert make_splits(NAMES, groups, "single_source:b") == folds[1:2]


def test_sources_that_cannot_be_trained_on() -> None:
    groups = {name: "many" for name in NAMES} | {NAMES[0]: "lonely"}
    with pytest.raises(SamunetError, match="lonely: one case"):
        make_splits(NAMES, groups, "single_source:lonely")
    with pytest.raises(SamunetError, match=r"many_\b.*many"):
        make_splits(NAMES, groups, "single_source:many_")
    with pytest.raises(SamunetError, match="split scheme"):
        make_splits(NAMES, groups, "group_kfold:many")


def test_written_once_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    made = load_or_create_splits(file, NAMES)
    assert made == make_splits(NAMES)
    assert list(json.loads(file.read_text())[0]) == ["train", "val"]
    file.write_text(json.dumps([{"train": NAMES[:15], "val": NAMES[15:]}]))
    assert load_or_create_splits(file, NAMES) == (Split(tuple(NAMES[:15]), tuple(NAMES[15:])),)


def test_the_users_file_in_the_raw_folder_is_honoured(tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps([{"train": NAMES[1:], "val": NAMES[:1]}]))
    file = tmp_path / "preprocessed" / "splits_final.json"
    splits = load_or_create_splits(file, NAMES, raw_file=raw)
    assert splits[0].val == ("case_000",)
    assert read_splits(file) == splits


def test_folds_of_the_users_that_came_later_are_not_passed_over(tmp_path: Path) -> None:
    file, raw = tmp_path / "preprocessed" / "splits_final.json", tmp_path / "raw.json"
    load_or_create_splits(file, NAMES, raw_file=raw)
    raw.write_text(json.dumps([{"train": NAMES[1:], "val": NAMES[:1]}]))
    with pytest.raises(SamunetError, match=rf"{file}, .*{raw}\. Delete {file} to .*{raw} to go on"):
        load_or_create_splits(file, NAMES, raw_file=raw)
    groups = {name: f"patient_{i // 2}" for i, name in enumerate(NAMES)}
    other = {"groups": groups, "scheme": "group_kfold", "raw_file": raw}
    assert len(load_or_create_splits(tmp_path / "splits_group_kfold.json", NAMES, **other)) == 5
    file.unlink()
    kept = load_or_create_splits(file, NAMES, raw_file=raw)
    raw.write_text(json.dumps([{"val": NAMES[:1], "train": NAMES[:0:-1]}]))  # the same folds
    assert load_or_create_splits(file, NAMES, raw_file=raw) == kept


def test_a_file_without_folds_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    assert load_or_create_splits(file, NAMES[:1]) == ()
    assert load_or_create_splits(file, NAMES) == make_splits(NAMES) == read_splits(file)


@pytest.mark.parametrize("scheme", ["single_source:", "leave_one_group_out:", "kfold:a"])
def test_a_scheme_with_an_odd_end_is_refused(scheme: str) -> None:
    with pytest.raises(SamunetError, match="split scheme"):
        make_splits(NAMES, {name: "ab"[number % 2] for number, name in enumerate(NAMES)}, scheme)


@pytest.mark.parametrize("scheme", ["group_kfold", "leave_one_group_out", "single_source:a"])
def test_folds_of_earlier_groups_are_refused(scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "splits_group.json"
    groups = {name: "abc"[i % 3] for i, name in enumerate(NAMES)}
    made = load_or_create_splits(file, NAMES, groups=groups, scheme=scheme)
    assert load_or_create_splits(file, NAMES, groups=groups, scheme=scheme) == made
    assert load_or_create_splits(file, NAMES, groups=None, scheme=scheme) == made
    moved = {**groups, NAMES[0]: "b"}
    with pytest.raises(SamunetError, match=r"splits_group\.json .*fold 0 .* group b .*delete the file"):
        load_or_create_splits(file, NAMES, groups=moved, scheme=scheme)
    without = {name: group for name, group in groups.items() if name != NAMES[4]}
    with pytest.raises(
        SamunetError, match=rf"{scheme} needs a group .* 1 have none: {NAMES[4]}\. .*groups\.csv"
    ):
        load_or_create_splits(file, NAMES, groups=without, scheme=scheme)


def test_folds_whose_groups_were_renamed_divided_or_swapped_are_refused(tmp_path: Path) -> None:
    """No group is torn, but a fold would train on another group than its name says, or on two."""
    groups = {name: "abc"[i % 3] for i, name in enumerate(NAMES)}
    swapped = {name: {"a": "b", "b": "a", "c": "c"}[group] for name, group in groups.items()}
    divided = {
        name: group + "12"[i % 2] if group == "a" else group for i, (name, group) in enumerate(groups.items())
    }

    def load(scheme: str, known: dict[str, str]) -> object:
        file = tmp_path / f"{scheme.replace(':', '-')}.json"
        return load_or_create_splits(file, NAMES, groups=known, scheme=scheme)

    schemes = ("single_source", "single_source:a", "leave_one_group_out", "group_kfold")
    made = {scheme: load(scheme, groups) for scheme in schemes}
    with pytest.raises(SamunetError, match="fold 0 trains on group b"):
        load("single_source:a", swapped)
    for scheme in ("single_source", "single_source:a"):
        with pytest.raises(SamunetError, match="fold 0 trains on group a1, a2"):
            load(scheme, divided)
    with pytest.raises(SamunetError, match="fold 0 leaves out the groups a1, a2"):
        load("leave_one_group_out", divided)
    # Where a fold is nobody's, other names are no matter.
    for scheme in ("single_source", "leave_one_group_out", "group_kfold"):
        assert load(scheme, swapped) == made[scheme]
    assert load("group_kfold", divided) == made["group_kfold"]


def test_a_file_that_does_not_fit_lists_all_faults(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": [*NAMES, "ghost"], "val": ["case_003"]}, {"train": [], "val": []}]))
    with pytest.raises(SamunetError) as caught:
        load_or_create_splits(file, NAMES)
    for words in ("splits_final.json", "ghost", "case_003", "fold 1 has no training case", "delete it"):
        assert words in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '[{"train": ["a"]}]', '[{"train": "a", "val": []}]', "[1]"])
def test_a_malformed_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(content)
    with pytest.raises(SamunetError, match="splits_final"):
        read_splits(file)


def test_cases_that_a_file_leaves_out_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": NAMES[:10], "val": NAMES[10:19]}]))
    with caplog.at_level(logging.WARNING):
        load_or_create_splits(file, NAMES)
    assert "leaves out 1 case(s): case_019" in caplog.text


def test_cases_left_out_are_told_in_the_same_words_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the file in use, also when the folds are first taken from the raw folder."""
    file, raw = tmp_path / "used.json", tmp_path / "raw.json"
    raw.write_text(json.dumps([{"train": NAMES[:10], "val": NAMES[10:19]}]))
    told: list[str] = []
    for _ in range(2):
        load_or_create_splits(file, NAMES, raw_file=raw, warn=told.append)
    assert told == [f"{file} leaves out 1 case(s): case_019."] * 2
    assert "leaves out" not in caplog.text
