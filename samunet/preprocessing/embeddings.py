"""Embedding cache: a frozen encoder's outputs on disk, for several augmented views of every slice.

One folder per identity (encoder weights, input, augmentation...), in it one folder per case, in it per view
`vN.level_I.npy` and `vN.target.npy`, float16 and uint8 arrays that are read by memory mapping; compact kinds
(see compact.py) have uint8 levels with `vN.level_I_range.npy`. `vN.json` is written last: without it the view
does not exist.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from samunet.data.open_files import most_open
from samunet.errors import SamunetError
from samunet.planning.cache_storage import Storage
from samunet.preprocessing.boxes import tile_grid
from samunet.preprocessing.compact import Codec, load_bases
from samunet.preprocessing.open_cases import made_anew
from samunet.preprocessing.store import load_array
from samunet.records import content_hash, read_json, read_record, to_data, write_json

IDENTITY_FILE = "identity.json"
ITEMS = "items_per_case"
"""The key of an identity that a time budget decides on."""
BASES_FILE = "components.npz"
OPEN_ARRAYS = 512
"""Memory-mapped arrays a process keeps open at most; each takes a file."""
SHARE_OF_FILES = 0.5
"""Of the files that a process may open."""


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """Everything that the stored numbers depend on, besides the content of the cases.

    Views are numbered and each follows from its number, so their count is no part of the identity: a cache
    with more views serves a training with fewer.

    Attributes:
        encoder_sha256: of the encoder's parameters and buffers as they were used.
        variant / input_size: of the encoder.
        patch_size: (h, w) of the slices or tiles; slice_context neighbours on each side.
        channel_map / paper_compat: how image channels become SAM's picture.
        with_image: whether the picture is stored too, for heads that look at it.
        blocks: encoder blocks whose outputs are stored besides the neck's.
        display_window: intensities shown as 0 and 255 per channel.
        augmentation: settings of the augmented views, plain data; `seed` of their draws.
        items_per_case: most slices or tiles kept of a case; None keeps all.
        data_hash: of the preprocessing.
        storage: how levels are kept, see planning/cache_storage.py.
        precision: number format that they were computed in.
    """

    encoder_sha256: str
    variant: str
    input_size: int
    patch_size: tuple[int, ...]
    slice_context: int
    channel_map: str
    paper_compat: bool
    with_image: bool
    blocks: tuple[int, ...] = ()
    display_window: tuple[tuple[float, float], ...]
    augmentation: dict[str, Any]
    seed: int
    items_per_case: int | None
    data_hash: str
    storage: str = "fp16"
    precision: str = "fp32"

    @property
    def signature(self) -> str:
        """Name of the cache's folder."""
        return content_hash(self)


@dataclass(frozen=True, kw_only=True)
class ViewEntry:
    """Content of vN.json.

    Attributes:
        key: content key of the stored case.
        items: first voxel (z, y, x) of each cached slice or tile.
        counts: for each item, voxels of each foreground output (in this view).
        annotated: voxels in each item that are not ignored.
        errors: of compact kinds, level -> relative error (see compact.py), the mean over some of the items.
    """

    key: str
    items: tuple[tuple[int, int, int], ...]
    counts: tuple[tuple[int, ...], ...]
    annotated: tuple[int, ...]
    errors: dict[str, float] = field(default_factory=dict)


