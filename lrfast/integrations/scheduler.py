"""A torch scheduler, for trainers that need one, over a schedule on the device."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_dict, check_finite, check_int, check_list
from lrfast.integrations._shared import fused_optimizer
from lrfast.optim import FusedOptimizer
from lrfast.optim._checkpoint import ENGINE_ENTRY, check_entry
from lrfast.optim._options import Schedules
from lrfast.optim._scheduling import set_rate

__all__ = ["DeviceScheduler"]

_FORMER_KEY = "optimizer"  # of lrfast's entry in files from before it was the optimizer's own key

_log = logging.getLogger(__name__)


class DeviceScheduler(LRScheduler):
    """A learning rate scheduler for a trainer whose optimizer has the schedule.

    ``step()`` only counts: the optimizer's own step evaluates the schedule on the device, at the
    number of applied steps. ``get_last_lr()`` evaluates it on the host, at the count, without a
    synchronisation (unless a group's "lr" is a tensor on a GPU). The two differ if steps were
    skipped for infinite gradients, and by the factor of a Plateau; ``optimizer.get_last_lr()``
    includes both, and synchronises.

    A checkpoint of the optimizer holds the schedule and its step. This one's holds the count, and
    both again, because savers of sharded optimizers keep torch's entries only. Where training goes
    on from a checkpoint with another schedule, this one goes on at the saved step, and a warning
    says so: trainers cannot pass a choice to ``load_state_dict``.

    Args:
        optimizer: An lrfast optimizer, also in a trainer's wrapper.
        schedule: Schedule that the optimizer starts; None, the default: its present one goes on.

    Raises:
        TypeError: If ``optimizer`` is not an lrfast optimizer.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.5)
        >>> scheduler = DeviceScheduler(optimizer, lrfast.schedules.linear(1.0, 0.0, 10))
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> scheduler.step()
        >>> scheduler.get_last_lr(), optimizer.get_last_lr()
        ([0.45], [0.45])
    """

    optimizer: FusedOptimizer

    @checked
    def __init__(self, optimizer: Optimizer, schedule: Schedules = None) -> None:
        # Not torch's constructor: it would put a wrapper around optimizer.step, and set rates.
        self.optimizer = fused_optimizer(optimizer)
        if schedule is not None:
            self.optimizer.set_schedule(schedule)
        self.optimizer._is_trainers_plan = True
        self.last_epoch = 0
        self._step_count = 1

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """The groups' own learning rates, which the schedule multiplies."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Count a step.

        Args:
            epoch: Number of steps so far; None, the default: one more than before.
        """
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._step_count += 1

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each group at the counted step."""
        schedules = self.optimizer.schedules
        factors = {each: each.at(self.last_epoch) for each in set(schedules) if each is not None}
        return [
            rate if schedule is None else rate * factors[schedule]
            for rate, schedule in zip(self.base_lrs, schedules, strict=True)
        ]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return :meth:`get_last_lr`."""
        return self.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the optimizer's schedule with its step. Synchronises the device.

        torch's LambdaLR, too, can load it: it goes on at the count with functions of its own.
        """
        rates = self.base_lrs
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "base_lrs": rates,
            "_last_lr": rates,  # those that the param groups of the optimizer's checkpoint hold
            "lr_lambdas": [None] * len(rates),
            ENGINE_ENTRY: self.optimizer._entry(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a count, also of one of torch's schedulers; nothing has changed if it raises.

        The optimizer loads the schedule, unless its own checkpoint held one. After a checkpoint of
        torch.optim it takes the base learning rates of torch's scheduler, because those in the
        param groups are scheduled ones, and its schedule goes on at the count.

        Args:
            state_dict: From :meth:`state_dict`, or of one of torch's schedulers.

        Raises:
            ValueError: If it holds no count, or schedules or learning rates that do not fit.
        """
        check_dict("state_dict", state_dict, ["last_epoch"])
        last_epoch = check_int("last_epoch", state_dict["last_epoch"])
        step_count = check_int("_step_count", state_dict.get("_step_count", last_epoch + 1))
        key = next((each for each in (ENGINE_ENTRY, _FORMER_KEY) if each in state_dict), None)
        entry = {} if key is None else check_dict(key, state_dict[key])
        groups = self.optimizer.param_groups
        is_torchs = key is None
        given = check_list("base_lrs", state_dict.get("base_lrs", [])) if is_torchs else []
        rates = [float(each) if isinstance(each, Tensor) else each for each in given]
        for rate in rates:
            check_finite("base_lrs", rate, least=0.0)
        if rates and len(rates) != len(groups):
            raise ValueError(f"base_lrs must be one per group, {len(groups)}, got {len(rates)}")
        if self.optimizer._loaded_clock is None and entry:
            check_entry(self.optimizer, entry)
            keeps_own, note = self.optimizer._keeps_own(entry, None)
            self.optimizer._load_entry(entry, keeps_own)
            if note:
                _log.warning(note)  # Trainer drops Python's warnings here
        elif rates and self.optimizer._loaded_clock is None:
            for group, rate in zip(groups, rates, strict=True):
                set_rate(group, rate)
            self.optimizer._set_schedule_step(last_epoch)
        self.last_epoch, self._step_count = last_epoch, step_count
