"""What holds for every rule that reads raw losses, and the reading of curves that they share."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.curves import Array, leaves_its_level, noise_only, rates, s_curve

from lrfast import suggest
from lrfast.suggest._shape import Shape, read_shape

RAW = tuple(name for name in suggest.names() if suggest.reads_raw(name))
LRS = rates()
EVERY = pytest.mark.parametrize("rule", RAW)


def curves_for(rule: str, noise: float = 0.1) -> list[Array]:
    """Curves that the rule answers."""
    if rule == "flat":
        return [leaves_its_level(100, 60, 0.5, scatter=0.3 * noise, seed=s) for s in range(20)]
    return [s_curve(LRS, noise=noise, seed=seed) for seed in range(20)]


def shape_of(losses: Array, lrs: Array = LRS) -> Shape:
    shape = read_shape(lrs, losses)
    assert not isinstance(shape, str)
    return shape


# Units do not matter.


@EVERY
@pytest.mark.parametrize("factor", [1e-3, 7.3, 1e4])
def test_rates_scale_the_answer(rule: str, factor: float) -> None:
    for curve in curves_for(rule):
        plain, scaled = (suggest.get(rule)(lrs, curve) for lrs in (LRS, factor * LRS))
        assert plain.lr is not None
        assert scaled.lr == pytest.approx(factor * plain.lr, rel=1e-9)
        # Halfway between two points, rounding decides.
        assert abs((scaled.index or 0) - (plain.index or 0)) <= (
            rule in ("longest_descent", "auto")
        )
        if rule == "cyclic":
            assert plain.base_lr is not None
            assert scaled.base_lr == pytest.approx(factor * plain.base_lr, rel=1e-9)


@EVERY
@pytest.mark.parametrize(("factor", "shift"), [(1, 5), (1, -20), (1e-6, 0), (400, 0), (0.1, -2)])
def test_losses_of_another_unit_or_origin_give_the_same_answer(
    rule: str, factor: float, shift: float
) -> None:
    for curve in curves_for(rule):
        plain, moved = (suggest.get(rule)(LRS, c) for c in (curve, factor * curve + shift))
        assert plain.lr is not None and moved.lr == pytest.approx(plain.lr, rel=1e-9)
        assert moved.confidence == pytest.approx(plain.confidence, rel=1e-6)


@EVERY
def test_negative_losses(rule: str) -> None:
    for curve in curves_for(rule):
        negative = curve - 2 * curve.max()
        answer = suggest.get(rule)(LRS, negative)
        assert answer.lr is not None and negative.max() < 0


@EVERY
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_nothing_past_a_loss_that_is_not_finite_is_read(rule: str, broken: float) -> None:
    for curve in curves_for(rule):
        curve[85] = broken
        other = np.r_[curve[:86], -100.0 * np.ones(14)]
        answer = suggest.get(rule)(LRS, curve)
        assert answer.lr is not None and answer.index is not None and answer.index < 85
        assert suggest.get(rule)(LRS, other) == answer


# Any curve at all.


def assert_sane(rule: str, lrs: Array, losses: Array) -> None:
    answer = suggest.get(rule)(lrs, losses)
    assert answer.rule == rule and answer.reason
    assert "nan" not in answer.reason and "inf" not in answer.reason.replace("finite", "")
    assert 0 <= answer.confidence <= 1
    if answer.next_range is not None:
        first, last = answer.next_range
        assert answer.confidence <= 0.2 and 0 < first < last < math.inf
    if answer.interval is not None:
        low, high = answer.interval
        assert answer.lr is not None and 0 < low <= answer.lr <= high * (1 + 1e-12)
    if answer.lr is None:
        assert (answer.index, answer.base_lr, answer.confidence) == (None, None, 0)
        return
    assert answer.index is not None and 0 <= answer.index < len(losses)
    assert np.isfinite(losses[: answer.index + 1]).all()
    assert 0.69 * lrs[0] < answer.lr <= lrs[-1] * (1 + 1e-12)
    if rule == "cyclic":
        assert answer.base_lr is not None and lrs[0] * (1 - 1e-12) <= answer.base_lr < answer.lr


WIDE = st.floats(-1e300, 1e300)
STEPS = st.integers(-3, 3).map(float)
CLOSE = st.integers(-3, 3).map(lambda k: 1 + k * 2.0**-52)
TINY = st.integers(-3, 3).map(lambda k: k * 5e-324)
BROKEN = st.one_of(STEPS, st.sampled_from([np.nan, np.inf, -np.inf]))


@EVERY
@given(
    losses=st.one_of(*(st.lists(e, max_size=60) for e in (WIDE, STEPS, CLOSE, TINY, BROKEN))),
    exponent=st.integers(-30, 30),
)
def test_any_curve_gives_a_rate_or_a_reason(rule: str, losses: list[float], exponent: int) -> None:
    assert_sane(rule, rates(len(losses)) * 10.0**exponent, np.array(losses))


@EVERY
def test_wild_curves_give_a_rate_or_a_reason(rule: str) -> None:
    """Curves that hypothesis does not come upon by itself."""
    rng = np.random.default_rng(5)
    for points in (10, 11, 14, 25, 60, 100):
        for _ in range(15):
            at = int(rng.integers(1, points))
            noise = rng.normal(size=points)
            wild = [
                np.cumsum(noise),
                rng.standard_cauchy(points),
                np.exp(rng.uniform(-600, 600, points)),
                np.r_[np.linspace(2, 1, points - 5), np.geomspace(1, 1.7e308, 5)],
                np.r_[np.ones(at), np.full(points - at, noise[0])],
                1e8 + 1e-8 * noise,
                1e-300 * noise,
                1e160 * noise,
            ]
            for curve in wild:
                assert_sane(rule, rates(points), curve)


@pytest.mark.parametrize("rule", ["flat", "auto"])
def test_a_divergence_to_the_largest_float_changes_nothing(rule: str) -> None:
    curve = leaves_its_level(100, 90, 1.0)
    curve[40:90] -= 0.1 if rule == "auto" else 0.0
    answer = suggest.get(rule)(LRS, curve)
    curve[95:] = 1.7e308
    assert answer.lr is not None and suggest.get(rule)(LRS, curve) == answer


# The shape.


def test_levels_of_a_clean_curve() -> None:
    shape = shape_of(s_curve(LRS, depth=2.0, level=0.4))
    assert shape.start == pytest.approx(2.4, abs=0.01)
    assert shape.fall == pytest.approx(2.0, rel=0.05)
    assert 3e-3 < shape.rate(shape.lowest) < 1.0
    assert shape.noise < 0.01 and shape.confidence > 0.9 and shape.diverges
    assert shape.falls_by(0.1) < shape.falls_by(0.5) < shape.falls_by(0.9) <= shape.lowest
    rises = [shape.rises_by(share) for share in (0.1, 0.5, 0.9)]
    assert rises == sorted(rises, key=lambda index: index or 0) and shape.lowest < (rises[0] or 0)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_noise_is_its_standard_deviation(noise: float) -> None:
    lrs = rates(400)
    found = [shape_of(s_curve(lrs, noise=noise, seed=s), lrs).noise for s in range(40)]
    assert np.mean(found) == pytest.approx(2.0 * noise, rel=0.03)


def test_a_divergence_is_one_beyond_noise() -> None:
    curve = s_curve(LRS, 1e-4, 1e9, noise=0.1, depth=1.0)
    assert not shape_of(curve).diverges
    shape = shape_of(curve)
    # Five standard errors of the mean of three losses are 2.9 times their scatter.
    curve[-3:] = shape.start + 2.8 * shape.noise
    assert not shape_of(curve).diverges
    curve[-3:] = shape.start + 3.0 * shape.noise
    assert shape_of(curve).diverges
    curve[-3:] = shape.start + np.array([0.0, 0.0, 9.0]) * shape.noise
    assert shape_of(curve).diverges
    curve[-3:] = 0.4
    curve[-1] = np.nan
    assert shape_of(curve).diverges


def test_confidence_falls_with_noise() -> None:
    found = [
        np.median([shape_of(s_curve(LRS, noise=noise, seed=s)).confidence for s in range(20)])
        for noise in (0.0, 0.02, 0.1, 0.5)
    ]
    assert found == sorted(found, reverse=True) and found[0] > 0.97 and found[-1] < 0.95


# Long curves.


@pytest.mark.parametrize(
    ("points", "blocks"), [(399, 399), (400, 400), (401, 200), (799, 399), (800, 400), (801, 267)]
)
def test_long_curves_are_read_in_blocks(points: int, blocks: int) -> None:
    lrs = rates(points)
    curve = s_curve(lrs)
    shape = shape_of(curve, lrs)
    size = points // blocks
    means = [curve[k * size : (k + 1) * size].mean() for k in range(blocks)]
    np.testing.assert_allclose(shape.losses, means, rtol=1e-12)
    centres = [np.log(lrs[k * size : (k + 1) * size]).mean() for k in range(blocks)]
    np.testing.assert_allclose(shape.log_rates, centres, rtol=1e-12)
    for rule in set(RAW) - {"flat"}:
        answer = suggest.get(rule)(lrs, curve)
        assert answer.lr is not None and answer.index is not None
        half_a_step = 0.5 * np.log(lrs[1] / lrs[0])
        assert abs(np.log(lrs[answer.index] / answer.lr)) < 1.001 * half_a_step
        if rule != "longest_descent":  # without noise it begins with the first digit that changes
            few = suggest.get(rule)(rates(400), s_curve(rates(400))).lr
            assert answer.lr == pytest.approx(few, rel=0.15)


@EVERY
def test_ten_times_the_points_take_some_ten_times_as_long(rule: str) -> None:
    """As sorting does, to a million points; what is quadratic takes a hundred times as long."""

    def seconds(points: int) -> float:
        lrs, curve = rates(points), noise_only(points, 0)
        begin = time.process_time()  # not the time in which others had the processor
        suggest.get(rule)(lrs, curve)
        return time.process_time() - begin

    least = min(seconds(100_000) for _ in range(3))
    assert min(seconds(1_000_000) for _ in range(3)) < 40 * max(least, 1e-3)
