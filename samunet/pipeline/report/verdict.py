"""What the selection found, as sentences and tables of the report."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.errors import SamunetError
from samunet.pipeline.report.content import Cell, Table
from samunet.pipeline.selection.record import (
    Estimate,
    Selection,
    load_selection,
    newer_words,
    selection_command,
)
from samunet.pipeline.selection.text import remarks
from samunet.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class VerdictContent:
    """The verdict's part of the page; `commands` predict with what is recommended."""

    sentences: tuple[str, ...]
    comparisons: Table | None = None
    commands: tuple[str, ...] = ()


def verdict_content(workspace: Workspace, dataset: str, plans: str, *, scored: bool) -> VerdictContent:
    """The verdict, or why there is none yet.

    Args:
        workspace: where results lie.
        dataset: full name.
        plans: name of the plan.
        scored: whether any fold has been scored on cases it had not seen.
    """
    command = selection_command(dataset, plans)
    if not scored:
        return VerdictContent(
            sentences=(
                f"No fold has been scored on cases it had not seen. Train folds 0 to 4, then run {command}.",
            )
        )
    if not workspace.selection_file(dataset, plans).is_file():
        return VerdictContent(
            sentences=(f"Nothing has been compared yet. Run {command}, then this report again.",)
        )
    try:
        selection = load_selection(workspace, dataset, plans)
    except SamunetError as fault:  # stale: say so instead of showing a verdict on other scores
        return VerdictContent(sentences=(str(fault),))
    return VerdictContent(
        sentences=(
            *_sentences(selection),
            *filter(None, [newer_words(selection, workspace.results / dataset)]),
        ),
        comparisons=_comparisons(selection),
        commands=selection.commands,
    )


def _sentences(selection: Selection) -> tuple[str, ...]:
    names = " + ".join(member.name for member in selection.recommended)
    of = {candidate.name: candidate.mean for candidate in selection.candidates}
    mean = of.get(names)
    score = "" if mean is None else f", mean {selection.metric} {mean.value:.3f} {_bounds(mean, 3)}".rstrip()
    cases = f"{selection.num_cases} out-of-fold cases"
    unit = f" of {selection.num_units} {selection.unit}s" if selection.unit != "case" else ""
    told = [selection.prior.text, f"Recommended: {names}{score} over {cases}{unit}."]
    if not selection.is_decidable:
        counted = selection.num_units if selection.num_counted is None else selection.num_counted
        told.append(f"With {counted} {selection.unit}s that hold any class nothing can be decided by a test.")
    told += remarks(selection)
    told += [_ensembles(selection)] * bool(selection.ensembles)
    rules = [step.rule.text() for step in selection.postprocessing_steps if step.accepted and step.rule]
    if rules:
        told.append(f"Postprocessing that helps on patients it was not learned on: {'; '.join(rules)}.")
    return (*told, *(f"Left out: {words}" for words in selection.left_out))


def _ensembles(selection: Selection) -> str:
    helping = sum(gain.is_shown for gain in selection.ensembles)
    if not helping:
        return "No ensemble has a gain over the best single model whose interval lies above zero."
    return (
        f"{helping} of {len(selection.ensembles)} ensembles have a gain over the best single model whose "
        "interval lies above zero."
    )


def _comparisons(selection: Selection) -> Table | None:
    prior = selection.prior
    rows: list[tuple[str | Cell, ...]] = [
        (f"{c.first} - {c.second}", _difference(c.difference), c.word) for c in selection.comparisons
    ]
    if prior.difference is not None:
        rows.append((prior.difference_of, _difference(prior.difference), prior.word))
    rows += [
        (f"{gain.name} - best single", _difference(gain.gain), "helps" if gain.is_shown else "not shown")
        for gain in selection.ensembles
    ]
    if not rows:
        return None
    return Table(head=("comparison", f"difference in {selection.metric}", ""), rows=tuple(rows), words=(2,))


def _difference(estimate: Estimate) -> Cell:
    return Cell(text=f"{estimate.value:+.4f}", interval=_bounds(estimate, 4))


def _bounds(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
