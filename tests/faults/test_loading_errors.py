"""What loaders of schedules and optimizers refuse, by name, and with nothing changed."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from loading import HUGE, Change, held
from torch import Tensor, nn

import lrfast
from lrfast import schedules
from lrfast._utils.extension import extension
from lrfast.integrations.scheduler import DeviceScheduler
from lrfast.schedules import Schedule


def expanded(*shape: int) -> Tensor:
    """A tensor that takes four bytes of a file, and terabytes where somebody copies it."""
    return torch.zeros(1).expand(*shape)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# Schedules.


def schedule_with(place: list[Any], value: Any) -> dict[str, Any]:
    """A schedule's dict, with another value at a place in it."""
    function = schedules.from_function(lambda step: 1 / (1 + step), 5)
    made = schedules.linear(0.5, 1.0, 4).then(function)
    data: Any = json.loads(json.dumps(made.to_dict()))
    inner = data
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return data  # type: ignore[no-any-return]


TABLE, SEGMENT = ["rate", 0, 0], ["rate", 0, 0, 6, 1]
SCHEDULES: list[tuple[list[Any], Any, str]] = [
    (["name"], 3, "name must be a string, got 3"),
    (["name"], "\ud800", "name must be text"),
    (["total_steps"], 0, r"total_steps must be a whole number in \[1, \d+\], got 0"),
    (["total_steps"], 2**63, "total_steps must be a whole number"),
    (["total_steps"], True, "total_steps must be a whole number"),
    (["rate"], [], "rate must be a list of 1 entries or more, got"),
    (["rate"], "abc", "rate must be a list"),
    (["momentum"], 0.5, "a track must be a list"),
    (TABLE, torch.zeros(1).expand(HUGE), "a table must be a list .*got a tensor of shape"),
    ([*TABLE, 0], -1, r"begin must be a whole number in \[0"),
    ([*TABLE, 1], 10**30, "period must be a whole number"),
    ([*TABLE, 2], math.nan, "gain must be a finite number .*got nan"),
    ([*TABLE, 3], -0.5, "decay must be a finite number .*got -0.5"),
    ([*TABLE, 4], math.inf, "floor must be a finite number, got inf"),
    ([*TABLE, 5], 0, r"stride must be a whole number in \[1"),
    ([*TABLE, 6], [], r"segments must begin at 0 and be in order, got begins \[\]"),
    ([*SEGMENT, 0], 1.5, "begin must be a whole number"),
    (["rate", 0, 0, 6, 0, 0], 7, "segments must begin at 0"),
    ([*SEGMENT, 1], math.nan, "t0 must be a finite number, got nan"),
    ([*SEGMENT, 2], math.nan, "span must be a finite number .*got nan"),
    ([*SEGMENT, 2], 6.0, "values must hold one number per step of the span, got 5 for"),
    ([*SEGMENT, 3], "0.5", "first must be a finite number, got '0.5'"),
    ([*SEGMENT, 5], "cubic", "shape must be one of constant, .*got 'cubic'"),
    ([*SEGMENT, 5], "exponential", None),  # which needs factors above 0, and has them
    ([*SEGMENT, 7], expanded(HUGE), "values must be a list, got a tensor"),
    ([*SEGMENT, 7], [1.0] * 4, "values must hold one number per step"),
    ([*SEGMENT, 7, 2], None, "values must be a finite number, got None"),
    (SEGMENT, [0, 0.0, 4, 0.0, 1.0, "exponential", 1.0, []], "exponential needs factors above 0"),
    (SEGMENT, [0, 0.0, 4, 1.0, 0.5, "inverse", 0.0, []], "inverse needs factors and a power"),
]


@pytest.mark.parametrize(("place", "value", "message"), SCHEDULES)
def test_schedules(place: list[Any], value: Any, message: str | None) -> None:
    data = schedule_with(place, value)
    if message is None:
        assert math.isfinite(Schedule.from_dict(data).at(6))
        return
    with pytest.raises(ValueError, match=message):
        Schedule.from_dict(data)


