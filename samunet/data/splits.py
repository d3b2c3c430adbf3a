"""Cross-validation splits, identical to nnU-Net's for the same case names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samunet.data.groups import Origins
from samunet.errors import SamunetError, unknown_name
from samunet.listing import listed
from samunet.records import read_json, write_json

logger = logging.getLogger(__name__)

SEED = 12345
NUM_FOLDS = 5
SINGLE_SOURCE = "single_source"
PATIENT_KFOLD = "patient_kfold"
SCHEMES = ("kfold", "group_kfold", PATIENT_KFOLD, "leave_one_group_out", SINGLE_SOURCE)


@dataclass(frozen=True)
class Split:
    """Case names of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_splits(
    case_names: Sequence[str], groups: Mapping[str, str] | None = None, scheme: str = "kfold"
) -> tuple[Split, ...]:
    """Split the cases into folds.

    Args:
        case_names: all training cases.
        groups: case name -> group, or patient for `patient_kfold`; not needed for `kfold` (`kept_together`).
        scheme: `kfold` are nnU-Net's five folds (below five cases: leave one out), `group_kfold` and
            `patient_kfold` up to five folds that keep groups or patients together, `leave_one_group_out` one
            fold per group; `single_source` one fold per group that trains on it and validates on all others,
            `single_source:NAME` that one alone.

    Returns:
        The folds; none at all for a single case, which can only be trained as fold `all`.

    Raises:
        SamunetError: unknown scheme, cases without a group, fewer than two groups, or a source that is no
            group or has a single case.
    """
    names = sorted(case_names)
    kind, colon, source = scheme.partition(":")
    if kind not in SCHEMES or (colon and (kind != SINGLE_SOURCE or not source)):
        raise unknown_name("split scheme", scheme, SCHEMES)
    if kind == SINGLE_SOURCE:
        members = _members(names, groups or {}, scheme)
        sources = _sources(members, source)
        folds = [[name for name in names if name not in set(members[group])] for group in sources]
    elif scheme != "kfold":
        members = _members(names, groups or {}, scheme)
        if scheme == "leave_one_group_out":
            folds = [members[group] for group in sorted(members)]
        else:
            folds = _balanced_folds(members)
    elif len(names) < 2:
        folds = []
    elif len(names) < NUM_FOLDS:
        folds = [[name] for name in names]
    else:
        folds = _random_folds(names)
    return tuple(
        Split(tuple(n for n in names if n not in held_out), tuple(sorted(held_out)))
        for held_out in map(set, folds)
    )


def kept_together(origins: Origins, scheme: str) -> Mapping[str, str]:
    """What a scheme goes by, case -> group or patient."""
    return origins.patients if scheme == PATIENT_KFOLD else origins.groups


