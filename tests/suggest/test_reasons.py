"""A reason fits its curve: with few points, and whatever constant the loss has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lrfast import suggest


def curve(points: int, seed: int, noise: float, bottom: float = 2e-2) -> tuple[Any, Any]:
    """A fall from 1 and a rise beyond it, with noise."""
    lrs = np.geomspace(1e-5, 1.0, points)
    scatter = noise * np.random.default_rng(seed).standard_normal(points)
    return lrs, 0.4 + 0.6 / (1 + lrs / bottom) + 3 * lrs**2 + scatter


CURVES = [
    (points, seed, noise)
    for points in (10, 11, 13, 16, 20, 40)
    for seed in range(12)
    for noise in (0.02, 0.1, 0.3)
]


def test_no_reason_contradicts_itself() -> None:
    """Of few points the smoothed ones hide a divergence that the raw ones show."""
    diverged = 0
    for points, seed, noise in CURVES:
        lrs, losses = curve(points, seed, noise)
        for name in ("auto", "cyclic"):
            reason = suggest.get(name)(lrs, losses).reason
            if losses[-3:].min() > losses[: points // 2].max():
                diverged += name == "auto"
                assert "never comes back" not in reason, (points, seed, noise, reason)
                assert "not increased" not in reason, (points, seed, noise, reason)
                assert "still decreases" not in reason, (points, seed, noise, reason)
    assert diverged > 20


@pytest.mark.parametrize(
    ("unit", "constant"),
    [(1.0, 30.0), (1.0, -100.0), (1.0, 1e4), (1e-3, 0.0), (2e5, 0.0), (7.0, -9.0)],
)
def test_neither_unit_nor_constant_of_the_loss_matter(unit: float, constant: float) -> None:
    """Losses below 0, too."""
    for points, seed, noise in CURVES:
        lrs, losses = curve(points, seed, noise)
        for typical in (None, 1e-3, 0.5):
            plain = suggest.auto(lrs, losses, typical=typical)
            other = suggest.auto(lrs, unit * losses + constant, typical=typical)
            assert (plain.lr is None) == (other.lr is None)
            assert plain.lr == pytest.approx(other.lr) and plain.index == other.index
            assert plain.confidence == pytest.approx(other.confidence, abs=1e-6)
            assert plain.interval == pytest.approx(other.interval)
            assert plain.next_range == other.next_range
