"""ONNX files give what the networks give, and the JSON beside them suffices to predict without samunet."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from shared_models import write_images, write_model
from tiny_runs import CHANNELS, REGIONS

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.inference.predictor import Predictor
from samunet.networks.picture import SamPicture, SliceSettings
from samunet.pipeline.model_file.onnx_export import OnnxOutcome, OnnxRequest, export_onnx
from samunet.pipeline.model_file.onnx_network import resize_matrix, write_onnx
from samunet.pipeline.model_file.onnx_parity import compare
from samunet.records import read_json

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

CLOSE = 1e-4
"""Both run in float32 in another order of sums; logits are about 4."""


def export(model: Path, root: Path, **changes: Any) -> OnnxOutcome:
    images = root / "images"
    if not images.exists():
        write_images(images)
    return export_onnx(
        OnnxRequest(model_folder=model, output=root / "net.onnx", images=images, num_tiles=6, **changes)
    )


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("2d_unet", {}),
        ("2d_linear", {"settings": {"slice_context": 1}}),
        ("2d_cnn", {"patch_size": (80, 72)}),  # larger than the encoder's square: shrunk with anti-aliasing
        ("3d_unet", {}),
        ("2d_autosam", {}),
        ("2d_desam", {"settings": {"grid_side": 3}}),
        ("2d_desam", {"settings": {"mode": "whole_box"}}),
        ("2d_cnn", {"settings": {"encoder": "full"}}),
        ("2d_cnn", {"settings": {"channel_map": "stem", "cache": False}}),
    ],
)
def test_parity(tmp_path: Path, method: str, changes: dict[str, Any]) -> None:
    model = write_model(tmp_path / "results", method, (0,), **changes)
    (file,) = export(model, tmp_path).files
    assert file.parity.max_error < CLOSE
    assert file.parity.agreement == 1
    assert file.parity.tiles == 6
    assert file.parity.largest_logit > 10 * CLOSE


def test_regions_and_several_folds(tmp_path: Path) -> None:
    model = write_model(tmp_path / "results", labels=REGIONS)
    outcome = export(model, tmp_path)
    assert [file.file for file in outcome.files] == ["net_fold_0.onnx", "net_fold_1.onnx"]
    assert all(file.parity.agreement == 1 for file in outcome.files)
    assert read_json(outcome.sidecar)["outputs_are"] == "regions"
    with pytest.raises(SamunetError, match=r"net_fold_0\.onnx.*--overwrite"):
        export(model, tmp_path)


@pytest.mark.parametrize("labels", [None, REGIONS])
def test_the_json_suffices_to_predict(tmp_path: Path, labels: LabelSet | None) -> None:
    """A predictor of its own, written from the JSON alone, paints the same label map."""
    changes = {} if labels is None else {"labels": labels}
    model = write_model(tmp_path / "results", **changes)
    outcome = export(model, tmp_path)
    paths = [tmp_path / f"images/a_{number:04d}.nii.gz" for number in range(CHANNELS)]
    image = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths])
    predictor = Predictor.load(model, device="cpu", mirroring=False)
    expected = predictor.predict(image, spacing_mm=(3.0, 1.0, 1.0)).segmentation
    found = predict_by_the_json(outcome.sidecar, image)
    assert len(np.unique(expected)) > 1
    # Where two classes tie within rounding, either may win.
    assert (found == expected).mean() > 0.999


def predict_by_the_json(sidecar: Path, image: np.ndarray) -> np.ndarray:
    """For slices, zscore and a spacing that needs no resampling."""
    model = json.loads(sidecar.read_text())
    steps = {step["name"]: step["constants"] for step in (*model["steps_before"], *model["steps_after"])}
    image = image.transpose(0, *(1 + axis for axis in steps["transpose"]["order"])).astype(np.float32)
    mask = (image != 0).any(axis=0)
    box = tuple(slice(places.min(), places.max() + 1) for places in np.nonzero(mask))
    crop, inside = image[(slice(None), *box)].copy(), mask[box]
    for channel, how in zip(crop, steps["normalize"]["channels"]):
        assert how["scheme"] == "zscore"
        where = inside if how["statistics"] == "inside mask" else np.ones_like(inside)
        channel[where] = (channel[where] - channel[where].mean()) / channel[where].std()
    logits = np.mean(
        [blend(model, steps["tile"], sidecar.parent / f["file"], crop) for f in model["files"]], 0
    )
    if model["outputs_are"] == "regions":
        label_map = np.zeros(logits.shape[1:], int)
        for channel, value in zip(logits, steps["paint"]["values"]):
            label_map[channel > steps["paint"]["threshold"]] = value
    else:
        label_map = np.array(steps["argmax"]["values"])[logits.argmax(0)]
    full = np.zeros(image.shape[1:], int)
    full[box] = label_map
    return full.transpose(steps["place"]["order"])


def blend(model: dict, how: dict, file: Path, crop: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of the tiles of every slice."""
    from scipy.ndimage import gaussian_filter

    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    tile = how["tile"]
    missing = [max(0, t - n) for t, n in zip(tile, crop.shape[2:])]
    padded = np.pad(crop, [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)])
    impulse = np.zeros(tile)
    impulse[tile[0] // 2, tile[1] // 2] = 1
    weight = gaussian_filter(impulse, [t * how["weights"]["sigma_share"] for t in tile], mode="constant")
    weight = weight / weight.max() * how["weights"]["peak"]
    weight[weight == 0] = weight[weight > 0].min()
    sums = np.zeros((model["output"]["shape"][0], *padded.shape[1:]))
    weights = np.zeros(padded.shape[1:])
    for y in starts(padded.shape[2], tile[0], how["step_share"]):
        for x in starts(padded.shape[3], tile[1], how["step_share"]):
            place = (slice(None), slice(y, y + tile[0]), slice(x, x + tile[1]))
            tiles = padded[(slice(None), *place)].swapaxes(0, 1)
            (logits,) = session.run(None, {model["input"]["name"]: tiles})
            sums[(slice(None), *place)] += logits.swapaxes(0, 1) * weight
            weights[place] += weight
    inner = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, crop.shape[2:]))
    return (sums / weights)[(slice(None), slice(None), *inner)]


