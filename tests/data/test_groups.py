from __future__ import annotations

from pathlib import Path

import pytest

from samunet.data.groups import read_groups
from samunet.errors import SamunetError


def test_none_are_declared(tmp_path: Path) -> None:
    assert read_groups(tmp_path, {}) == {}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table(tmp_path: Path, delimiter: str) -> None:
    rows = [["case", "group", "site"], ["a", "p1", "x"], ["b", "p1", "y"], ["c", "p2", "x"]]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    (tmp_path / "groups.csv").write_text(text, encoding="utf-8-sig")
    assert read_groups(tmp_path, {}) == {"a": "p1", "b": "p1", "c": "p2"}


def test_dataset_json_maps_either_way(tmp_path: Path) -> None:
    assert read_groups(tmp_path, {"groups": {"a": "p1", "b": 2}}) == {"a": "p1", "b": "2"}
    assert read_groups(tmp_path, {"groups": {"p1": ["a", "b"]}}) == {"a": "p1", "b": "p1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,group\na,1\n", "columns `case` and `group`"),
        ("case,group\na,\n", "line 2"),
        ("case,group\na,1\na,2\n", "case a is in '1' and in '2'"),
        ("", "columns"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(SamunetError, match=words) as caught:
        read_groups(tmp_path, {})
    assert "groups.csv" in str(caught.value)


@pytest.mark.parametrize("content", [["a"], {"a": 1.5}, {"p": ["a"], "q": ["a"]}])
def test_a_broken_map_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(SamunetError, match="`groups"):
        read_groups(tmp_path, {"groups": content})


def test_two_sources_must_agree(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("case,group\na,1\n")
    assert read_groups(tmp_path, {"groups": {"a": "1"}}) == {"a": "1"}
    with pytest.raises(SamunetError, match="Keep one"):
        read_groups(tmp_path, {"groups": {"a": "2"}})
