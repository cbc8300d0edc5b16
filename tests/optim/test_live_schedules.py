"""The rate and the momentum that a step uses on the device are the schedule's, at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, random_grad, twins
from steps import new_parameters, step_with
from torch import Tensor
from torch.optim import lr_scheduler

import lrfast
from lrfast import schedules
from lrfast.curve import LossCurve
from lrfast.schedules import Schedule

SCHEDULES = (
    schedules.constant(0.7),
    schedules.linear(0.1, 1.3, 17),
    schedules.cosine(17, 0.05),
    schedules.exponential(17, 0.8),
    schedules.sweep(1e-7, 10.0, 20),
    *(schedules.one_cycle(total) for total in (1, 2, 3, 20)),
    schedules.one_cycle(20, 0.0, momentum=None),
    schedules.one_cycle(20, 1.0, anneal="linear"),
    schedules.linear(0.0, 1.0, 5).then(schedules.constant()).then(schedules.cosine(9)),
    schedules.linear(0.0, 1.0, 5).then(schedules.one_cycle(9)).then(schedules.exponential(4, 0.5)),
    schedules.cosine(12, 0.1) * schedules.linear(0.5, 2.0, 20) * schedules.exponential(25, 0.9),
)
SGD, ADAMW = STATEFUL[:2]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.total_steps}")
def test_the_rate_on_the_device_is_the_schedules(
    schedule: Schedule, case: OptimizerCase, device: torch.device
) -> None:
    """Bit for bit, at every step, at the boundaries and past the end."""
    params = new_parameters(device)
    optimizer = case.ours(params, lr=0.3, schedule=schedule)
    for step in range(schedule.total_steps + 6):
        assert optimizer.schedule_step == step
        assert optimizer.get_last_lr() == [0.3 * schedule.at(step)]
        step_with((optimizer,), [random_grad(p) for p in params])
        assert optimizer.last_rates.tolist() == [0.3 * schedule.at(step)]
        assert optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_schedule_per_group(case: OptimizerCase, device: torch.device) -> None:
    """Each group has its own, or none, or shares one; rates are the users' times the schedule."""
    shared = schedules.linear(0.2, 1.0, 8)
    each = [shared, None, schedules.one_cycle(11), shared, schedules.cosine(9)]
    params = new_parameters(device, len(each))
    rates = [0.1, 0.2, 0.3, 0.4, 0.5]
    optimizer = case.ours(
        [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], schedule=each
    )
    for step in range(14):
        step_with((optimizer,), [random_grad(p) for p in params])
        wanted = [lr * (s.at(step) if s else 1.0) for lr, s in zip(rates, each, strict=True)]
        assert optimizer.last_rates.tolist() == wanted


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.total_steps}")
def test_sgd_uses_rate_and_momentum(schedule: Schedule, device: torch.device) -> None:
    """Against torch with both set by hand before every step."""
    params = new_parameters(device)
    others = twins(params)
    ours = SGD.ours(params, **SGD.options, schedule=schedule)
    theirs = SGD.theirs(others, **SGD.options, foreach=False)
    for step in range(schedule.total_steps + 4):
        momentum = schedule.momentum([step])
        theirs.param_groups[0]["lr"] = SGD.options["lr"] * schedule.at(step)
        if momentum is not None:
            theirs.param_groups[0]["momentum"] = float(momentum[0])
        step_with((ours, theirs), [random_grad(p) for p in params])
        assert_same(params, others)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name}-{s.total_steps}")
@pytest.mark.parametrize("before", [0, 5])
def test_adamw_uses_rate_and_beta1(schedule: Schedule, before: int, device: torch.device) -> None:
    """Against the reference, whose bias correction is the product of the betas used; a schedule
    that comes after some steps finds their power in the product."""
    (param,) = new_parameters(device)
    optimizer = ADAMW.ours([param], **ADAMW.options)
    ours, state = param.detach().cpu().numpy().copy(), dict[str, Any]()
    for step in range(-before, schedule.total_steps + 4):
        options = dict(ADAMW.options)
        if step == 0:
            optimizer.set_schedule(schedule)
            if schedule.momentum_track is not None:
                state["beta1_product"] = options["betas"][0] ** before
        if step >= 0:
            momentum = schedule.momentum([step])
            options["lr"] = options["lr"] * schedule.at(step)
            if momentum is not None:
                options["betas"] = (float(momentum[0]), options["betas"][1])
        grad = random_grad(param)
        step_with((optimizer,), [grad])
        ours, state = ADAMW.rule(ours, grad.cpu().numpy(), state, **options)
        np.testing.assert_allclose(param.detach().cpu().numpy(), ours, rtol=1e-11, atol=1e-12)
    if schedule.momentum_track is not None:
        product = optimizer.state[param]["beta1_product"].item()
        assert product == pytest.approx(state["beta1_product"], rel=1e-12)


