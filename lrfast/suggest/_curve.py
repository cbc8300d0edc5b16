"""Loss curves as arrays: their checks, their finite part, their noise."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrfast._utils.arguments import checked
from lrfast._utils.validation import is_int, short_repr

FloatArray = NDArray[np.float64]

# Median of |x - y| for independent standard normal x and y: sqrt(2) times the quartile 0.6745.
MEDIAN_ABS_DIFFERENCE: Final = 0.9539


@checked
def trim(
    lrs: ArrayLike, losses: ArrayLike, skip_start: int | None = None, skip_end: int = 5
) -> tuple[FloatArray, FloatArray]:
    """Drop the first points, smoothed over few losses, and the last, at which the loss diverges.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] losses.
        skip_start: Points to drop at the start, 0 or more. None, the default: a tenth. fastai drops
            a tenth of those planned, ``num_iter // 10``, even if the sweep stopped early.
        skip_end: Points to drop at the end, 0 or more; default 5.

    Returns:
        Learning rates and losses [points - skip_start - skip_end] as float64.

    Raises:
        ValueError: If an argument is not as described, or fewer than two points would remain.

    Example:
        >>> lrs, losses = trim(np.geomspace(1e-7, 1.0, 100), np.linspace(2.0, 1.0, 100))
        >>> len(lrs), len(losses)
        (85, 85)
    """
    rates, curve = validated(lrs, losses)
    start = len(rates) // 10 if skip_start is None else skip_start
    for argument, skip in (("skip_start", start), ("skip_end", skip_end)):
        if not is_int(skip) or skip < 0:
            raise ValueError(f"{argument} must be a whole number from 0 on, got {skip!r}")
    end = len(rates) - skip_end
    if end - start < 2:
        raise ValueError(
            f"skip_start={start} and skip_end={skip_end} leave {max(end - start, 0)} of the "
            f"{len(rates)} points in lrs, and no rule reads fewer than 2; skip fewer or record more"
        )
    return rates[start:end], curve[start:end]


def until_nonfinite(lrs: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return both arrays up to the first loss that is NaN or infinite."""
    rates, curve = validated(lrs, losses)
    broken = np.flatnonzero(~np.isfinite(curve))
    end = int(broken[0]) if len(broken) else len(curve)
    return rates[:end], curve[:end]


def validated(lrs: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return learning rates and losses as vectors, after checks of both."""
    rates = _as_vector("lrs", lrs)
    curve = _as_vector("losses", losses)
    if len(rates) != len(curve):
        raise ValueError(
            f"losses must have one entry per rate, got {len(curve)} for {len(rates)} in lrs; "
            "pass both arrays of the same sweep"
        )
    bad = np.flatnonzero(~(np.isfinite(rates) & (rates > 0)))
    if len(bad):
        raise ValueError(
            f"lrs must be finite and positive, got {rates[bad[0]]} at index {bad[0]}; "
            "drop that point from lrs and losses"
        )
    falls = np.flatnonzero(np.diff(rates) <= 0)
    if len(falls):
        before, after = rates[falls[0]], rates[falls[0] + 1]
        raise ValueError(
            f"lrs must increase, got {after} after {before} at index {falls[0] + 1}; "
            "pass the points in the order of their rates, and one point per rate"
        )
    return rates, curve


def _as_vector(argument: str, values: ArrayLike) -> FloatArray:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = f"{argument} must be a list or numpy array of numbers"
        raise ValueError(f"{wanted}, got {short_repr(values)} ({error})") from error
    if vector.ndim != 1:
        raise ValueError(
            f"{argument} must have one dimension, got shape {vector.shape}; pass one per point"
        )
    return vector


def confidence(losses: FloatArray) -> float:
    """Return the fraction of the fall that noise does not explain, between 0 and 1."""
    # A smoothed curve of pure noise is close to a random walk, which after n steps is one standard
    # deviation, sigma * sqrt(n), away from its start. The median absolute second difference tells
    # sigma: a trend and a few steep points do not change it, and curvature lowers the result.
    fall = float(losses[0] - losses.min())
    if len(losses) < 3 or fall <= 0:
        return 0.0
    sigma = float(np.median(np.abs(np.diff(losses, n=2)))) / MEDIAN_ABS_DIFFERENCE
    return max(0.0, 1.0 - sigma * math.sqrt(len(losses) - 1) / fall)


def decline_reason(losses: FloatArray, needed: int = 2) -> str | None:
    """Return why these losses allow no suggestion, or None if they do."""
    reason = too_few(losses, needed)
    if reason is None and np.all(np.diff(losses) >= 0):
        return f"the loss never decreases: it is lowest at the start, {losses[0]:.3g}"
    return reason


def too_few(losses: FloatArray, needed: int) -> str | None:
    """Return that these are too few losses, or None if they suffice."""
    if len(losses) >= needed:
        return None
    return f"too few points: {len(losses)} with a finite loss, {needed} or more are needed"
