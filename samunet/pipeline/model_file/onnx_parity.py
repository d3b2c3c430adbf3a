"""Whether an ONNX file gives what the network gives, on tiles of real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samunet.data.cases import Case, find_cases
from samunet.data.readers import read_image
from samunet.errors import SamunetError
from samunet.inference.predictor import Predictor
from samunet.inference.sliding_window import predict_logits
from samunet.pipeline.model_file.onnx_network import INPUT

MOST_CASES = 4
NUM_TILES = 16
LEAST_AGREEMENT = 0.999
"""Share of voxels with the same class below which a file is not kept."""
_AT_ONCE = (1, 3)
"""Tiles in one call, in turn: the number must be free."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """ONNX against PyTorch, both on the CPU in float32.

    Attributes:
        tiles / cases / voxels: that were compared.
        max_error / mean_error: absolute difference of the logits; `largest_logit` of PyTorch's.
        agreement: share of voxels with the same class, or of (voxel, region) with the same answer.
        foreground: share of the voxels that PyTorch calls foreground.
        runtime: version of onnxruntime.
    """

    tiles: int
    cases: int
    voxels: int
    max_error: float
    mean_error: float
    largest_logit: float
    agreement: float
    foreground: float
    runtime: str

    def text(self) -> str:
        """The figures in one line."""
        return (
            f"largest error of a logit {self.max_error:.2g} (mean {self.mean_error:.2g}, largest logit "
            f"{self.largest_logit:.3g}), same class in {self.agreement:.4%} of {self.voxels:,} voxels "
            f"({self.foreground:.1%} foreground) of {self.tiles} tiles from {self.cases} cases"
        )


class _Collector:
    """Stands in for a network and keeps a random sample of the tiles that it is given."""

    def __init__(self, outputs: int, wanted: int, seed: int) -> None:
        self.outputs, self.wanted = outputs, wanted
        self.tiles: list[Tensor] = []
        self._seen = 0
        self._random = np.random.default_rng(seed)

    def __call__(self, tiles: Tensor) -> Tensor:
        for tile in tiles:
            self._seen += 1
            place = self._seen - 1 if self._seen <= self.wanted else int(self._random.integers(self._seen))
            if self._seen <= self.wanted:
                self.tiles.append(tile.clone())
            elif place < self.wanted:
                self.tiles[place] = tile.clone()
        return tiles.new_zeros(len(tiles), self.outputs, *tiles.shape[2:])


def real_tiles(predictor: Predictor, images: Path, count: int = NUM_TILES) -> tuple[list[Tensor], int]:
    """Tiles (C, *patch) as the sliding window cuts them from preprocessed images, and how many cases.

    Raises:
        SamunetError: no images of this model's kind in the folder.
    """
    plan = predictor.plan
    cases = find_cases(images, plan.file_ending, len(plan.channel_names))
    chosen = cases[:: max(1, len(cases) // MOST_CASES)][:MOST_CASES]
    tiles: list[Tensor] = []
    for number, case in enumerate(chosen):
        wanted = (count - len(tiles)) // (len(chosen) - number)
        tiles += _tiles_of(predictor, case, wanted, seed=number)
    return tiles, len(chosen)


def _tiles_of(predictor: Predictor, case: Case, wanted: int, seed: int) -> list[Tensor]:
    image, geometry = read_image(case.images)
    ready = predictor.preprocess(image, geometry, f"Case {case.name}")
    collector = _Collector(predictor.plan.labels.num_outputs, wanted, seed)
    window = replace(
        predictor.window, mirror_axes=(), shared_encoder=False, batch_size=1, device=torch.device("cpu")
    )
    predict_logits([collector], torch.from_numpy(ready.image), window)
    return collector.tiles


def compare(file: Path, network: nn.Module, tiles: Sequence[Tensor], *, cases: int, regions: bool) -> Parity:
    """Run both on the tiles.

    Args:
        file: the ONNX file.
        network: that it was made from.
        tiles: (C, *patch) each.
        cases: that they come from.
        regions: the outputs are regions (a logit above zero counts), not exclusive classes.

    Raises:
        SamunetError: onnxruntime cannot load or run the file.
    """
    runtime = import_onnxruntime()
    with _one_message(runtime):
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    errors, agreed, compared, foreground, voxels = [], 0, 0, 0, 0
    largest = total = 0.0
    first, turn = 0, 0
    while first < len(tiles):
        batch = torch.stack(list(tiles[first : first + _AT_ONCE[turn % len(_AT_ONCE)]]))
        with torch.inference_mode():
            expected = network(batch).numpy()
        with _one_message(runtime):
            found = session.run(None, {INPUT: batch.numpy()})[0]
        difference = np.abs(found - expected)
        errors.append(float(difference.max()))
        total += float(difference.sum(dtype=np.float64))
        largest = max(largest, float(np.abs(expected).max()))
        one, other = (x > 0 if regions else x.argmax(1) for x in (expected, found))
        agreed, compared = agreed + int((one == other).sum()), compared + one.size
        labelled = one.any(axis=1) if regions else one > 0
        foreground, voxels = foreground + int(labelled.sum()), voxels + labelled.size
        first, turn = first + len(batch), turn + 1
    outputs = compared // voxels if regions else expected.shape[1]
    return Parity(
        tiles=len(tiles),
        cases=cases,
        voxels=voxels,
        max_error=max(errors),
        mean_error=total / (voxels * outputs),
        largest_logit=largest,
        agreement=agreed / compared,
        foreground=foreground / voxels,
        runtime=str(runtime.__version__),
    )


@contextmanager
def _one_message(runtime: Any) -> Iterator[None]:
    """What onnxruntime cannot do is one message."""
    try:
        yield
    except Exception as error:  # its errors have no common base
        raise SamunetError(
            f"onnxruntime {runtime.__version__} cannot run the ONNX file of this network, so it was not "
            f"kept: {error}. Try another version of onnxruntime or torch (here {torch.__version__}), or "
            "share the model as a .zip (without --onnx)."
        ) from error


def import_onnxruntime() -> Any:
    """onnxruntime, of the extra `onnx`.

    Raises:
        SamunetError: it is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise SamunetError(
            f"--onnx needs the packages onnx and onnxruntime ({error}). Install them: pip install "
            "onnx onnxruntime"
        ) from error
    return onnxruntime
