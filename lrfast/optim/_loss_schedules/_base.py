"""What loss-driven schedules share: their state on the device, and how a value is judged."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrfast._utils.validation import (
    MAX_STEPS,
    check_choice,
    check_count,
    check_dict,
    check_finite,
    check_float,
    check_str,
    check_tensor,
    short_repr,
)
from lrfast.optim._scheduling import Scheduled

Mode = Literal["min", "max"]
ThresholdMode = Literal["rel", "abs"]
MOST = sys.float_info.max


class LossSchedule(ABC):
    """A factor of all rates that follows a measured value: base of Plateau and Greedy.

    An optimizer has one at most, as its ``loss_schedule``; it travels in the optimizer's state
    dict, and in its copies and pickles. An optimizer that was loaded before its Plateau or Greedy
    is made goes on with the factor that it had; the one that is made then takes the state over.
    """

    _ARGUMENTS: ClassVar[tuple[str, ...]] = (
        *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown"),
        *("min_factor", "window"),
    )

    def __init__(
        self,
        optimizer: Scheduled,
        *,
        mode: Mode,
        factor: float,
        patience: int,
        threshold: float,
        threshold_mode: ThresholdMode,
        cooldown: int,
        min_factor: float,
        window: int,
    ) -> None:
        check_choice("mode", mode, ("min", "max"))
        check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {factor}")
        if not 0 <= min_factor <= 1:
            raise ValueError(f"min_factor must lie in [0, 1], got {min_factor}")
        if not 0 <= threshold <= MOST:
            raise ValueError(f"threshold must be finite and not negative, got {threshold}")
        self.patience = check_count("patience", patience, 0, MAX_STEPS)
        self.cooldown = check_count("cooldown", cooldown, 0, MAX_STEPS)
        self.window = check_count("window", window, 1, MAX_STEPS)
        self.mode, self.threshold_mode = mode, threshold_mode
        # torch takes no whole number beyond 64 bits.
        self.factor, self.min_factor = float(factor), float(min_factor)
        self.threshold = float(threshold)
        self._is_loaded = False  # made by a load, not by the user
        self._state = self._state_on(optimizer)
        self._optimizer = optimizer
        optimizer._attach_loss_schedule(self)

    @property
    def scale(self) -> Tensor:
        """What multiplies the rates now, one float64 on the device."""
        return self._state["scale"].clone()

    @property
    def cuts(self) -> int:
        """How often the rates were cut. Waits for the device."""
        return int(self._state["cuts"])

    @property
    def identity(self) -> dict[str, Any]:
        """Its kind and arguments, by which a state dict is known to be of such a schedule."""
        arguments = {name: getattr(self, name) for name in self._ARGUMENTS}
        return {"kind": type(self).__name__, "arguments": arguments}

    @torch.no_grad()
    def observe(self, value: Tensor | float) -> None:
        """Take note of a value, such as a validation loss; never waits for the device.

        A value that is not a number is a bad one. It takes 30 (Plateau) to 66 (Greedy with a
        window) small operations on the device: show it something each epoch or every few dozen
        steps, not at every step.

        Args:
            value: A scalar; where several processes train one model, the same one in all of them.

        Raises:
            ValueError: If it is not a scalar.
        """
        seen = self._smoothed(self._on_device(value))
        if self.mode == "max":
            seen = -seen
        self._count(seen, seen < self._limit(self._state["best"]))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was observed, and go back to the factor 1; never waits for the device."""
        for name, value in self._start().items():
            self._state[name].fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return kind, arguments and what was observed so far, as ``torch.save`` can write it.

        The optimizer's state dict holds the same.
        """
        return self.identity | {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state_dict: What was returned.

        Raises:
            ValueError: If it is of another kind or other arguments, or an entry is missing or is
                not what it was; nothing is changed then.
        """
        self.check_state_dict(state_dict)
        self._put_back(state_dict)

    @torch.no_grad()
    def _put_back(self, state_dict: Mapping[str, Any]) -> None:
        """Take values that have been checked, or are its own; never waits for the device."""
        for name, own in self._state.items():
            value = state_dict[name]
            own.copy_(
                value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=own.dtype)
            )

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can take a state dict.

        Args:
            state_dict: What it would be given.

        Raises:
            ValueError: If it cannot.
        """
        check_dict("state_dict", state_dict)
        if (difference := self._difference(state_dict)) is not None:
            own, saved = difference
            raise ValueError(
                f"state_dict must be of a {own}, got one of a {saved}; detach() the optimizer's "
                "loss_schedule to take the saved one, or leave the saved one out"
            )
        missing = sorted(self._state.keys() - state_dict.keys())
        if missing:
            raise ValueError(
                f"state_dict must be what {type(self).__name__}.state_dict returned, got one "
                f"without {missing}"
            )
        for name, value in self._state.items():
            _check_value(name, state_dict[name], value)

    def detach(self) -> None:
        """Let the optimizer go: its rates are no longer multiplied."""
        if self._optimizer.loss_schedule is self:
            self._optimizer._attach_loss_schedule(None)

    @abstractmethod
    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        """Count a value, its sign turned for "max", and change the factor where it is time to."""

    def _start(self) -> dict[str, float]:
        """The state before the first observation."""
        start = {"best": math.inf, "bad": 0.0, "cooldown": 0.0, "scale": 1.0, "cuts": 0.0}
        return start if self.window == 1 else start | {"values": 0.0, "num_values": 0.0}

    def _lowered(self) -> Tensor:
        return (self._state["scale"] * self.factor).clamp(min=self.min_factor)

    def _state_on(self, optimizer: Scheduled) -> dict[str, Tensor]:
        """A state of its own, or the one that the optimizer has loaded."""
        if not isinstance(optimizer, Scheduled):
            raise TypeError(
                f"optimizer must be one of lrfast's, got {type(optimizer).__name__}; lrfast.wrap "
                "takes over one of torch.optim"
            )
        other = optimizer.loss_schedule
        if other is None:
            device = next(p for group in optimizer.param_groups for p in group["params"]).device
            shapes = {"values": (self.window,)}
            return {
                name: torch.full(shapes.get(name, ()), value, dtype=torch.float64, device=device)
                for name, value in self._start().items()
            }
        if not other._is_loaded:
            raise ValueError(
                "optimizer must have one Plateau or Greedy at most, got one that has a "
                f"{type(other).__name__}"
            )
        if (difference := self._difference(other.identity)) is not None:
            own, loaded = difference
            raise ValueError(
                f"optimizer must go on with the {loaded} that it has loaded, got a {own}; detach() "
                "its loss_schedule to begin anew"
            )
        return other._state

    def _difference(self, saved: Mapping[str, Any]) -> tuple[str, str] | None:
        """How this one and a saved one are called, with what differs; None: nothing does."""
        own = self.identity
        check_arguments(saved.get("arguments", {}))
        if saved.get("kind", own["kind"]) != own["kind"]:
            return own["kind"], check_str("kind", saved["kind"])
        arguments = own["arguments"]
        differing = {
            name: value
            for name, value in saved.get("arguments", {}).items()
            if arguments.get(name) != value
        }
        if not differing:
            return None
        named = [
            ", ".join(
                f"{short_repr(name)[1:-1]}={short_repr(given.get(name))}" for name in differing
            )
            for given in (arguments, differing)
        ]
        return f"{own['kind']}({named[0]})", f"{own['kind']}({named[1]})"

    def _on_device(self, value: Tensor | float) -> Tensor:
        device = self._state["best"].device
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"value must be a scalar, got shape {list(value.shape)}")
        if isinstance(value, Tensor) and (value.device == device or not value.is_cpu):
            return value.detach().reshape(()).to(device, torch.float64)
        # Filled in by a kernel: a copy from the host's memory would wait.
        return torch.full((), float(value), dtype=torch.float64, device=device)

    def _smoothed(self, value: Tensor) -> Tensor:
        """The mean of the last values; from a sum that is made anew, so that a NaN passes by."""
        if self.window == 1:
            return value
        values, count = self._state["values"], self._state["num_values"]
        values.copy_(torch.cat([values[1:], value.reshape(1)]))
        count.add_(1).clamp_(max=self.window)
        return values.sum() / count

    def _limit(self, best: Tensor) -> Tensor:
        """Below which a value is better; losses are compared with their sign turned for "max"."""
        if self.threshold_mode == "abs":
            return best - self.threshold
        if self.mode == "min":
            return best * (1 - self.threshold)
        return -(-best * (1 + self.threshold))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._is_loaded = True  # nobody else holds it


def check_arguments(saved: Any) -> dict[str, Any]:
    """Return saved arguments, if they are plain names and numbers.

    Raises:
        ValueError: If they are not.
    """
    for name, value in check_dict("arguments", saved).items():
        check_str("an argument's name", name)
        if not isinstance(value, str):
            check_float(name, value)
    return dict(saved)


def _check_value(name: str, saved: Any, own: Tensor) -> None:
    if isinstance(saved, Tensor):
        if check_tensor(name, saved).shape != own.shape or saved.is_complex():
            raise ValueError(f"{name} must be {short_repr(own)}, got {short_repr(saved)}")
        if not saved.is_cpu:
            return  # asking a device for its value would wait for it
        values = saved.detach().double().reshape(-1).tolist()
    elif own.dim() == 0:
        values = [saved]
    else:
        raise ValueError(f"{name} must be {short_repr(own)}, got {short_repr(saved)}")
    for value in values:
        if name in ("best", "values"):
            check_float(name, value)
        else:
            check_finite(name, value, least=0.0, most=MAX_STEPS)
