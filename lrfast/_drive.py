"""Lets a schedule drive any optimizer for one run, ours on the device and others from the host.

The range test and the fine-tuner see one interface. For an optimizer of torch.optim the rates are
written into its param groups before each step, which costs host time and no wait.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lrfast._fused import FusedOptimizer
from lrfast._scheduled import set_rate
from lrfast.schedules import Schedule


class Driver(Protocol):
    """A schedule at work on an optimizer."""

    def step(self) -> None:
        """Make one optimizer step at the schedule's rates."""

    def detach(self) -> None:
        """Give every group the rate back that it had."""


def drive(
    optimizer: Optimizer, schedule: Schedule, total_steps: int, stop_flag: Tensor | None = None
) -> Driver:
    """Put a schedule in charge of an optimizer, from the schedule's step 0 on.

    Args:
        optimizer: Ours or any of torch.optim.
        schedule: Multiplies each group's own rate.
        total_steps: Steps that will be made at most.
        stop_flag: One float64 on the device; while it is not 0 our optimizers change nothing.

    Returns:
        The driver.
    """
    if isinstance(optimizer, FusedOptimizer):
        return _DeviceDriver(optimizer, schedule, stop_flag)
    return _HostDriver(optimizer, schedule, total_steps)


class _DeviceDriver:
    def __init__(
        self, optimizer: FusedOptimizer, schedule: Schedule, stop_flag: Tensor | None
    ) -> None:
        self._optimizer = optimizer
        optimizer.set_schedule(schedule)
        optimizer._watch(stop_flag)

    def step(self) -> None:
        self._optimizer.step()

    def detach(self) -> None:
        self._optimizer._watch(None)
        self._optimizer._attach([None] * len(self._optimizer.param_groups))


class _HostDriver:
    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: int) -> None:
        self._optimizer = optimizer
        self._own_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._own_momenta = [_momentum(group) for group in optimizer.param_groups]
        steps = np.arange(total_steps)
        self._rates = schedule.values(steps)
        self._momenta = schedule.momentum(steps)
        self._next = 0

    def step(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates_at_next(), strict=True):
            set_rate(group, rate)
            if self._momenta is not None:
                _set_momentum(group, float(self._momenta[self._next]))
        self._optimizer.step()
        self._next += 1

    def _rates_at_next(self) -> list[float]:
        return [rate * float(self._rates[self._next]) for rate in self._own_rates]

    def detach(self) -> None:
        groups = self._optimizer.param_groups
        for group, rate, momentum in zip(groups, self._own_rates, self._own_momenta, strict=True):
            set_rate(group, rate)
            if momentum is not None:
                _set_momentum(group, momentum)


def _momentum(group: dict[str, Any]) -> float | None:
    betas = group.get("betas")
    if isinstance(betas, tuple):
        return float(betas[0])
    momentum = group.get("momentum")
    return float(momentum) if isinstance(momentum, int | float) else None


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    betas = group.get("betas")
    if isinstance(betas, tuple):
        group["betas"] = (momentum, *betas[1:])
    elif "momentum" in group:
        group["momentum"] = momentum
