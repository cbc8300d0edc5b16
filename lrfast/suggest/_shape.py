"""Shape of a raw loss curve: its start, fall, lowest point and rise, told from its noise.

The reading relies on two things that noise cannot imitate: three levels (before the fall, in the
valley, after it) fitted to the whole curve, and the learning rates at which the smoothed curve
crosses fractions of the fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from lrfast.suggest._curve import MEDIAN_ABS_DIFFERENCE, FloatArray, too_few, until_nonfinite

_MOST_POINTS: Final = 400  # longer curves are read as means over as many blocks
FEWEST_POINTS: Final = 10

# Standard errors by which the mean level of a fall differs from the start. Of 10,000 curves of
# pure noise, whose lowest stretch is chosen with hindsight, 1 % reach it.
SIGNIFICANT: Final = 5.0

_HUGEST: Final = 1e100  # losses are clipped there, so that their squares stay finite
_ROUNDING: Final = 1e-12  # fraction of the start below which a fall is rounding


@dataclass(frozen=True)
class Shape:
    """A raw loss curve with its levels and its noise."""

    all_log_rates: FloatArray  # natural logarithms, of all points up to the last finite loss
    log_rates: FloatArray  # of the points read: means over blocks if there are too many
    losses: FloatArray
    smooth: FloatArray  # without noise, clipped at the start plus the depth of the fall
    start: float  # level before the fall
    lowest: int  # index of the lowest smoothed loss
    noise: float  # standard deviation of a loss
    first: int  # index from which on the fall is searched
    ends_broken: bool  # whether a loss that was not finite ended the curve
    significance: float  # depth of the valley in standard errors

    @property
    def fall(self) -> float:
        """Depth of the fall."""
        return self.start - float(self.smooth[self.lowest])

    def falls_by(self, share: float) -> int:
        """Return the first index at which that fraction of the fall is done."""
        level = self.start - share * self.fall
        return self.first + int(np.argmax(self.smooth[self.first : self.lowest + 1] <= level))

    def rises_by(self, share: float) -> int | None:
        """Return the first index at which that fraction is lost again, or None if it never is."""
        level = self.smooth[self.lowest] + share * self.fall
        above = np.flatnonzero(self.smooth[self.lowest :] >= level)
        if len(above):
            return self.lowest + int(above[0])
        # Of few points the smoothed ones may hide it; infinity is a rise, too.
        return len(self.smooth) - 1 if self.diverges else None

    @property
    def falls_at_its_end(self) -> bool:
        """Whether the last tenth falls at least half as much as any other of that length."""
        tenth = max(len(self.smooth) // 10, 1)
        falls = self.smooth[:-tenth] - self.smooth[tenth:]
        return bool(falls[-1] >= 0.5 * falls.max())

    @property
    def diverges(self) -> bool:
        """Whether the loss ends broken or higher than it started, beyond doubt."""
        last = self.losses[-3:]
        error = self.noise / math.sqrt(len(last))
        return self.ends_broken or float(last.mean()) > self.start + SIGNIFICANT * error

    @property
    def confidence(self) -> float:
        """Fraction of the valley's depth beyond its standard error."""
        return 1.0 - 1.0 / max(self.significance, 1.0)

    def nearest(self, lr: float) -> int:
        """Return the index of the point, of all given, nearest to a learning rate."""
        return int(np.argmin(np.abs(self.all_log_rates - math.log(lr))))

    def rate(self, index: float) -> float:
        """Return the learning rate at an index, interpolated on the logarithmic scale."""
        points = np.arange(len(self.log_rates))
        return math.exp(float(np.interp(index, points, self.log_rates)))


