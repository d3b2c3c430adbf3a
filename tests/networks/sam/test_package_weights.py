"""The weights that lie in the package: whole, small, what their card says, and able to segment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from samunet.networks.sam import weight_files
from samunet.networks.sam.weight_files import DECODER_ENDING, ENCODER_ENDING
from samunet.networks.sam.weights import read_weights
from samunet.networks.sam.weights_card import read_card
from samunet.trainers.pretrain_source import Generated, PretrainSource
from samunet.trainers.pretraining import PretrainModule, PretrainNetwork, PretrainSettings
from samunet.trainers.sampling import VAL, SampleKey

FOLDER = Path(weight_files.__file__).with_name("shipped")
"""Named here, for the other tests know of no weights in the package."""
STEM = "samunet_vit_tiny"
MOST_BYTES = 25_000_000
UNSEEN_SEED = 20261128
PICTURES = 16


@pytest.fixture
def encoder_file() -> Path:
    return FOLDER / f"{STEM}{ENCODER_ENDING}"


def test_pair_and_card(encoder_file: Path) -> None:
    pair = (encoder_file, FOLDER / f"{STEM}{DECODER_ENDING}")
    assert sum(file.stat().st_size for file in pair) <= MOST_BYTES
    card = read_card(encoder_file)  # refuses one of other weights
    assert card is not None
    assert card.variant == "vit_tiny"
    assert {source.name for source in card.sources} == {"synthetic", "Dataset004_HaN_CT", "Dataset005_Nuclei"}
    assert card.excluded == {"Dataset004_HaN_CT": 24, "Dataset005_Nuclei": 52, "synthetic": 0}


def test_a_point_and_a_box_find_objects_that_were_never_seen(encoder_file: Path) -> None:
    """Random weights answer with an IoU of 0.05 to 0.1: hardly better than a blot around the prompt."""
    settings = PretrainSettings(tasks=("prompt",), weights=(1.0,), clicks=1)
    generated = Generated(seed=UNSEEN_SEED, size=settings.size)
    source = PretrainSource((generated,), (1.0,), settings)
    keys = [SampleKey(VAL, 0, number, False) for number in range(PICTURES)]
    batch = default_collate([source.sample(key) for key in keys])
    network = PretrainNetwork(settings, start=read_weights(encoder_file, "vit_tiny"))
    with torch.no_grad():
        found = PretrainModule(network, settings).eval()(batch)
    assert found["iou_first"] > 0.3
    assert found["iou_clicked"] > found["iou_first"]
