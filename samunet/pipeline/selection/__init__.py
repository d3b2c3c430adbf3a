"""Which trained model to use: comparison on out-of-fold cases, ensembles, postprocessing, selection.json."""

from samunet.pipeline.selection.record import Selection, load_selection

__all__ = ["Selection", "load_selection"]