def read_shape(lrs: ArrayLike, losses: ArrayLike) -> Shape | str:
    """Return the shape of a raw curve, or why it has none."""
    rates, curve = until_nonfinite(lrs, losses)
    ends_broken = len(curve) < np.size(lrs)
    if reason := too_few(curve, FEWEST_POINTS):
        return reason
    given = np.log(rates)
    log_rates, curve = _blocks(given), _blocks(np.clip(curve, -_HUGEST, _HUGEST))
    quarter = max(len(curve) // 4, 5)
    start, noise = _start_and_noise(curve)
    depth = start - float(np.sort(curve)[: max(3, len(curve) // 20)].mean())
    smallest = float(_ROUNDING * abs(start) + np.finfo(float).tiny)
    if depth <= smallest:
        return f"the loss never decreases: it starts at {start:.3g} and is never lower"
    no_valley = f"the loss never decreases: no part of the curve lies below its start, {start:.3g}"
    # A divergence must not weigh more than the fall.
    clipped = np.minimum(curve, start + max(depth, 2 * noise))
    valley = _valley(clipped, quarter // 2)
    if valley is None:
        return no_valley
    begin, end = valley
    drop = float(clipped[:begin].mean() - clipped[begin:end].mean())
    if drop <= smallest:
        return no_valley
    error = noise * math.sqrt(1 / begin + 1 / (end - begin))
    smooth = _smoothed(clipped, _bandwidth(noise, drop, end - begin))
    lowest = begin + int(np.argmin(smooth[begin:end]))
    if start - smooth[lowest] <= smallest or np.all(np.diff(smooth[: lowest + 1]) >= 0):
        return no_valley
    significance = drop / error if error > 0 else math.inf
    return Shape(
        given, log_rates, curve, smooth, start, lowest, noise, begin // 2, ends_broken, significance
    )


def divergence(lrs: ArrayLike, losses: ArrayLike) -> float:
    """Return the learning rate from which on a raw loss is higher than it started, or infinity.

    A fall may be nothing but noise, and its crossings with it, while the divergence is clear.
    """
    rates, finite = until_nonfinite(lrs, losses)
    if len(finite) >= 3:
        curve = _blocks(np.clip(finite, -_HUGEST, _HUGEST))
        start, noise = _start_and_noise(curve)
        means = np.convolve(curve, np.full(3, 1 / 3), "valid")
        calm = np.flatnonzero(means <= start + SIGNIFICANT * noise / math.sqrt(3))
        first = 3 + int(calm[-1]) if len(calm) else 0
        if first < len(curve):
            return math.exp(float(_blocks(np.log(rates))[first]))
    ends_broken = 0 < len(finite) < np.size(lrs)
    return float(rates[-1]) if ends_broken else math.inf


def noise_reason(shape: Shape) -> str | None:
    """Return why the fall may be nothing but noise, or None if it is clear."""
    if shape.significance >= SIGNIFICANT:
        return None
    noise, fall = f"{shape.noise:.2g}", f"{shape.fall:.2g}"
    return f"noise is larger than the drop: losses scatter by {noise} and drop by {fall}"


def _start_and_noise(curve: FloatArray) -> tuple[float, float]:
    """Return the level before the fall, and the standard deviation of a loss."""
    start = float(np.median(curve[: max(len(curve) // 4, 5)]))
    scatter = float(np.median(np.abs(np.diff(curve[: len(curve) // 2])))) if len(curve) > 3 else 0.0
    return start, scatter / MEDIAN_ABS_DIFFERENCE


def _blocks(values: FloatArray) -> FloatArray:
    """Return means over blocks of equal size, without a rest at the end, if there are many."""
    size = -(-len(values) // _MOST_POINTS)
    count = len(values) // size
    means: FloatArray = values[: count * size].reshape(count, size).mean(axis=1)
    return means


def _valley(curve: FloatArray, earliest: int) -> tuple[int, int] | None:
    """Return begin and end of the lowest, middle one of three levels fitted by least squares."""
    count = len(curve)
    sums = np.concatenate([[0.0], np.cumsum(curve)])
    begins, ends = np.arange(earliest, count - 2)[:, None], np.arange(earliest + 2, count + 1)
    rest = count - ends
    before = sums[begins] / begins
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (sums[ends] - sums[begins]) / (ends - begins)
        after = np.where(rest > 0, (sums[-1] - sums[ends]) / rest, math.inf)
    # Squares about a mean are the sum of squares, the same for all fits, less n * mean^2.
    last = np.where(rest > 0, rest * np.where(rest > 0, after, 0.0) ** 2, 0.0)
    explained = begins * before**2 + (ends - begins) * middle**2 + last
    is_valley = (ends - begins >= 2) & (middle < before) & (middle < after)
    if not is_valley.any():
        return None
    place = int(np.argmax(np.where(is_valley, explained, -math.inf)))
    row, column = divmod(place, len(ends))
    return int(begins[row, 0]), int(ends[column])


def _bandwidth(noise: float, drop: float, width: int) -> float:
    """Return the bandwidth that lowers noise to 15 % of the drop, at most 1/4 of the valley."""
    most = max(width / 4, 2.0)
    # A Gaussian of bandwidth b averages 2 sqrt(pi) b points. A tiny drop's square would overflow.
    wanted = min(noise / (0.15 * drop), 2 * most) ** 2 / (2 * math.sqrt(math.pi))
    return float(np.clip(wanted, 1.5, most))


def _smoothed(curve: FloatArray, bandwidth: float) -> FloatArray:
    """Return means with Gaussian weights."""
    distance = np.subtract.outer(np.arange(len(curve)), np.arange(len(curve))) / bandwidth
    weights = np.exp(-0.5 * distance**2)
    means: FloatArray = weights @ curve / weights.sum(axis=1)
    return means
