"""Groups are data: added, frozen, split and changed in mid-training, by any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    OPTIMIZERS,
    STATEFUL,
    OptimizerCase,
    by_name,
    parameters,
    random_grad,
    twins,
    values,
)
from torch import Tensor

import lrfast
from lrfast import schedules


def set_grads(params: list[Tensor]) -> None:
    for param in params:
        param.grad = random_grad(param)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def states_of(optimizer: Any, params: list[Tensor]) -> list[Tensor]:
    return [optimizer.state[p][name] for p in params for name in sorted(optimizer.state[p])]


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_group_added_in_mid_training(case: OptimizerCase, device: torch.device) -> None:
    params = [torch.nn.Parameter(values(torch.float64, device)(30)) for _ in range(4)]
    others = twins(params)
    pairs = []
    for cls, tensors in ((case.ours, params), (case.theirs, others)):
        pairs.append((cls(tensors[:2], **case.options), tensors))
    for step in range(10):
        for optimizer, tensors in pairs:
            if step == 4:
                optimizer.add_param_group({"params": tensors[2:], "lr": 0.3, "weight_decay": 0.2})
        set_grads(params)
        for param, other in zip(params, others, strict=True):
            assert param.grad is not None
            other.grad = param.grad.clone()
        for optimizer, _ in pairs:
            optimizer.step()
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


def test_an_added_group_keeps_the_others_schedule(device: torch.device) -> None:
    """The schedule's step survives the new plan; the new group has no schedule yet."""
    params = [torch.nn.Parameter(torch.ones(3, device=device)) for _ in range(2)]
    schedule = schedules.linear(0.0, 1.0, 10)
    optimizer = STATEFUL[0].ours(params[:1], lr=1.0, schedule=schedule)
    for step in range(6):
        if step == 3:
            optimizer.add_param_group({"params": params[1:], "lr": 0.25})
        set_grads(params)
        optimizer.step()
        wanted = [schedule.at(step)] + ([0.25] if step >= 3 else [])
        assert optimizer.last_rates.tolist() == wanted
    assert optimizer.get_last_lr() == [schedule.at(6), 0.25]


def test_a_change_of_plan_is_rare() -> None:
    """New gradients, rates and frozen groups need none; another group or parameter does."""
    for case in STATEFUL:
        params = parameters(torch.float32)
        optimizer = case.ours(case.groups(params), **case.options)
        for step in range(10):
            optimizer.zero_grad()
            set_grads(params)
            optimizer.param_groups[0]["lr"] = 0.01 * step
            optimizer.param_groups[1]["frozen"] = step % 2 == 0
            optimizer.step()
            assert optimizer._engine.rebuilds == 1
        optimizer.set_schedule(schedules.one_cycle(10))
        optimizer.step()
        assert optimizer._engine.rebuilds == 1
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        optimizer.step()
        optimizer.step()
        assert optimizer._engine.rebuilds == 2
        optimizer.param_groups[-1]["params"].append(torch.nn.Parameter(torch.ones(2)))
        optimizer.step()
        assert optimizer._engine.rebuilds == 3


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_removed_and_a_moved_parameter(case: OptimizerCase) -> None:
    """States follow the parameter from group to group, even where the order stays the same."""
    params = [torch.nn.Parameter(values(torch.float64)(5)) for _ in range(4)]
    others = twins(params)
    ours = case.ours([{"params": params[:3]}, {"params": params[3:]}], **case.options)
    theirs = case.theirs([{"params": others[:3]}, {"params": others[3:]}], **case.options)
    for step in range(9):
        for optimizer in (ours, theirs):
            first, second = (group["params"] for group in optimizer.param_groups)
            if step == 3:
                second.insert(0, first.pop())
                optimizer.param_groups[1]["lr"] = 0.001
            if step == 6:
                first.pop()
        set_grads(params)
        for param, other in zip(params, others, strict=True):
            assert param.grad is not None
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_frozen_group_stays_as_it_is(case: OptimizerCase, device: torch.device) -> None:
    """Parameters, states and counts; the other groups train, and a thaw continues as if no step
    had been taken in between."""
    params = [torch.nn.Parameter(values(torch.float64, device)(30)) for _ in range(2)]
    others = twins(params)
    grouped = [[{"params": [p]} for p in tensors] for tensors in (params, others)]
    ours = case.ours(grouped[0], **case.options)
    theirs = case.theirs(grouped[1], **case.options, foreach=False)
    for step in range(9):
        frozen = 3 <= step < 6
        ours.param_groups[1]["frozen"] = frozen
        set_grads(params)
        before = copies([params[1], *states_of(ours, params[1:])])
        for param, other in zip(params, others, strict=True):
            assert param.grad is not None
            other.grad = param.grad.clone()
        if frozen:
            others[1].grad = None
        ours.step()
        theirs.step()
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)
        assert frozen == all_equal(before, [params[1], *states_of(ours, params[1:])])


