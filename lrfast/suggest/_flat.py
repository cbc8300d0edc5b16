"""The rule for fine-tuning: the curve is still flat."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast.suggest._curve import MEDIAN_ABS_DIFFERENCE, FloatArray, finite_part
from lrfast.suggest._suggestion import Suggestion, declined

_FEWEST_POINTS: Final = 20

# Page's test: deviations beyond one standard deviation add up, and 10 of them are a change. Where
# nothing changes, that happens in 4 % of sweeps of 20 points and 1 % of those of 100, by level and
# scatter being estimates. (With half a standard deviation and 5 it is a third.)
_SLACK: Final = 1.0
_ALARM: Final = 10.0
_FARTHEST: Final = 1e6

_SMALLEST: Final = 1e-3  # a change below this share of the level is none, however little noise
_WIDER: Final = 1000.0

# A sweep spends a dozen steps on a decade, training hundreds on a rate: what diverges here within
# a few steps worsens the loss there at rates far below.
_CLEAR_OF_DIVERGENCE: Final = 100.0


def flat(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the highest rate at which the loss is still, statistically, where it started.

    For fine-tuning: a pretrained model is at the bottom of its curve already, and a rate at which
    the loss changes within a few steps destroys what it knows. The first quarter of the points
    tells level and scatter; where the loss then leaves that level, up or down, is found by
    accumulating its deviations (Page's CUSUM), and the answer is the rate before the first of them,
    or a hundredth of the rate at which the loss diverges, if that is lower.

    Args:
        lrs: [points] learning rates, finite, positive, increasing; the first quarter of them must
            be too low to change the loss.
        losses: [points] raw losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion; it declines below 20 points, and, with a range to sweep next, where the loss
        changes from the start or never.

    Raises:
        ValueError: if an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-7, 1.0, 71)
        >>> flat(lrs, 0.3 + np.maximum(0, 50 * (lrs - 1e-3))).reason
        'the loss, 0.3 to start with, is the same up to 1.0e-03'

    Reference:
        Page, "Continuous Inspection Schemes", Biometrika 41 (1954).
    """
    rates, curve = finite_part(lrs, losses)
    if len(curve) < _FEWEST_POINTS:
        reason = f"too few points: {len(curve)} with a finite loss, and it takes {_FEWEST_POINTS}"
        return declined("flat", reason)
    quarter = len(curve) // 4
    level = float(np.mean(curve[:quarter]))
    differences = np.abs(np.diff(curve[: 2 * quarter]))
    scatter = float(np.median(differences)) / MEDIAN_ABS_DIFFERENCE
    scale = max(scatter, _SMALLEST * abs(level), np.finfo(float).tiny)
    # Cut far beyond what raises the alarm, so that a divergence does not overflow.
    deviations = np.clip(curve - level, -_FARTHEST * scale, _FARTHEST * scale) / scale
    onset = _onset(deviations)
    if onset is None and len(curve) < np.size(lrs):
        onset = len(curve)  # it is the loss that is not finite
    if onset is None:
        reason = f"the loss has not changed by the last rate, {rates[-1]:.1e}"
        return declined("flat", reason, (float(rates[0]), float(rates[-1] * _WIDER)))
    if onset < quarter:
        reason = f"the loss changes from {rates[onset]:.1e} on, too early to know where it started"
        return declined("flat", reason, (float(rates[0] / _WIDER), float(rates[-1])))
    lr = float(rates[onset - 1])
    reason = f"the loss, {level:.3g} to start with, is the same up to {lr:.1e}"
    diverges = len(curve) < np.size(lrs) or deviations[-3:].mean() > _ALARM
    if diverges and lr > rates[-1] / _CLEAR_OF_DIVERGENCE:
        lr = float(rates[-1]) / _CLEAR_OF_DIVERGENCE
        reason += f", but diverges at {rates[-1]:.1e}, and a hundredth of that keeps clear of it"
    index = int(np.argmin(np.abs(np.log(rates) - math.log(lr))))
    return Suggestion(lr, "flat", reason, _confidence(quarter), index)


def _onset(deviations: FloatArray) -> int | None:
    """Return the first index of the deviations that raise the alarm, or None without one."""
    onsets = [_one_sided(deviations), _one_sided(-deviations)]
    found = [onset for onset in onsets if onset is not None]
    # The alarm that is raised first counts, be it for a later onset.
    return min(found)[1] if found else None


def _one_sided(deviations: FloatArray) -> tuple[int, int] | None:
    """Return where the alarm is raised and where the sum that raised it began."""
    total, began = 0.0, 0
    for index, deviation in enumerate(deviations.tolist()):
        if total == 0.0:
            began = index
        total = max(0.0, total + deviation - _SLACK)
        if total > _ALARM:
            return index, began
    return None


def _confidence(points: int) -> float:
    """One minus the relative standard error of the scatter that so many points tell."""
    return 1.0 - 1.0 / math.sqrt(2.0 * points)
