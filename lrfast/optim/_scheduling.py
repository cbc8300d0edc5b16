"""Schedules on an optimizer: attach, report the step, detach."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrfast._utils.arguments import checked_methods
from lrfast._utils.param_groups import momentum_of
from lrfast._utils.public import public_in
from lrfast._utils.validation import check_count, check_list
from lrfast.optim._buffer_averages import BufferAverages
from lrfast.optim._options import Schedules
from lrfast.schedules import Schedule

if TYPE_CHECKING:
    import lrfast._C as _C

Floats = npt.NDArray[np.float64]


class RateFactor(Protocol):
    """A factor of all learning rates of an optimizer that follows the loss."""

    _state: dict[str, Tensor]  # "scale": the factor, one float64 on the device

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that it has counted."""

    def _restore(self, state_dict: Mapping[str, Any], /) -> None: ...


@public_in("lrfast.optim")
@dataclass(frozen=True)
class Planned:
    """Every group's hyperparameters over the steps of the schedules, if nothing changes them.

    Args:
        steps: Schedule steps, int64 [steps].
        rates: Learning rates, float64 [steps, groups].
        momenta: Momentum or beta1, float64 [steps, groups]; NaN if the update rule has none.
        weight_decays: Weight decay, float64 [steps, groups]; NaN if the update rule has none.
    """

    steps: npt.NDArray[np.int64]
    rates: Floats
    momenta: Floats
    weight_decays: Floats


