"""Schedules recorded by value from a function of the step or a scheduler of torch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lrfast._utils.arguments import checked
from lrfast._utils.param_groups import momentum_of
from lrfast._utils.validation import check_count
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Track, hold, track


@checked
def from_function(f: Callable[[int], float], total_steps: int) -> Schedule:
    """Return a table of ``f(0)`` to ``f(total_steps - 1)``, then held: torch's LambdaLR.

    Args:
        f: Function from the step to the multiplier, finite and 0 or more; called once per step.
        total_steps: Entries of the table, 1 or more, 8 bytes each.

    Raises:
        ValueError: If ``total_steps`` or a value of ``f`` is out of range.

    Example:
        >>> from_function(lambda step: 1 / (1 + step), 4).values(range(5)).tolist()
        [1.0, 0.5, 0.3333333333333333, 0.25, 0.25]
    """
    total_steps = check_count("total_steps", total_steps)
    values = [float(f(step)) for step in range(total_steps)]
    return Schedule("function", total_steps, (_recorded("f", values),))


@checked
def from_torch(scheduler: LRScheduler, total_steps: int) -> Schedule | list[Schedule]:
    """Return the next values of a scheduler of torch: a schedule, or one per group if they differ.

    A copy of it runs, with a copy of its optimizer. The multipliers are fractions of each group's
    "initial_lr", which should be its learning rate when the schedule is set; step 0 is the
    scheduler's current one. A momentum or beta1 that changes is recorded too.

    Args:
        scheduler: A scheduler that depends only on the step; it stays as it is.
        total_steps: Steps to record, 1 or more; the last value is held.

    Raises:
        TypeError: If ``scheduler`` is none of torch's, or follows a metric.
        ValueError: If ``total_steps``, an "initial_lr" or a recorded value is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.5)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        >>> lrfast.schedules.from_torch(scheduler, 4).values(range(5)).round(6).tolist()
        [1.0, 1.0, 0.1, 0.1, 0.1]
    """
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            f"scheduler must be one of torch's that follows the step alone, got "
            f"{type(scheduler).__name__}"
        )
    total_steps = check_count("total_steps", total_steps)
    optimizer: Optimizer = scheduler.optimizer
    bases = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    for base in bases:
        if not (math.isfinite(base) and base > 0):
            raise ValueError(f"initial_lr must be finite and above 0 in every group, got {base}")
    stand_in = _stand_in(optimizer)
    rows = _run(copy.deepcopy(scheduler, {id(optimizer): stand_in}), stand_in, total_steps)
    results = []
    for index, base in enumerate(bases):
        rates = [row[index][0] / base for row in rows]
        momenta = [row[index][1] for row in rows]
        factor = _recorded("rate / initial_lr", rates)
        momentum = _recorded("momentum", momenta) if len(set(momenta)) > 1 else None
        results.append(Schedule(type(scheduler).__name__, total_steps, (factor,), momentum))
    return results[0] if len(set(results)) == 1 else results


def _stand_in(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with copies of the groups, without their parameters, which are large."""
    params = [torch.zeros(1, requires_grad=True)]
    result = torch.optim.SGD(params, lr=0.0)
    result.param_groups = [
        copy.deepcopy({**group, "params": params}) for group in optimizer.param_groups
    ]
    return result


def _run(
    scheduler: LRScheduler, optimizer: Optimizer, steps: int
) -> list[list[tuple[float, float]]]:
    """Return learning rate and momentum of every group at every step."""
    rows = []
    with warnings.catch_warnings():  # torch warns because the optimizer does not step
        warnings.simplefilter("ignore")
        for step in range(steps):
            if step:
                scheduler.step()
            rows.append([(float(g["lr"]), momentum_of(g) or 0.0) for g in optimizer.param_groups])
    return rows


def _recorded(name: str, values: list[float]) -> Track:
    """Return a lookup of the values, after a check of each."""
    for step, value in enumerate(values):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value} at step {step}")
    if len(set(values)) == 1:
        return hold(values[0])
    steps = len(values)
    return track(Segment(0, 0.0, steps, values[0], values[-1], "lookup", values=tuple(values)))
