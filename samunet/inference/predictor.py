"""Predictor: the trained folds of one configuration, on arrays or files. Usable in a notebook as it is.

predictor = Predictor.load("results/Dataset101_Liver/2d_cnn__samunetPlans")
segmentation = predictor.predict(array_zyx, spacing_mm=(5.0, 0.8, 0.8)).segmentation
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from samunet.data.cases import CHANNEL_SUFFIX, Case, find_cases
from samunet.data.geometry import FLAT_SPACING_MM, Geometry
from samunet.data.readers import read_image, segmentation_ending
from samunet.errors import SamunetError
from samunet.inference.export import export_case
from samunet.inference.files import (
    CaseStages,
    ChangeImage,
    FileOptions,
    FilesOutcome,
    check_arguments,
    run_cases,
    select_part,
)
from samunet.inference.folds import Fold, check_alike, checkpoint_file, find_folds
from samunet.inference.sliding_window import WindowSettings, predict_logits
from samunet.planning.plan import Configuration, Plan
from samunet.preprocessing.case import PreprocessedCase, preprocess_case
from samunet.preprocessing.restore import restore_probabilities, restore_segmentation
from samunet.records import read_json, write_json
from samunet.trainers.base import config_of
from samunet.trainers.checkpoint import Checkpoint, load_checkpoint, network_from_checkpoint
from samunet.trainers.devices import Precision, choose_device
from samunet.trainers.settings import apply_prediction_settings
from samunet.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmented array.

    Attributes:
        segmentation: label values of dataset.json on the input's grid, (Z, Y, X), or (Y, X) for a 2D image.
        probabilities: (K, Z, Y, X) float32 per class with background, or per region; None unless asked for.
        class_names: name per channel of `probabilities`.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray | None
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PredictorSettings:
    """How tiles are laid and averaged.

    Attributes:
        device: where the network runs.
        step_size: tile step over tile size, above 0 and at most 1.
        mirroring: average over the flips of the axes that training mirrored.
        checkpoint: file name in each fold's folder.
        changed: settings of the method that differ from those of the training.
    """

    device: torch.device
    step_size: float = 0.5
    mirroring: bool = True
    checkpoint: str = "checkpoint_final.pth"
    changed: Mapping[str, Any] = field(default_factory=dict)


class Predictor:
    """Trained folds of one configuration; their logits are averaged at the network's spacing.

    Everything comes from the checkpoints (plan included), so a model folder can be moved anywhere. Starts no
    processes; files are read and written in threads.
    """

    def __init__(
        self,
        model_folder: Path,
        members: dict[Fold, tuple[Checkpoint, nn.Module]],
        settings: PredictorSettings,
    ) -> None:
        first = next(iter(members.values()))[0]
        self.model_folder = model_folder
        self.folds = tuple(members)
        self.plan: Plan = first.plan
        self.configuration: Configuration = first.plan.configuration(first.configuration)
        self.settings = settings
        self.shared_encoder = _share_encoder(list(members.values()))
        self.networks = [network.to(settings.device).eval() for _, network in members.values()]
        self.mirror_axes = tuple(first.mirror_axes)

    @classmethod
    def load(
        cls,
        model_folder: Path | str,
        folds: Sequence[Fold] | None = None,
        checkpoint: str = "checkpoint_final.pth",
        *,
        device: str | None = None,
        step_size: float = 0.5,
        mirroring: bool = True,
        weights_folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Load the folds of a model folder (results/DATASET/CONFIGURATION__PLANS).

        Args:
            model_folder: folder with fold_K inside.
            folds: which to average; None takes every fold that has the checkpoint.
            checkpoint: file name in each fold's folder.
            device: `cuda`, `mps`, `cpu`; None or `auto` takes the best one here.
            step_size: tile step over tile size.
            mirroring: test-time augmentation by mirroring.
            weights_folder: official encoder files, for checkpoints that leave a frozen encoder out; None
                takes the workspace's folder.
            settings: of the method, in place of the training's: those that it allows to change
                (`Method.prediction_settings`), such as `grid_side` of `2d_desam`.

        Raises:
            SamunetError: no such folder, fold or checkpoint; folds of different configurations; a setting
                that training has fixed.
        """
        folder = Path(model_folder)
        chosen = PredictorSettings(
            device=choose_device(device),
            step_size=step_size,
            mirroring=mirroring,
            checkpoint=checkpoint,
            changed=dict(settings or {}),
        )
        members: dict[Fold, tuple[Checkpoint, nn.Module]] = {}
        for fold in find_folds(folder, checkpoint) if folds is None else folds:
            file = checkpoint_file(folder, fold, checkpoint)
            stored = load_checkpoint(file)
            weights = weights_folder or Workspace.find().weights
            members[fold] = (stored, network_from_checkpoint(_changed(stored, chosen.changed), weights))
        check_alike(folder, {fold: stored for fold, (stored, _) in members.items()})
        return cls(folder, members, chosen)

    @property
    def device(self) -> torch.device:
        return self.settings.device

    @property
    def num_mirrorings(self) -> int:
        """Passes of the network per tile."""
        return 2 ** len(self.mirror_axes) if self.settings.mirroring else 1

    def describe(self) -> str:
        """Which model, folds and settings, in one line."""
        folds = ", ".join(map(str, self.folds))
        mirroring = (
            f"mirroring over {self.num_mirrorings} flips" if self.num_mirrorings > 1 else "no mirroring"
        )
        changed = "".join(f", {key}={value}" for key, value in self.settings.changed.items())
        return (
            f"{self.model_folder.name}: fold{'s' * (len(self.folds) > 1)} {folds} "
            f"({self.settings.checkpoint}) on {self.device.type}, step {self.settings.step_size:g}, "
            f"{mirroring}{changed}."
        )

    def predict(
        self, array: np.ndarray, spacing_mm: Sequence[float] | None = None, *, probabilities: bool = False
    ) -> Prediction:
        """Segment one array.

        Args:
            array: (C, Z, Y, X), or without C for one channel; (Y, X) or (C, Y, X) with two spacings for 2D.
            spacing_mm: z, y, x; or y, x for a 2D image (there 1 mm when not given).
            probabilities: keep the class probabilities too.

        Raises:
            SamunetError: shape, channels or spacing do not fit.
        """
        image, geometry = self._as_case(np.asarray(array), spacing_mm)
        case = self.preprocess(image, geometry, "The array")
        logits, chances = self.predict_preprocessed(case.image), None
        if probabilities:
            chances = np.empty((self.plan.labels.num_outputs, *geometry.shape), np.float32)
            segmentation = restore_probabilities(logits, case.record, self.plan, chances)
        else:
            segmentation = restore_segmentation(logits, case.record, self.plan)
        flat = geometry.is_2d
        return Prediction(
            segmentation=segmentation[0] if flat else segmentation,
            probabilities=chances[:, 0] if flat and chances is not None else chances,
            class_names=self.plan.labels.class_names,
        )

    def preprocess(self, image: np.ndarray, geometry: Geometry, where: str) -> PreprocessedCase:
        """Preprocess an image (C, Z, Y, X) as the plan says."""
        data = self.plan.data_of(self.configuration)
        return preprocess_case(image, None, geometry, self.plan, data, where)

    def predict_preprocessed(self, image: np.ndarray) -> torch.Tensor:
        """Mean logits (K, Z, Y, X) float32 on the CPU of a preprocessed image (C, Z, Y, X)."""
        precision = Precision.choose(self.device, "fp16")
        window = WindowSettings(
            patch_size=self.configuration.patch_size,
            step_size=self.settings.step_size,
            mirror_axes=self.mirror_axes if self.settings.mirroring else (),
            batch_size=self._tiles_at_once(),
            slice_context=getattr(config_of(self.configuration), "slice_context", 0),
            shared_encoder=self.shared_encoder,
            device=self.device,
        )
        with torch.inference_mode(), precision.autocast(self.device):
            return predict_logits(self.networks, torch.from_numpy(image), window)

    def _tiles_at_once(self) -> int:
        """Tiles in one pass: enough to fill a GPU; few on a CPU, where more only take memory."""
        if len(self.configuration.patch_size) == 3:
            return 1
        return 16 if self.device.type == "cuda" else 4

    def predict_files(
        self, source: Path | str | Sequence[Case], output: Path | str, options: FileOptions | None = None
    ) -> FilesOutcome:
        """Segment the cases of a folder; a bad case is reported and the others finish.

        Args:
            source: folder of images named as in imagesTr, one image file, or cases.
            output: folder for CASE.ext, and for plan.json, dataset.json and predict_args.json.

        Raises:
            SamunetError: no cases, missing channels (all are listed), or other arguments than before.
        """
        options = options or FileOptions()
        output = Path(output)
        _refuse_own_images(source, output)
        cases = self._cases(source)
        chosen = select_part(cases, options)
        present = [
            case for case in chosen if options.skip_existing and self._target(output, case.name).exists()
        ]
        self._leave_records(output, options)
        start = time.perf_counter()
        stages = CaseStages(
            prepare=lambda case: self._prepare(case, options.change),
            predict=lambda case: self.predict_preprocessed(case.image),
            export=lambda case, logits, ready: export_case(
                logits, ready.record, self.plan, self._target(output, case.name), options.save_probabilities
            ),
        )
        done, failed = run_cases([case for case in chosen if case not in present], stages)
        return FilesOutcome(
            output=output,
            done=tuple(done),
            skipped=tuple(case.name for case in present),
            failed=failed,
            seconds=time.perf_counter() - start,
        )

    def _cases(self, source: Path | str | Sequence[Case]) -> Sequence[Case]:
        if not isinstance(source, (str, Path)):
            return source
        path, ending, channels = Path(source), self.plan.file_ending, len(self.plan.channel_names)
        return (single_case(path, ending),) if path.is_file() else find_cases(path, ending, channels)

    def _prepare(self, case: Case, change: ChangeImage | None) -> PreprocessedCase:
        image, geometry = read_image(case.images)
        if change is not None:
            image = change(case.name, image, geometry)
        return self.preprocess(image, geometry, f"Case {case.name} ({case.images[0]})")

    def _target(self, output: Path, name: str) -> Path:
        return output / f"{name}{segmentation_ending(self.plan.file_ending)}"

    def _leave_records(self, output: Path, options: FileOptions) -> None:
        """Write what was predicted with what beside the predictions."""
        output.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "model": str(self.model_folder.resolve()),
            "configuration_hash": self.plan.configuration_hash(self.configuration.name),
            "folds": list(self.folds),
            "checkpoint": self.settings.checkpoint,
            "step_size": self.settings.step_size,
            "mirroring": self.settings.mirroring,
            "settings": dict(self.settings.changed),
        }
        check_arguments(output, arguments, continuing=options.skip_existing)
        self.plan.save(output / "plan.json")
        if (self.model_folder / "dataset.json").exists():
            write_json(output / "dataset.json", read_json(self.model_folder / "dataset.json"))

    def _as_case(self, array: np.ndarray, spacing_mm: Sequence[float] | None) -> tuple[np.ndarray, Geometry]:
        channels = len(self.plan.channel_names)
        flat = array.ndim == 2 or (array.ndim == 3 and spacing_mm is not None and len(spacing_mm) == 2)
        if flat:
            spacing_mm = (FLAT_SPACING_MM, *(spacing_mm or (1.0, 1.0))[-2:])
            array = array[..., None, :, :]
        image = array if array.ndim == 4 else array[None]
        if image.ndim != 4 or image.shape[0] != channels:
            raise SamunetError(
                f"The array has shape {array.shape}; expected (Z, Y, X) or (C, Z, Y, X) with C = {channels} "
                f"({', '.join(self.plan.channel_names)}), or for a 2D image (C, Y, X) with two spacings."
            )
        if spacing_mm is None or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise SamunetError(
                "spacing_mm: give the voxel size along z, y and x in millimetres, all above 0."
            )
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        z, y, x = map(float, spacing_mm)
        return image.astype(np.float32), Geometry(shape=shape, spacing_mm=(z, y, x), is_2d=flat)


