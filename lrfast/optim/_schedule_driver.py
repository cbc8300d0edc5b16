"""Schedules on any optimizer for one run: lrfast's on the device, torch.optim's from the host.

The range test and the fine-tuner use one interface. For an optimizer of torch.optim the learning
rates are written into its param groups before each step, which costs host time and does not
synchronise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lrfast._utils.param_groups import momentum_of, set_momentum
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._scheduling import set_rate
from lrfast.schedules import Schedule

_OneOrMore = Schedule | Sequence[Schedule]  # for all groups, or one per group


class ScheduleDriver(Protocol):
    """Schedules at work on an optimizer."""

    _optimizer: Optimizer

    def before_step(self) -> None:
        """Set the learning rates of the next step."""
        return

    def after_step(self) -> None:
        """Go on to the next step of the schedules, unless the optimizer's was skipped.

        Synchronises only if one of torch's fused optimizers stepped under a scaler.
        """
        return

    def last_rate(self, group: int) -> float | Tensor:
        """Return a group's last learning rate; a tensor is float64 [1] on the device."""

    def loss_factor(self) -> Tensor | None:
        """Return the loss schedule's factor, float64 [1] on the device; None: there is none."""
        return None

    def steps_applied(self) -> Tensor:
        """Return the count of steps applied so far, one int64, which the next step may change."""

    def base_hyperparameters(self, group: int) -> tuple[float, float | None]:
        """Return a group's base learning rate, and its momentum if the driver writes it."""

    def rearm_stop_flag(self) -> None:
        """Obey the stop flag again, after another driver had the optimizer for a while."""
        return

    def detach(self) -> None:
        """Restore every group's learning rate and momentum."""

    def step(self) -> None:
        """Make one optimizer step at the schedules' learning rates."""
        self.before_step()
        self._optimizer.step()
        self.after_step()


def attach_schedule(
    optimizer: Optimizer,
    schedule: _OneOrMore,
    total_steps: int,
    stop_flag: Tensor | None = None,
    start: int = 0,
    *,
    scaled: bool = False,
) -> ScheduleDriver:
    """Attach a schedule, for all groups or one per group, to an optimizer for one run.

    After ``total_steps`` its last value holds. ``start`` is its step that the next step makes.
    lrfast optimizers change nothing while ``stop_flag``, one float64 on the device, is not 0, and
    ignore the factor of their loss schedule until the driver is detached, unless ``scaled``.
    """
    if isinstance(optimizer, FusedOptimizer):
        return _DeviceDriver(optimizer, schedule, stop_flag, start, scaled)
    return _HostDriver(optimizer, schedule, total_steps, start)


class _DeviceDriver(ScheduleDriver):
    _optimizer: FusedOptimizer

    def __init__(
        self,
        optimizer: FusedOptimizer,
        schedule: _OneOrMore,
        stop_flag: Tensor | None,
        start: int,
        scaled: bool,
    ) -> None:
        self._optimizer = optimizer
        optimizer._loss_factor_paused = not scaled  # sent to the engine with the schedule
        self._stop_flag = stop_flag
        optimizer._attach(optimizer._one_per_group(schedule), start)
        optimizer._watch(stop_flag)

    def rearm_stop_flag(self) -> None:
        self._optimizer._watch(self._stop_flag)

    def last_rate(self, group: int) -> Tensor:
        return self._optimizer.last_rates[group : group + 1]

    def loss_factor(self) -> Tensor | None:
        scale = self._optimizer._loss_factor
        return None if scale is None else scale.reshape(1)

    def steps_applied(self) -> Tensor:
        engine = self._optimizer._engine
        clocks = [] if engine is None else engine.clocks()
        return clocks[0][0] if clocks else torch.tensor(self._optimizer._clock_at_start[0])

    def base_hyperparameters(self, group: int) -> tuple[float, float | None]:
        return float(self._optimizer.param_groups[group]["lr"]), None

    def detach(self) -> None:
        self._optimizer._watch(None)
        self._optimizer._loss_factor_paused = False
        self._optimizer._attach([None] * len(self._optimizer.param_groups))


class _HostDriver(ScheduleDriver):
    def __init__(
        self, optimizer: Optimizer, schedule: _OneOrMore, total_steps: int, start: int
    ) -> None:
        self._optimizer = optimizer
        groups = optimizer.param_groups
        self._own_rates = [float(group["lr"]) for group in groups]
        self._own_momenta = [momentum_of(group) for group in groups]
        schedules = [schedule] * len(groups) if isinstance(schedule, Schedule) else list(schedule)
        steps = np.arange(total_steps + 1)  # the last holds afterwards
        tables = {each: (each.values(steps), each.momentum(steps)) for each in set(schedules)}
        self._tables = [tables[each] for each in schedules]
        self._last = total_steps
        self._next = start
        self._has_stepped = False
        self._found_inf: Tensor | None = None
        self._hook = optimizer.register_step_post_hook(self._note_step)

    def before_step(self) -> None:
        self._has_stepped = False
        step = min(self._next, self._last)
        groups = self._optimizer.param_groups
        for group, own, (rates, momenta) in zip(groups, self._own_rates, self._tables, strict=True):
            set_rate(group, own * float(rates[step]))
            if momenta is not None:
                set_momentum(group, float(momenta[step]))

    def after_step(self) -> None:
        # GradScaler calls no step that it skips, unless the optimizer skips by itself.
        if self._has_stepped and not (self._found_inf is not None and self._found_inf.item()):
            self._next += 1

    def last_rate(self, group: int) -> float | Tensor:
        lr = self._optimizer.param_groups[group]["lr"]
        return lr.detach().double().reshape(1) if isinstance(lr, Tensor) else float(lr)

    def steps_applied(self) -> Tensor:
        return torch.tensor(self._next)

    def base_hyperparameters(self, group: int) -> tuple[float, float | None]:
        return self._own_rates[group], self._own_momenta[group]

    def _note_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._has_stepped = True
        self._found_inf = getattr(optimizer, "found_inf", None)  # set by GradScaler for the step

    def detach(self) -> None:
        self._hook.remove()
        groups = self._optimizer.param_groups
        for group, rate, momentum in zip(groups, self._own_rates, self._own_momenta, strict=True):
            set_rate(group, rate)
            if momentum is not None:
                set_momentum(group, momentum)
