"""Which configuration and which trained model a user means."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.errors import SamunetError, unknown_name
from samunet.pipeline.replaced_plan import planning_command
from samunet.pipeline.run_commands import TrainedAs
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.planning.standing import shown_hours
from samunet.trainers.portable import MODEL_FILE
from samunet.workspace import DEFAULT_PLANS, Workspace

logger = logging.getLogger(__name__)

AUTO = "auto"
FAR_LONGER = 2.0
"""A recommendation for that many times the hours that a training gets may be another one."""


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A trained model in the user's words.

    Attributes:
        dataset: full name.
        configuration: method, alias, or `auto`.
        plans: name of the plan.
        method: -tr, which takes the place of the configuration.
        tag: --tag of the training.
    """

    dataset: str
    configuration: str = AUTO
    plans: str = DEFAULT_PLANS
    method: str | None = None
    tag: str | None = None


def load_plan(workspace: Workspace, dataset: str, plans: str) -> Plan:
    """The dataset's plan, refused when it was made from other data than the fingerprint's.

    Raises:
        SamunetError: no such plan, unreadable, of another dataset or of other data.
    """
    file = workspace.plan_file(dataset, plans)
    plan = Plan.load(file)
    again = f"Plan again: {planning_command(replace(plan, dataset=dataset))}."
    if plan.dataset != dataset:
        raise SamunetError(f"{file} is a plan for {plan.dataset}, not for {dataset}. {again}")
    fingerprint = workspace.fingerprint_file(dataset)
    if fingerprint.exists() and not Fingerprint.load(fingerprint).describes(plan.fingerprint_hash):
        raise SamunetError(f"{file} was made from other data than {fingerprint} now describes. {again}")
    return plan


def configuration_name(configuration: str, method: str | None, recommended: str) -> str:
    """The plan's name for what the user typed.

    Args:
        configuration: method, alias of nnU-Net, dotted module, or `auto`.
        method: -tr; it must work on the same kind of data as the configuration.
        recommended: the plan's recommendation, for `auto`.

    Raises:
        SamunetError: no such method, or -tr of another dimension.
    """
    if configuration == AUTO:
        if not (method or recommended):
            raise SamunetError("The plan recommends no method: none fits its budget. Name one.")
        return get_method(method or recommended).name
    chosen = get_method(configuration)
    if method is None:
        return chosen.name
    replaced = get_method(method)
    if replaced.dimension != chosen.dimension:
        raise SamunetError(
            f"-tr {method} works on {replaced.dimension}D data, but {configuration} is {chosen.dimension}D. "
            f"Leave one of them out."
        )
    return replaced.name


def recommended_for_longer(plan: Plan, minutes: float | None) -> str:
    """That a training gets far fewer minutes than the plan recommends a method for; else empty."""
    if minutes is None or not plan.recommended or plan.budget.hours * 60 < FAR_LONGER * minutes:
        return ""
    hours = minutes / 60
    command = planning_command(replace(plan, budget=replace(plan.budget, hours=round(hours, 2))))
    return (
        f"The plan recommends {plan.recommended} for trainings of up to {shown_hours(plan.budget.hours)}; "
        f"for {shown_hours(hours)} it may recommend another method: {command}"
    )


def find_model(workspace: Workspace, request: ModelRequest) -> Path:
    """Folder of the trained model that is meant.

    Raises:
        SamunetError: nothing is trained, or `auto` is ambiguous; lists what is there.
    """
    configuration, _, tag = request.configuration.partition("__")
    if tag and request.tag is None:  # as samunet_find_best_configuration names models
        request = replace(request, configuration=configuration, tag=tag)
    ending = "__".join(["", request.plans, *([request.tag] if request.tag else [])])
    trained = _trained(workspace, request.dataset)
    suitable = [name.removesuffix(ending) for name in trained if name.endswith(ending)]
    suitable = [name for name in suitable if "__" not in name]
    if request.configuration == AUTO and request.method is None:
        name = _automatic(workspace, request, suitable, trained)
    else:
        name = configuration_name(request.configuration, request.method, "")
        if name not in suitable:
            kind = f"trained model of {request.dataset}"
            wanted = TrainedAs(
                dataset=request.dataset, configuration=name, plans=request.plans, tag=request.tag
            )
            told = unknown_name(kind, name + ending, trained)
            raise SamunetError(f"{told} Train it: {wanted.command([0])}.")
    return workspace.model_folder(request.dataset, name, request.plans, request.tag)


def find_models(
    workspace: Workspace, request: ModelRequest, configurations: Sequence[str]
) -> tuple[Path, ...]:
    """Model folders of the configurations that a user lists after -c.

    Args:
        workspace: where models lie.
        request: everything but the configuration.
        configurations: methods, aliases or `auto`; none is `auto`.

    Raises:
        SamunetError: what `find_model` refuses, a model named twice, or -tr with several.
    """
    words = tuple(configurations) or (AUTO,)
    if len(words) > 1 and request.method is not None:
        raise SamunetError(
            "-tr replaces the method of one configuration; name the methods themselves with -c."
        )
    folders = tuple(find_model(workspace, replace(request, configuration=word)) for word in words)
    if len(set(folders)) < len(folders):
        raise SamunetError(f"-c {' '.join(words)} names a model twice; each counts once in an ensemble.")
    return folders


def _trained(workspace: Workspace, dataset: str) -> list[str]:
    """Names of model folders with at least one checkpoint, and of installed ones."""
    root = workspace.results / dataset
    trained = {f.parents[1].name for f in root.glob("*__*/fold_*/checkpoint_*.pth")}
    return sorted(trained | {f.parent.name for f in root.glob(f"*__*/{MODEL_FILE}")})


def _automatic(workspace: Workspace, request: ModelRequest, suitable: list[str], trained: list[str]) -> str:
    """The recommendation if it is trained, else the only model there is."""
    plan_file = workspace.plan_file(request.dataset, request.plans)
    if plan_file.exists():
        recommended = Plan.load(plan_file).recommended
        if recommended in suitable:
            return recommended
    if len(suitable) == 1:
        logger.info("%s is the only trained model, so it is used", suitable[0])
        return suitable[0]
    if not trained:
        start = TrainedAs(dataset=request.dataset, configuration="auto", plans=request.plans).command([0])
        raise SamunetError(f"No model of {request.dataset} is trained. Train one: {start}.")
    raise SamunetError(f"Say which model of {request.dataset} with -c. Trained: {', '.join(trained)}.")
