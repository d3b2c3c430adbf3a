"""From slices to the encoder's picture and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samunet.errors import SamunetError
from samunet.networks.picture import SamPicture, SliceSettings, channel_matrix
from samunet.networks.sam.variants import PIXEL_MEAN, PIXEL_STD

MEAN, STD = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)


def picture(size: int = 64, channels: int = 1, **changes: object) -> SamPicture:
    values: dict[str, object] = {
        "variant": "vit_micro",
        "input_size": size,
        "patch_size": (32, 32),
        "num_channels": channels,
        "num_outputs": 2,
        "display_window": ((0.0, 1.0),) * channels,
    }
    return SamPicture(SliceSettings(**{**values, **changes}))  # type: ignore[arg-type]


def pixels(image: torch.Tensor) -> torch.Tensor:
    """Undo SAM's normalisation: 0..255."""
    return image * STD + MEAN


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_the_display_window_becomes_0_to_255_and_is_kept_in_the_state() -> None:
    module = picture(32, display_window=((-2.0, 3.0),))
    slices = (
        torch.tensor([-9.0, -2.0, 0.5, 3.0, 40.0]).view(1, 1, 1, 5).expand(1, 1, 32, 5).repeat(1, 1, 1, 6)
    )
    shown = pixels(module(torch.nn.functional.pad(slices, (0, 2))))
    expected = torch.tensor([0.0, 0.0, 127.5, 255.0, 255.0])
    torch.testing.assert_close(shown[0, 0, 0, :5], expected, atol=1e-3, rtol=0)
    assert module.state_dict()["window"].tolist() == [[-2.0, 3.0]]


def test_one_channel_is_repeated_two_get_their_mean_three_stay() -> None:
    one = pixels(picture(32)(draw(1, 1, 32, 32)))
    torch.testing.assert_close(one[:, 0], one[:, 2], atol=1e-3, rtol=0)
    slices = draw(1, 2, 32, 32)
    two = pixels(picture(32, 2)(slices))
    torch.testing.assert_close(two[0, :2], 255 * slices[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(two[0, 2], 255 * slices[0].mean(0), atol=1e-3, rtol=0)
    slices = draw(1, 3, 32, 32)
    torch.testing.assert_close(pixels(picture(32, 3)(slices)), 255 * slices, atol=1e-3, rtol=0)


def test_more_channels_are_averaged_in_three_groups() -> None:
    matrix = channel_matrix(7)
    assert matrix.shape == (3, 7)
    torch.testing.assert_close(matrix.sum(1), torch.ones(3))
    assert (matrix > 0).sum(0).tolist() == [1] * 7
    assert channel_matrix(4).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_context_is_red_before_green_middle_blue_after() -> None:
    volume = draw(1, 1, 3, 32, 32)
    shown = pixels(picture(32, slice_context=1)(volume.flatten(1, 2)))
    torch.testing.assert_close(shown[0], 255 * volume[0, 0], atol=1e-3, rtol=0)
    two = draw(1, 2, 5, 32, 32)
    shown = pixels(picture(32, 2, slice_context=2)(two.flatten(1, 2)))
    expected = torch.stack([two[0, :, :2].mean((0, 1)), two[0, :, 2].mean(0), two[0, :, 3:].mean((0, 1))])
    torch.testing.assert_close(shown[0], 255 * expected, atol=1e-3, rtol=0)


def test_the_stem_starts_as_the_fixed_map_and_learns() -> None:
    slices = draw(2, 5, 24, 32)
    fixed, stem = picture(32, 5), picture(32, 5, channel_map="stem")
    torch.testing.assert_close(stem(slices), fixed(slices), atol=1e-4, rtol=0)
    stem(slices).square().mean().backward()
    assert stem.stem is not None
    assert stem.stem.weight.grad.abs().sum() > 0
    assert not list(fixed.parameters())


def test_the_aspect_is_kept_and_the_rest_is_zero() -> None:
    module = picture(64)
    image = module(torch.ones(1, 1, 20, 40))
    assert module.covered((20, 40)) == (32, 64)
    torch.testing.assert_close(pixels(image)[..., :32, :], torch.full((1, 3, 32, 64), 255.0))
    assert not image[..., 32:, :].any()
    assert module.covered((500, 3)) == (64, 1)


def test_resizing_is_that_of_sams_own_transform() -> None:
    """SAM resizes 8-bit pictures with Pillow's anti-aliased bilinear filter; ours differ by rounding only."""
    from PIL import Image

    bytes_ = (draw(90, 120, 3) * 255).to(torch.uint8)
    expected = np.asarray(Image.fromarray(bytes_.numpy()).resize((64, 48), Image.Resampling.BILINEAR))
    module = picture(64, 3, display_window=((0.0, 255.0),) * 3)
    shown = pixels(module(bytes_.permute(2, 0, 1)[None].float()))[0, :, :48]
    assert (shown.permute(1, 2, 0) - torch.from_numpy(expected.copy())).abs().max() < 1.01


@pytest.mark.parametrize("size", [(32, 32), (20, 40), (40, 37), (129, 64), (7, 5), (200, 131)])
@pytest.mark.parametrize("cells", [16, 64])
def test_logits_come_back_to_the_pixels_they_belong_to(size: tuple[int, int], cells: int) -> None:
    """A ramp over the square, sampled at the slice's pixel centres, is the ramp over the slice."""
    module = picture(64)
    centres = (torch.arange(cells) + 0.5) / cells * 64
    logits = torch.stack(torch.meshgrid(centres, centres, indexing="ij"))[None]
    restored = module.to_slice(logits, size)
    assert restored.shape == (1, 2, *size)
    covered = module.covered(size)
    for axis in (0, 1):
        expected = (torch.arange(size[axis]) + 0.5) / size[axis] * covered[axis]
        values = restored[0, axis].mean(1 - axis)
        inside = (expected > 32 / cells) & (expected < covered[axis] - 64 / cells)
        torch.testing.assert_close(values[inside], expected[inside], atol=1e-3, rtol=0)


def test_a_size_that_divides_badly_gives_the_exact_size() -> None:
    module = picture(224)
    for height in range(1, 300, 7):
        for width in (31, 33, 224, 225):
            assert module.to_slice(torch.zeros(1, 1, 56, 56), (height, width)).shape[2:] == (height, width)


def test_paper_compat_stretches_and_scales_each_slice() -> None:
    module = picture(64, paper_compat=True)
    image = module(torch.linspace(-5, 7, 20 * 40).view(1, 1, 20, 40))
    assert module.covered((20, 40)) == (64, 64)
    assert image.min() == 0
    assert image.max() == 1


def test_bad_windows_are_refused() -> None:
    with pytest.raises(SamunetError, match="1 entries for 2 channels"):
        picture(64, 2, display_window=((0.0, 1.0),))
    with pytest.raises(SamunetError, match="low < high"):
        picture(64, display_window=((1.0, 1.0),))
