"""Soft labels of a made-up teacher, for tests of distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samunet.preprocessing.soft_labels import SoftLabelIdentity, SoftLabelStore, draw_foreground, pack_case
from samunet.preprocessing.store import CaseStore

IDENTITY = SoftLabelIdentity(
    checkpoints_sha256=("a" * 64,),
    target="probabilities",
    regions=False,
    outputs=3,
    step_size=0.5,
    mirroring=True,
    data_hash="0" * 16,
)
KINDS = [
    IDENTITY,
    replace(IDENTITY, target="logits"),
    replace(IDENTITY, regions=True, outputs=2),
    replace(IDENTITY, regions=True, outputs=2, target="logits"),
]


def one_hot_logits(label: np.ndarray, outputs: int = 3) -> Tensor:
    """Logits of a teacher that is sure of the labels; outside the image it says background."""
    classes = torch.from_numpy(np.maximum(label, 0).astype(np.int64))
    return torch.nn.functional.one_hot(classes, outputs).movedim(-1, 0).float() * 1000


def write_soft_labels(
    folder: Path,
    identity: SoftLabelIdentity,
    case_folder: Path,
    logits_of: Callable[[Any], Tensor] = lambda case: one_hot_logits(case.label[:]),
) -> None:
    store = SoftLabelStore(folder, identity)
    for name in CaseStore(case_folder).names():
        case = CaseStore(case_folder).open(name)
        logits = logits_of(case)
        packed = pack_case(logits, identity, by_slice=False)
        store.write(name, packed, case.entry.key, draw_foreground(logits, identity))
