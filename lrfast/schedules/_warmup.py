"""Schedules with a warm-up or a plateau: warm-up, flat-cosine, WSD, inverse root, slanted."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lrfast._utils.arguments import checked
from lrfast._utils.validation import (
    check_at_least_1,
    check_choice,
    check_count,
    check_fraction,
    check_nonnegative,
    check_positive,
)
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Shape, level, ramp, track

Ramp = Literal["linear", "cosine", "sqrt"]


@checked
def warmup(steps: int, start_factor: float = 0.0) -> Schedule:
    """Return a straight line from ``start_factor`` to 1, for :meth:`Schedule.then`.

    Args:
        steps: Steps of the rise, 1 or more; 1 is reached at step ``steps``.
        start_factor: Multiplier at step 0, 0 or more; default 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lrfast import schedules
        >>> schedules.warmup(2).then(schedules.cosine(2)).values(range(5)).round(6).tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    steps = check_count("steps", steps)
    check_nonnegative("start_factor", start_factor)
    return Schedule("warm-up", steps, (track(ramp(0, steps, start_factor, 1.0, "linear")),))


@checked
def linear_with_warmup(warmup_steps: int, total_steps: int) -> Schedule:
    """Return a rise from 0 to 1, then a fall to 0: transformers' get_linear_schedule_with_warmup.

    Args:
        warmup_steps: Steps of the rise, 0 or more; 1 is reached at step ``warmup_steps``.
        total_steps: Step from which on the multiplier is 0, above ``warmup_steps``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> linear_with_warmup(2, 6).values(range(8)).tolist()
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    warmup_steps, fall = _steps_around(warmup_steps, total_steps)
    segments = [*_rise(warmup_steps), ramp(warmup_steps, fall, 1.0, 0.0, "linear")]
    return Schedule("linear-with-warmup", warmup_steps + fall, (track(*segments),))


@checked
def cosine_with_warmup(warmup_steps: int, total_steps: int, num_cycles: float = 0.5) -> Schedule:
    """Return a rise from 0 to 1, then a cosine: transformers' get_cosine_schedule_with_warmup.

    Past its end it holds its last value, whereas that of transformers goes on along the cosine.

    Args:
        warmup_steps: Steps of the rise, 0 or more; 1 is reached at step ``warmup_steps``.
        total_steps: Step at which the cosine ends, above ``warmup_steps``.
        num_cycles: Periods of the cosine, above 0, at most one per 2 steps; default 0.5: it ends at
            0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cosine_with_warmup(2, 6).values(range(8)).round(3).tolist()
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    warmup_steps, fall = _steps_around(warmup_steps, total_steps)
    check_positive("num_cycles", num_cycles)
    if num_cycles > max(fall / 2, 0.5):
        raise ValueError(
            f"num_cycles must be {max(fall / 2, 0.5)} or less, a period per 2 steps after the "
            f"warm-up, got {num_cycles}"
        )
    half = fall / (2 * num_cycles)  # steps of half a period
    segments = _rise(warmup_steps)
    for index in range(math.ceil(2 * num_cycles)):
        start = warmup_steps + index * half
        if math.ceil(start) < total_steps:
            ends = (1.0, 0.0) if index % 2 == 0 else (0.0, 1.0)
            segments.append(Segment(math.ceil(start), start, half, *ends, "cosine"))
    last = (1 + math.cos(2 * math.pi * num_cycles)) / 2
    segments.append(level(warmup_steps + fall, last))
    return Schedule("cosine-with-warmup", warmup_steps + fall, (track(*segments),))


def _steps_around(warmup_steps: int, total_steps: int) -> tuple[int, int]:
    """Return the steps of a warm-up and those after it, 1 or more."""
    warmup_steps = check_count("warmup_steps", warmup_steps, least=0)
    total_steps = check_count("total_steps", total_steps)
    if warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps must be less than {total_steps} (total_steps), got {warmup_steps}"
        )
    return warmup_steps, total_steps - warmup_steps


def _rise(steps: int) -> list[Segment]:
    """Return a linear warm-up from 0, if there is one."""
    return [ramp(0, steps, 0.0, 1.0, "linear")] if steps else []


