"""Loss schedules: Plateau and Greedy, whose factor multiplies all learning rates.

State and factor stay on the device: neither an observation nor a change of the factor synchronises.
The factor is ignored while a range test controls the learning rates.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from lrfast._utils.arguments import checked_methods
from lrfast._utils.public import public_in
from lrfast._utils.validation import (
    MAX_STEPS,
    check_choice,
    check_count,
    check_dict,
    check_finite,
    check_float,
    check_fraction,
    check_str,
    check_tensor,
    short_repr,
)
from lrfast.optim._scheduling import SchedulingMixin

Mode = Literal["min", "max"]
ThresholdMode = Literal["rel", "abs"]
_MOST = sys.float_info.max


@public_in("lrfast.loss_schedules")
class LossSchedule(ABC):
    """A factor of all learning rates that follows a measured value: base of Plateau and Greedy.

    An optimizer has one at most, as its ``loss_schedule``; it is part of the optimizer's state
    dict, copies and pickles. One created after the optimizer's state was loaded adopts it. It
    multiplies whatever schedule the optimizer has, also in the stages of a fine-tuner; a range test
    ignores it.
    """

    _ARGUMENTS: ClassVar[tuple[str, ...]] = (
        *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown"),
        *("min_factor", "window"),
    )

    def __init__(
        self,
        optimizer: SchedulingMixin,
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
        check_fraction("min_factor", min_factor)
        if not 0 <= threshold <= _MOST:
            raise ValueError(f"threshold must be finite and not negative, got {threshold}")
        self.mode, self.threshold_mode = mode, threshold_mode
        # torch takes no whole number beyond 64 bits.
        self.factor, self.min_factor = float(factor), float(min_factor)
        self.threshold = float(threshold)
        self.patience = check_count("patience", patience, 0, MAX_STEPS)
        self.cooldown = check_count("cooldown", cooldown, 0, MAX_STEPS)
        self.window = check_count("window", window, 1, MAX_STEPS)
        self._is_loaded = False  # True if a load made it, not the user
        self._state = self._state_on(optimizer)
        self._optimizer = optimizer
        optimizer._attach_loss_schedule(self)

    @property
    def scale(self) -> Tensor:
        """The factor of all learning rates, one float64 on the device."""
        return self._state["scale"].clone()

    @property
    def cuts(self) -> int:
        """Number of cuts of the learning rates so far. Synchronises the device."""
        return int(self._state["cuts"])

    @property
    def identity(self) -> dict[str, Any]:
        """Its kind and arguments, which a loaded state dict must have, too."""
        arguments = {name: getattr(self, name) for name in self._ARGUMENTS}
        return {"kind": type(self).__name__, "arguments": arguments}

    @torch.no_grad()
    def observe(self, value: Tensor | float) -> None:
        """Count a value, such as a validation loss, without a synchronisation.

        NaN counts as a bad value. It takes 30 (Plateau) to 66 (Greedy with a window) small
        operations on the device: observe once per epoch or every few dozen steps, not every step.

        Args:
            value: A scalar; if several processes train one model, the same one in all of them.

        Raises:
            ValueError: If it is not a scalar.
        """
        seen = self._smoothed(self._on_device(value))
        if self.mode == "max":
            seen = -seen
        self._count(seen, seen < self._limit(self._state["best"]))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all observations and return to the factor 1, without a synchronisation."""
        for name, value in self._start().items():
            self._state[name].fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return kind, arguments and counts, which the optimizer's state dict holds, too."""
        return self.identity | {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; nothing has changed if it raises.

        Args:
            state_dict: From :meth:`state_dict`.

        Raises:
            ValueError: If it is of another kind or arguments, or an entry is missing or invalid.
        """
        self.check_state_dict(state_dict)
        self._restore(state_dict)

    @torch.no_grad()
    def _restore(self, state_dict: Mapping[str, Any]) -> None:
        """Load values that have been checked, without a synchronisation."""
        for name, own in self._state.items():
            value = state_dict[name]
            own.copy_(
                value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=own.dtype)
            )

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Check that a state dict can be loaded; arguments and errors of :meth:`load_state_dict`.

        Args:
            state_dict: From :meth:`state_dict`.

        Raises:
            ValueError: As :meth:`load_state_dict` does.
        """
        check_dict("state_dict", state_dict)
        if (difference := self._difference(state_dict)) is not None:
            own, saved = difference
            raise ValueError(
                f"state_dict must be of a {own}, got one of a {saved}; detach() the optimizer's "
                "loss_schedule to take the saved one, or leave the saved one out"
            )
        if missing := sorted(self._state.keys() - state_dict.keys()):
            raise ValueError(
                f"state_dict must be what {type(self).__name__}.state_dict returned, got one "
                f"without {missing}"
            )
        for name, value in self._state.items():
            _check_value(name, state_dict[name], value)

    def detach(self) -> None:
        """Detach from the optimizer: its learning rates are no longer multiplied."""
        if self._optimizer._loss_schedule is self:
            self._optimizer._attach_loss_schedule(None)

    @abstractmethod
    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        """Count a value, negated for mode "max", and change the factor if it is time to."""

    def _start(self) -> dict[str, float]:
        """Return the state before the first observation."""
        start = {"best": math.inf, "bad": 0.0, "cooldown": 0.0, "scale": 1.0, "cuts": 0.0}
        return start if self.window == 1 else start | {"values": 0.0, "num_values": 0.0}

    def _lowered(self) -> Tensor:
        return (self._state["scale"] * self.factor).clamp(min=self.min_factor)

    def _state_on(self, optimizer: SchedulingMixin) -> dict[str, Tensor]:
        """Return a new state, or the one that the optimizer has loaded."""
        if not isinstance(optimizer, SchedulingMixin):
            raise TypeError(
                f"optimizer must be one of lrfast's, got {type(optimizer).__name__}; lrfast.wrap "
                "takes over one of torch.optim"
            )
        other = attached(optimizer)
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
        """Return kind and differing arguments of this and a saved one; None if they are equal."""
        own, given = self.identity, _check_arguments(saved.get("arguments", {}))
        if saved.get("kind", own["kind"]) != own["kind"]:
            return own["kind"], check_str("kind", saved["kind"])
        arguments = own["arguments"]
        differing = [name for name, value in given.items() if arguments.get(name) != value]
        if not differing:
            return None

        def named(values: dict[str, Any]) -> str:
            each = (
                f"{short_repr(name)[1:-1]}={short_repr(values.get(name))}" for name in differing
            )
            return f"{own['kind']}({', '.join(each)})"

        return named(arguments), named(given)

    def _on_device(self, value: Tensor | float) -> Tensor:
        device = self._state["best"].device
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"value must be a scalar, got shape {list(value.shape)}")
        if isinstance(value, Tensor) and (value.device == device or not value.is_cpu):
            return value.detach().reshape(()).to(device, torch.float64)
        # Filled in by a kernel: a copy from the host's memory would synchronise.
        return torch.full((), float(value), dtype=torch.float64, device=device)

    def _smoothed(self, value: Tensor) -> Tensor:
        """Return the mean of the last values; summed anew, so that a NaN leaves with its value."""
        if self.window == 1:
            return value
        values, count = self._state["values"], self._state["num_values"]
        values.copy_(torch.cat([values[1:], value.reshape(1)]))
        count.add_(1).clamp_(max=self.window)
        return values.sum() / count

    def _limit(self, best: Tensor) -> Tensor:
        """Return the limit below which a value is better; values are negated for mode "max"."""
        if self.threshold_mode == "abs":
            return best - self.threshold
        return best * (1 - self.threshold if self.mode == "min" else 1 + self.threshold)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._is_loaded = True  # a copy or an unpickled one, which the user does not hold


