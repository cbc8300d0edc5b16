"""What torch.optim.Optimizer promises besides the update: closures, hooks, arguments, zero_grad."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, random_grad, twins
from torch.optim import optimizer as torch_optimizer

import lrfast
from lrfast import schedules


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_closure_runs_with_grad_and_its_loss_is_returned(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    (other,) = twins([param])
    ours = case.ours([param], **case.options)
    theirs = case.theirs([other], **case.options)

    def closure_of(optimizer: Any, tensor: torch.Tensor) -> Any:
        def closure() -> torch.Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = tensor.square().sum()
            loss.backward()
            return loss

        return closure

    for _ in range(4):
        with torch.no_grad():
            loss = ours.step(closure_of(ours, param))
            wanted = theirs.step(closure_of(theirs, other))
        assert torch.allclose(loss, wanted, rtol=1e-12)
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-13)
    assert ours.step() is None


def test_a_step_leaves_no_graph_and_no_grad_mode_behind() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = lrfast.AdamW([param], lr=0.1)
    param.sum().backward()
    optimizer.step()
    assert torch.is_grad_enabled() and param.is_leaf and param.requires_grad
    assert not any(v.requires_grad for v in optimizer.state[param].values())


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_hooks_run_around_the_step(case: OptimizerCase) -> None:
    """Before and after, of this optimizer and of all, once per step, and removable."""
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = case.ours([param], **case.options)
    param.grad = torch.ones(1)
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> Any:
        return lambda hooked, args, kwargs: seen.append((name, bool(param.detach() != 0)))

    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(note("global pre")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
        torch_optimizer.register_optimizer_step_post_hook(note("global post")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("global pre", False), ("pre", False), ("post", True), ("global post", True)]
    optimizer.step()
    assert len(seen) == 4
    count = optimizer.state[param].get("step", torch.tensor(2.0))
    assert count.item() == 2


@pytest.mark.parametrize("hook", ["pre", "post", "global pre", "global post"])
def test_each_hook_alone_is_enough(hook: str) -> None:
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = lrfast.SGD([param], lr=0.1)
    param.grad = torch.ones(1)
    register = {
        "pre": optimizer.register_step_pre_hook,
        "post": optimizer.register_step_post_hook,
        "global pre": torch_optimizer.register_optimizer_step_pre_hook,
        "global post": torch_optimizer.register_optimizer_step_post_hook,
    }[hook]
    seen: list[str] = []
    handle = register(lambda hooked, args, kwargs: seen.append(hook))
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert seen == [hook]


def test_a_pre_hook_may_change_the_arguments_and_the_closure_is_run_once() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = lrfast.SGD([param], lr=1.0)
    calls: list[int] = []

    def closure() -> float:
        calls.append(1)
        param.grad = torch.ones(2)
        return 3.5

    handle = optimizer.register_step_pre_hook(lambda hooked, args, kwargs: ((args[0], closure), {}))
    assert optimizer.step() == 3.5
    handle.remove()
    assert calls == [1] and param.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_arguments_of_torch_are_accepted(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = case.ours([("weight", param)], **case.options, foreach=True)
    assert isinstance(optimizer, case.in_torch or torch.optim.Optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    param.grad = torch.ones(3)
    optimizer.step()
    if "capturable" in case.ours([param], **case.options).defaults:
        case.ours([param], **case.options, capturable=True).step()


def test_defaults_are_torchs() -> None:
    for case in STATEFUL:
        param = torch.nn.Parameter(torch.ones(1))
        assert case.ours([param]).defaults == case.theirs([param]).defaults


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_states_carry_torchs_names(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    (other,) = twins([param])
    ours, theirs = case.ours([param], **case.options), case.theirs([other], **case.options)
    for tensor, optimizer in ((param, ours), (other, theirs)):
        tensor.grad = torch.ones(3)
        optimizer.step()
    mine, its = ours.state_dict(), theirs.state_dict()
    for name in ("k", "weight_sum", "lr_max", "scheduled_lr"):  # schedulefree's; no twin has them
        mine["param_groups"][0].pop(name, None)
    assert mine.keys() == its.keys() and mine["param_groups"] == its["param_groups"]
    assert mine["state"][0].keys() == its["state"][0].keys()
    for name, value in its["state"][0].items():
        got = mine["state"][0][name]
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_failed_step_changes_nothing(case: OptimizerCase) -> None:
    """Not parameters before the one that is wrong, nor states, counts or the schedule's step."""
    params = [torch.nn.Parameter(torch.randn(4)) for _ in range(3)]
    optimizer = case.ours(
        [{"params": params[:2]}, {"params": params[2:]}],
        **case.options,
        schedule=schedules.linear(0.0, 1.0, 9),
    )
    for step in range(6):
        for param in params:
            param.grad = random_grad(param)
        before = [p.detach().clone() for p in params]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
        good = optimizer.param_groups[1]["weight_decay"]
        optimizer.param_groups[1]["weight_decay"] = float("nan")
        with pytest.raises(ValueError, match="weight_decay"):
            optimizer.step()
        optimizer.param_groups[1]["weight_decay"] = good
        dense, params[2].grad = params[2].grad, torch.zeros(4).to_sparse()
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        params[2].grad = dense
        assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
        for param, old in zip(params, states, strict=True):
            assert all(torch.equal(optimizer.state[param][k], v) for k, v in old.items())
        assert optimizer.schedule_step == step
        optimizer.step()
        assert not torch.equal(before[0], params[0]) or step == 0


def test_no_gradient_at_all_is_a_step_too() -> None:
    """The schedule goes on, as a torch scheduler would."""
    optimizer = lrfast.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    optimizer.set_schedule(schedules.linear(0.0, 1.0, 4))
    optimizer.step()
    assert optimizer.schedule_step == 1
