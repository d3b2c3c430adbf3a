"""What the integers of a label map mean: classes, regions, the ignore label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from samunet.errors import SamunetError
from samunet.listing import listed

OUTSIDE = -1
"""Class index of voxels outside the nonzero mask of the image (background for the loss)."""

UNKNOWN = -2
LARGEST_VALUE = 65535
"""Label files are written as unsigned integers of at most 16 bits."""

SHOWN = 10
"""Values in a message."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Names and integer values of `labels` in dataset.json.

    The file's integers ("values") need not be consecutive. Inside samunet a label map holds *class
    indices* 0..n-1 (position in `values`), `ignore_index` for ignored voxels and -1 outside the image.

    Attributes:
        labels: name -> values; one value for a class, several for a region. Excludes `ignore`.
        ignore: value of the ignore label, if any.
        region_order: for region data, the value painted for each region in declaration order.
        listed: names whose single value was written as a list; only the keys of summary.json depend on it.
    """

    labels: dict[str, tuple[int, ...]]
    ignore: int | None = None
    region_order: tuple[int, ...] | None = None
    listed: tuple[str, ...] = ()

    @classmethod
    def from_dataset_json(cls, data: Mapping[str, Any], where: str) -> LabelSet:
        """Read `labels` and `regions_class_order` of a dataset.json.

        Args:
            data: content of the file.
            where: the file's name for messages.

        Raises:
            SamunetError: missing or malformed entries, no background, an ignore label that is not the
                largest value, regions without a valid order; names the key.
        """
        declared = data.get("labels")
        if not isinstance(declared, Mapping) or not declared:
            raise SamunetError(
                f'{where}: key `labels` must be an object such as {{"background": 0, "organ": 1}}.'
            )
        values = {str(n): _parse_values(v, f"{where}: `labels.{n}`") for n, v in declared.items()}
        if values.get("background") != (0,):
            raise SamunetError(
                f'{where}: `labels` must declare "background": 0 (every unlabelled voxel is 0).'
            )
        ignore = values.pop("ignore", None)
        listed = tuple(
            n for n, v in values.items() if len(v) == 1 and isinstance(declared[n], list) and v != (0,)
        )
        labels = cls(labels=values, ignore=_check_ignore(ignore, values, where), listed=listed)
        if not labels.has_regions:
            _check_distinct(values, where)
            return labels
        order = _parse_order(data.get("regions_class_order"), labels, where)
        return cls(labels=values, ignore=labels.ignore, region_order=order, listed=listed)

    def __eq__(self, other: object) -> bool:
        """Whether an output of a network and a value of a file mean the same in both."""
        if not isinstance(other, LabelSet):
            return NotImplemented
        mine, theirs = (
            (s.labels, s.ignore, s.region_order, s.listed, s.regions_in_order) for s in (self, other)
        )
        return mine == theirs

    def means_the_same(self, other: LabelSet) -> bool:
        """Whether both are equal but for names whose one value was written as a list."""
        return replace(self, listed=()) == replace(other, listed=())

    @property
    def has_regions(self) -> bool:
        return any(len(values) > 1 for values in self.labels.values())

    @property
    def regions_in_order(self) -> tuple[str, ...]:
        """Names of the outputs of region data, whose order decides what is painted; empty for classes.

        Hashes take it beside the labels: `==` of dictionaries and JSON with sorted keys know no order.
        """
        return tuple(self.foreground) if self.has_regions else ()

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
        known = [*self.values, *([] if self.ignore is None else [self.ignore])]
        integers = label_map
        if label_map.dtype.kind == "f":
            if not np.all(label_map == np.rint(label_map)):  # also refuses NaN
                raise SamunetError(
                    f"{where} holds label values that are not integers. Write it as an integer file."
                )
            integers = label_map.astype(np.int64)
        lookup = np.full(max(known) + 1, UNKNOWN, np.int16)
        lookup[known] = np.arange(len(known))
        if integers.size and integers.min() >= 0 and integers.max() <= max(known):
            encoded = lookup[integers]
            if encoded.min() != UNKNOWN:
                return encoded
        foreign = sorted(set(np.unique(integers).tolist()) - set(known))
        raise SamunetError(
            f"{where} holds label values [{listed(foreign, SHOWN)}] that dataset.json does not declare "
            f"(declared: {known}). Correct the file or add the values to `labels`."
        )

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

    def summary_key(self, name: str) -> str:
        """Key of a class or region in summary.json, as nnU-Net writes it: `3`, or `(1, 2)` for a region."""
        values = self.labels[name]
        as_tuple = self.has_regions and (len(values) > 1 or name in self.listed)
        return str(values) if as_tuple else str(values[0])


def _parse_integer(value: Any, where: str) -> int:
    """One label value; whole floats and digits in a string count as integers, as nnU-Net takes them."""
    is_whole = isinstance(value, float) and value.is_integer()
    is_digits = isinstance(value, str) and value.strip().isdecimal()
    if (isinstance(value, int) and not isinstance(value, bool)) or is_whole or is_digits:
        number = int(value)
        if 0 <= number <= LARGEST_VALUE:
            return number
        raise SamunetError(f"{where} is {number}; label values must lie in 0..{LARGEST_VALUE}.")
    raise SamunetError(
        f"{where} must be an integer (or a list of integers for a region), found {value!r}. "
        'The layout is name -> value, for example "organ": 1.'
    )


def _parse_values(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise SamunetError(f"{where} is an empty list; a region needs at least one value.")
        return tuple(dict.fromkeys(_parse_integer(item, where) for item in value))
    return (_parse_integer(value, where),)


def _check_ignore(
    ignore: tuple[int, ...] | None, values: Mapping[str, tuple[int, ...]], where: str
) -> int | None:
    if ignore is None:
        return None
    largest = max(v for item in values.values() for v in item)
    if len(ignore) != 1 or ignore[0] <= largest:
        raise SamunetError(
            f"{where}: `labels.ignore` must be one integer above all others ({largest}), found {ignore}."
        )
    return ignore[0]


def _check_distinct(values: Mapping[str, tuple[int, ...]], where: str) -> None:
    owner: dict[int, str] = {}
    for name, (value,) in values.items():
        if value in owner:
            raise SamunetError(
                f"{where}: `labels.{owner[value]}` and `labels.{name}` both have the value {value}; "
                "every class needs its own."
            )
        owner[value] = name


def _parse_order(order: Any, labels: LabelSet, where: str) -> tuple[int, ...]:
    names = list(labels.foreground)
    if not isinstance(order, (list, tuple)):
        raise SamunetError(
            f"{where}: `labels` declares regions, so `regions_class_order` must list the value to paint for "
            f"each of {names}, later ones over earlier ones."
        )
    painted = tuple(_parse_integer(value, f"{where}: `regions_class_order`") for value in order)
    if len(painted) != len(names) or not set(painted) <= set(labels.values):
        raise SamunetError(
            f"{where}: `regions_class_order` is {list(painted)}; it needs {len(names)} declared values, "
            f"one for each of {names}."
        )
    return painted