def test_a_group_frozen_from_the_start_gets_no_states() -> None:
    case = STATEFUL[1]
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = case.ours([{"params": [param], "frozen": True}], **case.options)
    set_grads([param])
    optimizer.step()
    assert torch.equal(param, torch.ones(3)) and len(optimizer.state) == 0
    optimizer.param_groups[0]["frozen"] = False
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 1


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float32) for case in OPTIMIZERS),
        *((case, dtype) for case in STATEFUL for dtype in DTYPES if dtype != torch.float32),
    ],
    ids=by_name,
)
def test_threads_do_not_change_a_bit(case: OptimizerCase, dtype: torch.dtype) -> None:
    """Large and small tensors together, so that threads share tensors and take whole ones."""
    start = [torch.nn.Parameter(values(dtype)(n)) for n in (65537, 1, 50000, 300, 17, 0, 40001)]
    grads = [random_grad(p) for p in start]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = twins(start)
        optimizer = case.ours(case.groups(params), **case.options)
        for _ in range(2):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
        results.append(copies(params) + copies(states_of(optimizer, params)))
    assert all_equal(results[0], results[1]) and all_equal(results[0], results[2])


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_grouping_does_not_change_a_bit(case: OptimizerCase, device: torch.device) -> None:
    """One group, one group each, or half and half: the same hyperparameters, the same bits."""
    start = parameters(torch.float32, device)
    rounds = [[random_grad(p) for p in start] for _ in range(4)]
    results = []
    for size in (1, 4, len(start)):
        params = twins(start)
        parts = [params[i : i + size] for i in range(0, len(params), size)]
        optimizer = case.ours([{"params": part} for part in parts], **case.options)
        for grads in rounds:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
        results.append(copies(params))
    assert all_equal(results[0], results[1]) and all_equal(results[0], results[2])


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_every_hyperparameter_may_change_between_steps(case: OptimizerCase) -> None:
    """In another object, in the same list, in a tensor: torch's next step honours it, ours too."""
    param = torch.nn.Parameter(values(torch.float64)(30))
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options, foreach=False)
    changes: list[dict[str, Any]] = [{"lr": 0.07}, {"weight_decay": 0.3}, {"maximize": True}]
    others: list[dict[str, Any]] = [
        {"betas": [0.5, 0.9]},
        {"eps": 0.1},
        {"amsgrad": False},
        {"amsgrad": True},
        {"decoupled_weight_decay": True},
        {"momentum_decay": 0.01},
        {"momentum": 0.0},
        {"momentum": 0.6},
        {"dampening": 0.0},
        {"nesterov": True},
        {"alpha": 0.8},
        {"rho": 0.8},
        {"centered": False},
        {"lr_decay": 0.5},
    ]
    names = case.hypers(ours.param_groups[0]).keys()
    if "amsgrad" not in case.options:
        names -= {"amsgrad"}  # torch makes its state at a parameter's first step or never
    changes += [change for change in others if change.keys() <= names]
    for change in changes:
        for _ in range(2):
            for optimizer in (ours, theirs):
                optimizer.param_groups[0].update(change)
            set_grads([param])
            other.grad = param.grad.clone() if param.grad is not None else None
            ours.step()
            theirs.step()
            torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)
        if "betas" in change:
            change["betas"][0] = 0.6


