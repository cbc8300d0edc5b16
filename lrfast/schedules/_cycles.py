"""Schedules that go up and down: one-cycle."""

from __future__ import annotations

import math
from typing import Literal

from lrfast.schedules._checks import check_momentum, check_steps
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._tables import Segment, Shape, Track, track

Anneal = Literal["cos", "linear"]


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
    total_steps = check_steps("total_steps", total_steps)
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
    momenta: Track | None = None
    if momentum is not None:
        high, low = check_momentum(momentum)
        momenta = _up_and_down(peak, last, (high, low, high), shape)
    return Schedule("one-cycle", total_steps, (rate,), momenta)


def _up_and_down(peak: int, last: int, values: tuple[float, float, float], shape: Shape) -> Track:
    """Two segments that meet at step ``peak``; a phase of no steps is left out."""
    first, middle, end = values
    up = Segment(0, 0.0, peak, first, middle, shape)
    down = Segment(peak, peak, last - peak, middle, end, shape)
    if last == peak:
        return track(up)
    return track(up, down) if peak > 0 else track(down)
