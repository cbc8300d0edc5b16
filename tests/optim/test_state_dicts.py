"""Checkpoints: torch's state dict in both directions, copies, and resumed runs bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from checkpoints import assert_identical, params_of, saved, train
from torch import Tensor

from lrfast import schedules
from lrfast.schedules import Schedule

STEPS = 5


def draw(optimizer: Any, steps: int = STEPS) -> list[list[Tensor]]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [[random_grad(p) for p in params] for _ in range(steps)]


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_a_torch_run_continues_in_ours(case: OptimizerCase, device: torch.device) -> None:
    others = parameters(torch.float64, device)
    theirs = case.theirs(case.groups(others), **case.options, foreach=False)
    train(theirs, draw(theirs))
    ours = case.ours(case.groups(twins(others)), **case.options)
    ours.load_state_dict(saved(theirs.state_dict()))
    grads = draw(theirs)
    train(ours, grads)
    train(theirs, grads)
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_our_run_continues_in_torchs(case: OptimizerCase, device: torch.device) -> None:
    """Also one with a schedule, whose entry torch ignores; the rate is then torch's business."""
    params = parameters(torch.float64, device)
    ours = case.ours(case.groups(params), **case.options)
    ours.set_schedule(schedules.constant())
    train(ours, draw(ours))
    theirs = case.theirs(case.groups(twins(params)), **case.options, foreach=False)
    theirs.load_state_dict(saved(ours.state_dict()))
    grads = draw(theirs)
    train(ours, grads)
    train(theirs, grads)
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_torch_states_with_the_gradients_strides(case: OptimizerCase) -> None:
    """torch's momentum buffer is a copy of the first gradient, strides included."""
    param = torch.nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    (other,) = twins([param])
    theirs = case.theirs([other], **case.options, foreach=False)
    grads = [torch.randn(4, 6, dtype=torch.float64).t() for _ in range(STEPS)]
    for grad in grads:
        other.grad = grad.clone(memory_format=torch.preserve_format)
        theirs.step()
    ours = case.ours([param], **case.options)
    param.data.copy_(other.data)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for grad in grads:
        param.grad, other.grad = grad, grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", [int, float])
def test_steps_as_python_numbers(number: Callable[[float], float]) -> None:
    """As checkpoints of torch before 1.12 hold them."""
    case = next(c for c in OPTIMIZERS if c.name == "adamw-amsgrad")
    theirs = case.theirs(parameters(torch.float64), **case.options, foreach=False)
    train(theirs, draw(theirs))
    old = copy.deepcopy(theirs.state_dict())
    for state in old["state"].values():
        state["step"] = number(state["step"].item())
    ours = case.ours(twins(params_of(theirs)), **case.options)
    ours.load_state_dict(old)
    grads = draw(theirs)
    train(ours, grads)
    train(theirs, grads)
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=by_name)
@pytest.mark.parametrize("at", [0, 1, 7, 29, 45])
@pytest.mark.parametrize("momentum", [None, (0.95, 0.85)], ids=["rates", "momentum"])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_resumed_run_is_the_uninterrupted_one(
    case: OptimizerCase,
    momentum: tuple[float, float] | None,
    at: int,
    dtype: torch.dtype,
) -> None:
    schedule = schedules.one_cycle(30, momentum=momentum)
    params = [torch.nn.Parameter(torch.randn(n, 3).to(dtype)) for n in (1, 40)]
    run = case.ours(params, **case.options, schedule=schedule)
    train(run, draw(run, at))
    resumed = case.ours(twins(params), **case.options)
    resumed.load_state_dict(saved(run.state_dict()))
    assert resumed.schedule_step == at
    grads = draw(run, 10)
    train(run, grads)
    train(resumed, grads)
    assert_identical(run, resumed)
    assert torch.equal(run.last_rates, resumed.last_rates)


def duplicate(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer)


