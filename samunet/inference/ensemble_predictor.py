"""EnsemblePredictor: several configurations, each with its folds, as one predictor.

Folds are averaged as logits at the spacing of their network; configurations as probabilities in the original
frame, slab by slab with all classes. So 2D and 3D configurations mix, and no probabilities of the whole image
are ever held.

ensemble = EnsemblePredictor.load(["results/Dataset101_Liver/2d_cnn__samunetPlans", ...])
segmentation = ensemble.predict(array_zyx, spacing_mm=(5.0, 0.8, 0.8)).segmentation
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samunet.data.cases import Case
from samunet.data.geometry import Geometry, in_all_channels
from samunet.data.readers import read_image
from samunet.errors import SamunetError
from samunet.evaluation.declared import labels_text
from samunet.inference.arrays import Prediction, as_image, prediction_of
from samunet.inference.case_features import FeatureWriter
from samunet.inference.export import finished, write_case
from samunet.inference.files import ChangeImage, FileOptions, FilesOutcome
from samunet.inference.folder import FolderTask, Target, predict_folder
from samunet.inference.forward import Forward
from samunet.inference.logit_storage import Logits, LogitsOnDisk
from samunet.inference.pass_statistics import PassFigures, PassStatistics, mean_figures
from samunet.inference.predictor import Predictor, arguments_of
from samunet.inference.sharing import one_pass
from samunet.inference.sliding_window import Room
from samunet.planning.plan import Plan
from samunet.preprocessing.case import PreprocessedCase, SpatialRecord
from samunet.preprocessing.restore import (
    SLAB_BYTES,
    Writable,
    decide_labels,
    empty_segmentation,
    fill_outside,
    restored_slabs,
    to_probabilities,
)
from samunet.workspace import Fold

PreparedCase = dict[str, PreprocessedCase]
"""Data hash -> the case as that data configuration has it."""
Observed = tuple[list["MemberLogits"], dict[str, PassFigures]]
"""Logits of the members, and figures by class of the single passes of all networks."""


@dataclass(frozen=True, kw_only=True)
class MemberLogits:
    """What one configuration says of a case.

    Attributes:
        logits: (K, Z, Y, X) on the grid of its network.
        record: how to get back to the file's grid.
        plan: gives transpose and labels.
    """

    logits: Logits
    record: SpatialRecord
    plan: Plan


class EnsemblePredictor:
    """Several configurations of one dataset; reads and writes files in threads, starts no processes.

    Attributes:
        members: the configurations, each with its folds.
        groups: members that share every pass of one frozen encoder.
    """

    def __init__(self, members: Iterable[Predictor]) -> None:
        """Of a generator that loads the members, no more than two copies of an encoder are ever held."""
        found: list[Predictor] = []
        groups: list[list[Predictor]] = []
        for member in members:
            found.append(member)
            _put_by_encoder(member, groups)
        _check_alike(found)
        self.members = tuple(found)
        self.groups = tuple(map(tuple, groups))
        self._forwards = [_forward(group) for group in self.groups]
        self.plan = found[0].plan

    @classmethod
    def load(
        cls, model_folders: Sequence[Path | str], folds: Sequence[Fold] | None = None, **settings: Any
    ) -> EnsemblePredictor:
        """Load several model folders.

        Args:
            model_folders: results/DATASET/CONFIGURATION__PLANS, of any configurations.
            folds: which of each to average; None takes every trained fold.
            settings: keyword arguments of `Predictor.load`.

        Raises:
            SamunetError: what `Predictor.load` refuses, no list, a folder given twice, or models of other
                labels or channels.
        """
        if isinstance(model_folders, (str, Path)):
            raise SamunetError(f"An ensemble is of several models: give a list, not {model_folders} alone.")
        resolved = [str(Path(folder).resolve()) for folder in model_folders]
        twice = sorted({folder for folder in resolved if resolved.count(folder) > 1})
        if twice:
            raise SamunetError(f"A model counts once in an ensemble; given twice: {', '.join(twice)}.")
        return cls(Predictor.load(folder, folds, **settings) for folder in model_folders)

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    @property
    def num_mirrorings(self) -> int:
        """Most passes of a network per tile."""
        return max(member.num_mirrorings for member in self.members)

    def describe(self) -> str:
        """Which models, folds and settings, a line each; and which share their encoder."""
        lines = [f"Ensemble of {len(self.members)} configurations, probabilities averaged:"]
        lines += [f"  {member.describe()}" for member in self.members]
        for group in self.groups:
            if len(group) > 1:
                names = ", ".join(member.configuration.name for member in group)
                lines.append(f"  One pass of the encoder serves {names}.")
        return "\n".join(lines)

    def predict(
        self, array: np.ndarray, spacing_mm: Sequence[float] | None = None, *, probabilities: bool = False
    ) -> Prediction:
        """Segment one array; see `Predictor.predict`.

        Raises:
            SamunetError: shape, channels or spacing do not fit.
        """
        image, geometry = as_image(np.asarray(array), spacing_mm, self.plan.channel_names)
        found = self.predict_prepared(self.preprocess(image, geometry, "The array"))
        shape = (self.plan.labels.num_outputs, *geometry.shape)
        chances = np.empty(shape, np.float32) if probabilities else None
        segmentation = restore_mean(found, chances)
        return prediction_of(segmentation, chances, self.plan, flat=geometry.is_2d)

    def predict_files(
        self, source: Path | str | Sequence[Case], output: Path | str, options: FileOptions | None = None
    ) -> FilesOutcome:
        """Segment the cases of a folder; see `Predictor.predict_files`."""
        options = options or FileOptions()
        arguments = arguments_of(self.members, options)
        features = FeatureWriter(self.plan, Path(output), arguments)

        def export(result: Observed, case: PreparedCase, target: Target) -> None:
            found, passes = result
            written = _export(found, target)
            features.write(target.case, written, found[0].record.geometry, passes)

        task = FolderTask(
            file_ending=self.plan.file_ending,
            num_channels=len(self.plan.channel_names),
            arguments=arguments,
            records=self.members[0].dataset_record(),
            prepare=lambda case: self._prepare(case, features, options.change),
            predict=self.predict_observed,
            export=export,
        )
        return predict_folder(task, source, output, options)

    def preprocess(self, image: np.ndarray, geometry: Geometry, where: str) -> PreparedCase:
        """Preprocess an image (C, Z, Y, X) once for each data configuration."""
        prepared: PreparedCase = {}
        for member in self.members:
            key = _data_key(member)
            if key not in prepared:
                prepared[key] = member.preprocess(image, geometry, where)
        return prepared

    def predict_prepared(self, case: PreparedCase, storage: Room | None = None) -> list[MemberLogits]:
        """Mean logits of each configuration's folds, in the order of the groups."""
        return [
            found
            for group, forward in zip(self.groups, self._forwards)
            for found in _predict_group(group, forward, case, storage)
        ]

    def predict_observed(self, case: PreparedCase, storage: Room | None = None) -> Observed:
        """The same logits, and what the single passes of all networks say about the case."""
        found, passes = [], []
        for group, forward in zip(self.groups, self._forwards):
            image = case[_data_key(group[0])].image
            seen = PassStatistics(self.plan.labels, group[0].window, image.shape)
            found += _predict_group(group, forward, case, storage, seen)
            passes.append((seen.figures(), sum(len(member.networks) for member in group)))
        return found, mean_figures(passes)

    def _prepare(self, case: Case, features: FeatureWriter, change: ChangeImage | None) -> PreparedCase:
        image, geometry = read_image(case.images)
        if change is not None:
            image = change(case.name, image, geometry)
        prepared = self.preprocess(image, geometry, f"Case {case.name} ({case.images[0]})")
        features.measure(case, image, prepared[_data_key(self.members[0])].record)
        return prepared


