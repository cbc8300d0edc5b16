"""Peak learning rates of schedules, of lrfast or torch, and their scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.optim._scheduling import set_rate

# All that torch's schedulers compute a learning rate from, in the param groups and in themselves.
_GROUP_RATES: Final = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_RATES: Final = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")


Change = tuple[Any, Any, float, float, float]  # holder and key of a learning rate; old, new, factor


def peak_of(group: dict[str, Any]) -> float:
    """Return the highest learning rate that a scheduler of torch has noted in a param group."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


@torch.no_grad()
def undo_changes(changes: Sequence[Change]) -> None:
    """Restore learning rates; those that a schedule has moved since are divided by the factor."""
    for holder, key, old, new, factor in changes:
        now = float(holder[key])
        before = old if now == new else now / factor
        if isinstance(holder[key], Tensor):
            holder[key].fill_(before)
        else:
            holder[key] = before


class PeakRates:
    """The peak learning rates of param groups, which scale with their whole schedules."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> None:
        self._optimizer = optimizer
        self._schedulers = _flat(schedulers, optimizer)
        self._check()

    def peaks(self) -> tuple[float, ...]:
        """Return the highest learning rate of each group's schedule, [groups]."""
        self._check()
        cyclic = next((s.max_lrs for s in self._schedulers if hasattr(s, "max_lrs")), ())
        peaks = []
        for index, group in enumerate(self._optimizer.param_groups):
            has_own = index < len(cyclic) and "max_lr" not in group
            peaks.append(float(cyclic[index]) if has_own else peak_of(group))
        return tuple(peaks)

    @contextmanager
    def used_now(self) -> Iterator[None]:
        """Let every group train at its peak, because a scheduler at 0 hides their ratios."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        own = [float(rate) if isinstance(rate, Tensor) else rate for rate in rates]
        peaks = self.peaks()
        moved = [index for index, peak in enumerate(peaks) if peak != own[index]]
        try:
            for index in moved:
                set_rate(self._optimizer.param_groups[index], peaks[index])
            yield
        finally:
            for index in moved:
                set_rate(self._optimizer.param_groups[index], own[index])

    @torch.no_grad()
    def scale(self, factors: Sequence[float]) -> list[Change]:
        """Multiply all learning rates that a scheduler may read, and return what has changed.

        Those that are tensors are changed in place.
        """
        places: list[tuple[Any, Any, float]] = [
            (group, name, factor)
            for group, factor in zip(self._optimizer.param_groups, factors, strict=True)
            for name in _GROUP_RATES
            if name in group
        ]
        lists = [getattr(s, name, None) for s in self._schedulers for name in _SCHEDULER_RATES]
        # Nested schedulers may share a list, and groups a tensor.
        for rates in {id(each): each for each in lists if each is not None}.values():
            places += [(rates, index, f) for index, f in enumerate(factors[: len(rates)])]
        changes: list[Change] = []
        scaled: set[int] = set()
        for holder, key, factor in places:
            rate = holder[key]
            if factor == 1 or (isinstance(rate, Tensor) and id(rate) in scaled):
                continue
            old = float(rate)
            if isinstance(rate, Tensor):
                scaled.add(id(rate))
                rate.mul_(factor)
            else:
                holder[key] = rate * factor
            changes.append((holder, key, old, float(holder[key]), factor))
        return changes

    def _check(self) -> None:
        groups = self._optimizer.param_groups
        if not self._schedulers and any("initial_lr" in group for group in groups):
            raise ValueError(
                "schedulers must hold the schedulers attached to optimizer, which would undo a "
                "change of its learning rates at their next step, got none; if none is attached "
                "any more, delete 'initial_lr' from the param groups"
            )


def _flat(schedulers: Sequence[LRScheduler], optimizer: Optimizer) -> list[LRScheduler]:
    """Return the schedulers and those within them, each once."""
    if not hasattr(optimizer, "param_groups"):
        got = type(optimizer).__name__
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {got}")
    if not isinstance(schedulers, Sequence):
        raise TypeError(f"schedulers must be a list, got a {type(schedulers).__name__}; wrap it")
    found: dict[int, LRScheduler] = {}
    for scheduler in schedulers:
        scheduler = getattr(scheduler, "scheduler", scheduler)  # in Accelerate's wrapper
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(
                "schedulers must be of torch.optim.lr_scheduler, got a "
                f"{type(scheduler).__name__}; an lrfast schedule is known to the optimizer"
            )
        if inner_optimizer(scheduler.optimizer).param_groups is not optimizer.param_groups:
            raise ValueError("schedulers must be attached to optimizer, got one of another")
        inner = _flat(getattr(scheduler, "_schedulers", ()), optimizer)
        found |= {id(each): each for each in (scheduler, *inner)}
    return list(found.values())
