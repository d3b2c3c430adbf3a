"""Trainings on one group with their scores, which belong together: trained and predicted alike, and scored
against the same references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.evaluation.scores import Evaluation, ReferenceContent
from samunet.evaluation.summary_file import read_summary
from samunet.listing import counted_cases, listed
from samunet.pipeline.current_label import current_label
from samunet.pipeline.group_matrix.patients import known_to_source
from samunet.pipeline.group_matrix.runs import SourceRun, unlike
from samunet.pipeline.predicted_as import PredictedAs, predicted_as


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run with the scores of its validation, each case of the group and patient that are declared today;
    cases of patients who have cases in its source too are left out."""

    run: SourceRun
    evaluation: Evaluation
    predicted: PredictedAs

    def of_group(self, group: str) -> Evaluation:
        """Of the cases of a group, by name."""
        found = (case for case in self.evaluation.cases if case.group == group)
        return replace(self.evaluation, cases=tuple(sorted(found, key=lambda case: case.name)))


def scored_runs(method: str, runs: Sequence[SourceRun], raw: RawDataset) -> list[ScoredRun]:
    """The runs of a method that are scored.

    Raises:
        SamunetError: they were trained or predicted in different ways, or it is not known how they were
            predicted.
    """
    trained = [run for run in runs if run.is_trained and run.summary.exists()]
    differing = unlike([run.record for run in trained])
    if differing:
        raise SamunetError(
            f"Trainings of {method} with different {differing} would be mixed; their tags are "
            f"{', '.join(sorted({run.tag for run in trained}))}. Say which belong together with --tag."
        )
    scored = [
        ScoredRun(
            run=run,
            evaluation=_grouped_now(run, raw),
            predicted=predicted_as(run.summary.parent, run.command("--val")),
        )
        for run in trained
    ]
    _check_predicted_alike(method, scored)
    return scored


def _check_predicted_alike(method: str, scored: Sequence[ScoredRun]) -> None:
    kinds: dict[PredictedAs, list[SourceRun]] = {}
    for one in scored:
        kinds.setdefault(one.predicted, []).append(one.run)
    if len(kinds) < 2:
        return
    told = [
        f"  {way.text()}: {listed([f'{run.tag} fold {run.fold}' for run in runs])}"
        for way, runs in kinds.items()
    ]
    otherwise = [run for way, runs in kinds.items() if way != PredictedAs() for run in runs]
    raise SamunetError(
        "\n".join(
            [
                f"Validations of {method} that were predicted in different ways would be mixed:",
                *told,
                "Say which belong together with --tag, or have all as samunet_train does it by itself:",
                *(f"  {run.command('--val')}" for run in otherwise),
            ]
        )
    )


def check_references(counted: Iterable[tuple[ScoredRun, str]], raw: RawDataset) -> None:
    """See that every case was scored against the same reference by all runs.

    Where validations differ the label is read, to tell which of them came before it was corrected. That all
    came before is not noticed.

    Args:
        counted: runs, and the target groups that each of them counts for.
        raw: has the labels of today.

    Raises:
        SamunetError: it was not; names the cases, and the command for every run to be validated again.
    """
    found: dict[str, list[tuple[ScoredRun, ReferenceContent]]] = {}
    for scored, target in counted:
        for case in scored.of_group(target).cases:
            found.setdefault(case.name, []).append((scored, case.reference))
    changed = sorted(n for n, entries in found.items() if any(r.differs(entries[0][1]) for _, r in entries))
    if not changed:
        return
    were = "was" if len(changed) == 1 else "were"
    start = f"{counted_cases(changed)} {were} scored against different references"
    commands = {
        scored.run.command(*scored.predicted.flags())
        for name, now in _current_labels(changed, raw, start).items()
        for scored, then in found[name]
        if then.differs(now)
    }
    told = f"{start}: labels were corrected between the validations. Validate again:"
    raise SamunetError("\n".join([told, *(f"  {command}" for command in sorted(commands))]))


def _current_labels(names: Sequence[str], raw: RawDataset, start: str) -> Mapping[str, ReferenceContent]:
    try:
        return {name: current_label(raw, name) for name in names}
    except SamunetError as fault:
        raise SamunetError(
            f"{start}, and the labels do not tell which validations are outdated: {fault}"
        ) from fault


def _grouped_now(run: SourceRun, raw: RawDataset) -> Evaluation:
    summary, origins = read_summary(run.summary, raw.labels), raw.origins
    known = known_to_source(origins, run.source, summary.cases)
    entries = tuple(
        replace(entry, group=origins.groups.get(entry.name), patient=origins.patients.get(entry.name))
        for entry in summary.entries
        if entry.name not in known
    )
    return Evaluation(labels=raw.labels, tolerance_mm=summary.tolerance_mm, cases=entries)
