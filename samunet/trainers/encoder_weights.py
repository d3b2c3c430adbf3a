"""Which pretrained file the SAM encoder of a method starts from."""

from __future__ import annotations

from pathlib import Path

from samunet.errors import SamunetError
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import file_has_adapters, find_weights, weights_kind, weights_sha256
from samunet.planning.plan import Configuration, Plan
from samunet.trainers.base import PretrainedFile

WHOSE = {"official": "the official", "shipped": "the shipped", "file": "a user's"}
"""Kinds of weights in a sentence."""


def find_pretrained(
    configuration: Configuration,
    encoder: str,
    asked: str | None,
    weights: Path | None,
    folder: Path | None,
) -> PretrainedFile | None:
    """The file that the SAM encoder of a method starts from.

    Args:
        configuration: says which weights were planned.
        encoder: `frozen` or `full`.
        asked: the method's setting `encoder_weights`, taken instead of what was planned.
        weights: the user's file (`-w`), taken before all; or folder, taken in place of all other places.
        folder: where official files lie.

    Returns:
        None for an encoder that starts at random: one that is trained too, or the explicit `random` of tests.

    Raises:
        SamunetError: a frozen encoder without weights, or the planned file is missing.
    """
    assert configuration.encoder is not None
    variant = configuration.encoder
    kind = asked or configuration.encoder_weights
    named_folder = weights is not None and weights.is_dir()
    if named_folder:
        folder = weights
    elif weights is not None:
        if not weights.is_file():
            raise SamunetError(f"-w {weights}: there is no such file.")
        return _describe(weights, variant, folder)
    if kind == "random":
        return None
    if kind == "none":
        if encoder == "frozen":
            raise SamunetError(
                f"{configuration.name}: there are no weights for {variant}, and a frozen random encoder is "
                f"of no use. Run `samunet_download_weights {variant}` and plan again, name a file with -w, "
                "or train the encoder too with --set encoder=full."
            )
        return None
    path = find_weights(folder, variant, shipped=not named_folder)
    if path is None:
        raise SamunetError(
            f"The plan of {configuration.name} starts from {WHOSE.get(kind, kind)} weights of {variant}, and "
            f"there are none in {folder}. Run `samunet_download_weights {variant}`, or name a file with -w."
        )
    found = _describe(path, variant, folder)
    if asked is None and found.kind != kind:
        raise SamunetError(
            f"The plan of {configuration.name} starts from {WHOSE.get(kind, kind)} weights of {variant}, but "
            f"{path} holds {WHOSE[found.kind]}. Name the weights that you mean with -w, or plan again."
        )
    return found


def check_planned(plan: Plan, name: str, found: PretrainedFile, given: Path | None) -> None:
    """Refuse weights that lie where the planned ones did but are others; what the user names is taken.

    Args:
        plan: says the weights of its encoders.
        name: of the configuration.
        found: what it would start from.
        given: the user's or the plan's file or folder.

    Raises:
        SamunetError: names both.
    """
    planned = plan.weights.get(found.variant)
    is_plans = given is None or str(given) == plan.overrides.get("weights")
    if planned is None or not is_plans or planned.sha256 == found.sha256:
        return
    raise SamunetError(
        f"The plan of {name} starts from {planned.file} (SHA-256 {planned.sha256[:12]}...), but {found.path} "
        f"has other content ({found.sha256[:12]}...). Name the weights that you mean with -w, or plan again."
    )


def starting_words(configuration: Configuration, pretrained: PretrainedFile | None) -> str:
    """What the encoder starts from, as a sentence for the log."""
    if pretrained is None:
        return f"Encoder {configuration.encoder}: random weights, nothing pretrained."
    return (
        f"Encoder {configuration.encoder}: {WHOSE[pretrained.kind]} weights, {pretrained.path} "
        f"(SHA-256 {pretrained.sha256[:12]}...)."
    )


def _describe(path: Path, variant: str, folder: Path | None) -> PretrainedFile:
    kind = weights_kind(path, variant)
    sha256 = weights_sha256(path)
    official = get_variant(variant).official
    is_known = official is not None and sha256 == official.sha256
    # A link in the folder counts: prediction looks there, wherever the file itself lies.
    in_folder = folder is not None and path.parent.resolve() == Path(folder).resolve()
    return PretrainedFile(
        path=path,
        kind=kind,
        variant=variant,
        sha256=sha256,
        retrievable=is_known and in_folder,
        adapted=file_has_adapters(path),
    )
