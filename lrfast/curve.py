"""Loss curves: losses and learning rates recorded on the device, read on demand.

Recording costs one launch and no synchronisation. Raw values are kept; smoothing and derivatives
are chosen afterwards. The arithmetic is the engine's (csrc/core/curve.h), the same for the flag
that stops a range test and for plots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy.typing as npt
import torch
from torch import Tensor

from lrfast._utils.arguments import checked_methods, described
from lrfast._utils.async_copy import AsyncHostCopy
from lrfast._utils.extension import extension
from lrfast._utils.former_names import renamed
from lrfast._utils.validation import (
    check_choice,
    check_count,
    check_dict,
    check_tensor,
    is_int,
    short_repr,
)

__all__ = ["CurveStatus", "LossCurve"]

Smoother = Literal["ema", "sma", "median", "savgol", "none"]
_Outcome = Literal["running", "diverged", "non-finite"]


@dataclass(frozen=True)
class CurveStatus:
    """State of a curve as of a recent loss, on the host.

    Args:
        count: Number of recorded losses.
        smoothed: Bias-corrected EMA of the losses; NaN before the first finite one.
        first: First value of the EMA, which is the first finite loss; NaN before it.
        best: Lowest EMA so far; NaN before the first finite loss.
        noise: Standard deviation of one loss, in units of the loss: the root of an EMA of half the
            squared differences of successive finite losses, each clipped to three standard
            deviations; NaN before two.
        last: Last loss recorded; NaN before the first.
        outcome: "running", "diverged" or "non-finite".
        stopped_at: Index of the loss that ended "running", or None.
    """

    count: int
    smoothed: float
    best: float
    last: float
    outcome: _Outcome
    stopped_at: int | None
    first: float = math.nan
    noise: float = math.nan


@checked_methods("record", "truncate")
class LossCurve:
    """Losses and learning rates of a run, recorded without a synchronisation.

    Args:
        capacity: Largest number of losses, 1 or more.
        device: Device of the losses; default "cpu".
        width: Learning rates per loss: 1, the default, or one per parameter group.
        beta: Decay of the running EMA, in [0, 1); default 0.98.
        diverge_threshold: Factor above 1: the run has diverged once the EMA exceeds its best by
            more than ``(diverge_threshold - 1) * max(best, drop / 10, noise)``. ``drop`` is the
            fall of the EMA so far, and ``noise`` the standard deviation of one loss, as of the loss
            before. For losses well above zero that is the usual ``diverge_threshold * best``. With
            a best of 0 or less nothing diverges within ten losses, nor if all losses were equal so
            far. None, the default: never.
        grace: Number of losses at the start that are not judged, 0 or more; default 0.
        rates: Learning rates planned for each loss, [capacity] or [capacity, width], in the order
            of recording. None, the default: they come with the losses.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, lrfast
        >>> curve = lrfast.LossCurve(capacity=3)
        >>> for loss in (4.0, 2.0, 1.0):
        ...     curve.record(torch.tensor(loss), lr=0.1)
        >>> curve.losses.tolist()
        [4.0, 2.0, 1.0]
        >>> curve.smoothed("sma", window=3).tolist()
        [4.0, 2.3333333333333335, 1.0]
        >>> curve.status().outcome
        'running'
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device | str | int = "cpu",
        *,
        width: int = 1,
        beta: float = 0.98,
        diverge_threshold: float | None = None,
        grace: int = 0,
        rates: Tensor | npt.ArrayLike | None = None,
    ) -> None:
        capacity, width = check_count("capacity", capacity), check_count("width", width)
        grace = check_count("grace", grace, least=0)
        _check_beta(beta)
        try:
            device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device must be one of torch's, got {device!r}: {reason}") from error
        if diverge_threshold is not None and not (
            math.isfinite(diverge_threshold) and diverge_threshold > 1
        ):
            raise ValueError(f"diverge_threshold must be above 1, or None, got {diverge_threshold}")
        self.capacity, self.width = capacity, width
        self.beta, self.diverge_threshold, self.grace = beta, diverge_threshold, grace
        self._losses = torch.full((capacity,), math.nan, dtype=torch.float64, device=device)
        self._planned = rates is not None
        self._rates = _rate_rows(rates, capacity, width, device)
        self._state = torch.zeros(extension().curve_state_size, dtype=torch.float64, device=device)
        self._no_rate = torch.full((width,), math.nan, dtype=torch.float64, device=device)
        self.device = self._state.device
        self._recorded = 0  # while no step may have been skipped
        self._may_skip = False
        self._mirror = AsyncHostCopy(self._state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(renamed(state, ["diverge_threshold"]))

    def record(
        self,
        loss: Tensor,
        lr: float | Sequence[float] | Tensor | None = None,
        *,
        skip: Tensor | None = None,
    ) -> None:
        """Record one loss and its learning rates, without a synchronisation.

        Args:
            loss: One element, floating point, on the curve's device.
            lr: Learning rate or rates, [width]; a tensor must be float64 on the curve's device.
                None, the default: the planned ones, or NaN if none are planned.
            skip: One element like ``loss``, such as a GradScaler's ``found_inf``; default None.
                Unless it is 0, a finite loss is not recorded; an infinite or NaN one is, and sets
                the flag. As the device decides, from the first ``skip`` on ``len(curve)`` and what
                depends on it synchronise, and losses past the capacity are dropped.

        Raises:
            IndexError: If the curve is full, and no ``skip`` was ever passed.
            TypeError, ValueError: If an argument is not of that kind, or ``lr`` is given although
                learning rates are planned.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss must be a scalar tensor, got {type(loss).__name__}")
        if not (skip is None or isinstance(skip, Tensor)):
            raise TypeError(f"skip must be a scalar tensor, got {type(skip).__name__}")
        self._check_room(skip is not None)
        self._launch(loss, self._row(lr), skip)
        self._count(skip is not None)

    def _launch(self, loss: Tensor, rates: Tensor | None, skip: Tensor | None) -> None:
        rule = (self.beta, self.diverge_threshold or 0.0, self.grace)
        extension().record_loss(
            self._state, self._losses, self._rates, loss.detach(), rates, skip, *rule
        )

    def _check_room(self, may_skip: bool) -> None:
        if not may_skip and not self._may_skip and self._recorded >= self.capacity:
            raise IndexError(f"the curve is full: its capacity is {self.capacity} losses")

    def _make_room(self, count: int) -> bool:
        """Let a full curve take so many losses more, and return whether it was full.

        A graph that records into it must then be captured again.
        """
        if self._recorded < self.capacity:
            return False
        for name in ("_losses", "_rates"):
            rows: Tensor = getattr(self, name)
            more = rows.new_full((count, *rows.shape[1:]), math.nan)
            setattr(self, name, torch.cat([rows, more]))
        self.capacity += count
        return True

    def _count(self, may_skip: bool) -> None:
        self._may_skip = self._may_skip or may_skip
        self._recorded += 1

    def _row(self, lr: float | Sequence[float] | Tensor | None) -> Tensor | None:
        """Return learning rates for the engine: [width] on the device; None: the planned ones."""
        if self._planned:
            if lr is None:
                return None
            raise ValueError(f"lr must be None where rates are planned, got {type(lr).__name__}")
        if lr is None:
            return self._no_rate
        if isinstance(lr, Tensor):
            return lr
        # In this order: to ask the abstract class first takes a twentieth of a recording.
        values: Any = [lr] if isinstance(lr, (float, int, Real, str)) else lr
        try:
            numbers = [float(each) for each in values]
        except (TypeError, ValueError) as error:
            got = described(lr)
            raise TypeError(f"lr must be a number, or one per group, got {got}") from error
        rates = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        if self.device.type != "cuda":
            return rates
        return rates.pin_memory().to(self.device, non_blocking=True)

    def __len__(self) -> int:
        """Number of recorded losses. Synchronises once a step may have been skipped."""
        return int(self._state[_COUNT]) if self._may_skip else self._recorded

    def truncate(self, count: int) -> None:
        """Forget all but the first ``count`` losses; the running EMA, best and flag stay.

        Args:
            count: Number of losses to keep, from 0 to ``len(self)``.

        Raises:
            ValueError: If it is out of range.
        """
        recorded = len(self)
        if not is_int(count) or not 0 <= count <= recorded:
            raise ValueError(f"count must be from 0 to {recorded}, got {short_repr(count)}")
        self._recorded = count
        self._state[_COUNT].fill_(count)

    def _packed(self) -> dict[str, Tensor]:
        """Return copies of all that was recorded."""
        return {name: getattr(self, f"_{name}").clone() for name in ("state", "losses", "rates")}

    def _unpack(self, saved: object) -> None:
        """Take over what another curve of the same shape has recorded."""
        own = self._packed()
        given = check_dict("curve", saved, own)
        tensors = {name: check_tensor(name, given[name], torch.float64) for name in own}
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                wanted, got = list(own[name].shape), list(tensor.shape)
                raise ValueError(f"{name} must have shape {wanted}, got {got}")
        count = int(_check_state("state", tensors["state"], self.capacity)[_COUNT])
        for name, tensor in tensors.items():
            getattr(self, f"_{name}").copy_(tensor)
        self._recorded = count

    @property
    def losses(self) -> Tensor:
        """Raw losses, float64 [len(self)], on the device."""
        return self._losses[: len(self)]

    @property
    def lrs(self) -> Tensor:
        """Learning rates, float64 [len(self)] on the device; [len(self), width] if width > 1."""
        rates = self._rates[: len(self)]
        return rates[:, 0] if rates.shape[1] == 1 else rates

    @property
    def stop_flag(self) -> Tensor:
        """One float64 on the device, 0 while the run goes on and not 0 from its end on."""
        return self._state[_FLAG : _FLAG + 1]

    def smoothed(
        self,
        method: Smoother = "ema",
        *,
        beta: float | None = None,
        window: int | None = None,
        order: int | None = None,
    ) -> Tensor:
        """Return the smoothed losses, float64 [len(self)], on the device.

        Args:
            method: "ema", the default: the bias-corrected exponential moving average; "sma": the
                mean of a centred window; "median": its median, without NaN, both of windows that
                narrow towards the ends; "savgol": the polynomial that fits a window best
                (Savitzky-Golay), at the ends that of the last full one; "none": the raw losses.
            beta: Decay of the EMA, in [0, 1); None, the default: the curve's own.
            window: Odd width in losses; default 5, for "savgol" 11, which must be above ``order``
                and at most ``len(self)``.
            order: Degree of the polynomial, from 0 to 5; default 2.

        An infinite or NaN loss is NaN in "ema" and left out of later values; the windows of "sma"
        and "savgol" that hold it are NaN.

        Raises:
            ValueError: If ``method`` is unknown, or a parameter is out of range or not for it.

        Reference:
            Savitzky & Golay, "Smoothing and Differentiation of Data by Simplified Least Squares
            Procedures", 1964.
        """
        return self._smooth(method, {"beta": beta, "window": window, "order": order}, "window")

    def _smooth(self, method: Smoother, given: Mapping[str, Any], width: str) -> Tensor:
        """Return smoothed losses; ``width`` is the name of the window's parameter."""
        takes = {"ema": ("beta",), "sma": (width,), "median": (width,), "savgol": (width, "order")}
        check_choice("method", method, (*takes, "none"))
        taken = takes.get(method, ())
        for name, value in given.items():
            if value is not None and name not in taken:
                known = " and ".join(taken) or "no parameter"
                raise ValueError(f"{name} is not for method {method!r}, which takes {known}")
        if method == "none":
            return self.losses
        defaults = {"beta": self.beta, width: 11 if method == "savgol" else 5, "order": 2}
        values = [defaults[name] if given[name] is None else given[name] for name in taken]
        if method == "ema":
            _check_beta(values[0])
        elif not is_int(values[0]) or values[0] < 1 or values[0] % 2 == 0:
            raise ValueError(f"{width} must be odd and 1 or more, got {short_repr(values[0])}")
        engine = extension()
        smooth = {
            "ema": engine.smooth_ema,
            "sma": engine.moving_average,
            "median": engine.running_median,
            "savgol": engine.savitzky_golay,
        }[method]
        smoothed: Tensor = smooth(self.losses, *values)
        return smoothed

    def derivative(
        self,
        wrt: Literal["log_lr", "step", "lr"] = "log_lr",
        *,
        window: int = 1,
        beta: float | None = None,
        method: Smoother = "ema",
        smooth_window: int | None = None,
        order: int | None = None,
    ) -> Tensor:
        """Return the slope of the smoothed losses, float64 [len(self)], on the device.

        ``(L[i + window] - L[i - window]) / (x[i + window] - x[i - window])``, one-sided within
        ``window`` of the ends. A wider window averages more noise away and, being centred, does not
        shift the curve. Surmenok's plot, the moving average of n = 2 * window changes per step that
        end at i, is this at i - window, for ``wrt="step"`` and ``method="none"``.

        Args:
            wrt: The variable x: "log_lr", the default, the natural logarithm of the (first)
                learning rate; "step"; or "lr".
            window: Steps to either side, 1 or more; default 1.
            beta: As in :meth:`smoothed`; 0: raw losses.
            method: As in :meth:`smoothed`.
            smooth_window: The ``window`` of :meth:`smoothed`.
            order: As in :meth:`smoothed`.

        Raises:
            ValueError: If an argument is out of range, or fewer than 2 losses are recorded.

        Reference:
            Surmenok, "Estimating an Optimal Learning Rate For a Deep Neural Network", 2017.
        """
        window = check_count("window", window)
        if (count := len(self)) < 2:
            raise ValueError(f"a derivative needs 2 losses or more, got {count}")
        check_choice("wrt", wrt, ("log_lr", "step", "lr"))
        x = self._rates[:count, 0].contiguous()
        if wrt == "step":
            x = torch.arange(count, dtype=torch.float64, device=self.device)
        elif wrt == "log_lr":
            x = x.log()
        given = {"beta": beta, "smooth_window": smooth_window, "order": order}
        smoothed = self._smooth(method, given, "smooth_window")
        slopes: Tensor = extension().derivative(smoothed, x, window)
        return slopes

    def status(self) -> CurveStatus:
        """Return the curve's state as of its last loss. Synchronises the device."""
        return _read_status(self._state.cpu())

    def poll(self) -> CurveStatus:
        """Return the state as of a recent loss, on the CPU the last one, without a synchronisation.

        On a GPU each call queues a copy and returns the newest one that has arrived.
        """
        return _read_status(self._mirror.latest())


class _CurveRecorder:
    """Recording of a curve's losses from within a step that a CUDA graph may replay.

    A replay launches again what ``record`` launched; ``begin`` and ``end`` are the host's part.
    """

    def __init__(self, curve: LossCurve) -> None:
        self._curve = curve
        self._may_skip = False
        self._is_muted = False

    def record(
        self, loss: Tensor, lr: float | Tensor | None = None, *, skip: Tensor | None = None
    ) -> None:
        """Launch the recording of one loss, as :meth:`LossCurve.record` does."""
        self._may_skip = skip is not None
        if not self._is_muted:
            self._curve._launch(loss, self._curve._row(lr), skip)

    @property
    def device(self) -> torch.device:
        """The curve's."""
        return self._curve.device

    @property
    def takes_rates(self) -> bool:
        """Whether learning rates come with the losses, because none are planned."""
        return not self._curve._planned

    def begin(self) -> None:
        """Check that the curve has room for the loss of a step."""
        self._curve._check_room(self._may_skip)

    def end(self) -> None:
        """Count the loss of a step."""
        self._curve._count(self._may_skip)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Record nothing for a while, of steps that will be undone."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False


# Places in the state tensor: csrc/core/curve.h, CurveState.
_COUNT, _EMA_SUM, _EMA_WEIGHT, _FIRST, _BEST, _BEST_AT, _FLAG, _FLAGGED_AT = range(8)
_LAST, _LAST_FINITE, _SQUARES_SUM, _SQUARES_WEIGHT, _NOISE = range(8, 13)
_OUTCOMES: tuple[_Outcome, ...] = get_args(_Outcome)  # by the flag


def _check_state(name: str, value: Any, capacity: int) -> Tensor:
    """Return the saved state of a curve with so much room, on any device; read by ``poll``."""
    state = check_tensor(name, value, torch.float64, dims=1)
    if len(state) != extension().curve_state_size:
        wanted = extension().curve_state_size
        raise ValueError(f"{name} must have {wanted} numbers, got {len(state)}")
    for place, most in ((_COUNT, capacity), (_FLAG, len(_OUTCOMES) - 1), (_FLAGGED_AT, capacity)):
        number = float(state[place])
        if number not in range(most + 1):
            raise ValueError(f"{name}[{place}] must be from 0 to {most}, got {number}")
    return state


def _read_status(state: Tensor) -> CurveStatus:
    values = state.numpy()  # host memory: no operator is dispatched
    has_loss = values[_EMA_WEIGHT] > 0
    flag = int(values[_FLAG])
    return CurveStatus(
        count=int(values[_COUNT]),
        smoothed=float(values[_EMA_SUM] / values[_EMA_WEIGHT]) if has_loss else math.nan,
        best=float(values[_BEST]) if has_loss else math.nan,
        last=float(values[_LAST]) if values[_COUNT] else math.nan,
        outcome=_OUTCOMES[flag],
        stopped_at=int(values[_FLAGGED_AT]) if flag else None,
        first=float(values[_FIRST]) if has_loss else math.nan,
        noise=float(values[_NOISE]) if values[_SQUARES_WEIGHT] > 0 else math.nan,
    )


def _rate_rows(
    rates: Tensor | npt.ArrayLike | None, capacity: int, width: int, device: torch.device | str
) -> Tensor:
    """Return a new tensor, float64 [capacity, width], of planned learning rates or NaN."""
    rows = torch.full((capacity, width), math.nan, dtype=torch.float64, device=device)
    if rates is None:
        return rows
    try:
        planned = torch.as_tensor(rates, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"rates must be numbers, got {short_repr(rates)}") from error
    shape = tuple(planned.shape)
    if shape != (capacity, width) and (shape != (capacity,) or width != 1):
        wanted = f"[{capacity}] or [{capacity}, 1]" if width == 1 else f"[{capacity}, {width}]"
        raise ValueError(f"rates must have shape {wanted}, got {list(shape)}")
    return rows.copy_(planned.detach().reshape(capacity, width))


def _check_beta(beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
