"""Eight-bit and principal-component embeddings: error, size, and what a broken cache says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samunet.errors import SamunetError
from samunet.planning.cache_storage import Storage
from samunet.preprocessing.compact import Codec, fit_bases, load_bases, save_bases


def item(seed: int = 0, channels: int = 12, rank: int = 3) -> dict[str, np.ndarray]:
    """A level of few underlying maps whose channels differ in scale by orders of magnitude."""
    mixing = np.random.default_rng(99).normal(size=(channels, rank))
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.linspace(-2, 2, channels)[:, None]
    flat = scale * (mixing @ rng.normal(size=(rank, 64)) + 3)
    level = flat.reshape(channels, 8, 8).astype(np.float32)
    return {"level_0": level, "target": rng.integers(0, 3, (1, 16, 16)).astype(np.uint8)}


def test_eight_bits_err_by_half_a_step_in_every_channel():
    arrays, codec = item(), Codec(Storage.parse("int8"))
    stored, errors = codec.encode(arrays)
    assert stored["level_0"].dtype == np.uint8
    found = codec.decode(stored)
    assert found.keys() == {"level_0", "target"}
    assert found["level_0"].dtype == torch.float16
    level = arrays["level_0"]
    half_step = np.ptp(level.reshape(12, -1), axis=1) / 255 / 2
    error = np.abs(found["level_0"].float().numpy() - level).reshape(12, -1).max(1)
    assert (error <= 1.01 * half_step + 1e-3 * np.abs(level).reshape(12, -1).max(1)).all()
    assert 0 < errors["level_0"] < 0.01
    assert np.array_equal(found["target"].numpy(), arrays["target"])


def test_the_error_is_relative_to_the_deviation_from_the_means():
    arrays = item()
    bases = fit_bases([arrays], 1, seed=0)
    _, errors = Codec(Storage.parse("pca:1"), bases).encode(arrays)
    flat = arrays["level_0"].reshape(12, -1).astype(np.float64)
    singular = np.linalg.svd(flat - flat.mean(1, keepdims=True), compute_uv=False)
    expected = np.sqrt(np.square(singular[1:]).sum() / np.square(singular).sum())
    assert errors["level_0"] == pytest.approx(expected, rel=0.02)  # eight bits add a little


def test_components_of_other_slices_suffice_for_maps_of_low_rank():
    bases = fit_bases([item(seed) for seed in range(1, 4)], 3, seed=0)
    rows = bases["level_0"].components
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-5)
    _, three = Codec(Storage.parse("pca:3"), bases).encode(item())
    assert three["level_0"] < 0.02
    assert len(fit_bases([item()], 50, seed=0)["level_0"].components) == 12


def test_a_constant_channel_stays():
    arrays = {"level_0": np.full((2, 4, 4), 7.0, np.float32)}
    codec = Codec(Storage.parse("int8"))
    stored, errors = codec.encode(arrays)
    assert (codec.decode(stored)["level_0"] == 7).all()
    assert errors["level_0"] == 0


def test_components_are_written_and_read(tmp_path):
    bases = fit_bases([item()], 2, seed=0)
    save_bases(tmp_path / "components.npz", bases)
    found = load_bases(tmp_path / "components.npz")
    assert np.array_equal(found["level_0"].components, bases["level_0"].components)
    save_bases(tmp_path / "components.npz", fit_bases([item()], 1, seed=1))  # of another process, later
    assert np.array_equal(load_bases(tmp_path / "components.npz")["level_0"].mean, bases["level_0"].mean)
    assert len(load_bases(tmp_path / "components.npz")["level_0"].components) == 2
    (tmp_path / "components.npz").write_bytes(b"PK damaged")
    with pytest.raises(SamunetError, match="Delete"):
        load_bases(tmp_path / "components.npz")


@pytest.mark.parametrize("text", ["fp32", "pca", "pca:0", "pca:x", "int8:3", "", "pca:-1"])
def test_an_unknown_kind_says_what_there_is(text):
    with pytest.raises(SamunetError, match="fp16, int8, or pca:N"):
        Storage.parse(text)


def test_bytes_of_a_slice():
    """ViT-B at 1024 pixels: 20 MiB in half precision, half of that in eight bits."""
    channels, cells = (256, 768, 768, 768), 64 * 64
    assert Storage.parse("fp16").bytes(channels, cells) == 20 * 2**20
    assert Storage.parse("int8").bytes(channels, cells) == 10 * 2**20 + 2560 * 8
    assert Storage.parse("pca:32").bytes(channels, cells) == 4 * 32 * (cells + 8)
    assert Storage.parse("pca:500").bytes((256, 768), cells) == (256 + 500) * (cells + 8)
