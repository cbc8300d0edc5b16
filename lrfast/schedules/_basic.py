"""Schedules of one stretch: constant, linear, cosine, exponential, polynomial, REX."""

from __future__ import annotations

import math

from lrfast.schedules._checks import check_factor, check_steps
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, hold, track

# The engine's exponential holds for exponents up to 700; 1e304 is as far as a float goes anyway.
_MAX_LOG_RATIO = 700.0


def constant(factor: float = 1.0) -> Schedule:
    """Return a schedule that always multiplies the rate by ``factor``.

    Args:
        factor: The multiplier, 0 or more.

    Raises:
        ValueError: If ``factor`` is negative or not finite.

    Example:
        >>> constant(0.5).at(1000)
        0.5
    """
    check_factor("factor", factor)
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

    Example:
        >>> linear(0.0, 1.0, 10).values([0, 5, 10, 11]).tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    check_factor("start_factor", start_factor)
    check_factor("end_factor", end_factor)
    total_steps = check_steps("total_steps", total_steps)
    segment = Segment(0, 0.0, total_steps, start_factor, end_factor, "linear")
    return Schedule("linear", total_steps, (track(segment),))


def cosine(T_max: int, eta_min: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to ``eta_min``: torch's CosineAnnealingLR for one descent.

    ``eta_min`` is reached at step ``T_max`` and held, where torch's goes up again.

    Args:
        T_max: Steps of the descent, 1 or more.
        eta_min: Last multiplier, 0 or more: a fraction of the group's rate, not a rate.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cosine(10, eta_min=0.1).values([0, 5, 10]).round(2).tolist()
        [1.0, 0.55, 0.1]

    Reference:
        Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
        arXiv:1608.03983.
    """
    total_steps = check_steps("T_max", T_max)
    check_factor("eta_min", eta_min)
    segment = Segment(0, 0.0, total_steps, 1.0, eta_min, "cosine")
    return Schedule("cosine", total_steps, (track(segment),))


def exponential(total_steps: int, gamma: float) -> Schedule:
    """Return ``gamma ** step`` up to step ``total_steps``: torch's ExponentialLR, with an end.

    Args:
        total_steps: Steps until the multiplier is held, 1 or more.
        gamma: Factor per step, above 0.

    Raises:
        ValueError: If an argument is out of range, or ``gamma ** total_steps`` is no float.

    Example:
        >>> exponential(3, 0.1).values([0, 1, 2]).round(3).tolist()
        [1.0, 0.1, 0.01]
    """
    total_steps = check_steps("total_steps", total_steps)
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be finite and above 0, got {gamma}")
    if abs(total_steps * math.log(gamma)) > _MAX_LOG_RATIO:
        raise ValueError(
            f"gamma ** total_steps must lie within 1e-304 and 1e304, got {gamma} ** {total_steps}"
        )
    segment = Segment(0, 0.0, total_steps, 1.0, gamma**total_steps, "exponential")
    return Schedule("exponential", total_steps, (track(segment),))


def polynomial(total_steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Return ``end + (1 - end) * (1 - step / total_steps) ** power``: torch's PolynomialLR.

    Args:
        total_steps: Steps until ``end``, which is held, 1 or more.
        power: Exponent, above 0.
        end: Last multiplier, 0 or more; torch has none.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> schedules.polynomial(4, power=2.0).values(range(6)).tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    total_steps = check_steps("total_steps", total_steps)
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"power must be finite and above 0, got {power}")
    check_factor("end", end)
    segment = Segment(0, 0.0, total_steps, 1.0, end, "polynomial", power)
    return Schedule("polynomial", total_steps, (track(segment),))


def rex(total_steps: int, end: float = 0.0) -> Schedule:
    """Return REX: ``end + (1 - end) * (1 - u) / (1 - u / 2)`` with ``u = step / total_steps``.

    Args:
        total_steps: Steps until ``end``, which is held, 1 or more.
        end: Last multiplier, 0 or more.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> [round(schedules.rex(10).at(step), 6) for step in (0, 5, 10, 11)]
        [1.0, 0.666667, 0.0, 0.0]

    Reference:
        Chen, Wolfe & Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule",
        arXiv:2107.04197.
    """
    total_steps = check_steps("total_steps", total_steps)
    check_factor("end", end)
    return Schedule(
        "rex", total_steps, (track(Segment(0, 0.0, total_steps, 1.0, end, "rex", 0.5)),)
    )


def sweep(start: float, end: float, num_iter: int) -> Schedule:
    """Return a range test's multipliers: exponential from ``start`` to ``end``, both hit exactly.

    Args:
        start: Multiplier at step 0, above 0.
        end: Multiplier at step ``num_iter - 1``, above 0.
        num_iter: Steps, 2 or more.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sweep(1e-3, 10.0, 5).values(range(5)).round(6).tolist()
        [0.001, 0.01, 0.1, 1.0, 10.0]
    """
    for name, value in (("start", start), ("end", end)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and above 0, got {value}")
    if check_steps("num_iter", num_iter) < 2:
        raise ValueError(f"num_iter must be 2 or more, got {num_iter}")
    if abs(math.log(end) - math.log(start)) > _MAX_LOG_RATIO:
        raise ValueError(f"end / start must lie within 1e-304 and 1e304, got {end} / {start}")
    segment = Segment(0, 0.0, num_iter - 1, start, end, "exponential")
    return Schedule("sweep", num_iter, (track(segment),))
