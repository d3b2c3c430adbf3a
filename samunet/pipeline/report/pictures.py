"""The report's pictures: scores and curves as SVG, cases in three planes as PNG; all as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samunet.data.geometry import Geometry
from samunet.data.readers import read_image, read_label
from samunet.evaluation.bootstrap import Interval
from samunet.pipeline.overlays import colour_of, display_picture
from samunet.pipeline.report.collect import Model, ScoredCase
from samunet.trainers.history import EpochRecord

PLANES = ("sagittal", "coronal", "axial")
"""What is cut across x (left to right), y (front to back) and z of the patient."""
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
PICTURE_WIDTH, PICTURE_HEIGHT = 6.9, 4.5
"""Of a case's planes together, inches, at most."""
WIDEST = 1.6


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _data_uri(figure: Any, kind: str, dpi: int = 110) -> str:
    stream = io.BytesIO()
    if kind == "svg":
        figure.savefig(stream, format="svg", metadata={"Date": None})
    else:
        figure.savefig(stream, format="png", dpi=dpi)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def draw_scores(models: Sequence[Model], intervals: Mapping[str, Interval], rng: np.random.Generator) -> str:
    """Every case's mean Dice as a dot, a row a model, with the mean and its interval."""
    shown = [model for model in models if model.cases]
    figure = _figure(7.2, 0.9 + 0.55 * len(shown))
    axes = figure.subplots()
    for row, model in enumerate(reversed(shown)):
        values = np.array([case.mean() for case in model.cases])
        values = values[~np.isnan(values)]
        colour = LINE_COLOURS[(len(shown) - 1 - row) % len(LINE_COLOURS)]
        places = row + rng.uniform(-0.18, 0.18, len(values))
        axes.plot(values, places, "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        if model.title in intervals:
            bounds = intervals[model.title].low, intervals[model.title].high
            axes.plot(bounds, (row, row), color="#222222", linewidth=2.5)
        axes.plot(model.mean_dice, row, "D", color="#222222", markersize=6)
    axes.set_yticks(range(len(shown)), [model.title for model in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("Dice of a case, mean over its classes; diamond: mean, bar: 95 % interval")
    _quiet(axes)
    return _data_uri(figure, "svg")


def _quiet(axes: Any) -> None:
    """A light grid and no box."""
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_curves(model: Model) -> str:
    """Losses above, patch Dice below; one colour a fold."""
    figure = _figure(4.2, 4.6)
    losses, dice = figure.subplots(2, 1, sharex=True)
    for number, fold in enumerate(model.folds):
        if not fold.history:
            continue
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        epochs = [record.epoch + 1 for record in fold.history]
        losses.plot(epochs, [r.train["loss"] for r in fold.history], color=colour, label=f"fold {fold.fold}")
        losses.plot(epochs, [r.val_loss for r in fold.history], ":", color=colour)
        dice.plot(epochs, _smooth_dice(fold.history), color=colour)
    losses.set_ylabel("loss (dotted: validation)")
    if losses.lines:
        losses.legend(fontsize=8, ncols=2)
    dice.set_ylabel("patch Dice, moving average")
    dice.set_ylim(0, 1)
    dice.set_xlabel("epoch")
    dice.xaxis.get_major_locator().set_params(integer=True)
    _quiet(losses)
    _quiet(dice)
    return _data_uri(figure, "svg")


def _smooth_dice(history: Sequence[EpochRecord]) -> list[float]:
    return [math.nan if r.ema_patch_dice is None else r.ema_patch_dice for r in history]


def draw_planes(case: ScoredCase, images: Sequence[Any], names: Mapping[int, str]) -> str:
    """The case in three planes (one for a 2D image): prediction filled, reference outlined.

    Each plane is cut where the reference has most foreground.

    Args:
        case: with files that exist.
        images: image files of its channels.
        names: label value -> class, in the order of their colours.
    """
    image, geometry = read_image(tuple(images))
    reference, _ = read_label(case.reference_file)
    prediction, _ = read_label(case.prediction_file)
    planes = range(1) if image.shape[1] == 1 else range(3)
    views = [_view(axis, image, reference, prediction, geometry.spacing_mm) for axis in planes]
    ratios = [view["picture"].shape[1] / (view["picture"].shape[0] * view["aspect"]) for view in views]
    widths, height = panel_sizes(ratios)
    figure = _figure(sum(widths) + 0.3, height + 0.35)
    grid = figure.subplots(1, len(views), width_ratios=widths, squeeze=False)[0]
    for axes, view, axis in zip(grid, views, planes):
        picture = view["picture"]
        axes.imshow(picture, cmap=None if picture.ndim == 3 else "gray", aspect=view["aspect"])
        _paint(axes, view, names)
        plane = plane_name(geometry, axis)
        axes.set_title(f"{plane} {view['position'] + 1}" if len(views) > 1 else "", fontsize=8)
        axes.set_axis_off()
    return _data_uri(figure, "png")


def plane_name(geometry: Geometry, axis: int) -> str:
    """What a plane across an axis (0, 1, 2: z, y, x) of a file is called, by the patient's axis nearest."""
    runs = np.abs(np.array(geometry.direction).reshape(3, 3)[:, 2 - axis])
    return PLANES[int(np.argmax(runs))]


def panel_sizes(ratios: Sequence[float]) -> tuple[list[float], float]:
    """Widths of panels side by side and the height of the highest, in inches.

    Panels are of one height, unless one would be more than `WIDEST` times as wide as the narrowest: in a
    volume of few thick slices two planes are flat strips, beside which the third would be a thumbnail.

    Args:
        ratios: width over height of each picture.
    """
    shares = [min(ratio, WIDEST * min(ratios)) for ratio in ratios]
    height = max(share / ratio for share, ratio in zip(shares, ratios))
    scale = min(PICTURE_WIDTH / sum(shares), PICTURE_HEIGHT / height)
    return [scale * share for share in shares], scale * height


def _view(
    axis: int, image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> dict[str, Any]:
    """One cut through a case; the head is up in coronal and sagittal planes of the usual orientation."""
    others = tuple(a for a in range(3) if a != axis)
    counts = np.count_nonzero(reference > 0, axis=others)
    if not counts.any():
        counts = np.count_nonzero(prediction > 0, axis=others)
    position = int(counts.argmax()) if counts.any() else reference.shape[axis] // 2
    flip = slice(None, None, -1) if axis else slice(None)
    return {
        "position": position,
        "aspect": float(spacing[others[0]] / spacing[others[1]]),
        "picture": display_picture(np.take(image, position, axis + 1)[:, flip]),
        "reference": np.take(reference, position, axis)[flip],
        "prediction": np.take(prediction, position, axis)[flip],
    }


def _paint(axes: Any, view: Mapping[str, Any], names: Mapping[int, str]) -> None:
    from matplotlib.colors import to_rgba

    layer = np.zeros((*view["prediction"].shape, 4))
    for number, value in enumerate(names):
        layer[view["prediction"] == value] = to_rgba(colour_of(number), alpha=0.45)
    axes.imshow(layer, aspect=view["aspect"], interpolation="nearest")
    for number, value in enumerate(names):
        mask = view["reference"] == value
        if mask.any() and min(mask.shape) > 1:
            axes.contour(mask, levels=[0.5], colors=[colour_of(number)], linewidths=1.3)
