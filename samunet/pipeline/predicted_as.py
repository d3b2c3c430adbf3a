"""How the cases of a validation were predicted: scores are put together only where that was alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.inference.files import single_model_arguments
from samunet.listing import fold_words, listed
from samunet.pipeline.run_commands import DEFAULT_STEP
from samunet.pipeline.setting_flags import setting_flags
from samunet.workspace import ARGUMENTS_FILE, BEST, FINAL, fold_of


@dataclass(frozen=True, kw_only=True)
class PredictedAs:
    """How one model predicted the cases of a folder; without a word as `samunet_train` validates by itself.

    Attributes:
        checkpoint: file name in the fold's folder.
        step_size: tile step over tile size, above 0 and at most 1.
        mirroring: averaged over the flips.
        settings: of the method, in place of those of the training (`--set` beside `--val`).
    """

    checkpoint: str = FINAL
    step_size: float = DEFAULT_STEP
    mirroring: bool = True
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    def text(self) -> str:
        """`checkpoint_final.pth, step 0.5, mirroring, grid_side=1`."""
        changed = "".join(f", {key}={value}" for key, value in sorted(self.settings.items()))
        mirroring = "mirroring" if self.mirroring else "no mirroring"
        return f"{self.checkpoint}, step {self.step_size:g}, {mirroring}{changed}"

    def flags(self) -> list[str]:
        """Those of `samunet_train` that predict the validation cases so again, as far as it has any."""
        checkpoint = ["-chk", self.checkpoint] if self.checkpoint != FINAL else []
        return ["--val", *checkpoint, *setting_flags(self.settings)]


KEYS = tuple(part.name for part in fields(PredictedAs))
"""Of predict_args.json (`single_model_arguments`)."""


def predicted_as(validation: Path, again: str) -> PredictedAs:
    """Read how a fold's validation cases were predicted.

    Args:
        validation: folder of the predictions.
        again: command that validates the fold again.

    Raises:
        SamunetError: that is not written down, or they are not of one model, or of other folds than this one;
            names the command.
    """
    file = validation / ARGUMENTS_FILE
    if not file.is_file():
        raise SamunetError(
            f"{validation} has no {ARGUMENTS_FILE}, so it is not known how its cases were predicted; "
            f"validate again: {again}"
        )
    try:
        arguments = single_model_arguments(validation)
        own = fold_of(validation.parent)
        if arguments.get("folds", [own]) != [own]:
            raise SamunetError(
                f"{validation} holds predictions by other folds, {listed(arguments['folds'])}, which were "
                f"trained on its cases; validate again: {again}"
            )
        return PredictedAs(**{key: arguments[key] for key in KEYS})
    except (AttributeError, KeyError, TypeError) as fault:
        raise SamunetError(
            f"{file} does not say how the cases were predicted ({type(fault).__name__}: {fault}); validate "
            f"again: {again}"
        ) from fault


def chosen_on(checkpoint: str, cases: str) -> str:
    """Why the scores of a checkpoint are too good, in words; empty unless its epoch was chosen by them.

    Args:
        checkpoint: file name.
        cases: what its validation cases are called, `the target cases`.
    """
    return f"the epoch was chosen on {cases}, so the scores are optimistic" if checkpoint == BEST else ""


def told_apart(ways: Mapping[int, PredictedAs]) -> str:
    """Folds that were predicted in different ways, in words, the largest number of them first."""
    kinds: dict[PredictedAs, list[int]] = {}
    for fold, way in ways.items():
        kinds.setdefault(way, []).append(fold)
    found = sorted(kinds.items(), key=lambda item: len(item[1]), reverse=True)
    return "; ".join(f"{fold_words(folds)}: {way.text()}" for way, folds in found)


def not_by_itself(ways: Mapping[int, PredictedAs]) -> list[int]:
    """Folds that were predicted otherwise than `samunet_train` validates by itself."""
    return [fold for fold, way in ways.items() if way != PredictedAs()]
