"""What a report tells: every trained model of a dataset with its runs, curves and out-of-fold scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.scores import mean_of
from samunet.evaluation.summary_file import origins_of, read_summary
from samunet.pipeline.run_commands import TrainedAs
from samunet.pipeline.trained_cases import unseen_cases
from samunet.planning.plan import Plan
from samunet.trainers.history import EpochRecord, read_history
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import (
    DEFAULT_PLANS,
    FINAL,
    PLAN_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    Workspace,
    fold_folder,
    fold_folders,
    validation_folder,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """One case predicted by a fold that had not seen it.

    Attributes:
        fold: that predicted it.
        group / patient: where it comes from, or None.
        metrics: class -> metric -> value; NaN where it is not defined.
    """

    name: str
    fold: str
    group: str | None
    patient: str | None
    metrics: Mapping[str, Mapping[str, float]]
    reference_file: Path
    prediction_file: Path

    def mean(self, metric: str = "Dice") -> float:
        """Mean of a metric over the classes where it is defined; NaN where it never is."""
        return mean_of([scores[metric] for scores in self.metrics.values()])


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One trained fold; `finished` says whether its schedule came to its end."""

    fold: str
    run: RunRecord
    history: tuple[EpochRecord, ...]
    finished: bool
    cases: tuple[ScoredCase, ...]

    @property
    def seconds(self) -> float:
        """Wall time of its epochs, validation of whole cases not included."""
        return math.fsum(record.seconds for record in self.history)


@dataclass(frozen=True, kw_only=True)
class Model:
    """All folds of one way to train, `results/DATASET/CONFIGURATION__PLANS[__TAG]`."""

    folder: Path
    configuration: str
    plan: Plan
    tag: str | None
    folds: tuple[FoldRun, ...]

    @property
    def title(self) -> str:
        """`2d_cnn`, with the tag and a plan of another name than the default where there are: as different as
        the folders, since neither has a space."""
        _, plans, *tags = self.folder.name.split("__")
        extra = [f"plan {plans}"] * (plans != DEFAULT_PLANS) + tags
        return " ".join([self.configuration, *(f"({part})" for part in extra)])

    @property
    def cases(self) -> tuple[ScoredCase, ...]:
        """Cases of all folds, by name."""
        return tuple(sorted((c for fold in self.folds for c in fold.cases), key=lambda case: case.name))

    @property
    def origins(self) -> Origins:
        """Groups and patients of the cases, as they were declared when they were scored."""
        return origins_of(self.cases)

    @property
    def mean_dice(self) -> float:
        """Mean over the classes of the means over cases, as in summary.json; NaN without scored cases."""
        return mean_of([mean for mean in self.class_means("Dice").values()])

    def class_means(self, metric: str) -> dict[str, float]:
        """Class -> mean over the cases where the metric is defined."""
        names = self.plan.labels.foreground
        return {n: mean_of([case.metrics[n][metric] for case in self.cases]) for n in names}


def collect_models(workspace: Workspace, dataset: str, plans: str | None = None) -> tuple[Model, ...]:
    """Every trained model of a dataset, the highest mean out-of-fold Dice first, then those without scores.

    Args:
        workspace: where results lie.
        dataset: full name.
        plans: only models of this plan; None takes all.

    Raises:
        SamunetError: nothing is trained.
    """
    folders = [
        folder
        for folder in sorted((workspace.results / dataset).glob("*__*"))
        if any((fold / RUN_FILE).is_file() for fold in fold_folders(folder).values())
    ]
    models = [model for folder in folders if (model := _read_model(folder)) is not None]
    models = [model for model in models if plans in (None, model.plan.name)]
    if not models:
        of_plan = f" of plan {plans}" if plans else ""
        first = TrainedAs(dataset=dataset, configuration="auto", plans=plans or DEFAULT_PLANS)
        raise SamunetError(
            f"There is no trained model{of_plan} of {dataset} in {workspace.results / dataset}. Train "
            f"one first: {first.command([0])}."
        )
    return tuple(sorted(models, key=lambda m: -m.mean_dice if not math.isnan(m.mean_dice) else math.inf))


def _read_model(folder: Path) -> Model | None:
    """None where a training is only just starting and has left no plan."""
    if not (folder / PLAN_FILE).is_file():
        logger.warning("%s has no plan.json yet; the report leaves it out.", folder)
        return None
    plan = Plan.load(folder / PLAN_FILE)
    configuration, _, rest = folder.name.partition("__")
    tag = rest.removeprefix(plan.name).removeprefix("__") or None
    folds = [_read_fold(folder, fold, plan) for fold in fold_folders(folder)]
    return Model(
        folder=folder,
        configuration=configuration,
        plan=plan,
        tag=tag,
        folds=tuple(fold for fold in folds if fold is not None),
    )


def _read_fold(model_folder: Path, number: int | str, plan: Plan) -> FoldRun | None:
    folder, fold = fold_folder(model_folder, number), str(number)
    run = read_run(folder)
    if run is None:
        return None
    summary = validation_folder(model_folder, number) / SUMMARY_FILE
    keeps_out = bool(set(run.val) - set(run.train)) and summary.is_file()
    cases = scored_cases(summary, fold, plan.labels) if keeps_out else ()
    unseen = unseen_cases(folder, run.train, [case.name for case in cases])
    return FoldRun(
        fold=fold,
        run=run,
        history=tuple(read_history(folder)),
        finished=(folder / FINAL).is_file(),
        cases=tuple(case for case in cases if case.name in unseen),
    )


def scored_cases(summary: Path, fold: str, labels: LabelSet) -> tuple[ScoredCase, ...]:
    """The cases of a summary.json; a prediction lies beside it, wherever the folder was moved to.

    Raises:
        SamunetError: it is not one of ours, or it scores other classes.
    """
    return tuple(
        ScoredCase(
            name=case.name,
            fold=fold,
            group=case.group,
            patient=case.patient,
            metrics=case.metrics,
            reference_file=Path(case.reference_file),
            prediction_file=summary.parent / Path(case.prediction_file).name,
        )
        for case in read_summary(summary, labels).entries
    )
