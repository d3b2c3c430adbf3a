from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from samunet.inference.sliding_window import (
    WindowSettings,
    gaussian_weights,
    predict_logits,
    tile_starts,
)


@pytest.mark.parametrize(
    ("size", "patch", "step", "starts"),
    [
        (110, 64, 0.5, [0, 23, 46]),
        (65, 64, 0.5, [0, 1]),
        (281, 80, 0.5, [0, 34, 67, 100, 134, 168, 201]),
        (512, 160, 0.5, [0, 70, 141, 211, 282, 352]),
        (512, 128, 0.5, list(range(0, 385, 64))),
        (100, 64, 1.0, [0, 36]),
        (64, 64, 0.5, [0]),
    ],
)
def test_tile_starts_golden(size: int, patch: int, step: float, starts: list[int]) -> None:
    assert tile_starts([size], [patch], step) == [starts]


def test_gaussian_golden() -> None:
    weights = gaussian_weights((8, 8))
    golden = torch.tensor([0.003355, 0.11109, 1.35335, 6.06531, 10, 6.06531, 1.35335, 0.11109])
    torch.testing.assert_close(weights[4], golden, atol=1e-5, rtol=1e-3)
    assert float(gaussian_weights((5, 12, 7)).min()) > 0
    assert int(gaussian_weights((5, 12, 7)).argmax()) == 2 * 84 + 6 * 7 + 3


def image(shape: tuple[int, ...], channels: int = 2) -> Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(0))


def identity(batch: Tensor) -> Tensor:
    return batch


CASES = [
    ((11, 30, 26), (6, 16, 12)),
    ((4, 30, 26), (6, 40, 12)),
    ((6, 16, 12), (6, 16, 12)),
    ((7, 30, 26), (16, 12)),
    ((1, 9, 50), (12, 20)),
    ((5, 8, 9), (8, 9)),
]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_identity_network_returns_the_image(
    shape: tuple[int, ...], patch: tuple[int, ...], mirror: bool, batch_size: int
) -> None:
    settings = WindowSettings(
        patch_size=patch, batch_size=batch_size, mirror_axes=tuple(range(len(patch))) if mirror else ()
    )
    source = image(shape)
    kept = source.clone()
    logits = predict_logits([identity], source, settings)
    torch.testing.assert_close(logits, source, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(source, kept, atol=0, rtol=0)


@pytest.mark.parametrize("patch", [(6, 16, 12), (16, 12)])
def test_blending_equals_the_weighted_mean_over_all_tiles(patch: tuple[int, ...]) -> None:
    """A network that knows where in its tile a voxel lies, so that every weight matters."""
    source = image((11, 30, 26), channels=1)
    ramp = torch.linspace(0, 1, patch[-1]) + torch.linspace(0, 2, patch[-2])[:, None]

    def network(batch: Tensor) -> Tensor:
        return torch.cat([batch + ramp, batch * ramp], dim=1)

    settings = WindowSettings(patch_size=patch, batch_size=4)
    sums, weights = torch.zeros(2, 11, 30, 26), torch.zeros(11, 30, 26)
    box = patch if len(patch) == 3 else (1, *patch)
    depths, rows, columns = tile_starts(source.shape[1:], box)
    weight = gaussian_weights(box)
    for z in depths if len(patch) == 3 else range(11):
        for y in rows:
            for x in columns:
                place = (slice(z, z + box[0]), slice(y, y + box[1]), slice(x, x + box[2]))
                tile = network(source[None, :, place[0], place[1], place[2]])[0]
                sums[:, place[0], place[1], place[2]] += tile * weight
                weights[place] += weight
    expected = sums / weights
    torch.testing.assert_close(predict_logits([network], source, settings), expected, atol=1e-5, rtol=1e-4)


def test_networks_and_flips_are_averaged_as_logits() -> None:
    ramp = torch.linspace(-1, 1, 12)  # changes sign when flipped along x
    networks = [lambda b: b + ramp, lambda b: 3 * b]
    settings = WindowSettings(patch_size=(16, 12), mirror_axes=(1,))
    source = image((3, 16, 12), channels=1)
    torch.testing.assert_close(predict_logits(networks, source, settings), 2 * source, atol=1e-5, rtol=1e-5)


@dataclass
class EncodeDecode:
    factor: float
    encoded: list[int] = field(default_factory=list)

    def encode(self, batch: Tensor) -> Tensor:
        self.encoded.append(len(batch))
        return batch + 1

    def decode(self, features: Tensor) -> Tensor:
        return self.factor * (features - 1)

    def __call__(self, batch: Tensor) -> Tensor:
        return self.decode(self.encode(batch))


@pytest.mark.parametrize("shared", [False, True])
def test_folds_with_one_frozen_encoder_encode_once(shared: bool) -> None:
    networks = [EncodeDecode(1.0), EncodeDecode(2.0), EncodeDecode(6.0)]
    settings = WindowSettings(patch_size=(8, 8), batch_size=4, shared_encoder=shared, mirror_axes=(0, 1))
    source = image((6, 8, 8))
    logits = predict_logits(networks, source, settings)
    torch.testing.assert_close(logits, 3 * source, atol=1e-5, rtol=1e-5)
    assert sum(networks[0].encoded) == 4 * 6
    assert sum(networks[2].encoded) == (0 if shared else 4 * 6)


def test_slice_context_repeats_the_last_slice() -> None:
    source = image((4, 8, 8))
    seen: list[Tensor] = []

    def network(batch: Tensor) -> Tensor:
        seen.append(batch)
        return batch[:, [0, 4]]  # first neighbour of channel 0, second neighbour (itself) of channel 1

    settings = WindowSettings(patch_size=(8, 8), batch_size=3, slice_context=1)
    logits = predict_logits([network], source, settings)
    assert seen[0].shape == (3, 6, 8, 8)
    torch.testing.assert_close(logits[0], source[0, [0, 0, 1, 2]])
    torch.testing.assert_close(logits[1], source[1])


def test_slice_context_agrees_with_what_training_reads() -> None:
    from samunet.preprocessing.boxes import read_slice

    source = image((4, 8, 8))
    seen: list[Tensor] = []

    def network(batch: Tensor) -> Tensor:
        seen.extend(batch)
        return batch[:, :1]

    predict_logits([network], source, WindowSettings(patch_size=(8, 8), slice_context=2))
    for z, tile in enumerate(seen):
        torch.testing.assert_close(tile, torch.from_numpy(read_slice(source.numpy(), (z, 0, 0), (8, 8), 2)))


def test_storage_type_and_progress() -> None:
    calls: list[tuple[int, int]] = []
    settings = WindowSettings(patch_size=(6, 16, 12), batch_size=5)
    source = image((11, 30, 26))
    logits = predict_logits(
        [identity],
        source,
        settings,
        storage=lambda shape: torch.empty(shape, dtype=torch.float16),
        progress=lambda n, all_: calls.append((n, all_)),
    )
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits.float(), source, atol=2e-3, rtol=2e-3)
    assert calls[-1] == (3 * 3 * 4, 3 * 3 * 4)
    assert calls[0][0] == 5
