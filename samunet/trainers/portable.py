"""The folder of a shared model: what checkpoints hold for prediction, as JSON and safetensors, no pickle.

FOLDER/model.json, plan.json, shared.safetensors (tensors that all folds have alike), and for every fold
fold_K/fold.json and fold_K/weights.safetensors. model.json lists every file with its SHA-256; what prediction
reads is checked against it each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from samunet.errors import SamunetError
from samunet.networks.sam.weight_files import file_sha256
from samunet.planning.methods import Method, list_methods
from samunet.planning.plan import Plan
from samunet.records import from_data, read_json, read_record
from samunet.trainers.checkpoint import BaseWeights, Checkpoint, load_checkpoint
from samunet.workspace import FINAL, PLAN_FILE, Fold

FORMAT = 1
MODEL_FILE, SHARED_FILE = "model.json", "shared.safetensors"
FOLD_FILE, WEIGHTS_FILE = "fold.json", "weights.safetensors"

WeightsKind = Literal["official", "shipped", "own"]
WeightsPlace = Literal["left out", "stored", "trained further"]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a shared model: SHA-256, hexadecimal, and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Pretrained weights that a shared model stands on.

    Attributes:
        variant / file / sha256: encoder, and the file that training started from.
        kind: by content: official, shipped with samunet, or somebody's own.
        licence: as far as it is known.
        place: `left out`, to be found by its hash; `stored`, in the model unchanged; `trained further`.
    """

    variant: str
    file: str
    sha256: str
    kind: WeightsKind
    licence: str
    place: WeightsPlace


@dataclass(frozen=True, kw_only=True)
class FoldTraining:
    """How a fold was trained.

    Attributes:
        cases: trained on; `validation_cases` kept out.
        epochs / iterations: optimizer steps are their product, summed over the phases.
        device: it ran on.
        versions: of samunet, torch and other packages.
    """

    fold: Fold
    cases: int
    validation_cases: int
    epochs: int
    iterations: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Content of model.json.

    Attributes:
        samunet: version that wrote it; `created` the day (UTC).
        dataset / configuration / plans / tag: names that made the folder's name.
        method: a method of samunet; nothing outside the package is ever imported for a shared model.
        checkpoint: file name of the folds' checkpoints that it was made from.
        licence: of the model, in the words of who shared it.
        weights: pretrained weights that it stands on.
        training: for each fold, where it is known.
        files: every other file of the model, by its path with forward slashes.
    """

    format: int = FORMAT
    samunet: str
    created: str
    dataset: str
    configuration: str
    plans: str
    tag: str | None
    method: str
    folds: tuple[Fold, ...]
    checkpoint: str
    licence: str
    weights: tuple[WeightsOrigin, ...]
    training: tuple[FoldTraining, ...]
    files: dict[str, FileEntry]

    @property
    def folder_name(self) -> str:
        """Name of the model's folder in results/DATASET."""
        return "__".join([self.configuration, self.plans, *([] if self.tag is None else [self.tag])])


@dataclass(frozen=True, kw_only=True)
class FoldRecord:
    """Content of fold.json; see `Checkpoint`."""

    fold: Fold
    method: str
    configuration: str
    epoch: int
    seed: int
    mirror_axes: tuple[int, ...]
    overrides: dict[str, Any]
    base_weights: BaseWeights | None


def is_shared_model(model_folder: Path) -> bool:
    """Whether a model folder is one that was exported and installed, not trained here."""
    return (Path(model_folder) / MODEL_FILE).is_file()


def parse_model(data: Any, where: str) -> ModelRecord:
    """The record from the JSON of model.json.

    Raises:
        SamunetError: not a model's, of another format, with unknown or missing keys.
    """
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise SamunetError(
            f"{where}: format {found!r}, this samunet reads {FORMAT}. It was made by another version of "
            "samunet, or is no model of samunet."
        )
    return from_data(ModelRecord, data, where=where)


