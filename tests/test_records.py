from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from samunet.errors import SamunetError, unknown_name
from samunet.records import (
    Bounds,
    Count,
    Natural,
    Positive,
    RecordError,
    Share,
    content_hash,
    from_data,
    read_json,
    read_record,
    to_data,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...]
    pair: tuple[float, float] = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    items: list[int] = field(default_factory=list)
    anything: Any = None
    file: Path | None = None


FULL = Outer(
    name="x",
    kind="b",
    inner=Inner(sizes=(1, 2, 3)),
    table={"k": Inner(sizes=(), pair=(0.5, 4.0))},
    items=[1],
    anything={"free": [1, "two"]},
    file=Path("some") / "file",
)


@dataclass(frozen=True, kw_only=True)
class Ranged:
    count: Count = 1
    rate: Positive = 1.0
    share: Share = 0.5
    below: Annotated[float, Bounds(0, below=1)] | None = None
    sides: tuple[Natural, ...] = ()


def test_numbers_within_their_bounds() -> None:
    edges = {"count": 1, "rate": 1e-9, "share": 1, "below": 0, "sides": [0, 4]}
    assert from_data(Ranged, edges) == Ranged(count=1, rate=1e-9, share=1.0, below=0.0, sides=(0, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": 0}, r"\$\.count: 0 must be at least 1\."),
        ({"rate": 0}, r"\$\.rate: 0\.0 must be above 0\."),
        ({"rate": math.inf}, r"\$\.rate: inf must be a finite number\."),
        ({"rate": math.nan}, r"\$\.rate: nan must be a finite number\."),
        ({"share": 1.1}, r"\$\.share: 1\.1 must be at least 0 and at most 1\."),
        ({"below": 1}, r"\$\.below: 1\.0 must be at least 0 and below 1\."),
        ({"sides": [1, -1]}, r"\$\.sides\[1\]: -1 must be at least 0\."),
        ({"count": 1.5}, r"\$\.count: expected int"),
    ],
)
def test_numbers_out_of_bounds(data: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_data(Ranged, data)


@dataclass(frozen=True, kw_only=True)
class Heir(Ranged):
    count: int = 7


def test_another_default_in_a_subclass_keeps_the_bounds() -> None:
    with pytest.raises(RecordError, match="count: 0 must be at least 1"):
        from_data(Heir, {"count": 0})


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Windows editors put one in front of dataset.json."""
    (tmp_path / "d.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "d.json") == {"a": 1}


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "r.json", FULL)
    assert read_record(Outer, tmp_path / "deep" / "r.json") == FULL
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


def test_numpy_scalars_become_plain() -> None:
    assert to_data({"a": np.float32(0.5), 3: (np.int64(2),)}) == {"a": 0.5, "3": [2]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"\$: missing keys \['name'\]"),
        ({"name": "x", "nmae": 1}, r"\$: unknown keys \['nmae'\]"),
        ({"name": 3}, r"\$\.name: expected str, found int"),
        ({"name": "x", "kind": "c"}, r"\$\.kind: 'c' is not one of 'a', 'b'"),
        ({"name": "x", "inner": {"sizes": [1, "2"]}}, r"\$\.inner\.sizes\[1\]: expected int"),
        ({"name": "x", "inner": {"sizes": [True]}}, r"\$\.inner\.sizes\[0\]: expected int, found bool"),
        ({"name": "x", "inner": {"sizes": [], "pair": [1]}}, r"\$\.inner\.pair: expected 2 values"),
        ({"name": "x", "table": {"k": {}}}, r"\$\.table\.k: missing keys \['sizes'\]"),
        ({"name": "x", "items": 3}, r"\$\.items: expected a list"),
        ([], r"\$: expected an object"),
    ],
)
def test_errors_carry_the_path_of_the_key(data: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_data(Outer, data)


def test_an_integer_is_a_float_but_not_the_other_way() -> None:
    assert from_data(Inner, {"sizes": [], "pair": [1, 2]}).pair == (1.0, 2.0)
    with pytest.raises(RecordError):
        from_data(Inner, {"sizes": [1.5]})


def test_the_hash_depends_on_content_only() -> None:
    assert content_hash({"a": 1, "b": (2,)}) == content_hash({"b": [2], "a": 1})
    assert content_hash(FULL) != content_hash(Outer(name="x"))
    assert len(content_hash(FULL)) == 16


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match=r"no file .*a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{,}")
    with pytest.raises(SamunetError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    write_json(tmp_path / "b.json", {"name": 1})
    with pytest.raises(SamunetError, match=r"b\.json: \$\.name"):
        read_record(Outer, tmp_path / "b.json")


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    """Python keeps the last one without a word, and half of the labels are gone."""
    file = tmp_path / "dataset.json"
    file.write_text('{"labels": {"background": 0, "organ": 1, "organ": 2}, "a": {"organ": 1}}')
    with pytest.raises(SamunetError, match=r"dataset\.json: the key 'organ' stands twice in one object"):
        read_json(file)


def test_unknown_names_show_the_closest() -> None:
    message = str(unknown_name("method", "2d_cn", ["2d_cnn", "other"]))
    assert message == "Unknown method '2d_cn'. Did you mean 2d_cnn? Known: 2d_cnn, other."
    assert "Known: none" in str(unknown_name("method", "x", []))


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "{", "\xff"])
def test_whatever_json_cannot_be_read_is_one_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SamunetError, match=r"x\.json is not valid JSON"):
        read_json(file)


@pytest.mark.parametrize("key", ["count", "rate", "share"])
def test_numbers_beyond_any_use_are_refused(key: str) -> None:
    with pytest.raises(RecordError, match=key):
        from_data(Ranged, {key: 10**400})


def test_options_are_named_as_they_were_typed() -> None:
    for data, told in (
        ({"count": 0}, "--set count: 0 must be at least 1."),
        ({"sides": [0, -1]}, r"--set sides\[1\]: -1 must"),
        ({"wide": 1}, r"--set: unknown keys \['wide'\]"),
    ):
        with pytest.raises(RecordError, match=f"^{told}"):
            from_data(Ranged, data, where="--set ")
