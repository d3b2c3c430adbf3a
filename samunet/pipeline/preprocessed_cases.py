"""Preprocessed cases that a configuration trains on: all there and up to date, or the command for them."""

from __future__ import annotations

from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.listing import listed, shown_command
from samunet.pipeline.replaced_plan import planning_command
from samunet.planning.plan import Plan
from samunet.planning.rules import normalization_scheme
from samunet.preprocessing.dataset import is_current
from samunet.preprocessing.store import CaseStore
from samunet.workspace import DATASET_FILE


def preprocess_command(stored: Plan, name: str, data_name: str) -> str:
    """What makes the cases that a configuration trains on, by a name that the plan on disk knows."""
    alike = [other for other, found in stored.configurations.items() if found.data == data_name]
    known = [name] if name in stored.configurations else alike[:1]
    words = ["samunet_preprocess", "-d", stored.dataset, "-p", stored.name]
    return shown_command([*words, *(["-c", *known] if known else [])])


def preprocessed_names(
    dataset: RawDataset | None, plan: Plan, data_name: str, folder: Path, command: str
) -> tuple[str, ...]:
    """Names of the preprocessed cases, all of them up to date with the raw data where those are here.

    Args:
        dataset: raw data, where they are here.
        plan / data_name / folder: what the cases are to be, and where.
        command: that makes them.

    Raises:
        SamunetError: cases are missing, or were made from other files or by another plan.
    """
    store = CaseStore(folder)
    present = store.names() if folder.is_dir() else ()
    again = f"Run {command}."
    if dataset is None:
        if not present:
            raise SamunetError(f"There are no preprocessed cases in {folder}. {again}")
        return tuple(sorted(present))
    stale = [c.name for c in dataset.cases if not is_current(c, plan, data_name, folder)]
    if stale:
        raise SamunetError(
            f"{len(stale)} of {len(dataset.cases)} cases are not preprocessed for this plan and these files "
            f"({listed(stale)}) in {folder}. {again}"
        )
    return dataset.case_names


def refuse_other_declaration(dataset: RawDataset, plan: Plan) -> None:
    """Refuse to train what dataset.json no longer declares: the cases would be prepared and scored as before.

    Names of channels may change, as long as they mean the same normalisation.

    Raises:
        SamunetError: says what differs, and how to plan again.
    """
    pairs = {
        "labels": (plan.labels, dataset.labels),
        "channels": tuple(
            tuple(map(normalization_scheme, names)) for names in (plan.channel_names, dataset.channel_names)
        ),
        "file ending": (plan.file_ending, dataset.file_ending),
    }
    changed = [name for name, (then, now) in pairs.items() if then != now]
    if changed:
        raise SamunetError(
            f"{dataset.folder / DATASET_FILE} declares other {listed(changed)} than the plan {plan.name} was "
            f"made for. Plan and preprocess again, then train anew: {planning_command(plan)}."
        )
