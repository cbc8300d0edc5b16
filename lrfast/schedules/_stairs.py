"""Schedules that are constant between jumps: step, multistep, staircase."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lrfast.schedules._checks import check_factor, check_share, check_steps
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Table, Track, chain, hold, track


def step(step_size: int, gamma: float = 0.1) -> Schedule:
    """Return ``gamma ** (step // step_size)``, without end: torch's StepLR.

    Its ``total_steps`` is ``step_size``; :meth:`Schedule.lasting` says how long it is to last
    before what :meth:`Schedule.then` adds.

    Args:
        step_size: Steps between two jumps, 1 or more.
        gamma: Factor of a jump, in [0, 1]. Steps that rise need an end: :func:`staircase`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> schedules.step(2, 0.5).values(range(6)).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    step_size = check_steps("step_size", step_size)
    check_share("gamma", gamma)
    return Schedule("step", step_size, (_stairs(step_size, gamma),))


def multistep(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Return ``gamma`` to the count of milestones at or before the step: torch's MultiStepLR.

    Args:
        milestones: Steps at which the rate jumps, in order, each 1 or more; one that stands there
            twice counts twice.
        gamma: Factor of a jump, 0 or more.

    Raises:
        ValueError: If there is no milestone, or an argument is out of range or out of order.

    Example:
        >>> from lrfast import schedules
        >>> schedules.multistep([2, 3, 3], 0.5).values(range(5)).tolist()
        [1.0, 1.0, 0.5, 0.125, 0.125]
    """
    steps = [check_steps("milestones", milestone) for milestone in milestones]
    if not steps:
        raise ValueError("milestones must hold one step at least, got none")
    if any(later < earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"milestones must not decrease, got {steps}")
    check_factor("gamma", gamma)
    factors = {0: 1.0} | {at: gamma**count for count, at in enumerate(steps, 1)}
    levels = (Segment(at, at, 0.0, factor, factor, "constant") for at, factor in factors.items())
    return Schedule("multistep", steps[-1], (track(*levels),))


def staircase(total_steps: int, decay_steps: int, gamma: float) -> Schedule:
    """Return ``gamma ** (step // decay_steps)``, held from step ``total_steps`` on.

    Keras's ExponentialDecay with ``staircase=True``, with an end.

    Args:
        total_steps: Step from which on the multiplier is held, 1 or more.
        decay_steps: Steps between two jumps, 1 or more.
        gamma: Factor of a jump, 0 or more; above 1 the rate rises.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> schedules.staircase(4, 2, 0.5).values(range(8)).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    """
    total_steps = check_steps("total_steps", total_steps)
    decay_steps = check_steps("decay_steps", decay_steps)
    check_factor("gamma", gamma)
    try:
        last = gamma ** (total_steps // decay_steps)
    except OverflowError:
        raise ValueError(
            f"gamma ** (total_steps // decay_steps) must be a float, got {gamma} ** "
            f"{total_steps // decay_steps}"
        ) from None
    stairs = chain(_stairs(decay_steps, gamma), hold(last), total_steps)
    return Schedule("staircase", total_steps, (stairs,))


def _stairs(steps: int, gamma: float) -> Track:
    one = Segment(0, 0.0, 0.0, 1.0, 1.0, "constant")
    return (Table((one,), period=steps, gain=gamma),)
