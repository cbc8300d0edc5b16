"""Bugs of the peers' schedules, each with a test that shows our right value.

torch's are reproduced beside ours; other libraries' are stated by their formulas.
"""

from __future__ import annotations

import ast
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import schedule_peers as peers
from torch.optim import lr_scheduler as lrs
from torch_schedules import TINY, Make, torch_optimizer, torch_run

import lrfast
from lrfast import schedules

# The bug, and the tests that show ours.
BUGS = {
    "torch OneCycleLR: rebounds, or goes negative, at t = T": [
        "test_torchs_one_cycle_rebounds_and_ours_holds"
    ],
    "torch OneCycleLR: momentum leaves its range at t = T": [
        "test_one_cycles_momentum_ends_where_it_began"
    ],
    "torch OneCycleLR: divides by zero where pct_start * T is 1": [
        "test_torch_divides_by_zero_and_we_begin_at_the_peak"
    ],
    "torch OneCycleLR: divides by zero behind pct_start = 1": ["test_a_cycle_that_only_rises"],
    "torch OneCycleLR: misses its peak": ["test_torch_misses_the_peak_and_we_hit_it"],
    "torch OneCycleLR: pct_start = 0 and one step have no peak": [
        "test_the_shortest_cycles_have_a_peak"
    ],
    "torch CyclicLR: a state dict can be loaded once": [
        "test_a_state_dict_is_loaded_as_often_as_one_likes"
    ],
    "torch CosineAnnealingLR: rises again": ["test_the_cosine_does_not_rise_again"],
    "torch CosineAnnealingLR, OneCycleLR, LambdaLR: a group added later": [
        "test_a_group_added_later"
    ],
    "torch CosineAnnealingWarmRestarts: two ways to step disagree": [
        "test_torchs_two_warm_restarts_disagree_and_ours_is_the_first"
    ],
    "torch CosineAnnealingWarmRestarts: eta_min is never used": [
        "test_the_last_cycle_hits_its_end"
    ],
    "torch ExponentialLR: drifts with a rate in a float32 tensor": [
        "test_a_rate_in_a_tensor_does_not_drift"
    ],
    "torch LinearLR: no factor above 1": ["test_a_line_above_one"],
    "torch ConstantLR: divides by zero with factor 0": ["test_a_rest_at_zero_ends"],
    "torch LambdaLR: functions are not saved": ["test_a_function_is_saved"],
    "torch SequentialLR: nested, a step ahead": [
        "test_torchs_turns_in_a_turn_are_a_step_ahead_and_ours_are_not"
    ],
    "torch SequentialLR: later turns or chains raise": [
        "test_torch_cannot_come_to_turns_or_chains_later_and_ours_can"
    ],
    "torch SequentialLR: begun at a later step": ["test_turns_begun_at_a_later_step"],
    "torch ChainedScheduler: order matters": ["test_factors_commute"],
    "torch ChainedScheduler: no plateau": ["test_the_step_uses_the_scale_on_top_of_the_schedule"],
    "torch ReduceLROnPlateau: waits for the device": ["test_never_reads_the_device"],
    "torch, all: the order of a resume": [
        "test_torchs_order_of_a_resume",
        "test_every_order_at_every_step",
    ],
    "torch, all: another length is silently the old one": [
        "test_another_length_goes_on_and_says_so"
    ],
    "torch, closed forms: wrong after the scheduler's state alone": [
        "test_torchs_order_of_a_resume"
    ],
    "fastai fit_one_cycle: the end is never reached": ["test_the_end_that_fastai_never_reaches"],
    "fastai fit_sgdr: cycle_mult 1 divides by zero, 1.5 does not add up": [
        "test_cycles_with_an_end"
    ],
    "fastai fit_flat_cos: start_epoch is ignored": [
        "test_a_run_that_is_resumed_goes_on_in_its_schedule"
    ],
    "optax: phases that end at one step collapse": ["test_phases_of_no_length"],
    "timm cosine: off by a cycle": [
        "test_values_are_the_formulas",
        "test_jumps_into_growing_cycles",
    ],
    "timm cosine: jumps where the warm-up ends": ["test_no_jump_where_the_warm_up_ends"],
    "timm MultiStepLR: an epoch early": ["test_milestones_are_not_one_step_early"],
    "timm plateau: forgets its counts": ["test_resumes"],
    "ULMFiT: falls below its end, divides by zero": [
        "test_the_slanted_triangle_ends_where_the_paper_falls_below"
    ],
    "transformers polynomial: a wrong end for groups of another rate": [
        "test_a_floor_is_a_fraction_of_each_groups_rate"
    ],
    "transformers polynomial: divides by zero where all is warm-up": [
        "test_a_warm_up_of_the_whole_length"
    ],
    "keras, optax plateau: one evaluation earlier": ["test_keras_cuts_one_observation_earlier"],
    "keras: no plateau on top of a schedule": [
        "test_the_step_uses_the_scale_on_top_of_the_schedule"
    ],
    "ignite PiecewiseLinear: cannot go back": ["test_any_tree_at_any_step_is_its_formula"],
    "NVIDIA PolyWarmUpScheduler: one rate for all groups": ["test_ratios_between_groups_survive"],
}

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")


