"""Re-tests whose range tests are made up, and the optimizers that they change."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from results import make_result
from tiny import cross_entropy
from torch import nn

import lrfast
from lrfast import Retest
from lrfast.range_test import _retest
from lrfast.range_test._sweep import make_sweep

RATES = (0.1, 0.2, 0.4, 0.8)
Optimizer = torch.optim.Optimizer


class Clock:
    """A clock that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Finder:
    """Stands for lr_find: suggests ``factor`` times the highest rate that trains, or declines."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.factor: float | None = 3.0
        self.cost = 2.0
        self.vary: Any = "ratio"
        self.calls = 0

    def __call__(self, model: nn.Module, optimizer: Optimizer, *args: Any, **options: Any) -> Any:
        self.calls += 1
        self.clock.now += self.cost
        sweep = make_sweep(model, optimizer, 1e-6, 10.0, 100, "exp", self.vary)
        rate = float(optimizer.param_groups[sweep.reference]["lr"])
        lr = None if self.factor is None else self.factor * rate
        return make_result(lr=lr, ranges=sweep.ranges, reference=sweep.reference)


def fake_lr_find(monkeypatch: pytest.MonkeyPatch) -> Finder:
    """Let re-tests run a Finder instead of lr_find."""
    found = Finder(Clock())
    monkeypatch.setattr(_retest, "lr_find", wraps(lrfast.lr_find)(lambda *a, **k: found(*a, **k)))
    return found


def make_groups(
    make: Callable[..., Optimizer] = torch.optim.SGD, tensors: bool = False, frozen: int = 3
) -> tuple[nn.Module, Optimizer]:
    """A model of four layers, each a param group with a rate of its own, one of them frozen."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in RATES))
    groups: list[dict[str, Any]] = [
        {
            "params": list(layer.parameters()),
            "lr": torch.tensor(rate, dtype=torch.float64) if tensors else rate,
            "frozen": index == frozen,
        }
        for index, (layer, rate) in enumerate(zip(model, RATES, strict=True))
    ]
    return model, make(groups, momentum=0.9)


def make_retest(finder: Finder, optimizer: Any = None, **arguments: Any) -> Retest:
    model, other = make_groups()
    if optimizer is not None:
        model = nn.ParameterList(p for g in optimizer.param_groups for p in g["params"])
    chosen = other if optimizer is None else optimizer
    arguments = {"every": 1, "clock": finder.clock, "budget": None} | arguments
    return Retest(model, chosen, [], cross_entropy, **arguments)


def rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
