"""nnU-Net's own trainer with its schedule fitted to minutes and a seed (found by nnUNet_extTrainer)."""

import copy
import os
import random
import time

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

LEAST_EPOCHS = 10
TIMED_STEPS = 4
BUDGET_SHARE = 0.95


class TimedTrainer(nnUNetTrainer):
    """PEER_MINUTES, PEER_SEED and PEER_BATCH say how long, which seed, and how many slices a step.

    A few steps are timed and undone, as samunet's --time_budget does it; then ten epochs of as many steps as
    fit, with nnU-Net's schedule over them. Its planned batch is made for a GPU: on two cores ten minutes of
    it are ten steps.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (the parent's own default, which it inspects)
    ):
        if "PEER_BATCH" in os.environ:
            plans = copy.deepcopy(plans)
            plans["configurations"][configuration]["batch_size"] = int(os.environ["PEER_BATCH"])
        super().__init__(plans, configuration, fold, dataset_json, device)
        # Prediction builds the class again without these variables: it needs neither.
        seed = int(os.environ.get("PEER_SEED", 0))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def on_train_start(self):
        begun = time.monotonic()
        super().on_train_start()
        seconds = 60 * float(os.environ.get("PEER_MINUTES", 10))
        before = copy.deepcopy(self.network.state_dict())
        self.network.train()
        durations = []
        for _ in range(TIMED_STEPS):
            started = time.monotonic()
            self.train_step(next(self.dataloader_train))
            durations.append(time.monotonic() - started)
        step = sum(durations[1:]) / len(durations[1:])
        left = BUDGET_SHARE * (seconds - (time.monotonic() - begun))
        # A validation step costs about a third of a training step.
        per_epoch = int(left / LEAST_EPOCHS / (step * 1.02))
        self.num_epochs = LEAST_EPOCHS
        self.num_iterations_per_epoch = max(1, per_epoch)
        self.num_val_iterations_per_epoch = max(1, per_epoch // 16)
        self.network.load_state_dict(before)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.print_to_log_file(f"{step:.2f} s a step: {self.num_epochs} x {self.num_iterations_per_epoch}")