def load_or_create_splits(
    file: Path,
    case_names: Sequence[str],
    *,
    groups: Mapping[str, str] | None = None,
    scheme: str = "kfold",
    raw_file: Path | None = None,
    warn: Callable[[str], object] = logger.warning,
) -> tuple[Split, ...]:
    """Read the dataset's splits, or make and write them.

    A file that is there is honoured, whoever wrote it: first `file`, then the `splits_final.json` that a
    user put into the raw folder (`raw_file`, default scheme only), which is copied to `file`. A file without
    folds, as a dataset of one case has it, counts as absent.

    `groups` None means that nothing is known of them (no raw data); a file's folds are then taken as they
    are. `warn` is told of cases that a file leaves out, at every call in the same words.

    Raises:
        SamunetError: the file is malformed or does not fit the cases (see `check_splits`), both files are
            there and differ, a case of a group scheme has no group, or the folds are not what the scheme says
            of the groups as they are now.
    """
    sources = (file, raw_file) if raw_file is not None and scheme == "kfold" else (file,)
    found = {source: read_splits(source) for source in sources if source.is_file()}
    found = {source: splits for source, splits in found.items() if splits}
    if len(found) > 1 and not _same_folds(*found.values()):
        raise SamunetError(
            f"The folds in use, {file}, are not those of {raw_file}. Delete {file} to take your own (what "
            f"was trained is then of another split), or {raw_file} to go on with those in use."
        )
    if found:
        source, splits = next(iter(found.items()))
        check_splits(splits, case_names, source)
        if scheme != "kfold" and groups is not None:
            _refuse_without_group({n for split in splits for n in (*split.train, *split.val)}, groups, scheme)
            _check_groups(splits, groups, source, scheme)
        if source != file:
            logger.info("Splits are taken from %s.", source)
            write_splits(file, splits)
        unused = sorted(set(case_names) - {name for split in splits for name in (*split.train, *split.val)})
        if unused:
            # By the file in use, not by its source: a command that tells it once knows it by its words.
            warn(f"{file} leaves out {len(unused)} case(s): {listed(unused)}.")
    else:
        splits = make_splits(case_names, groups, scheme)
        write_splits(file, splits)
    small = [f"fold {number}" for number, split in enumerate(splits) if len(split.train) == 1]
    if small and scheme != "kfold":
        warn(f"{file}: {listed(small)} trains on a single case.")
    return splits


def select_fold(splits: Sequence[Split], fold: int | str, case_names: Sequence[str]) -> Split:
    """The split of a fold; `all` trains on every case and, like nnU-Net, validates on the same.

    Raises:
        SamunetError: there is no such fold; says which there are.
    """
    if fold == "all":
        return Split(tuple(sorted(case_names)), tuple(sorted(case_names)))
    if not splits:
        raise SamunetError(
            f"Fold {fold} does not exist: {len(case_names)} case(s) cannot be split. Train fold `all`."
        )
    number = int(fold) if str(fold).lstrip("-").isdecimal() else None
    if number is None or not 0 <= number < len(splits):
        raise SamunetError(
            f"Fold {fold} does not exist: this dataset has the folds 0 to {len(splits) - 1}, and `all`."
        )
    return splits[number]


def read_splits(file: Path) -> tuple[Split, ...]:
    """Read a splits file in nnU-Net's layout: a list of {"train": [...], "val": [...]}.

    Raises:
        SamunetError: malformed; names the entry.
    """
    content = read_json(file)
    if not isinstance(content, list):
        raise SamunetError(f'{file} must be a list of {{"train": [...], "val": [...]}}.')
    return tuple(
        Split(_names(entry, "train", f"{file}[{i}]"), _names(entry, "val", f"{file}[{i}]"))
        for i, entry in enumerate(content)
    )


def write_splits(file: Path, splits: Sequence[Split]) -> None:
    """Write the folds in nnU-Net's layout."""
    write_json(file, [{"train": list(split.train), "val": list(split.val)} for split in splits])


def check_splits(splits: Sequence[Split], case_names: Sequence[str], file: Path) -> None:
    """See that a file's splits fit the cases.

    Raises:
        SamunetError: cases that do not exist, a case in both parts of a fold, or a fold without training
            cases; lists all.
    """
    known, faults = set(case_names), []
    for number, split in enumerate(splits):
        foreign = sorted({*split.train, *split.val} - known)
        both = sorted(set(split.train) & set(split.val))
        if foreign:
            faults.append(f"fold {number} names cases that the dataset does not have: {listed(foreign)}")
        if both:
            faults.append(f"fold {number} has cases in train and in val: {listed(both)}")
        if not split.train:
            faults.append(f"fold {number} has no training case")
    if faults:
        raise SamunetError(
            f"{file} does not fit the dataset: {'; '.join(faults)}. Correct it, or delete it to have it made."
        )


def _same_folds(one: Sequence[Split], other: Sequence[Split]) -> bool:
    def sets(splits: Sequence[Split]) -> list[tuple[set[str], set[str]]]:
        return [(set(split.train), set(split.val)) for split in splits]

    return sets(one) == sets(other)


