"""Predictor: the trained folds of one configuration, on arrays or files. Usable in a notebook as it is.

predictor = Predictor.load("results/Dataset101_Liver/2d_cnn__samunetPlans")
segmentation = predictor.predict(array_zyx, spacing_mm=(5.0, 0.8, 0.8)).segmentation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from samunet.data.cases import Case
from samunet.data.geometry import Geometry
from samunet.data.readers import read_image
from samunet.errors import SamunetError
from samunet.inference.arrays import Prediction, as_image, prediction_of
from samunet.inference.case_features import FeatureWriter
from samunet.inference.export import export_case
from samunet.inference.files import ChangeImage, FileOptions, FilesOutcome
from samunet.inference.folder import FolderTask, Target, predict_folder
from samunet.inference.folds import check_alike, checkpoint_file, find_folds
from samunet.inference.forward import Forward
from samunet.inference.logit_storage import Logits
from samunet.inference.pass_statistics import PassStatistics
from samunet.inference.sharing import share_encoder
from samunet.inference.sliding_window import Room, WindowSettings
from samunet.networks.sam.weight_files import file_sha256
from samunet.planning.plan import Configuration, Plan, WeightsUsed
from samunet.planning.sam_options import ENCODE_BATCH
from samunet.preprocessing.case import PreprocessedCase, preprocess_case
from samunet.preprocessing.restore import restore_probabilities, restore_segmentation
from samunet.records import read_json, to_data
from samunet.trainers import get_trainer
from samunet.trainers.base import config_of
from samunet.trainers.checkpoint import Checkpoint, network_from_checkpoint
from samunet.trainers.devices import Precision, choose_device
from samunet.trainers.identity import read_run
from samunet.trainers.portable import load_trained, shared_checkpoint
from samunet.trainers.settings import apply_prediction_settings, differing_settings
from samunet.workspace import DATASET_FILE, FINAL, PLAN_FILE, Fold, Workspace, fold_folder

MOST_TILES = 16
"""Of a network without a SAM encoder in one pass: more do not make a GPU faster."""


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
    checkpoint: str = FINAL
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.step_size <= 1:
            raise SamunetError(f"step_size={self.step_size:g}: give a share of the tile above 0, at most 1.")


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
        trained: Mapping[Fold, str],
    ) -> None:
        first = next(iter(members.values()))[0]
        self.model_folder = model_folder
        self.folds = tuple(members)
        self.plan: Plan = first.plan
        self.configuration: Configuration = first.plan.configuration(first.configuration)
        self.settings = settings
        self.trained = {str(fold): trained[fold] for fold in members}
        self.base_weights = first.base_weights
        self.shared_encoder = share_encoder([(c.base_weights, network) for c, network in members.values()])
        self.networks = [network.to(settings.device).eval() for _, network in members.values()]
        mirrored = [set(checkpoint.mirror_axes) for checkpoint, _ in members.values()]
        self.mirror_axes = tuple(sorted(set.intersection(*mirrored)))

    @classmethod
    def load(
        cls,
        model_folder: Path | str,
        folds: Sequence[Fold] | Fold | None = None,
        checkpoint: str = FINAL,
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
            folds: which to average, or one (`0`, `"all"`); None takes every fold that has the checkpoint.
            checkpoint: file name in each fold's folder.
            device: `cuda`, `mps`, `cpu`; None or `auto` takes CUDA, else the CPU.
            step_size: tile step over tile size.
            mirroring: test-time augmentation by mirroring.
            weights_folder: official encoder files, for checkpoints that leave a frozen encoder out; None
                takes the workspace's folder.
            settings: of the method, in place of the training's: those that it allows to change
                (`Method.prediction_settings`), such as `grid_side` of `2d_desam`. Ones that repeat what
                the training had change nothing.

        Raises:
            SamunetError: no such folder, fold or checkpoint; folds of different configurations; a setting
                that training has fixed, or out of its range.
        """
        folds = (folds,) if isinstance(folds, (int, str)) else folds
        if folds is not None and not folds:
            raise SamunetError("folds: name one or more, or give None for all that are trained.")
        folder = Path(model_folder)
        checkpoint = shared_checkpoint(folder, checkpoint)
        chosen = PredictorSettings(
            device=choose_device(device),
            step_size=step_size,
            mirroring=mirroring,
            checkpoint=checkpoint,
        )
        weights = weights_folder or Workspace.find().weights
        members: dict[Fold, tuple[Checkpoint, nn.Module]] = {}
        trained: dict[Fold, str] = {}
        changed: dict[str, Any] = {}
        for fold in find_folds(folder, checkpoint) if folds is None else folds:
            file = checkpoint_file(folder, fold, checkpoint)
            stored = load_trained(file)
            trained[fold] = file_sha256(file)[:16]
            changed = differing_settings(stored.plan, stored.configuration, settings or {})
            network = network_from_checkpoint(_changed(stored, changed), weights)
            if members:
                # At once, so that a large frozen encoder is not held once a fold.
                first, shared = next(iter(members.values()))
                share_encoder([(first.base_weights, shared), (stored.base_weights, network)])
            members[fold] = (replace(stored, network={}, training={}), network)
        check_alike(folder, {fold: stored for fold, (stored, _) in members.items()})
        return cls(folder, members, replace(chosen, changed=changed), trained)

    @property
    def device(self) -> torch.device:
        return self.settings.device

    @property
    def num_mirrorings(self) -> int:
        """Passes of the network per tile."""
        return 2 ** len(self.mirror_axes) if self.settings.mirroring else 1

    @cached_property
    def weights(self) -> WeightsUsed | None:
        """What the first fold started from, as its run.json says, else its checkpoint's plan."""
        with suppress(SamunetError):  # a broken record is no reason not to predict
            run = read_run(fold_folder(self.model_folder, self.folds[0]))
            if run is not None:
                return run.weights
        return self.plan.weights.get(self.configuration.encoder or "")

    def describe(self) -> str:
        """Which model, folds, settings and weights of the encoder, in one line."""
        used = self.weights
        stands = (
            "" if used is None else f", encoder from {used.kind} weights {used.file} ({used.sha256[:12]}...)"
        )
        folds = ", ".join(map(str, self.folds))
        mirroring = (
            f"mirroring over {self.num_mirrorings} flips" if self.num_mirrorings > 1 else "no mirroring"
        )
        changed = "".join(f", {key}={value}" for key, value in self.settings.changed.items())
        return (
            f"{self.model_folder.name}: fold{'s' * (len(self.folds) > 1)} {folds} "
            f"({self.settings.checkpoint}) on {self.device.type}, step {self.settings.step_size:g}, "
            f"{mirroring}{changed}{stands}."
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
        image, geometry = as_image(np.asarray(array), spacing_mm, self.plan.channel_names)
        case = self.preprocess(image, geometry, "The array")
        logits, chances = self.predict_preprocessed(case.image), None
        if probabilities:
            chances = np.empty((self.plan.labels.num_outputs, *geometry.shape), np.float32)
            segmentation = restore_probabilities(logits, case.record, self.plan, chances)
        else:
            segmentation = restore_segmentation(logits, case.record, self.plan)
        return prediction_of(segmentation, chances, self.plan, flat=geometry.is_2d)

    def preprocess(self, image: np.ndarray, geometry: Geometry, where: str) -> PreprocessedCase:
        """Preprocess an image (C, Z, Y, X) as the plan says."""
        data = self.plan.data_of(self.configuration)
        return preprocess_case(image, None, geometry, self.plan, data, where)

    def predict_preprocessed(
        self, image: np.ndarray, storage: Room | None = None, observer: PassStatistics | None = None
    ) -> Logits:
        """Mean logits (K, Z, Y, X) float32 on the CPU of a preprocessed image (C, Z, Y, X).

        Args:
            image: float32.
            storage: gives room for the logits; None takes a tensor in memory.
            observer: sees every single pass.

        Raises:
            SamunetError: they are not finite, or there is too little memory.
        """
        return self._forward(image, storage, observer)

    def predict_observed(
        self, image: np.ndarray, storage: Room | None = None
    ) -> tuple[Logits, PassStatistics]:
        """The same logits, and what the single passes say about the case."""
        passes = PassStatistics(self.plan.labels, self.window, image.shape)
        return self.predict_preprocessed(image, storage, passes), passes

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self.networks, self.window, (self.model_folder,))

    @property
    def window(self) -> WindowSettings:
        """How tiles are laid over a preprocessed image."""
        return WindowSettings(
            patch_size=self.configuration.patch_size,
            step_size=self.settings.step_size,
            mirror_axes=self.mirror_axes if self.settings.mirroring else (),
            batch_size=self._tiles_at_once(),
            slice_context=getattr(config_of(self.configuration), "slice_context", 0),
            shared_encoder=self.shared_encoder,
            device=self.device,
            precision=Precision.for_prediction(
                self.device,
                get_trainer(self.configuration.method).precision,
                config_of(self.configuration).precision,
            ),
        )

    def _tiles_at_once(self) -> int:
        """Tiles in one pass: as many as were planned for; few on a CPU, where more only take memory."""
        if len(self.configuration.patch_size) == 3:
            return 1
        if self.device.type != "cuda" or self.configuration.encoder is not None:
            return ENCODE_BATCH
        return min(MOST_TILES, self.configuration.batch_size)

    def predict_files(
        self, source: Path | str | Sequence[Case], output: Path | str, options: FileOptions | None = None
    ) -> FilesOutcome:
        """Segment the cases of a folder; a bad case is reported and the others finish.

        Args:
            source: folder of images named as in imagesTr, one image file, or cases.
            output: folder for CASE.ext, for plan.json, dataset.json and predict_args.json, and for
                qc_features/CASE.json.

        Raises:
            SamunetError: no cases, missing channels (all are listed), or other arguments than before.
        """
        options = options or FileOptions()
        arguments = arguments_of([self], options)
        features = FeatureWriter(self.plan, Path(output), arguments)

        def export(result: tuple[Logits, PassStatistics], ready: PreprocessedCase, target: Target) -> None:
            logits, passes = result
            kept, rules = target.options.save_probabilities, target.options.postprocessing
            written = export_case(logits, ready.record, self.plan, target.file, kept, rules)
            features.write(target.case, written, ready.record.geometry, passes.figures())

        task = FolderTask(
            file_ending=self.plan.file_ending,
            num_channels=len(self.plan.channel_names),
            arguments=arguments,
            records={PLAN_FILE: self.plan, **self.dataset_record()},
            prepare=lambda case: self._prepare(case, features, options.change),
            predict=lambda ready, storage: self.predict_observed(ready.image, storage),
            export=export,
        )
        return predict_folder(task, source, output, options)

    def _prepare(self, case: Case, features: FeatureWriter, change: ChangeImage | None) -> PreprocessedCase:
        image, geometry = read_image(case.images)
        if change is not None:
            image = change(case.name, image, geometry)
        ready = self.preprocess(image, geometry, f"Case {case.name} ({case.images[0]})")
        features.measure(case, image, ready.record)
        return ready

    def dataset_record(self) -> dict[str, Any]:
        """dataset.json of the model folder, by its name; empty where there is none."""
        file = self.model_folder / DATASET_FILE
        return {file.name: read_json(file)} if file.exists() else {}


def arguments_of(predictors: Sequence[Predictor], options: FileOptions) -> dict[str, Any]:
    """Content of predict_args.json: which models, how tiles were laid and averaged, which rules followed."""
    rules = () if options.postprocessing is None else options.postprocessing.rules
    return {
        "models": [
            {
                "model": str(predictor.model_folder.resolve()),
                "configuration_hash": predictor.plan.configuration_hash(predictor.configuration.name),
                "folds": list(predictor.folds),
                "checkpoint": predictor.settings.checkpoint,
                "trained": predictor.trained,
                "weights": to_data(predictor.weights),
                "settings": dict(predictor.settings.changed),
            }
            for predictor in predictors
        ],
        "step_size": predictors[0].settings.step_size,
        "mirroring": predictors[0].settings.mirroring,
        "postprocessing": to_data(rules),
    }


def _changed(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with other prediction settings."""
    if not settings:
        return checkpoint
    plan = apply_prediction_settings(checkpoint.plan, checkpoint.configuration, dict(settings))
    return replace(checkpoint, plan=plan)
