"""The default suggestion method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast._utils.arguments import checked, described
from lrfast.suggest._curve import FloatArray, until_nonfinite, validated
from lrfast.suggest._shape import FEWEST_POINTS, Shape, noise_reason, read_shape
from lrfast.suggest._suggestion import Suggestion, no_suggestion


@dataclass(frozen=True)
class Constants:
    """Constants chosen on benchmarks/research/suggestions; exact values matter little."""

    lower: float = 0.7
    more_in_noise: float = 0.2
    typical: float = 0.6
    shallow: float = 0.1
    highest: float = 0.7


_CONSTANTS: Final = Constants()

_FARTHEST: Final = 10.0  # largest factor by which the typical learning rate moves the suggestion
_WIDER: Final = 100.0  # factor by which a range is extended if it ends too early


@checked
def auto(
    lrs: ArrayLike,
    losses: ArrayLike,
    *,
    typical: float | None = None,
    scale: float = 1.0,
    constants: Constants = _CONSTANTS,
) -> Suggestion:
    """Suggest the middle of the valley, drawn towards the usual learning rate of such a model.

    On the logarithmic scale the middle lies between the learning rate at which the loss has made
    half of its fall and the higher one at which it has lost half of it again: in the middle if
    losses scatter little, further up if they scatter much, because noise makes the fall seem to
    begin too early but never hides a divergence. The suggestion is 0.7 times that. If the fall is
    never lost again, it is 0.7 times the learning rate at which nine tenths of it are made.

    A sweep of a hundred steps shows only the beginning of a training. If ``typical`` is known, the
    suggestion moves 0.6 of the way towards it on the logarithmic scale, more after a fall of less
    than a tenth of the starting loss, and never by more than a factor of 10. Then it is multiplied
    by ``scale``: a sweep shows which learning rate breaks training, not the noise of small batches
    at lower ones, nor how soon few data are memorised. It never exceeds the last learning rate, nor
    0.7 of the one at which half of the fall is lost again.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite. Smoothed
            losses lag behind their learning rates, and so would the suggestion.
        typical: Learning rate at which such an optimizer usually trains such a model, finite and
            above 0, as `typical_rate` returns it; None, the default, if it is not known.
        scale: Factor for batches and data, finite and above 0, from `rate_scale`; default 1.
        constants: Weights and fractions of the method; defaults as described here.

    Returns:
        The suggestion. There is none, but the range to sweep next, below 10 points and for a loss
        that never falls, that falls until the end, or that neither falls by more than noise
        explains nor diverges.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> losses = 1 / (1 + lrs / 1e-2) + 4 * lrs**2
        >>> auto(lrs, losses).reason
        'the loss has made half of its drop at lr 7.9e-03 and is back up to half at 4.0e-01'
        >>> round(auto(lrs, losses).lr, 3), round(auto(lrs, losses, typical=0.01).lr, 3)
        (0.039, 0.017)
    """
    rates, curve = validated(lrs, losses)
    if typical is not None and not (math.isfinite(typical) and typical > 0):
        raise ValueError(f"typical must be None, or a finite rate above 0, got {typical!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number above 0, got {scale!r}")
    if not isinstance(constants, Constants):
        raise TypeError(f"constants must be Constants, got {described(constants)}")
    shape = read_shape(lrs, losses)
    if isinstance(shape, str):
        return no_suggestion("auto", shape, _other_range(rates, curve))
    same = (float(rates[0]), float(rates[-1]))
    doubt = noise_reason(shape)
    if doubt and not shape.diverges:
        return no_suggestion("auto", f"{doubt}; use more points or repeats", same)
    if shape.rises_by(0.5) is None and shape.falls_at_its_end:
        reason = f"the loss still decreases at the last learning rate, {rates[-1]:.1e}"
        return no_suggestion("auto", reason, (same[0], same[1] * _WIDER))
    lr, reason = answer(shape, typical, scale, constants)
    if doubt:
        reason = f"{doubt}, but it clearly diverges; as a guess, {reason}"
    return Suggestion(lr, "auto", reason, shape.confidence, shape.nearest(lr))


def _other_range(rates: FloatArray, losses: FloatArray) -> tuple[float, float] | None:
    """Return the range below that of a loss that rises, above it, or itself for more points."""
    if len(rates) < 2:
        return None
    first, last = float(rates[0]), float(rates[-1])
    _, curve = until_nonfinite(rates, losses)
    half = len(curve) // 2
    if len(curve) < len(losses) or np.median(curve[half:]) > np.median(curve[:half]):
        return first / _WIDER, last
    return (first, last) if len(curve) < FEWEST_POINTS else (first, last * _WIDER)


def answer(
    shape: Shape, typical: float | None, scale: float, constants: Constants
) -> tuple[float, str]:
    """Return the learning rate and the reason for it."""
    down, up = shape.falls_by(0.5), shape.rises_by(0.5)
    highest = shape.rate(len(shape.log_rates) - 1)
    if up is None:
        middle = shape.rate(shape.falls_by(0.9))
        reason = f"90 % of its drop at lr {middle:.1e} and never comes back up to half"
    else:
        low, high = shape.rate(down), shape.rate(up)
        highest = min(constants.highest * high, highest)
        # 0 if losses scatter by a tenth of the fall or less, 1 if by all of it.
        noisiness = 1 + math.log10(min(max(shape.noise / shape.fall, 0.1), 1.0))
        place = 0.5 + constants.more_in_noise * noisiness
        log_low, log_high = shape.log_rates[[down, up]]
        middle = math.exp(log_low + place * (log_high - log_low))
        reason = f"half of its drop at lr {low:.1e} and is back up to half at {high:.1e}"
    reason = f"the loss has made {reason}"
    lr = constants.lower * middle
    if typical is not None:
        # The less of a fall is seen, the more weight the typical one has, up to all of it.
        seen = shape.fall / max(constants.shallow * abs(shape.start), shape.fall)
        moved = (typical / lr) ** (1 - (1 - constants.typical) * seen)
        lr *= min(max(moved, 1 / _FARTHEST), _FARTHEST)
        reason += f"; this optimizer usually trains a model of this size at {typical:.1e}"
        if seen < 1:
            share = f"{shape.fall / abs(shape.start):.2g} of the initial loss, {shape.start:.3g}"
            reason += f", which counts more because the drop is only {share}"
    if scale != 1.0:
        reason += f"; scaled by {scale:.2g} for the batch size and the amount of data"
    return min(scale * lr, highest), reason
