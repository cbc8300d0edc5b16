"""The fused optimizers compute what the references and torch.optim compute, on every row.

Each step is checked by itself, from the state that our optimizer was in before it, to a few units
in the last place; and whole runs are compared, under the looser bound that errors may travel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    HALF_DTYPES,
    OPTIMIZERS,
    STATEFUL,
    OptimizerCase,
    by_name,
    parameters,
    random_grad,
    twins,
    values,
)
from tolerance import assert_close
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


def scale_of(param: Tensor, grad: Tensor, before: Before, after: Before, lr: float) -> Tensor:
    """Sum of the sizes of what a parameter's update adds up; Adam's direction counts as 1."""
    size = torch.ones_like(param) + grad.abs() + param.abs()
    for states in (before, after):
        if "momentum_buffer" in states:
            size += torch.as_tensor(states["momentum_buffer"]).abs()
    return param.abs() + lr * size


def check_step(case: OptimizerCase, optimizer: Any, was: dict[Tensor, Any]) -> None:
    """Compare what a step made of every parameter with what the reference makes of it."""
    for param, (value, state) in was.items():
        group = group_of(optimizer, param)
        options = case.hypers(group)
        assert param.grad is not None
        grad = param.grad.double().cpu()
        given = {k: v.numpy() if k != "step" else float(v) for k, v in state.items()}
        expected, after = case.rule(value.numpy(), grad.numpy(), given, **options)
        scale = scale_of(value, grad, state, after, options["lr"])
        what = f"{case.name} {param.dtype} {tuple(param.shape)}"
        assert_close(param.detach().cpu(), torch.as_tensor(expected), scale, param.dtype, what)
        for name, new in optimizer.state[param].items():
            if name == "step":
                assert new.item() == after["step"], what
                continue
            if new is None:
                continue
            wanted = torch.as_tensor(after[name])
            size = wanted.abs() + state.get(name, wanted).abs()
            if name == "momentum_buffer":  # decay and gradient may cancel
                size = size + grad.abs() + value.abs()
            assert_close(new.cpu(), wanted, size, param.dtype, f"{what} {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_every_step_is_the_references(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    params = parameters(dtype, device)
    optimizer = case.ours(case.groups(params), **case.options)
    for _ in range(5):
        for param in params:
            param.grad = random_grad(param)
        was = {p: copied(p, optimizer.state.get(p, {})) for p in params if p.numel()}
        optimizer.step()
        check_step(case, optimizer, was)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_every_step_is_torchs_in_float32(case: OptimizerCase, device: torch.device) -> None:
    """One step from the same state: torch rounds elsewhere, so both bounds add up."""
    params = [torch.nn.Parameter(values(torch.float32, device)(4097)) for _ in range(3)]
    ours = case.ours(case.groups(params), **case.options)
    others = twins(params)
    theirs = case.theirs(case.groups(others), **case.options, foreach=False)
    for _ in range(20):
        for param, other in zip(params, others, strict=True):
            param.grad = random_grad(param)
            other.grad = param.grad.clone()
        before = [p.detach().double().cpu() for p in params]
        ours.step()
        theirs.step()
        for was, param, other in zip(before, params, others, strict=True):
            state, twin_state = ours.state.get(param, {}), theirs.state[other]
            lr = group_of(ours, param)["lr"]
            assert param.grad is not None
            scale = 2 * scale_of(was, param.grad.double().cpu(), copied(param, state)[1], {}, lr)
            assert_close(param.detach().cpu(), other.detach().cpu(), scale, param.dtype, case.name)
            other.data.copy_(param)
            for name, value in state.items():
                twin_state[name].copy_(value)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-4), (torch.float64, 1e-12)])
def test_hundred_steps_follow_torch(
    case: OptimizerCase, dtype: torch.dtype, rtol: float, device: torch.device
) -> None:
    """float32: 100 steps of 8 units of 1.2e-7 are 1e-4; as much again for torch's roundings."""
    params = parameters(dtype, device)
    others = twins(params)
    ours = case.ours(case.groups(params), **case.options)
    theirs = case.theirs(case.groups(others), **case.options, foreach=False)
    for _ in range(100):
        for param, other in zip(params, others, strict=True):
            # The pull towards 1 keeps the run near where it can be compared.
            pull = 1.0 if group_of(ours, param)["maximize"] else -1.0
            param.grad = 0.3 * random_grad(param) + pull * (1.0 - param.detach())
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=rtol, atol=rtol)
        for name, value in theirs.state[other].items():
            if value is not None and param.numel():
                torch.testing.assert_close(
                    ours.state[param][name], value, rtol=rtol, atol=rtol, check_device=False
                )


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_half_steps_are_near_torchs(case: OptimizerCase, dtype: torch.dtype) -> None:
    """torch rounds after every operation, we at the end: equal to some units of the half type."""
    params = [torch.nn.Parameter(values(dtype)(1000)) for _ in range(3)]
    others = twins(params)
    ours = case.ours(case.groups(params), **case.options)
    theirs = case.theirs(case.groups(others), **case.options, foreach=False)
    for _ in range(10):
        for param, other in zip(params, others, strict=True):
            param.grad = random_grad(param)
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    # Half a unit per step and operation. In float16 small squares of gradients are subnormal or
    # zero to torch, so that a few of AdamW's updates are off by their whole size.
    tolerance = 16 * torch.finfo(dtype).eps
    for param, other in zip(params, others, strict=True):
        inside = torch.isclose(param, other, rtol=tolerance, atol=tolerance)
        assert inside.double().mean() > 0.99


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_all_dtypes_in_one_optimizer(case: OptimizerCase, device: torch.device) -> None:
    """Also in one group: a dtype is a row's matter, not a launch's."""
    params = [
        torch.nn.Parameter(values(dtype, device)(size)) for size in (5, 4097) for dtype in DTYPES
    ]
    optimizer = case.ours(params, **case.options)
    for _ in range(5):
        for param in params:
            param.grad = random_grad(param)
        was = {p: copied(p, optimizer.state.get(p, {})) for p in params}
        optimizer.step()
        check_step(case, optimizer, was)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_float32_states_of_half_parameters_stay_float32(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    """As a checkpoint of float32 training brings them; torch would cast them down on loading."""
    wide = torch.nn.Parameter(values(torch.float32, device)(4097))
    first = case.theirs([wide], **case.options)
    wide.grad = random_grad(wide)
    first.step()
    param = torch.nn.Parameter(wide.detach().to(dtype))
    optimizer = case.ours([param], **case.options)
    optimizer.load_state_dict(first.state_dict())
    for name, value in first.state[wide].items():
        assert torch.equal(optimizer.state[param][name].cpu(), value.cpu())
    for _ in range(5):
        param.grad = random_grad(param)
        was = {param: copied(param, optimizer.state[param])}
        optimizer.step()
        check_step(case, optimizer, was)
    tensors = [v for k, v in optimizer.state[param].items() if k != "step"]
    assert tensors and all(value.dtype == torch.float32 for value in tensors)
    again = case.ours([param], **case.options)
    again.load_state_dict(optimizer.state_dict())
    assert all(v.dtype == torch.float32 for v in again.state[param].values())


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=by_name)
def test_amsgrad_can_be_turned_on_with_float32_states(dtype: torch.dtype) -> None:
    """The state that is new then must go with those that are there."""
    case = next(c for c in STATEFUL if "amsgrad" in c.options)
    options = {**case.options, "amsgrad": False}
    wide = torch.nn.Parameter(values(torch.float32)(9))
    source = case.ours([wide], **options)
    wide.grad = random_grad(wide)
    source.step()
    param = torch.nn.Parameter(wide.detach().to(dtype))
    optimizer = case.ours([param], **options)
    optimizer.load_state_dict(source.state_dict())
    optimizer.param_groups[0]["amsgrad"] = True
    param.grad = random_grad(param)
    was = {param: copied(param, optimizer.state[param])}
    optimizer.step()
    check_step(case, optimizer, was)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_extreme_gradients_are_torchs(case: OptimizerCase) -> None:
    """Zero, tiny, huge, infinite and NaN gradients end where torch's do."""
    special = [0.0, -0.0, 1e-45, 1e-30, -1e30, 3e38, np.inf, -np.inf, np.nan]
    param = torch.nn.Parameter(torch.ones(len(special)))
    other = torch.nn.Parameter(torch.ones(len(special)))
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    for _ in range(3):
        param.grad = torch.tensor(special)
        other.grad = torch.tensor(special)
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6, equal_nan=True)
