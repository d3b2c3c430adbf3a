"""What a selection says of one model: the comparison it took part in, and rules learned for it alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from samunet.inference.postprocessing import Postprocessing
from samunet.pipeline.selection.record import Selection
from samunet.records import read_record


@dataclass(frozen=True, kw_only=True)
class SelectionFiles:
    """Files of samunet_find_best_configuration; they need not exist."""

    selection: Path
    postprocessing: Path


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What concerns one model; None where it was not compared, or no rules were learned for it alone."""

    selection: Selection | None = None
    postprocessing: Postprocessing | None = None


def selected(files: SelectionFiles | None, configuration: str, plans: str, tag: str | None) -> Selected:
    """What the files say of a model; rules for another model or an ensemble are not its rules.

    Raises:
        SamunetError: a file is there and cannot be read.
    """
    if files is None or not files.selection.is_file():
        return Selected()
    selection = read_record(Selection, files.selection)
    name = configuration if tag is None else f"{configuration}__{tag}"
    if selection.plans != plans or not any(name in found.members for found in selection.candidates):
        return Selected()
    # Hashes are of files that stay behind; commands and faults name folders of this machine.
    kept = replace(selection, made_from={}, commands=(), left_out=())
    members = [(member.configuration, member.plans, member.tag) for member in selection.recommended]
    if members != [(configuration, plans, tag)] or not files.postprocessing.is_file():
        return Selected(selection=kept)
    rules = Postprocessing.load(files.postprocessing)
    return Selected(selection=kept, postprocessing=rules if rules.rules else None)
