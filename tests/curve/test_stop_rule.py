"""The rule that flags a diverging curve, and the noise that it measures a rise in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from curves import NAN, ema, gapped_ema, recorded
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lrfast.curve import LossCurve


def noise_before(losses: Any, beta: float) -> list[float]:
    """Before each loss, and after the last: the root of the EMA of half the squared steps, of which
    none counts as more than three times what there was."""
    noises, half_squares = [0.0], []
    for i in range(len(losses)):
        if i > 0:
            half_square = (losses[i] - losses[i - 1]) ** 2 / 2
            cut = 9 * noises[-1] ** 2 or math.inf
            half_squares.append(min(half_square, cut))
        noises.append(math.sqrt(ema(half_squares, beta)[-1]) if half_squares else 0.0)
    return noises


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(NAN) | st.just(math.inf), min_size=1, max_size=40),
    st.floats(0, 0.99),
    st.none() | st.floats(1.01, 5),
)
def test_status_is_the_definition(losses: list[float], beta: float, stop: float | None) -> None:
    curve = recorded(losses, beta=beta, diverge_threshold=stop)
    smoothed = gapped_ema(losses, beta)
    np.testing.assert_allclose(curve.smoothed().numpy(), smoothed, rtol=1e-9, atol=1e-9)
    # From here on with the curve's own EMA, so that a tie is one.
    own = curve.smoothed().numpy()
    finite = [loss for loss in losses if math.isfinite(loss)]
    noises = noise_before(finite, beta)
    best, flag, at, seen = math.inf, "running", None, 0
    for i, value in enumerate(own):
        outcome = "running"
        if math.isnan(value):
            outcome = "non-finite"
        else:
            best = min(best, value)
            unit = max(best, (own[np.isfinite(own)][0] - best) / 10, noises[seen])
            limit = 0.0 if stop is None else (stop - 1) * unit
            assume(abs(value - best - limit) > 1e-9 * limit or limit == 0.0)
            is_judged = stop is not None and (best > 0 or i >= 10)
            if is_judged and unit > 1e-12 * abs(best) and value - best > limit:
                outcome = "diverged"
            seen += 1
        if flag == "running" and outcome != "running":
            flag, at = outcome, i
    status = curve.status()
    assert (status.outcome, status.stopped_at) == (flag, at)
    assert status.count == len(losses) == len(curve)
    noise = status.noise if len(finite) > 1 else 0.0
    assert noise == pytest.approx(noises[len(finite)], rel=1e-9, abs=1e-150)
    if math.isfinite(best):
        assert status.best == best and status.first == own[np.isfinite(own)][0]
        assert status.smoothed == own[np.isfinite(own)][-1]
    else:
        assert math.isnan(status.best) and math.isnan(status.smoothed)
    assert curve.poll() == status or math.isnan(status.best) or math.isnan(status.last)


@pytest.mark.parametrize(
    ("losses", "stop", "outcome", "at"),
    [
        ([1.0, 0.5, 2.0], 4.0, "running", None),  # at the limit is not beyond it
        ([1.0, 0.5, 2.0001], 4.0, "diverged", 2),
        ([1.0, 0.5, 2.1, 0.1, 9.0], 4.0, "diverged", 2),  # once, and for ever
        ([-1.0] * 9 + [50.0], 4.0, "running", None),  # negative losses do not trip at once
        ([-1.0] * 9 + [-1.1, 50.0], 4.0, "diverged", 10),
        ([-1.0] * 10 + [50.0, 80.0], 4.0, "running", None),  # nothing to measure the rise in
        ([1.0, 1e9], None, "running", None),
        ([1.0, NAN, 50.0], 4.0, "non-finite", 1),
        ([1.0, 50.0, NAN], 4.0, "diverged", 1),
        ([math.inf, 1.0], None, "non-finite", 0),
        ([1.0, -math.inf], None, "non-finite", 1),
    ],
)
def test_flag(
    losses: list[float], stop: float | None, outcome: str, at: int | None, device: torch.device
) -> None:
    curve = recorded(losses, device, beta=0.0, diverge_threshold=stop)
    status = curve.status()
    assert (status.outcome, status.stopped_at) == (outcome, at)
    assert curve.stop_flag.shape == (1,) and bool(curve.stop_flag) == (outcome != "running")


@pytest.mark.parametrize(("grace", "at"), [(0, 1), (1, 1), (2, 3), (4, None)])
def test_losses_within_the_grace_are_followed_but_not_judged(
    grace: int, at: int | None, device: torch.device
) -> None:
    curve = LossCurve(4, device, beta=0.0, diverge_threshold=4.0, grace=grace)
    for loss in (1.0, 9.0, 0.5, 90.0):
        curve.record(torch.tensor(loss, device=device))
    assert curve.status().stopped_at == at and curve.status().best == 0.5
    curve = LossCurve(4, device, diverge_threshold=4.0, grace=4)
    curve.record(torch.tensor(NAN, device=device))
    assert curve.status().outcome == "non-finite"
    with pytest.raises(ValueError, match="grace must be a whole number, 0 or more, got -1"):
        LossCurve(4, device, grace=-1)


def valley(offset: float = 0.0, growth: float = 1.3, points: int = 140) -> Any:
    """Noisy losses that fall from 2.3 to 0.4 and explode from the hundredth step on."""
    steps = np.arange(float(points))
    noise = np.random.default_rng(3).normal(size=points)
    fall = 0.4 + 1.9 / (1 + np.exp((steps - 40) / 8))
    rise = np.where(steps < 100, 0.0, 0.05 * growth ** np.maximum(steps - 99, 0))
    return offset + fall + 0.02 * noise + rise


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.98])
@pytest.mark.parametrize("growth", [1.2, 1.4, 2.0, 10.0])
@pytest.mark.parametrize("offset", [-0.4, -2.0, -1000.0])
def test_a_shifted_loss_stops_where_the_loss_itself_stops(
    offset: float, growth: float, beta: float
) -> None:
    """About there: a loss that is above zero is held against its best, a tenth of a drop is less.
    However fast it explodes, its own steps must not count as the noise that excuses it."""
    itself = recorded(valley(0.0, growth), beta=beta, diverge_threshold=4.0).status()
    shifted = recorded(valley(offset, growth), beta=beta, diverge_threshold=4.0).status()
    assert itself.outcome == shifted.outcome == "diverged"
    assert itself.stopped_at is not None and shifted.stopped_at is not None
    assert 100 <= shifted.stopped_at <= itself.stopped_at


@pytest.mark.parametrize("stop", [1.2, 2.0, 4.0])
@pytest.mark.parametrize("beta", [0.9, 0.98])
def test_a_loss_well_above_zero_stops_above_stop_times_its_best(beta: float, stop: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        steps = np.arange(300.0)
        losses = 2.0 + np.exp((steps - 200) / rng.uniform(5, 20)) - 0.003 * steps
        losses += 0.05 * rng.normal(size=300)
        smoothed = recorded(losses, beta=beta).smoothed().numpy()
        above = smoothed > stop * np.minimum.accumulate(smoothed)
        status = recorded(losses, beta=beta, diverge_threshold=stop).status()
        assert above.any() and status.stopped_at == above.argmax()


@pytest.mark.parametrize("beta", [0.9, 0.98])
def test_noise_alone_seldom_stops_a_run(beta: float) -> None:
    for offset in (-1.0, -100.0):
        stopped = 0
        for seed in range(100):
            losses = offset + 0.1 * np.random.default_rng(seed).normal(size=200)
            stopped += (
                recorded(losses, beta=beta, diverge_threshold=4.0).status().outcome != "running"
            )
        assert stopped <= 3  # the tenth loss is the earliest; from the first on, it was 10 to 20


@pytest.mark.parametrize("constant", [0.0, -2.5])
@pytest.mark.parametrize("before", [1, 9, 50])
def test_one_loss_that_differs_from_equal_ones_is_no_divergence(
    constant: float, before: int
) -> None:
    losses = [constant] * before + [constant + 1.0]
    assert recorded(losses, beta=0.9, diverge_threshold=1.1).status().outcome == "running"
    rising = losses + [constant + 2.0**k for k in range(1, 30)]
    assert recorded(rising, beta=0.9, diverge_threshold=4.0).status().outcome == "diverged"


def test_the_noise_of_a_status() -> None:
    """The root of the mean of half the squared steps, the largest cut at three deviations."""
    assert math.isnan(recorded([1.0]).status().noise)
    assert recorded([1.0, 3.0], beta=0.5).status().noise == pytest.approx(math.sqrt(2.0))
    assert recorded([1.0, 3.0, NAN, 2.0], beta=0.5).status().noise == pytest.approx(1.0)
    losses = np.random.default_rng(0).normal(size=20_000)
    assert recorded(losses, beta=0.9998).status().noise == pytest.approx(1.0, abs=0.02)
    status = recorded([NAN, 5.0, 4.0], beta=0.5).status()
    assert status.first == 5.0 and math.isnan(LossCurve(1).status().first)
