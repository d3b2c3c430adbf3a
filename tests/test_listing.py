"""Lists in messages end before they fill the screen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from samunet import listing
from samunet.listing import counted_cases, listed, shown_command


@pytest.mark.parametrize(
    ("items", "told"),
    [([], ""), (["a"], "a"), (list("abcde"), "a, b, c, d, e"), (list("abcdefg"), "a, b, c, d, e and 2 more")],
)
def test_the_first_few_and_how_many_more(items: list[str], told: str) -> None:
    assert listed(items) == told


def test_numbers_another_length_and_another_separator() -> None:
    assert listed(range(4), most=3) == "0, 1, 2 and 1 more"
    assert listed(["a b", "c", "d"], most=2, between="; ") == "a b; c and 1 more"


def test_cases_are_counted_and_named() -> None:
    assert counted_cases(["a"]) == "1 case (a)"
    assert counted_cases(list("abcdefg")) == "7 cases (a, b, c, d, e and 2 more)"


def test_a_command_is_quoted_as_the_systems_shell_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["samunet_predict", "-i", r"C:\data\images", "-o", "my folder"]
    assert shown_command(words) == r"samunet_predict -i 'C:\data\images' -o 'my folder'"
    monkeypatch.setattr(listing, "os", SimpleNamespace(name="nt"))
    assert shown_command(words) == r'samunet_predict -i C:\data\images -o "my folder"'
