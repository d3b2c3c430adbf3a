"""Which cases a pretraining may see: the list of excluded ones, and those that a resumed run began with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.preprocessing.slice_index import found_slices
from samunet.preprocessing.slices import Cutting
from samunet.records import read_json
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.pretrain_run import PretrainCheckpoint

logger = logging.getLogger(__name__)


def read_excluded(path: Path) -> dict[str, frozenset[str]]:
    """Cases to leave out: {"datasets": {NAME: {"held_out": [...]}}}, or {NAME: [...]}.

    Raises:
        SamunetError: absent, not JSON, or of another form.
    """
    content = read_json(path)
    entries = content.get("datasets", content) if isinstance(content, dict) else None
    found: dict[str, frozenset[str]] = {}
    for name, entry in (entries or {"": None}).items() if isinstance(entries, dict) else [("", None)]:
        cases = entry.get("held_out") if isinstance(entry, dict) else entry
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise SamunetError(
                f'{path}: expected {{"datasets": {{"Dataset101_Heart": {{"held_out": ["case_1"]}}}}}} or '
                f'{{"Dataset101_Heart": ["case_1"]}}; the entry {name!r} is not a list of case names.'
            )
        found[name] = frozenset(cases)
    return found


def check_excluded(
    path: Path, excluded: Mapping[str, frozenset[str]], datasets: Sequence[RawDataset]
) -> None:
    """Hold a list of excluded cases against the datasets that are used; it may name others too.

    Raises:
        SamunetError: cases that a dataset does not have; names all.
    """
    told = []
    for dataset in datasets:
        if dataset.name not in excluded:
            logger.warning(
                "%s has no entry for %s (it names %s): all its cases are seen.",
                path,
                dataset.name,
                listed(sorted(excluded), between=" "),
            )
        strangers = excluded.get(dataset.name, frozenset()) - set(dataset.case_names)
        if strangers:
            told.append(f"{dataset.name} has no {', '.join(sorted(strangers))}")
    if told:
        raise SamunetError(
            f"{path} excludes cases that are not there: {'; '.join(told)}. A mistyped case would be seen: "
            "correct the names, or take them out."
        )
    if not datasets:
        logger.warning("--exclude %s has no effect: it is for the cases of -d.", path)


def check_same_cases(continued: PretrainCheckpoint, cuttings: Mapping[Path, Cutting]) -> None:
    """Make sure that a resumed pretraining goes on with the cases that it began with; nothing is written.

    A checkpoint from before names were kept in it is held against the slices on disk.

    Args:
        continued: what is resumed.
        cuttings: what is asked for, by the folder of the slices.

    Raises:
        SamunetError: other cases or other sources; names them.
    """
    known = continued.case_names_hashes
    told = []
    for folder, cutting in cuttings.items():
        if known is None:
            found = found_slices(folder)
            same = found is not None and found.of(cutting)
        else:
            same = known.get(cutting.source) == cutting.names_hash
        if not same:
            told.append(_difference(folder, cutting))
    given = {cutting.source for cutting in cuttings.values()}
    told += [f"{source} is missing now" for source in known or () if source not in given]
    if told:
        raise SamunetError(
            f"The pretraining cannot be continued on other cases: {'; '.join(told)}. Repeat the command that "
            "started it (-d, --images and --exclude too) and add --c, or take another -o NAME."
        )


def check_kept_slices(folder: Path, cuttings: Mapping[Path, Cutting]) -> None:
    """Make sure that only looking at samples replaces no slices of a pretraining.

    Args:
        folder: of a pretraining; without a checkpoint in it slices are nobody's.
        cuttings: what is to be looked at, by the folder of the slices.

    Raises:
        SamunetError: the pretraining there is on other cases.
    """
    if not checkpoints_in(folder):
        return
    for place, cutting in cuttings.items():
        found = found_slices(place)
        if found is None or not found.of(cutting):
            raise SamunetError(
                f"{folder} holds a pretraining on other cases, and --show would replace its slices of "
                f"{cutting.source}. Give the samples another name with -o."
            )


def _difference(folder: Path, cutting: Cutting) -> str:
    """In words, how a cutting differs from the slices that are there."""
    found = found_slices(folder)
    if found is None or found.source != cutting.source:
        return f"{cutting.source} was no source of it, or its slices in {folder} are gone"
    new, gone = sorted({*cutting.names} - {*found.names}), sorted({*found.names} - {*cutting.names})
    parts = [f"{listed(new, between=' ')} would be seen and was not"] if new else []
    parts += [f"{listed(gone, between=' ')} was seen and would not be"] if gone else []
    return f"{cutting.source}: {', '.join(parts) or 'other cases are excluded'}"
