"""What a source -> target matrix lacks, with the command that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samunet.data.splits import SINGLE_SOURCE, read_splits
from samunet.pipeline.group_matrix.runs import MatrixRequest, SourceRun
from samunet.pipeline.run_commands import TrainedAs
from samunet.trainers.checkpoint import checkpoints_in
from samunet.workspace import Workspace, split_tag


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Empty places of one method and source.

    Attributes:
        targets: groups that nothing trained on the source was scored on as a whole.
        command: that fills them.
        first: what the user has to do before; empty where nothing.
    """

    method: str
    source: str
    targets: tuple[str, ...]
    command: str
    first: str = ""

    def lines(self) -> list[str]:
        """For the screen; the command stands alone in its line."""
        before = f" {self.first}, then" if self.first else ""
        return [f"{self.method}, {self.source} -> {', '.join(self.targets)}:{before}", f"  {self.command}"]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a training goes."""

    fold: int | str
    splits: str
    tag: str | None


@dataclass(frozen=True, kw_only=True)
class Mending:
    """Finds the command for what a source lacks.

    Attributes:
        order: sources by the fold that `single_source` gives them; empty where it cannot split.
    """

    workspace: Workspace
    request: MatrixRequest
    method: str
    order: Sequence[str]

    def of(
        self,
        source: str,
        targets: Sequence[str],
        runs: Sequence[SourceRun],
        members: Mapping[str, Sequence[str]],
    ) -> Missing:
        """What the source's own run lacks, or a training like the other sources'."""
        mine = next((run for run in runs if run.source == source), None)
        first = ""
        if mine is not None:
            wanted = {case for target in targets for case in members[target]}
            flags, first = self._what_it_lacks(mine, wanted)
            command = mine.command(*flags)
        elif runs:
            place = _place_beside(runs, source, self.order)
            trained = _trained_as(self.request, self.method, place)
            command = trained.command([place.fold], like=runs[0].record)
        else:
            command = first_command(self.request, self.method, source, self.order)
        return Missing(
            method=self.method, source=source, targets=tuple(targets), command=command, first=first
        )

    def _what_it_lacks(self, run: SourceRun, wanted: set[str]) -> tuple[list[str], str]:
        """Flags, and what to do before: a split that does not know the cases is no use to any flag."""
        if wanted <= set(run.record.val):
            if run.is_trained:
                return ["--val"], ""
            return ["--c"] * bool(checkpoints_in(run.folder)), ""
        file = self.workspace.splits_file(self.request.dataset, run.splits)
        known = {case for split in read_splits(file) for case in split.val} if file.is_file() else wanted
        return ["--overwrite"], "" if wanted <= known else f"delete {file}, which lacks cases of today"


def first_command(request: MatrixRequest, method: str, source: str, order: Sequence[str]) -> str:
    """A first training on one group; with a tag of one's own every source is a fold of it."""
    place = _place_alone(source, request.tags[0] if request.tags else None)
    if request.tags and order:
        place = _Place(fold=order.index(source), splits=SINGLE_SOURCE, tag=request.tags[0])
    return _trained_as(request, method, place).command([place.fold])


def _trained_as(request: MatrixRequest, method: str, place: _Place) -> TrainedAs:
    return TrainedAs(
        dataset=request.dataset,
        configuration=method,
        plans=request.plans,
        tag=place.tag,
        splits=place.splits,
    )


def _place_beside(runs: Sequence[SourceRun], source: str, order: Sequence[str]) -> _Place:
    """Where a source is trained so that it meets the others' runs and takes no place of theirs."""
    like = runs[0]
    tag = None if like.tag == split_tag(like.splits) else like.tag
    if tag is None and like.splits != SINGLE_SOURCE:
        return _place_alone(source, None)
    if order and all((run.tag, run.fold) != (like.tag, order.index(source)) for run in runs):
        return _Place(fold=order.index(source), splits=SINGLE_SOURCE, tag=tag)
    return _place_alone(source, like.tag)


def _place_alone(source: str, tag: str | None) -> _Place:
    """The split with this source alone is fold 0, so each source needs a tag of its own."""
    splits = f"{SINGLE_SOURCE}:{source}"
    ending = str(split_tag(splits)).removeprefix(SINGLE_SOURCE)
    return _Place(fold=0, splits=splits, tag=None if tag is None else f"{tag}{ending}")
