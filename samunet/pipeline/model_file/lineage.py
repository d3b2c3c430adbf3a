"""Where a model's weights come from, how long it was trained, and what of that others may know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import shipped_weights, weights_sha256, weights_with_hash
from samunet.networks.sam.weights_card import read_card
from samunet.planning.plan import Plan, WeightsUsed
from samunet.trainers.checkpoint import Checkpoint
from samunet.trainers.identity import PLACES, RunRecord
from samunet.trainers.portable import FoldTraining, WeightsKind, WeightsOrigin, WeightsPlace
from samunet.workspace import Fold

UNKNOWN = "unknown"
DATASET_KEYS = (
    "name",
    "description",
    "licence",
    "license",
    "release",
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "numTraining",
    "file_ending",
    "overwrite_image_reader_writer",
)
"""Keys of dataset.json that are shared; lists of files, and whatever else somebody wrote there, are not."""


def is_official(variant: str, sha256: str) -> bool:
    """Whether weights are the published file of an encoder, by their hash."""
    official = get_variant(variant).official
    return official is not None and official.sha256 == sha256


def brings_base(stored: Checkpoint, include_base: bool) -> bool:
    """Whether a fold's base weights go into a file: all but the official ones, which anyone can fetch."""
    base = stored.base_weights
    return base is not None and (include_base or not is_official(base.variant, base.sha256))


def origins_of(
    stored: Mapping[Fold, Checkpoint],
    runs: Mapping[Fold, RunRecord | None],
    weights_folder: Path | None,
    *,
    include_base: bool,
) -> tuple[WeightsOrigin, ...]:
    """The pretrained files that folds started from; none where they started from nothing.

    Args:
        stored: the folds.
        runs: their run.json, which know of weights that a checkpoint keeps.
        weights_folder: where the files and their cards may lie.
        include_base: official base weights are stored too.
    """
    found = [
        _origin(checkpoint, runs[fold], weights_folder, brings_base(checkpoint, include_base))
        for fold, checkpoint in stored.items()
    ]
    return tuple(dict.fromkeys(origin for origin in found if origin is not None))


def _origin(
    stored: Checkpoint, run: RunRecord | None, weights_folder: Path | None, brought: bool
) -> WeightsOrigin | None:
    encoder = stored.plan.configuration(stored.configuration).encoder
    base = stored.base_weights
    used = None if run is None else run.weights
    if base is not None:
        used = WeightsUsed(file=base.file, kind="", sha256=base.sha256)
    if used is None or encoder is None:
        return None
    place: WeightsPlace = "trained further" if _is_trained(stored) else "stored"
    if base is not None and not brought:
        place = "left out"
    return WeightsOrigin(
        variant=encoder,
        file=used.file,
        sha256=used.sha256,
        kind=_kind(encoder, used.sha256),
        licence=_licence(encoder, used.sha256, weights_folder),
        place=place,
    )


def _kind(variant: str, sha256: str) -> WeightsKind:
    """By content: a file of our name in the weights folder may have been pretrained by anyone."""
    if is_official(variant, sha256):
        return "official"
    shipped = shipped_weights(variant)
    return "shipped" if shipped is not None and weights_sha256(shipped) == sha256 else "own"


def _is_trained(stored: Checkpoint) -> bool:
    settings = stored.plan.configuration(stored.configuration).settings
    return stored.base_weights is None and settings.get("encoder", "frozen") != "frozen"


def _licence(variant: str, sha256: str, folder: Path | None) -> str:
    """Of the official file, or of what the weights' card says they were made from."""
    official = get_variant(variant).official
    if official is not None and official.sha256 == sha256:
        return official.licence
    file = weights_with_hash(folder, sha256)
    card = None if file is None else read_card(file)
    if card is None:
        return UNKNOWN
    return "; ".join(f"{source.name}: {source.licence}" for source in card.sources) or UNKNOWN


def training_of(fold: Fold, run: RunRecord | None) -> FoldTraining | None:
    """Length and device of a fold's training, without the names of its cases."""
    if run is None:
        return None
    return FoldTraining(
        fold=fold,
        cases=len(run.train),
        validation_cases=0 if fold == "all" else len(run.val),
        epochs=sum(phase.epochs for phase in run.phases),
        iterations=run.phases[0].iterations if run.phases else 0,
        device=str(run.hardware.get("gpu") or run.device),
        versions=run.versions,
    )


def shared_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What was changed on the command line, without folders of this machine and names of images and sites."""
    kept = dict(overrides)
    if "weights" in kept:
        kept["weights"] = Path(kept["weights"]).name
    if kept.get("splits"):
        kept["splits"] = shared_scheme(kept["splits"])
    if "distillation" in kept:
        hidden = (*PLACES, "unlabelled")
        taught = {k: v for k, v in kept["distillation"].items() if k not in hidden}
        if "teacher" in taught:  # CONFIGURATION__PLANS without the tag, which may name a site
            taught["teacher"] = "__".join(str(taught["teacher"]).split("__")[:2])
        kept["distillation"] = taught
    return kept


def shared_scheme(splits: str) -> str:
    """A split scheme without the group that it names: `single_source` of `single_source:Hospital_X`."""
    return splits.partition(":")[0]


def shared_dataset_json(content: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """dataset.json without lists of files and what else names patients; what is missing is the plan's."""
    labels = plan.labels
    known: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(plan.channel_names)},
        "labels": {
            n: list(v) if len(v) > 1 or n in labels.listed else v[0] for n, v in labels.labels.items()
        },
        "numTraining": plan.num_training,
        "file_ending": plan.file_ending,
    }
    if labels.ignore is not None:
        known["labels"]["ignore"] = labels.ignore
    if labels.region_order is not None:
        known["regions_class_order"] = list(labels.region_order)
    return {**known, **{key: content[key] for key in DATASET_KEYS if key in content}}
