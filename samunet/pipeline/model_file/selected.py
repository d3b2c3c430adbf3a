"""What a selection says of one model: the comparison it took part in, and rules learned for it alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from samunet.inference.postprocessing import Postprocessing
from samunet.pipeline.model_file.lineage import shared_scheme
from samunet.pipeline.selection.record import Asked, Selection, newer_words, stale_words
from samunet.records import read_record


@dataclass(frozen=True, kw_only=True)
class SelectionFiles:
    """Files of samunet_find_best_configuration; they need not exist."""

    selection: Path
    postprocessing: Path


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What concerns one model; None where it was not compared, or no rules were learned for it alone.

    Attributes:
        remark: why both are left out although the model was compared, or which models it was not compared
            with; empty otherwise.
    """

    selection: Selection | None = None
    postprocessing: Postprocessing | None = None
    remark: str = ""


def selected(files: SelectionFiles | None, configuration: str, plans: str, tag: str | None) -> Selected:
    """What the files say of a model; rules for another model or an ensemble are not its rules.

    A selection from other scores than those that lie beside it now says nothing of the model: it, and rules
    learned on predictions of an earlier training, would go out under the new one's name.

    Raises:
        SamunetError: a file is there and cannot be read.
    """
    if files is None or not files.selection.is_file():
        return Selected()
    selection = read_record(Selection, files.selection)
    name = configuration if tag is None else f"{configuration}__{tag}"
    if selection.plans != plans or not any(name in found.members for found in selection.candidates):
        return Selected()
    stale = stale_words(selection, files.selection.parent)
    if stale:
        return Selected(
            remark=f"What {files.selection} says of this model, rules of postprocessing included, is left "
            f"out: it {stale}. Run {selection.command()}, then export again."
        )
    newer = newer_words(selection, files.selection.parent)
    # Hashes are of files that stay behind; commands and faults name folders of this machine.
    scheme = shared_scheme(selection.splits)
    kept = replace(selection, splits=scheme, made_from={}, commands=(), left_out=(), asked=Asked(), scored=())
    members = [(member.configuration, member.plans, member.tag) for member in selection.recommended]
    if members != [(configuration, plans, tag)] or not files.postprocessing.is_file():
        return Selected(selection=kept, remark=newer)
    rules = Postprocessing.load(files.postprocessing)
    return Selected(selection=kept, postprocessing=rules if rules.rules else None, remark=newer)