def case_items(
    shape: tuple[int, ...],
    patch_size: tuple[int, ...],
    locations: dict[str, np.ndarray],
    limit: int | None,
    seed: int,
) -> list[tuple[int, int, int]]:
    """First voxels (z, y, x) of the slices, or tiles of large slices, that represent a case.

    Args:
        shape: (Z, Y, X) of the case.
        patch_size: (h, w).
        locations: class -> voxels; with a limit half of the items hold foreground where there is enough.
        limit: most items; None takes all.
        seed: of the choice.
    """
    tiles = tile_grid(shape[1:], patch_size)
    items = [(z, int(y), int(x)) for z in range(shape[0]) for y, x in tiles]
    if limit is None or len(items) <= limit:
        return items
    rng = np.random.default_rng(np.random.SeedSequence((seed, *shape)))
    with_foreground = {int(z) for found in locations.values() for z in found[:, 0]}
    first = [i for i, item in enumerate(items) if item[0] in with_foreground]
    chosen = set(rng.permutation(first)[: (limit + 1) // 2].tolist())
    rest = [i for i in range(len(items)) if i not in chosen]
    chosen |= set(rng.permutation(rest)[: limit - len(chosen)].tolist())
    return [items[i] for i in sorted(chosen)]


def view_seed(identity_seed: int, case: str, view: int, item: tuple[int, int, int]) -> int:
    """Seed of the augmentation of one item in one view (view 0 is not augmented)."""
    words = (identity_seed, zlib.crc32(case.encode()), view, *(value % 2**32 for value in item))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


class EmbeddingCache:
    """The cache of one identity. Reading needs no network."""

    def __init__(self, folder: Path, identity: CacheIdentity) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self._arrays: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._pinned: dict[str, str] = {}
        self._checked: dict[Path, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "identity": self.identity,
            "_arrays": OrderedDict(),
            "_tables": {},
            "_pinned": self._pinned,
            "_checked": {},
        }

    def pin(self, cases: Iterable[str]) -> None:
        """From now on refuse to read views of these cases that were made anew from other content."""
        self._pinned.update({case: self.entry(case, 0).key for case in cases})

    def _check_pinned(self, case: str, view: int) -> None:
        """After an array is opened: the JSON file goes before another one takes the array's place."""
        if case not in self._pinned:
            return
        marker, stamp = self.view_file(case, view, "json"), None
        with suppress(FileNotFoundError):
            found = marker.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._checked.get(marker):  # reading it for every array would take longer than that
                return
        if stamp is None or self.entry(case, view).key != self._pinned[case]:
            raise made_anew(
                f"View {view} of case {case} in the embedding cache {self.folder}", "from other content"
            )
        self._checked[marker] = stamp

    def prepare(self) -> None:
        """Make the folder and write down the identity.

        Raises:
            SamunetError: the folder holds a cache of something else; names the keys that differ.
        """
        path = self.folder / IDENTITY_FILE
        if not path.exists():
            write_json(path, self.identity)
            return
        told = self.differences(path)
        if told:
            raise SamunetError(
                f"The embedding cache {self.folder} was made from something else: {'; '.join(told)}. "
                "Delete that folder."
            )

    def differences(self, path: Path) -> list[str]:
        """In words, the keys in which the identity stored in a file differs from this one."""
        found, wanted = read_json(path), to_data(self.identity)
        names = [entry.name for entry in fields(CacheIdentity)]
        return [
            f"{name} is {_shown(found.get(name))} there, {_shown(wanted[name])} now"
            for name in names
            if found.get(name) != wanted[name]
        ]

    def shortened_beside(self) -> list[int]:
        """Items a case of the caches beside this one that differ from it in nothing else, ascending."""
        found = [read_json(path) for path in self._identities_beside()]
        whole = {**to_data(self.identity), ITEMS: None}
        return sorted(
            other[ITEMS]
            for other in found
            if other.get(ITEMS) is not None and {**other, ITEMS: None} == whole
        )

    def closest_other(self) -> str | None:
        """Why the most similar cache beside this one cannot be used, in words; None if there is none."""
        told = sorted((self.differences(path) for path in self._identities_beside()), key=len)
        return "; ".join(told[0]) if told else None

    def _identities_beside(self) -> list[Path]:
        """Files of the identities of the other caches beside this one."""
        found = self.folder.parent.glob(f"*/{IDENTITY_FILE}")
        return [path for path in found if path.parent != self.folder]

    def view_file(self, case: str, view: int, suffix: str) -> Path:
        return self.folder / case / f"v{view}.{suffix}"

    def has(self, case: str, view: int, key: str) -> bool:
        """Whether a view is complete and was made from the case of that content."""
        path = self.view_file(case, view, "json")
        return path.exists() and self.entry(case, view).key == key

    def entry(self, case: str, view: int) -> ViewEntry:
        """What is known of a stored view.

        Raises:
            SamunetError: it is not in the cache.
        """
        return read_record(ViewEntry, self.view_file(case, view, "json"))

    def mean_errors(self, views: Sequence[tuple[str, int]]) -> dict[str, float]:
        """Level -> mean relative error over the views (case, number); empty for `fp16`."""
        errors = [self.entry(case, view).errors for case, view in views]
        return {name: fmean(error[name] for error in errors) for name in (errors[0] if errors else {})}

    def tables(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Of the plain view: voxels per item and foreground output (N, K_fg), and annotated voxels (N,)."""
        if case not in self._tables:
            self._check_pinned(case, 0)
            entry = self.entry(case, 0)
            self._check_pinned(case, 0)
            self._tables[case] = np.asarray(entry.counts, float), np.asarray(entry.annotated, float)
        return self._tables[case]

    def forget_stale(self, case: str, view: int, key: str) -> None:
        """Delete a view that was made from another content of the case, its JSON file first.

        What lies there without a JSON file is no view, and perhaps one that another process is finishing.
        """
        self._tables.pop(case, None)
        marker = self.view_file(case, view, "json")
        for path in [path for path in self._arrays if path.parent == marker.parent]:
            del self._arrays[path]
        if not marker.exists() or self.has(case, view, key):
            return
        marker.unlink(missing_ok=True)
        for path in marker.parent.glob(f"v{view}.*"):
            path.unlink(missing_ok=True)

    @property
    def bases_file(self) -> Path:
        """Principal components of the cache, for `pca`."""
        return self.folder / BASES_FILE

    @cached_property
    def codec(self) -> Codec:
        """Turns stored arrays into features.

        Raises:
            SamunetError: the principal components are missing or damaged.
        """
        storage = Storage.parse(self.identity.storage)
        return Codec(storage, load_bases(self.bases_file) if storage.kind == "pca" else None)

    @cached_property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays of a view: `level_0`..., perhaps `image_skip`, and `target`."""
        first = next(self.folder.glob("*/v0.json")).parent
        return tuple(sorted(path.name.split(".")[1] for path in first.glob("v0.*.npy")))

    def read(self, case: str, view: int, index: int) -> dict[str, Tensor]:
        """One item: {"level_0": (E, h, w) float16, ..., "target": (T, *patch) uint8}."""
        arrays = {name: self._array(case, view, name)[index] for name in self.array_names}
        return self.codec.decode(arrays)

    def _array(self, case: str, view: int, name: str) -> np.ndarray:
        path = self.view_file(case, view, f"{name}.npy")
        if path in self._arrays:
            self._arrays.move_to_end(path)
            return self._arrays[path]
        self._check_pinned(case, view)  # else an array that was just deleted would be called damaged
        array = load_array(path, f"Delete {self.folder}.", mapped=True)
        self._check_pinned(case, view)
        self._arrays[path] = array
        if len(self._arrays) > most_open(OPEN_ARRAYS, SHARE_OF_FILES):
            self._arrays.popitem(last=False)
        return self._arrays[path]


def _shown(value: Any) -> str:
    """A value in a message; hashes are cut short."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
