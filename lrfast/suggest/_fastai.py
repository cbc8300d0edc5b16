"""The four suggestion methods of fastai 2.8 (fastai/callback/schedule.py), for smoothed losses."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike

from lrfast._utils.arguments import checked
from lrfast._utils.validation import is_int
from lrfast.suggest._curve import FloatArray, confidence, decline_reason, until_nonfinite
from lrfast.suggest._suggestion import Suggestion, no_suggestion


def steep(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the learning rate at which the loss falls fastest per decade: fastai 2.8's `steep`.

    ``lrs[argmin_i (losses[i+1] - losses[i]) / (ln lrs[i+1] - ln lrs[i])]``

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] smoothed losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion; none below two points and if the loss never falls.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> steep([1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.9, 0.5, 3.0]).reason
        'the loss decreases fastest per decade at lr 1.0e-03'
    """
    rates, curve = until_nonfinite(lrs, losses)
    if refusal := decline_reason(curve):
        return no_suggestion("steep", refusal)
    index = int(np.argmin(np.diff(curve) / np.diff(np.log(rates))))
    lr = float(rates[index])
    reason = f"the loss decreases fastest per decade at lr {lr:.1e}"
    return Suggestion(lr, "steep", reason, confidence(curve), index)


def minimum(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest a tenth of the learning rate with the lowest loss: fastai 2.8's `minimum`.

    ``lrs[argmin_i losses[i]] / 10``

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] smoothed losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion, and the index of the lowest loss; none below two points or without a fall.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> minimum([1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.9, 0.5, 3.0]).reason
        'the loss is lowest at lr 1.0e-02; a tenth of that keeps a margin to divergence'
    """
    rates, curve = until_nonfinite(lrs, losses)
    if refusal := decline_reason(curve):
        return no_suggestion("minimum", refusal)
    index = int(np.argmin(curve))
    lowest = float(rates[index])
    reason = f"the loss is lowest at lr {lowest:.1e}; a tenth of that keeps a margin to divergence"
    return Suggestion(lowest / 10, "minimum", reason, confidence(curve), index)


def valley(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the learning rate about halfway down the longest valley: fastai 2.8's `valley`.

    The valley is the longest strictly decreasing subsequence, the earliest to end among equals.
    With its length n and the index ``end`` of its last point, fastai counts as if the subsequence
    had no gaps and began one point earlier, and answers

    ``lrs[end - n + n // 3 + n // 6]``

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] smoothed losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion; none below two points, if the loss never falls, and if the valley is just
        the first two points, for which fastai's index of -1 means the largest learning rate.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> valley([1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.9, 0.5, 3.0]).reason
        'the longest valley has 3 points and ends at lr 1.0e-02, 2 points after 1.0e-04'
    """
    rates, curve = until_nonfinite(lrs, losses)
    if refusal := decline_reason(curve):
        return no_suggestion("valley", refusal)
    length, end = _longest_decline(curve)
    index = end - length + length // 3 + length // 6
    if index < 0:
        return no_suggestion("valley", "the loss decreases only from the first point to the second")
    lr = float(rates[index])
    reason = (
        f"the longest valley has {length} points and ends at lr {rates[end]:.1e}, "
        f"{end - index} points after {lr:.1e}"
    )
    return Suggestion(lr, "valley", reason, confidence(curve), index)


@checked
def slide(
    lrs: ArrayLike,
    losses: ArrayLike,
    *,
    lr_diff: int = 15,
    loss_threshold: float = 0.005,
    adjust: float = 1.0,
) -> Suggestion:
    """Suggest the learning rate at which the slope settles, from the end: fastai 2.8's `slide`.

    With the slope ``g = np.gradient(losses)`` per point, an interval of ``lr_diff`` points slides
    left from the end while ``|g[right] - g[left]| > loss_threshold``. The suggestion is the last
    left end that met the condition (the first one if none did), times ``adjust``.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] smoothed losses; the curve is cut at the first one that is not finite.
        lr_diff: Width of the interval in points, 1 or more; default 15.
        loss_threshold: Smallest slope difference in loss per point, 0 or more; default 0.005.
        adjust: Factor on the learning rate found, above 0; default 1.

    Returns:
        The suggestion, with the index of the learning rate before the factor; none below
        ``lr_diff + 1`` points and if the loss never falls.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> slide(lrs, 1 / (1 + lrs / 1e-2) + 4 * lrs**2).reason
        'from the end, the slope changes by more than 0.005 over the 15 points from lr 2.0e-03'
    """
    if not is_int(lr_diff) or lr_diff < 1:
        raise ValueError(f"lr_diff must be a whole number of points from 1 on, got {lr_diff!r}")
    if not 0 <= loss_threshold < math.inf:
        raise ValueError(f"loss_threshold must be finite and from 0 on, got {loss_threshold!r}")
    if not 0 < adjust < math.inf:
        raise ValueError(f"adjust must be finite and positive, got {adjust!r}; 1.0 adjusts nothing")
    rates, curve = until_nonfinite(lrs, losses)
    if refusal := decline_reason(curve, needed=lr_diff + 1):
        return no_suggestion("slide", refusal)
    slope = np.gradient(curve)
    changes = np.abs(slope[lr_diff:] - slope[:-lr_diff]) > loss_threshold
    index = left = len(changes) - 1
    while left >= 0 and changes[left]:
        index = left
        left -= 1
    found = float(rates[index])
    verb = "changes" if changes[index] else "does not change"
    reason = (
        f"from the end, the slope {verb} by more than {loss_threshold:g} "
        f"over the {lr_diff} points from lr {found:.1e}"
    )
    return Suggestion(found * adjust, "slide", reason, confidence(curve), index)


def _longest_decline(losses: FloatArray) -> tuple[int, int]:
    """Return length and last index of the first longest strictly decreasing subsequence."""
    # Patience sorting: tails[k] is the negated highest loss on which one of k + 1 points can end.
    tails: list[float] = []
    end = 0
    for index, loss in enumerate(losses.tolist()):
        place = bisect_left(tails, -loss)
        if place == len(tails):
            tails.append(-loss)
            end = index
        else:
            tails[place] = -loss
    return len(tails), end
