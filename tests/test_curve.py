"""The loss curve: what it records, smooths and flags, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrfast.curve import LossCurve

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN = math.nan


def recorded(losses: Any, device: Any = "cpu", lrs: Any = None, **options: Any) -> LossCurve:
    """A curve of these losses, as float64."""
    curve = LossCurve(max(len(losses), 1), device, **options)
    for i, loss in enumerate(losses):
        tensor = torch.tensor(loss, dtype=torch.float64, device=device)
        curve.record(tensor, None if lrs is None else lrs[i])
    return curve


def ema(losses: Any, beta: float) -> Any:
    """Bias-corrected, straight from the definition: a mean with weights beta ** age."""
    result = []
    for i in range(len(losses)):
        weights = beta ** np.arange(i, -1, -1.0)
        seen = np.asarray(losses[: i + 1], dtype=np.float64)
        finite = np.isfinite(seen)
        mean = (weights * np.where(finite, seen, 0.0)).sum() / max(weights[finite].sum(), 1e-300)
        result.append(mean if finite[-1] else NAN)
    return np.array(result)


def gapped_ema(losses: Any, beta: float) -> Any:
    """Losses that are not finite take no part, and age nothing."""
    out = np.full(len(losses), NAN)
    finite = np.isfinite(losses)
    out[finite] = ema(np.asarray(losses)[finite], beta)
    return out


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98])
def test_ema_is_the_weighted_mean(beta: float, device: torch.device) -> None:
    losses = np.random.default_rng(0).normal(size=150)
    curve = recorded(losses, device, beta=beta)
    smoothed = curve.smoothed().cpu().numpy()
    np.testing.assert_allclose(smoothed, ema(losses, beta), rtol=1e-12, atol=1e-13)
    other = curve.smoothed("ema", beta=0.7).cpu().numpy()
    np.testing.assert_allclose(other, ema(losses, 0.7), rtol=1e-12, atol=1e-13)
    status = curve.status()
    assert status.smoothed == smoothed[-1] and status.last == losses[-1]
    assert status.best == smoothed.min() and status.count == 150
    assert (status.outcome, status.stopped_at) == ("running", None)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98, 0.999])
@pytest.mark.parametrize("constant", [1.0, 0.1, -3.7, 1e-300, 1e300, 0.0])
def test_a_constant_loss_is_its_own_ema_from_the_first_step(beta: float, constant: float) -> None:
    """To the last units: sum and weight are rounded apart, and their errors mostly cancel."""
    curve = recorded([constant] * 500, beta=beta, stop=1.000001)
    np.testing.assert_allclose(curve.smoothed().numpy(), constant, rtol=1e-14)
    assert curve.smoothed()[0].item() == pytest.approx(constant, rel=3e-16)
    assert curve.status().outcome == "running"


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(NAN) | st.just(math.inf), min_size=1, max_size=40),
    st.floats(0, 0.99),
    st.none() | st.floats(1.01, 5),
)
def test_status_is_the_definition(losses: list[float], beta: float, stop: float | None) -> None:
    curve = recorded(losses, beta=beta, stop=stop)
    smoothed = gapped_ema(losses, beta)
    np.testing.assert_allclose(curve.smoothed().numpy(), smoothed, rtol=1e-9, atol=1e-9)
    # From here on with the curve's own EMA, so that a tie is one.
    own = curve.smoothed().numpy()
    best, flag, at = math.inf, "running", None
    for i, value in enumerate(own):
        if math.isnan(value):
            outcome = "non-finite"
        else:
            best = min(best, value)
            limit = math.inf if stop is None else best + (stop - 1) * abs(best)
            outcome = "diverged" if value > limit else "running"
        if flag == "running" and outcome != "running":
            flag, at = outcome, i
    status = curve.status()
    assert (status.outcome, status.stopped_at) == (flag, at)
    assert status.count == len(losses) == len(curve)
    if math.isfinite(best):
        assert status.best == best
        assert status.smoothed == own[np.isfinite(own)][-1]
    else:
        assert math.isnan(status.best) and math.isnan(status.smoothed)
    assert curve.poll() == status or math.isnan(status.best) or math.isnan(status.last)


@pytest.mark.parametrize(
    ("losses", "stop", "outcome", "at"),
    [
        ([1.0, 0.5, 1.9, 2.0], 4.0, "running", None),  # at the limit is not beyond it
        ([1.0, 0.5, 2.0, 2.0001], 4.0, "diverged", 3),
        ([1.0, 0.5, 2.1, 0.1, 9.0], 4.0, "diverged", 2),  # once, and for ever
        ([-1.0, -1.0, -0.9, -0.5], 2.0, "running", None),  # negative losses do not trip at once
        ([-1.0, -2.0, 0.1], 2.0, "diverged", 2),  # -2 + |-2| = 0
        ([-2.0, -0.1, 0.0], 2.0, "running", None),
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
    curve = recorded(losses, device, beta=0.0, stop=stop)
    status = curve.status()
    assert (status.outcome, status.stopped_at) == (outcome, at)
    assert curve.stop_flag.shape == (1,) and bool(curve.stop_flag) == (outcome != "running")


def test_a_loss_that_is_not_finite_poisons_nothing(device: torch.device) -> None:
    losses = [3.0, NAN, 2.0, math.inf, 1.0]
    curve = recorded(losses, device, beta=0.9)
    without = recorded([3.0, 2.0, 1.0], device, beta=0.9)
    assert curve.status().smoothed == without.status().smoothed
    smoothed = curve.smoothed()
    assert smoothed.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(smoothed[~smoothed.isnan()], without.smoothed())
    np.testing.assert_array_equal(curve.losses.cpu().numpy(), losses)


def test_the_best_after_a_first_loss_that_is_not_finite() -> None:
    status = recorded([NAN, 3.0, 4.0], beta=0.0).status()
    assert (status.best, status.smoothed, status.stopped_at) == (3.0, 4.0, 0)


def test_an_empty_curve() -> None:
    curve = LossCurve(3)
    status = curve.status()
    assert len(curve) == 0 and curve.losses.shape == (0,) and curve.smoothed().shape == (0,)
    assert status.count == 0 and status.outcome == "running" and status.stopped_at is None
    assert math.isnan(status.smoothed) and math.isnan(status.best) and math.isnan(status.last)


def test_capacity() -> None:
    curve = recorded([1.0, 2.0])
    with pytest.raises(IndexError, match="curve is full: its capacity is 2"):
        curve.record(torch.tensor(3.0))
    assert curve.losses.tolist() == [1.0, 2.0] and curve.status().count == 2


def test_rates(device: torch.device) -> None:
    """As number, sequence or tensor, one or one per group, or none."""
    loss = torch.tensor(1.0, device=device)
    curve = LossCurve(4, device)
    for lr in (0.1, [0.2], torch.tensor([0.3], dtype=torch.float64, device=device), None):
        curve.record(loss, lr)
    assert curve.lrs.tolist()[:3] == [0.1, 0.2, 0.3] and curve.lrs[3].isnan()
    wide = LossCurve(3, device, width=2)
    rates = torch.tensor([0.5, 0.6], dtype=torch.float64, device=device)
    wide.record(loss, [0.1, 0.2])
    wide.record(loss, rates)
    rates.zero_()  # recorded is recorded
    wide.record(loss)
    assert wide.lrs.tolist()[:2] == [[0.1, 0.2], [0.5, 0.6]] and wide.lrs[2].isnan().all()


@pytest.mark.parametrize("window", [1, 3, 5, 9, 101])
def test_moving_average_is_centred_and_narrows_at_the_ends(
    window: int, device: torch.device
) -> None:
    losses = np.random.default_rng(1).normal(size=40)
    wanted = []
    for i in range(40):
        reach = min((window - 1) // 2, i, 39 - i)
        wanted.append(losses[i - reach : i + reach + 1].mean())
    curve = recorded(losses, device)
    smoothed = curve.smoothed("sma", window=window).cpu().numpy()
    np.testing.assert_allclose(smoothed, wanted, rtol=1e-12, atol=1e-14)
    if window == 5:
        assert torch.equal(curve.smoothed("sma"), curve.smoothed("sma", window=5))


def test_moving_average_shows_a_loss_that_is_not_finite() -> None:
    losses = [1.0, 2.0, 3.0, NAN, 5.0, 6.0, 7.0]
    smoothed = recorded(losses).smoothed("sma", window=3)
    assert smoothed.isnan().tolist() == [False, False, True, True, True, False, False]
    assert smoothed[5].item() == 6.0 and smoothed[1].item() == 2.0


@pytest.mark.parametrize("wrt", ["log_lr", "lr", "step"])
@pytest.mark.parametrize("window", [1, 2, 7, 60])
@pytest.mark.parametrize("beta", [None, 0.0, 0.6])
def test_derivative(wrt: Any, window: int, beta: float | None, device: torch.device) -> None:
    rng = np.random.default_rng(2)
    losses, lrs = rng.normal(size=50), np.sort(rng.uniform(1e-6, 1.0, size=50))
    width_2 = np.stack([lrs, lrs[::-1]], 1)
    curve = recorded(losses, device, width_2.tolist(), width=2, beta=0.9)
    smoothed = curve.smoothed(beta=beta).cpu().numpy()
    x = {"log_lr": np.log(lrs), "lr": lrs, "step": np.arange(50.0)}[wrt]
    left = np.maximum(np.arange(50) - window, 0)
    right = np.minimum(np.arange(50) + window, 49)
    wanted = (smoothed[right] - smoothed[left]) / (x[right] - x[left])
    slope = curve.derivative(wrt, window=window, beta=beta).cpu().numpy()
    np.testing.assert_allclose(slope, wanted, rtol=1e-12)
    if wrt == "log_lr":
        default = curve.derivative(window=window, beta=beta).cpu().numpy()
        np.testing.assert_array_equal(slope, default)


def test_derivative_of_a_line_is_its_slope() -> None:
    curve = recorded(3.0 - 0.25 * np.arange(20), beta=0.5, lrs=np.exp(np.arange(20)).tolist())
    assert curve.derivative("step", beta=0.0).tolist() == [-0.25] * 20
    np.testing.assert_allclose(curve.derivative("log_lr", beta=0.0).numpy(), -0.25, rtol=1e-12)


def bit_patterns(dtype: torch.dtype) -> Tensor:
    """All 65536 values of a half type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_of_every_dtype(dtype: torch.dtype, device: torch.device) -> None:
    curve = LossCurve(4, device)
    values = torch.tensor([0.1, -3.3, 65504.0, 1e-7], dtype=torch.float64).to(device, dtype)
    for value in values:
        curve.record(value)
    assert torch.equal(curve.losses, values.double())
    curve = LossCurve(1, device)
    loss = torch.nn.Parameter(values[:1].view(1, 1)) * 2  # one element and a graph
    curve.record(loss)
    assert curve.losses.tolist() == [2 * values[0].double().item()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_converted_as_torch_does(dtype: torch.dtype) -> None:
    """csrc/core/dtypes.h, on all 65536 bit patterns."""
    patterns = bit_patterns(dtype)
    curve = LossCurve(len(patterns))
    for value in patterns:
        curve.record(value)
    wanted = patterns.double()
    torch.testing.assert_close(curve.losses, wanted, rtol=0, atol=0, equal_nan=True)
    finite = ~wanted.isnan()
    assert torch.equal(curve.losses[finite].signbit(), wanted[finite].signbit())