def test_momentum_that_starts_late_is_not_dampened_at_first() -> None:
    case = STATEFUL[0]
    options = {**case.options, "momentum": 0.0}
    param = torch.nn.Parameter(values(torch.float64)(30))
    (other,) = twins([param])
    ours, theirs = case.ours([param], **options), case.theirs([other], **options)
    for step in range(8):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["momentum"] = 0.9 if step in (2, 3, 6, 7) else 0.0
        set_grads([param])
        other.grad = param.grad.clone() if param.grad is not None else None
        ours.step()
        theirs.step()
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


def test_a_tensor_rate_stays_the_users() -> None:
    """torch: "to change a tensor lr, fill it"; it must be the same tensor then."""
    rate = torch.tensor(0.5, dtype=torch.float64)
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = STATEFUL[0].ours([param], lr=rate)
    assert optimizer.param_groups[0]["lr"] is rate
    for value in (0.5, 0.25):
        rate.fill_(value)
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert optimizer.last_rates.tolist() == [value]
    assert param.item() == -0.75


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_parameter_replaced_with_its_states(case: OptimizerCase) -> None:
    """As programs do that grow or prune a parameter: a new object, its states cut and moved."""
    (param,) = (torch.nn.Parameter(values(torch.float64)(10)),)
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options)
    for size in (10, 7, 4):
        tensors = []
        for optimizer in (ours, theirs):
            group = optimizer.param_groups[0]
            old = group["params"][0]
            states = optimizer.state.pop(old, {})
            new = torch.nn.Parameter(old.detach()[:size].clone())
            if states:
                optimizer.state[new] = {k: v[:size] if v.dim() else v for k, v in states.items()}
            group["params"][0] = new
            tensors.append(new)
        for _ in range(3):
            tensors[0].grad = random_grad(tensors[0])
            tensors[1].grad = tensors[0].grad.clone()
            ours.step()
            theirs.step()
            torch.testing.assert_close(*tensors, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
def test_a_refused_group_loses_nothing(first: bool) -> None:
    """Once the parameter that cannot be trained is gone again, training goes on where it was."""
    case = STATEFUL[0]
    param = torch.nn.Parameter(values(torch.float64)(5))
    (other,) = twins([param])
    schedule = schedules.linear(1.0, 0.0, 20)
    ours = case.ours([param], **case.options, schedule=schedule)
    theirs = case.theirs([other], **case.options)
    for step in range(8):
        if step == 4:
            refused = torch.ones(2, dtype=torch.int32)
            refused.grad = torch.ones(2, dtype=torch.int32)
            group = {**ours.param_groups[0], "params": [refused]}
            ours.param_groups.insert(0 if first else 1, group)
            with pytest.raises(TypeError, match="complex128, got Int"):
                ours.step()
            ours.param_groups.pop(0 if first else 1)
        theirs.param_groups[0]["lr"] = case.options["lr"] * schedule.at(step)
        set_grads([param])
        other.grad = param.grad.clone() if param.grad is not None else None
        ours.step()
        theirs.step()
        assert ours.schedule_step == step + 1
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


def test_a_list_of_betas_may_change_in_place() -> None:
    """The param group, a dict, does not know: its version stays."""
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    listed, other = (lrfast.AdamW([param], lr=0.1, betas=(0.9, 0.99)) for param in params)
    betas = [0.9, 0.99]
    listed.param_groups[0]["betas"] = betas
    for step in range(4):
        if step == 2:
            betas[0] = 0.2
            other.param_groups[0]["betas"] = (0.2, 0.99)
        for param in params:
            param.grad = torch.linspace(-1, 2, 5) * (step - 1.5)
        listed.step()
        other.step()
    assert torch.equal(*params)
