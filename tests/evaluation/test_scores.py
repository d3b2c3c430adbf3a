"""Scores as text: what is not defined is no number anywhere."""

from __future__ import annotations

import math

import pytest

from samunet.evaluation.scores import csv_score, json_score, mean_of, shown_score


@pytest.mark.parametrize(
    ("value", "shown", "csv", "json"),
    [
        (math.nan, "-", "", None),
        (0.87654, "0.877", "0.87654", 0.87654),
        (-3.0, "-3.000", "-3.0", -3.0),
        (12.34, "12.3", "12.34", 12.34),
    ],
)
def test_a_score_as_text(value: float, shown: str, csv: str, json: float | None) -> None:
    assert (shown_score(value), csv_score(value), json_score(value)) == (shown, csv, json)


def test_a_mean_skips_what_is_not_defined() -> None:
    assert mean_of(iter([1.0, math.nan, 4.0])) == 2.5
    assert math.isnan(mean_of([math.nan]))
    assert math.isnan(mean_of([]))
