"""Every maker's formula, a step at a time, in float64; imports nothing of lrfast.

The oracle of test_random_schedules.py. Cycles are found by walking through them, and a schedule
past its end has the value of its end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from reference.schedules import half_cosine


def rex(t: int, n: int, end: float) -> float:
    u = min(t, n) / n
    return end + (1 - end) * (1 - u) / (1 - u / 2)


def polynomial(t: int, n: int, power: float, end: float) -> float:
    left = (n - min(t, n)) / n
    return float(end + (1 - end) * left**power)


def steps(t: int, size: int, gamma: float) -> float:
    return float(gamma ** (t // size))


def staircase(t: int, n: int, size: int, gamma: float) -> float:
    return steps(min(t, n), size, gamma)


def multistep(t: int, milestones: Sequence[int], gamma: float) -> float:
    return float(gamma ** bisect_right(milestones, t))


def ramp(done: int, length: int, first: float, last: float, kind: str) -> float:
    """From first to last; the root is steep at its lower end."""
    u = done / length
    if kind == "linear":
        return first * (length - done) / length + last * u
    if kind == "cosine":
        return half_cosine(done, length, first, last)
    if first < last:
        return last + (first - last) * math.sqrt(1 - u)
    return first + (last - first) * math.sqrt(u)


def wsd(
    t: int, sizes: tuple[int, int, int], kinds: tuple[str, str], ends: tuple[float, float]
) -> float:
    """sizes: total, warm-up, decay; ends: first and last value."""
    total, warm, fall = sizes
    if t < warm:
        return ramp(t, warm, ends[0], 1.0, kinds[0])
    if t < total - fall:
        return 1.0
    return ends[1] if t >= total else ramp(t - total + fall, fall, 1.0, ends[1], kinds[1])


def inverse_sqrt(t: int, warm: int, n: int, scale: float) -> float:
    t = min(t, n)
    return t / warm if t < warm else 1 / math.sqrt(1 + (t - warm) / scale)


def slanted(t: int, n: int, cut_frac: float, ratio: float) -> float:
    cut, low = round(cut_frac * n), 1 / ratio
    if t < cut:
        return ramp(t, cut, low, 1.0, "linear")
    return low if t >= n > cut else 1.0 if cut == n else ramp(t - cut, n - cut, 1.0, low, "linear")


def flat_cosine(t: int, n: int, pct_start: float, end: float) -> float:
    """The end at step n - 1."""
    fall = round(pct_start * n)
    return 1.0 if t < fall or fall >= n - 1 else half_cosine(t - fall, n - 1 - fall, 1.0, end)


def cyclic(t: int, up: int, down: int, base: float, mode: str, gamma: float) -> float:
    cycle, done = divmod(t, up + down)
    height = done / up if done <= up else (up + down - done) / down
    envelope = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**t}[mode]
    return base + (1 - base) * height * envelope


def sgdr(t: int, lengths: Sequence[int], low: float, warm: int, endless: bool) -> float:
    """lengths: of cycles, enough of them; the last step of the last one hits the low value."""
    begin = 0
    for index, length in enumerate(lengths):
        is_last = index == len(lengths) - 1 and not endless
        done = t - begin
        if done < length or is_last:
            if done < warm:
                return ramp(done, warm, low, 1.0, "linear")
            fall = length - warm - (1 if is_last and length - warm > 1 else 0)
            return half_cosine(done - warm, fall, 1.0, low)
        begin += length
    raise ValueError("too few cycles")


def three_phase(
    t: int, n: int, pct_start: float, div_factor: float, final_div_factor: float
) -> float:
    """One-cycle that comes back to its first value before the last fall, where there is room."""
    peak = max(round(pct_start * n) - 1, 0)
    back, first, last = min(2 * peak, n - 2), 1 / div_factor, 1 / div_factor / final_div_factor
    if t < peak:
        return half_cosine(t, peak, first, 1.0)
    if not 0 < peak < back:
        return half_cosine(t - peak, n - 1 - peak, 1.0, last) if peak < n - 1 else 1.0
    if t < back:
        return half_cosine(t - peak, back - peak, 1.0, first)
    return half_cosine(t - back, n - 1 - back, first, last)
