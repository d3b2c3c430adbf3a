"""The plan of a run that goes on, and of a fold that is begun beside it: the configuration in run.json."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from samunet.pipeline.replan import Overrides, structural_settings
from samunet.pipeline.said_once import Say
from samunet.planning.methods import build_config, get_method
from samunet.planning.plan import Configuration, Plan
from samunet.records import from_data, to_data
from samunet.trainers.identity import RunRecord, configuration_differences, identify
from samunet.trainers.settings import apply_overrides
from samunet.workspace import PLAN_FILE, RUN_FILE


def recorded_plan(
    plan: Plan, model_folder: Path, record: RunRecord, given: Overrides, say: Say
) -> Plan | None:
    """The plan with the configuration of a run's record, unless what is given asks for another one.

    Planning again would not do, though the record says what the user gave. What the planner chooses depends
    on more: on the weights that are at hand by now, on the speed of the machine, on a plan that was made
    again, and on an encoder being named or not, because one that is named leaves the others, with their
    input sizes, out of the choice.

    Args:
        plan: as it is stored.
        model_folder: of the run; its copy of the plan knows what was expected of the configuration.
        record: of the run that is continued or validated, or of the fold that a new one is to be like.
        given: of that run, and over it what is given now.
        say: tells the user that the stored plan has become another one.

    Returns:
        None where it has to be planned: settings that the planner decides from, an encoder, or weights are
        given that the run has not, or the plan has no such data.
    """
    own = record.configuration
    name = own["name"]
    copy = model_folder / PLAN_FILE
    plans = [*([Plan.load(copy)] if copy.is_file() else []), plan]
    expected = next((p.configurations[name] for p in plans if name in p.configurations), None)
    if expected is None or own["data"] not in plan.data or _asks_for_another(record, given):
        return None
    _tell_of_new_plan(plan, record, say)
    data = {**own, "forecast": to_data(expected.forecast), "reasons": list(expected.reasons)}
    configuration = from_data(Configuration, data, where=f"{RUN_FILE} configuration")
    return dataclasses.replace(plan, configurations={**plan.configurations, name: configuration})


def _asks_for_another(record: RunRecord, given: Overrides) -> bool:
    """Whether the planner would have to decide anew; weights of another content are refused elsewhere."""
    own = record.configuration
    method = get_method(own["method"])
    trained = {**own, **to_data(build_config(method, own["settings"]))}
    settings = structural_settings(method, given)
    if any(trained.get(key) != to_data(value) for key, value in settings.items()):
        return True
    if given.encoder not in (None, own["encoder"]):
        return True
    known = None if given.weights is None else str(given.weights)
    return record.weights is None and known not in (None, record.overrides.get("weights"))


def _tell_of_new_plan(plan: Plan, record: RunRecord, say: Say) -> None:
    """Of a run that had taken the plan as it was: it may have been made again since."""
    name, told = record.configuration["name"], record.overrides
    settings = told.get("settings", {})
    planned = structural_settings(get_method(record.configuration["method"]), Overrides(settings=settings))
    weights = told.get("weights") not in (None, plan.overrides.get("weights"))
    if name not in plan.configurations or planned or told.get("encoder") or weights:
        return
    now = identify(apply_overrides(plan, name, settings), name, (record.train, record.val), record.seed)
    changed = configuration_differences(record, now)
    if changed:
        say(
            f"The plan {plan.name} was made again since {name} was begun ({'; '.join(changed)}). What was "
            "begun goes on as it was.",
            logging.WARNING,
        )