def restore_mean(members: Sequence[MemberLogits], out: Writable | None = None) -> np.ndarray:
    """Average the members' probabilities in the file's grid and decide, slab by slab.

    Args:
        members: of one case.
        out: (K, Z, Y, X), filled with the mean where given; usually on disk.

    Returns:
        The segmentation (Z, Y, X): the class with the largest mean probability (of equal ones the first),
        or every region whose mean is above one half.
    """
    first, labels = members[0], members[0].plan.labels
    segmentation = empty_segmentation(first.record.geometry.shape, labels)
    if out is not None and first.record.shape_after_crop != first.record.shape_before_crop:
        fill_outside(out, labels)
    # Each stream keeps a slab, so that all together are as large as one.
    size = SLAB_BYTES // len(members)
    streams = [restored_slabs(m.logits, m.record, m.plan, size) for m in members]
    with torch.inference_mode():
        for where, slab in streams[0]:
            mean = to_probabilities(slab, labels)
            for stream in streams[1:]:
                place, slab = next(stream)
                assert place == where, (place, where)
                mean += to_probabilities(slab, labels)
            mean /= len(members)
            segmentation[where] = decide_labels(mean, labels, threshold=0.5)
            if out is not None:
                out[in_all_channels(where)] = mean.cpu().numpy()
    return segmentation


