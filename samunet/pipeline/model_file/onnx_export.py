"""A trained model as ONNX: a file a fold, checked against PyTorch, and a JSON that describes the rest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from samunet import __version__
from samunet.errors import SamunetError
from samunet.inference.postprocessing import Postprocessing
from samunet.inference.predictor import Predictor
from samunet.networks.sam.weight_files import file_sha256
from samunet.pipeline.model_file.lineage import origins_of
from samunet.pipeline.model_file.onnx_network import OPSET, write_onnx
from samunet.pipeline.model_file.onnx_parity import (
    LEAST_AGREEMENT,
    NUM_TILES,
    Parity,
    compare,
    import_onnxruntime,
    real_tiles,
)
from samunet.pipeline.model_file.onnx_sidecar import (
    OnnxFile,
    Sidecar,
    input_tensors,
    output_tensors,
    steps_after,
    steps_before,
    steps_inside,
)
from samunet.pipeline.model_file.selected import Selected, SelectionFiles, selected
from samunet.planning.methods import get_method, list_methods
from samunet.records import write_json
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.identity import read_run
from samunet.trainers.portable import WeightsOrigin, is_shared_model, read_model
from samunet.whole_files import replace_path
from samunet.workspace import FINAL, POSTPROCESSING_FILE, Fold, fold_folder

VOLUME_METHODS = ("3d_unet",)
"""Methods on volumes that can be exported; of the 2D methods all can."""


@dataclass(frozen=True, kw_only=True)
class OnnxRequest:
    """A model to be written as ONNX.

    Attributes:
        model_folder: trained or installed.
        output: FILE.onnx; with several folds FILE_fold_K.onnx are written. The JSON is FILE.json.
        images: folder of images as in imagesTr, to compare ONNX and PyTorch on.
        folds: None takes every fold.
        num_tiles: to compare on.
        selection: of the dataset; rules that it learned for this model go into the JSON.
    """

    model_folder: Path
    output: Path
    images: Path
    folds: tuple[Fold, ...] | None = None
    checkpoint: str = FINAL
    weights_folder: Path | None = None
    num_tiles: int = NUM_TILES
    selection: SelectionFiles | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class OnnxOutcome:
    """What was written, and in `remarks` what a reader should know."""

    folder: Path
    sidecar: Path
    files: tuple[OnnxFile, ...]
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """Files and parity in plain words."""
        lines = [f"{self.folder / file.file}: {file.parity.text()}." for file in self.files]
        return "\n".join([*lines, f"Pre- and postprocessing: {self.sidecar}", *self.remarks])


def export_onnx(request: OnnxRequest) -> OnnxOutcome:
    """Write FILE.onnx and FILE.json; a file that does not give what PyTorch gives is not kept.

    Raises:
        SamunetError: the packages are missing, the method cannot be exported, no images to compare on, a file
            exists, or the two disagree.
    """
    if request.output.suffix != ".onnx":
        raise SamunetError(f"-o {request.output}: with --onnx the file needs the ending .onnx.")
    import_onnxruntime()
    predictor = Predictor.load(
        request.model_folder,
        folds=request.folds,
        checkpoint=request.checkpoint,
        device="cpu",
        mirroring=True,
        weights_folder=request.weights_folder,
    )
    _check_method(predictor.configuration.method)
    targets = _targets(request, predictor)
    tiles, cases = real_tiles(predictor, request.images, request.num_tiles)
    files = []
    sidecar = request.output.with_suffix(".json")
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.output.parent, prefix=".onnx_") as scratch:
        for (fold, target), network in zip(targets.items(), predictor.networks):
            fresh = Path(scratch) / target.name
            write_onnx(network, input_tensors(predictor).shape, fresh)
            parity = compare(fresh, network, tiles, cases=cases, regions=predictor.plan.labels.has_regions)
            _check_parity(parity, target)
            files.append(OnnxFile(file=target.name, fold=fold, sha256=file_sha256(fresh), parity=parity))
        chosen = _selected(request, predictor.configuration.name)
        described = _sidecar(request, predictor, tuple(files), chosen.postprocessing)
        write_json(Path(scratch) / sidecar.name, described)
        sidecar.unlink(missing_ok=True)  # of other files: better none beside the new ones for a moment
        for target in (*targets.values(), sidecar):
            replace_path(Path(scratch) / target.name, target)
    return OnnxOutcome(
        folder=request.output.parent,
        sidecar=sidecar,
        files=tuple(files),
        remarks=(chosen.remark,) if chosen.remark else (),
    )


def _check_method(method: str) -> None:
    if get_method(method).dimension == 2 or method in VOLUME_METHODS:
        return
    able = [name for name, m in list_methods().items() if m.dimension == 2] + list(VOLUME_METHODS)
    raise SamunetError(
        f"{method} cannot be written as ONNX; these can: {', '.join(sorted(able))}. Share it as a .zip "
        "(without --onnx)."
    )


def _targets(request: OnnxRequest, predictor: Predictor) -> dict[Fold, Path]:
    """File of each fold; refuses files that exist."""
    output = request.output
    several = len(predictor.folds) > 1
    targets = {
        fold: output.with_name(f"{output.stem}_fold_{fold}.onnx") if several else output
        for fold in predictor.folds
    }
    there = [str(p) for p in (*targets.values(), output.with_suffix(".json")) if p.exists()]
    if there and not request.overwrite:
        raise SamunetError(
            f"{', '.join(there)} exist already. Choose another name, or replace them with --overwrite."
        )
    return targets


def _check_parity(parity: Parity, target: Path) -> None:
    if parity.agreement < LEAST_AGREEMENT:
        raise SamunetError(
            f"{target.name} was not kept: it does not give what PyTorch gives ({parity.text()}). At least "
            f"{LEAST_AGREEMENT:.1%} of the voxels must agree; try other versions of torch or onnxruntime "
            f"(here {torch.__version__}, {parity.runtime})."
        )


def _sidecar(
    request: OnnxRequest, predictor: Predictor, files: tuple[OnnxFile, ...], rules: Postprocessing | None
) -> Sidecar:
    plan, configuration = predictor.plan, predictor.configuration
    labels = plan.labels
    return Sidecar(
        samunet=__version__,
        torch=torch.__version__,
        opset=OPSET,
        dataset=plan.dataset,
        configuration=configuration.name,
        method=configuration.method,
        configuration_hash=plan.configuration_hash(configuration.name),
        files=files,
        input=input_tensors(predictor),
        output=output_tensors(predictor),
        outputs_are="regions" if labels.has_regions else "exclusive classes",
        labels=dict(labels.labels),
        ignore_label=labels.ignore,
        mirror_axes=predictor.mirror_axes,
        steps_before=steps_before(predictor),
        steps_inside=steps_inside(predictor),
        steps_after=steps_after(predictor),
        postprocessing=rules,
        weights=_origins(request, predictor),
    )


def _selected(request: OnnxRequest, configuration: str) -> Selected:
    """Rules of an installed model, or those that a selection learned for a trained one."""
    file = request.model_folder / POSTPROCESSING_FILE
    if file.is_file():
        return Selected(postprocessing=Postprocessing.load(file))
    if request.selection is None:
        return Selected()
    _, plans, *tag = request.model_folder.resolve().name.split("__")
    return selected(request.selection, configuration, plans, tag[0] if tag else None)


def _origins(request: OnnxRequest, predictor: Predictor) -> tuple[WeightsOrigin, ...]:
    """Pretrained weights that are inside; ONNX files leave nothing out."""
    folder = request.model_folder
    if is_shared_model(folder):
        return tuple(
            replace(w, place="stored") if w.place == "left out" else w for w in read_model(folder).weights
        )
    folds = {fold: fold_folder(folder, fold) for fold in predictor.folds}
    stored = {fold: load_checkpoint(path / predictor.settings.checkpoint) for fold, path in folds.items()}
    runs = {fold: read_run(path) for fold, path in folds.items()}
    return origins_of(stored, runs, request.weights_folder, include_base=True)
