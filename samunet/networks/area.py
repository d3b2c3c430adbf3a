"""Means over areas of an image or a volume, on every device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

WITHOUT_UNEVEN = ("mps",)
"""Devices that have no adaptive pooling to sizes that do not divide; none of any size in 3D."""


def area_means(x: Tensor, size: Sequence[int]) -> Tensor:
    """What adaptive average pooling gives of (B, C, *S), in 2D or 3D: (B, C, *size).

    Where `size` divides S, as it must in 3D, these are means of blocks, made without it. Else it runs on the
    CPU for devices that cannot do it.
    """
    split = [n for old, new in zip(x.shape[2:], size) for n in (new, old // new)]
    if all(old % new == 0 for old, new in zip(x.shape[2:], size)):
        return x.reshape(*x.shape[:2], *split).mean(dim=tuple(range(3, len(split) + 2, 2)))
    assert len(size) == 2, (x.shape, size)
    there = x.cpu() if x.device.type in WITHOUT_UNEVEN else x
    return functional.adaptive_avg_pool2d(there, (size[0], size[1])).to(x.device)
