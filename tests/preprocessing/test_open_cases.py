"""Cases that are read for hours: another preprocessing of the same folder is noticed, whoever reads."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import NAMES, write_cases

from samunet.errors import SamunetError
from samunet.preprocessing import open_cases
from samunet.preprocessing.case import PreprocessedCase
from samunet.preprocessing.locations import Locations
from samunet.preprocessing.open_cases import OpenCases
from samunet.preprocessing.store import CaseStore


def rewrite(store: CaseStore, name: str, content: str, key: str = "k") -> None:
    """The case with other numbers, made of something else."""
    old = store.open_whole(name)
    image = np.asarray(old.image[:]) + 1
    case = PreprocessedCase(image=image, label=old.label[:], record=old.record)
    store.write(name, case, Locations(), key=key, content=content)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    store = write_cases(tmp_path / "cases")
    for name in NAMES:
        rewrite(store, name, content="data-bytes")
    return store


@pytest.mark.parametrize(
    ("content", "told"), [("other-bytes", "by another plan"), ("data-corrected", "from other files")]
)
@pytest.mark.parametrize("sent", [False, True])
def test_a_case_made_anew_in_another_way_is_refused(
    store: CaseStore, monkeypatch: pytest.MonkeyPatch, content: str, told: str, sent: bool
) -> None:
    monkeypatch.setattr(open_cases, "OPEN_CASES", 1)
    cases = OpenCases(store.folder, "data")
    cases.pin(NAMES)
    if sent:
        cases = pickle.loads(pickle.dumps(cases))
    first = cases.get(NAMES[0])
    before = first.image[:]
    for name in NAMES[:2]:
        rewrite(store, name, content)
    assert cases.get(NAMES[0]) is first
    assert np.array_equal(first.image[:], before)  # what is open stays what it was
    with pytest.raises(SamunetError, match=f"{NAMES[1]} in .* was made anew {told} .*Train again.*-p NAME"):
        cases.get(NAMES[1])
    cases.get(NAMES[2])


def test_a_case_made_again_from_the_same_is_read_on(store: CaseStore) -> None:
    cases = OpenCases(store.folder, "data")
    cases.pin(NAMES)
    store.remove(NAMES[0])
    old = store.open_whole(NAMES[1])
    again = PreprocessedCase(image=old.image[:], label=old.label[:], record=old.record)
    store.write(NAMES[0], again, Locations(), key="of a copy", content="data-bytes")
    assert cases.get(NAMES[0]).entry.key == "of a copy"


def test_cases_of_another_plan_are_refused_at_the_start(store: CaseStore) -> None:
    rewrite(store, NAMES[2], content="other-bytes")
    with pytest.raises(
        SamunetError, match=rf"1 of 4 cases in .* another plan \({NAMES[2]}\).*samunet_preprocess"
    ):
        OpenCases(store.folder, "data").pin(NAMES)
    entry = replace(store.open(NAMES[2]).entry, content="")
    assert entry.may_be_of("data")  # earlier versions did not write it down
