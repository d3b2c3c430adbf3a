"""samunet_find_best_configuration: collect, ensemble, judge, learn postprocessing, write selection.json."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import FEWEST_UNITS, RESAMPLES, SEED
from samunet.inference.postprocessing import Postprocessing
from samunet.listing import shown_command
from samunet.pipeline.postprocessed_cases import RulesAfter
from samunet.pipeline.qc.model import calibrate
from samunet.pipeline.selection.ensembles import make_ensembles
from samunet.pipeline.selection.out_of_fold import Collected, ModelsWanted, OutOfFold, collect
from samunet.pipeline.selection.postprocessing import Learned, learn_postprocessing
from samunet.pipeline.selection.record import DEFAULT_METRIC, Asked, Member, Metric, Selection
from samunet.pipeline.selection.trained_models import scored_models
from samunet.pipeline.selection.verdicts import Units, judge, score_table
from samunet.pipeline.setting_flags import setting_flags
from samunet.progress import Screen, no_screen
from samunet.records import write_json
from samunet.workspace import DEFAULT_PLANS, FINAL, Workspace, short_dataset_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """What the user asks for.

    Attributes:
        wanted: models to compare.
        metric: by which they are compared.
        ensembles: whether pairs and the ensemble of all are tried.
        postprocessing: whether rules are learned.
        ignore_groups: declared groups are sites or scanners: draw patients where they are declared too, else
            cases.
        seed: of the bootstrap and of the parts on which postprocessing is learned.
        workers: processes.
    """

    wanted: ModelsWanted
    metric: Metric = DEFAULT_METRIC
    ensembles: bool = True
    postprocessing: bool = True
    ignore_groups: bool = False
    seed: int = SEED
    workers: int | None = 1
    bar: Screen = field(default=no_screen)


def find_best(workspace: Workspace, options: SelectionOptions) -> Selection:
    """Compare the trained models of a dataset on their out-of-fold cases and write selection.json.

    Raises:
        SamunetError: what `collect` refuses, or damaged probabilities.
    """
    collected = collect(workspace, options.wanted)
    ensembles, left_out = _ensembles(workspace, collected, options)
    candidates = (*collected.models, *ensembles)
    origins = collected.raw.origins
    units = Units.of(collected.cases, origins.without_groups if options.ignore_groups else origins)
    labels = collected.raw.labels
    table = score_table(
        [candidate.scores for candidate in candidates], collected.cases, labels, options.metric, units
    )
    judgement = judge(candidates, table, tuple(labels.foreground), options.seed)
    chosen = candidates[judgement.chosen]
    learned = _learn(collected, chosen, units, options)
    selection = Selection(
        dataset=collected.raw.name,
        plans=options.wanted.plans,
        splits=options.wanted.splits,
        folds=collected.folds,
        metric=options.metric,
        num_cases=len(collected.cases),
        num_units=units.number,
        unit=units.kind,
        num_counted=judgement.num_counted,
        is_decidable=judgement.num_counted >= FEWEST_UNITS,
        seed=options.seed,
        resamples=RESAMPLES,
        candidates=judgement.candidates,
        comparisons=judgement.comparisons,
        prior=judgement.prior,
        ensembles=judgement.ensembles,
        recommended=chosen.members,
        postprocessing=Postprocessing(labels=labels, rules=learned.rules),
        postprocessing_steps=learned.steps,
        commands=_commands(workspace, collected.raw.name, chosen.members, bool(learned.rules)),
        left_out=(*collected.left_out, *left_out),
        made_from=_sources(collected.models),
        asked=_asked(options),
        scored=scored_models(workspace.results / collected.raw.name, options.wanted.plans, collected.folds),
    )
    _save(workspace, selection)
    _calibrate_after_rules(workspace, selection, collected, chosen, options)
    return selection


def _calibrate_after_rules(
    workspace: Workspace,
    selection: Selection,
    collected: Collected,
    chosen: OutOfFold,
    options: SelectionOptions,
) -> None:
    """Calibrate the predicted Dice of a single model for the learned rules, so that `-c best` has bounds.

    A fault is logged, not raised: the selection stands without it.
    """
    if len(chosen.members) > 1 or not selection.postprocessing.rules:
        return
    member = chosen.members[0]
    pairs = {case: (collected.reference(case), chosen.predictions[case]) for case in collected.cases}
    rules = RulesAfter(postprocessing=selection.postprocessing, pairs=pairs, workers=options.workers)
    folder = workspace.model_folder(selection.dataset, member.configuration, member.plans, member.tag)
    try:
        calibrate(folder, member.folds, by_case=options.ignore_groups, rules=rules)
    except SamunetError as fault:
        logger.warning("The predicted Dice after postprocessing cannot be calibrated: %s", fault)


def _ensembles(
    workspace: Workspace, collected: Collected, options: SelectionOptions
) -> tuple[tuple[OutOfFold, ...], tuple[str, ...]]:
    if not options.ensembles:
        return (), ("ensembles, which were not asked for (--no_ensembles).",) * (len(collected.models) > 1)
    with options.bar("Ensembles") as progress:
        return make_ensembles(workspace, collected, workers=options.workers, progress=progress)


def _learn(collected: Collected, chosen: OutOfFold, units: Units, options: SelectionOptions) -> Learned:
    if not options.postprocessing:
        return Learned(rules=(), steps=())
    pairs = [(collected.reference(case), chosen.predictions[case]) for case in collected.cases]
    with options.bar("Postprocessing") as progress:
        return learn_postprocessing(
            pairs,
            collected.raw.labels,
            units,
            seed=options.seed,
            workers=options.workers,
            progress=progress,
        )


def _sources(models: Sequence[OutOfFold]) -> dict[str, str]:
    return {name: digest for model in models for name, digest in model.sources.items()}


def _asked(options: SelectionOptions) -> Asked:
    return Asked(
        configurations=options.wanted.configurations,
        folds=options.wanted.folds,
        ensembles=options.ensembles,
        postprocessing=options.postprocessing,
        ignore_groups=options.ignore_groups,
    )


def _save(workspace: Workspace, selection: Selection) -> None:
    file = workspace.selection_file(selection.dataset, selection.plans)
    write_json(file, selection)
    selection.postprocessing.save(workspace.postprocessing_file(selection.dataset, selection.plans))


def _commands(
    workspace: Workspace, dataset: str, members: Sequence[Member], has_rules: bool
) -> tuple[str, ...]:
    """Commands that predict with these members, the short one first."""
    plans = members[0].plans
    start = ["samunet_predict", "-i", "INPUT", "-o", "OUTPUT", "-d", short_dataset_name(dataset)]
    start += [] if plans == DEFAULT_PLANS else ["-p", plans]
    commands = [shown_command([*start, "-c", "best"])]
    tags, checkpoints = {member.tag for member in members}, {member.checkpoint for member in members}
    if len(checkpoints) > 1 or (len(members) > 1 and any(member.settings for member in members)):
        return tuple(commands)  # no other command names members of different checkpoints or settings
    if len(tags) == 1:
        words = [*start, "-c", *(member.configuration for member in members)]
        words += ["--tag", str(members[0].tag)] if tags != {None} else []
    else:
        folders = [workspace.model_folder(dataset, m.configuration, m.plans, m.tag) for m in members]
        words = ["samunet_predict", "-i", "INPUT", "-o", "OUTPUT", "-m", *map(str, folders)]
    words += ["-f", *map(str, members[0].folds)]
    words += ["-chk", members[0].checkpoint] if checkpoints != {FINAL} else []
    words += setting_flags(members[0].settings)
    commands.append(shown_command(words))
    if has_rules:
        words = ["samunet_apply_postprocessing", "-i", "OUTPUT", "-o", "OUTPUT_POSTPROCESSED"]
        commands.append(
            shown_command([*words, "-pp_file", str(workspace.postprocessing_file(dataset, plans))])
        )
    return tuple(commands)
