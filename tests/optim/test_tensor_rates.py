"""Learning rates in tensors of every dtype, as torch.optim takes them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from torch import Tensor, nn

import lrfast

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,))
# torch has no Lion.
CASES = [case for case in STATEFUL if case.in_torch is not None]


def first_step(cls: Any, lr: Any, options: dict[str, Any], way: str) -> Tensor:
    """The parameter after its first step at a learning rate that comes in one of the ways."""
    param = nn.Parameter(torch.linspace(0.5, 2.0, 5))
    rate = lr if way == "constructor" else 0.125
    optimizer = cls([{"params": [param], **({"lr": lr} if way == "group" else {})}], lr=rate,
                    **options)  # fmt: skip
    if way == "assigned":
        optimizer.param_groups[0]["lr"] = lr
    if way == "loaded":
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0]["lr"] = lr
        optimizer.load_state_dict(state)
    param.grad = torch.linspace(-1.0, 1.5, 5)
    optimizer.step()
    return param.detach()


@pytest.mark.parametrize("way", ["constructor", "group", "assigned", "loaded"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=by_name)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_tensor_is_taken_as_torch_takes_it(
    case: OptimizerCase, dtype: torch.dtype, shape: tuple[int, ...], way: str
) -> None:
    """A power of 2, which no step rounds, and with the default decay, which halves would lose."""
    options = {key: value for key, value in case.options.items() if key != "lr"}
    lr = torch.full(shape, 2.0**-6, dtype=dtype)
    got = first_step(case.ours, lr, options, way)
    try:
        wanted = first_step(case.in_torch, lr, options, way)
    except (ValueError, RuntimeError):  # a tensor [1], in some of torch's rules
        wanted = first_step(case.in_torch, lr.reshape(()), options, way)
    torch.testing.assert_close(got, wanted, rtol=2e-3 if dtype.itemsize == 2 else 1e-5, atol=1e-6)
    if dtype.itemsize > 2:
        assert torch.equal(got, first_step(case.ours, 2.0**-6, options, way))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=by_name)
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
def test_a_half_tensor_rounds_a_decoupled_decay_as_torch_does(
    name: str, dtype: torch.dtype
) -> None:
    """1 - lr * weight_decay is 1 in half precision, and 0.75 exactly for a strong decay."""
    own = {"decoupled_weight_decay": True} if name == "NAdam" else {}
    for decay in (0.01, 16.0):
        results = [
            first_step(
                cls, torch.tensor(2.0**-6, dtype=dtype), own | {"weight_decay": decay}, "group"
            )
            for cls in (getattr(torch.optim, name), getattr(lrfast, name))
        ]
        torch.testing.assert_close(*results, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_whole_numbers_are_learning_rates_too(dtype: torch.dtype) -> None:
    lr = torch.tensor(2, dtype=dtype)
    got, wanted = (first_step(cls, lr, {}, "group") for cls in (lrfast.SGD, torch.optim.SGD))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=by_name)
def test_what_no_learning_rate_may_be_is_refused(dtype: torch.dtype, value: float) -> None:
    with pytest.raises(ValueError, match=r"lr|learning rate"):
        first_step(lrfast.AdamW, torch.tensor(value, dtype=dtype), {}, "assigned")


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_counts_have_the_dtype_of_torchs(case: OptimizerCase) -> None:
    """float64 if that is the default dtype, else float32; also after a load, and counting on."""
    old = torch.get_default_dtype()
    for default in (torch.float32, torch.float64):
        params, optimizers = [], []
        torch.set_default_dtype(default)
        try:
            for cls in (case.in_torch, case.ours):
                param = nn.Parameter(torch.linspace(0.5, 2.0, 5, dtype=torch.float32))
                params.append(param)
                optimizers.append(cls([param], **case.options))
            for _ in range(3):
                for param, optimizer in zip(params, optimizers, strict=True):
                    param.grad = torch.linspace(-1.0, 1.5, 5, dtype=torch.float32)
                    optimizer.step()
        finally:
            torch.set_default_dtype(old)
        theirs, ours = optimizers
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.linspace(1.0, -1.5, 5)
            optimizer.step()
        torch.testing.assert_close(*params)
        steps = [o.state[p].get("step") for o, p in zip(optimizers, params, strict=True)]
        if steps[0] is not None:
            assert steps[0].dtype == steps[1].dtype == default
            assert float(steps[0]) == float(steps[1]) == 4


def test_a_count_in_float64_is_exact_beyond_float32() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = lrfast.AdamW([param], lr=0.1)
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[param]["step"] = torch.tensor(2.0**24, dtype=torch.float64)
    for _ in range(2):
        optimizer.step()
    assert float(optimizer.state[param]["step"]) == 2.0**24 + 2
