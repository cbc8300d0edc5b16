"""Half and bfloat16 parameters are rounded as torch rounds, once, whatever the value."""

from __future__ import annotations

import pytest
import torch
from cases import HALF_DTYPES, by_name, twins
from torch import Tensor

import lrfast


def floats() -> Tensor:
    """Float32 values around everything where a rounding can go wrong, and many more."""
    bits = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int64)
    halves = torch.arange(2**16, dtype=torch.int64)
    wide = [(halves << 16) + offset for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    any_bits = torch.cat([bits, *wide]).to(torch.int32).view(torch.float32)
    half = halves.to(torch.int16).view(torch.float16).double()
    half = half[half.isfinite()].sort().values
    ties = ((half[1:] + half[:-1]) / 2).float()
    up, down = torch.full((), torch.inf), torch.full((), -torch.inf)
    near_ties = [ties, ties.nextafter(up), ties.nextafter(down)]
    special = [
        0.0,
        -0.0,
        65504.0,
        65519.996,
        65520.0,
        1e-45,
        2.0**-25,
        3.4e38,
        torch.inf,
        -torch.inf,
    ]
    return torch.cat([any_bits, *near_ties, torch.tensor(special), -torch.tensor(special)])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    nans = expected.isnan()
    assert torch.equal(actual.isnan(), nans)
    assert torch.equal(actual[~nans].view(torch.int16), expected[~nans].view(torch.int16))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
def test_every_float_is_rounded_as_torch_does(dtype: torch.dtype) -> None:
    """A float32 momentum buffer carries any float into the arithmetic: p <- 0 - 1 * buffer."""
    values = floats()
    param = torch.nn.Parameter(torch.zeros_like(values, dtype=dtype))
    optimizer = lrfast.SGD([param], lr=1.0, momentum=1.0, dampening=1.0)
    source = lrfast.SGD([torch.nn.Parameter(torch.zeros_like(values))], lr=1.0, momentum=1.0)
    state = source.state_dict()
    state["state"] = {0: {"momentum_buffer": -values}}
    state["param_groups"][0]["dampening"] = 1.0
    optimizer.load_state_dict(state)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    expected = values.to(dtype)
    zero = expected == 0  # 0 - (-0) and 0 - 0 are both +0: the sum has lost the sign
    assert torch.equal(param[zero], torch.zeros_like(param[zero]))
    assert_same_bits(param.detach()[~zero], expected[~zero])
    kept = optimizer.state[param]["momentum_buffer"]
    torch.testing.assert_close(kept, -values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
def test_every_half_goes_through_a_step_unchanged(dtype: torch.dtype, device: torch.device) -> None:
    """p <- p - 0 * g, over all 65536 values: conversion there and back loses nothing."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    param = torch.nn.Parameter(patterns.clone())
    optimizer = lrfast.SGD([param], lr=0.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    finite = patterns.isfinite()
    assert_same_bits(param.detach()[finite].cpu(), patterns[finite].cpu())
    nans = patterns.isnan()
    assert param[nans].isnan().all()


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
def test_a_half_step_rounds_once(dtype: torch.dtype) -> None:
    """Every half as gradient: bit for bit the float32 computation, rounded at its end."""
    grad = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    start = torch.nn.Parameter(torch.randn(2**16).to(dtype))
    (param,) = twins([start])
    optimizer = lrfast.SGD([param], lr=0.37, weight_decay=0.11)
    param.grad = grad
    optimizer.step()
    rate, decay = (torch.tensor(x, dtype=torch.float32) for x in (0.37, 0.11))
    wide = start.detach().float()
    expected = (wide - rate * (grad.float() + decay * wide)).to(dtype)
    assert_same_bits(param.detach(), expected)
