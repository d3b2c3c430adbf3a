"""Compact embeddings: eight bits a value, over channels or over principal components of them.

A channel of a slice has a range of its own, because channels of a vision transformer differ in scale by
orders of magnitude. Principal components are those of the channels over the cells of sampled slices, from
the covariance as it is: what is lost is least in the sense of squared error, which is what a convolution
sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.planning.cache_storage import Storage
from samunet.whole_files import atomic_path

LEVEL = "level_"
RANGE = "_range"
"""End of the name of an array with least value and step of each stored map."""
STEPS = 255
CELLS = 256
"""Cells of a slice that the components are fitted to."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Principal components of a level's channels: mean (E,), components (N, E), orthonormal rows."""

    mean: np.ndarray
    components: np.ndarray


class Codec:
    """Turns levels into what is stored and back.

    Args:
        storage: the kind.
        bases: of every level, for `pca`.
    """

    def __init__(self, storage: Storage, bases: Mapping[str, Basis] | None = None) -> None:
        self.storage = storage
        self.bases = dict(bases or {})

    def encode(
        self, arrays: Mapping[str, np.ndarray], *, measured: bool = True
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What is stored of one item.

        Args:
            arrays: levels (E, h, w) float32 and others, which stay as they are.
            measured: whether the error is computed, which takes several times as long as the rest.

        Returns:
            Arrays to store; and of each level the relative error: the root of the squared error over the
            squared deviation from the channels' means. None from `fp16`, or where it is not measured.
        """
        stored: dict[str, np.ndarray] = {}
        errors: dict[str, float] = {}
        for name, array in arrays.items():
            if not name.startswith(LEVEL):
                stored[name] = array
            elif self.storage.kind == "fp16":
                stored[name] = array.astype(np.float16)
            else:
                stored[name], stored[name + RANGE] = _to_bytes(self._reduced(name, array))
                if measured:
                    errors[name] = _relative_error(array, self._decoded(name, stored).numpy())
        return stored, errors

    def decode(self, stored: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The arrays of one item as a head reads them: levels (E, h, w) float16."""
        found = {}
        for name, array in stored.items():
            if name.endswith(RANGE):
                continue
            is_compact = name.startswith(LEVEL) and self.storage.kind != "fp16"
            found[name] = (
                self._decoded(name, stored).half() if is_compact else torch.from_numpy(np.array(array))
            )
        return found

    def _reduced(self, name: str, array: np.ndarray) -> np.ndarray:
        if self.storage.kind != "pca":
            return array
        basis = self.bases[name]
        centred = array.reshape(len(array), -1) - basis.mean[:, None]
        return (basis.components @ centred).reshape(-1, *array.shape[1:])

    def _decoded(self, name: str, stored: Mapping[str, np.ndarray]) -> Tensor:
        low, step = torch.from_numpy(np.array(stored[name + RANGE]))[:, :, None, None].unbind(1)
        maps = torch.from_numpy(np.array(stored[name])).float() * step + low
        if self.storage.kind != "pca":
            return maps
        basis = self.bases[name]
        flat = torch.from_numpy(basis.components).T @ maps.flatten(1)
        return (flat + torch.from_numpy(basis.mean)[:, None]).unflatten(1, tuple(maps.shape[1:]))


def _to_bytes(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, h, w) -> codes uint8 of that shape, and (N, 2) float32: least value and step of each map."""
    low = maps.min((1, 2), keepdims=True)
    step = (maps.max((1, 2), keepdims=True) - low) / STEPS
    codes = np.rint((maps - low) / np.where(step > 0, step, 1)).clip(0, STEPS).astype(np.uint8)
    return codes, np.concatenate([low, step], 1)[:, :, 0].astype(np.float32)


def _relative_error(array: np.ndarray, found: np.ndarray) -> float:
    spread = np.square(array - array.mean((1, 2), keepdims=True), dtype=np.float64).sum()
    return float(np.sqrt(np.square(array - found, dtype=np.float64).sum() / max(spread, 1e-12)))


def fit_bases(items: Iterable[Mapping[str, np.ndarray]], components: int, seed: int) -> dict[str, Basis]:
    """Principal components of every level's channels.

    Args:
        items: arrays of sampled slices, levels (E, h, w).
        components: most components; a level with fewer channels keeps as many as it has.
        seed: of the cells that are looked at, CELLS of each slice.
    """
    rng = np.random.default_rng(seed)
    cells: dict[str, list[np.ndarray]] = {}
    for arrays in items:
        for name in sorted(key for key in arrays if key.startswith(LEVEL)):
            flat = arrays[name].reshape(len(arrays[name]), -1)
            chosen = rng.permutation(flat.shape[1])[:CELLS]
            cells.setdefault(name, []).append(flat[:, chosen].astype(np.float64))
    assert cells, "no slice to fit principal components to"
    bases = {}
    for name, parts in cells.items():
        values = np.concatenate(parts, 1)
        mean = values.mean(1)
        values -= mean[:, None]
        _, vectors = np.linalg.eigh(values @ values.T)
        kept = vectors[:, ::-1][:, :components].T
        bases[name] = Basis(
            mean=mean.astype(np.float32), components=np.ascontiguousarray(kept, dtype=np.float32)
        )
    return bases


def save_bases(file: Path, bases: Mapping[str, Basis]) -> None:
    """Write the components beside the cache's identity, unless another process was first: then its stay."""
    arrays = {f"{name}.mean": basis.mean for name, basis in bases.items()}
    arrays |= {f"{name}.components": basis.components for name, basis in bases.items()}
    with atomic_path(file, keep_existing=True) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def load_bases(file: Path) -> dict[str, Basis]:
    """Read what `save_bases` wrote.

    Raises:
        SamunetError: missing or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise SamunetError(f"{file} is missing or damaged ({error}). Delete {file.parent}.") from error
    names = sorted({key.partition(".")[0] for key in arrays})
    return {
        name: Basis(mean=arrays[f"{name}.mean"], components=arrays[f"{name}.components"]) for name in names
    }
