"""Loss curves of known shape, for the tests of rules that read raw losses; imports no lrfast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def rates(points: int = 100) -> Array:
    return np.geomspace(1e-7, 10.0, points)


def s_curve(
    lrs: Array,
    fall_at: float = 3e-3,
    rise_at: float = 1.0,
    depth: float = 2.0,
    level: float = 0.4,
    noise: float = 0.0,
    seed: int = 0,
) -> Array:
    """A loss that has done half of its fall at one rate and has lost half of it again at another.

    It starts ``depth`` above ``level``; losses scatter by ``noise`` times the depth.
    """
    decades = np.log10(lrs)
    fall = 1 / (1 + np.exp(3 * (decades - np.log10(fall_at))))
    rise = 0.5 * np.exp(4 * (decades - np.log10(rise_at)))
    scatter = np.random.default_rng(seed).normal(size=len(lrs))
    return level + depth * (fall + rise + noise * scatter)


def noise_only(points: int, seed: int, level: float = 2.0, scatter: float = 1.0) -> Array:
    return level + scatter * np.random.default_rng(seed).normal(size=points)


def leaves_its_level(
    points: int, onset: int, slope: float, level: float = 0.3, scatter: float = 0.0, seed: int = 0
) -> Array:
    """A loss that stays where it is before point ``onset``, and changes by ``slope`` per point."""
    change = slope * np.maximum(0, np.arange(points) - onset + 1)
    return noise_only(points, seed, level, scatter) + change


def longest_fall(values: Array) -> tuple[int, int]:
    """First and last point of the longest stretch of falling values, the earliest of equals."""
    pairs = [(i, j) for i in range(len(values)) for j in range(i + 1, len(values))]
    falling = [(i, j) for i, j in pairs if all(values[k + 1] < values[k] for k in range(i, j))]
    return max(falling, key=lambda pair: (pair[1] - pair[0], -pair[0]))
