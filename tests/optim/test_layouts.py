"""Gradients and parameters may come in any layout, move between steps, or stay away for a while."""

from __future__ import annotations

import pytest
import torch
from cases import (
    SHAPES,
    STATEFUL,
    OptimizerCase,
    ShapeCase,
    by_name,
    parameters,
    random_grad,
    twins,
    values,
)
from torch import Tensor

STEPS = 6


def strided_grads(param: Tensor) -> list[Tensor]:
    """The same gradient in several layouts: the parameter's, contiguous, reversed, with gaps."""
    grad = random_grad(param)
    own = torch.empty_like(param).copy_(grad)
    backwards = tuple(reversed(range(grad.dim())))
    gaps = torch.zeros(*grad.shape, 2, dtype=grad.dtype, device=grad.device)[..., 0].copy_(grad)
    expanded = grad.flatten()[:1].expand(grad.numel()).view(grad.shape)
    return [own, grad, grad.permute(backwards).contiguous().permute(backwards), gaps, expanded]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_gradients_of_any_strides(
    case: OptimizerCase, shape: ShapeCase, device: torch.device
) -> None:
    """Several layouts, one after the other: nothing kept from the last one may count."""
    param = torch.nn.Parameter(shape.make(values(torch.float64, device)))
    strides = param.stride()
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    for _ in range(2):
        for grad in strided_grads(param):
            param.grad, other.grad = grad, grad.clone()
            ours.step()
            theirs.step()
            assert_same([param], [other])
            param.grad = None  # its memory may serve the next gradient
    assert param.stride() == strides


def test_gaps_in_memory_are_left_alone(device: torch.device) -> None:
    memory = torch.full((40, 6), 7.0, device=device)
    param = torch.nn.Parameter(memory[::2, 1:5])
    optimizer = STATEFUL[0].ours([param], lr=0.1, momentum=0.9)
    for _ in range(3):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert (param < 7).all()
    assert (memory[1::2] == 7).all() and (memory[:, 0] == 7).all() and (memory[:, 5] == 7).all()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_absent_gradients(case: OptimizerCase, device: torch.device) -> None:
    """A parameter without a gradient keeps value, states and count, as in torch."""
    params = parameters(torch.float64, device)
    others = twins(params)
    ours = case.ours(case.groups(params), **case.options)
    theirs = case.theirs(case.groups(others), **case.options, foreach=False)
    for step in range(12):
        for i, (param, other) in enumerate(zip(params, others, strict=True)):
            has_grad = (step + i) % 3 != 0
            param.grad = random_grad(param) if has_grad else None
            other.grad = None if param.grad is None else param.grad.clone()
        ours.step()
        theirs.step()
        assert_same(params, others)
    for param, other in zip(params, others, strict=True):
        if param.numel() and "step" in theirs.state[other]:
            assert ours.state[param]["step"].item() == theirs.state[other]["step"].item() == 8


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_late_parameter_corrects_its_own_bias(case: OptimizerCase, device: torch.device) -> None:
    """Under one count for all, its first Adam step would be 2.5 times too large."""
    params = [torch.nn.Parameter(values(torch.float64, device)(9)) for _ in range(2)]
    others = twins(params)
    ours = case.ours(params, **case.options)
    theirs = case.theirs(others, **case.options, foreach=False)
    for step in range(30):
        for i, (param, other) in enumerate(zip(params, others, strict=True)):
            if i == 0 or step >= 20:
                param.grad = random_grad(param)
                other.grad = param.grad.clone()
        ours.step()
        theirs.step()
        assert_same(params, others)
    if "step" in ours.state[params[1]]:
        assert [ours.state[p]["step"].item() for p in params] == [30, 10]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_swapped_data(case: OptimizerCase, device: torch.device) -> None:
    """param.data and grad.data may be other memory, of other strides, at every step."""
    param = torch.nn.Parameter(values(torch.float64, device)(6, 10))
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    layouts = [
        lambda t: t.clone(),
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack((t, t), 2)[..., 0],
        lambda t: t.contiguous(),
    ]
    for step in range(STEPS):
        param.data = layouts[step % 4](param.data)
        param.grad = layouts[(step + 1) % 4](random_grad(param))
        other.grad = param.grad.clone()
        ours.step()
        theirs.step()
        assert_same([param], [other])


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_the_same_gradient_object_in_other_memory(case: OptimizerCase) -> None:
    """grad.data = ... keeps the tensor object and changes address and strides."""
    param = torch.nn.Parameter(values(torch.float64)(6, 10))
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    param.grad = random_grad(param)
    for step in range(STEPS):
        fresh = random_grad(param)
        param.grad.data = fresh.t().contiguous().t() if step % 2 else fresh
        other.grad = fresh.clone()
        ours.step()
        theirs.step()
        assert_same([param], [other])


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_the_same_memory_in_other_strides(case: OptimizerCase) -> None:
    """param.data = param.data.t() keeps the address."""
    param = torch.nn.Parameter(values(torch.float64)(5, 5))
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    param.grad = random_grad(param)
    other.grad = param.grad.clone()
    for _ in range(STEPS):
        ours.step()
        theirs.step()
        assert_same([param], [other])
        param.data, other.data = param.data.t(), other.data.t()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_gradients_accumulated_in_place(case: OptimizerCase, device: torch.device) -> None:
    """zero_grad(set_to_none=False) and backward: one gradient tensor throughout."""
    layer = torch.nn.Linear(7, 5, device=device, dtype=torch.float64)
    weight, bias = twins(list(layer.parameters()))
    ours = case.ours(layer.parameters(), **case.options)
    theirs = case.theirs([weight, bias], **case.options, foreach=False)
    for _ in range(STEPS):
        inputs = values(torch.float64, device)(4, 7)
        for optimizer in (ours, theirs):
            optimizer.zero_grad(set_to_none=False)
        layer(inputs).square().sum().backward()
        torch.nn.functional.linear(inputs, weight, bias).square().sum().backward()
        ours.step()
        theirs.step()
        assert_same(list(layer.parameters()), [weight, bias])
