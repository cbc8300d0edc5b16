"""Single optimizer steps against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    OptimizerCase,
    values,
)
from tolerance import SCALARS, assert_close, sensitivity
from torch import Tensor

Before = dict[str, Any]


def group_of(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Any]:
    return next(
        group for group in optimizer.param_groups if any(p is param for p in group["params"])
    )


def copied(param: Tensor, state: dict[str, Any]) -> tuple[Tensor, Before]:
    """Float64 copies of a parameter and its states, before a step."""
    tensors = {k: v.detach().double().cpu().clone() for k, v in state.items() if v is not None}
    return param.detach().double().cpu().clone(), tensors


def expectation(
    case: OptimizerCase, optimizer: Any, param: Tensor, was: tuple[Tensor, Before]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the reference makes of a parameter and its states before a step, and the scales."""
    value, state = was
    assert param.grad is not None
    given = {k: float(v) if k in SCALARS else v.numpy() for k, v in state.items()}
    grad = param.grad.double().cpu().numpy()
    options = case.hypers(group_of(optimizer, param))
    return sensitivity(case.rule, value.numpy(), grad, given, options, param.dtype)


def check_numbers(case: OptimizerCase, optimizer: Any, param: Tensor, before: Before) -> None:
    """The count, and the product of momenta, which the kernel multiplies in float64."""
    state, group = optimizer.state[param], case.hypers(group_of(optimizer, param))
    given = {k: float(v) for k, v in before.items() if k in SCALARS}
    value = np.ones(1)
    _, after = case.rule(value, value, given, **group)
    for name in SCALARS:
        if name in state:
            assert state[name].item() == pytest.approx(after[name], rel=1e-12), (case.name, name)


def check_step(case: OptimizerCase, optimizer: Any, was: dict[Tensor, Any]) -> None:
    """Compare what a step made of every parameter with what the reference makes of it."""
    for param, (value, before) in was.items():
        expected, scales = expectation(case, optimizer, param, (value, before))
        check_numbers(case, optimizer, param, before)
        results = {k: v for k, v in optimizer.state[param].items() if k not in SCALARS}
        for name, actual in {"param": param.detach(), **results}.items():
            if actual is not None:
                what = f"{case.name} {param.dtype} {tuple(param.shape)} {name}"
                wanted, scale = (torch.as_tensor(t[name]) for t in (expected, scales))
                assert_close(actual.cpu(), wanted, scale, param.dtype, what)


def new_parameters(device: torch.device | str, count: int = 1, size: int = 12) -> list[Tensor]:
    return [torch.nn.Parameter(values(torch.float64, device)(size)) for _ in range(count)]


def step_with(optimizers: tuple[Any, ...], grads: list[Tensor]) -> None:
    """One step of every optimizer, with the same gradients."""
    for optimizer in optimizers:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