def read_model(model_folder: Path) -> ModelRecord:
    """The record of a shared model's folder.

    Raises:
        SamunetError: see `parse_model`.
    """
    path = Path(model_folder) / MODEL_FILE
    return parse_model(read_json(path), str(path))


def shared_checkpoint(model_folder: Path, asked: str, *, flag: str = "-chk") -> str:
    """The checkpoint that a model folder's weights are of: what was asked for, or what a shared model has.

    Args:
        flag: what names a checkpoint in the user's command.

    Raises:
        SamunetError: a shared model was made from another one than the user names.
    """
    if not is_shared_model(model_folder):
        return asked
    made_from = read_model(model_folder).checkpoint
    if asked not in (FINAL, made_from):
        raise SamunetError(
            f"{model_folder} is a shared model that was made from {made_from}; it has no {asked}. Leave "
            f"{flag} out."
        )
    return made_from


def load_trained(path: Path) -> Checkpoint:
    """A trained fold from its checkpoint, or from the weights.safetensors of a shared model.

    Raises:
        SamunetError: the file is absent, damaged, or not the one that its model.json lists.
    """
    return load_shared_fold(path.parent) if path.name == WEIGHTS_FILE else load_checkpoint(path)


def load_shared_fold(fold_folder: Path) -> Checkpoint:
    """What a checkpoint would hold, without what only continuing a training needs.

    Raises:
        SamunetError: a file is absent, damaged or changed, or the method is not one of samunet's.
    """
    model_folder, name = fold_folder.parent, fold_folder.name
    record = read_model(model_folder)
    plan = Plan.load(_checked(model_folder, record, PLAN_FILE))
    file = _checked(model_folder, record, f"{name}/{FOLD_FILE}")
    fold = read_record(FoldRecord, file)
    configuration = plan.configuration(fold.configuration)
    if not configuration.method == fold.method == record.method:
        raise SamunetError(f"{file}: plan, fold and model name different methods. Install the model again.")
    base = fold.base_weights
    if base is not None and Path(base.file).name != base.file:
        raise SamunetError(f"{file}: base_weights.file {base.file!r} is not the name of a file.")
    shared = {}
    if SHARED_FILE in record.files:
        shared = read_tensors(_checked(model_folder, record, SHARED_FILE))
    return Checkpoint(
        method=fold.method,
        trainer=method_of_samunet(fold.method, str(file)).trainer,
        configuration=fold.configuration,
        plan=plan,
        fold=fold.fold,
        epoch=fold.epoch,
        network={**shared, **read_tensors(_checked(model_folder, record, f"{name}/{WEIGHTS_FILE}"))},
        base_weights=base,
        seed=fold.seed,
        mirror_axes=fold.mirror_axes,
        overrides=fold.overrides,
        training={},
    )


def method_of_samunet(name: str, where: str) -> Method:
    """The registered method of that name, looked up without importing anything that a file names.

    Raises:
        SamunetError: it is not part of samunet.
    """
    method = list_methods().get(name)
    if method is None or not method.trainer.startswith("samunet."):
        raise SamunetError(
            f"{where}: the method {name!r} is not part of samunet. A shared model may name only methods of "
            "the package, because using any other would run code that the file names."
        )
    return method


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        SamunetError: it is not one, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise SamunetError(
            f"{path} cannot be read as safetensors: {error}. Install the model again."
        ) from error


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; tensors that share memory are written apart."""
    from safetensors.torch import save

    apart = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return save(apart, metadata={"format": "pt", **metadata})


def _checked(model_folder: Path, record: ModelRecord, name: str) -> Path:
    """Path of a file that is as model.json lists it."""
    path = model_folder / name
    if name not in record.files or not path.is_file():
        raise SamunetError(f"{model_folder} is a shared model that lacks {name}. Install it again.")
    if file_sha256(path) != record.files[name].sha256:
        raise SamunetError(
            f"{path} is not the file that {MODEL_FILE} lists (another SHA-256): damaged, or changed since it "
            "was installed. Install the model again."
        )
    return path
