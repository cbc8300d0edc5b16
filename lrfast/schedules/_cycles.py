"""Schedules that go up and down: one-cycle, cyclic, warm restarts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

from lrfast._utils.arguments import checked
from lrfast._utils.validation import (
    MAX_STEPS,
    check_at_least_1,
    check_choice,
    check_count,
    check_fraction,
    check_nonnegative,
)
from lrfast.schedules._schedule import Schedule
from lrfast.schedules._segments import Segment, Shape, Table, Track, chain, hold, ramp, track

Anneal = Literal["cos", "linear"]
Compat = Literal["torch", "fastai", "optax"]
Mode = Literal["triangular", "triangular2", "exp_range"]

_PCT_START = {None: 0.3, "torch": 0.3, "fastai": 0.25, "optax": 0.3}
_FINAL_DIV = {None: 1e4, "torch": 1e4, "fastai": 4e3, "optax": 1e4}  # fastai: peak / end is 1e5
_OPTAX_PCT_FINAL = 0.85
_MAX_CYCLES = 4096  # segments that a table without end may hold


@checked
def one_cycle(
    total_steps: int,
    pct_start: float | None = None,
    div_factor: float = 25.0,
    final_div_factor: float | None = None,
    momentum: tuple[float, float] | None = (0.95, 0.85),
    anneal: Anneal = "cos",
    three_phase: bool = False,
    compat: Compat | None = None,
) -> Schedule:
    """Return the one-cycle policy: up to the group's learning rate, then far below its start.

    The multiplier goes from ``1 / div_factor`` to 1 and on to
    ``1 / (div_factor * final_div_factor)``, as in torch's OneCycleLR, and the momentum mirrors it
    (arXiv:1708.07120). Peak and end are hit exactly, at whole steps: the peak at step
    ``p = max(round(pct_start * total_steps) - 1, 0)``, the end at step ``total_steps - 1``.
    OneCycleLR has the same values if ``pct_start * total_steps`` is a whole number, and otherwise
    never reaches its peak. With three phases the multiplier is back at ``1 / div_factor`` at step
    ``2 * p``, or one step before the end, and falls to its end from there with the momentum at its
    highest; if no step is left between peak and end, there are two phases.

    ``compat`` ends the phases where another library does: "torch" at fractions of a step, "fastai"
    at ``pct_start * total_steps`` and ``total_steps``, one step after the last, "optax" at the
    whole numbers below those and, with three phases, at ``0.85 * total_steps``.

    Args:
        total_steps: Optimizer steps of the cycle, 1 or more.
        pct_start: Fraction of the steps spent going up, in [0, 1], with three phases in [0, 0.5].
            None, the default: 0.3; 0.25 with "fastai".
        div_factor: Peak over first multiplier, 1 or more; default 25.
        final_div_factor: First over last multiplier, 1 or more. None, the default: 1e4; 4e3 with
            "fastai", whose own ``div_final`` is ``div_factor * final_div_factor``.
        momentum: (highest, lowest) momentum or beta1, in [0, 1), or None; default (0.95, 0.85).
        anneal: Shape of the phases, "cos", the default, or "linear".
        three_phase: Whether to return to the first multiplier before the last fall; default False.
        compat: None, the default, "torch", "fastai" or "optax".

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = one_cycle(100)
        >>> [round(schedule.at(step), 6) for step in (0, 29, 99, 1000)]
        [0.04, 1.0, 4e-06, 4e-06]
    """
    total_steps = check_count("total_steps", total_steps)
    if compat is not None:
        check_choice("compat", compat, get_args(Compat))
    pct_start = _PCT_START[compat] if pct_start is None else pct_start
    final_div_factor = _FINAL_DIV[compat] if final_div_factor is None else final_div_factor
    check_fraction("pct_start", pct_start)
    if three_phase and pct_start > 0.5:
        raise ValueError(
            f"pct_start must be 0.5 or less with three phases, two of that length, got {pct_start}"
        )
    check_at_least_1("div_factor", div_factor)
    check_at_least_1("final_div_factor", final_div_factor)
    check_choice("anneal", anneal, get_args(Anneal))
    shape: Shape = "cosine" if anneal == "cos" else "linear"
    ends = _phase_ends(total_steps, pct_start, three_phase, compat)
    rate = _phases(ends, 1 / div_factor, 1.0, 1 / (div_factor * final_div_factor), shape)
    momenta = None
    if momentum is not None:
        high, low = _check_momentum(momentum)
        momenta = _phases(ends, high, low, high, shape)
    return Schedule("one-cycle", total_steps, (rate,), momenta)


def _phase_ends(
    total_steps: int, pct_start: float, three_phase: bool, compat: Compat | None
) -> list[float]:
    """Return the steps at which the phases end; those of torch and fastai may be fractions."""
    share = pct_start * total_steps
    if compat == "fastai":
        return [share, *([2 * share] if three_phase else []), total_steps]
    if compat == "optax":
        final = [int(_OPTAX_PCT_FINAL * total_steps)] if three_phase else []
        return [int(share), *final, total_steps]
    if compat == "torch":
        return [share - 1, *([2 * (share - 1)] if three_phase else []), total_steps - 1]
    peak = max(round(share) - 1, 0)
    back = min(2 * peak, total_steps - 2)
    return [peak, *([back] if three_phase and 0 < peak < back else []), total_steps - 1]


def _phases(ends: list[float], low: float, peak: float, last: float, shape: Shape) -> Track:
    """Return one segment per phase that has a step; the peak is held if there is none."""
    values = [low, peak, *[low] * (len(ends) - 2), last]
    segments: list[Segment] = []
    for (start, end), (first, to) in zip(pairwise([0.0, *ends]), pairwise(values), strict=True):
        begin = max(math.ceil(start), 0)
        if end > start and begin <= math.floor(end):
            segments.append(Segment(begin, start, end - start, first, to, shape))
    return track(*segments) if segments else hold(peak)


def _check_momentum(momentum: tuple[float, float]) -> tuple[float, float]:
    high, low = momentum
    if not (0 <= low <= high < 1):
        raise ValueError(f"momentum must be (highest, lowest) within [0, 1), got {momentum}")
    return high, low


@checked
def cyclic(
    step_size_up: int,
    step_size_down: int | None = None,
    base: float = 0.1,
    mode: Mode = "triangular",
    gamma: float = 1.0,
    momentum: tuple[float, float] | None = None,
) -> Schedule:
    """Return triangles between ``base`` and 1, without end: torch's CyclicLR (arXiv:1506.01186).

    The value is ``base + (1 - base) * s * e``: s rises linearly from 0 to 1 and falls back, while
    the momentum falls and rises; e is 1 ("triangular"), ``2 ** -cycle`` ("triangular2") or
    ``gamma ** step`` ("exp_range"). Its ``total_steps`` are those of one cycle.

    Args:
        step_size_up: Steps from ``base`` to 1, 1 or more.
        step_size_down: Steps back, 1 or more; None, the default: ``step_size_up``.
        base: Lowest multiplier, a fraction of the group's learning rate, in [0, 1]; default 0.1.
        mode: "triangular", the default, "triangular2" or "exp_range".
        gamma: Factor per step of "exp_range", above 0 and at most 1; default 1.
        momentum: (highest, lowest) momentum or beta1, in [0, 1); default None: untouched.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> cyclic(2, base=0.2, mode="triangular2").values(range(8)).round(6).tolist()
        [0.2, 0.6, 1.0, 0.6, 0.2, 0.4, 0.6, 0.4]
    """
    up = check_count("step_size_up", step_size_up)
    down = up if step_size_down is None else check_count("step_size_down", step_size_down)
    check_fraction("base", base)
    check_choice("mode", mode, get_args(Mode))
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie above 0 and be 1 or less, got {gamma}")
    gain = 0.5 if mode == "triangular2" else 1.0
    decay = gamma if mode == "exp_range" else 1.0

    def triangles(low: float, high: float) -> Track:
        sides = ramp(0, up, low, high, "linear"), ramp(up, down, high, low, "linear")
        return (Table(sides, period=up + down, gain=gain, decay=decay, floor=low),)

    momenta = None if momentum is None else triangles(*_check_momentum(momentum))
    return Schedule(f"cyclic {mode}", up + down, (triangles(base, 1.0),), momenta)


@checked
def sgdr(
    cycle_len: int,
    cycle_mult: float = 1.0,
    cycles: int | None = None,
    eta_min: float = 0.0,
    warmup: int = 0,
    unit: int = 1,
) -> Schedule:
    """Return half cosines from 1 to ``eta_min``, one after the other: SGDR (arXiv:1608.03983).

    Cycle i lasts ``round(cycle_len * cycle_mult ** i)`` steps, and the next one begins at the step
    at which it would reach ``eta_min``: torch's CosineAnnealingWarmRestarts for a whole
    ``cycle_mult``. ``total_steps`` is the sum of the cycles, whose last step hits ``eta_min``,
    which is held, or ``cycle_len`` without end (until 2**53 steps).

    Args:
        cycle_len: Steps of the first cycle, 1 or more.
        cycle_mult: Factor from each cycle's length to the next one's, 1 or more; default 1.
        cycles: Number of cycles, 1 or more; None, the default: without end.
        eta_min: Lowest multiplier, 0 or more; default 0.
        warmup: Steps of each cycle, the first one too, that rise linearly from ``eta_min`` to 1
            before the cosine; 0, the default, or more, and less than ``cycle_len``.
        unit: Divisor of ``cycle_len``, such as the steps of an epoch, to whose multiples the
            lengths of cycles are rounded, 1 or more; default 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sgdr(2, cycle_mult=2, cycles=2).values(range(8)).round(3).tolist()
        [1.0, 0.5, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]
    """
    cycle_len = check_count("cycle_len", cycle_len)
    check_at_least_1("cycle_mult", cycle_mult)
    cycles = None if cycles is None else check_count("cycles", cycles)
    check_nonnegative("eta_min", eta_min)
    unit = check_count("unit", unit)
    if cycle_len % unit:
        raise ValueError(f"unit must divide {cycle_len} (cycle_len), got {unit}")
    warmup = check_count("warmup", warmup, least=0)
    if warmup >= cycle_len:
        raise ValueError(f"warmup must be less than {cycle_len} (cycle_len), got {warmup}")
    if cycle_mult > 1:  # one by one: a formula for the current cycle is off at its ends
        segments: list[Segment] = []
        begin, count = 0, 0
        while count != cycles and begin < MAX_STEPS:
            if count == _MAX_CYCLES:
                raise ValueError(
                    f"cycles must be {_MAX_CYCLES} or less with a cycle_mult of {cycle_mult}, got "
                    f"{cycles}"
                )
            length = cycle_length(cycle_len, cycle_mult, count, unit)
            segments += _cycle(begin, length, eta_min, warmup, is_last=count + 1 == cycles)
            begin, count = begin + length, count + 1
        if count != (cycles or count):
            raise ValueError(f"cycles must end before step 2**53, got {cycles}")
        return Schedule("sgdr", begin if cycles else cycle_len, (track(*segments),))
    rate: Track = (Table(tuple(_cycle(0, cycle_len, eta_min, warmup)), period=cycle_len),)
    if cycles is None:
        return Schedule("sgdr", cycle_len, (rate,))
    last = track(*_cycle(0, cycle_len, eta_min, warmup, is_last=True))
    rate = chain(rate, last, (cycles - 1) * cycle_len) if cycles > 1 else last
    return Schedule("sgdr", cycles * cycle_len, (rate,))


def cycle_length(cycle_len: int, cycle_mult: float, index: int, unit: int = 1) -> int:
    """Return the steps of a cycle, rounded to a multiple of ``unit``."""
    return round(cycle_len / unit * cycle_mult**index) * unit


def _cycle(begin: int, steps: int, low: float, warmup: int, is_last: bool = False) -> list[Segment]:
    rise = [ramp(begin, warmup, low, 1.0, "linear")] if warmup else []
    fall = max(steps - warmup - is_last, 1)  # a single step stands on the peak
    return [*rise, ramp(begin + warmup, fall, 1.0, low, "cosine")]
