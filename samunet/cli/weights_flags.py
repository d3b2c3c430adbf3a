"""The flag -w: which weights are meant."""

from __future__ import annotations

import argparse
from pathlib import Path

from samunet.errors import SamunetError
from samunet.workspace import Workspace


def add_base_weights(group: argparse._ActionsContainer) -> None:
    """Add -w for trained models, whose checkpoints may leave out the frozen encoder of an official file."""
    group.add_argument(
        "-w",
        dest="weights",
        type=Path,
        metavar="WEIGHTS",
        help="weights that a model was trained on and leaves out: folder, file, or name of a file in the "
        "weights folder (default: $SAMUNET_WEIGHTS, or where it is not set the workspace's weights and "
        "~/.cache/samunet/weights; and the package)",
    )


def chosen_weights(arguments: argparse.Namespace, workspace: Workspace) -> Path | None:
    """The file that -w means, or a folder with files named after their encoders; None without -w.

    Raises:
        SamunetError: a folder without weights, or with several of which no name says whose they are.
    """
    from samunet.networks.sam.weight_files import named_weights, only_weights

    if arguments.weights is None:
        return None
    return only_weights(named_weights(workspace.weights, arguments.weights))


def base_weights(arguments: argparse.Namespace, workspace: Workspace) -> Path:
    """Folder or file with the weights that a trained model leaves out: of -w, else the workspace's folder.

    Raises:
        SamunetError: -w names nothing that is there.
    """
    from samunet.networks.sam.weight_files import named_weights

    if arguments.weights is None:
        return workspace.weights
    weights = named_weights(workspace.weights, arguments.weights)
    if not weights.exists():
        raise SamunetError(f"-w {weights}: there is no such file or folder.")
    return weights