@checked
def flat_cosine(
    total_steps: int,
    pct_start: float = 0.72,
    end: float = 0.0,
    compat: Literal["fastai"] | None = None,
) -> Schedule:
    """Return 1 for a share of the steps, then half a cosine to ``end``: fastai's fit_flat_cos.

    The fall begins at step ``round(pct_start * total_steps)``, and ``end`` is hit at the last step,
    ``total_steps - 1``; if no step is left to fall, 1 is held. With ``compat="fastai"`` it begins
    at ``pct_start * total_steps``, a fraction too, and ends at ``total_steps``.

    Args:
        total_steps: Optimizer steps in all, 1 or more.
        pct_start: Fraction of the steps at 1, in [0, 1]; default 0.72, and 0.75 in fastai.
        end: Last multiplier, which is held, 0 or more; default 0, and 1e-5 in fastai.
        compat: None, the default, or "fastai".

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> flat_cosine(5, pct_start=0.4).values(range(6)).round(6).tolist()
        [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    total_steps = check_count("total_steps", total_steps)
    check_fraction("pct_start", pct_start)
    check_nonnegative("end", end)
    fall, last = float(round(pct_start * total_steps)), total_steps - 1
    if compat is not None:
        check_choice("compat", compat, ("fastai",))
        fall, last = pct_start * total_steps, total_steps
    segments = [level(0, 1.0)] if fall or fall >= last else []
    if fall < last:
        segments.append(ramp(fall, last - fall, 1.0, end, "cosine"))
    return Schedule("flat-cosine", total_steps, (track(*segments),))


@checked
def wsd(
    total_steps: int,
    warmup_steps: int,
    decay_steps: int,
    warmup: Ramp = "linear",
    decay: Ramp = "linear",
    start: float = 0.0,
    end: float = 0.0,
) -> Schedule:
    """Return warm-up, stable, decay: up to 1, level, and down in the last ``decay_steps`` steps.

    With ``u`` the fraction done of a ramp from a to b, "linear" is ``a + (b - a) * u``,
    "cosine" half a cosine, and "sqrt" ``b + (a - b) * sqrt(1 - u)`` upwards and
    ``a + (b - a) * sqrt(u)`` downwards. Hugging Face's ``min_lr_ratio`` is ``start`` and ``end``.

    Args:
        total_steps: Steps until ``end``, which is held, 1 or more.
        warmup_steps: Steps of the rise, 0 or more.
        decay_steps: Steps of the fall, 1 or more.
        warmup: Shape of the rise, "linear", the default, "cosine" or "sqrt".
        decay: Shape of the fall, "linear", the default, "cosine" or "sqrt".
        start: Multiplier at step 0, 0 or more; default 0.
        end: Last multiplier, 0 or more; default 0.

    Raises:
        ValueError: If an argument is out of range, or rise and fall are longer than the total.

    Example:
        >>> wsd(8, warmup_steps=2, decay_steps=4).values(range(9)).tolist()
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    Reference:
        Hu et al., "MiniCPM", arXiv:2404.06395; the square root: Hägele et al., arXiv:2405.18392.
    """
    total_steps = check_count("total_steps", total_steps)
    warmup_steps = check_count("warmup_steps", warmup_steps, least=0)
    decay_steps = check_count("decay_steps", decay_steps)
    if warmup_steps + decay_steps > total_steps:
        raise ValueError(
            f"warmup_steps + decay_steps must be {total_steps} (total_steps) or less, got "
            f"{warmup_steps} + {decay_steps}"
        )
    check_choice("warmup", warmup, get_args(Ramp))
    check_choice("decay", decay, get_args(Ramp))
    check_nonnegative("start", start)
    check_nonnegative("end", end)
    segments = [_wsd_ramp(0, warmup_steps, start, 1.0, warmup)] if warmup_steps else []
    fall = total_steps - decay_steps
    if fall > warmup_steps:
        segments.append(level(warmup_steps, 1.0))
    segments.append(_wsd_ramp(fall, decay_steps, 1.0, end, decay))
    return Schedule("wsd", total_steps, (track(*segments),))


@checked
def inverse_sqrt(warmup_steps: int, total_steps: int, timescale: float | None = None) -> Schedule:
    """Return a linear rise, then ``1 / sqrt(1 + (step - warmup_steps) / timescale)``.

    Args:
        warmup_steps: Steps from 0 to 1; 0: none.
        total_steps: Step from which on the multiplier is held, ``warmup_steps`` or more.
        timescale: Steps from the end of the warm-up until 1 / sqrt(2), above 0. None, the default:
            ``warmup_steps`` (arXiv:1706.03762), or 10000 if that is 0, as in Hugging Face.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> inverse_sqrt(2, 100).values([0, 1, 2, 8]).round(6).tolist()
        [0.0, 0.5, 1.0, 0.5]
    """
    warmup_steps = check_count("warmup_steps", warmup_steps, least=0)
    total_steps = check_count("total_steps", total_steps)
    if warmup_steps > total_steps:
        raise ValueError(
            f"warmup_steps must be {total_steps} (total_steps) or less, got {warmup_steps}"
        )
    scale = float(warmup_steps or 10_000) if timescale is None else timescale
    check_positive("timescale", scale)
    segments = _rise(warmup_steps)
    fall = total_steps - warmup_steps
    if fall:
        last = 1 / math.sqrt(1 + fall / scale)
        segments.append(ramp(warmup_steps, fall, 1.0, last, "inverse", 0.5))
    return Schedule("inverse-sqrt", total_steps, (track(*segments),))


@checked
def slanted_triangular(total_steps: int, cut_frac: float = 0.1, ratio: float = 32.0) -> Schedule:
    """Return ULMFiT's triangle: a short linear rise from ``1 / ratio`` to 1, a long linear fall.

    The peak stands at step ``round(cut_frac * total_steps)``, and ``1 / ratio`` is reached again
    at ``total_steps``. The paper's formula (arXiv:1801.06146) falls below ``1 / ratio`` if
    ``cut_frac * total_steps`` is not whole, and divides by zero if it is below 1.

    Args:
        total_steps: Steps of rise and fall, 1 or more; the end is held.
        cut_frac: Fraction of the steps spent rising, in [0, 1]; default 0.1.
        ratio: Peak over first and last multiplier, 1 or more; default 32.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> slanted_triangular(20).values([0, 2, 11, 20]).tolist()
        [0.03125, 1.0, 0.515625, 0.03125]
    """
    total_steps = check_count("total_steps", total_steps)
    check_fraction("cut_frac", cut_frac)
    check_at_least_1("ratio", ratio)
    low, cut = 1 / ratio, round(cut_frac * total_steps)
    segments = [ramp(0, cut, low, 1.0, "linear")] if cut else []
    if cut < total_steps:
        segments.append(ramp(cut, total_steps - cut, 1.0, low, "linear"))
    return Schedule("slanted-triangular", total_steps, (track(*segments),))


def _wsd_ramp(begin: int, steps: int, first: float, last: float, kind: Ramp) -> Segment:
    """Return a segment of that kind; the root is steep at its lower end, up as well as down."""
    if kind != "sqrt":
        return ramp(begin, steps, first, last, kind)
    root: Shape = "polynomial" if first < last else "power"
    return ramp(begin, steps, first, last, root, 0.5)