@checked_methods()
class SchedulingMixin(torch.optim.Optimizer):
    """Schedules on a fused optimizer; the engine evaluates them on the device."""

    _engine: _C.Engine | None
    _schedules: list[Schedule | None]  # one per group
    _clock_at_start: tuple[int, int]  # of an engine yet to be made: see _clock
    _loss_schedule: RateFactor | None = None
    _loss_factor_paused = False  # True while a range test controls the learning rates
    _loaded_clock: tuple[int, int] | None = None  # right after a state dict was loaded
    _buffer_averages: BufferAverages | None = None
    _saved_averages: Mapping[str, Tensor] | None = None  # loaded before average_buffers()
    _captured_by: object = None  # the captured step that makes this optimizer's steps
    _is_trainers_plan = False  # True for schedules from a trainer, which cannot pass a choice

    def _hyper_names(self, group: Mapping[str, Any]) -> set[str]:
        """Return the hyperparameters of a saved param group's rule."""
        return set(self.defaults)

    def _as_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict of the rule's original package as lrfast's; others as they are."""
        return state

    def set_schedule(self, schedule: Schedules, *, step: int | None = None) -> None:
        """Attach a schedule; its step 0 is the next step that is applied.

        The schedule multiplies ``param_groups[i]["lr"]``, which stays as set. It is evaluated on
        the device, once per group and step.

        Between :meth:`load_state_dict` and the first step, setting the loaded schedule again goes
        on at its step; any other schedule needs ``step``.

        Args:
            schedule: One schedule for all groups, a sequence with one (or None) per group, or None
                to detach and leave every group at the learning rate that the schedule has reached.
            step: The schedule's step that the next applied step makes, 0 or more. None, the
                default: 0, or the step of the loaded schedule.

        Raises:
            ValueError: If a sequence has not one entry per group, ``step`` is out of range, or it
                is None for another schedule than the one just loaded.
            TypeError: If an entry is not a :class:`lrfast.schedules.Schedule`.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1)
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
            >>> optimizer.set_schedule(lrfast.schedules.one_cycle(total_steps=100))
            >>> optimizer.get_last_lr()
            [0.004]
        """
        schedules = self._one_per_group(schedule)
        if step is not None:
            step = check_count("step", step, least=0)
        elif schedule is not None and self._loaded_clock is not None:
            step = self._step_of_loaded(schedules)
        if schedule is None:
            self._leave_rates()
        else:
            self._warn_of_torch()
        self._attach(schedules, step or 0)
        self._loaded_clock, self._is_trainers_plan = None, False

    @property
    def schedules(self) -> list[Schedule | None]:
        """The attached schedules, one entry per group; None for a group without one."""
        missing = len(self.param_groups) - len(self._schedules)  # of groups that were added since
        return (self._schedules + [None] * missing)[: len(self.param_groups)]

    def planned(self, steps: int | None = None) -> Planned:
        """Return learning rates, momenta and weight decays of every group over the steps.

        The factor of a Plateau or Greedy is not included.

        Args:
            steps: Number of steps from step 0 on, 1 or more. None, the default: up to the end of
                the longest schedule.

        Raises:
            ValueError: If ``steps`` is out of range, or None without a schedule.

        Example:
            >>> import torch, lrfast
            >>> layer, one_cycle = torch.nn.Linear(2, 1), lrfast.schedules.one_cycle
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.5, schedule=one_cycle(100))
            >>> planned = optimizer.planned()
            >>> planned.rates.shape, float(planned.rates.max())
            ((100, 1), 0.5)
        """
        if steps is None:
            if not any(self.schedules):
                raise ValueError("steps must be given for an optimizer without a schedule")
            steps = max(schedule.total_steps for schedule in self.schedules if schedule)
        moments = np.arange(check_count("steps", steps))
        pairs = zip(self.param_groups, self.schedules, strict=True)
        columns = [_planned(group, schedule, moments) for group, schedule in pairs]
        return Planned(moments, *np.stack(columns, axis=2))

    def _one_per_group(self, schedule: Schedules) -> list[Schedule | None]:
        """Return the given schedules, checked, as a list with one entry per group."""
        count = len(self.param_groups)
        if schedule is None or isinstance(schedule, Schedule):
            schedules: list[Schedule | None] = [schedule] * count
        else:
            schedules = list(schedule)
        if len(schedules) != count:
            raise ValueError(
                f"schedule must be one schedule or one per group: the optimizer has {count} "
                f"groups, got {len(schedules)} schedules"
            )
        return schedules

    def _step_of_loaded(self, schedules: list[Schedule | None]) -> int:
        """Return the step at which the schedules just loaded go on; refuse others."""
        if self._loaded_clock != self._clock():
            return 0  # steps have been made since
        stands = self.schedule_step
        if differs := difference(schedules, self.schedules):
            raise ValueError(
                "step must say where another schedule than the one just loaded begins (0 to start "
                f"it, {stands} to go on where that one stands), got None; set against loaded: "
                f"{differs}"
            )
        return stands

    def get_last_lr(self) -> list[float]:
        """Return each group's learning rate at the next step. Synchronises the device."""
        scale = 1.0 if self._loss_factor is None else float(self._loss_factor)
        return [rate * scale for rate in self._scheduled_rates()]

    @property
    def schedule_step(self) -> int:
        """Steps applied since the schedule was set, 0 or more. Synchronises the device."""
        return self._clock()[0]

    @property
    def last_rates(self) -> Tensor:
        """Learning rates of the last step, float64 [groups] on its device; 0 before the first."""
        rates = [] if self._engine is None else self._engine.rates()
        if rates:
            return rates[0]
        params = (param for group in self.param_groups for param in group["params"])
        device = next((param.device for param in params), None)
        return torch.zeros(len(self.param_groups), dtype=torch.float64, device=device)

    def _warn_of_torch(self) -> None:
        """Warn if a scheduler of torch sets the learning rates that the schedules multiply."""
        is_patched = hasattr(self.step, "_wrapped_by_lr_sched")
        if is_patched and any("initial_lr" in group for group in self.param_groups):
            warnings.warn(
                "a scheduler of torch is attached to an optimizer with an lrfast schedule, and the "
                "two multiply; leave out one of them, or detach the schedule with "
                "optimizer.set_schedule(None)",
                stacklevel=3,
            )

    def _clock(self) -> tuple[int, int]:
        """Return the steps applied since the schedule was set, and in all. Synchronises."""
        clocks = [] if self._engine is None else self._engine.clocks()
        return tuple(clocks[0].tolist()) if clocks else self._clock_at_start

    def _scheduled_rates(self) -> list[float]:
        clock = self.schedule_step
        factors = [1.0 if schedule is None else schedule.at(clock) for schedule in self.schedules]
        return [float(g["lr"]) * f for g, f in zip(self.param_groups, factors, strict=True)]

    @property
    def _loss_factor(self) -> Tensor | None:
        """The factor of all learning rates, one float64 on the device."""
        schedule = None if self._loss_factor_paused else self._loss_schedule
        return None if schedule is None else schedule._state["scale"]

    def _attach_loss_schedule(self, schedule: RateFactor | None) -> None:
        """Let a loss schedule's factor multiply every group's learning rate from now on."""
        self._loss_schedule = schedule
        if self._engine is not None:
            self._engine.scale_rates(self._loss_factor)

    def _schedule_entry(self) -> dict[str, Any]:
        """Return a state dict's entries about the schedules. Synchronises the device."""
        entry: dict[str, Any] = {}
        if any(self._schedules):
            entry["schedules"] = [each.to_dict() if each else None for each in self.schedules]
            entry["schedule_step"] = self.schedule_step
        if self._loss_schedule is not None:
            entry["loss_schedule"] = self._loss_schedule.state_dict()
        return entry

    def _schedule_snapshot(self) -> ScheduleSnapshot:
        schedule = self._loss_schedule
        state = {} if schedule is None else schedule.state_dict()
        return list(self._schedules), self._clock_at_start, schedule, state

    def _schedule_restore(self, snapshot: ScheduleSnapshot) -> None:
        schedules, self._clock_at_start, schedule, state = snapshot
        self._schedules = list(schedules)
        self._attach_loss_schedule(schedule)
        if schedule is not None:
            schedule._restore(state)

    def _set_schedule_step(self, applied: int) -> None:
        """Let the next step be that one of the schedules. Synchronises the device."""
        self._set_clock(applied, self._clock()[1])

    def _set_clock(self, applied: int, steps: int) -> None:
        self._clock_at_start = (applied, steps)
        if self._engine is not None:
            self._engine.set_clock(applied, steps)

    def _leave_rates(self) -> None:
        """Make the learning rates that the schedules have reached the groups' own."""
        rates = self._scheduled_rates() if any(self._schedules) else []
        for group, schedule, rate in zip(self.param_groups, self._schedules, rates, strict=False):
            if schedule is not None:
                set_rate(group, rate)

    def _keeps_own(self, entry: dict[str, Any], choice: str | None) -> tuple[bool, str]:
        """Return whether a load keeps the attached schedules, and what it has to tell.

        Without a choice they stay if they differ in length only, or are a trainer's plan, because
        trainers cannot pass a choice; others are refused.
        """
        saved = saved_schedules(entry)
        if choice is not None or not saved or not any(self._schedules):
            return choice == "own", ""
        if len(saved) != len(self.param_groups):  # torch refuses it
            return False, ""
        if not (differs := difference(saved, self.schedules)):
            return False, ""
        if not self._is_trainers_plan and not _differ_in_length(saved, self.schedules):
            raise ValueError(
                'schedule must be "saved" or "own" where the saved one and the attached one '
                f"differ, got None; saved against own: {differs}; inside a trainer, attach it by "
                "DeviceScheduler"
            )
        return True, (
            "the attached schedule goes on at the saved step, not the saved schedule; "
            f'load_state_dict(state, schedule="saved") takes that; saved against own: {differs}'
        )

    def _attach(self, schedules: list[Schedule | None], step: int = 0) -> None:
        """Attach schedules, one per group, from the next step on; learning rates stay as set."""
        self._schedules = schedules
        self._clock_at_start = (0, self._clock_at_start[1])
        if self._engine is not None:
            self._send_schedules(self._engine)
        if step:
            self._set_schedule_step(step)

    def _send_schedules(self, engine: _C.Engine) -> None:
        distinct = list(dict.fromkeys(s for s in self.schedules if s is not None))
        engine.set_schedules(
            [schedule.encode() for schedule in distinct],
            [-1 if s is None else distinct.index(s) for s in self.schedules],
        )
        engine.scale_rates(self._loss_factor)


