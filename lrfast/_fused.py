"""The step of the fused optimizers: what stands between torch.optim's classes and the engine.

Tensors of optimizer state are made and owned here, in ``self.state``; the engine
(csrc/bindings/engine.cpp) holds addresses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from lrfast._extension import extension
from lrfast.schedules import Schedule

if TYPE_CHECKING:
    from lrfast import _C

_ENGINE_ENTRY = "lrfast"  # key of our entry in a state dict; torch.optim ignores it


class FusedOptimizer(torch.optim.Optimizer):
    """What the fused optimizers share: the step, the schedule and their place in checkpoints.

    Mixed into a class of torch.optim, in front of it. Beyond torch's interface, every optimizer
    takes ``schedule=`` and has :meth:`set_schedule`.
    """

    _rule: ClassVar[str]
    _engine: _C.Engine | None
    _schedules: list[Schedule | None]  # one per group
    _clock_at_start: int  # steps that the schedule has behind it when the engine is made

    def _set_up(self, schedule: Schedule | Sequence[Schedule | None] | None) -> None:
        self._engine = None
        self._schedules = []
        self._clock_at_start = 0
        for index, group in enumerate(self.param_groups):
            _check_group(index, group)
        self.set_schedule(schedule)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient and are not frozen.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            ValueError, TypeError: For a gradient or hyperparameter that cannot be used.
            RuntimeError: For a sparse gradient. Nothing has been changed after any of these.
        """
        hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
        if hooks:
            return self._step_with_hooks(closure)
        return _step_without_hooks(self, closure)

    # torch.optim wraps step() to run hooks and to mark it for its profiler, at 5 us per call: we
    # run the hooks ourselves, where there are any.
    step.hooked = True  # type: ignore[attr-defined]

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
        clock = self.schedule_step
        return [
            float(group["lr"]) * (1.0 if schedule is None else schedule.at(clock))
            for group, schedule in zip(self.param_groups, self._padded_schedules(), strict=True)
        ]

    @property
    def schedule_step(self) -> int:
        """Steps applied since the schedule was set. Waits for the device."""
        clocks = [] if self._engine is None else self._engine.clocks()
        return int(clocks[0].cpu().numpy()[0]) if clocks else self._clock_at_start

    @property
    def last_rates(self) -> Tensor:
        """The rates that the last step used, float64 [groups] on the device that it ran on."""
        rates = [] if self._engine is None else self._engine.rates()
        return rates[0] if rates else torch.zeros(len(self.param_groups), dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return torch.optim's state dict, plus the schedule and its step."""
        state: dict[str, Any] = super().state_dict()
        if any(self._schedules):
            state[_ENGINE_ENTRY] = {
                "schedules": [s.to_dict() if s else None for s in self._padded_schedules()],
                "schedule_step": self.schedule_step,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load torch.optim's state dict or ours; float32 states of half parameters stay float32.

        A state dict without a schedule leaves the schedule that is attached.
        """
        super().load_state_dict(state_dict)
        self._keep_wide_states(state_dict)
        entry = state_dict.get(_ENGINE_ENTRY)
        clock = self.schedule_step
        if entry is not None:
            self._schedules = [Schedule.from_dict(s) if s else None for s in entry["schedules"]]
            clock = entry["schedule_step"]
        self._engine = None
        self._clock_at_start = clock

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "_schedules": self._schedules,
            "_clock_at_start": self.schedule_step,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_engine" not in self.__dict__:  # unpickled or copied
            self._engine = None
        super().__setstate__(state)

    def _update(self) -> None:
        engine = self._engine or self._make_engine()
        missing = engine.step(self.param_groups, self.state)
        if missing:
            for group, param in missing:
                self._prepare_state(param, engine.state_names(group), self.param_groups[group])
            missing = engine.step(self.param_groups, self.state)
        if missing:
            raise RuntimeError(f"{len(missing)} parameters have no usable optimizer state")

    def _step_with_hooks(self, closure: Callable[[], Any] | None) -> Any:
        hooked = torch.optim.Optimizer.profile_hook_step(_step_without_hooks)
        return hooked(self) if closure is None else hooked(self, closure)

    def _make_engine(self) -> _C.Engine:
        engine: _C.Engine = extension().Engine(self._rule)
        self._send_schedules(engine)
        engine.set_clock(self._clock_at_start)
        self._engine = engine
        return engine

    def _leave_rates(self) -> None:
        """Make the rates that the schedules have reached the groups' own."""
        rates = self.current_rates() if any(self._schedules) else []
        for group, schedule, rate in zip(self.param_groups, self._schedules, rates, strict=False):
            if schedule is not None:
                set_rate(group, rate)

    def _attach(self, schedules: list[Schedule | None]) -> None:
        """Put schedules, one per group, in charge from the next step on; rates stay as set."""
        self._schedules = schedules
        self._clock_at_start = 0
        if self._engine is not None:
            self._send_schedules(self._engine)

    def _send_schedules(self, engine: _C.Engine) -> None:
        distinct = list(dict.fromkeys(s for s in self._padded_schedules() if s is not None))
        engine.set_schedules(
            [schedule.encode() for schedule in distinct],
            [-1 if s is None else distinct.index(s) for s in self._padded_schedules()],
        )

    def _padded_schedules(self) -> list[Schedule | None]:
        """One entry per group; groups added after set_schedule have none."""
        missing = len(self.param_groups) - len(self._schedules)
        return (self._schedules + [None] * missing)[: len(self.param_groups)]

    def _prepare_state(self, param: Tensor, names: dict[str, Any], group: dict[str, Any]) -> None:
        """Make the states that the engine misses, or bring loaded ones into the form it needs."""
        state = self.state[param]
        dtype = _state_dtype(param, [state.get(name) for name in names["tensors"]])
        for name in names["tensors"]:
            state[name] = _usable_state(name, state.get(name), param, dtype)
        # Values of the host go to the device by a fill, which does not wait for it.
        scalar = functools.partial(torch.full, (), device=param.device)
        is_new = names["count"] not in state
        if names["count"] is not None:
            count = state.get(names["count"], 0.0)
            is_tensor = isinstance(count, Tensor)
            state[names["count"]] = (
                count.reshape(()).to(param.device, torch.float32)
                if is_tensor
                else scalar(count, dtype=torch.float32)
            )
        name = names["product"]
        if name in state:
            state[name] = state[name].reshape(()).to(param.device, torch.float64)
        elif names["cycles_momentum"]:
            # Waits for the device, once per parameter: when its momentum is first cycled.
            steps = 0.0 if is_new else float(state[names["count"]])
            state[name] = scalar(float(group["betas"][0]) ** steps, dtype=torch.float64)

    def _keep_wide_states(self, state_dict: dict[str, Any]) -> None:
        """Undo torch's cast of states to the parameter's dtype where it loses digits.

        float32 moments of a half parameter stay float32, and so does the float64 product of beta1;
        a state too wide for the engine is narrowed when it is first used.
        """
        saved_ids: Iterable[int] = chain.from_iterable(
            group["params"] for group in state_dict["param_groups"]
        )
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, param in zip(saved_ids, params, strict=True):
            loaded = self.state.get(param, {})
            for name, value in state_dict["state"].get(saved_id, {}).items():
                is_cast = isinstance(value, Tensor) and isinstance(loaded.get(name), Tensor)
                if is_cast and value.dtype.itemsize > loaded[name].dtype.itemsize:
                    loaded[name] = value.to(param.device, copy=True)

    def _watch(self, flag: Tensor | None) -> None:
        """Let steps change nothing while ``flag``, one float64 on the device, is not zero."""
        (self._engine or self._make_engine()).watch(flag)

    def _engine_snapshot(self) -> _Snapshot:
        engine = self._engine
        tensors = [] if engine is None else [*engine.clocks(), *engine.rates()]
        return list(self._schedules), self._clock_at_start, [t.clone() for t in tensors]

    def _engine_restore(self, snapshot: _Snapshot) -> None:
        schedules, self._clock_at_start, saved = snapshot
        self._schedules = list(schedules)
        engine = self._engine
        tensors = [] if engine is None else [*engine.clocks(), *engine.rates()]
        if engine is not None and saved and _shapes(tensors) == _shapes(saved):
            self._send_schedules(engine)
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)
            return
        # Groups were added or states loaded since: the next step makes an engine anew.
        self._engine = None
        if saved:
            self._clock_at_start = int(saved[0].cpu().numpy()[0])


# Schedules, clock of an engine yet to be made, copies of the engine's clocks and rates.
_Snapshot = tuple[list[Schedule | None], int, list[Tensor]]


def _shapes(tensors: list[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


def _step_without_hooks(optimizer: FusedOptimizer, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    optimizer._update()
    return loss


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a param group's rate, in place where it is a tensor."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr.fill_(rate)
    else:
        group["lr"] = rate


def _check_group(index: int, group: dict[str, Any]) -> None:
    if isinstance(group["lr"], Tensor) and not group["lr"].is_cpu:
        raise ValueError(
            f"lr of param_groups[{index}] must be a number or a CPU tensor, got a tensor on "
            f"{group['lr'].device}; a schedule changes rates on the device"
        )
    rate = float(group["lr"])
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"lr of param_groups[{index}] must be finite and not negative, got {rate}")


def _state_dtype(param: Tensor, states: list[Any]) -> torch.dtype:
    """The dtype of a parameter's states: its own, or float32 if a half one has such states."""
    is_half = param.dtype in (torch.bfloat16, torch.float16)
    is_wide = any(isinstance(s, Tensor) and s.dtype == torch.float32 for s in states)
    return torch.float32 if is_half and is_wide else param.dtype


def _usable_state(name: str, value: Any, param: Tensor, dtype: torch.dtype) -> Tensor:
    """A state in the parameter's shape, device and memory layout."""
    usable = _zeros_like(param, dtype)
    if value is None:
        return usable
    if not isinstance(value, Tensor) or value.shape != param.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"state {name!r} must have its parameter's shape {tuple(param.shape)}, got {got}"
        )
    return usable.copy_(value)


def _zeros_like(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in the memory layout that the engine walks, which is dense even if ``param`` is not."""
    strides = extension().layout_strides(param)
    zeros = torch.empty_strided(param.shape, strides, dtype=dtype, device=param.device)
    return zeros.zero_()