def starts(length: int, tile: int, share: float) -> list[int]:
    count = ceil((length - tile) / (tile * share)) + 1
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]


def test_resizing_by_matrices_is_resizing() -> None:
    image = torch.randn(2, 3, 80, 72, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        image, (64, 58), mode="bilinear", align_corners=False, antialias=True
    )
    rows, columns = resize_matrix(80, size=64, antialias=True), resize_matrix(72, size=58, antialias=True)
    torch.testing.assert_close(rows @ image @ columns.T, expected)
    factors = [52 / 41 * (1 + 1e-9), 42 / 33]
    expected = torch.nn.functional.interpolate(
        image[..., :41, :33], scale_factor=factors, mode="bilinear", align_corners=False
    )
    rows, columns = resize_matrix(41, factor=factors[0]), resize_matrix(33, factor=factors[1])
    assert len(rows) == 52  # a row less, were the factor rounded to float32
    torch.testing.assert_close(rows @ image[..., :41, :33] @ columns.T, expected)


def test_a_picture_shrinks_alike_in_onnx(tmp_path: Path) -> None:
    settings = SliceSettings(
        variant="vit_micro",
        input_size=64,
        patch_size=(80, 72),
        num_channels=1,
        num_outputs=2,
        display_window=((-2.0, 2.0),),
    )
    picture = SamPicture(settings).eval()
    write_onnx(picture, (1, 80, 72), tmp_path / "picture.onnx")
    tiles = list(torch.randn(4, 1, 80, 72, generator=torch.Generator().manual_seed(0)))
    parity = compare(tmp_path / "picture.onnx", picture, tiles, cases=1, regions=False)
    assert parity.max_error < CLOSE


def test_a_file_that_the_runtime_refuses_is_one_message(tmp_path: Path) -> None:
    """Not loadable, or made for another number of channels than it is given."""
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    tiles = [torch.zeros(3, 8, 8)]
    network = torch.nn.Conv2d(3, 2, 1)
    with pytest.raises(SamunetError, match=r"onnxruntime .* cannot run the ONNX file"):
        compare(tmp_path / "broken.onnx", network, tiles, cases=1, regions=False)
    write_onnx(torch.nn.Conv2d(1, 2, 1), (1, 8, 8), tmp_path / "other.onnx")
    with pytest.raises(SamunetError, match="so it was not kept"):
        compare(tmp_path / "other.onnx", network, tiles, cases=1, regions=False)


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from samunet.pipeline.model_file import onnx_export

    def write_another(network: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
        other = Predictor.load(tmp_path / "results/Dataset900_Tiny/2d_unet__tinyPlans", (1,), device="cpu")
        write_onnx(other.networks[0], shape, path)

    monkeypatch.setattr(onnx_export, "write_onnx", write_another)
    model = write_model(tmp_path / "results")
    with pytest.raises(SamunetError, match="does not give what PyTorch gives"):
        export(model, tmp_path, folds=(0,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "results"]


def test_nothing_is_replaced_before_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samunet.pipeline.model_file import onnx_export

    def fails(predictor: Predictor) -> None:
        raise SamunetError("no steps")

    model = write_model(tmp_path / "results", folds=(0,))
    export(model, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("net.onnx", "net.json")}
    torch.manual_seed(99)
    write_model(tmp_path / "results", folds=(0,), batch_size=5)
    monkeypatch.setattr(onnx_export, "steps_after", fails)
    with pytest.raises(SamunetError, match="no steps"):
        export(model, tmp_path, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "net.json", "net.onnx", "results"]
    for name in before:
        (tmp_path / name).unlink()
    with pytest.raises(SamunetError, match="no steps"):
        export(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "results"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    model = write_model(tmp_path / "results", "3d_student", (0,))
    with pytest.raises(SamunetError, match=r"3d_student cannot be .* 2d_cnn, .*3d_unet"):
        export(model, tmp_path)
    with pytest.raises(SamunetError, match="holds no"):
        export_onnx(
            OnnxRequest(
                model_folder=write_model(tmp_path / "results", folds=(0,)),
                output=tmp_path / "net.onnx",
                images=tmp_path,
            )
        )
