"""Schedules of other libraries from their formulas, in float64; imports nothing of lrfast."""

from __future__ import annotations

import math


def _cos(first: float, last: float, u: float) -> float:
    return first + (1 + math.cos(math.pi * (1 - u))) * (last - first) / 2


def fastai_one_cycle(t: int, n: int, pct: float, values: tuple[float, float, float]) -> float:
    """combine_scheds([pct, 1 - pct], two cosines) at position t / n; values: first, top, last."""
    first, top, last = values
    pos = t / n
    if pos < pct:
        return _cos(first, top, pos / pct)
    return _cos(top, last, (pos - pct) / (1 - pct))


def optax_one_cycle(
    t: int, n: int, linear: bool, pct: float, div: float, final_div: float
) -> float:
    """cosine_onecycle_schedule and linear_onecycle_schedule (pct_final 0.85), peak 1."""
    first, last = 1 / div, 1 / div / final_div
    bounds, values = [0, int(pct * n), n], [first, 1.0, last]
    if linear:
        bounds, values = [0, int(pct * n), int(0.85 * n), n], [first, 1.0, first, last]
    for i in range(len(bounds) - 1):
        if bounds[i] <= t < bounds[i + 1]:
            u = (t - bounds[i]) / (bounds[i + 1] - bounds[i])
            a, b = values[i], values[i + 1]
            return a + (b - a) * u if linear else _cos(a, b, u)
    return values[-1]


def fastai_flat_cosine(t: int, n: int, pct: float, end: float) -> float:
    return 1.0 if t / n < pct else _cos(1.0, end, min((t / n - pct) / (1 - pct), 1.0))


def transformers_wsd(
    t: int, warm: int, stable: int, fall: int, kinds: tuple[str, str], low: float
) -> float:
    """get_wsd_schedule with min_lr_ratio = low."""
    up, down = kinds
    if t < warm:
        u = t / warm
        part = {"linear": u, "cosine": 0.5 * (1 - math.cos(math.pi * u))}.get(
            up, 1 - math.sqrt(1 - u)
        )
        return part * (1 - low) + low
    if t < warm + stable:
        return 1.0
    if t >= warm + stable + fall:
        return low
    u = (t - warm - stable) / fall
    part = {"linear": 1 - u, "cosine": 0.5 * (1 + math.cos(math.pi * u))}.get(
        down, 1 - math.sqrt(u)
    )
    return part * (1 - low) + low


def transformers_linear(t: int, warm: int, total: int) -> float:
    """get_linear_schedule_with_warmup."""
    return t / warm if t < warm else max(0.0, (total - t) / (total - warm))


def transformers_cosine(t: int, warm: int, total: int, cycles: float = 0.5) -> float:
    """get_cosine_schedule_with_warmup, held at its end."""
    u = (min(t, total) - warm) / (total - warm)
    return t / warm if t < warm else max(0.0, 0.5 * (1 + math.cos(2 * math.pi * cycles * u)))


def transformers_inverse_sqrt(t: int, warm: int, timescale: float) -> float:
    return t / warm if t < warm else 1 / math.sqrt((t + timescale - warm) / timescale)


def ulmfit_slanted(t: int, n: int, cut_frac: float, ratio: float) -> float:
    cut = math.floor(n * cut_frac + 1e-9)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


def keras_staircase(t: int, decay_steps: int, rate: float) -> float:
    return math.pow(rate, math.floor(t / decay_steps))


def timm_cosine_cycles(t: int, first: int, mult: int, low: float) -> float:
    """Cycle by cycle: its own logarithm is off at the sixth of mult 3."""
    length = first
    while t >= length:
        t, length = t - length, length * mult
    return low + 0.5 * (1 - low) * (1 + math.cos(math.pi * t / length))


def rex(t: int, n: int) -> float:
    return (1 - t / n) / (0.5 + 0.5 * (1 - t / n))