@public_in("lrfast.loss_schedules")
@checked_methods()
class Plateau(LossSchedule):
    """Cuts all learning rates by a factor if a measured value has stopped improving.

    With ``counting="torch"``, as in ReduceLROnPlateau of torch and timm, a cut comes once the value
    has been bad more than ``patience`` times; with "keras", as in that of Keras (and optax), at the
    ``patience``-th time, and the observation at which a cool-down ends counts.

    See :class:`LossSchedule` for the factor beside schedules, fine-tuners and state dicts.

    Args:
        optimizer: An lrfast optimizer; its groups' ``lr`` and its schedule stay as they are.
        mode: "min", the default, if smaller is better, "max" if larger is.
        factor: Factor of a cut, in (0, 1); default 0.1.
        patience: Bad observations tolerated, 0 or more, with "keras" 1 or more; default 10.
        threshold: Least improvement over the best, 0 or more; default 1e-4.
        threshold_mode: "rel", the default: a fraction of the best; "abs": an amount.
        cooldown: Observations after a cut that are not counted, 0 or more; default 0.
        min_factor: Smallest multiple of the learning rates, in [0, 1]; default 0.
        counting: "torch", the default, or "keras".
        window: Number of last observations whose mean is judged, 1 or more; default 1.

    Raises:
        ValueError: If an argument is out of range, or differs from what the optimizer has loaded.
        TypeError: If ``optimizer`` is not an lrfast optimizer.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> plateau = lrfast.Plateau(optimizer, factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9, 0.95, 0.93):
        ...     plateau.observe(torch.tensor(loss))
        >>> optimizer.get_last_lr()
        [0.05]

    Reference:
        torch 2.13 and Keras 3, ``ReduceLROnPlateau``.
    """

    _ARGUMENTS = (*LossSchedule._ARGUMENTS, "counting")

    def __init__(
        self,
        optimizer: SchedulingMixin,
        mode: Mode = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: ThresholdMode = "rel",
        cooldown: int = 0,
        min_factor: float = 0.0,
        counting: Literal["torch", "keras"] = "torch",
        window: int = 1,
    ) -> None:
        check_choice("counting", counting, ("torch", "keras"))
        check_count("patience", patience, 1 if counting == "keras" else 0)
        self.counting = counting
        super().__init__(
            optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold,
            threshold_mode=threshold_mode, cooldown=cooldown, min_factor=min_factor, window=window,
        )  # fmt: skip

    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        state = self._state
        cooldown = (state["cooldown"] - 1).clamp(min=0)
        if self.counting == "torch":
            counts = state["cooldown"] == 0
            bad = torch.where(is_better | ~counts, 0.0, state["bad"] + 1)
            is_cut = bad > self.patience
        else:
            counts = cooldown == 0
            before = torch.where(state["cooldown"] == 0, state["bad"], 0.0)
            bad = torch.where(is_better, 0.0, before + counts)
            is_cut = ~is_better & (bad >= self.patience)
        lower = self._lowered()
        state["best"].copy_(torch.where(is_better, seen, state["best"]))
        state["cuts"].add_(is_cut & (lower < state["scale"]))
        state["scale"].copy_(torch.where(is_cut, lower, state["scale"]))
        state["cooldown"].copy_(torch.where(is_cut, float(self.cooldown), cooldown))
        state["bad"].copy_(torch.where(is_cut, 0.0, bad))


