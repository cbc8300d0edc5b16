"""Intervals for means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def t_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Returns the mean and the ends of Student's interval for it.

    Args:
        values: Two or more, one per seed; for paired runs their differences.
        confidence: Chance that the interval holds the mean.
    """
    mean = float(np.mean(values))
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    half = float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
