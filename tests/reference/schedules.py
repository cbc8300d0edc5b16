"""The five schedules from their formulas, in float64 and with the standard library's functions.

The oracle of test_schedules.py; imports nothing of lrfast. Every function returns the multiplier at
one step. Near the end of a cosine, ``1 + cos`` has few digits left; ``sin`` of what remains has
them all, and is the same number: (1 + cos(pi * u)) / 2 = sin(pi / 2 * (1 - u)) ** 2.
"""

from __future__ import annotations

import math


def constant(step: int, factor: float) -> float:
    return factor


def linear(step: int, start_factor: float, end_factor: float, total_steps: int) -> float:
    done = min(step, total_steps)
    left = total_steps - done
    return (start_factor * left + end_factor * done) / total_steps


def half_cosine(done: int, steps: int, first: float, last: float) -> float:
    if done >= steps:
        return last
    return last + (first - last) * math.sin(math.pi / 2 * ((steps - done) / steps)) ** 2


def cosine(step: int, total_steps: int, eta_min: float) -> float:
    return half_cosine(step, total_steps, 1.0, eta_min)


def exponential(step: int, total_steps: int, gamma: float) -> float:
    return math.exp(min(step, total_steps) * math.log(gamma))


def up_and_down(
    step: int,
    total_steps: int,
    pct_start: float,
    values: tuple[float, float, float],
    anneal: str = "cos",
) -> float:
    """The three values at step 0, at the peak and at the last step, with an anneal in between."""
    first, middle, end = values
    between = half_cosine if anneal == "cos" else _line
    peak = max(round(pct_start * total_steps) - 1, 0)
    if step < peak:
        return between(step, peak, first, middle)
    return (
        between(min(step, total_steps - 1) - peak, total_steps - 1 - peak, middle, end)
        if (peak < total_steps - 1)
        else middle
    )


def one_cycle(
    step: int,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: str = "cos",
) -> float:
    return up_and_down(
        step,
        total_steps,
        pct_start,
        (1 / div_factor, 1.0, 1 / div_factor / final_div_factor),
        anneal,
    )


def one_cycle_momentum(
    step: int, total_steps: int, pct_start: float, high: float, low: float, anneal: str = "cos"
) -> float:
    return up_and_down(step, total_steps, pct_start, (high, low, high), anneal)


def _line(done: int, steps: int, first: float, last: float) -> float:
    return last if done >= steps else (first * (steps - done) + last * done) / steps
