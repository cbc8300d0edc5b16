"""Schedules against torch's classes: the same values, imported ones too; right where it errs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as lrs
from torch_schedules import STEPS, TINY, Make, torch_optimizer, torch_run

from lrfast import schedules
from lrfast.schedules import Schedule


def assert_is_torch(schedule: Schedule, make: Make, steps: int = STEPS, scale: float = 1.0) -> None:
    rates, momenta = torch_run(make, steps)
    np.testing.assert_allclose(
        schedule.values(range(steps)) * scale, rates, rtol=0, atol=TINY * scale
    )
    own = schedule.momentum(range(steps))
    if own is not None:
        np.testing.assert_allclose(own, momenta, rtol=0, atol=TINY)


def torch_cyclic(mode: Any, gamma: float = 1.0) -> Make:
    return lambda o: lrs.CyclicLR(
        o, 0.1, 1.0, 5, 7, mode=mode, gamma=gamma, base_momentum=0.8, max_momentum=0.95
    )


ROWS: list[tuple[str, Schedule, Make]] = [
    (
        "constant",
        schedules.constant(0.3).lasting(9).then(schedules.constant()),
        lambda o: lrs.ConstantLR(o, 0.3, 9),
    ),
    ("linear", schedules.linear(0.2, 0.9, 30), lambda o: lrs.LinearLR(o, 0.2, 0.9, 30)),
    ("warmup", schedules.warmup(30, 0.1), lambda o: lrs.LinearLR(o, 0.1, 1.0, 30)),
    ("exponential", schedules.exponential(99, 0.9), lambda o: lrs.ExponentialLR(o, 0.9)),
    ("polynomial", schedules.polynomial(40, 2.3), lambda o: lrs.PolynomialLR(o, 40, 2.3)),
    ("step", schedules.step(7, 0.3), lambda o: lrs.StepLR(o, 7, 0.3)),
    ("staircase", schedules.staircase(99, 7, 0.3), lambda o: lrs.StepLR(o, 7, 0.3)),
    (
        "multistep",
        schedules.multistep([3, 17, 17, 40], 0.4),
        lambda o: lrs.MultiStepLR(o, [3, 17, 17, 40], 0.4),
    ),
    ("cosine", schedules.cosine(63, 0.1), lambda o: lrs.CosineAnnealingLR(o, 63, 0.1)),
    (
        "sgdr-1",
        schedules.sgdr(7, eta_min=0.1),
        lambda o: lrs.CosineAnnealingWarmRestarts(o, 7, 1, 0.1),
    ),
    (
        "sgdr-2",
        schedules.sgdr(5, 2, eta_min=0.1),
        lambda o: lrs.CosineAnnealingWarmRestarts(o, 5, 2, 0.1),
    ),
    *(
        (f"cyclic-{mode}", schedules.cyclic(5, 7, 0.1, mode, gamma, (0.95, 0.8)), make)
        for mode, gamma in (("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.97))
        for make in (torch_cyclic(mode, gamma),)
    ),
    (
        "sequential",
        schedules.warmup(5, 0.1).then(schedules.exponential(8, 0.9)).then(schedules.step(9, 0.5)),
        lambda o: lrs.SequentialLR(
            o,
            [lrs.LinearLR(o, 0.1, 1, 5), lrs.ExponentialLR(o, 0.9), lrs.StepLR(o, 9, 0.5)],
            [5, 13],
        ),
    ),
    (
        "chained",
        schedules.warmup(5, 0.1) * schedules.exponential(99, 0.9) * schedules.step(9, 0.5),
        lambda o: lrs.ChainedScheduler(
            [lrs.LinearLR(o, 0.1, 1, 5), lrs.ExponentialLR(o, 0.9), lrs.StepLR(o, 9, 0.5)]
        ),
    ),
    (
        "function",
        schedules.from_function(lambda t: 1 / (1 + t) ** 0.3, STEPS),
        lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + t) ** 0.3),
    ),
]


@pytest.mark.parametrize(("name", "schedule", "make"), ROWS, ids=[row[0] for row in ROWS])
def test_values_are_torchs(name: str, schedule: Schedule, make: Make) -> None:
    assert_is_torch(schedule, make)


@pytest.mark.parametrize(("name", "schedule", "make"), ROWS, ids=[row[0] for row in ROWS])
def test_an_imported_scheduler_has_its_values(name: str, schedule: Schedule, make: Make) -> None:
    """And neither it nor its optimizer has moved."""
    optimizer = torch_optimizer()
    scheduler = make(optimizer)
    group = optimizer.param_groups[0]
    before = {key: value for key, value in group.items() if key != "params"}
    epoch = scheduler.last_epoch if hasattr(scheduler, "last_epoch") else None
    imported = schedules.from_torch(scheduler, STEPS)
    assert isinstance(imported, Schedule) and imported.total_steps == STEPS
    assert {key: value for key, value in group.items() if key != "params"} == before
    assert epoch is None or scheduler.last_epoch == epoch
    assert_is_torch(imported, make, scale=group["initial_lr"])
    assert (imported.momentum_track is None) == (schedule.momentum_track is None)
    assert imported.at(10**6) == imported.at(STEPS - 1)


ONCE_PER_EPOCH: list[tuple[str, Schedule, Make]] = [
    *ROWS,
    (
        "one-cycle",
        schedules.one_cycle(STEPS, 0.3, compat="torch"),
        lambda o: lrs.OneCycleLR(o, 1.0, STEPS, pct_start=0.3),
    ),
    (
        "multiplicative",
        schedules.from_function(lambda t: math.prod(1 / (1 + i) for i in range(1, t + 1)), STEPS),
        lambda o: lrs.MultiplicativeLR(o, lambda t: 1 / (1 + t)),
    ),
]


@pytest.mark.parametrize(
    ("name", "schedule", "make"), ONCE_PER_EPOCH, ids=[row[0] for row in ONCE_PER_EPOCH]
)
@pytest.mark.parametrize("imported", [False, True], ids=["made", "imported"])
def test_stepwise_it_is_torchs_that_steps_once_per_epoch(
    name: str, schedule: Schedule, make: Make, imported: bool
) -> None:
    """All of torch's classes: the value of an epoch is held until the next one, momentum too."""
    rates, momenta = torch_run(make)
    scale = 1.0
    if imported:
        optimizer = torch_optimizer()
        found = schedules.from_torch(make(optimizer), STEPS)
        scale = optimizer.param_groups[0]["initial_lr"]
        assert isinstance(found, Schedule)
        schedule = found
    stairs = schedules.per_epoch(schedule, 5, stepwise=True)
    assert stairs.total_steps == 5 * schedule.total_steps
    steps = range(5 * STEPS)
    np.testing.assert_allclose(
        stairs.values(steps) * scale, np.repeat(rates, 5), rtol=0, atol=TINY * scale
    )
    momentum = stairs.momentum(steps)
    if momentum is not None:
        np.testing.assert_allclose(momentum, np.repeat(momenta, 5), rtol=0, atol=TINY)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("compat", [None, "torch"])
