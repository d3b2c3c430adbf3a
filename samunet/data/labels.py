"""What the integers of a label map mean: classes, regions, the ignore label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from samunet.errors import SamunetError

OUTSIDE = -1
"""Class index of voxels outside the nonzero mask of the image (background for the loss)."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Names and integer values of `labels` in dataset.json.

    The file's integers ("values") need not be consecutive. Inside samunet a label map holds *class
    indices* 0..n-1 (position in `values`), `ignore_index` for ignored voxels and -1 outside the image.

    Attributes:
        labels: name -> values; one value for a class, several for a region. Excludes `ignore`.
        ignore: value of the ignore label, if any.
        region_order: for region data, the value painted for each region in declaration order.
    """

    labels: dict[str, tuple[int, ...]]
    ignore: int | None = None
    region_order: tuple[int, ...] | None = None

    @property
    def has_regions(self) -> bool:
        return any(len(values) > 1 for values in self.labels.values())

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All integers of the files without the ignore label, ascending; index 0 is background."""
        return tuple(sorted({0, *(v for values in self.labels.values() for v in values)}))

    @property
    def ignore_index(self) -> int | None:
        return None if self.ignore is None else len(self.values)

    @cached_property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Name -> class indices of every foreground class or region, in declaration order."""
        index = {value: i for i, value in enumerate(self.values)}
        return {
            name: tuple(index[v] for v in values) for name, values in self.labels.items() if values != (0,)
        }

    @property
    def num_outputs(self) -> int:
        """Channels of a network: classes with background (softmax), or regions (sigmoid)."""
        return len(self.foreground) if self.has_regions else len(self.values)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Name per class index (softmax data), or per region output."""
        if self.has_regions:
            return tuple(self.foreground)
        by_value = {values[0]: name for name, values in self.labels.items()}
        return tuple(by_value.get(value, "background") for value in self.values)

    def encode(self, label_map: np.ndarray, where: str = "label map") -> np.ndarray:
        """File integers -> class indices (int16).

        Raises:
            SamunetError: the map holds a value that dataset.json does not declare.
        """
        rounded = np.rint(label_map).astype(np.int64) if label_map.dtype.kind == "f" else label_map
        known = [*self.values, *([] if self.ignore is None else [self.ignore])]
        present = np.unique(rounded)
        foreign = sorted(set(present.tolist()) - set(known))
        if foreign or (label_map.dtype.kind == "f" and np.any(rounded != label_map)):
            shown = foreign or "fractions"
            raise SamunetError(
                f"{where} holds label values {shown} that dataset.json does not declare (declared: {known}). "
                "Correct the file or add the values to `labels`."
            )
        encoded = np.zeros(rounded.shape, np.int16)
        for index, value in enumerate(known):
            if index:
                encoded[rounded == value] = index
        return encoded

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Class indices of a segmentation -> file integers in the smallest unsigned type that fits."""
        lookup = np.asarray(self.values, np.int64)
        dtype = np.uint8 if lookup.max() < 256 else np.uint16
        return lookup.astype(dtype)[indices]

    @cached_property
    def paint_values(self) -> tuple[int, ...]:
        """File integer written for each region output, in painting order."""
        assert self.region_order is not None
        return self.region_order
