"""torch.optim.lr_scheduler drives our optimizers exactly as it drives torch's, all of it.

Adam under a torch scheduler that cycles its betas is torch's Adam: the product of the betas used
belongs to lrfast's own schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, random_grad, twins
from torch import Tensor
from torch.optim import lr_scheduler as S

STEPS = 14


@dataclass(frozen=True)
class SchedulerCase:
    """A scheduler of torch's.

    Args:
        name: How tests call it.
        make: Attaches it to an optimizer whose rate is the given one.
        cycles: Whether it changes momentum or betas, too.
    """

    name: str
    make: Callable[[Any, float], Any]
    cycles: bool = False


def sequential(optimizer: Any, lr: float) -> Any:
    parts = [S.ConstantLR(optimizer, 0.5, 3), S.ExponentialLR(optimizer, 0.8)]
    return S.SequentialLR(optimizer, parts, milestones=[4])


def chained(optimizer: Any, lr: float) -> Any:
    return S.ChainedScheduler([S.LinearLR(optimizer, 0.2, 1, 5), S.StepLR(optimizer, 4, 0.5)])


SCHEDULERS = (
    SchedulerCase("LambdaLR", lambda o, lr: S.LambdaLR(o, lambda t: 1 / (t + 1))),
    SchedulerCase("MultiplicativeLR", lambda o, lr: S.MultiplicativeLR(o, lambda t: 0.9)),
    SchedulerCase("StepLR", lambda o, lr: S.StepLR(o, 3, 0.5)),
    SchedulerCase("MultiStepLR", lambda o, lr: S.MultiStepLR(o, [2, 5], 0.3)),
    SchedulerCase("ConstantLR", lambda o, lr: S.ConstantLR(o, 0.4, 5)),
    SchedulerCase("LinearLR", lambda o, lr: S.LinearLR(o, 0.1, 1.0, 6)),
    SchedulerCase("ExponentialLR", lambda o, lr: S.ExponentialLR(o, 0.85)),
    SchedulerCase("CosineAnnealingLR", lambda o, lr: S.CosineAnnealingLR(o, 9, lr / 50)),
    SchedulerCase("WarmRestarts", lambda o, lr: S.CosineAnnealingWarmRestarts(o, 3, 2, lr / 50)),
    SchedulerCase("CyclicLR", lambda o, lr: S.CyclicLR(o, lr / 9, lr, 3, cycle_momentum=False)),
    SchedulerCase(
        "CyclicLR-momentum",
        lambda o, lr: S.CyclicLR(o, lr / 9, lr, 3, base_momentum=0.7, max_momentum=0.95),
        cycles=True,
    ),
    SchedulerCase("OneCycleLR", lambda o, lr: S.OneCycleLR(o, lr, STEPS + 1, cycle_momentum=False)),
    SchedulerCase("OneCycleLR-momentum", lambda o, lr: S.OneCycleLR(o, lr, STEPS + 1), cycles=True),
    SchedulerCase("PolynomialLR", lambda o, lr: S.PolynomialLR(o, 10, 2.0)),
    SchedulerCase("Plateau", lambda o, lr: S.ReduceLROnPlateau(o, factor=0.5, patience=1)),
    SchedulerCase("SequentialLR", sequential),
    SchedulerCase("ChainedScheduler", chained),
)


def test_the_list_is_complete() -> None:
    """A scheduler that torch adds later belongs into it."""
    known = {type(scheduler_on(case)).__name__ for case in SCHEDULERS} - {"function"}
    bases = {"LRScheduler", "_LRScheduler"}
    all_of_torch = {
        name
        for name, value in vars(S).items()
        if isinstance(value, type) and issubclass(value, S.LRScheduler)
    }
    assert all_of_torch - bases == known


def scheduler_on(case: SchedulerCase) -> Any:
    return case.make(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9), 0.1)


def can_cycle(case: OptimizerCase) -> bool:
    return bool({"betas", "momentum"} & case.options.keys())


def rows(schedulers: tuple[SchedulerCase | None, ...] = SCHEDULERS) -> list[Any]:
    """Every scheduler on every rule; cycles where there is something to cycle."""
    return [
        pytest.param(case, scheduler, id=f"{scheduler.name if scheduler else None}-{case.name}")
        for case in STATEFUL
        for scheduler in schedulers
        if scheduler is None or not scheduler.cycles or can_cycle(case)
    ]


def advance(scheduler: Any, loss: float) -> None:
    if isinstance(scheduler, S.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def build(cls: Any, params: list[Tensor], options: dict[str, Any], tensor_lr: bool) -> Any:
    """One group per parameter, each with a rate of its own: a tensor that two groups share is
    changed twice by some of torch's schedulers."""
    groups: list[dict[str, Any]] = [{"params": [param]} for param in params]
    if tensor_lr:
        for group in groups:
            group["lr"] = torch.tensor(options["lr"], dtype=torch.float64)
    return cls(groups, **options)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize(("case", "scheduler"), rows())
def test_driven_as_torchs(case: OptimizerCase, scheduler: SchedulerCase, tensor_lr: bool) -> None:
    """The same parameters after every step, also where the rate is a tensor that is filled."""
    params = [torch.nn.Parameter(torch.randn(n, 3, dtype=torch.float64)) for n in (2, 5)]
    others = twins(params)
    lr = case.options["lr"]
    ours = build(case.ours, params, case.options, tensor_lr)
    theirs = build(case.theirs, others, case.options, False)
    mine, its = scheduler.make(ours, lr), scheduler.make(theirs, lr)
    rates, used = [], []
    for step in range(STEPS):
        for param, other in zip(params, others, strict=True):
            param.grad = random_grad(param)
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
        for param, other in zip(params, others, strict=True):
            torch.testing.assert_close(param, other, rtol=1e-10, atol=1e-12)
        rates.append([float(group["lr"]) for group in theirs.param_groups])
        used.append(ours.last_rates.tolist())
        loss = 1.0 if step > 2 else 1 / (step + 1)
        advance(mine, loss)
        advance(its, loss)
    assert torch.allclose(torch.tensor(used), torch.tensor(rates), rtol=1e-12, atol=0)
    assert len({rate for rate, _ in rates}) > 1, "the scheduler never changed anything"


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize(("case", "scheduler"), rows((None, *SCHEDULERS)))
def test_goes_in_the_right_direction(
    case: OptimizerCase, scheduler: SchedulerCase | None, contiguous: bool
) -> None:
    """Down, or up where it maximizes, with a group of its own rate and decay for the bias."""
    start = torch.randn(6, 5)
    weight = torch.nn.Parameter(start if contiguous else torch.stack((start, start), 2)[..., 0])
    assert weight.is_contiguous() == contiguous
    bias, inputs = torch.nn.Parameter(torch.randn(6)), torch.randn(5)
    lr = case.options["lr"]
    options = {**case.options, "lr": lr * 0.5}
    groups = [{"params": [weight]}, {"params": [bias], "lr": lr, "weight_decay": 1e-3}]
    optimizer = case.ours(groups, **options)
    attached = None if scheduler is None else scheduler.make(optimizer, lr)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(inputs) + bias).square().sum()
        loss.backward()
        if not contiguous:
            weight.grad = weight.grad.t().contiguous().t()  # type: ignore[union-attr]
        return loss

    first = closure().item()
    for _ in range(STEPS):
        loss = optimizer.step(closure)
        if attached is not None:
            advance(attached, loss.item())
    last = closure().item()
    assert last > first if case.options.get("maximize") else last < first