@pytest.mark.parametrize("on_device", [False, True])
def test_nadam_finds_a_lost_product_in_its_count(on_device: bool, device: torch.device) -> None:
    """From a state without one, as any port may save it: of the group's momenta up to its count."""
    (param,) = new_parameters(device)
    beta = torch.tensor(0.8, device=device) if on_device else 0.8
    optimizer = lrfast.NAdam([param], betas=(beta, 0.99), momentum_decay=0.3)
    for _ in range(7):
        step_with((optimizer,), [random_grad(param)])
    kept = optimizer.state[param].pop("mu_product").item()
    exact = np.prod([float(beta) * (1 - 0.5 * 0.96 ** (t * 0.3)) for t in range(1, 8)])
    assert kept == pytest.approx(exact, rel=1e-13)
    optimizer._engine = None
    step_with((optimizer,), [random_grad(param)])
    after = exact * float(beta) * (1 - 0.5 * 0.96 ** (8 * 0.3))
    assert optimizer.state[param]["mu_product"].item() == pytest.approx(after, rel=1e-13)


@pytest.mark.parametrize("count", [-1.0, float("nan"), float("inf")])
def test_a_product_needs_a_count(count: float) -> None:
    (param,) = new_parameters("cpu")
    optimizer = lrfast.NAdam([param])
    step_with((optimizer,), [random_grad(param)])
    assert optimizer._engine is not None
    with pytest.raises(ValueError, match="count of updates must be 0 or more, got"):
        optimizer._engine.product_after(0, count)


def test_each_parameter_has_its_own_product_of_betas() -> None:
    """Two in one group that take turns have the same count and other betas behind them."""
    params = new_parameters("cpu", 2)
    schedule = schedules.one_cycle(12, momentum=(0.95, 0.2))
    optimizer = ADAMW.ours(params, **ADAMW.options, schedule=schedule)
    ours = [(p.detach().numpy().copy(), {"beta1_product": 1.0}) for p in params]
    for step in range(12):
        momentum = schedule.momentum([step])
        assert momentum is not None
        options = dict(ADAMW.options, lr=ADAMW.options["lr"] * schedule.at(step))
        options["betas"] = (float(momentum[0]), options["betas"][1])
        for i, param in enumerate(params):
            param.grad = random_grad(param) if step >= 4 or step % 2 == i else None
            if param.grad is not None:
                ours[i] = ADAMW.rule(ours[i][0], param.grad.numpy(), ours[i][1], **options)
        optimizer.step()
        for param, (value, _) in zip(params, ours, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_ratios_between_groups_survive(case: OptimizerCase) -> None:
    params = new_parameters("cpu", 2)
    optimizer = case.ours(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 0.125}],
        schedule=schedules.sweep(1e-6, 1.0, 30),
    )
    for _ in range(30):
        step_with((optimizer,), [random_grad(p) for p in params])
        body, head = optimizer.last_rates.tolist()
        assert body == 4 * head


def test_a_rate_set_under_a_schedule_is_multiplied() -> None:
    params = new_parameters("cpu")
    optimizer = SGD.ours(params, lr=0.1, schedule=schedules.linear(0.0, 1.0, 10))
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 * (step + 1)
        step_with((optimizer,), [random_grad(p) for p in params])
        assert optimizer.last_rates.tolist() == [0.1 * (step + 1) * (step / 10)]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_detaching_leaves_the_rates_where_they_are(case: OptimizerCase) -> None:
    params = new_parameters("cpu", 2)
    optimizer = case.ours(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 0.25}],
        schedule=[schedules.linear(1.0, 0.0, 8), None],
    )
    for _ in range(2):
        step_with((optimizer,), [random_grad(p) for p in params])
    optimizer.set_schedule(None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.375, 0.25]
    for _ in range(3):
        step_with((optimizer,), [random_grad(p) for p in params])
        assert optimizer.last_rates.tolist() == [0.375, 0.25]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_new_schedule_starts_at_its_beginning(case: OptimizerCase) -> None:
    params = new_parameters("cpu")
    optimizer = case.ours(params, lr=1.0, schedule=schedules.linear(0.5, 1.0, 8))
    for _ in range(5):
        step_with((optimizer,), [random_grad(p) for p in params])
    schedule = schedules.one_cycle(9)
    optimizer.set_schedule(schedule)
    for step in range(10):
        assert optimizer.schedule_step == step
        step_with((optimizer,), [random_grad(p) for p in params])
        assert optimizer.last_rates.tolist() == [schedule.at(step)]
    assert optimizer.state_dict()["lrfast"]["schedule_step"] == 10
    if "step" in optimizer.state[params[0]]:
        assert optimizer.state[params[0]]["step"].item() == 15


