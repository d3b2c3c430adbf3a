"""Pictures of validation cases: image, reference and prediction side by side, on the fullest slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.geometry import slice_axis, slices_first
from samunet.data.labels import LabelSet
from samunet.whole_files import atomic_path

COLOURS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffd92f", "#a65628", "#f781bf")


@dataclass(frozen=True, kw_only=True)
class OverlayCase:
    """What one picture shows.

    Attributes:
        name: the case.
        image: (C, Z, Y, X) as stored in the file.
        reference: (Z, Y, X) label values, or None where there is no reference.
        prediction: (Z, Y, X) label values.
        spacing_mm: z, y, x; gives the picture its aspect.
        note: shown beside the name, such as the Dice.
    """

    name: str
    image: np.ndarray
    reference: np.ndarray | None
    prediction: np.ndarray
    spacing_mm: Sequence[float]
    note: str = ""

    def by_slice(self) -> OverlayCase:
        """With the axis across the slices first, along which a file need not have them."""
        axis = slice_axis(self.spacing_mm, self.prediction.shape)
        return replace(
            self,
            image=np.moveaxis(self.image, axis + 1, 1),
            reference=None if self.reference is None else np.moveaxis(self.reference, axis, 0),
            prediction=np.moveaxis(self.prediction, axis, 0),
            spacing_mm=tuple(self.spacing_mm[a] for a in slices_first(axis)),
        )


def draw_overlay(case: OverlayCase, names: dict[int, str], file: Path) -> None:
    """Write one PNG of the fullest slice; `names` maps label values to the names of the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    case = case.by_slice()
    position = shown_slice(case)
    maps = [("reference", case.reference), ("prediction", case.prediction)]
    panels = [("image", None), *((title, m[position]) for title, m in maps if m is not None)]
    picture = display_picture(case.image[:, position])
    aspect = float(case.spacing_mm[1] / case.spacing_mm[2])
    height = 3.4 * min(max(aspect * picture.shape[0] / picture.shape[1], 0.4), 2.5)
    figure = Figure(figsize=(3.4 * len(panels), height + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, labels) in zip(figure.subplots(1, len(panels)), panels):
        axes.imshow(picture, cmap=None if picture.ndim == 3 else "gray", aspect=aspect)
        if labels is not None:
            axes.imshow(colour_layer(labels, names), aspect=aspect, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    where = f", slice {position + 1} of {case.prediction.shape[0]}" if case.prediction.shape[0] > 1 else ""
    figure.suptitle(f"{case.name}{where}  {case.note}", fontsize=10)
    _add_legend(figure, case, names)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _add_legend(figure: Any, case: OverlayCase, names: dict[int, str]) -> None:
    from matplotlib.patches import Patch

    maps = [m for m in (case.reference, case.prediction) if m is not None]
    seen = {value for m in maps for value in np.unique(m).tolist()}
    shown = [(value, name) for value, name in names.items() if value in seen]
    if shown:
        order = {value: i for i, value in enumerate(names)}
        handles = [Patch(color=colour_of(order[value]), label=name) for value, name in shown]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=8)


def shown_slice(case: OverlayCase) -> int:
    """Index along the first axis of the slice with most foreground in the reference, else in the prediction,
    else the middle."""
    for labels in (case.reference, case.prediction):
        if labels is not None and np.any(labels > 0):
            return int(np.count_nonzero(labels > 0, axis=(1, 2)).argmax())
    return case.prediction.shape[0] // 2


def legend_names(labels: LabelSet) -> dict[int, str]:
    """Label value in the files -> name; for regions the value that each one paints."""
    if labels.has_regions:
        return dict(zip(labels.paint_values, labels.foreground))
    return {values[0]: name for name, values in labels.labels.items() if values != (0,)}


def display_picture(channels: np.ndarray) -> np.ndarray:
    """(C, Y, X) -> (Y, X), or (Y, X, 3) of three channels; percentiles 0.5 and 99.5 become 0 and 1."""
    picture = np.moveaxis(channels, 0, -1) if channels.shape[0] == 3 else channels[0]
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) / max(high - low, 1e-8), 0, 1)


def colour_layer(labels: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """(Y, X) label values -> (Y, X, 4) colours, half transparent, clear where there is background."""
    from matplotlib.colors import to_rgba

    layer = np.zeros((*labels.shape, 4))
    for position, value in enumerate(names):
        layer[labels == value] = to_rgba(colour_of(position), alpha=0.5)
    return layer


def colour_of(position: int) -> str:
    """Colour of the n-th class; they repeat after eight."""
    return COLOURS[position % len(COLOURS)]
