"""Keras's learning rate schedules, by the formulas of its documentation; imports nothing of lrfast.

Each takes the arguments of the class of its name and returns the rate as a function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Rate = Callable[[int], float]


def ExponentialDecay(
    initial: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> Rate:
    def rate(step: int) -> float:
        exponent = step // decay_steps if staircase else step / decay_steps
        return initial * math.pow(decay_rate, exponent)

    return rate


def PiecewiseConstantDecay(boundaries: Sequence[int], values: Sequence[float]) -> Rate:
    """A boundary is the last step of its value."""
    return lambda step: values[sum(step > boundary for boundary in boundaries)]


def PolynomialDecay(
    initial: float, decay_steps: int, end: float = 1e-4, power: float = 1.0, cycle: bool = False
) -> Rate:
    def rate(step: int) -> float:
        length = decay_steps * (max(math.ceil(step / decay_steps), 1) if cycle else 1)
        return end + (initial - end) * math.pow(1 - min(step / length, 1.0), power)

    return rate


def InverseTimeDecay(
    initial: float, decay_steps: int, decay_rate: float, staircase: bool = False
) -> Rate:
    def rate(step: int) -> float:
        done = step // decay_steps if staircase else step / decay_steps
        return initial / (1 + decay_rate * done)

    return rate


def CosineDecay(
    initial: float,
    decay_steps: int,
    alpha: float = 0.0,
    warmup_target: float | None = None,
    warmup_steps: int = 0,
) -> Rate:
    """With a target, a line to it first, and the cosine from there; alpha is a share of its top."""

    def rate(step: int) -> float:
        if warmup_target is not None and step < warmup_steps:
            return initial + (warmup_target - initial) * step / warmup_steps
        top = initial if warmup_target is None else warmup_target
        done = min(step - (0 if warmup_target is None else warmup_steps), decay_steps)
        cosine = (1 + math.cos(math.pi * done / decay_steps)) / 2
        return top * ((1 - alpha) * cosine + alpha)

    return rate


def CosineDecayRestarts(
    initial: float,
    first_decay_steps: int,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
) -> Rate:
    """Cycle by cycle, where Keras takes a logarithm."""

    def rate(step: int) -> float:
        begin, length, factor = 0.0, float(first_decay_steps), 1.0
        while step >= begin + length:
            begin, length, factor = begin + length, length * t_mul, factor * m_mul
        cosine = factor * (1 + math.cos(math.pi * (step - begin) / length)) / 2
        return initial * ((1 - alpha) * cosine + alpha)

    return rate
