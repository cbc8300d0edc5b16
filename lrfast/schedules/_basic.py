"""Schedules of one curve or of equal jumps: from constant to REX, and the staircases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_count, check_fraction, check_nonnegative, check_positive
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Shape, Table, Track, chain, hold, level, ramp, track

# The engine's exponential holds for exponents up to 700; 1e304 is as far as a float goes anyway.
_MAX_LOG_RATIO = 700.0


@checked
def constant(factor: float = 1.0) -> Schedule:
    """Return a schedule that always multiplies the learning rate by ``factor``.

    Args:
        factor: The multiplier, 0 or more; default 1.

    Raises:
        ValueError: If ``factor`` is negative or not finite.

    Example:
        >>> constant(0.5).at(1000)
        0.5
    """
    check_nonnegative("factor", factor)
    return Schedule("constant", 1, (hold(factor),))


@checked
def linear(start_factor: float, end_factor: float, total_steps: int) -> Schedule:
    """Return a straight line between two multipliers: torch's LinearLR, with factors above 1 too.

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
    check_nonnegative("start_factor", start_factor)
    check_nonnegative("end_factor", end_factor)
    total_steps = check_count("total_steps", total_steps)
    return _one_curve("linear", total_steps, start_factor, end_factor)


@checked
def cosine(T_max: int, eta_min: float = 0.0) -> Schedule:
    """Return half a cosine from 1 to ``eta_min``: torch's CosineAnnealingLR (arXiv:1608.03983).

    Args:
        T_max: Steps of the descent, 1 or more; torch's schedule goes up again after them.
        eta_min: Multiplier from step ``T_max`` on, 0 or more; default 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cosine(10, eta_min=0.1).values([0, 5, 10]).round(2).tolist()
        [1.0, 0.55, 0.1]
    """
    total_steps = check_count("T_max", T_max)
    check_nonnegative("eta_min", eta_min)
    return _one_curve("cosine", total_steps, 1.0, eta_min)


@checked
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
    total_steps = check_count("total_steps", total_steps)
    check_positive("gamma", gamma)
    if abs(total_steps * math.log(gamma)) > _MAX_LOG_RATIO:
        raise ValueError(
            f"gamma ** total_steps must lie within 1e-304 and 1e304, got {gamma} ** {total_steps}"
        )
    return _one_curve("exponential", total_steps, 1.0, gamma**total_steps)


@checked
def polynomial(total_steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Return ``end + (1 - end) * (1 - step / total_steps) ** power``: torch's PolynomialLR.

    Args:
        total_steps: Steps until ``end``, which is held, 1 or more.
        power: Exponent, above 0; default 1.
        end: Last multiplier, 0 or more; default 0, the only one that torch has.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> polynomial(4, power=2.0).values(range(6)).tolist()
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    total_steps = check_count("total_steps", total_steps)
    check_positive("power", power)
    check_nonnegative("end", end)
    return _one_curve("polynomial", total_steps, 1.0, end, power)


@checked
def rex(total_steps: int, end: float = 0.0) -> Schedule:
    """Return REX: ``end + (1 - end) * (1 - u) / (1 - u / 2)`` with ``u = step / total_steps``.

    From "REX: Revisiting Budgeted Training", Chen, Wolfe & Kyrillidis, arXiv:2107.04197.

    Args:
        total_steps: Steps until ``end``, which is held, 1 or more.
        end: Last multiplier, 0 or more; default 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(rex(10).at(step), 6) for step in (0, 5, 10, 11)]
        [1.0, 0.666667, 0.0, 0.0]
    """
    total_steps = check_count("total_steps", total_steps)
    check_nonnegative("end", end)
    return _one_curve("rex", total_steps, 1.0, end, 0.5)


@checked
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
    check_positive("start", start)
    check_positive("end", end)
    num_iter = check_count("num_iter", num_iter, least=2)
    if abs(math.log(end) - math.log(start)) > _MAX_LOG_RATIO:
        raise ValueError(f"end / start must lie within 1e-304 and 1e304, got {end} / {start}")
    return Schedule("sweep", num_iter, (track(ramp(0, num_iter - 1, start, end, "exponential")),))


@checked
def step(step_size: int, gamma: float = 0.1) -> Schedule:
    """Return ``gamma ** (step // step_size)``, without end: torch's StepLR.

    Its ``total_steps`` is ``step_size``; :meth:`Schedule.lasting` sets how long it lasts before
    the schedule that :meth:`Schedule.then` adds.

    Args:
        step_size: Steps between two jumps, 1 or more.
        gamma: Factor of a jump, in [0, 1]; default 0.1. To rise, see :func:`staircase`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> step(2, 0.5).values(range(6)).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    step_size = check_count("step_size", step_size)
    check_fraction("gamma", gamma)
    return Schedule("step", step_size, (_stairs(step_size, gamma),))


@checked
def multistep(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Return ``gamma`` to the count of milestones at or before the step: torch's MultiStepLR.

    Args:
        milestones: Steps of the jumps, in order, each 1 or more; a repeated one counts twice.
        gamma: Factor of a jump, 0 or more; default 0.1.

    Raises:
        ValueError: If there is no milestone, or an argument is out of range or out of order.

    Example:
        >>> multistep([2, 3, 3], 0.5).values(range(5)).tolist()
        [1.0, 1.0, 0.5, 0.125, 0.125]
    """
    steps = [check_count("milestones", milestone) for milestone in milestones]
    if not steps:
        raise ValueError("milestones must hold one step at least, got none")
    if any(later < earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"milestones must not decrease, got {steps}")
    check_nonnegative("gamma", gamma)
    factors = {0: 1.0} | {at: gamma**count for count, at in enumerate(steps, 1)}
    levels = (level(at, factor) for at, factor in factors.items())
    return Schedule("multistep", steps[-1], (track(*levels),))


@checked
def staircase(total_steps: int, decay_steps: int, gamma: float) -> Schedule:
    """Return ``gamma ** (step // decay_steps)`` with an end: Keras's staircase ExponentialDecay.

    Args:
        total_steps: Step from which on the multiplier is held, 1 or more.
        decay_steps: Steps between two jumps, 1 or more.
        gamma: Factor of a jump, 0 or more; above 1 the learning rate rises.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> staircase(4, 2, 0.5).values(range(8)).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    """
    total_steps = check_count("total_steps", total_steps)
    decay_steps = check_count("decay_steps", decay_steps)
    check_nonnegative("gamma", gamma)
    jumps = total_steps // decay_steps
    try:
        last = gamma**jumps
    except OverflowError:
        raise ValueError(
            f"gamma ** (total_steps // decay_steps) must be a float, got {gamma} ** {jumps}"
        ) from None
    stairs = chain(_stairs(decay_steps, gamma), hold(last), total_steps)
    return Schedule("staircase", total_steps, (stairs,))


def _one_curve(shape: Shape, steps: int, first: float, last: float, power: float = 1) -> Schedule:
    return Schedule(shape, steps, (track(ramp(0, steps, first, last, shape, power)),))


def _stairs(steps: int, gamma: float) -> Track:
    return (Table((level(0, 1.0),), period=steps, gain=gamma),)
