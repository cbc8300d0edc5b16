"""How far a result may lie from the reference: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Roundings of one step, each at most half a unit in the last place of some intermediate value:
# Adam has the longest chain (12 operations and 6 scalars that were rounded to the element type).
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


# A tensor's states that are numbers: counted and multiplied in the host's or the kernel's doubles.
SCALARS = ("step", "mu_product", "beta1_product", "weight_sum", "lr_max")

Array = npt.NDArray[np.float64]
Rule = Callable[..., tuple[Array, dict[str, Any]]]


def sensitivity(
    rule: Rule,
    param: Array,
    grad: Array,
    state: dict[str, Any],
    options: dict[str, Any],
    compute: torch.dtype,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What a reference makes of one step, and the scale of each result for :func:`bound`.

    Every rounding of a step is as good as a small relative change of something that went into it:
    of the parameter, the gradient, a state, the rate or the decay. So the scale is how far the
    results move, per unit, when each of these moves by the units allowed to a step. For sums this
    is the sum of their terms' sizes; it also knows how far a quotient by the root of a small square
    is thrown off (coupled decay that cancels the gradient, RMSprop's difference of squares), and
    where Lion's sign hangs on the last digit. An average computed as ``m + (g - m) * (1 - beta)``
    rounds ``g - m``, which is as good as a change of beta1 itself, not of its part in the result:
    at beta1 = 0 none of the old average is left, but its rounding is.

    Returns:
        Results, and their scales: "param" and the states after the step, numbers left out.
    """
    inside = _COMPUTES_IN.get(compute, compute)
    change = _UNITS_PER_STEP[inside] * torch.finfo(inside).eps
    up = 1.0 + change
    moved: list[tuple[Array, Array, dict[str, Any], dict[str, Any]]] = [
        (param * up, grad, state, options),
        (param, grad * up, state, options),
        (param, grad, state, options | {"lr": options["lr"] * up}),
        (param, grad, state, options | {"weight_decay": options["weight_decay"] * up}),
    ]
    tensors = state.keys() - set(SCALARS)
    moved += [(param, grad, state | {name: state[name] * up}, options) for name in tensors]
    if "betas" in options:
        betas = (options["betas"][0] + change, options["betas"][1])
        moved.append((param, grad, state, options | {"betas": betas}))

    def results(value: Array, gradient: Array, before: Any, hypers: Any) -> dict[str, Array]:
        new, after = rule(value, gradient, before, **hypers)
        return {"param": new} | {k: v for k, v in after.items() if k not in SCALARS}

    expected = results(param, grad, state, options)
    scales = {name: np.abs(value) for name, value in expected.items()}
    for inputs in moved:
        for name, value in results(*inputs).items():
            scales[name] = scales[name] + np.abs(value - expected[name]) / change
    return expected, scales


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