ENGINE: list[tuple[int | None, int, Any, str]] = [
    (None, 0, -1, "begin must lie in"),
    (None, 1, -3, "period must lie in"),
    (None, 5, 2**54, "stride must lie in"),
    (0, 0, -(2**63), "begin must lie in"),
    (0, 1, math.nan, "t0 must be finite, got nan"),
    (0, 1, -math.inf, "t0 must be finite, got -inf"),
    (0, 2, math.nan, "span must be finite, got nan"),
]


@pytest.mark.parametrize(("segment", "field", "value", "message"), ENGINE)
def test_the_engine_checks_what_becomes_a_place_in_memory(
    segment: int | None, field: int, value: Any, message: str
) -> None:
    """A span that is no number once had it read beyond the values."""
    encoded: Any = schedules.from_function(lambda step: 1 / (1 + step), 5).encode()
    table = list(encoded[0][0][0])
    if segment is None:
        table[field] = value
    else:
        row = list(table[6][segment])
        row[field] = value
        table[6] = [tuple(row)]
    with pytest.raises(ValueError, match=message):
        extension().evaluate_schedule(([[tuple(table)]], None, None), np.array([0, 3]))


# Optimizers.


def make_optimizer(make: Any = lrfast.AdamW, **options: Any) -> Any:
    """One that has made two steps, with a schedule."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(3))]
    optimizer = make(params, lr=0.1, schedule=schedules.cosine(9), **options)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    return optimizer


PLATEAU = {"kind": "Plateau", "arguments": {"window": HUGE}}
STATES: dict[str, tuple[Change, str]] = {
    "no groups": (lambda s: s.pop("param_groups"), "state_dict must hold 'param_groups'"),
    "group": (lambda s: s["param_groups"].append(3), r"param_groups\[1\] must be a dict, got 3"),
    "state": (lambda s: s.update(state=[1]), r"state must be a dict, got \[1\]"),
    "no lr": (lambda s: s["param_groups"][0].pop("lr"), "all hyperparameters: .*lr"),
    "lr": (lambda s: s["param_groups"][0].update(lr="big"), r"lr of param_groups\[0\] must be"),
    "huge lr": (lambda s: s["param_groups"][0].update(lr=10**400), "lr of .* finite"),
    "a beta whose powers overflow": (
        lambda s: s["param_groups"][0].update(betas=(1e300, 0.9)),
        r"betas must be a finite number in \[0, 1\], got 1e\+300",
    ),
    "betas": (lambda s: s["param_groups"][0].update(betas=0.9), r"\['betas'\]\[0\] is missing"),
    "nan": (lambda s: s["param_groups"][0].update(eps=math.nan), r"\['eps'\] must be finite"),
    "frozen": (
        lambda s: s["param_groups"][0].update(frozen=torch.ones(3)),
        "plain hyperparameters: .*ambiguous",
    ),
    "fused": (
        lambda s: s["param_groups"][0].update(fused=torch.ones(3)),
        r"param_groups\[0\]\['fused'\] must be True or False",
    ),
    "shape": (
        lambda s: s["state"][0].update(exp_avg=torch.ones(7)),
        r"state\[0\]\['exp_avg'\] must have its parameter's shape \[2, 3\], got .*\[7\]",
    ),
    "memory": (
        lambda s: s["state"][1].update(exp_avg=expanded(HUGE)),
        r"state\[1\]\['exp_avg'\] must have memory for its elements",
    ),
    "other memory": (
        lambda s: s["state"][1].update(mine=expanded(HUGE)),
        r"state\[1\]\['mine'\] must have memory for its elements",
    ),
    "sparse": (
        lambda s: s["state"][0].update(exp_avg=torch.ones(2, 3).to_sparse()),
        r"state\[0\]\['exp_avg'\] must be a dense tensor",
    ),
    "gradient": (
        lambda s: s["state"][0].update(exp_avg=torch.ones(2, 3).requires_grad_()),
        "got a tensor .*that requires a gradient",
    ),
    "count": (
        lambda s: s["state"][0].update(step=torch.tensor(-1.0)),
        r"state\[0\]\['step'\] must be a finite number in \[0",
    ),
    "nested": (lambda s: s["state"].update({99: nested(3000)}), r"state\[99\] must be plain data"),
    "unnamed": (lambda s: s["state"][0].update({None: torch.ones(3)}), "a state must be a string"),
    "schedule": (lambda s: s["lrfast"]["schedules"][0].pop("rate"), "without 'rate'"),
    "schedules": (lambda s: s["lrfast"]["schedules"].append(None), "one per param group, 1, got 2"),
    "no clock": (lambda s: s["lrfast"].pop("schedule_step"), "schedule_step must be a whole"),
    "clock": (lambda s: s["lrfast"].update(schedule_step=-7), "schedule_step must .*got -7"),
    "steps": (lambda s: s["lrfast"].update(steps=-7), "steps must be a whole number .*got -7"),
    "entry": (lambda s: s.update(lrfast=5), "lrfast must be a dict, got 5"),
    "kind": (lambda s: s["lrfast"].update(loss_schedule={"kind": 1}), "kind Plateau or Greedy"),
    "window": (
        lambda s: s["lrfast"].update(loss_schedule={**PLATEAU, "values": torch.ones(3)}),
        rf"values must be as many as the window, {HUGE}",
    ),
}


@pytest.mark.parametrize("schedule", [None, "saved", "own"])
@pytest.mark.parametrize("case", STATES)
def test_state_dicts(case: str, schedule: Any) -> None:
    change, message = STATES[case]
    state = copy.deepcopy(make_optimizer().state_dict())
    change(state)
    taker = make_optimizer()
    before = held(taker)
    with pytest.raises((TypeError, ValueError), match=message):
        taker.load_state_dict(state, schedule=schedule)
    assert held(taker) == before
    taker.step()  # and it goes on


def test_a_state_without_a_name_is_not_the_product_that_a_rule_has_none_of() -> None:
    optimizer = make_optimizer(lrfast.Adagrad)
    (param, other) = optimizer.param_groups[0]["params"]
    optimizer.state[param] = {"step": torch.tensor(1.0), None: torch.ones(3)}
    optimizer.step()
    assert "sum" in optimizer.state[param] and "sum" in optimizer.state[other]


def test_a_clock_that_is_no_count_does_not_reach_the_ring_of_records() -> None:
    optimizer = make_optimizer(telemetry=3)
    for clock in ((-1, 0), (0, -1), (2**60, 0)):
        with pytest.raises(ValueError, match="steps must lie in"):
            optimizer._engine.set_clock(*clock)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state_dict must hold 'last_epoch'"),
        ({"last_epoch": "3"}, "last_epoch must be a whole number .*got '3'"),
        ({"last_epoch": 3, "_step_count": -1}, "_step_count must be a whole number .*got -1"),
    ],
)
def test_the_face_of_a_scheduler(state: Any, message: str) -> None:
    scheduler = DeviceScheduler(make_optimizer())
    scheduler.step()
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before


PLATEAUS: list[tuple[str, Any, str]] = [
    ("best", torch.ones(2), r"best must be a tensor of shape \[\], .*got a tensor of shape \[2\]"),
    ("values", torch.ones(2), r"values must be a tensor of shape \[3\]"),
    ("values", 1.0, r"values must be a tensor of shape \[3\], .*got 1.0"),
    ("scale", math.nan, "scale must be a finite number .*got nan"),
    ("bad", torch.tensor(-1.0), "bad must be a finite number .*got -1.0"),
    ("arguments", [1], r"arguments must be a dict, got \[1\]"),
    ("arguments", {"mode": torch.ones(2)}, "mode must be a number, got a tensor"),
]


@pytest.mark.parametrize(("name", "value", "message"), PLATEAUS)
def test_loss_schedules(name: str, value: Any, message: str) -> None:
    plateau = lrfast.Plateau(make_optimizer(), window=3)
    plateau.observe(2.0)
    before = repr(plateau.state_dict())
    with pytest.raises(ValueError, match=message):
        plateau.load_state_dict(plateau.state_dict() | {name: value})
    assert repr(plateau.state_dict()) == before


@pytest.mark.parametrize("best", [0.1, 10**30, math.inf, torch.tensor(0.1, dtype=torch.float64)])
def test_a_loss_schedule_takes_numbers_with_all_their_digits(best: Any) -> None:
    plateau = lrfast.Plateau(make_optimizer(), window=3)
    plateau.load_state_dict(plateau.state_dict() | {"best": best})
    assert float(plateau.state_dict()["best"]) == float(best)
