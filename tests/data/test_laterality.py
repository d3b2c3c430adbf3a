from __future__ import annotations

import pytest

from samunet.data.laterality import left_right_pairs


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("parotid_left", "parotid_right"),
        ("Left Kidney", "Right Kidney"),
        ("kidneyLeft", "kidneyRight"),
        ("L-lung", "R-lung"),
        ("lung lt upper", "lung rt upper"),
    ],
)
def test_pairs_by_name(left: str, right: str) -> None:
    assert left_right_pairs(["brain", right, left]) == ((left, right),)


@pytest.mark.parametrize("names", [["LV", "RV"], ["left_atrium"], ["left_lung", "right_kidney"], ["liver"]])
def test_no_pairs(names: list[str]) -> None:
    assert left_right_pairs(names) == ()
