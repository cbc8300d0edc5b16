"""The float64 references of the optimizers are what torch.optim computes, on every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import OPTIMIZERS, OptimizerCase, by_name

STEPS = 30


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_reference_is_torch(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    ours, state = param.detach().numpy().copy(), dict[str, Any]()
    optimizer = case.theirs([param], **case.options, foreach=False)
    for _ in range(STEPS):
        param.grad = torch.randn_like(param)
        ours, state = case.rule(ours, param.grad.numpy(), state, **case.options)
        optimizer.step()
        np.testing.assert_allclose(ours, param.detach().numpy(), rtol=1e-12, atol=1e-14)
    for name, value in optimizer.state[param].items():
        if value is not None:
            np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-12, atol=1e-14)


def test_reference_takes_the_product_of_betas() -> None:
    """With one beta throughout, the product is the power."""
    grad, param = np.array([0.3, -2.0]), np.array([1.0, 2.0])
    plain: tuple[Any, Any] = (param, {})
    product: tuple[Any, Any] = (param, {"beta1_product": 1.0})
    for _ in range(STEPS):
        plain = case_step(plain, grad)
        product = case_step(product, grad)
    np.testing.assert_allclose(plain[0], product[0], rtol=1e-13)
    assert product[1]["beta1_product"] == pytest.approx(0.8**STEPS)


def case_step(current: tuple[Any, Any], grad: Any) -> tuple[Any, Any]:
    case = next(c for c in OPTIMIZERS if c.name == "adamw-plain")
    return case.rule(current[0], grad, current[1], lr=0.1, betas=(0.8, 0.9))
