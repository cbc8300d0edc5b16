"""torch's schedulers as tables of values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

TINY = 1e-12  # of the base rate


STEPS = 64


Make = Callable[[Any], Any]


def torch_optimizer(groups: int = 1) -> torch.optim.Optimizer:
    params = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)]
    return torch.optim.SGD(params, lr=1.0, momentum=0.9)


def torch_run(make: Make, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Rates and momenta of a torch scheduler over an optimizer of rate 1."""
    optimizer = torch_optimizer()
    rates, momenta = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
        for step in range(steps):
            if step:
                optimizer.step()
                scheduler.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
            momenta.append(float(optimizer.param_groups[0]["momentum"]))
    return rates, momenta
