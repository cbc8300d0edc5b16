"""The default rule."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast.suggest._arrays import FloatArray, finite_part, validated
from lrfast.suggest._shape import FEWEST_POINTS, Shape, lost_in_noise, read_shape
from lrfast.suggest._suggestion import Suggestion, declined

# Fitted on the tasks of benchmarks/suggestions, where their exact values matter little.
_LOWER: Final = 0.7  # too high a rate costs more than too low a one
_MORE_IN_NOISE: Final = 0.2

_WIDER: Final = 100.0  # factor by which a range is extended where it ends too early


def auto(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the middle of the valley: between half of the fall done and half of it lost again.

    On the logarithmic scale it lies between the rate at which the loss has done half of its fall
    and the higher one at which it has lost half of it again: in the middle where losses scatter
    little, further up where they scatter much (for then the fall seems to begin too early, while a
    divergence is never in doubt). The answer is 0.7 times that, or, where the
    fall is never lost again, 0.7 times the rate at which nine tenths of it are done.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite. Smoothed
            losses lag behind their rates, and so would the answer.

    Returns:
        The suggestion. It declines, with the range to sweep next, where the curve says nothing:
        fewer than 10 points, a loss that never falls, that falls until the end, or that neither
        falls by more than noise explains nor diverges.

    Raises:
        ValueError: if an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> auto(lrs, 1 / (1 + lrs / 1e-2) + 4 * lrs**2).reason
        'half of the fall is done at 7.9e-03 and lost again at 4.0e-01'
    """
    rates, curve = validated(lrs, losses)
    shape = read_shape(lrs, losses)
    if isinstance(shape, str):
        return declined("auto", shape, _other_range(rates, curve))
    same = (float(rates[0]), float(rates[-1]))
    doubt = lost_in_noise(shape)
    if doubt and not shape.diverges:
        return declined("auto", f"{doubt}; average more of them: more points or repeats", same)
    down, up = shape.falls_by(0.5), shape.rises_by(0.5)
    if up is None:
        if shape.falls_at_its_end:
            reason = f"the loss still falls at the last rate, {rates[-1]:.1e}"
            return declined("auto", reason, (same[0], same[1] * _WIDER))
        lr = _LOWER * shape.rate(shape.falls_by(0.9))
        done = f"nine tenths of the fall are done at {lr / _LOWER:.1e}"
        reason = f"{done}, and it is never lost again"
    else:
        lr = _LOWER * math.exp(_between(shape, down, up))
        low, high = shape.rate(down), shape.rate(up)
        reason = f"half of the fall is done at {low:.1e} and lost again at {high:.1e}"
    if doubt:
        reason = f"{doubt}, but it clearly diverges; at a guess, {reason}"
    return Suggestion(lr, "auto", reason, shape.confidence, shape.nearest(lr))


def _other_range(rates: FloatArray, losses: FloatArray) -> tuple[float, float] | None:
    """Where to look for a fall: below the range of a loss that rises, else above it.

    The same range, to be swept with more points, where there are too few to tell.
    """
    if len(rates) < 2:
        return None
    first, last = float(rates[0]), float(rates[-1])
    _, curve = finite_part(rates, losses)
    half = len(curve) // 2
    rises = len(curve) < len(losses) or np.median(curve[half:]) > np.median(curve[:half])
    if rises:
        return first / _WIDER, last
    return (first, last) if len(curve) < FEWEST_POINTS else (first, last * _WIDER)


def _between(shape: Shape, down: int, up: int) -> float:
    """The logarithm of the rate between the two indices."""
    low, high = shape.log_rates[down], shape.log_rates[up]
    # From 0, where losses scatter by a tenth of the fall or less, to 1, where by all of it.
    noisiness = 1 + math.log10(min(max(shape.noise / shape.fall, 0.1), 1.0))
    return float(low + (0.5 + _MORE_IN_NOISE * noisiness) * (high - low))
