"""Schedules: functions that return a multiplier of every group's rate as an immutable table.

A schedule multiplies each parameter group's own rate, so that ratios between groups survive it; it
may also set the momentum (beta1 of Adam). Schedules of ``total_steps`` steps have their first value
at step 0 and, past their end, hold their last value for ever. Arguments are named as in torch where
torch has the schedule.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from lrfast._schedule import Schedule, Segment, Shape, Table, hold

__all__ = [
    "Schedule",
    "Segment",
    "constant",
    "cosine",
    "exponential",
    "get",
    "linear",
    "one_cycle",
    "sweep",
]

Anneal = Literal["cos", "linear"]

# The engine's exponential holds for exponents up to 700; 1e304 is as far as a float goes anyway.
_MAX_LOG_RATIO = 700.0


def constant(factor: float = 1.0) -> Schedule:
    """Return a schedule that always multiplies the rate by ``factor``.

    Args:
        factor: The multiplier, 0 or more.

    Raises:
        ValueError: If ``factor`` is negative or not finite.
    """
    _check_factor("factor", factor)
    return Schedule("constant", 1, (hold(factor),))


def linear(start_factor: float, end_factor: float, total_steps: int) -> Schedule:
    """Return a straight line from one multiplier to another: torch's LinearLR.

    ``end_factor`` is reached at step ``total_steps`` and held. Unlike in torch the factors may
    exceed 1.

    Args:
        start_factor: Multiplier at step 0, 0 or more.
        end_factor: Multiplier from step ``total_steps`` on, 0 or more.
        total_steps: Steps from one to the other, 1 or more.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_factor("start_factor", start_factor)
    _check_factor("end_factor", end_factor)
    total_steps = _check_steps("total_steps", total_steps)
    segment = Segment(0, 0.0, total_steps, start_factor, end_factor, "linear")
    return Schedule("linear", total_steps, ((segment,),))


