"""Training set-ups that range tests run on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny import (
    OPTIMIZERS,
    Noisy,
    bits,
    cross_entropy,
    make_batches,
    make_model,
    trace,
    train,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

import lrfast
from lrfast import FineTuner, lr_find, schedules


@dataclass
class Setup:
    """A training run with all that may keep a trace."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[Any]
    scheduler: LRScheduler | None

    def train(self, steps: int) -> list[Tensor]:
        return train(self.model, self.optimizer, self.loader, steps, self.scheduler)

    def trace(self) -> dict[str, Any]:
        generator = self.loader.generator
        order = None if generator is None else bits(generator.get_state())
        others = [] if self.scheduler is None else [self.scheduler]
        return trace(self.model, self.optimizer, others) | {"order": order}


def build(kind: str, schedule: str = "none", own_generator: bool = True) -> Setup:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    model = make_model()
    model[0].bias.requires_grad_(False)
    optimizer: Any = OPTIMIZERS[kind](lrfast.discriminative(model, [0.01, 0.02, 0.05]))
    if schedule == "ours":
        optimizer.set_schedule(schedules.one_cycle(40))
    generator = torch.Generator().manual_seed(6) if own_generator else None
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)
    scheduler = OneCycleLR(optimizer, [0.1] * 3, 40) if schedule == "torch" else None
    return Setup(model, optimizer, loader, scheduler)


class Bench:
    """What the bad calls are made on: a model in training, with three layer groups."""

    def __init__(self, kind: str = "adamw") -> None:
        self.model = make_model()
        self.batches = make_batches(4)
        self.one_layer = nn.Linear(4, 3)
        self.sparse = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 3))
        optimizers: list[torch.optim.Optimizer] = []

        def make(groups: Any) -> torch.optim.Optimizer:
            optimizers.append(OPTIMIZERS[kind](groups))
            return optimizers[0]

        self.tuner = FineTuner(
            self.model, self.batches, loss_fn=cross_entropy, optimizer=make, progress=False
        )
        self.optimizer = optimizers[0]
        self.tuner.fit_one_cycle(1, 0.01)

    def find(self, train_loader: Any = None, loss_fn: Any = cross_entropy, **options: Any) -> Any:
        options = {"num_iter": 8, "progress": False} | options
        train_loader = self.batches if train_loader is None else train_loader
        return lr_find(self.model, self.optimizer, train_loader, loss_fn, **options)

    def find_with(self, **group: Any) -> Any:
        """A range test with a param group's entry gone wrong, which is put right afterwards."""
        before = [dict(g) for g in self.optimizer.param_groups]
        try:
            for g in self.optimizer.param_groups:
                g.update(group)
            return self.find()
        finally:
            for g, values in zip(self.optimizer.param_groups, before, strict=True):
                g.update(values)

    def tuned(self, **options: Any) -> FineTuner:
        options = {
            "train_loader": self.batches,
            "loss_fn": cross_entropy,
            "progress": False,
        } | options
        return FineTuner(options.pop("model", self.model), options.pop("train_loader"), **options)
