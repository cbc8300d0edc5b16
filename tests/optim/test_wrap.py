"""wrap() takes a live torch.optim optimizer over; what was attached to it works on."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from torch import Tensor

import lrfast
from lrfast import schedules

WRAPPABLE = tuple(case for case in STATEFUL if case.theirs.__module__.startswith("torch.optim"))


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizers: list[Any]) -> None:
    for mine in zip(*map(params_of, optimizers), strict=True):
        grad = random_grad(mine[0])
        for param in mine:
            param.grad = grad.clone()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("case", WRAPPABLE, ids=by_name)
def test_a_run_goes_on_under_its_scheduler(case: OptimizerCase, at: int) -> None:
    """Groups, states, rates and the scheduler of the old optimizer, in mid-training or before."""
    params = parameters(torch.float64)
    old = case.theirs(case.groups(params), **case.options, foreach=False)
    other = case.theirs(case.groups(twins(params)), **case.options, foreach=False)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)
        for optimizer in (old, other)
        if "betas" in case.options or "momentum" in case.options
    ]
    current: Any = old
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(8):
            if number == at:
                current = lrfast.wrap(old)
                assert type(current) is case.ours
                assert current.param_groups is old.param_groups and current.state is old.state
            step([current, other])
            for scheduler in schedulers:
                scheduler.step()
    for param, twin in zip(params_of(current), params_of(other), strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-10, atol=1e-10)
    assert current.state_dict().keys() == other.state_dict().keys()


def test_what_was_attached_comes_along() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    old = torch.optim.SGD([("weight", param)], lr=0.1)
    seen: list[str] = []
    old.register_step_post_hook(lambda *_: seen.append("step"))
    old.register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    optimizer = lrfast.wrap(old, schedule=schedules.constant(0.5), max_grad_norm=1.0)
    param.grad = torch.ones(2)
    optimizer.step()
    optimizer.state_dict()
    assert seen == ["step", "state_dict"]
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    assert optimizer.get_last_lr() == [0.05] and optimizer.max_grad_norm == 1.0
    assert lrfast.wrap(torch.optim.SGD([param], lr=0.1)).get_last_lr() == [0.1]
    optimizer.add_param_group({"params": [("bias", torch.nn.Parameter(torch.ones(1)))]})
    assert len(old.param_groups) == 2


class Changed(torch.optim.SGD):
    """A subclass may step otherwise."""


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (Changed, TypeError, "must be a torch.optim SGD, .*, got .*test_wrap.Changed"),
        (torch.optim.Rprop, TypeError, "got torch.optim.rprop.Rprop"),
        (lrfast.SGD, TypeError, "must be one of torch.optim, got lrfast's lrfast.optim.sgd.SGD"),
    ],
    ids=by_name,
)
def test_others_are_refused(optimizer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lrfast.wrap(optimizer([torch.nn.Parameter(torch.ones(1))], lr=0.1))


def test_a_differentiable_one_is_refused() -> None:
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="differentiable must be False"):
        lrfast.wrap(torch.optim.SGD([param], lr=0.1, differentiable=True))


class Delegate(torch.optim.Optimizer):
    """What accelerate does to an optimizer: an Optimizer that holds the real one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        return self.optimizer.defaults

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_wrappers_that_see_an_optimizer_only(case: OptimizerCase) -> None:
    params = [torch.nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(3)]
    ours = Delegate(case.ours(case.groups(params), **case.options))
    theirs = Delegate(case.theirs(case.groups(twins(params)), **case.options))
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (ours, theirs)]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(5):
        step([ours, theirs])
        for scheduler in schedulers:
            scheduler.step()
        scaler.step(ours)
        theirs.step()
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-10, atol=1e-12)
    assert ours.state_dict()["param_groups"][0]["lr"] < case.options["lr"]
