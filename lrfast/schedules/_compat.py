"""Where the phases of a one-cycle policy end: ours, and those of torch, fastai and optax."""

from __future__ import annotations

import math
from typing import Literal

from lrfast.schedules._segments import Segment, Shape, Track, hold, track

Compat = Literal["torch", "fastai", "optax"]
COMPATS = ("torch", "fastai", "optax")

PCT_START = {None: 0.3, "torch": 0.3, "fastai": 0.25, "optax": 0.3}
FINAL_DIV = {None: 1e4, "torch": 1e4, "fastai": 4e3, "optax": 1e4}  # fastai: peak / end is 1e5
_OPTAX_PCT_FINAL = 0.85


def phase_ends(
    total_steps: int, pct_start: float, three_phase: bool, compat: Compat | None
) -> list[float]:
    """Return the steps at which the phases end; torch's and fastai's need not be whole.

    Ours are whole, so that a step stands on the peak; the last phase ends at the last step, as in
    torch, where those of fastai and optax end one step later. Where no step is left for the way
    back between a peak and the last step, ours has two phases.
    """
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


def phases(ends: list[float], values: list[float], shape: Shape) -> Track:
    """Return segments from value to value that end at the given steps.

    A phase without a step is left out; where none is left, the second value, the peak, is held.
    """
    segments: list[Segment] = []
    start = 0.0
    for end, first, last in zip(ends, values[:-1], values[1:], strict=True):
        begin = max(math.ceil(start), 0)
        if end > start and begin <= math.floor(end):
            segments.append(Segment(begin, start, end - start, first, last, shape))
        start = end
    return track(*segments) if segments else hold(values[1])
