"""The loss curve: losses and rates recorded on the device, read when somebody asks.

Recording costs a launch and no wait. Raw values are kept; smoothing and derivatives are chosen
afterwards. The arithmetic is the engine's (csrc/core/curve.h), the same for the flag that stops a
range test and for what a plot shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrfast._extension import extension


@dataclass(frozen=True)
class CurveStatus:
    """What the host knows of a curve: its state as of some recent loss.

    Args:
        count: Losses recorded.
        smoothed: Bias-corrected EMA of the losses; NaN before the first finite one.
        best: Lowest EMA so far; NaN before the first finite loss.
        last: Last loss recorded; NaN before the first.
        outcome: "running", "diverged" or "non-finite".
        stopped_at: Index of the loss that ended "running", or None.
    """

    count: int
    smoothed: float
    best: float
    last: float
    outcome: Literal["running", "diverged", "non-finite"]
    stopped_at: int | None


class LossCurve:
    """Losses and rates of a run, recorded without waiting for the device.

    Args:
        capacity: Losses that fit, 1 or more.
        device: Where losses are; a loss must come from there.
        width: Rates recorded with each loss: 1, or one per parameter group.
        beta: Decay of the running EMA, in [0, 1).
        stop: The run counts as diverged once the EMA exceeds ``best + (stop - 1) * |best|``, which
            for positive losses is ``stop * best``. None: never.

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
        device: torch.device | str = "cpu",
        *,
        width: int = 1,
        beta: float = 0.98,
        stop: float | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {capacity}")
        if width < 1:
            raise ValueError(f"width must be 1 or more, got {width}")
        _check_beta(beta)
        if stop is not None and not (math.isfinite(stop) and stop > 1):
            raise ValueError(f"stop must be above 1, or None, got {stop}")
        self.capacity = capacity
        self.beta = beta
        self.stop = stop
        self._losses = torch.full((capacity,), math.nan, dtype=torch.float64, device=device)
        self._rates = torch.full((capacity, width), math.nan, dtype=torch.float64, device=device)
        self._state = torch.zeros(extension().curve_state_size, dtype=torch.float64, device=device)
        self._no_rate = torch.full((width,), math.nan, dtype=torch.float64, device=device)
        self.device = self._state.device
        self._recorded = 0
        self._mirror = _Mirror(self._state)

    def record(self, loss: Tensor, lr: float | Sequence[float] | Tensor | None = None) -> None:
        """Record one loss, and the rates that go with it. Does not wait for the device.

        Args:
            loss: One element, floating point, on the curve's device.
            lr: Rate or rates, [width]; a tensor must be float64 on the curve's device. None: NaN.

        Raises:
            IndexError: If the curve is full.
            TypeError, ValueError: If ``loss`` or ``lr`` is not of that kind.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss must be a scalar tensor, got {type(loss).__name__}")
        if self._recorded >= self.capacity:
            raise IndexError(f"the curve is full: its capacity is {self.capacity} losses")
        if lr is None:
            rates = self._no_rate
        elif isinstance(lr, Tensor):
            rates = lr
        else:
            values = [lr] if isinstance(lr, int | float) else list(lr)
            rates = torch.tensor(values, dtype=torch.float64, device="cpu")
            if self.device.type == "cuda":
                rates = rates.pin_memory().to(self.device, non_blocking=True)
        extension().record_loss(
            self._state,
            self._losses,
            self._rates,
            loss.detach(),
            rates,
            self.beta,
            self.stop or 0.0,
        )
        self._recorded += 1

    def __len__(self) -> int:
        """Losses recorded."""
        return self._recorded

    def truncate(self, count: int) -> None:
        """Forget all but the first ``count`` losses; the running EMA, best and flag stay.

        Raises:
            ValueError: If fewer are recorded.
        """
        if not 0 <= count <= self._recorded:
            raise ValueError(f"count must be from 0 to {self._recorded}, got {count}")
        self._recorded = count
        self._state[_COUNT].fill_(count)

    @property
    def losses(self) -> Tensor:
        """Raw losses, float64 [len(self)], on the device."""
        return self._losses[: self._recorded]

    @property
    def lrs(self) -> Tensor:
        """Rates, float64 [len(self)], or [len(self), width] for a width above 1, on the device."""
        rates = self._rates[: self._recorded]
        return rates[:, 0] if rates.shape[1] == 1 else rates

    @property
    def stop_flag(self) -> Tensor:
        """One float64 on the device: 0 while running, then not 0 for ever."""
        return self._state[_FLAG : _FLAG + 1]

    def smoothed(
        self,
        method: Literal["ema", "sma"] = "ema",
        *,
        beta: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Return the smoothed losses, float64 [len(self)], on the device.

        Args:
            method: "ema", the bias-corrected exponential moving average, or "sma", the mean over a
                centred window (narrower towards both ends).
            beta: Decay of the EMA, in [0, 1); the curve's own by default.
            window: Odd width of the moving average in losses; 5 by default.

        Raises:
            ValueError: If ``method`` is unknown or its parameter out of range.
        """
        if method == "ema":
            if window is not None:
                raise ValueError("window is for method 'sma'; 'ema' takes beta")
            beta = self.beta if beta is None else beta
            _check_beta(beta)
            average: Tensor = extension().smooth_ema(self.losses, beta)
            return average
        if method == "sma":
            if beta is not None:
                raise ValueError("beta is for method 'ema'; 'sma' takes window")
            window = 5 if window is None else window
            if window < 1 or window % 2 == 0:
                raise ValueError(f"window must be odd and 1 or more, got {window}")
            mean: Tensor = extension().moving_average(self.losses, window)
            return mean
        raise ValueError(f"method must be 'ema' or 'sma', got {method!r}")

    def derivative(
        self,
        wrt: Literal["log_lr", "step", "lr"] = "log_lr",
        *,
        window: int = 1,
        beta: float | None = None,
    ) -> Tensor:
        """Return the slope of the smoothed losses, float64 [len(self)], on the device.

        ``(L[i + window] - L[i - window]) / (x[i + window] - x[i - window])``, one-sided within
        ``window`` of the ends. A wider window averages more noise away and, being centred, does not
        shift the curve.

        Args:
            wrt: What x is: the natural logarithm of the (first) rate, the step, or the rate.
            window: Steps to either side, 1 or more.
            beta: Decay of the EMA that smooths the losses first; 0 for raw losses; the curve's own
                by default.

        Raises:
            ValueError: If an argument is out of range, or fewer than 2 losses are recorded.

        Reference:
            Surmenok, "Estimating an Optimal Learning Rate For a Deep Neural Network", 2017.
        """
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        if len(self) < 2:
            raise ValueError(f"a derivative needs 2 losses or more, got {len(self)}")
        rates = self._rates[: self._recorded, 0]
        if wrt == "step":
            x = torch.arange(len(self), dtype=torch.float64, device=self.device)
        elif wrt == "log_lr":
            x = rates.log()
        elif wrt == "lr":
            x = rates.contiguous()
        else:
            raise ValueError(f"wrt must be 'log_lr', 'step' or 'lr', got {wrt!r}")
        slopes: Tensor = extension().derivative(self.smoothed("ema", beta=beta), x, window)
        return slopes

    def status(self) -> CurveStatus:
        """Return the curve's state as of its last loss. Waits for the device."""
        return _read_status(self._state.cpu())

    def poll(self) -> CurveStatus:
        """Return the curve's state as of a recent loss. Never waits.

        On the CPU that is the last loss. On a GPU each call asks for a copy and returns the newest
        one that has arrived.
        """
        return _read_status(self._mirror.newest())