def test_every_bug_of_the_table_has_its_test() -> None:
    """The names in the table are those of tests that exist."""
    named = {name for tests in BUGS.values() for name in tests}
    assert all(BUGS.values())
    trees = (ast.parse(path.read_text()) for path in Path(__file__).parents[1].rglob("test_*.py"))
    defined = {
        node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    assert named - defined == set()


def test_one_cycles_momentum_ends_where_it_began() -> None:
    _, momenta = torch_run(lambda o: lrs.OneCycleLR(o, 1.0, 10), 11)
    assert momenta[9] == 0.95 > momenta[10]
    for compat in (None, "torch"):
        momentum = schedules.one_cycle(10, compat=compat).momentum([9, 10, 11, 10**6])
        assert momentum is not None and momentum.tolist() == [0.95] * 4


def test_a_cycle_that_only_rises() -> None:
    with pytest.raises(ZeroDivisionError):
        torch_run(lambda o: lrs.OneCycleLR(o, 1.0, 10, pct_start=1.0), 11)
    for compat in (None, "torch"):
        values = schedules.one_cycle(10, 1.0, compat=compat).values([9, 10, 11, 10**6])
        assert values.tolist() == [1.0] * 4


def test_the_shortest_cycles_have_a_peak() -> None:
    assert torch_run(lambda o: lrs.OneCycleLR(o, 1.0, 1), 1)[0] == [4e-6]
    assert torch_run(lambda o: lrs.OneCycleLR(o, 1.0, 10, pct_start=0.0), 1)[0][0] < 0.98
    assert schedules.one_cycle(1).at(0) == schedules.one_cycle(10, 0.0).at(0) == 1.0
    for total in range(1, 12):
        for three_phase in (False, True):
            schedule = schedules.one_cycle(total, 0.5, three_phase=three_phase)
            assert schedule.values(range(total)).max() == 1.0
            assert total < 2 or schedule.at(total - 1) in (4e-6, 1 / 25 / 1e4) or total == 2


def test_a_state_dict_is_loaded_as_often_as_one_likes() -> None:
    theirs = lrs.CyclicLR(torch_optimizer(), 0.1, 1.0, 5)
    state = theirs.state_dict()
    theirs.load_state_dict(state)
    with pytest.raises(KeyError):
        theirs.load_state_dict(state)
    data = schedules.cyclic(5).to_dict()
    assert schedules.Schedule.from_dict(data) == schedules.Schedule.from_dict(data)
    ours = optimizer_of(schedules.cyclic(5))
    saved = ours.state_dict()
    for _ in range(2):
        ours.load_state_dict(saved)
    assert ours.schedules == [schedules.cyclic(5)]


def test_the_cosine_does_not_rise_again() -> None:
    rates, _ = torch_run(lambda o: lrs.CosineAnnealingLR(o, 10, 0.1), 16)
    assert rates[10] == pytest.approx(0.1) and rates[15] > 0.5
    assert schedules.cosine(10, 0.1).values([10, 15, 20, 10**6]).tolist() == [0.1] * 4


def test_a_group_added_later() -> None:
    """torch's runs off its schedule, or raises; ours has the schedule that it is given."""
    for make in (
        lambda o: lrs.OneCycleLR(o, 1.0, 20),
        lambda o: lrs.LambdaLR(o, lambda t: 0.5),
        lambda o: lrs.CosineAnnealingLR(o, 10),
    ):
        theirs = torch_optimizer()
        scheduler = make(theirs)
        step_both(theirs, scheduler, 3)
        own = {} if isinstance(scheduler, lrs.OneCycleLR) else {"initial_lr": 1.0}
        theirs.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0} | own)
        if not isinstance(scheduler, lrs.CosineAnnealingLR):
            with pytest.raises((KeyError, ValueError)):
                step_both(theirs, scheduler, 1)
            continue
        step_both(theirs, scheduler, 1)
        rates = [group["lr"] for group in theirs.param_groups]
        assert abs(rates[1] - rates[0]) > 0.1
    ours = optimizer_of(schedules.cosine(10))
    step_ours(ours, 3)
    ours.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0})
    ours.set_schedule(schedules.cosine(10), step=ours.schedule_step)
    step_ours(ours, 1)
    assert ours.last_rates.tolist() == [schedules.cosine(10).at(3)] * 2