@public_in("lrfast.loss_schedules")
@checked_methods()
class Greedy(LossSchedule):
    """Raises all learning rates while a measured value improves, and lowers them otherwise.

    GreedyLR as transformers counts it: a value that beats the best is good, any other one is bad.
    After more than ``patience`` good ones in a row the learning rates are divided by ``factor``,
    and the observations of the ``warmup`` that follows are not counted; after more than
    ``patience`` bad ones they are multiplied by it, and a ``cooldown`` follows. The
    ``reset_start``-th cut to ``min_factor`` since the last raise starts over: factor 1, no best
    value.

    Three things differ from transformers: the limits are multiples of each group's own learning
    rate, so that ratios between groups stay; there is no least change (``eps``); and the mean over
    the window recovers once a NaN has left it.

    See :class:`LossSchedule` for the factor beside schedules, fine-tuners and state dicts.

    Args:
        optimizer: An lrfast optimizer; its groups' ``lr`` and its schedule stay as they are.
        mode: "min", the default, if smaller is better, "max" if larger is.
        factor: Factor of a cut, and divisor of a raise, in (0, 1); default 0.95.
        patience: Good or bad observations in a row that change nothing yet, 0 or more; default 10.
        threshold: Least improvement over the best, 0 or more; default 1e-6.
        threshold_mode: "rel": a fraction of the best; "abs", the default: an amount.
        cooldown: Observations after a cut that are not counted, 0 or more; default 0.
        warmup: Observations after a raise that are not counted, 0 or more; default 0.
        min_factor: Smallest multiple of the learning rates, in [0, 1]; default 0.01.
        max_factor: Largest multiple of the learning rates, 1 or more; default 10. The defaults of
            both are those of transformers, 1e-3 and 1, for a learning rate of 0.1.
        window: Number of last observations whose mean is judged, 1 or more; default 1.
        reset_start: Cuts to ``min_factor`` after which it starts over, 1 or more; default 500.

    Raises:
        ValueError: If an argument is out of range, or differs from what the optimizer has loaded.
        TypeError: If ``optimizer`` is not an lrfast optimizer.

    Example:
        >>> import torch, lrfast
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.1)
        >>> greedy = lrfast.Greedy(optimizer, factor=0.5, patience=1)
        >>> for loss in (1.0, 0.9):
        ...     greedy.observe(torch.tensor(loss))
        >>> optimizer.get_last_lr()
        [0.2]

    Reference:
        Subramanian & Ganapathiraman, "Zeroth Order GreedyLR: An Adaptive Learning Rate Scheduler
        for Deep Neural Network Training", 2023; arXiv:2512.14527; transformers' GreedyLR.
    """

    _ARGUMENTS = (*LossSchedule._ARGUMENTS, "warmup", "max_factor", "reset_start")
    # A reset keeps the counts of events, and the cool-down of the cut that caused it.
    _KEPT_BY_RESET = ("cuts", "raises", "resets", "cooldown")

    def __init__(
        self,
        optimizer: SchedulingMixin,
        mode: Mode = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: ThresholdMode = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_factor: float = 0.01,
        max_factor: float = 10.0,
        window: int = 1,
        reset_start: int = 500,
    ) -> None:
        self.warmup = check_count("warmup", warmup, 0, MAX_STEPS)
        self.reset_start = check_count("reset_start", reset_start, 1, MAX_STEPS)
        if not 1 <= max_factor <= _MOST:
            raise ValueError(f"max_factor must be finite and 1 or more, got {max_factor}")
        self.max_factor = float(max_factor)
        super().__init__(
            optimizer, mode=mode, factor=factor, patience=patience, threshold=threshold,
            threshold_mode=threshold_mode, cooldown=cooldown, min_factor=min_factor, window=window,
        )  # fmt: skip

    @property
    def raises(self) -> int:
        """Number of raises of the learning rates so far. Synchronises the device."""
        return int(self._state["raises"])

    @property
    def resets(self) -> int:
        """Number of resets so far. Synchronises the device."""
        return int(self._state["resets"])

    def _start(self) -> dict[str, float]:
        counts = ("good", "warmup", "stuck", "raises", "resets")
        return super()._start() | dict.fromkeys(counts, 0.0)

    def _count(self, seen: Tensor, is_better: Tensor) -> None:
        state, scale = self._state, self._state["scale"]
        counts = (state["cooldown"] == 0) & (state["warmup"] == 0)
        is_better = is_better & counts
        good = torch.where(is_better, state["good"] + 1, 0.0)
        bad = torch.where(counts & ~is_better, state["bad"] + 1, 0.0)
        is_raise, is_cut = good > self.patience, bad > self.patience
        higher, lower = (scale / self.factor).clamp(max=self.max_factor), self._lowered()
        state["best"].copy_(torch.where(is_better, seen, state["best"]))
        state["raises"].add_(is_raise & (higher > scale))
        state["cuts"].add_(is_cut & (lower < scale))
        scale.copy_(torch.where(is_raise, higher, torch.where(is_cut, lower, scale)))
        for name, begins in (("warmup", is_raise), ("cooldown", is_cut)):
            state[name].sub_(1).clamp_(min=0).masked_fill_(begins, getattr(self, name))
        state["good"].copy_(good.masked_fill_(is_raise, 0.0))
        state["bad"].copy_(bad.masked_fill_(is_cut, 0.0))
        stuck = state["stuck"].masked_fill_(is_raise, 0.0)
        is_reset = stuck.add_(is_cut & (scale <= self.min_factor)) >= self.reset_start
        state["resets"].add_(is_reset)
        for name, value in self._start().items():
            if name not in self._KEPT_BY_RESET:
                state[name].masked_fill_(is_reset, value)


