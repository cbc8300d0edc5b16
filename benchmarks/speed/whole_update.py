"""All that a step is followed by, by lrfast in one call and by torch in a call for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

import lrfast
from benchmarks.speed.implementations import (
    HYPERS,
    IMPLEMENTATIONS,
    Contender,
    Groups,
    Start,
    params_of,
)

# Far more steps than are timed: torch's scheduler raises behind the last one.
TOTAL_STEPS = 1_000_000
MOMENTUM = (0.95, 0.85)
MAX_NORM, DECAY, SCALE = 0.1, 0.9, 1024.0
NAMES = ("lrfast", "torch-fused", "torch-foreach")
# A read for the norm, average read and written, zeros written: on top of the rule's own.
MORE_ACCESSES = 4


def torch_one_cycle(optimizer: torch.optim.Optimizer, lr: float | list[float]) -> OneCycleLR:
    """torch's schedule with the values of lrfast.schedules.one_cycle's defaults."""
    return OneCycleLR(
        optimizer, lr, TOTAL_STEPS, base_momentum=MOMENTUM[1], max_momentum=MOMENTUM[0]
    )


def contender(name: str, rule: str, start: Start, groups: int) -> Contender:
    """Unscale, look for infinities, clip, update, average weights, schedule, zero gradients.

    A GradScaler's part is done as it does it, without its bookkeeping: the scale stays.
    """
    made = start.groups(groups)
    params = params_of(made)
    grads = [param.grad for param in params if param.grad is not None]

    def refill() -> None:
        torch._foreach_copy_(grads, start.grads)

    if name == "lrfast":
        optimizer = _lrfast(rule, made)
        return Contender(params, optimizer, optimizer.step, refill)
    return _torch(name, rule, made, grads, refill)


def _lrfast(rule: str, groups: Groups) -> Any:
    device = params_of(groups)[0].device
    ours = getattr(lrfast, rule)(
        groups,
        **HYPERS[rule],
        max_grad_norm=MAX_NORM,
        ema_decay=DECAY,
        zero_grads=True,
        skip_nonfinite=True,
        schedule=lrfast.schedules.one_cycle(TOTAL_STEPS, momentum=MOMENTUM),
    )
    ours.grad_scale = torch.full((), SCALE, device=device)
    ours.found_inf = torch.zeros((), device=device)
    return ours


def _torch(name: str, rule: str, groups: Groups, grads: list[Tensor], refill: Any) -> Contender:
    params = params_of(groups)
    device = params[0].device
    optimizer = IMPLEMENTATIONS[name].make(rule, groups, HYPERS[rule])
    scheduler = torch_one_cycle(optimizer, HYPERS[rule]["lr"])
    found = torch.zeros((), device=device)
    inverse = torch.full((), 1 / SCALE, device=device)
    averages = [param.detach().clone() for param in params]
    average = get_ema_multi_avg_fn(DECAY)
    # A GradScaler gives it to every fused optimizer, but where nothing waits, looking is faster.
    looks = device.type == "cpu" or name != "torch-fused"
    if not looks:
        optimizer.found_inf = found  # type: ignore[attr-defined]

    def step() -> None:
        found.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, inverse)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        if not (looks and found.item()):
            optimizer.step()
        average(averages, params, 0)
        scheduler.step()
        torch._foreach_zero_(grads)

    return Contender(params, optimizer, step, refill, averages)
