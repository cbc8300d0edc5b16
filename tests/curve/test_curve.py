"""The loss curve: what it records, its running average, and what it flags, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from curves import NAN, ema, recorded
from device_reads import NoDeviceReads
from torch import Tensor

from lrfast.curve import LossCurve

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    curve = recorded([constant] * 500, beta=beta, diverge_threshold=1.000001)
    np.testing.assert_allclose(curve.smoothed().numpy(), constant, rtol=1e-14)
    assert curve.smoothed()[0].item() == pytest.approx(constant, rel=3e-16)
    assert curve.status().outcome == "running"


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


def test_planned_rates(device: torch.device) -> None:
    """Row k belongs to the k-th loss; the curve has a copy of its own."""
    loss = torch.tensor(1.0, device=device)
    plan = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    plans = (plan, plan.to(device), plan.numpy(), plan.tolist(), plan[:, None])
    curves = [LossCurve(3, device, rates=rates) for rates in plans]
    plan.zero_()
    for curve in curves:
        assert curve.lrs.shape == (0,)
        curve.record(loss)
        curve.record(loss)
        assert curve.lrs.tolist() == [0.1, 0.2]
        curve.truncate(1)
        curve.record(loss)
        curve.record(loss)
        assert curve.lrs.tolist() == [0.1, 0.2, 0.3]
    wide = LossCurve(2, device, width=2, rates=[[0.1, 0.2], [0.3, 0.4]])
    wide.record(loss)
    assert wide.lrs.tolist() == [[0.1, 0.2]]
    with pytest.raises(ValueError, match="lr must be None where rates are planned, got float"):
        wide.record(loss, 0.1)
    assert len(wide) == 1 and wide.status().count == 1


@pytest.mark.parametrize(
    ("width", "shape", "message"),
    [
        (1, (3,), r"rates must have shape \[2\] or \[2, 1\], got \[3\]"),
        (1, (1, 2), r"got \[1, 2\]"),
        (1, (), r"got \[\]"),
        (2, (2,), r"rates must have shape \[2, 2\], got \[2\]"),
    ],
)
def test_planned_rates_of_another_shape(width: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossCurve(2, width=width, rates=np.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("planned", [True, False])
def test_a_skipped_step_adds_nothing(
    dtype: torch.dtype, shape: tuple[int, ...], planned: bool, device: torch.device
) -> None:
    losses, found_inf = [4.0, 90.0, 3.0, 5.0, 80.0], [0.0, 1.0, 0.0, 0.0, NAN]
    lrs = [None] * 5 if planned else [0.1, 0.9, 0.2, 0.3, 0.9]
    rates = [0.1, 0.2, 0.3, 0.4, 0.5] if planned else None
    curve = LossCurve(5, device, beta=0.9, diverge_threshold=4.0, rates=rates)
    without = LossCurve(5, device, beta=0.9, diverge_threshold=4.0, rates=rates)
    with NoDeviceReads():
        for loss, lr, inf in zip(losses, lrs, found_inf, strict=True):
            value = torch.tensor(loss, device=device)
            skip = torch.full(shape, inf, dtype=dtype, device=device)
            curve.record(value, lr, skip=skip)
            if inf == 0.0:
                without.record(value, lr)
    assert len(curve) == 3 and curve.losses.tolist() == [4.0, 3.0, 5.0]
    assert curve.lrs.tolist() == [0.1, 0.2, 0.3]
    assert curve.status() == without.status()
    assert torch.equal(curve.smoothed(), without.smoothed())
    assert torch.equal(curve.derivative(), without.derivative())
    curve.truncate(1)
    curve.record(torch.tensor(1.0, device=device), None if planned else 0.7)
    assert curve.losses.tolist() == [4.0, 1.0]
    with pytest.raises(ValueError, match="count must be from 0 to 2, got 3"):
        curve.truncate(3)


@pytest.mark.parametrize("loss", [None, 1.0])
def test_a_loss_that_is_no_tensor(loss: Any) -> None:
    with pytest.raises(TypeError, match=f"loss must be a scalar tensor, got {type(loss).__name__}"):
        LossCurve(1).record(loss)


def test_a_skipped_loss_that_is_not_finite_is_recorded(device: torch.device) -> None:
    curve = LossCurve(3, device)
    yes = torch.ones(1, device=device)
    for loss in (1.0, NAN, 2.0):
        curve.record(torch.tensor(loss, device=device), skip=yes)
    assert len(curve) == 1 and curve.losses.isnan().all()
    status = curve.status()
    assert (status.outcome, status.stopped_at, status.count) == ("non-finite", 0, 1)


def test_capacity_with_skips(device: torch.device) -> None:
    """The host cannot know that the curve is full; the device drops what does not fit. So it does
    where the first skip comes with the first loss too many, as that may be of a skipped step."""
    full = recorded([1.0], device)
    full.record(torch.tensor(9.0, device=device, dtype=torch.float64), skip=full.stop_flag)
    assert len(full) == 1 and full.losses.tolist() == [1.0]
    curve = LossCurve(2, device, beta=0.0, diverge_threshold=2.0)
    for loss, inf in ((1.0, 0.0), (9.0, 1.0), (1.5, 0.0), (9.0, 0.0), (NAN, 0.0)):
        skip = torch.tensor(inf, device=device)
        curve.record(torch.tensor(loss, device=device), skip=skip)
    curve.record(torch.tensor(9.0, device=device))
    assert len(curve) == 2 and curve.losses.tolist() == [1.0, 1.5]
    status = curve.status()
    assert (status.count, status.last, status.outcome) == (2, 1.5, "running")


@pytest.mark.parametrize(
    ("skip", "error", "message"),
    [
        (1.0, TypeError, "skip must be a scalar tensor, got float"),
        (torch.zeros(2), ValueError, r"skip must be a scalar tensor, got shape \[2\]"),
        (torch.zeros(1, dtype=torch.int32), TypeError, "skip must be a floating-point tensor"),
        (
            torch.zeros(1, device="meta"),
            ValueError,
            "skip must be on the curve's device cpu, got m",
        ),
    ],
)
def test_a_skip_that_is_none(skip: Any, error: type[Exception], message: str) -> None:
    curve = recorded([1.0])
    curve.truncate(0)
    with pytest.raises(error, match=message):
        curve.record(torch.tensor(1.0), skip=skip)
    assert curve.status().count == 0
    curve.record(torch.tensor(1.0))
    with pytest.raises(IndexError, match="the curve is full"):  # no skip was ever taken
        curve.record(torch.tensor(1.0))


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
