"""Which files a shared model may hold, and how large they may be."""

from __future__ import annotations

import re

from samunet.trainers.portable import FOLD_FILE, MODEL_FILE, SHARED_FILE, WEIGHTS_FILE
from samunet.workspace import (
    DATASET_FILE,
    ENVELOPE_FILE,
    PLAN_FILE,
    POSTPROCESSING_FILE,
    QC_MODEL_FILE,
    SELECTION_FILE,
)

CARD_FILE = "MODEL_CARD.md"
SCORES_FILE = "scores.json"

REQUIRED = (MODEL_FILE, PLAN_FILE, DATASET_FILE, CARD_FILE)
OPTIONAL = (ENVELOPE_FILE, SCORES_FILE, SHARED_FILE, POSTPROCESSING_FILE, SELECTION_FILE, QC_MODEL_FILE)
FOLD_FILES = (FOLD_FILE, WEIGHTS_FILE)
IN_A_FOLD = re.compile(r"(fold_(?:0|[1-9]\d{0,3}|all))/(" + "|".join(map(re.escape, FOLD_FILES)) + ")")

LARGEST_TEXT = 64 * 10**6
"""Bytes of a JSON or Markdown file; a plan has some ten thousand."""
LARGEST_MODEL = 64 * 10**9
"""Bytes of all files together."""
MOST_FILES = 20_020
"""Two for each of ten thousand folds, and what there is besides."""
LARGEST_RATIO = 200
"""Unpacked over packed bytes; text packs some ten times, weights are not packed."""


def is_tensors(name: str) -> bool:
    """Whether a file of that name holds tensors; all others hold text."""
    return name.endswith(".safetensors")


def is_allowed(name: str) -> bool:
    """Whether a shared model may hold a file of that name (forward slashes)."""
    return name in REQUIRED or name in OPTIONAL or IN_A_FOLD.fullmatch(name) is not None


def fold_files(folds: tuple[int | str, ...]) -> set[str]:
    """Names of the files of some folds."""
    return {f"fold_{fold}/{name}" for fold in folds for name in FOLD_FILES}
