"""What the dataset.json beside label maps says of them, where no dataset of images is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.data.dataset import parse_ending
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.records import read_json


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Meaning and files of label maps.

    Attributes:
        content: of the whole file.
        labels: what their values mean.
        file_ending: of the dataset's images.
    """

    content: dict[str, Any]
    labels: LabelSet
    file_ending: str

    @classmethod
    def read(cls, file: Path) -> Declared:
        """Read a dataset.json.

        Raises:
            SamunetError: no such file, or it does not say the labels or the ending.
        """
        content = read_json(file)
        if not isinstance(content, Mapping):
            raise SamunetError(f"{file} is not a dataset.json: it holds no object.")
        return cls(
            content=dict(content),
            labels=LabelSet.from_dataset_json(content, str(file)),
            file_ending=parse_ending(content, file),
        )


def labels_text(labels: LabelSet) -> str:
    """Names and values for a message."""
    values = [
        f"{name} {value[0] if len(value) == 1 else list(value)}" for name, value in labels.labels.items()
    ]
    if labels.ignore is not None:
        values.append(f"ignore {labels.ignore}")
    order = f" painted in the order {list(labels.region_order)}" if labels.region_order else ""
    return f"{', '.join(values)}{order}"
