"""Preprocessed cases that a configuration trains on: all there and up to date, or the command for them."""

from __future__ import annotations

import shlex
from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.planning.plan import Plan
from samunet.preprocessing.dataset import is_current
from samunet.preprocessing.store import CaseStore


def preprocess_command(stored: Plan, name: str, data_name: str) -> str:
    """What makes the cases that a configuration trains on, by a name that the plan on disk knows."""
    alike = [other for other, found in stored.configurations.items() if found.data == data_name]
    known = [name] if name in stored.configurations else alike[:1]
    words = ["samunet_preprocess", "-d", stored.dataset, "-p", stored.name]
    return shlex.join([*words, *(["-c", *known] if known else [])])


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
