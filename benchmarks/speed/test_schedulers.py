"""What a schedule costs per step, by the number of param groups it sets rates for.

The same tensors are dealt out to more and more groups; all implementations update them at the same
rates, which is checked before they are timed. A step without a schedule stands beside each, and
what a step with one costs more than that is the schedule's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import lrfast
from benchmarks.conftest import Measure
from benchmarks.speed import implementations, model_sets, timing
from benchmarks.speed.implementations import HYPERS, IMPLEMENTATIONS, Contender, Start, params_of
from benchmarks.speed.whole_update import MOMENTUM, TOTAL_STEPS, torch_one_cycle

CEILING = 1.1  # of our step's time with all groups over that with one
CASES = [("many_groups", count) for count in (1, 10, 100, 500)]
CASES += [("transformer", count) for count in (1, 500)]


def _decay(step: int) -> float:
    return 1 / (1 + 1e-4 * step)


def _lrfast(schedule: Callable[[], Any], start: Start, groups: int) -> Contender:
    made = start.groups(groups)
    optimizer = lrfast.AdamW(made, **HYPERS["AdamW"], schedule=schedule())
    return Contender(params_of(made), optimizer, optimizer.step)


def _torch(scheduler: Callable[[Any], Any] | None, start: Start, groups: int) -> Contender:
    made = start.groups(groups)
    optimizer = IMPLEMENTATIONS["torch-fused"].make("AdamW", made, HYPERS["AdamW"])
    if scheduler is None:
        return Contender(params_of(made), optimizer, optimizer.step)
    scheduled = scheduler(optimizer)

    def step() -> None:
        optimizer.step()
        scheduled.step()

    return Contender(params_of(made), optimizer, step)


OURS, THEIRS = "lrfast", "torch-fused"
SCHEDULES: dict[str, dict[str, Callable[[Start, int], Contender]]] = {
    "": {
        OURS: partial(_lrfast, lambda: None),
        THEIRS: partial(_torch, None),
    },
    "one-cycle": {
        OURS: partial(_lrfast, lambda: lrfast.schedules.one_cycle(TOTAL_STEPS, momentum=MOMENTUM)),
        THEIRS: partial(_torch, lambda it: torch_one_cycle(it, HYPERS["AdamW"]["lr"])),
    },
    "function": {
        OURS: partial(_lrfast, lambda: lrfast.schedules.from_function(_decay, 10_000)),
        THEIRS: partial(_torch, lambda it: LambdaLR(it, _decay)),
    },
}


@pytest.mark.parametrize(
    ("parameters", "groups"),
    [
        pytest.param(*case, marks=[pytest.mark.quick] * (case == ("many_groups", 100)))
        for case in CASES
    ],
)
def test_schedulers(measure: Measure, parameters: str, groups: int) -> None:
    start = Start(getattr(model_sets, parameters)(), torch.float32, measure.device)
    works: timing.Works = {}
    for schedule, makers in SCHEDULES.items():
        contenders = {name: make(start, groups) for name, make in makers.items()}
        implementations.assert_equal_work(contenders, start)
        for name, entry in contenders.items():
            title = f"{name}, {schedule}" if schedule else name
            # What takes milliseconds for nothing needs no precision.
            works[title] = timing.Work(entry.step, every=1 if name == OURS else 4)
    row = {"parameters": parameters, "groups": groups, "ceiling": CEILING}
    measure("schedulers", row, works)
