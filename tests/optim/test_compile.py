"""A training step under torch.compile: one break at our optimizer, no recompilation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from torch import Tensor, nn

from lrfast import schedules

# Python 3.13.0 makes the compiler say so.
pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower")

dynamo = pytest.importorskip("torch._dynamo.testing")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(model: nn.Module, optimizer: Any, inputs: Tensor) -> None:
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_compiled_step_is_the_eager_one(case: OptimizerCase) -> None:
    """Rates change by our schedule and by hand, groups are frozen, and the graphs stay."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    twin = copy.deepcopy(model)
    cycle = schedules.one_cycle(20, momentum=(0.95, 0.85))
    options = {**case.options, "schedule": cycle, "max_grad_norm": 1.0, "ema_decay": 0.9}
    ours = case.ours(model.parameters(), **options)
    eager = case.ours(twin.parameters(), **options)
    counter = dynamo.CompileCounter()
    compiled = torch.compile(train, backend=counter)
    inputs = torch.randn(8, 4, dtype=torch.float64)
    counts = []
    for step in range(8):
        for optimizer in (ours, eager):
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.param_groups[0]["frozen"] = step == 5
        compiled(model, ours, inputs)
        train(twin, eager, inputs)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1] > 0
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(param, other)


def test_the_step_alone_compiles_to_itself() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = STATEFUL[0].ours([param], **STATEFUL[0].options)
    param.grad = torch.ones(3)
    counter = dynamo.CompileCounter()
    torch.compile(lambda: optimizer.step(), backend=counter)()
    assert counter.frame_count == 0 and not torch.equal(param, torch.ones(3))
