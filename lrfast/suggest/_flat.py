"""The suggestion method for fine-tuning: the highest learning rate with a flat loss."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast.suggest._curve import MEDIAN_ABS_DIFFERENCE, FloatArray, too_few, until_nonfinite
from lrfast.suggest._suggestion import Suggestion, no_suggestion

_FEWEST_POINTS: Final = 20

# Page's test: deviations beyond one standard deviation add up, and 10 of them are a change. If
# nothing changes, that happens in 4 % of sweeps of 20 points and 1 % of those of 100, because level
# and scatter are estimates. (With half a standard deviation and 5 it is a third.)
_SLACK: Final = 1.0
_ALARM: Final = 10.0
_FARTHEST: Final = 1e6

_SMALLEST: Final = 1e-3  # fraction of the level below which no change counts
_WIDER: Final = 1000.0

# A sweep spends a dozen steps on a decade, training hundreds on one learning rate: if the sweep
# diverges within a few steps, training worsens at learning rates far below.
_CLEAR_OF_DIVERGENCE: Final = 100.0


def flat(lrs: ArrayLike, losses: ArrayLike) -> Suggestion:
    """Suggest the highest learning rate at which the loss does not differ from its start.

    For fine-tuning: a pretrained model is at the bottom of its curve, and a learning rate at which
    the loss changes within a few steps destroys its features. Level and scatter are estimated on
    the first quarter of the points. The change, up or down, is found by accumulated deviations
    (Page's CUSUM). The suggestion is the last learning rate before them, or a hundredth of the one
    at which the loss diverges, if that is lower.

    Args:
        lrs: [points] learning rates, finite, positive, increasing; at first too low to matter.
        losses: [points] raw losses; the curve is cut at the first one that is not finite.

    Returns:
        The suggestion; none below 20 points, and only a range to sweep next if the loss changes
        from the start or never.

    Raises:
        ValueError: If an array is not as described.

    Example:
        >>> lrs = np.geomspace(1e-7, 1.0, 71)
        >>> flat(lrs, 0.3 + np.maximum(0, 50 * (lrs - 1e-3))).reason
        'the loss stays at its initial level, 0.3, up to lr 1.0e-03'

    Reference:
        Page, "Continuous Inspection Schemes", Biometrika 41 (1954).
    """
    rates, curve = until_nonfinite(lrs, losses)
    if reason := too_few(curve, _FEWEST_POINTS):
        return no_suggestion("flat", reason)
    quarter = len(curve) // 4
    level = float(np.mean(curve[:quarter]))
    differences = np.abs(np.diff(curve[: 2 * quarter]))
    scatter = float(np.median(differences)) / MEDIAN_ABS_DIFFERENCE
    scale = max(scatter, _SMALLEST * abs(level), np.finfo(float).tiny)
    # Clipped far above the alarm, so that a divergence does not overflow.
    deviations = np.clip(curve - level, -_FARTHEST * scale, _FARTHEST * scale) / scale
    ends_broken = len(curve) < np.size(lrs)
    alarms = [alarm for side in (deviations, -deviations) if (alarm := _alarm(side))]
    # The first alarm counts, even if its onset is the later one; so does a loss that is not finite.
    onset = min(alarms)[1] if alarms else len(curve) if ends_broken else None
    if onset is None:
        reason = f"the loss has not changed up to the last learning rate, {rates[-1]:.1e}"
        return no_suggestion("flat", reason, (float(rates[0]), float(rates[-1] * _WIDER)))
    if onset < quarter:
        first = f"{rates[onset]:.1e}"
        reason = f"the loss changes from lr {first} on, too early to know its initial level"
        return no_suggestion("flat", reason, (float(rates[0] / _WIDER), float(rates[-1])))
    lr = float(rates[onset - 1])
    reason = f"the loss stays at its initial level, {level:.3g}, up to lr {lr:.1e}"
    diverges = ends_broken or deviations[-3:].mean() > _ALARM
    if diverges and lr > rates[-1] / _CLEAR_OF_DIVERGENCE:
        lr = float(rates[-1]) / _CLEAR_OF_DIVERGENCE
        reason += f", but diverges at {rates[-1]:.1e}; a hundredth of that keeps a margin"
    index = int(np.argmin(np.abs(np.log(rates) - math.log(lr))))
    # One minus the relative standard error of a scatter that is estimated from so many points.
    confidence = 1.0 - 1.0 / math.sqrt(2.0 * quarter)
    return Suggestion(lr, "flat", reason, confidence, index)


def _alarm(deviations: FloatArray) -> tuple[int, int] | None:
    """Return the index of the alarm and the one at which the sum that raised it began."""
    total, began = 0.0, 0
    for index, deviation in enumerate(deviations.tolist()):
        if total == 0.0:
            began = index
        total = max(0.0, total + deviation - _SLACK)
        if total > _ALARM:
            return index, began
    return None
