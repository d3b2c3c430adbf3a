"""How to train for the goal of a plan: which split, which settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from samunet.data.dataset import RawDataset
from samunet.data.splits import NUM_FOLDS, SINGLE_SOURCE
from samunet.errors import SamunetError
from samunet.pipeline.setting_flags import setting_flags
from samunet.pipeline.trained_cases import DEFAULT_SCHEME
from samunet.planning.plan import Plan

GENERALIZE = "generalize"

logger = logging.getLogger(__name__)


def training_for_goal(plan: Plan, groups: Mapping[str, str], num_cases: int) -> tuple[str, dict[str, Any]]:
    """Split scheme and settings for models that are to meet data from other sites.

    Args:
        plan: with its goal; an augmentation that it has been given stays.
        groups: of the training cases.
        num_cases: of these.

    Returns:
        With the goal `generalize` the augmentation for other sites, and a split by group where every case is
        of one; for other goals the default scheme and no setting.
    """
    if plan.goal != GENERALIZE:
        return DEFAULT_SCHEME, {}
    is_planned = "augmentation" in plan.overrides.get("settings", {})
    settings = {} if is_planned else {"augmentation": "generalize"}
    if _lacking(groups, num_cases):
        return DEFAULT_SCHEME, settings
    return "leave_one_group_out" if len(set(groups.values())) <= NUM_FOLDS else "group_kfold", settings


def same_sites_only(plan: Plan, groups: Mapping[str, str], num_cases: int) -> str:
    """That scores cannot be of other sites, though this is the goal, and why; empty where they can."""
    lacking = _lacking(groups, num_cases) if plan.goal == GENERALIZE else ""
    if not lacking:
        return ""
    return (
        f"Goal generalize: {lacking}, so that no fold can keep a site out; scores will be of sites that "
        "training saw too. Declare a site for every case in groups.csv (columns case,group)."
    )


def _lacking(groups: Mapping[str, str], num_cases: int) -> str:
    """What keeps folds from being by group."""
    if not groups:
        return "no groups are declared"
    if len(groups) < num_cases:
        return f"{num_cases - len(groups)} of {num_cases} cases have no group"
    return "" if len(set(groups.values())) > 1 else "all cases are of one group"


def settle_for_goal(
    plan: Plan, raw: RawDataset, splits: str | None, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Split scheme and settings of a comparison: the user's, and what the goal asks for besides.

    Args:
        splits: that the user gave, if any.
        settings: that the user gave.

    Raises:
        SamunetError: a split that does not hold out each case once, as a comparison needs.
    """
    if splits is not None and splits.startswith(SINGLE_SOURCE):
        raise SamunetError(
            f"--splits {splits}: methods are compared on a split that holds out each case once (kfold, "
            "group_kfold, patient_kfold, leave_one_group_out). Train single sources with samunet_train, and "
            "see them side by side with samunet_group_matrix."
        )
    scheme, wanted = training_for_goal(plan, raw.groups, len(raw.cases))
    if splits is None and scheme != DEFAULT_SCHEME:
        logger.info(
            "Goal generalize: the folds are by group (%s), so that scores are of groups that training never "
            "saw. --splits %s takes the default folds.",
            scheme,
            DEFAULT_SCHEME,
        )
    lack = same_sites_only(plan, raw.groups, len(raw.cases))
    if splits is None and lack:
        logger.info("%s", lack)
    added = {key: value for key, value in wanted.items() if key not in settings}
    if added:
        told = " ".join(setting_flags(added))
        logger.info("Goal generalize: %s. Another value of yours takes its place.", told)
    return splits or scheme, {**added, **settings}
