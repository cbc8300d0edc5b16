"""How far a result may lie from the reference: the one place where that is decided."""

from __future__ import annotations

import torch
from torch import Tensor

# Roundings of one step, each at most half a unit in the last place of some intermediate value:
# AdamW has the longest chain (12 operations and 6 scalars that were rounded to the element type).
# 8 units bound their sum. In float64 the scalars themselves come into sight: 1 - beta2^t is made of
# the last digits of beta2^t, and at beta2 = 0.999 it is 1000 times as sensitive. 4000 units are
# 9e-13.
_UNITS_PER_STEP = {torch.float32: 8.0, torch.float64: 4000.0}

# A trajectory that is not put back on the reference's track lets each step's error travel on. SGD
# and AdamW contract it (weight decay, averages), but AdamW divides by sqrt(v), which doubles
# relative errors of v where a gradient is near zero: twice the sum over the steps.
_TRAVEL = 2.0

# Half types compute in float32 inside and round once when a value is stored.
_COMPUTES_IN = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def bound(
    expected: Tensor, scale: Tensor, stored: torch.dtype, compute: torch.dtype, steps: int = 1
) -> Tensor:
    """Largest error allowed per element, float64.

    Args:
        expected: Reference values, float64.
        scale: Size of what was added up to get them (cancellation cannot be blamed on a step).
        stored: Dtype of the values under test.
        compute: Parameter's dtype, which decides the type of the arithmetic.
        steps: Steps since tested values and reference were last equal.
    """
    inside = _COMPUTES_IN.get(compute, compute)
    inner = torch.finfo(inside)
    outer = torch.finfo(stored)
    allowed = _UNITS_PER_STEP[inside] * inner.eps * scale.double() + outer.tiny * outer.eps
    if outer.eps > inner.eps:  # the one rounding to a half type: half a unit in the last place
        allowed = allowed + 0.5 * outer.eps * expected.abs()
    return allowed if steps == 1 else _TRAVEL * steps * allowed


def assert_close(
    actual: Tensor,
    expected: Tensor,
    scale: Tensor,
    compute: torch.dtype,
    what: str,
    steps: int = 1,
) -> None:
    """Fail if an element of actual is further from expected (float64) than the policy allows."""
    assert actual.shape == expected.shape, what
    allowed = bound(expected.double(), scale, actual.dtype, compute, steps)
    error = (actual.double() - expected.double()).abs()
    inside = (error <= allowed) | (actual.double() == expected.double())
    if not bool(inside.all()):
        worst = int((error / allowed).flatten().argmax())
        raise AssertionError(
            f"{what}: {int((~inside).sum())} of {inside.numel()} elements are off, the worst "
            f"{worst}: {actual.flatten()[worst].item()!r}, expected "
            f"{expected.flatten()[worst].item()!r}, allowed {allowed.flatten()[worst].item():.3g}"
        )
