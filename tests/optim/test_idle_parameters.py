"""A parameter that never gets a gradient makes no demands: torch trains beside any."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name
from idle_parameters import ALL, KINDS, idle
from torch import Tensor, nn

import lrfast

# Of nested and sparse tensors, and of quantised ones.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

OPTIONS: dict[str, Any] = {"ema_decay": 0.8, "max_grad_norm": 0.5, "telemetry": 8}


def name_of(row: tuple[str, bool]) -> str:
    return f"{row[0]}, {'unused' if row[1] else 'frozen'}"


def trained() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1.0, 2.0, 7))


def step(optimizer: Any, param: Tensor, number: int) -> None:
    param.grad = torch.linspace(2.0, -1.0, 7) + 0.3 * number
    optimizer.step()


def made(case: OptimizerCase, beside: list[nn.Parameter], **options: Any) -> tuple[Any, Any]:
    """An optimizer whose parameter stands between those that never train."""
    param = trained()
    groups: list[dict[str, Any]] = [{"params": [*beside, param]}]
    try:
        return case.ours(groups, **case.options, **options), param
    except Exception:
        try:  # torch's Adagrad makes states at once
            case.theirs([{"params": [*beside, param]}], **case.options)
        except Exception:
            pytest.skip("torch's own constructor refuses this kind")
        raise


@pytest.mark.parametrize("row", ALL, ids=name_of)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_steps_are_those_without_it(case: OptimizerCase, row: tuple[str, bool]) -> None:
    ours, param = made(case, [idle(*row)])
    alone, other = made(case, [])
    theirs_param = trained()
    theirs = case.theirs([idle(*row), theirs_param], **case.options)
    for number in range(3):
        for optimizer, each in ((ours, param), (alone, other), (theirs, theirs_param)):
            step(optimizer, each, number)
    assert torch.equal(param, other)
    torch.testing.assert_close(param, theirs_param)


@pytest.mark.parametrize("row", ALL, ids=name_of)
@pytest.mark.parametrize("case", [STATEFUL[0], STATEFUL[-1]], ids=by_name)
def test_everything_around_a_step_works(case: OptimizerCase, row: tuple[str, bool]) -> None:
    """Norms, averages, records, checkpoints, copies, later groups: all as without it."""
    runs = []
    for beside in ([idle(*row)], []):
        optimizer, param = made(case, beside, **OPTIONS)
        step(optimizer, param, 0)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(optimizer, param, 1)
        late = trained()
        optimizer.add_param_group({"params": [*([idle(*row)] if beside else []), late]})
        step(optimizer, late, 2)
        step(optimizer, param, 3)
        state = optimizer._engine_snapshot()
        step(optimizer, param, 4)
        optimizer._engine_restore(state)
        with optimizer.ema_parameters():
            averaged = param.detach().clone()
        records = optimizer.telemetry().grad_norms
        runs.append((param, late, averaged, optimizer.grad_norm, records))
    for mine, others in zip(*runs, strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize("kind", KINDS)
def test_demands_come_with_a_gradient(kind: str) -> None:
    """A kind that no kernel updates raises then, before anything has changed; others train."""
    param, beside = trained(), idle(kind)
    optimizer = lrfast.SGD([beside, param], lr=0.5, momentum=0.9)
    step(optimizer, param, 0)
    before = param.detach().clone()
    try:
        beside.grad = torch.ones_like(beside)
    except (RuntimeError, NotImplementedError):
        pytest.skip("torch gives this kind no gradient")
    if kind in ("with gaps", "empty"):
        old = beside.detach().clone()
        step(optimizer, param, 1)
        assert not torch.equal(before, param)
        assert beside.numel() == 0 or not torch.equal(old, beside)
        return
    with pytest.raises((TypeError, ValueError, RuntimeError), match="param"):
        step(optimizer, param, 1)
    assert torch.equal(before, param)


def test_a_parameter_that_becomes_ordinary_trains() -> None:
    param = trained()
    beside = nn.UninitializedParameter()
    optimizer = lrfast.AdamW([beside, param], lr=0.1)
    step(optimizer, param, 0)
    beside.materialize((3,))
    with torch.no_grad():
        beside.fill_(1.0)
    beside.grad = torch.ones(3)
    step(optimizer, param, 1)
    torch.testing.assert_close(beside.detach(), torch.full((3,), 0.899))


def test_a_parameter_that_stops_being_ordinary_is_left_alone() -> None:
    """Weights that were packed after training, and unpacked again."""
    param, beside = trained(), nn.Parameter(torch.ones(3))
    optimizer = lrfast.SGD([beside, param], lr=0.5)
    beside.grad = torch.ones(3)
    step(optimizer, param, 0)
    beside.grad = None
    beside.requires_grad_(False)
    beside.data = torch.arange(3)
    step(optimizer, param, 1)
    assert torch.equal(beside, torch.arange(3))
    beside.data = torch.ones(3)
    beside.grad = torch.ones(3)
    step(optimizer, param, 2)
    assert torch.equal(beside, torch.full((3,), 0.5))


def test_a_frozen_parameter_elsewhere_makes_no_tables_there() -> None:
    """Records need one device: that of the parameters that train."""
    param = trained()
    optimizer = lrfast.SGD([idle("meta"), param], lr=0.5, telemetry=4)
    step(optimizer, param, 0)
    assert optimizer._engine is not None and len(optimizer._engine.clocks()) == 1
    assert len(optimizer.telemetry().rates) == 1
