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
from torch.optim import lr_scheduler as L
from torch.optim.swa_utils import SWALR

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


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one-cycle": lambda o: L.OneCycleLR(o, [0.1, 0.3, 0.2, 0.4], 40),
    "one-cycle-three-phase": lambda o: L.OneCycleLR(o, 0.3, 40, three_phase=True),
    "cosine": lambda o: L.CosineAnnealingLR(o, 12),
    "cosine-restarts": lambda o: L.CosineAnnealingWarmRestarts(o, 9),
    "lambda": lambda o: L.LambdaLR(o, lambda k: abs(k - 5) / 10),  # 0 where the test runs
    "multiplicative": lambda o: L.MultiplicativeLR(o, lambda k: 0.9),
    "step": lambda o: L.StepLR(o, 3, 0.5),
    "multistep": lambda o: L.MultiStepLR(o, [2, 11], 0.3),
    "exponential": lambda o: L.ExponentialLR(o, 0.9),
    "polynomial": lambda o: L.PolynomialLR(o, 20, 2.0),
    "linear": lambda o: L.LinearLR(o, 0.1, 1.0, 10),
    "constant": lambda o: L.ConstantLR(o, 0.3, 8),
    "cyclic": lambda o: L.CyclicLR(o, 0.01, 0.3, 4, mode="triangular2", cycle_momentum=False),
    "plateau": lambda o: L.ReduceLROnPlateau(o, "min", 0.5, patience=1, min_lr=0.02, eps=0),
    "sequential": lambda o: L.SequentialLR(
        o, [L.LinearLR(o, 0.1, 1.0, 8), L.CosineAnnealingLR(o, 20)], [8]
    ),
    "chained": lambda o: L.ChainedScheduler([L.ExponentialLR(o, 0.95), L.StepLR(o, 4, 0.5)]),
    "nested": lambda o: L.ChainedScheduler(
        [L.SequentialLR(o, [L.ConstantLR(o, 0.3, 8), L.StepLR(o, 4)], [8]), L.ExponentialLR(o, 0.9)]
    ),
    "swa": lambda o: SWALR(o, swa_lr=0.05, anneal_epochs=12),
}


def advance(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    """The rates of so many steps, and what the scheduler says of them."""
    seen = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, L.ReduceLROnPlateau) else []))
        seen.append(rates(optimizer) + [float(lr) for lr in scheduler.get_last_lr()])
    return seen
