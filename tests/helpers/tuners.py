"""The fine-tuner that most of its tests start from."""

from __future__ import annotations

from typing import Any

import torch
from tiny import OPTIMIZERS, cross_entropy, make_batches, make_model
from torch import Tensor

from lrfast import FineTuner, accuracy

STEPS = 5  # per epoch


def make_tuner(kind: str = "adamw", **options: Any) -> FineTuner:
    """A tuner of three layer groups, quiet, with validation and accuracy."""
    defaults: dict[str, Any] = {
        "train_loader": make_batches(STEPS),
        "val_loader": make_batches(2),
        "loss_fn": cross_entropy,
        "optimizer": OPTIMIZERS[kind],
        "metrics": {"accuracy": accuracy},
        "progress": False,
    }
    options = defaults | options
    return FineTuner(
        make_model(), options.pop("train_loader"), options.pop("val_loader"), **options
    )


class Scripted:
    """A metric that says what a script says, one value per epoch."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(next(self.values), dtype=torch.float64)
