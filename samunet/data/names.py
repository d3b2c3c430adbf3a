"""Names of case files: the ending that tells the kind of file, and what is before it."""

from __future__ import annotations

from pathlib import Path

from samunet.data.readers import ENDINGS


def split_ending(file: Path | str) -> tuple[str, str]:
    """Name of a file without its ending, and the ending as it is written: `("a.b_1", ".nii.gz")`.

    Of an ending that is not supported, what follows the last dot counts. A dataset's ending may have more
    parts (`.ome.tif`): a case is called what is left before that.
    """
    path = Path(file)
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