def test_two_schedules_one_after_the_other_share_the_product_of_betas() -> None:
    """Detached in between: those steps' betas belong to the product, too."""
    (param,) = new_parameters("cpu")
    optimizer = ADAMW.ours([param], **ADAMW.options)
    product, betas = 1.0, ADAMW.options["betas"]
    for schedule in (schedules.one_cycle(7), None, schedules.one_cycle(5)):
        optimizer.set_schedule(schedule)
        # Loaded states are looked up anew: nothing may hang on what the engine remembers.
        optimizer.load_state_dict(optimizer.state_dict())
        for step in range(6):
            step_with((optimizer,), [random_grad(param)])
            momentum = schedule.momentum([step]) if schedule else None
            product *= betas[0] if momentum is None else float(momentum[0])
    assert optimizer.state[param]["beta1_product"].item() == pytest.approx(product, rel=1e-6)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_torch_schedulers_drive_our_optimizer(case: OptimizerCase) -> None:
    """StepLR and OneCycleLR, which also cycles momentum or beta1: the values used are theirs."""
    cycles = bool({"betas", "momentum"} & case.options.keys())
    makers = [
        lambda o: lr_scheduler.StepLR(o, 3, 0.5),
        lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.02], total_steps=12, cycle_momentum=cycles),
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    ]
    for make in makers:
        params = new_parameters("cpu", 2)
        others = twins(params)
        pair = []
        for cls, tensors in ((case.ours, params), (case.theirs, others)):
            optimizer = cls([{"params": [p]} for p in tensors], **case.options)
            pair.append((optimizer, make(optimizer)))
        for _ in range(12):
            step_with(tuple(optimizer for optimizer, _ in pair), [random_grad(p) for p in params])
            ours, theirs = pair[0][0], pair[1][0]
            assert ours.last_rates.tolist() == [g["lr"] for g in theirs.param_groups]
            assert_same(params, others)
            for _, scheduler in pair:
                if scheduler.last_epoch < 11:
                    scheduler.step()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_tripped_flag_stops_everything(case: OptimizerCase, device: torch.device) -> None:
    """Parameters, states, counts and the schedule's step stay as they were, and may go on later."""
    params = new_parameters(device, 2)
    optimizer = case.ours(params, **case.options, schedule=schedules.one_cycle(20))
    curve = LossCurve(100, device, beta=0.0, diverge_threshold=2.0)
    optimizer._watch(curve.stop_flag)
    for loss in (1.0, 0.5, 0.9):
        before = params[0].detach().clone()
        curve.record(torch.tensor(loss, device=device))
        step_with((optimizer,), [random_grad(p) for p in params])
        assert not torch.equal(before, params[0])
    curve.record(torch.tensor(3.0, device=device))
    assert curve.status().outcome == "diverged"
    kept = [p.detach().clone() for p in params]
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
    for _ in range(4):
        curve.record(torch.tensor(0.1, device=device))
        step_with((optimizer,), [random_grad(p) for p in params])
    for param, old, old_states in zip(params, kept, states, strict=True):
        assert torch.equal(param, old)
        assert all(torch.equal(optimizer.state[param][k], v) for k, v in old_states.items())
    assert optimizer.schedule_step == 3
    optimizer._watch(None)
    step_with((optimizer,), [random_grad(p) for p in params])
    assert optimizer.schedule_step == 4
    assert not torch.equal(params[0], kept[0])


def test_a_flag_that_trips_before_the_first_step_leaves_that_step_the_first() -> None:
    """SGD's first step is not dampened, whenever it comes."""
    params = new_parameters("cpu")
    others = twins(params)
    ours, theirs = SGD.ours(params, **SGD.options), SGD.theirs(others, **SGD.options)
    flag = torch.ones(1, dtype=torch.float64)
    ours._watch(flag)
    step_with((ours,), [random_grad(p) for p in params])
    flag.zero_()
    for _ in range(3):
        step_with((ours, theirs), [random_grad(p) for p in params])
        assert_same(params, others)


def test_a_step_uses_the_schedules_weight_decay(device: torch.device) -> None:
    """Against torch with the weight decay set by hand before every step."""
    params = new_parameters(device)
    others = twins(params)
    decay = schedules.linear(1.0, 0.1, 6)
    schedule = schedules.constant(1.0).with_weight_decay(decay)
    ours = lrfast.SGD(params, lr=0.1, weight_decay=0.3, schedule=schedule)
    theirs = torch.optim.SGD(others, lr=0.1, weight_decay=0.3)
    for step in range(6):
        theirs.param_groups[0]["weight_decay"] = 0.3 * decay.at(step)
        for param, other in zip(params, others, strict=True):
            param.grad = torch.ones_like(param)
            other.grad = param.grad.clone()
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)
