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
            if "clearly diverges" in reason:
                assert "is back up to half at" in reason, (points, seed, noise, reason)
    assert diverged > 20


@pytest.mark.parametrize("constant", [0.5, 30.0, 100.0, -100.0, 1e4])
def test_a_constant_in_the_loss_moves_nothing_in_silence(constant: float) -> None:
    moved = 0
    for points, seed, noise in CURVES:
        lrs, losses = curve(points, seed, noise)
        for typical in (None, 1e-3, 0.5):
            plain = suggest.auto(lrs, losses, typical=typical)
            shifted = suggest.auto(lrs, losses + constant, typical=typical)
            assert (plain.lr is None) == (shifted.lr is None)
            if plain.lr is None or plain.lr == pytest.approx(shifted.lr, rel=1e-6):
                continue
            moved += 1
            assert "of the initial loss" in shifted.reason != plain.reason
    assert moved > 0 or abs(constant) < 10


def test_the_level_of_the_loss_is_named() -> None:
    lrs, losses = curve(100, 0, 0.001)
    reason = suggest.auto(lrs, losses - 100, typical=0.5).reason
    assert "which counts more because the drop is only 0.0047 of the initial loss, -99" in reason
