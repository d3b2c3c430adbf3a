"""Soft labels: a teacher's outputs for whole preprocessed cases on disk, compressed and read by patch.

One folder per identity (teacher's checkpoints, kind of target, preprocessing), in it per case
`NAME.soft.b2nd` and `NAME.json`, which is written last: without it the case is not labelled. Cases without
labels of their own also have `NAME.foreground.npy`, voxels of the teacher's foreground to centre patches on.

What is stored is the difference from a certain background, so that whatever lies outside a case reads as 0:
probabilities as one byte a voxel and output (steps of 1/255; an error of at most 0.002), logits as
half-precision numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from samunet.data.open_files import most_open
from samunet.errors import SamunetError
from samunet.preprocessing.boxes import read_box
from samunet.preprocessing.open_cases import made_anew
from samunet.preprocessing.restore import LogitArray
from samunet.preprocessing.store import load_array, open_packed, pack, write_packed
from samunet.records import content_hash, read_json, read_record, to_data, write_json
from samunet.whole_files import atomic_path

IDENTITY_FILE = "identity.json"
OPEN_CASES = 64
"""Labelled cases a process keeps open at most."""
SHARE_OF_FILES = 0.125
"""Of the files that a process may open; the stored cases are open besides."""
OUTSIDE_LOGIT = 10.0
"""Logit of the background above the other classes outside a case; regions have minus this there."""
STEPS = 255
SEED = 1234
MOST_VOXELS = 10_000
"""Voxels kept of each foreground output, to centre patches on."""
RUN_AGAIN = "Run samunet_distill again; finished cases are kept."

Target = Literal["probabilities", "logits"]


@dataclass(frozen=True, kw_only=True)
class SoftLabelIdentity:
    """Everything that the stored numbers depend on, besides the content of the cases.

    Attributes:
        checkpoints_sha256: of the teacher's checkpoint files, one a fold.
        target: what is stored: `probabilities` (softmax, or sigmoid for regions) or `logits` (their mean over
            the classes taken away, because softmax does not see it; as they are for regions).
        regions: outputs are overlapping regions.
        outputs: K, classes with background or regions.
        step_size / mirroring: of the teacher's sliding window.
        data_hash: of the preprocessing.
    """

    checkpoints_sha256: tuple[str, ...]
    target: Target
    regions: bool
    outputs: int
    step_size: float
    mirroring: bool
    data_hash: str

    @property
    def signature(self) -> str:
        """Name of the folder."""
        return content_hash(self)

    @property
    def itemsize(self) -> int:
        """Bytes of a stored value before compression."""
        return 1 if self.target == "probabilities" else 2

    def outside(self) -> Tensor:
        """Value of each output outside a case: certain background, (K,)."""
        values = torch.zeros(self.outputs)
        if self.target == "probabilities":
            if not self.regions:
                values[0] = 1.0
        elif self.regions:
            values -= OUTSIDE_LOGIT
        else:
            values[0] = OUTSIDE_LOGIT
            values -= values.mean()
        return values


@dataclass(frozen=True, kw_only=True)
class SoftLabelEntry:
    """Content of NAME.json: the content key of the stored case that was labelled."""

    key: str


def encode(logits: LogitArray, identity: SoftLabelIdentity) -> np.ndarray:
    """A teacher's logits (K, Z, Y, X) as they are stored: uint8 or float16 of the same shape."""
    assert logits.shape[0] == identity.outputs
    kind = np.uint8 if identity.target == "probabilities" else np.float16
    stored = np.empty(tuple(logits.shape), kind)
    outside = identity.outside()[:, None, None]
    for z in range(logits.shape[1]):  # the float copies of a whole case would take several times its memory
        plane = output_of(logits[:, z].float()[None], identity)[0] - outside
        if identity.target == "probabilities":
            plane = plane.abs().mul_(STEPS).round_()
        stored[:, z] = plane.numpy()
    return stored


def draw_foreground(logits: LogitArray, identity: SoftLabelIdentity) -> np.ndarray:
    """Voxels of a teacher's foreground, drawn once a case: int32 (n, 4) with output, z, y, x.

    Args:
        logits: (K, Z, Y, X); the largest, or for regions those above 0, are the teacher's segmentation.
    """
    rng = np.random.default_rng(SEED)
    shape = tuple(logits.shape[1:])
    winner = None if identity.regions else np.empty(shape, np.int16)
    if winner is not None:
        for z in range(shape[0]):
            winner[z] = logits[:, z].argmax(0).numpy()
    rows = [np.zeros((0, 4), np.int32)]
    for output in range(0 if identity.regions else 1, identity.outputs):
        mask = (logits[output] > 0).numpy() if winner is None else winner == output
        voxels = np.flatnonzero(mask)
        if len(voxels) > MOST_VOXELS:
            voxels = np.sort(rng.choice(voxels, MOST_VOXELS, replace=False))
        place = np.unravel_index(voxels, shape)
        rows.append(np.stack([np.full(len(voxels), output), *place], 1).astype(np.int32))
    return np.concatenate(rows)


def output_of(logits: Tensor, identity: SoftLabelIdentity) -> Tensor:
    """What teacher and student are compared in, from logits (B, K, *S): the target's kind of values."""
    if identity.target == "probabilities":
        return torch.sigmoid(logits) if identity.regions else torch.softmax(logits, 1)
    return logits if identity.regions else logits - logits.mean(1, keepdim=True)


