"""What a step leaves besides weights: their average, zeroed gradients, telemetry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from torch import Tensor

import lrfast
from lrfast import schedules

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def wide(tensor: Tensor) -> Tensor:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.detach().float() if half else tensor.detach().clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_averages_are_lerps(case: OptimizerCase, dtype: torch.dtype, device: torch.device) -> None:
    """From the weights before the first update on; some parameters begin late, some stay."""
    params = parameters(dtype, device)
    optimizer = case.ours(case.groups(params), **case.options, ema_decay=0.8)
    plain = case.ours(case.groups(twins(params)), **case.options)
    averages: dict[int, Tensor] = {}
    for step in range(5):
        for index, (param, other) in enumerate(
            zip(params_of(optimizer), params_of(plain), strict=True)
        ):
            late = index == 1 and step < 2
            param.grad = None if late else random_grad(param)
            other.grad = None if late else param.grad.clone()
            if not late:
                averages.setdefault(index, wide(param))
        optimizer.step()
        plain.step()
        for index, param in enumerate(params_of(optimizer)):
            if index in averages and param.grad is not None:
                averages[index] = averages[index].lerp(wide(param), 1 - 0.8)
    for index, (param, other) in enumerate(
        zip(params_of(optimizer), params_of(plain), strict=True)
    ):
        assert torch.equal(param, other)  # averaging changes no weight
        ema = optimizer.state[param]["ema"]
        assert ema.dtype == wide(param).dtype
        torch.testing.assert_close(ema, averages[index], rtol=1e-5, atol=1e-6)


def test_an_average_of_another_dtype_is_brought_into_its_own(device: torch.device) -> None:
    """The state is the user's to fill; read as it lies, this one would be other numbers."""
    param = torch.nn.Parameter(torch.ones(70, device=device))
    optimizer = lrfast.SGD([param], lr=0.5, ema_decay=0.8)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        wanted = optimizer.state[param]["ema"].clone()
        optimizer.state[param]["ema"] = wanted.double()
    param.grad = torch.ones_like(param)
    optimizer.step()
    ema = optimizer.state[param]["ema"]
    assert ema.dtype == torch.float32
    torch.testing.assert_close(ema, wanted.lerp(param.detach(), 1 - 0.8))


def test_averages_are_swapped_in_and_out() -> None:
    params = [torch.nn.Parameter(torch.randn(3, 4).bfloat16()) for _ in range(3)]
    optimizer = lrfast.SGD(params, lr=0.5, ema_decay=0.5)
    for _ in range(3):
        for param in params[:2]:
            param.grad = random_grad(param)
        optimizer.step()
    before = [p.detach().clone() for p in params]
    addresses = [p.data_ptr() for p in params]

    def use_averages() -> None:
        with optimizer.ema_parameters():
            for param in params[:2]:
                assert torch.equal(param, optimizer.state[param]["ema"].bfloat16())
            assert torch.equal(params[2], before[2])
            raise KeyError

    with pytest.raises(KeyError):
        use_averages()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [p.data_ptr() for p in params] == addresses
    assert all(p.requires_grad for p in params)


def test_averages_can_begin_in_mid_training_without_touching_the_rest() -> None:
    for case in STATEFUL:
        param = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
        (other,) = twins([param])
        first = case.ours([param], **case.options)
        plain = case.ours([other], **case.options)

        def step(optimizers: list[Any]) -> None:
            grad = torch.randn(6, dtype=torch.float64)
            for optimizer in optimizers:
                params_of(optimizer)[0].grad = grad.clone()
                optimizer.step()

        step([first, plain])
        averaged = case.ours([param], **case.options, ema_decay=0.9)
        averaged.load_state_dict(copy.deepcopy(first.state_dict()))
        step([averaged, plain])
        step([averaged, plain])
        assert torch.equal(param, other), case.name


def test_ema_must_be_asked_for() -> None:
    optimizer = lrfast.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="ema_decay must be set"), optimizer.ema_parameters():
        pass


# ---- zeroing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_gradients_are_zeroed_in_place(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    """In every layout, also those that go through a stand-in, and of frozen groups."""
    params = parameters(dtype, device)
    optimizer = case.ours(case.groups(params), **case.options, zero_grads=True)
    plain = case.ours(case.groups(twins(params)), **case.options)
    for which in (optimizer, plain):
        which.param_groups[2]["frozen"] = True
    for _ in range(3):
        for param, other in zip(params_of(optimizer), params_of(plain), strict=True):
            param.grad = random_grad(param)
            other.grad = param.grad.clone()
        grads = [p.grad for p in params_of(optimizer)]
        optimizer.step()
        plain.step()
        for param, grad in zip(params_of(optimizer), grads, strict=True):
            assert param.grad is grad
            assert not grad.any()
    for param, other in zip(params_of(optimizer), params_of(plain), strict=True):
        assert torch.equal(param, other)


def test_a_skipped_step_zeroes_too() -> None:
    params = [torch.nn.Parameter(torch.ones(3, 4).t()), torch.nn.Parameter(torch.ones(40_000))]
    optimizer = lrfast.SGD(params, lr=0.1, zero_grads=True, skip_nonfinite=True)
    for param in params:
        param.grad = torch.full(param.shape, torch.inf)
    optimizer.step()
    assert all(p.grad is not None and not p.grad.any() for p in params)
    assert all(bool((p == 1).all()) for p in params)


# ---- telemetry -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_telemetry_is_what_one_would_measure(case: OptimizerCase, device: torch.device) -> None:
    params = [p.requires_grad_(False) for p in parameters(torch.float64, device)]
    schedule = schedules.linear(1.0, 0.1, 9)
    optimizer = case.ours(
        case.groups(params), **case.options, telemetry=4, schedule=schedule, max_grad_norm=1.0
    )
    expected: list[list[tuple[float, ...]]] = []
    assert optimizer.telemetry().rates.shape == (0, 3)
    for step in range(6):
        before = []
        for param in params_of(optimizer):
            param.grad = random_grad(param)
            before.append(param.detach().clone())
        optimizer.step()
        rows, place = [], iter(before)
        for group in optimizer.param_groups:
            squares = [
                (p.grad.square().sum(), (p - next(place)).square().sum(), p.square().sum())
                for p in group["params"]
            ]
            columns = zip(*squares, strict=True)
            norms = [float(torch.stack(list(column)).sum().sqrt()) for column in columns]
            rows.append((group["lr"] * schedule.at(step), *norms))
        expected.append(rows)
    seen = optimizer.telemetry()
    assert seen.first_step == 2
    fields = (seen.rates, seen.grad_norms, seen.update_norms, seen.weight_norms)
    actual = torch.stack(fields, dim=-1)
    wanted = torch.tensor(expected[2:], dtype=torch.float64)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(seen.update_ratios, wanted[..., 2] / wanted[..., 3])


def test_telemetry_after_a_resume_begins_anew_and_counts_on() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    first = lrfast.SGD([param], lr=0.1, telemetry=3)
    for _ in range(5):
        param.grad = torch.ones(2)
        first.step()
    second = lrfast.SGD(twins([param]), lr=0.1, telemetry=3)
    second.load_state_dict(first.state_dict())
    assert second.telemetry().rates.shape == (0, 1)
    params_of(second)[0].grad = torch.ones(2)
    second.step()
    seen = second.telemetry()
    assert seen.first_step == 5 and seen.rates.tolist() == [[0.1]]
