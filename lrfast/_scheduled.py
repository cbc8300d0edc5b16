"""What an optimizer does with a schedule: attach it, say where it stands, let it go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrfast.schedules import Schedule

if TYPE_CHECKING:
    from lrfast import _C
    from lrfast.loss_schedules import LossSchedule


class Scheduled(torch.optim.Optimizer):
    """The part of a fused optimizer that schedules are attached to; the engine evaluates them."""

    _engine: _C.Engine | None
    _schedules: list[Schedule | None]  # one per group
    _clock_at_start: tuple[int, int]  # of an engine yet to be made: see _clock
    _loss_schedule: LossSchedule | None = None
    _scale_rests = False  # whether somebody plans the rates who wants no factor on top
    _captured_by: object = None  # the captured step that makes this optimizer's steps

    def set_schedule(self, schedule: Schedule | Sequence[Schedule | None] | None) -> None:
        """Attach a schedule; its step 0 is the next step that is applied.

        The schedule multiplies ``param_groups[i]["lr"]``, which stays what the user set. It is
        evaluated on the device, once per group and step.

        Args:
            schedule: One schedule for all groups, a sequence with one (or None) per group, or None
                to detach and leave every group's rate where the schedule has brought it.

        Raises:
            ValueError: If a sequence has not one entry per group.
            TypeError: If an entry is not a :class:`lrfast.schedules.Schedule`.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1)
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
            >>> optimizer.set_schedule(lrfast.schedules.one_cycle(total_steps=100))
            >>> optimizer.current_rates()
            [0.004]
        """
        count = len(self.param_groups)
        if isinstance(schedule, str):
            raise TypeError(
                "schedule must be made by lrfast.schedules, got a string; "
                f"schedules.get({schedule!r})(...) makes one"
            )
        if schedule is None or isinstance(schedule, Schedule):
            schedules: list[Schedule | None] = [schedule] * count
        else:
            schedules = list(schedule)
        if len(schedules) != count:
            raise ValueError(
                f"schedule must be one schedule or one per group: the optimizer has {count} "
                f"groups, got {len(schedules)} schedules"
            )
        for entry in schedules:
            if entry is not None and not isinstance(entry, Schedule):
                raise TypeError(
                    f"schedule must be made by lrfast.schedules, got {type(entry).__name__}"
                )
        if schedule is None:
            self._leave_rates()
        self._attach(schedules)

    def current_rates(self) -> list[float]:
        """Return the rate that the next step will use, per group. Waits for the device."""
        scale = 1.0 if self._rate_scale is None else float(self._rate_scale)
        return [rate * scale for rate in self._scheduled_rates()]

    @property
    def loss_schedule(self) -> LossSchedule | None:
        """The Plateau or Greedy whose factor multiplies the rates, None where there is none.

        Loading a state dict that holds one, where there is none, makes it.
        """
        return self._loss_schedule

    @property
    def schedule_step(self) -> int:
        """Steps applied since the schedule was set. Waits for the device."""
        return self._clock()[0]

    @property
    def last_rates(self) -> Tensor:
        """The rates that the last step used, float64 [groups] on the device that it ran on."""
        rates = [] if self._engine is None else self._engine.rates()
        return rates[0] if rates else torch.zeros(len(self.param_groups), dtype=torch.float64)

    def _clock(self) -> tuple[int, int]:
        """Steps applied since the schedule was set, and in all. Waits for the device."""
        clocks = [] if self._engine is None else self._engine.clocks()
        return tuple(clocks[0].tolist()) if clocks else self._clock_at_start

    def _scheduled_rates(self) -> list[float]:
        clock = self.schedule_step
        return [
            float(group["lr"]) * (1.0 if schedule is None else schedule.at(clock))
            for group, schedule in zip(self.param_groups, self._padded_schedules(), strict=True)
        ]

    @property
    def _rate_scale(self) -> Tensor | None:
        """What multiplies all rates, one float64 on the device."""
        schedule = None if self._scale_rests else self._loss_schedule
        return None if schedule is None else schedule._state["scale"]

    def _attach_loss_schedule(self, schedule: LossSchedule | None) -> None:
        """Let a loss-driven schedule's factor multiply every group's rate from now on."""
        self._loss_schedule = schedule
        if self._engine is not None:
            self._engine.scale_rates(self._rate_scale)

    def _rest_scale(self, rests: bool) -> bool:
        """Let the factor rest or work from now on, and return whether it rested."""
        rested, self._scale_rests = self._scale_rests, rests
        if self._engine is not None:
            self._engine.scale_rates(self._rate_scale)
        return rested

    def _schedule_entry(self) -> dict[str, Any]:
        """What a state dict says of the schedules. Waits for the device."""
        entry: dict[str, Any] = {}
        if any(self._schedules):
            schedules = self._padded_schedules()
            entry["schedules"] = [each.to_dict() if each else None for each in schedules]
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
            schedule.load_state_dict(state)

    def _set_schedule_step(self, applied: int) -> None:
        """Let the next step be that one of the schedules. Waits for the device."""
        self._set_clock(applied, self._clock()[1])

    def _set_clock(self, applied: int, steps: int) -> None:
        self._clock_at_start = (applied, steps)
        if self._engine is not None:
            self._engine.set_clock(applied, steps)

    def _leave_rates(self) -> None:
        """Make the rates that the schedules have reached the groups' own."""
        rates = self._scheduled_rates() if any(self._schedules) else []
        for group, schedule, rate in zip(self.param_groups, self._schedules, rates, strict=False):
            if schedule is not None:
                set_rate(group, rate)

    def _attach(self, schedules: list[Schedule | None]) -> None:
        """Put schedules, one per group, in charge from the next step on; rates stay as set."""
        self._schedules = schedules
        self._clock_at_start = (0, self._clock_at_start[1])
        if self._engine is not None:
            self._send_schedules(self._engine)

    def _send_schedules(self, engine: _C.Engine) -> None:
        distinct = list(dict.fromkeys(s for s in self._padded_schedules() if s is not None))
        engine.set_schedules(
            [schedule.encode() for schedule in distinct],
            [-1 if s is None else distinct.index(s) for s in self._padded_schedules()],
        )
        engine.scale_rates(self._rate_scale)

    def _padded_schedules(self) -> list[Schedule | None]:
        """One entry per group; groups added after set_schedule have none."""
        missing = len(self.param_groups) - len(self._schedules)
        return (self._schedules + [None] * missing)[: len(self.param_groups)]


# Schedules, clock of an engine yet to be made, the loss-driven schedule and a copy of its state.
ScheduleSnapshot = tuple[
    list[Schedule | None], tuple[int, int], "LossSchedule | None", dict[str, Any]
]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a param group's rate, in place where it is a tensor."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr.fill_(rate)
    else:
        group["lr"] = rate