def decode(stored: Tensor, identity: SoftLabelIdentity) -> Tensor:
    """Stored values (K, *S), perhaps interpolated, as probabilities or logits; float32."""
    outside = identity.outside().reshape(-1, *(1,) * (stored.ndim - 1))
    if identity.target == "logits":
        return outside + stored
    # A stored probability is its distance from 0, or from 1 where 1 is certain outside.
    return outside + (1 - 2 * outside) * stored / STEPS


class SoftLabelStore:
    """The soft labels of one identity; picklable, so that worker processes can hold it."""

    def __init__(self, folder: Path, identity: SoftLabelIdentity) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self._pinned: dict[str, str] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._foreground: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_foreground": OrderedDict()}

    def pin(self, names: Iterable[str]) -> None:
        """From now on refuse to read soft labels of these cases that were made anew from other content."""
        self._pinned.update({name: self._entry(name).key for name in names})

    def _check_pinned(self, name: str) -> None:
        """After a file is opened: the JSON file goes before another one takes the file's place."""
        if name not in self._pinned:
            return
        if not self._path(name, ".json").is_file() or self._entry(name).key != self._pinned[name]:
            raise made_anew(f"The soft labels of case {name} in {self.folder}", "from other content")

    def _entry(self, name: str) -> SoftLabelEntry:
        return read_record(SoftLabelEntry, self._path(name, ".json"))

    def check_identity(self) -> None:
        """See that the folder, where there is one, holds soft labels of this identity.

        Raises:
            SamunetError: it holds soft labels of something else; names the keys that differ.
        """
        path = self.folder / IDENTITY_FILE
        if not path.exists():
            return
        found, wanted = read_json(path), to_data(self.identity)
        told = [
            f"{field.name} is {found.get(field.name)!r} there, {wanted[field.name]!r} now"
            for field in fields(SoftLabelIdentity)
            if found.get(field.name) != wanted[field.name]
        ]
        if told:
            raise SamunetError(
                f"The soft labels in {self.folder} were made from something else: {'; '.join(told)}. "
                "Delete that folder."
            )

    def missing(self, keys: Mapping[str, str]) -> list[str]:
        """Names of the cases that are not labelled, or whose labels were made from other content.

        Args:
            keys: case -> content key of the stored case.
        """
        return [name for name, key in keys.items() if not self.has(name, key)]

    def has(self, name: str, key: str) -> bool:
        """Whether a case is labelled, from that content."""
        path = self._path(name, ".json")
        if not path.is_file() or not self._path(name, ".soft.b2nd").is_file():
            return False
        return self._entry(name).key == key

    def write(self, name: str, packed: bytes, key: str, foreground: np.ndarray | None = None) -> None:
        """Store a case's packed soft labels; they appear complete or not at all.

        Those that another process has finished meanwhile stay: a training may be reading them.

        Args:
            key: content key of the stored case.
            foreground: from `draw_foreground`, for a case without a label of its own.
        """
        if self.has(name, key) and (foreground is None or self._path(name, ".foreground.npy").is_file()):
            return
        if not (self.folder / IDENTITY_FILE).exists():
            write_json(self.folder / IDENTITY_FILE, self.identity)
        self._path(name, ".json").unlink(missing_ok=True)
        self._open.pop(name, None)
        if foreground is not None:
            with atomic_path(self._path(name, ".foreground.npy")) as temporary, temporary.open("wb") as file:
                np.save(file, foreground)
        write_packed(self._path(name, ".soft.b2nd"), packed)
        write_json(self._path(name, ".json"), SoftLabelEntry(key=key))

    def read(self, name: str, lower: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """A box as it is stored, float32 (K, *size); 0 outside the case. `decode` gives the values.

        Args:
            name: of the case.
            lower: first index per axis (z, y, x); may be negative.
            size: voxels per axis.
        """
        if name not in self._open:
            opened = open_packed(self._path(name, ".soft.b2nd"), RUN_AGAIN)
            self._check_pinned(name)
            self._open[name] = opened
            if len(self._open) > most_open(OPEN_CASES, SHARE_OF_FILES):
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return read_box(self._open[name], lower, size, 0).astype(np.float32)

    def foreground(self, name: str) -> dict[str, np.ndarray]:
        """Output -> int32 (n, 3) voxels z, y, x of the teacher's foreground; outputs without any are absent.

        Raises:
            SamunetError: the file is missing or damaged.
        """
        if name not in self._foreground:
            rows = load_array(self._path(name, ".foreground.npy"), RUN_AGAIN)
            self._check_pinned(name)
            self._foreground[name] = {str(k): rows[rows[:, 0] == k, 1:] for k in np.unique(rows[:, 0])}
            if len(self._foreground) > OPEN_CASES:
                self._foreground.popitem(last=False)
        self._foreground.move_to_end(name)
        return self._foreground[name]

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"


def pack_case(logits: LogitArray, identity: SoftLabelIdentity, by_slice: bool) -> bytes:
    """A teacher's logits (K, Z, Y, X) as the bytes that are written.

    Args:
        by_slice: laid out for reading single slices instead of boxes.
    """
    return pack(encode(logits, identity), by_slice)
