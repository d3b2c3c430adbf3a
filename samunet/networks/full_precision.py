"""A block that is computed in float32 within mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(kind: str) -> AbstractContextManager[object]:
    """Autocast switched off on a kind of device; nothing on one that knows no autocast.

    Args:
        kind: `cuda`, `cpu`, `mps` (which knows none before torch 2.5, and refuses the word), `meta`.
    """
    try:
        return torch.autocast(kind, enabled=False)
    except RuntimeError:
        return nullcontext()
