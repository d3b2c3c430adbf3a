from __future__ import annotations

from pathlib import Path

import pytest

from samunet.data.groups import (
    Origins,
    origins_of_cases,
    read_origins,
    undeclared,
    unit_numbers,
    unmatched,
)
from samunet.errors import SamunetError


def test_none_are_declared(tmp_path: Path) -> None:
    assert read_origins(tmp_path, {}) == Origins()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table(tmp_path: Path, delimiter: str) -> None:
    rows = [["case", "group", "site"], ["a", "p1", "x"], ["b", "p1", "y"], ["c", "p2", "x"]]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    (tmp_path / "groups.csv").write_text(text, encoding="utf-8-sig")
    assert read_origins(tmp_path, {}).groups == {"a": "p1", "b": "p1", "c": "p2"}


def test_dataset_json_maps_either_way(tmp_path: Path) -> None:
    assert read_origins(tmp_path, {"groups": {"a": "p1", "b": 2}}).groups == {"a": "p1", "b": "2"}
    assert read_origins(tmp_path, {"groups": {"p1": ["a", "b"]}}).groups == {"a": "p1", "b": "p1"}
    assert read_origins(tmp_path, {"groups": {"p1 ": ["a"], "b": " p1"}}).groups == {"a": "p1", "b": "p1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,group\na,1\n", "column `case`, and `group`, `patient`"),
        ("case,site\na,1\n", "column `case`, and `group`, `patient`"),
        ("case,group,patient\na,1,\n", "line 2: case or patient is empty"),
        ("case,patient\na,1\na,2\n", "case a is in '1' and in '2'"),
        ("case,group\na,\n", "line 2"),
        ("case,group\na,1\na,2\n", "case a is in '1' and in '2'"),
        ("", "column"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(SamunetError, match=words) as caught:
        read_origins(tmp_path, {})
    assert "groups.csv" in str(caught.value)


@pytest.mark.parametrize(
    "content", [["a"], {"a": 1.5}, {"p": ["a"], "q": ["a"]}, {"a": " "}, {"": ["a"]}, {"p": [""]}]
)
def test_a_broken_map_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(SamunetError, match="`groups"):
        read_origins(tmp_path, {"groups": content})


def test_two_sources_must_agree(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("case,group\na,1\n")
    assert read_origins(tmp_path, {"groups": {"a": "1"}}).groups == {"a": "1"}
    with pytest.raises(SamunetError, match="Keep one"):
        read_origins(tmp_path, {"groups": {"a": "2"}})


def test_patients_are_told_from_sites(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("Case,Patient,Group\na,p1,x\nb,p1,x\nc,p2,y\n")
    found = read_origins(tmp_path, {})
    assert found == Origins(groups={"a": "x", "b": "x", "c": "y"}, patients={"a": "p1", "b": "p1", "c": "p2"})
    assert (found.unit, found.without_groups.unit) == ("patient", "patient")
    assert unit_numbers(["c", "a", "b", "d"], found).tolist() == [0, 1, 1, 2]
    (tmp_path / "groups.csv").write_text("case,patient\na,p1\n")
    assert read_origins(tmp_path, {"groups": {"x": ["a", "b"]}}) == Origins(
        groups={"a": "x", "b": "x"}, patients={"a": "p1"}
    )


def test_groups_stand_for_patients_where_none_are_declared() -> None:
    groups = Origins(groups={"a": "x", "b": "x"})
    assert (groups.unit, groups.without_groups.unit, Origins().unit) == ("group", "case", "case")
    assert unit_numbers(["a", "x", "b"], groups).tolist() == [0, 1, 0]  # a case may be called as a group is
    assert unit_numbers(["a", "b"], groups.without_groups).tolist() == [0, 1]


def test_files_are_no_cases(tmp_path: Path) -> None:
    table = Origins(groups={"a": "x", "other": "y"})
    assert origins_of_cases(table, ["a", "b"], ".nii.gz", tmp_path).groups == {"a": "x"}
    for name in ("b.nii.gz", "b_0000.nii.gz", "b_0000"):
        with pytest.raises(SamunetError, match="named without channel and ending: b"):
            origins_of_cases(Origins(groups={name: "x"}), ["a", "b"], ".nii.gz", tmp_path)


def test_cases_without_a_group_are_told() -> None:
    assert undeclared({}, ["a"]) == ""
    assert undeclared({"a": "x"}, ["a"]) == ""
    assert undeclared({"a": "x"}, ["a", "b"]) == "1 case has no group: b"
    assert undeclared({"a": "x"}, ["c", "b"]) == "2 cases have no group: b, c"


def test_a_table_of_other_names_is_told() -> None:
    """As where `001` stands for prostate_001; a table that has a case and others besides is a table."""
    declared = Origins(groups={"001": "x", "002": "y"})
    told = unmatched(Origins(), declared, ["prostate_001", "prostate_002"])
    assert told == "2 names that are no cases (001, 002), and none of the cases (prostate_001, prostate_002)"
    assert unmatched(Origins(), Origins(patients={"001": "x"}), ["a"]) == (
        "1 name that is no case (001), and none of the cases (a)"
    )
    assert unmatched(Origins(), Origins(), ["a"]) == ""
    assert unmatched(Origins(groups={"a": "x"}), Origins(groups={"a": "x", "b": "y"}), ["a"]) == ""
