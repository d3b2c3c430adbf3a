"""Checkpoint files: plain data and tensors, written whole or not at all, to predict and to continue."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.sam import weight_files
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import weights_sha256, weights_with_hash
from samunet.planning.plan import Plan
from samunet.records import from_data, to_data
from samunet.trainers import import_trainer
from samunet.trainers.torch_files import read_torch, write_torch
from samunet.workspace import BEST, FINAL, LATEST, user_weights

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """A pretrained file whose tensors a checkpoint leaves out because they never change.

    Attributes:
        variant: SAM variant.
        file: name of the file.
        sha256: of the file, all 64 digits.
        prefix: of the state-dict keys that are left out, except those of trained parameters.
        stored: they are in the state all the same: a shared model that brings its base along.
    """

    variant: str
    file: str
    sha256: str
    prefix: str
    stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        method / trainer: registry name, and `module:Class` of its trainer.
        configuration: name in the plan.
        plan: the plan with the configuration as it was trained (overrides applied).
        fold: number or `all`.
        epoch: complete epochs.
        network: state dict without the tensors of `base_weights`.
        base_weights: what was left out, if anything.
        seed: of the run.
        mirror_axes: spatial axes that training mirrored and test-time augmentation may mirror.
        overrides: what the user changed on the command line.
        training: what only continuing needs: optimizer, scaler, random states, position, averages.
    """

    method: str
    trainer: str
    configuration: str
    plan: Plan
    fold: int | str
    epoch: int
    network: dict[str, Tensor]
    base_weights: BaseWeights | None
    seed: int
    mirror_axes: tuple[int, ...]
    overrides: dict[str, Any]
    training: dict[str, Any]


def checkpoints_in(folder: Path) -> list[str]:
    """Names of the checkpoints that a run folder holds; none where it was never begun."""
    return [name for name in (FINAL, LATEST, BEST) if (folder / name).exists()]


def network_state(network: nn.Module, base_weights: BaseWeights | None) -> dict[str, Tensor]:
    """State dict without what the base weights hold."""
    state = network.state_dict()
    if base_weights is None:
        return dict(state)
    left_out = base_keys(network, base_weights)
    return {name: value for name, value in state.items() if name not in left_out}


def base_keys(network: nn.Module, base_weights: BaseWeights) -> set[str]:
    """State-dict keys that the base weights give: all with their prefix but those that are trained."""
    trained = {name for name, _ in network.trained_parameters()}  # type: ignore[operator]
    return {key for key in network.state_dict() if key.startswith(base_weights.prefix)} - trained


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file atomically; it loads with `torch.load(path, weights_only=True)`."""
    data: dict[str, Any] = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    for name in ("plan", "base_weights", "mirror_axes", "overrides"):
        data[name] = to_data(data[name])
    write_torch(path, {"format": FORMAT, **data})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        SamunetError: there is no such file, it is cut off, or it is not one of ours.
    """
    path = Path(path)
    if not path.exists():
        raise SamunetError(
            f"There is no checkpoint {path}. Train this fold first, or name another one with -chk."
        )
    data = read_torch(path, "Copy it again, or train again.")
    names = {f.name for f in fields(Checkpoint)}
    if not isinstance(data, dict) or data.get("format") != FORMAT or not names <= set(data):
        raise SamunetError(
            f"{path} is no checkpoint of this samunet (format {FORMAT}). Checkpoints of nnU-Net or bare "
            "weights cannot be used here."
        )
    data = {name: data[name] for name in names}
    data["plan"] = from_data(Plan, data["plan"], where=f"{path}: plan")
    if data["base_weights"] is not None:
        data["base_weights"] = from_data(BaseWeights, data["base_weights"], where=f"{path}: base_weights")
    data["mirror_axes"] = tuple(data["mirror_axes"])
    return Checkpoint(**data)


def network_from_checkpoint(checkpoint: Checkpoint | Path, weights_folder: Path | None = None) -> nn.Module:
    """The trained network in evaluation mode, on the CPU.

    Args:
        checkpoint: loaded, or its file.
        weights_folder: where official encoder files lie; needed when the checkpoint left such weights out.

    Raises:
        SamunetError: the base weights are missing or are another file; the state does not fit the network.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    base = checkpoint.base_weights
    if base is not None and base.stored:
        base = None
    weights = None if base is None else find_base_weights(base, weights_folder)
    configuration = checkpoint.plan.configuration(checkpoint.configuration)
    network = import_trainer(checkpoint.trainer).build_network(
        checkpoint.plan, configuration, weights=weights
    )
    load_network_state(network, checkpoint.network, base)
    return network.eval()


def load_network_state(network: nn.Module, state: Mapping[str, Tensor], base: BaseWeights | None) -> None:
    """Load a state dict strictly; only the keys of the base weights may be absent.

    Raises:
        SamunetError: keys or shapes differ; names the first ones.
    """
    try:
        missing, unexpected = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise SamunetError(f"The checkpoint does not fit its network: {error}") from error
    given = set() if base is None else base_keys(network, base)
    missing = [key for key in missing if key not in given]
    if missing or unexpected:
        raise SamunetError(
            f"The checkpoint does not fit its network: {len(missing)} keys are missing {missing[:3]}, "
            f"{len(unexpected)} are foreign {unexpected[:3]}."
        )


def find_base_weights(base: BaseWeights, folder: Path | None) -> Path:
    """The file of the base weights, its content checked.

    Looked for by name, then by content, in the folder, in the package and in the user's own folder
    (`workspace.user_weights`).

    Args:
        base: what was left out.
        folder: where weights lie, or the file itself.

    Raises:
        SamunetError: it is in none of them, or another file has its name.
    """
    given = () if folder is None else (Path(folder),)
    places = tuple(dict.fromkeys((*given, weight_files.SHIPPED, user_weights())))
    named = [place if place.is_file() else place / base.file for place in places]
    found = {path: weights_sha256(path) for path in named if path.is_file()}
    alike = next((path for path, sha256 in found.items() if sha256 == base.sha256), None)
    for place in places:
        alike = alike or weights_with_hash(place, base.sha256)
    if alike is not None:
        return alike
    raise SamunetError(_missing_base(base, folder, found))


def _missing_base(base: BaseWeights, folder: Path | None, found: Mapping[Path, str]) -> str:
    """What is missing, and how to come by it."""
    official = get_variant(base.variant).official
    is_official = official is not None and official.sha256 == base.sha256
    fetch = f"Run `samunet_download_weights {base.variant}`" if is_official else "Ask who trained it for it"
    if found:
        path, sha256 = next(iter(found.items()))
        return (
            f"{path} is not the file that this checkpoint was trained on (SHA-256 {sha256[:12]}..., "
            f"expected {base.sha256}). {fetch}."
        )
    return (
        f"This checkpoint was trained on the frozen encoder of {base.file} (SHA-256 {base.sha256}), which is "
        f"not in it and not in {folder or 'a weights folder'} or {user_weights()}. {fetch}; put it into one "
        "of these folders, or name its folder with -w."
    )


def random_states(device: torch.device) -> dict[str, Any]:
    """States of all global random generators as plain data and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.random.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` returned; the GPU's are left alone when their number differs."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
