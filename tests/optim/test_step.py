"""The fused optimizers compute what the references and torch.optim compute, on every row.

Each step is checked by itself, from the state that our optimizer was in before it, to a few units
in the last place; and whole runs are compared, under the looser bound that errors may travel.
"""

from __future__ import annotations

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
from steps import check_step, copied, expectation, group_of
from tolerance import SCALARS, assert_close

import lrfast


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_every_step_is_the_references(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    params = parameters(dtype, device)
    optimizer = case.ours(case.groups(params), **case.options)
    for _ in range(7):  # RAdam is rectified from the sixth on
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
        before = [copied(p, ours.state.get(p, {})) for p in params]
        ours.step()
        theirs.step()
        for was, param, other in zip(before, params, others, strict=True):
            state, twin_state = ours.state.get(param, {}), theirs.state[other]
            scale = 2 * torch.as_tensor(expectation(case, ours, param, was)[1]["param"])
            assert_close(param.detach().cpu(), other.detach().cpu(), scale, param.dtype, case.name)
            other.data.copy_(param)
            for name, value in state.items():
                twin_state[name].copy_(value)


# By default one row of each optimizer; all rows make 20 steps against the references above.
FIRST = {case.ours: case for case in reversed(OPTIMIZERS)}


@pytest.mark.parametrize(
    ("case", "dtype", "rtol"),
    [
        *(
            pytest.param(
                *(case, torch.float64, 1e-12),
                marks=[] if FIRST[case.ours] is case else pytest.mark.full,
            )
            for case in OPTIMIZERS
        ),
        *(pytest.param(case, torch.float32, 2e-4, marks=pytest.mark.full) for case in STATEFUL),
    ],
    ids=by_name,
)
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
            pull = 1.0 if group_of(ours, param).get("maximize") else -1.0
            param.grad = 0.3 * random_grad(param) + pull * (1.0 - param.detach())
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        if case.ours is lrfast.Lion and dtype == torch.float32:
            # Where momentum and gradient cancel, the last digit decides the sign: once in 1e7.
            inside = torch.isclose(param, other, rtol=rtol, atol=rtol)
            assert int((~inside).sum()) <= 3
        else:
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
    tensors = [v for k, v in optimizer.state[param].items() if k not in SCALARS]
    assert tensors and all(value.dtype == torch.float32 for value in tensors)
    again = case.ours([param], **case.options)
    again.load_state_dict(optimizer.state_dict())
    assert all(v.dtype == torch.float32 for v in again.state[param].values() if v.dim())


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
    """Zero, tiny, huge, infinite and NaN gradients end where torch's do, with one exception.

    A centered RMSprop's variance is infinity less infinity where a square overflows, unless a
    compiler fuses multiplication and subtraction, as torch's does.
    """
    special = torch.tensor([0.0, -0.0, 1e-45, 1e-30, -1e30, 3e38, np.inf, -np.inf, np.nan])
    param = torch.nn.Parameter(torch.ones(len(special)))
    other = torch.nn.Parameter(torch.ones(len(special)))
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    for _ in range(3):
        param.grad = special.clone()
        other.grad = special.clone()
        ours.step()
        theirs.step()
    expected = other.detach().clone()
    if case.options.get("centered"):
        expected[special.square().isinf()] = torch.nan
    torch.testing.assert_close(param.detach(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_variance_that_comes_out_negative_counts_as_zero(device: torch.device) -> None:
    """A mean and a mean of squares are rounded, or loaded, one by one; torch gets NaN."""
    param = torch.zeros(70, device=device, requires_grad=True)
    param.grad = torch.full_like(param, 1.1)
    optimizer = lrfast.RMSprop([param], lr=0.1, alpha=0.99, eps=0.5, centered=True)
    optimizer.step()
    optimizer.state[param]["square_avg"].fill_(1.0)
    optimizer.state[param]["grad_avg"].fill_(1.1)
    before = param.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - param.detach(), torch.full_like(before, 0.1 * 1.1 / 0.5))
