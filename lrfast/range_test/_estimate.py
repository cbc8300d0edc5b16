"""Estimate of a lower learning rate from the warm-up that a training has recorded itself.

Its losses fall because the training goes on, at any learning rate. So a fall says nothing
about higher learning rates, and only a rise counts: that the present one is too high.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Final

import numpy as np

from lrfast import suggest
from lrfast.range_test._priors import RatePrior
from lrfast.suggest import Suggestion
from lrfast.suggest._curve import FloatArray
from lrfast.suggest._shape import FEWEST_POINTS, divergence, read_shape
from lrfast.suggest._suggestion import no_suggestion

RULE: Final = "warm-up"
_ROUNDING: Final = 1.01  # factor within which a learning rate is the present peak


def estimate(
    lrs: FloatArray, losses: FloatArray, peak: float, prior: RatePrior, has_changed: bool
) -> Suggestion:
    """Return a suggestion below the peak, or none and why."""
    is_known = np.isfinite(lrs) & (lrs > 0)  # it may begin at 0
    lrs, losses = lrs[is_known], losses[is_known]
    begin, end = _last_warmup(lrs)
    rates, curve = lrs[begin:end], losses[begin:end]
    if len(rates) < FEWEST_POINTS:
        return no_suggestion(
            RULE, f"the learning rate has not risen over {FEWEST_POINTS} or more recorded losses"
        )
    highest = f"{rates[-1]:.1e}"
    is_old = has_changed and rates[-1] < peak / _ROUNDING
    if is_old or rates[-1] > peak * _ROUNDING:
        return no_suggestion(
            RULE, f"the warm-up ended at {highest}, and the peak has changed to {peak:.1e}"
        )
    shape = read_shape(rates, curve)
    rises = not isinstance(shape, str) and shape.rises_by(0.5) is not None
    if not rises and math.isinf(divergence(rates, curve)):
        return no_suggestion(
            RULE, f"the loss does not rise up to {highest}: that is not seen to be too high"
        )
    found = suggest.auto(rates, curve, **asdict(prior))
    reason = f"in the warm-up up to {highest}, {found.reason}"
    if found.lr is None:
        return no_suggestion(RULE, reason)
    return replace(found, rule=RULE, reason=reason, index=None, next_range=None)


def _last_warmup(lrs: FloatArray) -> tuple[int, int]:
    """Return begin and end of the last stretch of 10 points or more over which they increase."""
    is_new = np.concatenate([[True], ~(np.diff(lrs) > 0), [True]]) if len(lrs) else [True]
    bounds = np.flatnonzero(is_new)
    long = np.flatnonzero(np.diff(bounds) >= FEWEST_POINTS)
    return (int(bounds[long[-1]]), int(bounds[long[-1] + 1])) if len(long) else (0, 0)