@pytest.mark.parametrize(("total", "pct"), [(50, 0.3), (64, 0.25), (40, 0.5), (93, 0.41), (7, 0.3)])
def test_one_cycle_is_torchs(
    total: int, pct: float, compat: Any, three_phase: bool, anneal: Any
) -> None:
    """By default where the peak is a whole step, by name everywhere."""
    if compat is None and not math.isclose(pct * total, round(pct * total)):
        values = schedules.one_cycle(total, pct, three_phase=three_phase).values(range(total))
        assert values.max() == 1.0  # torch has no step at its peak there
        return
    schedule = schedules.one_cycle(
        total, pct, 20, 1e3, (0.95, 0.85), anneal, three_phase, compat=compat
    )

    def make(optimizer: Any) -> Any:
        return lrs.OneCycleLR(
            optimizer,
            1.0,
            total,
            pct_start=pct,
            anneal_strategy=anneal,
            div_factor=20,
            final_div_factor=1e3,
            three_phase=three_phase,
        )

    assert_is_torch(schedule, make, steps=total)
    assert len(set(schedule.values([total - 1, total, total + 1, 2**40]))) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 120), st.floats(0, 0.5), st.booleans(), st.sampled_from(["cos", "linear"]))
def test_one_cycle_is_torchs_at_random(total: int, pct: float, three: bool, anneal: Any) -> None:
    def make(optimizer: Any) -> Any:
        return lrs.OneCycleLR(
            optimizer, 1.0, total, pct_start=pct, anneal_strategy=anneal, three_phase=three
        )

    if abs(pct * total - 1) < 1e-6 or abs(2 * pct * total - 1 - total) < 1e-6:
        return  # torch divides by zero
    schedule = schedules.one_cycle(
        total, pct, anneal=anneal, three_phase=three, compat="torch", final_div_factor=1e4
    )
    assert_is_torch(schedule, make, steps=total)


