"""AdamW and SGD without a schedule; the rules are csrc/core/rules/{adamw,sgd}_schedule_free.h."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from lrfast._utils.arguments import checked_methods
from lrfast._utils.validation import (
    check_bool,
    check_count,
    check_dict,
    check_finite,
    check_int,
    check_nonnegative,
)
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.optim._options import Schedules, StepOptions

# Entries of schedulefree's param groups that stand in lrfast's states.
_OF_PACKAGE = ("k", "weight_sum", "lr_max", "scheduled_lr")


class _ScheduleFree(FusedOptimizer, torch.optim.Optimizer):
    """Base of the schedule-free optimizers: which weights the parameters hold."""

    def _start(
        self, params: ParamsT, schedule: Schedules, options: StepOptions, **defaults: Any
    ) -> None:
        """Check the arguments and set up, in training mode."""
        lr, beta = defaults["lr"], defaults.get("momentum", 0.5)
        if not isinstance(lr, Tensor):
            check_nonnegative("lr", lr)
        elif lr.numel() != 1:
            raise ValueError(f"lr must be one number, got a tensor of shape {list(lr.shape)}")
        for index, value in enumerate(defaults.get("betas", ())):
            if not (index == 0 < value < 1 or index == 1 > value >= 0):
                raise ValueError(
                    f"betas must lie in (0, 1) and [0, 1), got {value} as number {index}"
                )
        if not 0 < beta < 1:
            raise ValueError(f"momentum must lie in (0, 1), got {beta}")
        for name in ("eps", "weight_decay", "r"):
            check_nonnegative(name, defaults.get(name, 0))
        check_count("warmup_steps", defaults["warmup_steps"], 0)
        if not math.isfinite(defaults["weight_lr_power"]):
            raise ValueError(f"weight_lr_power must be finite, got {defaults['weight_lr_power']}")
        super().__init__(params, {**defaults, "train_mode": True, "differentiable": False})
        self._set_up(schedule, options)

    def train(self) -> None:
        """Give the model the weights y, at which it trains; no change if it holds them.

        Raises:
            RuntimeError: Within ``ema_parameters()``. Nothing has changed then.
        """
        self._hold(is_training=True)

    def eval(self) -> None:
        """Give the model the averaged weights x, to validate and to save; no change if it has them.

        A step is refused until :meth:`train`.

        Raises:
            RuntimeError: Within ``ema_parameters()``. Nothing has changed then.
        """
        self._hold(is_training=False)

    @torch.no_grad()
    def _hold(self, is_training: bool) -> None:
        if self._holds_average:
            name = "train" if is_training else "eval"
            raise RuntimeError(
                f"{name} must wait until ema_parameters() has ended, got a call within its block"
            )
        others = [group for group in self.param_groups if group["train_mode"] is not is_training]
        betas = [float(g["momentum"] if "momentum" in g else g["betas"][0]) for g in others]
        for group, beta in zip(others, betas, strict=True):
            weight = 1 - beta if is_training else 1 - 1 / beta
            alike: tuple[list[Tensor], list[Tensor]] = ([], [])
            for param, z in self._pairs(group):
                if param.dtype == z.dtype:
                    alike[0].append(param)
                    alike[1].append(z)
                else:
                    wide = torch.promote_types(param.dtype, z.dtype)
                    param.copy_(param.to(wide).lerp_(z.to(wide), weight))
            if alike[0]:
                torch._foreach_lerp_(*alike, weight)
            group["train_mode"] = is_training

    def _pairs(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parameters that have been updated, with their z; parts of DTensors."""
        for param in group["params"]:
            z = self.state.get(param, {}).get("z")
            if z is not None:
                local = (getattr(tensor, "_local_tensor", tensor) for tensor in (param, z))
                yield next(local), next(local)

    def _check_steps(self) -> None:
        super()._check_steps()
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "step must come in training mode, got one after eval(): the model holds averaged "
                "weights; call optimizer.train() before step"
            )

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        state = super()._new_state(name, param, dtype)
        return state.copy_(param.detach()) if name == "z" else state

    def _as_saved(self, state: dict[str, Any]) -> None:
        """Add to a state dict what schedulefree keeps in groups. Synchronises the device."""
        for group in state["param_groups"]:
            states: list[dict[str, Any]] = [
                state["state"].get(place, {}) for place in group["params"]
            ]
            ahead = max(states, key=lambda each: float(each.get("step", 0)), default={})
            count, steps = int(ahead.get("step", 0)), group["warmup_steps"]
            warm_up = count / steps if count < steps else 1.0
            sums = (float(ahead.get("weight_sum", 0.0)), float(ahead.get("lr_max", -1.0)))
            scheduled = float(group["lr"]) * warm_up
            group.update(zip(_OF_PACKAGE, (count, *sums, scheduled), strict=True))

    def _as_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict with the numbers of schedulefree's groups in every state."""
        groups, states = [], dict(check_dict("state", state["state"]))
        for index, group in enumerate(state["param_groups"]):
            numbers = _numbers_of(group, f"param_groups[{index}]")
            for place in group["params"]:
                own = check_dict(f"state[{place!r}]", states.get(place, {}))
                if "z" in own and "step" not in own:
                    states[place] = own | {name: value.clone() for name, value in numbers.items()}
            kept = {name: value for name, value in group.items() if name not in _OF_PACKAGE}
            groups.append({"differentiable": False, **kept})
        return state | {"state": states, "param_groups": groups}

    def _adopt(self) -> None:
        all_numbers = [
            _numbers_of(group, f"param_groups[{index}]")
            for index, group in enumerate(self.param_groups)
        ]
        for group, numbers in zip(self.param_groups, all_numbers, strict=True):
            for param in group["params"]:
                if "z" in self.state.get(param, {}):
                    self.state[param].update((name, n.clone()) for name, n in numbers.items())
        own = self.defaults = {"differentiable": False, **self.defaults}  # the old one keeps its
        for group in (own, *self.param_groups):
            for name in _OF_PACKAGE:
                group.pop(name, None)
            group.setdefault("differentiable", False)