def unpickle(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def mixed_schedules(groups: int) -> list[Schedule | None]:
    cycle = schedules.one_cycle(20)
    return [cycle, None, schedules.cosine(9).then(cycle)][:groups]


@pytest.mark.parametrize("again", [duplicate, unpickle])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_copies_go_on_alike_and_apart(case: OptimizerCase, again: Callable[[Any], Any]) -> None:
    params = [torch.nn.Parameter(torch.randn(5)) for _ in range(3)]
    optimizer = case.ours(case.groups(params), **case.options, schedule=mixed_schedules(3))
    train(optimizer, draw(optimizer))
    other = again(optimizer)
    assert_identical(optimizer, other)
    grads = draw(optimizer)
    train(other, grads)
    assert optimizer.schedule_step == STEPS and other.schedule_step == 2 * STEPS
    train(optimizer, grads)
    assert_identical(optimizer, other)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_copies_before_the_first_step(case: OptimizerCase) -> None:
    optimizer = case.ours([torch.nn.Parameter(torch.randn(5))], **case.options)
    optimizer.set_schedule(schedules.one_cycle(20))
    other = duplicate(optimizer)
    grads = draw(optimizer)
    train(optimizer, grads)
    train(other, grads)
    assert_identical(optimizer, other)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_copy_after_the_schedule_was_detached(case: OptimizerCase) -> None:
    """What a run does next must not depend on whether it was saved and loaded."""
    optimizer = case.ours([torch.nn.Parameter(torch.randn(5))], **case.options)
    optimizer.set_schedule(schedules.one_cycle(20))
    train(optimizer, draw(optimizer))
    optimizer.set_schedule(None)
    other = duplicate(optimizer)
    grads = draw(optimizer)
    train(optimizer, grads)
    train(other, grads)
    assert_identical(optimizer, other)


def test_a_checkpoint_without_a_schedule_leaves_ours() -> None:
    case = STATEFUL[1]
    source = case.ours([torch.nn.Parameter(torch.randn(5))], **case.options)
    train(source, draw(source))
    assert "lrfast" not in source.state_dict()
    optimizer = case.ours(twins(params_of(source)), **case.options)
    optimizer.set_schedule(schedules.linear(0.5, 1.0, 10))
    optimizer.load_state_dict(source.state_dict())
    train(optimizer, draw(optimizer, 1))
    assert optimizer.last_rates.tolist() == [case.options["lr"] * 0.5]


def test_states_can_be_reset() -> None:
    """optimizer.state.clear() makes every parameter new again, as in torch."""
    for case in STATEFUL:
        param = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
        ours = case.ours([param], **case.options)
        other = twins([param])
        theirs = case.theirs(other, **case.options, foreach=False)
        for _ in range(2):
            grads = draw(ours)
            train(ours, grads)
            train(theirs, grads)
            torch.testing.assert_close(param, other[0], rtol=1e-12, atol=1e-12)
            ours.state.clear()
            theirs.state.clear()


@pytest.mark.parametrize("case", STATEFUL, ids=lambda case: case.name)
def test_replaced_state_entries_are_used(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    ours = case.ours([param], **case.options)
    other = twins([param])
    theirs = case.theirs(other, **case.options, foreach=False)
    for step in range(6):
        grads = draw(ours)
        for optimizer in (ours, theirs):
            train(optimizer, grads)
            if step == 2:
                for state in optimizer.state.values():
                    halved = {name: 0.5 * value for name, value in state.items() if value.dim()}
                    state.update(halved)
    torch.testing.assert_close(param, other[0], rtol=1e-12, atol=1e-12)


def test_a_hook_behind_loading_sees_everything_loaded() -> None:
    case = STATEFUL[0]
    source = case.ours([torch.nn.Parameter(torch.randn(5))], **case.options)
    source.set_schedule(schedules.one_cycle(20))
    train(source, draw(source, 3))
    optimizer = case.ours(twins(params_of(source)), **case.options)
    seen: list[int] = []
    optimizer.register_load_state_dict_post_hook(lambda loaded: seen.append(loaded.schedule_step))
    optimizer.load_state_dict(source.state_dict())
    assert seen == [3] and len(optimizer._optimizer_load_state_dict_post_hooks) == 1


@pytest.mark.parametrize("other", STATEFUL, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_state_dict_of_another_rule_is_refused_whole(
    case: OptimizerCase, other: OptimizerCase
) -> None:
    source = other.ours([torch.nn.Parameter(torch.randn(5))], **other.options)
    train(source, draw(source, 2))
    optimizer = case.ours([torch.nn.Parameter(torch.randn(5))], **case.options)
    twin = duplicate(optimizer)
    grads = draw(optimizer, 2)
    for run in (optimizer, twin):
        train(run, grads)
    if optimizer._rule == source._rule:
        optimizer.load_state_dict(source.state_dict())
        return
    with pytest.raises(
        ValueError, match=r"must be of the same rule: its (param_groups|state)\[0\]"
    ):
        optimizer.load_state_dict(source.state_dict())
    more = draw(optimizer, 2)
    for run in (optimizer, twin):
        train(run, more)
    assert_identical(optimizer, twin)