def _check_groups(splits: Sequence[Split], groups: Mapping[str, str], file: Path, scheme: str) -> None:
    """Refuse folds that were made for other groups; every case of theirs has one."""
    kind, _, source = scheme.partition(":")
    faults = []
    for number, split in enumerate(splits):
        train, val = ({groups[name] for name in names} for names in (split.train, split.val))
        torn = sorted(train & val)
        if torn:
            faults.append(f"fold {number} has cases of {_kind(scheme)} {listed(torn)} in train and in val")
        elif kind == SINGLE_SOURCE and (len(train) > 1 or (source and train != {source})):
            faults.append(f"fold {number} trains on group {listed(sorted(train))}")
        elif kind == "leave_one_group_out" and len(val) > 1:
            faults.append(f"fold {number} leaves out the groups {listed(sorted(val))}")
    if faults:
        raise SamunetError(
            f"{file} does not fit {scheme} with the {_kind(scheme)}s as they are declared now: "
            f"{'; '.join(faults)}. Correct what is declared, or delete the file to have it made again "
            "(trainings on its folds are then of another split)."
        )


def _random_folds(names: list[str]) -> list[list[str]]:
    """Five random folds as scikit-learn's KFold(5, shuffle=True, random_state=12345) draws them."""
    order = np.arange(len(names))
    np.random.RandomState(SEED).shuffle(order)
    return [[names[i] for i in part] for part in np.array_split(order, NUM_FOLDS)]


def _balanced_folds(members: Mapping[str, list[str]]) -> list[list[str]]:
    """Give each group, the largest first, to the fold with the fewest cases; equal sizes in random order."""
    order = sorted(members)
    np.random.default_rng(SEED).shuffle(order)
    folds: list[list[str]] = [[] for _ in range(min(NUM_FOLDS, len(members)))]
    for group in sorted(order, key=lambda name: -len(members[name])):
        min(folds, key=len).extend(members[group])
    return folds


def _sources(members: Mapping[str, list[str]], wanted: str) -> list[str]:
    """The groups that are trained on, one a fold: the one asked for, or all."""
    if wanted and wanted not in members:
        raise unknown_name("group", wanted, sorted(members))
    sources = [wanted] if wanted else sorted(members)
    alone = [group for group in sources if len(members[group]) < 2]
    if alone:
        raise SamunetError(
            f"Training on a single group needs two cases of it or more; {listed(alone)}: one case. Name "
            "another source (--splits single_source:GROUP); such a group is then tested on."
        )
    return sources


def _kind(scheme: str) -> str:
    """What a scheme keeps together, in a word."""
    return "patient" if scheme == PATIENT_KFOLD else "group"


def _refuse_without_group(names: Iterable[str], groups: Mapping[str, str], scheme: str) -> None:
    kind = _kind(scheme)
    without = sorted(name for name in names if name not in groups)
    if without:
        raise SamunetError(
            f"The split {scheme} needs a {kind} for every case; {len(without)} have none: {listed(without)}. "
            f"Declare them in groups.csv (columns case,{kind}) or under `{kind}s` in dataset.json; both "
            "belong to the raw data, which must be at hand."
        )


def _members(names: Sequence[str], groups: Mapping[str, str], scheme: str) -> dict[str, list[str]]:
    """Group -> its cases."""
    _refuse_without_group(names, groups, scheme)
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(groups[name], []).append(name)
    if len(members) < 2:
        raise SamunetError(
            f"The split {scheme} needs two {_kind(scheme)}s or more; there is only {list(members)}."
        )
    return members


def _names(entry: Any, part: Literal["train", "val"], where: str) -> tuple[str, ...]:
    names = entry.get(part) if isinstance(entry, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SamunetError(f"{where}: key `{part}` must be a list of case names.")
    return tuple(names)
