"""Filling the embedding cache: what it will take, and one pass of the encoder over what is missing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from math import prod
from pathlib import Path
from statistics import fmean
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from samunet.data.labels import OUTSIDE
from samunet.networks.features import EncodingNetwork, Features
from samunet.planning.cache_storage import Storage
from samunet.preprocessing.boxes import read_box, read_slice
from samunet.preprocessing.compact import LEVEL, fit_bases, save_bases
from samunet.preprocessing.embeddings import EmbeddingCache, ViewEntry, case_items, view_seed
from samunet.preprocessing.open_cases import made_anew
from samunet.preprocessing.store import CaseStore, StoredCase
from samunet.preprocessing.streams import BatchStream, Sample
from samunet.progress import Progress
from samunet.records import write_json
from samunet.whole_files import atomic_path, remove_partials

logger = logging.getLogger(__name__)

FITTED_SLICES = 64
"""Slices that principal components are fitted to, about."""
MEASURED_EVERY = 8
"""Of so many items of a view the error of a compact kind is measured on one."""
Augment = Callable[[np.ndarray, np.ndarray, int], tuple[Tensor, Tensor]]
"""(image (C, *load), label (*load), seed) -> (image (C, *patch), target (T, *patch)); picklable."""


class ItemKey(NamedTuple):
    """One item of one view of one case."""

    case: str
    view: int
    item: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A view of a case that has to be encoded.

    Attributes:
        key: of the case's content.
        items: first voxel (z, y, x) of each; it may lie outside the case, which is padded.
        plane: height and width of the case.
    """

    case: str
    view: int
    key: str
    items: tuple[tuple[int, int, int], ...]
    plane: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ViewSource:
    """Reads and augments the items; view 0 as they are.

    Attributes:
        case_folder: stored cases; keys: what each has to be made from, as in its unit.
        patch_size: (h, w) of an item; load_size: what is read for an augmented view.
        augment / finish: for augmented views, for view 0.
    """

    case_folder: Path
    patch_size: tuple[int, ...]
    load_size: tuple[int, ...]
    slice_context: int
    seed: int
    augment: Augment
    finish: Augment
    keys: Mapping[str, str] = field(default_factory=dict, hash=False)

    def sample(self, key: ItemKey) -> Sample:
        """{"image": (C, h, w) float32, "target": (T, h, w)}."""
        case = _open_case(self.case_folder, key.case)
        if self.keys.get(key.case, case.entry.key) != case.entry.key:
            raise made_anew(f"The preprocessed case {key.case} in {self.case_folder}", "in another way")
        if key.view == 0:
            image, label = self._read(case, key.item, self.patch_size)
            image_t, target = self.finish(image, label, 0)
        else:
            # The transforms cut the patch out of the middle of what they are given.
            margin = [n // 2 - p // 2 for n, p in zip(self.load_size, self.patch_size)]
            lower = (key.item[0], key.item[1] - margin[0], key.item[2] - margin[1])
            image, label = self._read(case, lower, self.load_size)
            image_t, target = self.augment(image, label, view_seed(self.seed, *key))
        return {"image": image_t, "target": target}

    def _read(self, case: StoredCase, lower: Sequence[int], size: tuple[int, ...]) -> tuple[Any, Any]:
        label = read_box(case.label, lower, (1, *size), OUTSIDE)[0]
        return read_slice(case.image, lower, size, self.slice_context), label


@lru_cache(maxsize=4)
def _open_case(folder: Path, name: str) -> StoredCase:
    """Items come case by case, so a few open ones are enough."""
    return CaseStore(folder).open_whole(name)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How the missing views are encoded.

    Attributes:
        batch_size: slices encoded at once.
        workers: processes that read and augment.
        device: of the network.
        autocast: makes the context of the forward pass.
        ignore_index: class index of ignored voxels; with `regions` the last target channel marks them.
        num_foreground: foreground outputs.
        fit_cases: cases that principal components are fitted to; none of them: all that are encoded.
    """

    batch_size: int
    workers: int
    device: torch.device
    autocast: Callable[[], Any]
    regions: bool
    ignore_index: int | None
    num_foreground: int
    fit_cases: frozenset[str] = frozenset()


def missing_units(cache: EmbeddingCache, store: CaseStore, views: dict[str, int]) -> list[Unit]:
    """What has to be encoded.

    Args:
        cache: of the identity.
        store: preprocessed cases.
        views: case -> number of views wanted.
    """
    units = []
    for case, count in views.items():
        stored = store.open_whole(case)
        identity = cache.identity
        items = case_items(
            tuple(stored.image.shape[1:]),
            identity.patch_size,
            stored.locations,
            identity.items_per_case,
            identity.seed,
        )
        for view in range(count):
            if not cache.has(case, view, stored.entry.key):
                plane, key = tuple(stored.image.shape[2:]), stored.entry.key
                units.append(Unit(case=case, view=view, key=key, items=tuple(items), plane=plane))
    return units


@torch.no_grad()
def bytes_per_item(
    network: nn.Module, channels: int, patch_size: Sequence[int], device: torch.device, storage: str = "fp16"
) -> int:
    """Disk need of one item: its levels, a half-precision picture, and one byte a target voxel."""
    image = torch.zeros(1, channels, *patch_size, device=device)
    features = cast(EncodingNetwork, network).encode(image)
    kind, picture = Storage.parse(storage), features.image
    levels = sum(kind.bytes((level.shape[1],), level[0, 0].numel()) for level in features.levels)
    return levels + (0 if picture is None else 2 * picture[0].numel()) + prod(patch_size)


def feature_arrays(features: Features) -> dict[str, Tensor]:
    """What is stored of Features: `level_0`..., and `image_skip` if the head asks for the picture."""
    arrays = {f"level_{index}": level for index, level in enumerate(features.levels)}
    return arrays if features.image is None else {**arrays, "image_skip": features.image}


def cached_features(batch: Mapping[str, Tensor], output_size: Sequence[int]) -> Features | None:
    """Features of a batch that came from the cache, None for a batch of images."""
    names = sorted((name for name in batch if name.startswith("level_")), key=lambda name: int(name[6:]))
    if not names:
        return None
    return Features(
        levels=tuple(batch[name] for name in names),
        output_size=tuple(output_size),
        image=batch.get("image_skip"),
    )


@torch.no_grad()
def build_cache(
    cache: EmbeddingCache,
    network: nn.Module,
    source: ViewSource,
    units: Sequence[Unit],
    options: BuildOptions,
    progress: Progress | None = None,
) -> None:
    """Encode the units; a view appears in the cache when all its items are there.

    Several processes may fill one cache, as folds do that are started side by side: views that another one
    has finished meanwhile are left out, and none is ever half there.

    Args:
        network: offers `encode`; is on the options' device and in evaluation mode.
    """
    _open_case.cache_clear()  # cases may have been preprocessed anew since
    source = replace(source, keys={unit.case: unit.key for unit in units})
    cache.prepare()
    for case in {unit.case for unit in units}:
        remove_partials(cache.folder / case)
    _prepare_components(cache, network, source, units, options)
    total, coming = sum(len(unit.items) for unit in units), deque[tuple[Unit, int]]()
    keys = _still_missing(cache, units, coming)
    stream = BatchStream(source, in_batches(keys, options.batch_size), options.workers, options.device)
    try:
        encoded = encode_items(stream, network, options)
        for first in encoded:
            unit, done = coming.popleft()
            _write_unit(cache, unit, chain([first], islice(encoded, len(unit.items) - 1)), options)
            if progress is not None:
                progress(done, total)
    finally:
        stream.close()


def _still_missing(
    cache: EmbeddingCache, units: Sequence[Unit], coming: deque[tuple[Unit, int]]
) -> Iterator[ItemKey]:
    """Items to encode, decided as they are asked for; `coming` gets their units and how far that is."""
    done = 0
    for unit in units:
        done += len(unit.items)
        if not cache.has(unit.case, unit.view, unit.key):
            coming.append((unit, done))
            yield from (ItemKey(unit.case, unit.view, item) for item in unit.items)


def _prepare_components(
    cache: EmbeddingCache,
    network: nn.Module,
    source: ViewSource,
    units: Sequence[Unit],
    options: BuildOptions,
) -> None:
    """Principal components from plain slices of the training cases, fitted once a cache.

    They need no label. A cache that folds share keeps those of the fold that came first.
    """
    storage = Storage.parse(cache.identity.storage)
    if storage.kind != "pca" or cache.bases_file.exists() or not units:
        return
    fitted = [unit for unit in units if unit.case in options.fit_cases] or list(units)
    keys = sorted({ItemKey(unit.case, 0, item) for unit in fitted for item in unit.items})
    chosen = keys[:: max(1, len(keys) // FITTED_SLICES)]
    stream = BatchStream(
        source, in_batches(iter(chosen), options.batch_size), options.workers, options.device
    )
    try:
        bases = fit_bases(encode_items(stream, network, options), storage.components, cache.identity.seed)
    finally:
        stream.close()
    save_bases(cache.bases_file, bases)


def in_batches(keys: Iterator[ItemKey], size: int) -> Iterator[list[ItemKey]]:
    """The keys, so many at a time."""
    while batch := list(islice(keys, size)):
        yield batch


def encode_items(
    stream: Iterable[Sample], network: nn.Module, options: BuildOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Arrays by name, item by item: levels in single precision, a picture in half, and the target."""
    encoder = cast(EncodingNetwork, network)
    for batch in stream:
        with options.autocast():
            features = encoder.encode(batch["image"].to(options.device))
        arrays = {
            name: array.to(torch.float32 if name.startswith(LEVEL) else torch.float16).cpu().numpy()
            for name, array in feature_arrays(features).items()
        }
        dtype = torch.uint8 if options.num_foreground < 254 else torch.int16
        arrays["target"] = batch["target"].to(dtype).numpy()
        for index in range(len(arrays["target"])):
            yield {name: array[index] for name, array in arrays.items()}


class _ArrayFile:
    """A .npy file written item by item: a full disk raises here; through a memory map it would be a crash."""

    def __init__(self, file: IO[bytes], count: int) -> None:
        self.file = file
        self.count = count

    def append(self, item: np.ndarray) -> None:
        if self.file.tell() == 0:
            shape = (self.count, *item.shape)
            header = {
                "descr": np.lib.format.dtype_to_descr(item.dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(self.file, header)
        self.file.write(np.ascontiguousarray(item).data)


def _write_unit(
    cache: EmbeddingCache,
    unit: Unit,
    encoded: Iterator[dict[str, np.ndarray]],
    options: BuildOptions,
) -> None:
    files: dict[str, _ArrayFile] = {}
    counts: list[tuple[int, ...]] = []
    annotated: list[int] = []
    errors: list[dict[str, float]] = []
    with ExitStack() as replacing, ExitStack() as opened:
        for number, (place, item) in enumerate(zip(unit.items, encoded)):
            is_measured = number % MEASURED_EVERY == 0
            arrays, error = cache.codec.encode(item, measured=is_measured)
            errors += [error] * is_measured
            for name, array in arrays.items():
                if name not in files:
                    path = cache.view_file(unit.case, unit.view, f"{name}.npy")
                    temporary = replacing.enter_context(atomic_path(path))
                    files[name] = _ArrayFile(opened.enter_context(open(temporary, "wb")), len(unit.items))
                files[name].append(array)
            foreground, ignored = _count(arrays["target"], options)
            counts.append(foreground)
            annotated.append(max(0, _pixels_inside(place, unit.plane, arrays["target"].shape[1:]) - ignored))
        cache.forget_stale(unit.case, unit.view, unit.key)
    entry = ViewEntry(
        key=unit.key,
        items=unit.items,
        counts=tuple(counts),
        annotated=tuple(annotated),
        errors={name: fmean(error[name] for error in errors) for name in errors[0]},
    )
    write_json(cache.view_file(unit.case, unit.view, "json"), entry)


def _count(target: np.ndarray, options: BuildOptions) -> tuple[tuple[int, ...], int]:
    """Voxels of each foreground output, and voxels that are ignored, in a target (T, h, w)."""
    if options.regions:
        maps = [target[i] != 0 for i in range(options.num_foreground)]
        ignored = target[-1] != 0
    else:
        maps = [target[0] == i + 1 for i in range(options.num_foreground)]
        ignored = target[0] == options.ignore_index
    return tuple(int(m.sum()) for m in maps), 0 if options.ignore_index is None else int(ignored.sum())


def _pixels_inside(place: Sequence[int], plane: Sequence[int], size: Sequence[int]) -> int:
    """Pixels of an item that lie on its case; the padding around it is annotated by nobody."""
    return prod(max(0, min(n, a + s) - max(0, a)) for a, s, n in zip(place[1:], size, plane))
