"""Cases: which files belong together, from the file names in a folder or from an explicit map."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from samunet.data.names import split_ending
from samunet.data.readers import ENDINGS, files_of, name_fault, read_header
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.records import hash_files

logger = logging.getLogger(__name__)

CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
SHOWN = 10
"""Channels in a message."""
HEADERS_READ = 16
"""Headers read to estimate memory; reading thousands would take longer than it saves."""


@dataclass(frozen=True)
class Case:
    """Files of one subject.

    Attributes:
        name: without channel suffix and file ending.
        images: one file per channel in channel order, or one file that holds all channels.
        label: the label map, None where there is none (prediction input).
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of this case: images, label, and what lies beside them (see `files_of`)."""
        told = [*self.images, *([] if self.label is None else [self.label])]
        return (*told, *sorted({beside for path in told for beside in files_of(path)[1:]}))


def find_cases(folder: Path, file_ending: str, num_channels: int) -> tuple[Case, ...]:
    """Cases of a folder of images (prediction input), by name.

    Args:
        folder: holds `CASE_0000` + ending, `CASE_0001` + ending ...; the suffix may be missing where one
            file holds a whole case.
        file_ending: for example `.nii.gz`.
        num_channels: channels that every case must have.

    Raises:
        SamunetError: no folder, no images (says what was found instead), or channels missing; lists all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SamunetError(absent(folder, "folder"))
    cases, of_names = group_files(folder, file_ending, num_channels)
    if not cases:
        advice = f"convert the images to {file_ending}, which alone is read here"
        raise SamunetError(empty_folder(folder, file_ending, num_channels, advice))
    faults = [*of_names.values(), *(f for case in cases for f in channel_faults(case, num_channels))]
    if faults:
        raise SamunetError("\n".join([f"{folder} cannot be used:", *faults]))
    told = passed_over(folder, file_ending)
    if told:
        logger.warning("%s", told)
    return cases


def passed_over(folder: Path, file_ending: str) -> str:
    """Say which images of a folder have another ending than the one that is read; empty where none has."""
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and path.name.lower().endswith(ENDINGS)
        and (path.is_dir() or not path.name.endswith(file_ending))
    ]
    if not others:
        return ""
    return f"{folder}: not used, for only files that end in {file_ending} are read: {listed(others)}."


