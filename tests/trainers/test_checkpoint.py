from __future__ import annotations

import random
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from tiny_runs import make_configuration, make_plan
from torch import nn

from samunet.errors import SamunetError
from samunet.trainers.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network_state,
    network_from_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)

METHOD = "examples.small_fcn"
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint() -> Checkpoint:
    configuration = make_configuration(METHOD)
    return Checkpoint(
        method=METHOD,
        trainer=f"{METHOD}:SmallFcnTrainer",
        configuration=METHOD,
        plan=make_plan(configuration),
        fold=1,
        epoch=3,
        network={"weight": torch.arange(3.0)},
        base_weights=None,
        seed=7,
        mirror_axes=(0, 1),
        overrides={"settings": {"epochs": 2}},
        training={"random": random_states(CPU), "ema": None},
    )


def test_round_trip_as_plain_data(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "checkpoint_latest.pth"
    save_checkpoint(path, checkpoint)
    assert torch.load(path, weights_only=True)["format"] == 1
    found = load_checkpoint(path)
    assert torch.equal(found.network.pop("weight"), checkpoint.network.pop("weight"))
    restore_random_states(found.training.pop("random"))
    checkpoint.training.pop("random")
    assert found == checkpoint
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(path, checkpoint)

    def fail(content: object, target: IO[bytes]) -> None:
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(path).epoch == 3


def test_files_that_are_no_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    with pytest.raises(SamunetError, match="There is no checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, checkpoint)
    content = path.read_bytes()
    for cut in (content[: len(content) // 2], content[:3], b"", b"not a checkpoint"):
        path.write_bytes(cut)
        with pytest.raises(SamunetError, match="cannot be read"):
            load_checkpoint(path)
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer"}, path)
    with pytest.raises(SamunetError, match="no checkpoint of this samunet"):
        load_checkpoint(path)


def test_state_must_fit_the_network(checkpoint: Checkpoint) -> None:
    with pytest.raises(SamunetError, match=r"keys are missing.*are foreign \['weight'\]"):
        network_from_checkpoint(checkpoint)
    with pytest.raises(SamunetError, match="size mismatch"):
        load_network_state(nn.Linear(2, 2), {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, None)


def test_random_states_continue() -> None:
    states = random_states(CPU)
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    restore_random_states(states)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first