def cosine(T_max: int, eta_min: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to ``eta_min``: torch's CosineAnnealingLR for one descent.

    ``eta_min`` is reached at step ``T_max`` and held, where torch's goes up again.

    Args:
        T_max: Steps of the descent, 1 or more.
        eta_min: Last multiplier, 0 or more: a fraction of the group's rate, not a rate.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
        arXiv:1608.03983.
    """
    total_steps = _check_steps("T_max", T_max)
    _check_factor("eta_min", eta_min)
    segment = Segment(0, 0.0, total_steps, 1.0, eta_min, "cosine")
    return Schedule("cosine", total_steps, ((segment,),))


def exponential(total_steps: int, gamma: float) -> Schedule:
    """Return ``gamma ** step`` up to step ``total_steps``: torch's ExponentialLR, with an end.

    Args:
        total_steps: Steps until the multiplier is held, 1 or more.
        gamma: Factor per step, above 0.

    Raises:
        ValueError: If an argument is out of range, or ``gamma ** total_steps`` is no float.
    """
    total_steps = _check_steps("total_steps", total_steps)
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be finite and above 0, got {gamma}")
    if abs(total_steps * math.log(gamma)) > _MAX_LOG_RATIO:
        raise ValueError(
            f"gamma ** total_steps must lie within 1e-304 and 1e304, got {gamma} ** {total_steps}"
        )
    segment = Segment(0, 0.0, total_steps, 1.0, gamma**total_steps, "exponential")
    return Schedule("exponential", total_steps, ((segment,),))


def sweep(start: float, end: float, num_iter: int) -> Schedule:
    """Return a range test's multipliers: exponential from ``start`` to ``end``, both hit exactly.

    Args:
        start: Multiplier at step 0, above 0.
        end: Multiplier at step ``num_iter - 1``, above 0.
        num_iter: Steps, 2 or more.

    Raises:
        ValueError: If an argument is out of range.
    """
    for name, value in (("start", start), ("end", end)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and above 0, got {value}")
    if _check_steps("num_iter", num_iter) < 2:
        raise ValueError(f"num_iter must be 2 or more, got {num_iter}")
    if abs(math.log(end) - math.log(start)) > _MAX_LOG_RATIO:
        raise ValueError(f"end / start must lie within 1e-304 and 1e304, got {end} / {start}")
    segment = Segment(0, 0.0, num_iter - 1, start, end, "exponential")
    return Schedule("sweep", num_iter, ((segment,),))


def one_cycle(
    total_steps: int,
    pct_start: float = 0.3,
    div: float = 25.0,
    final_div: float = 1e4,
    momentum: tuple[float, float] | None = (0.95, 0.85),
    anneal: Anneal = "cos",
) -> Schedule:
    """Return the one-cycle policy: up to the group's rate, then down far below its start.

    The multiplier goes from ``1 / div`` to 1 and on to ``1 / (div * final_div)``, while the
    momentum mirrors it. Peak and end are hit exactly, at whole steps: the peak at step
    ``max(round(pct_start * total_steps) - 1, 0)``, the end at step ``total_steps - 1``. torch's
    OneCycleLR has the same values where ``pct_start * total_steps`` is a whole number; elsewhere it
    never reaches its peak.

    Args:
        total_steps: Optimizer steps of the cycle, 1 or more.
        pct_start: Fraction of the steps spent going up, in [0, 1].
        div: Peak over first multiplier, 1 or more.
        final_div: First over last multiplier, 1 or more.
        momentum: (highest, lowest) momentum or beta1, each in [0, 1); None leaves it alone.
        anneal: "cos" or "linear".

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> schedule = schedules.one_cycle(100)
        >>> [round(schedule.at(step), 6) for step in (0, 29, 99, 1000)]
        [0.04, 1.0, 4e-06, 4e-06]

    Reference:
        Smith & Topin, "Super-Convergence", arXiv:1708.07120.
    """
    total_steps = _check_steps("total_steps", total_steps)
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start must lie in [0, 1], got {pct_start}")
    for name, value in (("div", div), ("final_div", final_div)):
        if not (math.isfinite(value) and value >= 1):
            raise ValueError(f"{name} must be finite and 1 or more, got {value}")
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal must be 'cos' or 'linear', got {anneal!r}")
    shape: Shape = "cosine" if anneal == "cos" else "linear"
    peak = max(round(pct_start * total_steps) - 1, 0)
    last = total_steps - 1
    rate = _up_and_down(peak, last, (1 / div, 1.0, 1 / (div * final_div)), shape)
    table: Table | None = None
    if momentum is not None:
        high, low = _check_momentum(momentum)
        table = _up_and_down(peak, last, (high, low, high), shape)
    return Schedule("one-cycle", total_steps, (rate,), table)


def get(name: str) -> Callable[..., Schedule]:
    """Return the function that makes schedules of that name.

    Args:
        name: One of ``constant``, ``cosine``, ``exponential``, ``linear``, ``one_cycle``.

    Raises:
        ValueError: If there is none; the message names the nearest one.

    Example:
        >>> from lrfast import schedules
        >>> schedules.get("cosine")(T_max=10).at(10)
        0.0
    """
    makers = {maker.__name__: maker for maker in (constant, cosine, exponential, linear, one_cycle)}
    if name in makers:
        return makers[name]
    near = difflib.get_close_matches(str(name), makers, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"name must be one of {', '.join(makers)}, got {name!r}{hint}")


def _up_and_down(peak: int, last: int, values: tuple[float, float, float], shape: Shape) -> Table:
    """Two segments that meet at step ``peak``; a phase of no steps is left out."""
    first, middle, end = values
    up = Segment(0, 0.0, peak, first, middle, shape)
    down = Segment(peak, peak, last - peak, middle, end, shape)
    if last == peak:
        return (up,)
    return (up, down) if peak > 0 else (down,)


def _check_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def _check_steps(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, got {value!r}")
    return int(value)


def _check_momentum(momentum: tuple[float, float]) -> tuple[float, float]:
    high, low = momentum
    if not (0 <= low <= high < 1):
        raise ValueError(f"momentum must be (highest, lowest) within [0, 1), got {momentum}")
    return high, low