def group_files(folder: Path, file_ending: str, num_channels: int) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Group the images of a folder into cases by their names.

    A link to a file that is gone belongs to its case, so that `channel_faults` tells of it.

    Returns:
        The cases, and by the case what is wrong with its files' names.
    """
    suffixed: dict[str, dict[int, Path]] = {}
    plain: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(file_ending) or path.is_dir():
            continue
        stem = path.name[: -len(file_ending)]
        match = CHANNEL_SUFFIX.fullmatch(stem)
        if match and _is_channel(match, num_channels, folder, file_ending):
            suffixed.setdefault(match[1], {})[int(match[2])] = path
        elif stem:
            plain[stem] = path
    faults = {
        name: f"{plain[name]}: case {name} also has files with a channel suffix; keep one kind."
        for name in sorted(plain.keys() & suffixed.keys())
    }
    cases = [Case(name, tuple(f for _, f in sorted(files.items()))) for name, files in suffixed.items()]
    cases += [Case(name, (path,)) for name, path in plain.items() if name not in suffixed]
    for name, files in suffixed.items():
        missing = sorted(set(range(max(files) + 1)) - set(files))
        if missing and name not in faults:
            hint = _whole_files_hint(list(files.values()), num_channels)
            told = listed(missing, SHOWN)
            faults[name] = f"{folder}: case {name} lacks the file(s) of channel {told}.{hint}"
    return tuple(sorted(cases, key=lambda case: case.name)), faults


@dataclass(frozen=True)
class FilesStamp:
    """What tells the images of a case from others under the same names: sizes, times (ns) and a hash of the
    bytes."""

    sizes: tuple[int, ...]
    times_ns: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, case: Case) -> FilesStamp:
        sizes, times = _sizes_and_times(case)
        return cls(sizes, times, hash_files(case.images))

    def is_of(self, case: Case) -> bool:
        """Whether these are the same images, copied or not; bytes are read only where the times differ."""
        sizes, times = _sizes_and_times(case)
        return sizes == self.sizes and (times == self.times_ns or hash_files(case.images) == self.digest)


def _sizes_and_times(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = [path.stat() for path in case.images]
    return tuple(status.st_size for status in found), tuple(status.st_mtime_ns for status in found)


def largest_reading_bytes(cases: Sequence[Case]) -> int:
    """Memory that reading and looking through the largest case takes, by the headers of the largest files; a
    compressed file itself says little."""
    largest = 0
    by_size = sorted(cases, key=lambda case: sum(path.stat().st_size for path in case.images))
    for case in by_size[-HEADERS_READ:]:
        with suppress(SamunetError):  # told where it is read
            headers = [read_header(path) for path in case.images]
            voxels = max((prod(header.geometry.shape) for header in headers), default=0)
            channels = sum(header.num_channels for header in headers)
            # Image as read and in float32, one channel's sorted copy, the label as read and encoded, masks.
            largest = max(largest, voxels * (8 * channels + 4 + 16))
    return largest


def cases_of_map(folder: Path, entries: Any, where: str) -> tuple[Case, ...]:
    """Cases of the explicit `dataset` map of a dataset.json.

    Paths are absolute or relative to `folder`; environment variables are expanded.

    Raises:
        SamunetError: an entry is malformed, or a case's name cannot be a file's; names its key.
    """
    if not isinstance(entries, Mapping):
        raise SamunetError(f"{where}: key `dataset` must map each case to its `images` and `label`.")
    cases = []
    for name, entry in entries.items():
        if not name or name.startswith(".") or set(name) & {"/", "\\"}:
            raise SamunetError(
                f"{where}: `dataset` names a case {name!r}. Files are named by it, so it must not "
                "hold / or \\ nor start with a dot."
            )
        images = entry.get("images") if isinstance(entry, Mapping) else None
        paths = [*images, entry.get("label")] if isinstance(images, list) else []
        if len(paths) < 2 or not all(isinstance(path, str) and path for path in paths):
            raise SamunetError(
                f'{where}: `dataset.{name}` must look like {{"images": ["a.nii.gz"], "label": "b.nii.gz"}}.'
            )
        files = [Path(os.path.abspath(folder / os.path.expandvars(path))) for path in paths]
        cases.append(Case(name, tuple(files[:-1]), files[-1]))
    return tuple(sorted(cases, key=lambda case: case.name))


def channel_faults(case: Case, num_channels: int) -> list[str]:
    """What is wrong with a case's number of channels; files that cannot be read are a fault too.

    Where the file names already give one file per channel nothing is opened.
    """
    misnamed = [fault for fault in map(name_fault, case.images) if fault]
    if misnamed:
        return misnamed
    missing = [path for path in case.images if not path.is_file()]
    if missing:
        return [f"Case {case.name}: {absent(path)}" for path in missing]
    if len(case.images) == num_channels:
        return []
    try:
        found = sum(read_header(path).num_channels for path in case.images)
    except SamunetError as error:
        return [f"Case {case.name}: {error}"]
    if found == num_channels:
        return []
    rgba = " (RGBA? Save it without the transparency channel.)" if found == 4 and num_channels == 3 else ""
    hint = rgba or _whole_files_hint(case.images, num_channels)
    names = listed([path.name for path in case.images], SHOWN)
    return [
        f"Case {case.name} has {found} channel(s) in {names}; dataset.json declares {num_channels}, so the "
        f"files {_expected_names(case.name, case.images[0], num_channels)} are expected.{hint}"
    ]


def _whole_files_hint(images: Sequence[Path], num_channels: int) -> str:
    """What to do where each file of a case alone has all channels, as colour pictures of a film have; else
    nothing."""
    try:
        many = num_channels > 1 or len(images) > 1
        whole = many and all(read_header(f).num_channels == num_channels for f in images)
    except SamunetError:
        return ""
    if not whole:
        return ""
    stem, ending = split_ending(images[0])
    named = f"{stem}_0000{ending}"
    has = f"all {num_channels} channels" if num_channels > 1 else "the one channel"
    return (
        f" Each file alone has {has}: if each is a case of its own, append _0000 to "
        f"every name ({named}), for four digits at the end are a channel."
    )


def file_faults(case: Case, num_channels: int) -> list[str]:
    """What is wrong with a case's channels, and with its label where it is not there."""
    faults = channel_faults(case, num_channels)
    if case.label is not None and name_fault(case.label):
        faults.append(name_fault(case.label))
    elif case.label is not None and not case.label.is_file():
        faults.append(f"Case {case.name}: {absent_label(case.label)}")
    return faults


def absent(path: Path, kind: str = "file") -> str:
    """Say that a file or folder is not there; of a link, where it points."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which is not there."
    return f"There is no {kind} {path}."


def absent_label(label: Path) -> str:
    """Say that a label map is not there, and what lies there in its place."""
    told = absent(label, "label file")
    stem, ending = split_ending(label)
    there = [f"{stem}_0000{ending}", *(f"{stem}{e}" for e in ENDINGS if e != ending)]
    found = next((name for name in there if (label.parent / name).is_file()), None)
    if found is None:
        return told
    jpeg = " JPEG changes label values, so labels of JPEG images are PNG files." * found.endswith(
        (".jpg", ".jpeg")
    )
    return f"{told} {found} lies there: label maps have no channel, and the ending {ending}.{jpeg}"


def empty_folder(
    folder: Path, file_ending: str, num_channels: int, advice: str = "correct `file_ending` in dataset.json"
) -> str:
    """Say what was found in a folder without images, what was expected, and `advice` for other endings."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    others = sorted({e for name in names for e in ENDINGS if name.lower().endswith(e) and e != file_ending})
    seen = f"It holds {len(names)} other files, such as {', '.join(names[:3])}." if names else "It is empty."
    hint = f" If {' or '.join(others)} is meant, {advice}." if others else ""
    wanted = ", ".join(f"CASE_{c:04d}{file_ending}" for c in range(min(num_channels, 3)))
    return f"{folder} holds no images with the ending {file_ending} (expected names: {wanted}). {seen}{hint}"


def _is_channel(match: re.Match[str], num_channels: int, folder: Path, file_ending: str) -> bool:
    """Whether four digits at the end of a name are a channel, and not part of a name such as patient_2019.

    They are when they are a possible channel, or when the first channel of the same case lies beside it.
    """
    if int(match[2]) < num_channels:
        return True
    return (folder / f"{match[1]}_0000{file_ending}").is_file()


def _expected_names(name: str, example: Path, num_channels: int) -> str:
    _, ending = split_ending(example)
    return ", ".join(f"{name}_{c:04d}{ending}" for c in range(num_channels))
