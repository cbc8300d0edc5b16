"""The default suggestion method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast._utils.arguments import checked, described
from lrfast.suggest._curve import FloatArray, until_nonfinite, validated
from lrfast.suggest._priors import DEVIATION
from lrfast.suggest._shape import (
    FEWEST_POINTS,
    SIGNIFICANT,
    Shape,
    divergence,
    noise_reason,
    read_shape,
)
from lrfast.suggest._suggestion import Suggestion, no_suggestion


@dataclass(frozen=True)
class Constants:
    """Constants chosen on benchmarks/research/suggestions, where neighbours do about as well.

    Attributes:
        begin: Share of the way from the half-made drop to the half-lost one, on the logarithmic
            scale, from which on the curve has no objection to a learning rate.
        end: Share of that way up to which it has none.
        curve: Standard deviation of what the curve wants, in decades.
        farthest: Decades by which the suggestion leaves what the curve wants at most.
    """

    begin: float = 0.25
    end: float = 0.5
    curve: float = 0.7
    farthest: float = 1.0


_CONSTANTS: Final = Constants()

_DECADE: Final = math.log(10.0)
_WIDER: Final = 100.0  # factor by which a range is extended if it ends too early
_PRIOR_ALONE: Final = 0.2  # confidence of a suggestion that no curve supports
_GUESS: Final = 0.1  # confidence of one that only a divergence supports
_BELOW: Final = 2.0  # factor below a divergence that the usual learning rate keeps
_GUESSED_BELOW: Final = 10.0  # factor below it if nothing else is known


@checked
def auto(
    lrs: ArrayLike,
    losses: ArrayLike,
    *,
    typical: float | None = None,
    scale: float = 1.0,
    deviation: float = DEVIATION,
    constants: Constants = _CONSTANTS,
) -> Suggestion:
    """Suggest the usual learning rate of such a training, corrected by the curve.

    The usual one, ``typical`` times ``scale``, is known within a factor of 2.5, or of 4 for SGD,
    one standard deviation. The curve wants a learning rate from a quarter to half of the way, on
    the logarithmic scale, between that at which the loss has made half of its drop and the higher
    one at which it is back up to half. A usual one outside moves a quarter of the way there, or
    42 % for SGD: the weight of a curve that is known within a factor of 5. It stays within a factor
    of 10 of what the curve wants, and below the learning rate at which the loss is back up to half.

    If the loss never comes back up, the curve wants any learning rate from the half-made drop on.
    If the loss drops by no more than noise explains, or the curve cannot be read, the suggestion is
    the usual learning rate, but at most half of that at which the loss diverges.

    Nothing depends on the unit of the losses, or on a constant in them.

    Args:
        lrs: [points] learning rates, finite, positive, increasing.
        losses: [points] raw losses; the curve is cut at the first one that is not finite. Smoothed
            losses lag behind their learning rates, and so would the suggestion.
        typical: Learning rate at which such an optimizer usually trains such a model, finite and
            above 0, as `typical_rate` returns it. None, the default, if it is not known: then the
            suggestion is the middle of what the curve wants, times ``scale``.
        scale: Factor for batches and data, finite and above 0, from `rate_scale`; default 1.
        deviation: Standard deviation of the usual learning rate in decades, finite and above 0,
            from `typical_deviation`; default 0.4.
        constants: Shares and deviations of the method; defaults as described here.

    Returns:
        The suggestion, with an interval of one standard deviation to either side. Its confidence is
        lower the noisier the curve is, and the further the usual learning rate is from what the
        curve wants; without a curve it is 0.2. There is no suggestion, but the range to sweep next,
        if the first two losses are not there or not finite, and else only if ``typical`` is None
        and the loss has fewer than 10 points, never decreases, decreases until the end, or neither
        decreases by more than noise explains nor diverges.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> lrs = np.geomspace(1e-4, 1.0, 41)
        >>> losses = 1 / (1 + lrs / 1e-2) + 4 * lrs**2
        >>> auto(lrs, losses).reason
        'the loss has made half of its drop at lr 7.9e-03 and is back up to half at 4.0e-01'
        >>> found = auto(lrs, losses, typical=0.01)
        >>> round(found.lr, 3), [round(lr, 3) for lr in found.interval]
        (0.012, [0.005, 0.027])
        >>> auto(lrs[:5], losses[:5], typical=0.01).lr
        0.01
    """
    rates, curve = validated(lrs, losses)
    if typical is not None and not (math.isfinite(typical) and typical > 0):
        raise ValueError(f"typical must be None, or a finite rate above 0, got {typical!r}")
    for name, value in (("scale", scale), ("deviation", deviation)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    if not isinstance(constants, Constants):
        raise TypeError(f"constants must be Constants, got {described(constants)}")
    known = Known(typical, scale, deviation)
    return answer(rates, curve, read_shape(lrs, losses), known, constants)


@dataclass(frozen=True)
class Known:
    """What is known besides the curve: arguments of `auto`."""

    typical: float | None
    scale: float
    deviation: float

    @property
    def reason(self) -> str:
        """End of a reason that rests on it."""
        found = ""
        if self.typical is not None:
            found = f"; this optimizer usually trains a model of this size at {self.typical:.1e}"
        if self.scale != 1.0:
            found += f"; scaled by {self.scale:.2g} for the batch size and the amount of data"
        return found


def answer(
    rates: FloatArray, curve: FloatArray, shape: Shape | str, known: Known, constants: Constants
) -> Suggestion:
    """Return the suggestion for a curve of that shape."""
    if isinstance(shape, str):
        other = _other_range(rates, curve)
        if len(curve) < 2 or not np.isfinite(curve[:2]).all():  # the learning rate is no cause
            return no_suggestion("auto", shape, other)
        return _without_valley(shape, divergence(rates, curve), other, known)
    same = (float(rates[0]), float(rates[-1]))
    if noise := noise_reason(shape):
        limit = divergence(rates, curve)
        if known.typical is None and math.isfinite(limit):
            lr = max(limit / _GUESSED_BELOW, same[0])
            reason = f"{noise}; as a guess, a tenth of {limit:.1e}, where it clearly diverges"
            around = _interval(lr, constants.curve, limit)
            point = shape.nearest(lr)
            return Suggestion(lr, "auto", reason, _GUESS, point, None, same, around)
        reason = f"{noise}; use more points or repeats"
        return _without_valley(reason, limit, same, known)
    return _from_valley(shape, known, constants, same)


def _from_valley(
    shape: Shape, known: Known, constants: Constants, swept: tuple[float, float]
) -> Suggestion:
    """Return the suggestion for a curve that falls beyond doubt."""
    begin, end = float(shape.log_rates[shape.falls_by(0.5)]), float(shape.log_rates[-1])
    reason = f"the loss has made half of its drop at lr {math.exp(begin):.1e} and "
    confidence = 1.0 - SIGNIFICANT / shape.significance
    up, highest, next_range = shape.rises_by(0.5), end, None
    if up is not None:
        highest = float(shape.log_rates[up])
        reason += f"is back up to half at {math.exp(highest):.1e}"
        shares = np.array([constants.begin, constants.end])
        begin, end = (begin + shares * (highest - begin)).tolist()
        middle = (begin + end) / 2
    elif shape.falls_at_its_end:
        reason += f"still decreases at the last one, {swept[1]:.1e}"
        highest, next_range = math.inf, (swept[0], swept[1] * _WIDER)
        confidence = min(confidence, _PRIOR_ALONE)
        if known.typical is None:
            return no_suggestion("auto", reason, next_range)
    else:
        middle = float(shape.log_rates[shape.falls_by(0.9)])
        reason += f"90 % of it at {math.exp(middle):.1e}, and never comes back up to half"
    reason += known.reason
    if known.typical is None:
        place, deviation = middle + math.log(known.scale), constants.curve
    else:
        usual = math.log(known.typical * known.scale)
        wanted = min(max(usual, begin), end)
        # Two independent measurements, each with the inverse of its variance as weight.
        weight = known.deviation**2 / (known.deviation**2 + constants.curve**2)
        farthest = constants.farthest * _DECADE
        place = usual + weight * (wanted - usual)
        place = min(max(place, begin - farthest), end + farthest)
        deviation = known.deviation * math.sqrt(1 - weight)
        apart = (wanted - usual) / _DECADE / math.hypot(known.deviation, constants.curve)
        confidence *= math.exp(-(apart**2) / 2)
        if wanted != usual:
            reason += f"; the curve would have {math.exp(wanted):.1e} and counts for {weight:.0%}"
    if place > highest:
        place = highest
        reason += "; no higher than where the loss is back up"
    lr = math.exp(place)
    around = _interval(lr, deviation, math.exp(highest) if math.isfinite(highest) else math.inf)
    return Suggestion(lr, "auto", reason, confidence, shape.nearest(lr), None, next_range, around)


def _without_valley(
    reason: str,
    limit: float,
    next_range: tuple[float, float] | None,
    known: Known,
) -> Suggestion:
    """Return the usual learning rate, below ``limit``, or no suggestion."""
    if known.typical is None:
        return no_suggestion("auto", reason, next_range)
    lr = known.typical * known.scale
    reason += known.reason
    if lr > limit / _BELOW:
        lr = limit / _BELOW
        reason += f"; half of {limit:.1e}, where the loss diverges"
    around = _interval(lr, known.deviation, limit)
    return Suggestion(lr, "auto", reason, _PRIOR_ALONE, None, None, next_range, around)


def _interval(lr: float, deviation: float, limit: float) -> tuple[float, float]:
    """Return the learning rates one deviation, in decades, to either side, up to a limit."""
    return lr / 10**deviation, min(lr * 10**deviation, limit)


def _other_range(rates: FloatArray, curve: FloatArray) -> tuple[float, float] | None:
    """Return the range below that of a loss that rises, above it, or itself for more points."""
    if len(rates) < 2:
        return None
    first, last = float(rates[0]), float(rates[-1])
    _, curve = until_nonfinite(rates, curve)
    half = len(curve) // 2
    if len(curve) < len(rates) or np.median(curve[half:]) > np.median(curve[:half]):
        return first / _WIDER, last
    return (first, last) if len(curve) < FEWEST_POINTS else (first, last * _WIDER)
