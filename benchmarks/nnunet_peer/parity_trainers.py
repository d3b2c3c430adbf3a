"""nnU-Net's own trainer with another length and a seed; nothing else differs (found by nnUNet_extTrainer)."""

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ParityTrainer(nnUNetTrainer):
    """Epochs and seed come from PARITY_EPOCHS and PARITY_SEED; threads from OMP_NUM_THREADS."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the parent's own default, which it inspects)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        # Prediction builds the class again without these variables: it needs neither.
        self.num_epochs = int(os.environ.get("PARITY_EPOCHS", self.num_epochs))
        seed = int(os.environ.get("PARITY_SEED", 0))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
