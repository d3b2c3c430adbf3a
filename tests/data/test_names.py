"""The ending of a case file's name, and the files of a folder that have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from samunet.data.names import files_with_ending, split_ending


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("a.b_1.nii.gz", ("a.b_1", ".nii.gz")),
        ("A.NII.GZ", ("A", ".NII.GZ")),
        ("x.png", ("x", ".png")),
        ("x.y.tiff", ("x.y", ".tiff")),
        ("x.y.npy", ("x.y", ".npy")),
        ("plain", ("plain", "")),
    ],
)
def test_split(file: str, parts: tuple[str, str]) -> None:
    assert split_ending(Path("folder") / file) == parts


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".a.png", "a.tif"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert [file.name for file in files_with_ending(tmp_path, ".png")] == ["a.png", "b.png"]
