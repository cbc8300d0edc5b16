"""The rules of other libraries, as formulas of rates and raw losses.

Each smooths in its own way, ends the curve where its own stop rule would have, and drops the points
that its library drops. A loss that is not finite ends the curve, which spares them what some do
with it. fastai's rules are lrfast's own and not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Rule = Callable[[FloatArray, FloatArray], float | None]  # rates, raw losses -> rate


def torch_lr_finder(lrs: FloatArray, losses: FloatArray) -> float | None:
    """Steepest fall per point of an EMA that starts at the first loss; pytorch-lr-finder 0.2."""
    smoothed = _stopped(_average(losses, 0.95, losses[0]), 5.0)
    kept = slice(10, len(smoothed) - 5)
    curve = smoothed[kept]
    if len(curve) < 2:
        return None
    return float(lrs[kept][np.argmin(np.gradient(curve))])


def lightning(lrs: FloatArray, losses: FloatArray) -> float | None:
    """Steepest fall per unit of rate of an EMA whose bias correction is a step ahead; 2.5.3 on."""
    counts = np.arange(len(_finite(losses))) + 2
    smoothed = _stopped(_average(losses, 0.98, 0.0) / (1 - 0.98**counts), 4.0)
    kept = slice(10, len(smoothed) - 1)
    curve = smoothed[kept]
    if len(curve) < 2:
        return None
    return float(lrs[kept][np.argmin(np.gradient(curve, lrs[kept]))])


def ignite(lrs: FloatArray, losses: FloatArray) -> float | None:
    """Steepest central difference left of the lowest point of an EMA; FastaiLRFinder, 0.5."""
    smoothed = _stopped(_average(losses, 0.95, losses[0]), 5.0)
    lowest = int(np.argmin(smoothed)) if len(smoothed) else 0
    curve = smoothed[: lowest + 1]
    if len(curve) < 3:
        return None
    return float(lrs[np.argmin(curve[2:] - curve[:-2]) + 1])


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {"torch-lr-finder": torch_lr_finder, "lightning": lightning, "ignite": ignite}
)


def _finite(losses: FloatArray) -> FloatArray:
    broken = np.flatnonzero(~np.isfinite(losses))
    return losses[: broken[0]] if len(broken) else losses


def _average(losses: FloatArray, decay: float, first: float) -> FloatArray:
    """An exponential moving average that starts at ``first``, as far as losses are finite."""
    averages = []
    average = first
    for loss in _finite(losses).tolist():
        average = decay * average + (1 - decay) * loss
        averages.append(average)
    return np.array(averages)


def _stopped(smoothed: FloatArray, factor: float) -> FloatArray:
    """The curve up to the first point that exceeds ``factor`` times the lowest before it."""
    beyond = np.flatnonzero(smoothed > factor * np.minimum.accumulate(smoothed))
    return smoothed[: beyond[0] + 1] if len(beyond) else smoothed