def _numbers_of(group: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Return a group's count, sum of weights and largest learning rate, as each state has them."""
    check_bool(f"train_mode of {where}", group.get("train_mode"))
    numbers = {"step": torch.tensor(float(check_int(f"k of {where}", group.get("k", 0))))}
    for name in ("weight_sum", "lr_max"):
        value = max(0.0, check_finite(f"{name} of {where}", group.get(name, 0.0)))
        numbers[name] = torch.tensor(value, dtype=torch.float64)
    return numbers


@checked_methods()
class AdamWScheduleFree(_ScheduleFree):
    """AdamW without a schedule: training weights y, and their running average x for use.

    Arguments and state dicts are those of schedulefree.AdamWScheduleFree. Call :meth:`eval` before
    validation and before the weights are saved, and :meth:`train` before training goes on; a new
    optimizer is in training mode. :class:`lrfast.FineTuner` does so by itself. With a ``schedule``,
    the average weighs each step by the largest learning rate so far.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 2.5e-3. It may be 1 to 10 times AdamW's with a
            schedule.
        betas: Place of y between z and x, in (0, 1), and decay of the average square, in [0, 1);
            default (0.9, 0.999).
        eps: Added to the root of the average square, 0 or more; default 1e-8.
        weight_decay: Decoupled weight decay, 0 or more, computed at y; default 0.
        warmup_steps: Steps, 0 or more, in which the learning rate grows linearly from 0, counted
            for each parameter; default 0. Reported learning rates are without it.
        r: Power of the step in its weight in the average, 0 or more; default 0.
        weight_lr_power: Power of the largest learning rate so far in that weight; default 2.
        foreach: Ignored; accepted for compatibility with schedulefree.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.AdamWScheduleFree(layer.parameters(), lr=2.5e-3, warmup_steps=10)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.eval()  # validate or save here
        >>> optimizer.train()

    Reference:
        Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
    """

    _rule = "adamw_schedule_free"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        self._start(
            params, schedule, options, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
            warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power, foreach=foreach,
        )  # fmt: skip


@checked_methods()
class SGDScheduleFree(_ScheduleFree):
    """SGD without a schedule: training weights y, and their running average x for use.

    Arguments and state dicts are those of schedulefree.SGDScheduleFree; :class:`AdamWScheduleFree`
    says when to call :meth:`train` and :meth:`eval`.

    Args:
        params: Parameters or param groups.
        lr: Learning rate, 0 or more; default 1. It is 10 to 50 times that of SGD with a schedule.
        momentum: Place of y between z and x, in (0, 1); default 0.9.
        weight_decay: Weight decay, 0 or more, computed at y; default 0.
        warmup_steps: Steps, 0 or more, in which the learning rate grows linearly from 0, counted
            for each parameter; default 0. Reported learning rates are without it.
        r: Power of the step in its weight in the average, 0 or more; default 0.
        weight_lr_power: Power of the largest learning rate so far in that weight; default 2.
        foreach: Ignored; accepted for compatibility with schedulefree.
        schedule: Multiplies the learning rates, see :meth:`set_schedule`; default None.
        **options: Options of the step, see :class:`lrfast.optim.Options`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> optimizer = lrfast.SGDScheduleFree(torch.nn.Linear(2, 1).parameters(), warmup_steps=10)

    Reference:
        Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
    """

    _rule = "sgd_schedule_free"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        schedule: Schedules = None,
        **options: Unpack[StepOptions],
    ) -> None:
        self._start(
            params, schedule, options, lr=lr, momentum=momentum, weight_decay=weight_decay,
            warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power, foreach=foreach,
        )  # fmt: skip
