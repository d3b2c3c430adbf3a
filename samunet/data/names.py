"""Names of case files: the ending that tells the kind of file, and what is before it."""

from __future__ import annotations

from pathlib import Path

from samunet.data.readers import ENDINGS


def split_ending(file: Path | str, ending: str | None = None) -> tuple[str, str]:
    """Name of a file without its ending, and the ending as it is written: `("a.b_1", ".nii.gz")`.

    Args:
        ending: that of the dataset, which may have more parts than its kind of file needs (`.ome.tif`). None,
            or where the file has another one: the supported ending, else what follows the last dot.
    """
    path = Path(file)
    if ending and path.name.endswith(ending):
        return path.name[: -len(ending)], ending
    length = next((len(e) for e in ENDINGS if path.name.lower().endswith(e)), len(path.suffix))
    cut = len(path.name) - length
    return path.name[:cut], path.name[cut:]


def files_with_ending(folder: Path, ending: str) -> list[Path]:
    """The files of a folder that are not hidden and end so, by name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.endswith(ending) and not path.name.startswith(".") and path.is_file()
    ]