def test_torchs_one_cycle_rebounds_and_ours_holds() -> None:
    make = lambda o: lrs.OneCycleLR(o, 1.0, 10, anneal_strategy="linear")  # noqa: E731
    assert torch_run(make, 11)[0][10] < -0.1
    for compat in (None, "torch"):
        assert schedules.one_cycle(10, anneal="linear", compat=compat).at(10) == 1 / 25 / 1e4


@pytest.mark.parametrize(("total", "pct"), [(10, 0.1), (2, 0.5), (4, 0.25)])
def test_torch_divides_by_zero_and_we_begin_at_the_peak(total: int, pct: float) -> None:
    with pytest.raises(ZeroDivisionError):
        torch_run(lambda o: lrs.OneCycleLR(o, 1.0, total, pct_start=pct), total)
    for compat in (None, "torch"):
        schedule = schedules.one_cycle(total, pct, compat=compat)
        assert schedule.at(0) == 1.0 and schedule.at(total) == 1 / 25 / 1e4


def test_torch_misses_the_peak_and_we_hit_it() -> None:
    assert max(torch_run(lambda o: lrs.OneCycleLR(o, 1.0, 7, pct_start=0.3), 7)[0]) < 0.99
    assert schedules.one_cycle(7, 0.3).values(range(7)).max() == 1.0


def test_torchs_two_warm_restarts_disagree_and_ours_is_the_first() -> None:
    """At the start of the sixth cycle its logarithm is off by one; integers are not."""
    starts = [10 * (3**cycle - 1) // 2 for cycle in range(9)]
    assert starts[5] == 1210
    schedule = schedules.sgdr(10, 3)
    assert schedule.values(starts).tolist() == [1.0] * len(starts)
    assert (schedule.values([start - 1 for start in starts[1:]]) < 0.03).all()
    scheduler = lrs.CosineAnnealingWarmRestarts(torch_optimizer(), 10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.step(1210)
    assert scheduler.get_last_lr()[0] < 0.01


def test_groups_that_differ_get_a_schedule_each() -> None:
    optimizer = torch_optimizer(2)
    scheduler = lrs.LambdaLR(optimizer, [lambda t: 1.0 + t, lambda t: 1.0])
    first, second = schedules.from_torch(scheduler, 3)  # type: ignore[misc]
    assert first.values(range(4)).tolist() == [1.0, 2.0, 3.0, 3.0]
    assert second.values(range(4)).tolist() == [1.0] * 4


def test_a_scheduler_in_mid_course_goes_on() -> None:
    optimizer = torch_optimizer()
    scheduler = lrs.StepLR(optimizer, 3, 0.5)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    imported = schedules.from_torch(scheduler, 5)
    assert isinstance(imported, Schedule)
    assert imported.values(range(5)).tolist() == [1.0, 0.5, 0.5, 0.5, 0.25]


def test_schedulers_that_cannot_be_imported() -> None:
    optimizer = torch_optimizer()
    with pytest.raises(TypeError, match="follows the step alone, got Red"):
        schedules.from_torch(lrs.ReduceLROnPlateau(optimizer), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"scheduler must be a torch\.LRScheduler, got 3"):
        schedules.from_torch(3, 5)  # type: ignore[arg-type]
    rebounding = lrs.OneCycleLR(torch_optimizer(), 1.0, 10, anneal_strategy="linear")
    with pytest.raises(ValueError, match=r"must be finite and not negative, got -.* at step 10"):
        schedules.from_torch(rebounding, 11)