def _export(found: list[MemberLogits], target: Target) -> np.ndarray:
    labels, geometry, options = found[0].plan.labels, found[0].record.geometry, target.options
    fill = finished(lambda out: restore_mean(found, out), geometry, options.postprocessing)
    return write_case(target.file, labels, geometry, options.save_probabilities, fill)


def _predict_group(
    group: tuple[Predictor, ...],
    forward: Forward,
    case: PreparedCase,
    storage: Room | None,
    observer: PassStatistics | None = None,
) -> list[MemberLogits]:
    """What each member of a group says, by one pass over the tiles."""
    ready = case[_data_key(group[0])]
    logits = _apart(forward(ready.image, storage, observer), len(group))
    return [
        MemberLogits(logits=own, record=ready.record, plan=member.plan) for member, own in zip(group, logits)
    ]


def _forward(group: tuple[Predictor, ...]) -> Forward:
    """One pass over the tiles for all members of a group."""
    window = group[0].window
    if len(group) > 1:
        sizes = tuple(len(member.networks) for member in group)
        window = replace(window, shared_encoder=True, group_sizes=sizes)
    networks = [network for member in group for network in member.networks]
    return Forward(networks, window, [member.model_folder for member in group])


def _apart(together: Logits, groups: int) -> list[Logits]:
    """The logits (groups K, Z, Y, X) of each member."""
    count = together.shape[0] // groups
    bounds = [(number * count, (number + 1) * count) for number in range(groups)]
    if isinstance(together, LogitsOnDisk):
        return [together.classes(first, stop) for first, stop in bounds]
    return [together[first:stop] for first, stop in bounds]


def _put_by_encoder(member: Predictor, groups: list[list[Predictor]]) -> None:
    """Add a member to those that one pass of an encoder serves too; they then hold that encoder once."""
    fitting = next((group for group in groups if _one_pass(group[0], member)), None)
    if fitting is None:
        groups.append([member])
        return
    fitting.append(member)
    for network in member.networks:
        network.encoder = fitting[0].networks[0].encoder


def _one_pass(one: Predictor, other: Predictor) -> bool:
    """Whether both see the same tiles and the same frozen encoder."""
    if not all(member.shared_encoder or len(member.networks) == 1 for member in (one, other)):
        return False
    same_window = replace(one.window, shared_encoder=False) == replace(other.window, shared_encoder=False)
    firsts = [(member.base_weights, member.networks[0]) for member in (one, other)]
    return same_window and _data_key(one) == _data_key(other) and one_pass(*firsts)


def _data_key(member: Predictor) -> str:
    return member.plan.data_hash(member.configuration.data)


def _check_alike(members: Sequence[Predictor]) -> None:
    """Models can be averaged when they have the same classes, channels and kind of file.

    Raises:
        SamunetError: one message with everything that differs.
    """
    if not members:
        raise SamunetError("An ensemble needs one model or more.")
    first, faults = members[0].plan, []
    for member in members[1:]:
        plan, name = member.plan, member.model_folder
        if not plan.labels.means_the_same(first.labels):
            faults.append(
                f"{name} has the labels {labels_text(plan.labels)}, not {labels_text(first.labels)}"
            )
        if plan.channel_names != first.channel_names:
            channels = ", ".join(plan.channel_names)
            faults.append(f"{name} has the channels {channels}, not {', '.join(first.channel_names)}")
        if plan.file_ending != first.file_ending:
            faults.append(f"{name} reads {plan.file_ending} files, not {first.file_ending}")
    if faults:
        raise SamunetError(
            f"These models cannot be averaged with {members[0].model_folder}: {'; '.join(faults)}. "
            "Choose models of one dataset."
        )