def test_the_last_cycle_hits_its_end() -> None:
    rates, _ = torch_run(lambda o: lrs.CosineAnnealingWarmRestarts(o, 10, 1, 0.1), 20)
    assert min(rates) > 0.12
    schedule = schedules.sgdr(10, cycles=2, eta_min=0.1)
    assert schedule.values([19, 20, 10**6]).tolist() == [0.1] * 3 and schedule.at(18) > 0.1
    np.testing.assert_allclose(schedule.values(range(11)), rates[:11], rtol=0, atol=TINY)


def test_a_rate_in_a_tensor_does_not_drift() -> None:
    gamma, steps = 0.9995, 20_000
    param = torch.zeros(1, requires_grad=True)
    theirs = torch.optim.SGD([param], lr=torch.tensor(1.0))
    step_both(theirs, lrs.ExponentialLR(theirs, gamma), steps)
    exact = gamma**steps
    assert abs(float(theirs.param_groups[0]["lr"]) / exact - 1) > 1e-4
    ours = lrfast.SGD([param], lr=torch.tensor(1.0))
    ours.set_schedule(schedules.exponential(steps, gamma), step=steps)
    step_ours(ours, 1)
    assert ours.last_rates.item() == pytest.approx(exact, rel=1e-12)


def test_a_line_above_one() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        lrs.LinearLR(torch_optimizer(), 0.5, 2.0, 4)
    assert schedules.linear(0.5, 2.0, 4).values(range(6)).tolist() == [
        0.5,
        0.875,
        1.25,
        1.625,
        2.0,
        2.0,
    ]


def test_a_rest_at_zero_ends() -> None:
    with pytest.raises(ZeroDivisionError):
        torch_run(lambda o: lrs.ConstantLR(o, 0.0, 3), 6)
    schedule = schedules.constant(0.0).lasting(3).then(schedules.constant())
    assert schedule.values(range(5)).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_a_function_is_saved() -> None:
    assert lrs.LambdaLR(torch_optimizer(), lambda t: 0.5).state_dict()["lr_lambdas"] == [None]
    schedule = schedules.from_function(lambda t: 1 / (1 + t), 9)
    ours = optimizer_of(None)
    ours.load_state_dict(optimizer_of(schedule).state_dict())
    assert ours.schedules == [schedule]


def test_turns_begun_at_a_later_step() -> None:
    """pytorch#162591: begun at step 4, one step behind the milestone, the first part is at work."""
    theirs = torch_optimizer()
    theirs.param_groups[0]["initial_lr"] = 1.0
    parts = [lrs.ConstantLR(theirs, 0.1, 3), lrs.ExponentialLR(theirs, 0.9)]
    lrs.SequentialLR(theirs, parts, [3], last_epoch=4)
    assert theirs.param_groups[0]["lr"] == pytest.approx(0.1)
    ours = optimizer_of(None)
    schedule = schedules.constant(0.1).lasting(3).then(schedules.exponential(99, 0.9))
    ours.set_schedule(schedule, step=4)
    step_ours(ours, 1)
    assert ours.last_rates.item() == pytest.approx(0.9, rel=1e-14)


def test_factors_commute() -> None:
    def chain(*makers: Make) -> Make:
        return lambda o: lrs.ChainedScheduler([make(o) for make in makers])

    decay = lambda o: lrs.ExponentialLR(o, 0.9)  # noqa: E731
    function = lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + t))  # noqa: E731
    one, other = (
        torch_run(chain(*order), 9)[0] for order in ((decay, function), (function, decay))
    )
    assert abs(one[5] - other[5]) > 0.01  # the function overwrites what ran before it
    ours = schedules.exponential(99, 0.9), schedules.from_function(lambda t: 1 / (1 + t), 99)
    wanted = [0.9**t / (1 + t) for t in range(9)]
    for product in (ours[0] * ours[1], ours[1] * ours[0]):
        np.testing.assert_allclose(product.values(range(9)), wanted, rtol=TINY)


