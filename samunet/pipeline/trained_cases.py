"""Which cases a run was trained on: only the others may be predicted and scored as out of fold."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.listing import counted_cases, shown_command
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import fold_folders

logger = logging.getLogger(__name__)

DEFAULT_SCHEME = "kfold"


@dataclass(frozen=True, kw_only=True)
class SplitInUse:
    """The split that a command works with: its scheme, the file that it is from, and the fold's cases."""

    scheme: str
    file: Path
    split: Split


def begun_run(model_folder: Path) -> tuple[int | str | None, RunRecord | None]:
    """The first fold of a model folder that has a checkpoint, and its record; (None, None) without one."""
    started = (
        (fold, folder) for fold, folder in fold_folders(model_folder).items() if checkpoints_in(folder)
    )
    records = ((fold, read_run(folder)) for fold, folder in started)
    return next(((fold, found) for fold, found in records if found is not None), (None, None))


def check_trained_cases(folder: Path, found: RunRecord | None, now: SplitInUse) -> None:
    """See that a trained fold has the cases that the split gives it now.

    Args:
        folder: of the run.
        found: its record; None of a run that was left without one, which is warned of.
        now: the split by which it would be validated or counted as done.

    Raises:
        SamunetError: other cases; says which, and what can be done.
    """
    if found is None:
        if checkpoints_in(folder):
            logger.warning("%s has no run.json: which cases it was trained on is unknown.", folder)
        return
    trained, validated = set(found.train), set(found.val)
    moved = (trained ^ set(now.split.train)) | (validated ^ set(now.split.val))
    if not moved:
        return
    seen = sorted(trained & set(now.split.val) - set(now.split.train))
    told = f"{counted_cases(sorted(moved))} came, went or changed sides"
    if seen:
        told = f"of the {len(now.split.val)} to be validated it was trained on {counted_cases(seen)}"
    raise SamunetError(
        f"{folder} was trained on other cases than fold {found.fold} of the split {now.scheme} ({now.file}) "
        f"has now: {told}. {_remedy(found, now)}"
    )


def _remedy(found: RunRecord, now: SplitInUse) -> str:
    """What brings run and split together again."""
    recorded = found.overrides.get("splits") or DEFAULT_SCHEME
    if recorded != now.scheme:
        first = f"Give {shown_command(['--splits', recorded])}, as it was trained"
    elif found.fold == "all":
        first = "Take the cases that it was trained on"
    else:
        first = f"Put {now.file} back as it was (or name its split with --splits)"
    return f"{first}, name another run with --tag, or train anew with --overwrite in place of --val or --c."


def unseen_cases(folder: Path, train: Iterable[str], scored: Iterable[str]) -> set[str]:
    """The scored cases of a run that it was not trained on; the others are warned of.

    Args:
        folder: of the run.
        train: its training cases.
        scored: cases of its validation.
    """
    names, trained = set(scored), set(train)
    seen = sorted(names & trained)
    if seen:
        logger.warning(
            "%s has scores of %s that it was trained on. They are not out of fold and are left out; validate "
            "it again with --val, by the split that it was trained with.",
            folder,
            counted_cases(seen),
        )
    return names - trained