# Schedules, clock of an engine yet to be made, the loss schedule and a copy of its state.
ScheduleSnapshot = tuple[list[Schedule | None], tuple[int, int], RateFactor | None, dict[str, Any]]


def saved_schedules(entry: dict[str, Any]) -> list[Schedule | None] | None:
    """Return the schedules in lrfast's entry of a state dict, one per group, or None."""
    saved = entry.get("schedules")
    if saved is None:
        return None
    packed = check_list("schedules", saved)
    return [None if each is None else Schedule.from_dict(each) for each in packed]


def _planned(
    group: dict[str, Any], schedule: Schedule | None, steps: npt.NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """Return learning rates, momenta and weight decays of one group."""
    momentum = momentum_of(group)
    decay = float(group.get("weight_decay", math.nan))
    own = (float(group["lr"]), math.nan if momentum is None else momentum, decay)
    rates, momenta, decays = (np.full(len(steps), value) for value in own)
    if schedule is None:
        return rates, momenta, decays
    cycled, faded = schedule.momentum(steps), schedule.weight_decay(steps)
    return (
        rates * schedule.values(steps),
        momenta if cycled is None or momentum is None else cycled,
        decays if faded is None else decays * faded,
    )


def difference(these: Sequence[Schedule | None], others: Sequence[Schedule | None]) -> str:
    """Return in words how the schedules of each group differ; "" if they are equal."""
    lines: dict[str, list[str]] = {}  # difference: the groups that have it
    for group, (one, other) in enumerate(zip(these, others, strict=True)):
        if one == other:
            continue
        if one is None or other is None:
            text = " against ".join("none" if each is None else each.name for each in (one, other))
        else:
            text = one.difference(other).replace("\n", ", ")
        lines.setdefault(text, []).append(str(group))
    return "; ".join(f"group {', '.join(groups)}: {text}" for text, groups in lines.items())


def _differ_in_length(these: Sequence[Schedule | None], others: Sequence[Schedule | None]) -> bool:
    """Whether each group's schedules are equal, or one kind of schedule with two lengths."""
    for one, other in zip(these, others, strict=True):
        if one == other:
            continue
        if not (one and other) or one.name != other.name or one.total_steps == other.total_steps:
            return False
    return True


def set_rate(group: dict[str, Any], rate: float | Tensor) -> None:
    """Set a param group's learning rate, in place if it is a tensor."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr.fill_(rate)
    else:
        group["lr"] = rate
