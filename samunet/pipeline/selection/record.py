"""selection.json: what was compared on out-of-fold cases, what it gave, and what is to be predicted with."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from samunet.data.groups import Unit
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import SEED, Interval
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.listing import shown_command
from samunet.networks.sam.variants import Prior
from samunet.pipeline.selection.trained_models import scored_models
from samunet.pipeline.trained_cases import DEFAULT_SCHEME
from samunet.records import read_record
from samunet.workspace import DEFAULT_PLANS, Workspace, short_dataset_name

logger = logging.getLogger(__name__)

Kind = Literal["sam", "own weights", "encoder without prior", "unet", "other", "ensemble"]
Metric = Literal["Dice", "SurfaceDice"]
DEFAULT_METRIC: Metric = "Dice"
PriorWord = Literal["helps", "does not help", "undecided", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model that takes part in the recommendation, as samunet_predict names it.

    `settings`: of the method, which its cases were predicted with in place of the training's.
    """

    configuration: str
    plans: str
    tag: str | None
    folds: tuple[int, ...]
    checkpoint: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """`2d_cnn`, or `2d_cnn__TAG`."""
        return self.configuration if self.tag is None else f"{self.configuration}__{self.tag}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; the bounds are None where there is none (a single patient)."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        """From numbers that may be NaN."""
        low, high = (None if math.isnan(b) else b for b in (interval.low, interval.high))
        return cls(value=interval.value, low=low, high=high)

    @property
    def is_above_zero(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        return self.high is not None and self.high < 0


@dataclass(frozen=True, kw_only=True)
class CandidateScore:
    """One model or ensemble.

    Attributes:
        name: of the model, or of all its members with a plus between them.
        kind: `sam` has an encoder with SAM's weights (or such as were tuned from them); `own weights` a small
            one with pretrained weights that are not SAM's; `encoder without prior` one that started from
            nothing; `unet` is a baseline; `other` neither (a distilled student, a method from outside).
        members: names of the models.
        mean: over the classes of the means over the cases.
        classes: mean per class; None for a class that no reference holds.
        remark: why its scores are too good: a member's epoch was chosen on the cases. Empty otherwise.
    """

    name: str
    kind: Kind
    members: tuple[str, ...]
    mean: Estimate
    classes: dict[str, float | None]
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two candidates; `first` has the higher mean. `word` says whether `first` beats `second`."""

    first: str
    second: str
    difference: Estimate
    word: Literal["beats", "undecided"]


@dataclass(frozen=True, kw_only=True)
class PriorVerdict:
    """Whether SAM's prior helped: the best model with it against the best U-Net.

    Attributes:
        word: `not compared` where one of the two sides is missing.
        encoder: kind of the models on SAM's encoder that were compared, `sam` where there are any; the others
            say nothing of SAM's prior.
        sam / unet: models that the text is of: one is shown to beat all of the other kind, or the two are not
            told apart.
        difference: best of the one kind minus best of the other, whichever these are; not `sam` minus `unet`,
            which stands among the comparisons.
        text: in plain words.
        difference_of: what `difference` is of, in words.
    """

    word: PriorWord
    encoder: Prior
    sam: str | None
    unet: str | None
    difference: Estimate | None
    text: str
    difference_of: str = "best of each kind"


@dataclass(frozen=True, kw_only=True)
class EnsembleGain:
    """Gain of an ensemble over the best single model, whichever that is."""

    name: str
    gain: Estimate
    is_shown: bool


@dataclass(frozen=True, kw_only=True)
class PostprocessingStep:
    """A step of postprocessing that was tried.

    Attributes:
        target: class or region, None for the whole foreground.
        kind: what was tried: which `components` to keep, or `holes`.
        rule: learned on all cases; None where nothing helped.
        gain: in mean Dice, learned on the other patients and judged on those left out.
        accepted: its interval lies above zero and no class is hurt on average.
    """

    target: str | None
    kind: Literal["components", "holes"]
    rule: Rule | None
    gain: Estimate
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What samunet_find_best_configuration was given besides dataset, plan, split, metric and seed.

    Attributes:
        configurations / folds: empty where none were named.
        ensembles / postprocessing: whether they were tried.
        ignore_groups: whether the declared groups were no units.
    """

    configurations: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    ensembles: bool = True
    postprocessing: bool = True
    ignore_groups: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Content of selection.json.

    Attributes:
        plans / splits / folds: which models were compared.
        metric: that decided; the mean over the classes of the means over the cases.
        unit: what was drawn in the bootstrap: `patient` where patients are declared, else `group` where
            groups are.
        num_counted: units whose references hold any class; None in files of earlier versions.
        is_decidable: False with too few such units; then every word is `undecided`.
        candidates: single models, then ensembles.
        comparisons: all pairs of single models; their intervals hold all at once.
        recommended: the model, or the members of the ensemble.
        postprocessing: rules that the recommendation is followed by; may be empty.
        commands: that predict with the recommendation.
        left_out: in words, models and ensembles that could not be compared.
        made_from: file below results/DATASET -> SHA-256 of it.
        asked: how the command was given.
        scored: models of the plan that had scores of all folds then, compared or not.
    """

    version: Literal[2] = 2
    dataset: str
    plans: str
    splits: str
    folds: tuple[int, ...]
    metric: Metric
    num_cases: int
    num_units: int
    unit: Unit
    is_decidable: bool
    seed: int
    resamples: int
    candidates: tuple[CandidateScore, ...]
    comparisons: tuple[Comparison, ...]
    prior: PriorVerdict
    ensembles: tuple[EnsembleGain, ...]
    recommended: tuple[Member, ...]
    postprocessing: Postprocessing
    postprocessing_steps: tuple[PostprocessingStep, ...]
    commands: tuple[str, ...]
    left_out: tuple[str, ...]
    made_from: dict[str, str]
    num_counted: int | None = None
    asked: Asked = field(default_factory=Asked)
    scored: tuple[str, ...] = ()

    def command(self, also: Sequence[str] = ()) -> str:
        """What a user types to compare in the same way again.

        Args:
            also: models that are to be compared too.
        """
        asked, words = self.asked, [selection_command(self.dataset, self.plans)]
        words += ["-c", *asked.configurations, *also] if asked.configurations else []
        words += ["-f", *map(str, asked.folds)] if asked.folds else []
        words += ["--splits", shown_command([self.splits])] if self.splits != DEFAULT_SCHEME else []
        words += ["--metric", self.metric] if self.metric != DEFAULT_METRIC else []
        words += ["--no_ensembles"] * (not asked.ensembles)
        words += ["--disable_postprocessing"] * (not asked.postprocessing)
        words += ["--ignore_groups"] * asked.ignore_groups
        words += ["--seed", str(self.seed)] if self.seed != SEED else []
        return " ".join(words)


def load_selection(workspace: Workspace, dataset: str, plans: str = DEFAULT_PLANS) -> Selection:
    """The dataset's selection, refused when the models that it compared were scored anew since.

    Models that were trained since are named in a warning.

    Args:
        workspace: where the results lie.
        dataset: full name.
        plans: name of the plan.

    Raises:
        SamunetError: there is none, it is unreadable, or stale; names the command that makes it.
    """
    file = workspace.selection_file(dataset, plans)
    command = selection_command(dataset, plans)
    if not file.is_file():
        raise SamunetError(f"There is no {file}, so it is not known which model is best. Run {command}.")
    try:
        selection = read_record(Selection, file)
    except SamunetError as error:
        raise SamunetError(f"{error} Run {command} again.") from error
    stale = stale_words(selection, workspace.results / dataset)
    if stale:
        raise SamunetError(f"{file} {stale}. Run {selection.command()} again.")
    newer = newer_words(selection, workspace.results / dataset)
    if newer:
        logger.warning("%s", newer)
    return selection


def selection_command(dataset: str, plans: str) -> str:
    """What a user types to compare the models of a plan for the first time; see `Selection.command`."""
    named = "" if plans == DEFAULT_PLANS else f" -p {plans}"
    return f"samunet_find_best_configuration {short_dataset_name(dataset)}{named}"


def stale_words(selection: Selection, results: Path) -> str:
    """What a selection was made from that is no longer so, in words; empty when it is all there.

    Args:
        selection: as stored.
        results: results/DATASET, where the files that it was made from lie.
    """
    stale = [name for name, digest in selection.made_from.items() if file_digest(results / name) != digest]
    if not stale:
        return ""
    return (
        f"was made from other scores than those of now ({len(stale)} of {len(selection.made_from)} summaries "
        f"changed or are gone, such as {results / stale[0]})"
    )


def newer_words(selection: Selection, results: Path) -> str:
    """Which trained models a selection does not know of, in words with the command that compares them.

    Args:
        selection: as stored.
        results: results/DATASET.
    """
    known = {*selection.scored, *(name for found in selection.candidates for name in found.members)}
    found = scored_models(results, selection.plans, selection.folds)
    newer = [name for name in found if name not in known]
    if not newer:
        return ""
    return (
        f"Not among the models compared, though scored on the same folds: {', '.join(newer)}. Compare again: "
        f"{selection.command(newer)}"
    )


def remake_command(file: Path, dataset: str, plans: str) -> str:
    """The command that made a selection; where there is none to read, what makes the first.

    Args:
        file: selection.json.
        dataset: full name.
        plans: name of the plan.
    """
    with suppress(SamunetError):
        if file.is_file():
            return read_record(Selection, file).command()
    return selection_command(dataset, plans)


def file_digest(file: Path) -> str | None:
    """SHA-256 of a file, or None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
