"""What `samunet_predict -c best` predicts with: the members of the selection, with their folds and
checkpoints."""

from __future__ import annotations

from typing import Any

from samunet.inference.ensemble_predictor import EnsemblePredictor
from samunet.inference.predictor import Predictor
from samunet.pipeline.selection.record import Selection
from samunet.workspace import Workspace


def load_recommended(
    workspace: Workspace, selection: Selection, **settings: Any
) -> Predictor | EnsemblePredictor:
    """Load the recommended models.

    Args:
        workspace: where they lie.
        selection: of `load_selection`; its `postprocessing` belongs into the FileOptions of the prediction.
        settings: keyword arguments of `Predictor.load`, without folds and checkpoint; its own `settings` are
            put over those that the members were scored with.

    Raises:
        SamunetError: a model, a fold or its checkpoint is gone.
    """
    given = settings.pop("settings", None) or {}
    loaded = (
        Predictor.load(
            workspace.model_folder(selection.dataset, member.configuration, member.plans, member.tag),
            member.folds,
            member.checkpoint,
            settings={**member.settings, **given},
            **settings,
        )
        for member in selection.recommended
    )
    return next(loaded) if len(selection.recommended) == 1 else EnsemblePredictor(loaded)
