"""What a step leaves besides weights: their average, zeroed gradients, telemetry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from reference.optimizers import decay_at
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


def lost_steps() -> dict[str, Any]:
    """What would make an update whose weights are gone after ema_parameters()."""
    from torch import nn

    def plain(optimizer: Any, param: Any) -> Any:
        return optimizer.step

    def closure(optimizer: Any, param: Any) -> Any:
        return lambda: optimizer.step(lambda: param.square().sum())

    def scaled(optimizer: Any, param: Any) -> Any:
        scaler = torch.amp.GradScaler(param.device.type, init_scale=2.0)
        scaler.scale(param.sum())
        return lambda: scaler.step(optimizer)

    def captured(optimizer: Any, param: Any) -> Any:
        def train_step(inputs: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss = (param * inputs).sum()
            loss.backward()
            optimizer.step()
            return loss

        step = lrfast.capture(train_step, optimizer, torch.ones(4))
        return lambda: step(torch.ones(4))

    def swept(optimizer: Any, param: Any) -> Any:
        model = nn.Linear(4, 1, bias=False)
        model.weight = param

        def loss(model: Any, batch: Tensor) -> Tensor:
            return (param * batch).square().sum()

        return lambda: lrfast.lr_find(
            model, optimizer, [torch.ones(4)], compute_loss=loss, num_iter=5, progress=False
        )

    return {each.__name__: each for each in (plain, closure, scaled, captured, swept)}


@pytest.mark.parametrize("name", lost_steps())
def test_a_step_within_ema_parameters_is_refused(name: str) -> None:
    """Before anything has changed: weights, states, counts, averages."""
    param = torch.nn.Parameter(torch.linspace(0.5, 2.0, 4))
    optimizer = lrfast.AdamW([param], lr=0.25, ema_decay=0.75)
    for _ in range(2):
        param.grad = torch.linspace(-1.0, 1.0, 4)
        optimizer.step()
    step = lost_steps()[name](optimizer, param)
    param.grad.fill_(1.0)
    before = param.detach().clone()
    states = {key: value.clone() for key, value in optimizer.state[param].items()}
    with optimizer.ema_parameters():
        averaged = param.detach().clone()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"step must wait until ema_parameters\(\) has"):
                step()
            assert torch.equal(param, averaged) and not torch.equal(param, before)
        with optimizer.ema_parameters():
            pass
        with pytest.raises(RuntimeError, match="step must wait"):
            step()
    assert torch.equal(param, before)
    for key, value in optimizer.state[param].items():
        assert torch.equal(value, states[key])
    step()
    if name != "swept":
        assert not torch.equal(param, before)


def test_steps_work_again_after_an_exception_in_the_block() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = lrfast.SGD([param], lr=0.5, ema_decay=0.5)
    with pytest.raises(KeyError), optimizer.ema_parameters():
        raise KeyError
    param.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.5))


AVERAGES: dict[str, dict[str, Any]] = {
    "late": {"ema_start": 3},
    "warm": {"ema_warmup": True},
    "late and warm": {"ema_start": 2, "ema_warmup": True},
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_averages_start_late_and_warm_up(
    case: OptimizerCase, dtype: torch.dtype, name: str, device: torch.device
) -> None:
    """Also over a checkpoint in the middle, and past the point where the decay is its own."""
    params, options = parameters(dtype, device), {"ema_decay": 0.3, **AVERAGES[name]}
    optimizer = case.ours(case.groups(params), **case.options, **options)
    averages = [wide(param) for param in params_of(optimizer)]
    for step in range(8):
        for param in params_of(optimizer):
            param.grad = random_grad(param)
        optimizer.step()
        decay = decay_at(step, **options)
        for index, param in enumerate(params_of(optimizer)):
            averages[index] = averages[index].lerp(wide(param), 1 - decay)
            ema = optimizer.state[param]["ema"]
            if step < options.get("ema_start", 0):
                assert torch.equal(ema, wide(param))
            torch.testing.assert_close(ema, averages[index], rtol=1e-5, atol=1e-6)
        if step == 4:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = case.ours(case.groups(params), **case.options, **options)
            optimizer.load_state_dict(saved)


def test_averages_are_those_of_torchs_averaged_model() -> None:
    """With the warm-up of TensorFlow as its function."""
    model = torch.nn.Linear(3, 2)
    optimizer = lrfast.SGD(model.parameters(), lr=0.3, momentum=0.8, ema_decay=0.6, ema_warmup=True)

    def average(old: Tensor, new: Tensor, count: Any) -> Tensor:
        return old.lerp(new, 1 - min(0.6, float(count) / (9 + float(count))))

    averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=average)
    averaged.n_averaged.fill_(1)  # it starts at the weights as they are, not at the first update
    for _ in range(12):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(model)
    with optimizer.ema_parameters():
        for own, other in zip(model.parameters(), averaged.module.parameters(), strict=True):
            torch.testing.assert_close(own, other)


def test_skipped_steps_do_not_warm_up_the_average() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    options: dict[str, Any] = {"ema_decay": 0.9, "ema_start": 1, "ema_warmup": True}
    optimizer = lrfast.SGD([param], lr=0.5, skip_nonfinite=True, **options)
    average, applied = torch.ones(3), 0
    for number in range(6):
        bad = number % 2 == 1
        param.grad = torch.full((3,), float("nan") if bad else 0.5)
        optimizer.step()
        if not bad:
            average = average.lerp(param.detach(), 1 - decay_at(applied, **options))
            applied += 1
        torch.testing.assert_close(optimizer.state[param]["ema"], average)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_start": 5}, "ema_decay must be set for ema_start and ema_warmup, got None"),
        ({"ema_warmup": True}, "ema_decay must be set for ema_start and ema_warmup, got None"),
        ({"ema_decay": 0.9, "ema_start": -1}, "ema_start must be a whole number, 0 or more"),
        ({"ema_decay": 0.9, "ema_start": 0.5}, "ema_start must be a whole number, 0 or more"),
        ({"ema_decay": 0.9, "ema_warmup": 3}, "ema_warmup must be True or False, got 3"),
    ],
)
def test_options_of_the_average_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        lrfast.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5, **options)
