"""What is made of a curve after the run: smoothers and derivatives, against numpy and scipy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from curves import NAN, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from lrfast.curve import LossCurve

METHODS = ("ema", "sma", "median", "savgol", "none")


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


def nan_median(losses: Any, window: int) -> Any:
    """Of what is not NaN in the centred windows; numpy's nanmedian would warn of empty ones."""
    out = []
    for i in range(len(losses)):
        reach = min((window - 1) // 2, i, len(losses) - 1 - i)
        seen = losses[i - reach : i + reach + 1]
        seen = seen[~np.isnan(seen)]
        out.append(np.median(seen) if len(seen) else NAN)
    return np.array(out)


@settings(max_examples=60)
@given(
    st.lists(
        st.integers(-3, 3).map(float) | st.floats(-1e3, 1e3) | st.sampled_from([NAN, math.inf]),
        max_size=40,
    ),
    st.sampled_from([1, 3, 5, 9, 101]),
)
def test_running_median_of_anything(losses: list[float], window: int) -> None:
    """With ties, gaps and infinities; one value apart in rank at each step, or far."""
    smoothed = recorded(losses).smoothed("median", window=window).numpy()
    np.testing.assert_array_equal(smoothed, nan_median(np.array(losses), window))


@pytest.mark.parametrize("window", [1, 3, 5, 21, 401])
@pytest.mark.parametrize("shape", ["noise", "falling", "ties", "jumps", "gaps"])
def test_running_median(shape: str, window: int, device: torch.device) -> None:
    noise = np.random.default_rng(4).normal(size=300)
    losses = {
        "noise": noise,
        "falling": np.exp(-np.arange(300.0)),
        "ties": np.round(noise),
        "jumps": np.where(np.arange(300) // 7 % 2, 1e6, -1e6) + noise,
        "gaps": np.where(np.abs(noise) > 0.6, NAN, noise),
    }[shape]
    curve = recorded(losses, device)
    smoothed = curve.smoothed("median", window=window).cpu().numpy()
    np.testing.assert_array_equal(smoothed, nan_median(losses, window))
    if window == 5:
        assert np.array_equal(curve.smoothed("median").cpu().numpy(), smoothed, equal_nan=True)


def test_an_outlier_leaves_no_trace_in_the_median() -> None:
    losses = np.linspace(3.0, 1.0, 21)
    losses[10] = math.inf
    median = recorded(losses).smoothed("median", window=3).numpy()
    np.testing.assert_array_equal(median[[9, 10, 11]], losses[[8, 9, 11]])


@pytest.mark.parametrize("window", [1, 3, 5, 11, 31])
@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("count", [31, 32, 100])
def test_savgol_is_scipys(window: int, order: int, count: int, device: torch.device) -> None:
    losses = np.random.default_rng(5).normal(size=count) + 2.3
    curve = recorded(losses, device)
    if order >= window:
        with pytest.raises(ValueError, match=f"above the order {order} and.*got {window}"):
            curve.smoothed("savgol", window=window, order=order)
        return
    smoothed = curve.smoothed("savgol", window=window, order=order).cpu().numpy()
    wanted = signal.savgol_filter(losses, window, order, mode="interp")
    np.testing.assert_allclose(smoothed, wanted, rtol=1e-9, atol=1e-10)
    if (window, order) == (11, 2):
        assert np.array_equal(curve.smoothed("savgol").cpu().numpy(), smoothed)


@pytest.mark.parametrize("window", [301, 1001])
@pytest.mark.parametrize("order", range(6))
def test_savgol_of_wide_windows(window: int, order: int) -> None:
    """Against a QR of Legendre polynomials on [-1, 1]; scipy's powers of the index lose digits."""
    losses = np.random.default_rng(6).normal(size=1100)
    smoothed = recorded(losses).smoothed("savgol", window=window, order=order).numpy()
    x = np.linspace(-1, 1, window)
    basis = np.linalg.qr(np.polynomial.legendre.legvander(x, order))[0]
    half = window // 2
    for i in (0, 1, half - 1, half, half + 1, 700, 1099 - half, 1100 - half, 1098, 1099):
        first = min(max(i - half, 0), 1100 - window)
        fit = basis[i - first] @ (basis.T @ losses[first : first + window])
        assert smoothed[i] == pytest.approx(fit, rel=1e-11, abs=1e-13)


def test_savgol_shows_a_loss_that_is_not_finite() -> None:
    """In every window that holds it: at the ends those are the first and the last full one."""
    for bad in (NAN, math.inf, -math.inf):
        losses = np.ones(20)
        losses[8] = bad
        smoothed = recorded(losses).smoothed("savgol", window=5)
        assert smoothed.isnan().nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
        losses[[3, 8]] = bad, 1.0
        smoothed = recorded(losses).smoothed("savgol", window=5)
        assert smoothed.isnan().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose(smoothed[6:].numpy(), 1.0, rtol=1e-12)


def test_no_smoothing() -> None:
    losses = [1.0, NAN, 3.0]
    np.testing.assert_array_equal(recorded(losses).smoothed("none").numpy(), losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mean"}, "method must be 'ema',.* or 'none', got 'mean'"),
        ({"W": 3}, "W is not for method 'ema', which takes beta"),
        ({"method": "sma", "beta": 0.5}, "beta is not for method 'sma', which takes W"),
        ({"method": "median", "order": 2}, "order is not for method 'median', which takes W"),
        ({"method": "savgol", "beta": 0.0}, "beta is not for.*, which takes W and order"),
        ({"method": "none", "beta": 0.0}, "which takes no parameter"),
        ({"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
        ({"method": "sma", "W": 4}, "W must be odd and 1 or more, got 4"),
        ({"method": "median", "W": 2}, "W must be odd and 1 or more, got 2"),
        ({"method": "savgol", "W": -1}, "W must be odd and 1 or more, got -1"),
        ({"method": "savgol", "W": 13}, "at most the number of losses, 12, got 13"),
        ({"method": "savgol", "order": 6}, "order must be from 0 to 5, got 6"),
        ({"method": "savgol", "order": -1}, "order must be from 0 to 5, got -1"),
    ],
)
def test_errors_of_smoothers(options: dict[str, Any], message: str) -> None:
    """Which name the window as the method that was called does."""
    curve = recorded(np.ones(12))
    slope = partial(curve.derivative, "step")
    for call, width in ((curve.smoothed, "window"), (slope, "smooth_window")):
        named = {name.replace("W", width): value for name, value in options.items()}
        with pytest.raises(ValueError, match=message.replace("W", width)):
            call(**named)


@pytest.mark.parametrize("method", METHODS)
def test_smoothing_an_empty_curve(method: Any) -> None:
    if method == "savgol":
        with pytest.raises(ValueError, match="number of losses, 0, got 11"):
            LossCurve(3).smoothed(method)
    else:
        assert LossCurve(3).smoothed(method).shape == (0,)


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


@pytest.mark.parametrize("method", METHODS)
def test_derivative_of_any_smoother(method: Any, device: torch.device) -> None:
    losses = np.random.default_rng(7).normal(size=40)
    curve = recorded(losses, device)
    options: dict[str, Any] = {"ema": {"beta": 0.5}, "none": {}}.get(method, {"window": 7})
    if method == "savgol":
        options["order"] = 3
    smoothed = curve.smoothed(method, **options).cpu().numpy()
    if "window" in options:
        options["smooth_window"] = options.pop("window")
    slopes = curve.derivative("step", window=2, method=method, **options).cpu().numpy()
    np.testing.assert_allclose(slopes[2:-2], (smoothed[4:] - smoothed[:-4]) / 4, rtol=1e-12)


def test_surmenoks_plot_is_the_derivative_of_the_raw_losses() -> None:
    """Changes per step, and their moving average over the last n, put at the middle of the n."""
    losses, n = np.random.default_rng(8).normal(size=50), 6
    changes = np.diff(losses)
    lagging = np.array([changes[i - n : i].mean() for i in range(n, 50)])  # at step i
    centred = recorded(losses).derivative("step", window=n // 2, method="none").numpy()
    np.testing.assert_allclose(centred[n // 2 : 50 - n // 2], lagging, rtol=1e-12)