_KINDS: dict[str, type[LossSchedule]] = {"Plateau": Plateau, "Greedy": Greedy}


def attached(optimizer: SchedulingMixin) -> LossSchedule | None:
    """Return an optimizer's Plateau or Greedy, if it has one."""
    return cast("LossSchedule | None", optimizer._loss_schedule)


def check_saved(optimizer: SchedulingMixin, saved: Mapping[str, Any] | None) -> None:
    """Check that an optimizer can load the loss schedule of a state dict.

    Args:
        optimizer: The optimizer.
        saved: From :meth:`LossSchedule.state_dict`; None: the state dict has none.

    Raises:
        ValueError: If it cannot.
    """
    if saved is None:
        return
    kind = _kind(check_dict("loss_schedule", saved))
    own = attached(optimizer)
    if own is not None:
        own.check_state_dict(saved)
        return
    arguments = _check_arguments(saved.get("arguments"))
    if not arguments.keys() <= set(kind._ARGUMENTS):
        raise ValueError(
            f"arguments must be among {', '.join(kind._ARGUMENTS)}, "
            f"got {short_repr(list(arguments))}"
        )
    # The file holds a window's values, so that a window cannot ask for more memory than the file.
    window = arguments.get("window", 1)
    if window != 1 and len(check_tensor("values", saved.get("values"), dims=1)) != window:
        raise ValueError(f"values must be as many as the window, {short_repr(window)}")
    try:  # a trial on a dummy optimizer makes all the checks
        trial = kind(_DummyOptimizer([torch.zeros(())], {}), **arguments)
    except TypeError as error:
        raise ValueError(f"arguments must be those of a {kind.__name__}: {error}") from error
    trial.check_state_dict(saved)


class _DummyOptimizer(SchedulingMixin):
    """An optimizer without an engine, for the trial of a loss schedule."""

    _engine = None


def load_saved(optimizer: SchedulingMixin, saved: Mapping[str, Any] | None) -> None:
    """Load the loss schedule of a state dict; without one, the optimizer's own stays as it is.

    Args:
        optimizer: The optimizer.
        saved: Checked by :func:`check_saved`.
    """
    if saved is None:
        return
    schedule = attached(optimizer)
    if schedule is None:
        schedule = _kind(saved)(optimizer, **saved["arguments"])
        schedule._is_loaded = True
    schedule._restore(saved)


def _kind(saved: Mapping[str, Any]) -> type[LossSchedule]:
    kind = saved.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"state_dict must hold a loss schedule of kind {' or '.join(_KINDS)}, "
            f"got {short_repr(kind)}"
        )
    return _KINDS[kind]


def _check_arguments(saved: Any) -> dict[str, Any]:
    """Return saved arguments, checked to be plain names and numbers."""
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
            return  # reading it would synchronise
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
