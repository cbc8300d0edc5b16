"""A training step under torch.compile: one break at our optimizer, no recompilation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lrfast import capture, schedules

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


def traced_by_make_fx(step: Any, inputs: Tensor) -> None:
    make_fx(step)(inputs)


def traced_before_dispatch(step: Any, inputs: Tensor) -> None:
    make_fx(step, pre_dispatch=True)(inputs)


def traced_with_fakes(step: Any, inputs: Tensor) -> None:
    make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(inputs)


def traced_by_jit(step: Any, inputs: Tensor) -> None:
    torch.jit.trace(step, (inputs,), check_trace=False)


def traced_and_functional(step: Any, inputs: Tensor) -> None:
    make_fx(torch.func.functionalize(step))(inputs)


TRACERS = (traced_by_make_fx, traced_before_dispatch, traced_with_fakes, traced_by_jit,
           traced_and_functional)  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("trace", TRACERS)
@pytest.mark.parametrize("case", [STATEFUL[0], STATEFUL[-1]], ids=by_name)
def test_a_traced_step_is_refused(case: OptimizerCase, trace: Any, is_captured: bool) -> None:
    """Its update would happen once, while it is traced, and be in no graph."""
    param = nn.Parameter(torch.ones(3))
    optimizer = case.ours([param], **case.options)

    def make(inputs: Tensor) -> Tensor:
        param.grad = torch.full((3,), 0.5)
        optimizer.step()
        return inputs.sum()

    step: Any = capture(make, optimizer, torch.ones(3)) if is_captured else make
    step(torch.ones(3))
    before, states = param.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(RuntimeError, match=r"cannot be traced.*call step\(\) after the graph"):
        trace(lambda inputs: step(inputs) + 1, torch.ones(3))
    assert torch.equal(before, param)
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, states[0][name])
    step(torch.ones(3))
    assert not torch.equal(before, param)