# Places in the state tensor: csrc/core/curve.h, CurveState.
_COUNT, _EMA_SUM, _EMA_WEIGHT, _BEST, _BEST_AT, _FLAG, _FLAGGED_AT, _LAST = range(8)
_OUTCOMES: tuple[Literal["running", "diverged", "non-finite"], ...] = (
    "running",
    "diverged",
    "non-finite",
)


class _Mirror:
    """A host copy of a small device tensor that is refreshed without waiting."""

    def __init__(self, source: Tensor) -> None:
        self._source = source
        self._on_host = source.device.type == "cpu"
        if not self._on_host:
            self._arriving = torch.zeros_like(source, device="cpu").pin_memory()
            self._arrived = torch.zeros_like(source, device="cpu")
            self._event: torch.cuda.Event | None = None

    def newest(self) -> Tensor:
        if self._on_host:
            return self._source
        if self._event is None or self._event.query():
            if self._event is not None:
                self._arrived.copy_(self._arriving)
            self._arriving.copy_(self._source, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._source.device))
        return self._arrived


def _read_status(state: Tensor) -> CurveStatus:
    values = state.numpy()  # host memory: no device is asked, no operator is dispatched
    has_loss = values[_EMA_WEIGHT] > 0
    flag = int(values[_FLAG])
    return CurveStatus(
        count=int(values[_COUNT]),
        smoothed=float(values[_EMA_SUM] / values[_EMA_WEIGHT]) if has_loss else math.nan,
        best=float(values[_BEST]) if has_loss else math.nan,
        last=float(values[_LAST]) if values[_COUNT] else math.nan,
        outcome=_OUTCOMES[flag],
        stopped_at=int(values[_FLAGGED_AT]) if flag else None,
    )


def _check_beta(beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