def single_case(file: Path, file_ending: str) -> Case:
    """The case of one image file: that file, or all channels when its name has a channel suffix."""
    if not file.name.endswith(file_ending):
        raise SamunetError(f"{file}: this model was trained on files with the ending {file_ending}.")
    stem = file.name.removesuffix(file_ending)
    suffixed = CHANNEL_SUFFIX.fullmatch(stem)
    if suffixed is None:
        return Case(stem, (file,))
    return Case(
        suffixed[1], tuple(sorted(file.parent.glob(f"{suffixed[1]}_[0-9][0-9][0-9][0-9]{file_ending}")))
    )


def _refuse_own_images(source: Path | str | Sequence[Case], output: Path) -> None:
    """Predictions of CASE.nii.gz beside images of that name would replace the images."""
    if isinstance(source, (str, Path)):
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        if folder.resolve() == output.resolve():
            raise SamunetError(f"{output} holds the images; predictions need an output folder of their own.")


def _changed(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with other prediction settings."""
    if not settings:
        return checkpoint
    plan = apply_prediction_settings(checkpoint.plan, checkpoint.configuration, dict(settings))
    return replace(checkpoint, plan=plan)


def _share_encoder(members: list[tuple[Checkpoint, nn.Module]]) -> bool:
    """Give all folds the first one's encoder when it is the same frozen file; says whether it was."""
    files = {None if c.base_weights is None else c.base_weights.sha256 for c, _ in members}
    if len(members) < 2 or len(files) > 1 or None in files:
        return False
    first = members[0][1]
    if not hasattr(first, "encode"):  # parts of its encoder are trained, fold by fold
        return False
    for _, network in members[1:]:
        network.encoder = first.encoder
    return True
