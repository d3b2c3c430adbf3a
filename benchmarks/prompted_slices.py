"""Does a small SAM segment what it has never seen? Points and boxes on slices of sets not trained on.

    python benchmarks/prompted_slices.py --data FOLDER [--weights FILE] [--keep FOLDER] [--picture FILE.png]

Of every held-out case (held_out.json) and class the slice that shows most of the class is taken. SAM is
asked once with a point, the pixel deepest inside the class, of whose three answers the one with the best
predicted IoU counts, and once with the class's bounding box; both prompts come from the reference, as in
SAM's own evaluation. The same with an encoder and decoder as they are initialised, and with the filled box
itself as the answer, which a network must beat to have seen anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_commands import hardware
from scipy import ndimage
from subsets import held_out_cases
from torch.nn import functional

from samunet.data.dataset import RawDataset
from samunet.networks.picture import covered_pixels
from samunet.networks.promptable import ONE, THREE, PromptableSam, Prompts, normalised
from samunet.networks.promptable_start import start_from_nothing, start_from_weights
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import shipped_weights, weights_sha256
from samunet.networks.sam.weights import read_weights
from samunet.preprocessing.slices import case_slices

ENCODER = "vit_tiny"
UNSEEN = ("Dataset001_Hippocampus", "Dataset002_ACDC", "Dataset003_MSCMR_LGE", "Dataset008_Prostate")
POINT, BOX = "point", "box"
FOREGROUND, CORNERS = (1, -1), (2, 3)
"""Labels of prompt tokens: a point and a padding, two corners."""


@dataclass(frozen=True)
class Question:
    """A class on the slice of a case that shows most of it; picture uint8 (3, H, W), mask (H, W)."""

    dataset: str
    case: str
    label: str
    picture: np.ndarray
    mask: np.ndarray


def questions(data: Path, dataset: str) -> Iterator[Question]:
    """All questions of a dataset's held-out cases."""
    raw = RawDataset.load(data / dataset)
    for name in held_out_cases(dataset):
        images, labels = case_slices(raw.read(raw.case(name)))
        assert labels is not None
        for label, values in raw.labels.foreground.items():
            masks = np.isin(labels, values)
            largest = int(masks.sum((1, 2)).argmax())
            if masks[largest].any():
                yield Question(dataset, name, label, images[largest], masks[largest])


def prompts_of(mask: np.ndarray, scale: float) -> dict[str, Prompts]:
    """The two prompts of a mask, in pixels of the encoder's square."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    rows, columns = np.nonzero(mask)
    places = {
        POINT: ([[column, row], [0, 0]], FOREGROUND),
        BOX: ([[columns.min(), rows.min()], [columns.max(), rows.max()]], CORNERS),
    }
    return {
        kind: Prompts(
            points_xy=(torch.tensor(points, dtype=torch.float32)[None, None] + 0.5) * scale - 0.5,
            labels=torch.tensor(labels)[None, None],
        )
        for kind, (points, labels) in places.items()
    }


def seen_pictures(slices: torch.Tensor, side: int) -> torch.Tensor:
    """Slices uint8 (N, 3, H, W) as an encoder sees them (N, 3, side, side), padded right and below."""
    shape = slices.shape[-2:]
    height, width = covered_pixels(shape, side)
    shrinks = max(shape) > side
    shown = functional.interpolate(slices.float(), (height, width), mode="bilinear", antialias=shrinks)
    return functional.pad(normalised(shown.round().to(torch.uint8)), (0, side - width, 0, side - height))


@torch.inference_mode()
def answers(sam: PromptableSam, question: Question) -> dict[str, np.ndarray]:
    """Prompt -> mask (H, W)."""
    side, shape = sam.variant.native_size, question.mask.shape
    height, width = covered_pixels(shape, side)
    picture = seen_pictures(torch.from_numpy(question.picture)[None], side)
    embedding = sam.embed(picture)
    found = {}
    for kind, prompts in prompts_of(question.mask, side / max(shape)).items():
        logits, iou = sam(embedding, prompts, THREE if kind == POINT else ONE)
        chosen = logits[0, :, int(iou[0, 0].argmax())][None]
        whole = functional.interpolate(chosen, (side, side), mode="bilinear")[..., :height, :width]
        found[kind] = (functional.interpolate(whole, shape, mode="bilinear")[0, 0] > 0).numpy()
    return found


def filled_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    filled = np.zeros_like(mask)
    filled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return filled


def iou_of(answer: np.ndarray, mask: np.ndarray) -> float:
    return float((answer & mask).sum() / (answer | mask).sum())


def networks(weights: Path) -> dict[str, PromptableSam]:
    """The pretrained SAM, and one as it is initialised."""
    variant = get_variant(ENCODER)
    torch.manual_seed(0)
    pretrained, random = PromptableSam(variant).eval(), PromptableSam(variant).eval()
    start_from_weights(pretrained, read_weights(weights, ENCODER))
    start_from_nothing(random)
    return {"pretrained": pretrained, "random": random}


def draw(rows: Sequence[tuple[Question, dict[str, np.ndarray]]], file: Path) -> None:
    """A line for each question: picture, reference, the two answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 2.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for line, (question, found) in zip(figure.subplots(len(rows), 4, squeeze=False), rows):
        panels = {question.dataset[7:]: None, question.label: question.mask, **found}
        for axes, (title, mask) in zip(line, panels.items()):
            axes.imshow(question.picture[0], cmap="gray")
            if mask is not None:
                axes.imshow(np.ma.masked_where(~mask, mask), alpha=0.45, cmap="autumn")
            score = f" {iou_of(mask, question.mask):.2f}" if title in found else ""
            axes.set_title(title + score, fontsize=8)
            axes.set_axis_off()
    figure.savefig(file, dpi=70)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Points and boxes on sets that were not trained on.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--weights", type=Path, help="of vit_tiny; default: those shipped with samunet")
    parser.add_argument("--datasets", nargs="+", default=list(UNSEEN))
    parser.add_argument("--keep", type=Path, help="write DATE_prompted_slices.json into this folder")
    parser.add_argument("--picture", type=Path, help="draw a few questions and answers into this PNG file")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    weights = arguments.weights or shipped_weights(ENCODER)
    if weights is None:
        raise SystemExit(f"Give --weights FILE: this samunet ships no weights of {ENCODER}.")
    sams, table, shown = networks(weights), {}, []
    for dataset in arguments.datasets:
        scores: dict[str, list[float]] = {}
        for number, question in enumerate(questions(arguments.data, dataset)):
            scores.setdefault("filled box", []).append(iou_of(filled_box(question.mask), question.mask))
            for name, sam in sams.items():
                found = answers(sam, question)
                for kind, answer in found.items():
                    scores.setdefault(f"{name} {kind}", []).append(iou_of(answer, question.mask))
                if name == "pretrained" and number % 17 == 3:
                    shown.append((question, found))
        means = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
        table[dataset] = {"questions": len(scores["filled box"]), **means}
        print(dataset, table[dataset], flush=True)
    if arguments.picture:
        draw(shown[:16], arguments.picture)
    if arguments.keep:
        about: dict[str, Any] = {"hardware": hardware(), "weights_sha256": weights_sha256(weights)}
        text = json.dumps({**about, "iou": table}, indent=1) + "\n"
        arguments.keep.mkdir(parents=True, exist_ok=True)
        (arguments.keep / f"{hardware()['date']}_prompted_slices.json").write_text(text)


if __name__ == "__main__":
    main()
