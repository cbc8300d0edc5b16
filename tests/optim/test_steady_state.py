"""From its second step on, an unchanged optimizer rebuilds, allocates and calls nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, random_grad
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lrfast
from lrfast import schedules

ALL_PASSES = {
    "max_grad_norm": 1.0,
    "skip_nonfinite": True,
    "zero_grads": True,
    "ema_decay": 0.9,
    "telemetry": 8,
}


class NoOperations(TorchDispatchMode):
    """Fails on any operation of torch's: each may allocate, launch or wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the step called {func}")


def make(case: OptimizerCase, **options: Any) -> Any:
    params = [torch.nn.Parameter(torch.randn(n, 3)) for n in (1, 40, 700)]
    optimizer = case.ours(case.groups(params), **case.options, **options)
    give_grads(optimizer)
    optimizer.step()
    return optimizer


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_grads(optimizer: Any) -> None:
    for param in params_of(optimizer):
        param.grad = random_grad(param)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_step_calls_no_operation_of_torchs(case: OptimizerCase) -> None:
    schedule = schedules.one_cycle(20, momentum=(0.95, 0.85))
    for options in ({}, {"schedule": schedule, **ALL_PASSES}):
        optimizer = make(case, **options)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        with NoOperations():
            for _ in range(3):
                optimizer.step()


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_step_leaves_no_python_object_behind(case: OptimizerCase) -> None:
    optimizer = make(case, **ALL_PASSES)
    for _ in range(3):
        optimizer.step()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(50):
            optimizer.step()
        assert len(gc.get_objects()) - before < 5
    finally:
        gc.enable()


def swap_storage(optimizer: Any) -> None:
    params_of(optimizer)[1].data = torch.randn_like(params_of(optimizer)[1])


def change_dtype(optimizer: Any) -> None:
    param = params_of(optimizer)[1]
    param.data = param.data.double()
    param.grad = random_grad(param)


def change_shape(optimizer: Any) -> None:
    param = params_of(optimizer)[1]
    param.grad = None
    param.data = torch.randn(2)
    optimizer.state.pop(param)
    param.grad = random_grad(param)


def add_group(optimizer: Any) -> None:
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    give_grads(optimizer)


def load_state(optimizer: Any) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def change_hyperparameters(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
        group["weight_decay"] = 0.2


def freeze(optimizer: Any) -> None:
    optimizer.param_groups[0]["frozen"] = True


def replace_state(optimizer: Any) -> None:
    param = params_of(optimizer)[0]
    optimizer.state[param] = {n: v.clone() for n, v in optimizer.state[param].items()}


# Rebuilds of the tables that the next step makes. New addresses are values in them.
EVENTS: tuple[tuple[Callable[[Any], None], int], ...] = (
    (lambda optimizer: None, 0),
    (give_grads, 0),
    (swap_storage, 0),
    (change_dtype, 0),
    (change_hyperparameters, 0),
    (freeze, 0),
    (replace_state, 0),
    (lambda optimizer: optimizer.set_schedule(schedules.one_cycle(9)), 0),
    (add_group, 1),
    (change_shape, 1),
    (load_state, 1),  # with a new engine
)


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=lambda e: getattr(e, "__name__", e))
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_tables_are_rebuilt_only_where_they_must_be(
    case: OptimizerCase, event: Callable[[Any], None], expected: int
) -> None:
    optimizer = make(case)
    optimizer.step()
    engine, before = optimizer._engine, optimizer._engine.rebuilds
    event(optimizer)
    optimizer.step()
    after = optimizer._engine.rebuilds
    assert after - (before if optimizer._engine is engine else 0) == expected
    optimizer.step()
    assert optimizer._engine.rebuilds == after


def test_rebuilds_come_from_the_engine() -> None:
    """So that the table above cannot count something that never changes."""
    optimizer = make(STATEFUL[0])
    assert optimizer._engine.rebuilds == 1
    for expected in (2, 3):
        add_group(optimizer)
        optimizer.step()
        assert optimizer._engine.rebuilds == expected


def test_results_do_not_depend_on_threads_with_all_passes() -> None:
    for case in STATEFUL:
        runs = []
        for threads in (1, 2, 5):
            torch.manual_seed(3)
            torch.set_num_threads(threads)
            params = [torch.nn.Parameter(torch.randn(n)) for n in (100_000, 7, 30_000)]
            optimizer = case.ours(case.groups(params), **case.options, **ALL_PASSES)
            for _ in range(3):
                give_grads(optimizer)
                optimizer.step()
            states = [v for p in params for v in optimizer.state[p].values()]
            runs.append([*params, *states, optimizer.grad_norm, optimizer.telemetry().update_norms])
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True)), case.name


def test_a_scheduled_step_with_torchs_scheduler_rereads_its_groups_alone() -> None:
    optimizer = make(STATEFUL[0])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    start = optimizer.param_groups[0]["lr"]
    for step in range(3):
        give_grads(optimizer)
        optimizer.step()
        assert optimizer.last_rates[0].item() == start * 0.5**step
        scheduler.step()
    assert optimizer._engine.rebuilds == 1


def test_lists_and_tensors_that_change_in_place_are_seen() -> None:
    """A param group's dict does not change with them."""
    param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rate, betas = torch.tensor(1.0, dtype=torch.float64), [0.0, 0.0]
    optimizer = lrfast.AdamW([param], lr=rate, betas=(0.0, 0.0), weight_decay=0.0, eps=0.0)
    optimizer.param_groups[0]["betas"] = betas
    steps = []
    for value in (1.0, 0.25):
        rate.fill_(value)
        param.grad = torch.ones_like(param)
        before = param.item()
        optimizer.step()
        steps.append(before - param.item())
    assert steps == pytest.approx([1.0, 0.25])
    betas[0] = 0.5
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].item() == pytest.approx(1.0)
    param.grad = torch.full_like(param, 3.0)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].item() == pytest.approx(2.0)