@pytest.mark.parametrize(
    ("make", "wrong", "later"),
    [
        (lambda o: lrs.OneCycleLR(o, 1.0, 20), "optimizer first", False),
        (lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + t)), "optimizer first", False),
        (lambda o: lrs.LinearLR(o, 0.1, 1.0, 20), "optimizer first", True),
        (lambda o: lrs.CosineAnnealingLR(o, 20), "scheduler alone", True),
        (lambda o: lrs.StepLR(o, 3, 0.5), "scheduler alone", True),
    ],
    ids=["one-cycle", "lambda", "linear", "cosine", "step"],
)
def test_torchs_order_of_a_resume(make: Make, wrong: str, later: bool) -> None:
    """The rate of the next step, and that of later ones; ours: finetune/test_resume_orders.py."""
    source = torch_optimizer()
    scheduler = make(source)
    step_both(source, scheduler, 4)
    resumed = torch_optimizer()
    if wrong == "optimizer first":
        resumed.load_state_dict(source.state_dict())
    other = make(resumed)
    other.load_state_dict(scheduler.state_dict())
    assert abs(resumed.param_groups[0]["lr"] - source.param_groups[0]["lr"]) > 1e-3
    for optimizer, each in ((source, scheduler), (resumed, other)):
        step_both(optimizer, each, 1)
    gap = abs(resumed.param_groups[0]["lr"] - source.param_groups[0]["lr"])
    assert gap > 1e-3 if later else gap < 1e-12


def test_another_length_goes_on_and_says_so() -> None:
    theirs = lrs.CosineAnnealingLR(torch_optimizer(), 99)
    theirs.load_state_dict(lrs.CosineAnnealingLR(torch_optimizer(), 10).state_dict())
    assert theirs.T_max == 10
    ours = optimizer_of(schedules.cosine(99))
    with pytest.warns(UserWarning, match="total steps: 10 against 99"):
        ours.load_state_dict(optimizer_of(schedules.cosine(10)).state_dict())
    assert ours.schedules == [schedules.cosine(99)]


def test_the_end_that_fastai_never_reaches() -> None:
    theirs = peers.fastai_one_cycle(399, 400, 0.25, (1 / 25, 1.0, 1e-5))
    assert theirs == pytest.approx(3.74e-5, rel=0.01)
    assert schedules.one_cycle(400, compat="fastai").at(399) == pytest.approx(theirs, rel=1e-9)
    ours = schedules.one_cycle(400, 0.25, final_div_factor=4e3)
    assert ours.at(399) == ours.at(400) == 1e-5
    flat = schedules.flat_cosine(400, 0.75, 1e-5, compat="fastai")
    assert flat.at(399) == pytest.approx(peers.fastai_flat_cosine(399, 400, 0.75, 1e-5), rel=1e-9)
    assert flat.at(399) > 1e-4 and schedules.flat_cosine(400, 0.75, 1e-5).at(399) == 1e-5


def test_phases_of_no_length() -> None:
    """A rise of less than a step: the cycle begins at its peak, by optax's ends too."""
    for total in (2, 3, 9):
        schedule = schedules.one_cycle(total, 0.1, compat="optax")
        assert schedule.at(0) == 1.0 and schedule.at(total) == 1 / 25 / 1e4
    assert schedules.flat_cosine(1, 0.0).values([0, 1]).tolist() == [1.0, 1.0]


def test_no_jump_where_the_warm_up_ends() -> None:
    """timm's cosine counts from step 0 behind a warm-up of its own: from .270 to .293 of .3."""
    rise, fall = np.linspace(0.0, 0.3, 10, endpoint=False), 0.15 * (1 + np.cos(np.pi * 5 / 100))
    assert fall < 0.3 and rise[-1] == pytest.approx(0.27)
    values = 0.3 * schedules.warmup(10).then(schedules.cosine(90)).values(range(101))
    assert values[10] == 0.3 == values.max() and values[100] == 0.0
    assert np.abs(np.diff(values)).max() < 0.0301


def test_a_floor_is_a_fraction_of_each_groups_rate() -> None:
    """transformers takes the floor as a rate, and divides all groups by the default's."""
    params = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    ours = lrfast.SGD([{"params": [params[0]], "lr": 0.1}, {"params": [params[1]], "lr": 1e-3}])
    ours.set_schedule(schedules.polynomial(10, 1.0, end=0.01), step=10)
    step_ours(ours, 1)
    assert ours.last_rates.tolist() == pytest.approx([1e-3, 1e-5], rel=1e-14)


def test_a_warm_up_of_the_whole_length() -> None:
    schedule = schedules.warmup(10).then(schedules.polynomial(1, 1.0, 0.1))
    assert schedule.values([9, 10, 11, 12]).tolist() == [0.9, 1.0, 0.1, 0.1]
    assert schedules.inverse_sqrt(10, 10).values([9, 10, 11]).tolist() == [0.9, 1.0, 1.0]
    assert math.isclose(schedules.wsd(11, 10, 1).at(10), 1.0)


def optimizer_of(schedule: Any) -> Any:
    return lrfast.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, schedule=schedule)


def step_both(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.step()
            scheduler.step()


def step_ours(optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()
