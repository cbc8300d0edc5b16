"""Schedules: their values are the formulas', their ends and peaks exact, their algebra sound."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import schedules as reference
from torch.optim import lr_scheduler

import lrfast
from lrfast import schedules
from lrfast.schedules import Schedule

TINY = 1e-12  # relative; a schedule's double arithmetic leaves 1e-13 at its worst shape


def torch_rates(make: Callable[[Any], Any], steps: int) -> list[float]:
    """The rates of a torch scheduler over an optimizer of rate 1."""
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


ROWS: list[tuple[str, Schedule, Callable[[int], float]]] = [
    ("constant", schedules.constant(0.3), lambda t: reference.constant(t, 0.3)),
    ("linear", schedules.linear(0.1, 2.5, 70), lambda t: reference.linear(t, 0.1, 2.5, 70)),
    ("linear-down", schedules.linear(1.5, 0.0, 7), lambda t: reference.linear(t, 1.5, 0.0, 7)),
    (
        "linear-long",
        schedules.linear(1.0, 0.0, 100_000),
        lambda t: reference.linear(t, 1.0, 0.0, 100_000),
    ),
    ("cosine", schedules.cosine(70, 0.02), lambda t: reference.cosine(t, 70, 0.02)),
    ("cosine-0", schedules.cosine(100_000), lambda t: reference.cosine(t, 100_000, 0.0)),
    (
        "exponential",
        schedules.exponential(300, 0.97),
        lambda t: reference.exponential(t, 300, 0.97),
    ),
    (
        "exponential-up",
        schedules.exponential(100_000, 1.0001),
        lambda t: reference.exponential(t, 100_000, 1.0001),
    ),
    ("one-cycle", schedules.one_cycle(100), lambda t: reference.one_cycle(t, 100)),
    (
        "one-cycle-long",
        schedules.one_cycle(100_000, 0.25, 10, 1e6),
        lambda t: reference.one_cycle(t, 100_000, 0.25, 10, 1e6),
    ),
    (
        "one-cycle-linear",
        schedules.one_cycle(93, 0.41, anneal="linear"),
        lambda t: reference.one_cycle(t, 93, 0.41, anneal="linear"),
    ),
]


@pytest.mark.parametrize(("name", "schedule", "formula"), ROWS, ids=[row[0] for row in ROWS])
def test_values_are_the_formulas(
    name: str, schedule: Schedule, formula: Callable[[int], float]
) -> None:
    total = schedule.total_steps
    steps = sorted({*range(min(total + 20, 400)), *range(max(total - 200, 0), total + 5), 10**9})
    wanted = [formula(step) for step in steps]
    np.testing.assert_allclose(schedule.values(steps), wanted, rtol=TINY, atol=0)
    assert [schedule.at(step) for step in steps] == schedule.values(steps).tolist()


REFERENCE_IN_TORCH: list[tuple[str, Callable[[int], float], Callable[[Any], Any], int]] = [
    (
        "linear",
        lambda t: reference.linear(t, 0.2, 0.9, 40),
        lambda o: lr_scheduler.LinearLR(o, 0.2, 0.9, 40),
        60,
    ),
    (
        "cosine",
        lambda t: reference.cosine(t, 40, 0.1),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 40, 0.1),
        41,
    ),
    (
        "exponential",
        lambda t: reference.exponential(t, 40, 0.9),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        41,
    ),
    *(
        (
            f"one-cycle-{anneal}",
            lambda t, anneal=anneal: reference.one_cycle(t, 50, 0.3, 20, 1e3, anneal),
            lambda o, anneal=anneal: lr_scheduler.OneCycleLR(
                o,
                1.0,
                50,
                pct_start=0.3,
                div_factor=20,
                final_div_factor=1e3,
                anneal_strategy=anneal,
            ),
            49,
        )
        for anneal in ("cos", "linear")
    ),
]


@pytest.mark.parametrize(
    ("name", "formula", "make", "steps"), REFERENCE_IN_TORCH, ids=[r[0] for r in REFERENCE_IN_TORCH]
)
def test_reference_is_torch_where_they_agree(
    name: str, formula: Callable[[int], float], make: Callable[[Any], Any], steps: int
) -> None:
    wanted = torch_rates(make, steps)
    np.testing.assert_allclose([formula(t) for t in range(steps)], wanted, rtol=1e-10)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycles_momentum_is_the_formulas(anneal: Any) -> None:
    schedule = schedules.one_cycle(60, 0.4, momentum=(0.93, 0.81), anneal=anneal)
    steps = list(range(70))
    wanted = [reference.one_cycle_momentum(t, 60, 0.4, 0.93, 0.81, anneal) for t in steps]
    momentum = schedule.momentum(steps)
    assert momentum is not None
    np.testing.assert_allclose(momentum, wanted, rtol=TINY)
    assert schedules.one_cycle(60, momentum=None).momentum(steps) is None
    assert schedules.cosine(60).momentum(steps) is None


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10, 100, 99_999])
@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_hits_peak_and_end_exactly(total: int, pct_start: float, anneal: Any) -> None:
    schedule = schedules.one_cycle(total, pct_start, 25, 1e4, (0.95, 0.85), anneal)
    peak = max(round(pct_start * total) - 1, 0)
    momentum = schedule.momentum([0, peak, total - 1, total, 10 * total])
    assert momentum is not None
    assert schedule.at(peak) == 1.0 and momentum[1] == 0.85
    if peak > 0:
        assert schedule.at(0) == 1 / 25 and momentum[0] == 0.95
    if peak < total - 1:
        assert schedule.at(total - 1) == 1 / (25 * 1e4) and momentum[2] == 0.95
    for step in (total, total + 1, 10 * total, 2**40):
        assert schedule.at(step) == schedule.at(total - 1)
    assert momentum[3] == momentum[4] == momentum[2]


@pytest.mark.parametrize("total", [1, 2, 3, 1000])
def test_ends_are_exact_and_held(total: int) -> None:
    for schedule, first, last in (
        (schedules.linear(0.1, 0.7, total), 0.1, 0.7),
        (schedules.cosine(total, 0.3), 1.0, 0.3),
        (schedules.exponential(total, 0.9), 1.0, 0.9**total),
        (schedules.sweep(1e-7, 10.0, total + 1), 1e-7, 10.0),
    ):
        end = schedule.total_steps - (1 if schedule.name == "sweep" else 0)
        assert schedule.at(0) == first
        assert schedule.values([end, end + 1, end + 10**6]).tolist() == [last] * 3
        assert schedule.total_steps == (total + 1 if schedule.name == "sweep" else total)


def test_sweep_has_a_constant_ratio() -> None:
    rates = schedules.sweep(1e-7, 10.0, 100).values(range(100))
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e8 ** (1 / 99), rtol=TINY)


def test_sweep_over_300_decades() -> None:
    rates = schedules.sweep(1e-150, 1e150, 5).values(range(5))
    np.testing.assert_allclose(rates, [1e-150, 1e-75, 1.0, 1e75, 1e150], rtol=TINY)


def test_get_finds_every_schedule_and_names_the_nearest() -> None:
    for name in sorted(
        set(schedules.__all__) - {"Schedule", "Segment", "Table", "from_torch", "get", "per_epoch"}
    ):
        assert schedules.get(name) is getattr(schedules, name)
    with pytest.raises(ValueError, match=r"got 'one_cicle'; did you mean 'one_cycle'\?"):
        schedules.get("one_cicle")


counts = st.integers(1, 60)
factors = st.floats(0.0, 10.0)
some_schedules = st.one_of(
    st.builds(schedules.constant, factors),
    st.builds(schedules.linear, factors, factors, counts),
    st.builds(schedules.cosine, counts, factors),
    st.builds(schedules.exponential, counts, st.floats(0.5, 2.0)),
    st.builds(
        schedules.one_cycle,
        counts,
        st.floats(0, 1),
        st.floats(1, 100),
        st.floats(1, 1e5),
        st.sampled_from([None, (0.95, 0.85), (0.9, 0.0), (0.7, 0.7)]),
        st.sampled_from(["cos", "linear"]),
    ),
)
chains = st.recursive(
    some_schedules, lambda s: st.builds(lambda a, b: a.then(b), s, s), max_leaves=4
)
products = st.builds(lambda a, b: a * b, chains, chains.filter(lambda s: s.momentum_track is None))
any_schedules = st.one_of(chains, products)
STEPS = range(260)


@settings(max_examples=60)
@given(any_schedules)
def test_round_trip_through_json(schedule: Schedule) -> None:
    again = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule and hash(again) == hash(schedule)
    assert again.values(STEPS).tolist() == schedule.values(STEPS).tolist()


@settings(max_examples=60)
@given(any_schedules, any_schedules)
def test_then_is_one_after_the_other(first: Schedule, second: Schedule) -> None:
    both = first.then(second)
    here = first.total_steps
    assert both.total_steps == here + second.total_steps
    early = [step for step in STEPS if step < here]
    assert both.values(early).tolist() == first.values(early).tolist()
    later = [here + step for step in STEPS]
    np.testing.assert_allclose(both.values(later), second.values(STEPS), rtol=TINY, atol=1e-300)


MOVES: dict[str, Callable[[Schedule], Schedule]] = {
    "after a warm-up": lambda s: schedules.linear(0.1, 1.0, 7).then(s),
    "after itself": lambda s: s.then(s),
    "three times": lambda s: s.repeat(3),
    "in epochs": lambda s: schedules.per_epoch(s, 5),
    "held for epochs": lambda s: schedules.per_epoch(s, 5, stepwise=True),
    "of the weight decay": lambda s: schedules.constant().with_weight_decay(
        schedules.linear(0.1, 1.0, 7).then(s)
    ),
}


@pytest.mark.parametrize(("steps", "mult"), [(1, 2.0), (3, 1.3), (3, 1.5), (3, 2.0), (4, 3.0)])
@pytest.mark.parametrize("move", MOVES)
def test_cycles_without_end_may_be_moved(move: str, steps: int, mult: float) -> None:
    """Growing ones reach the last step that there is; later or slower, they would go beyond."""
    endless, ending = (
        MOVES[move](schedules.sgdr(steps, mult, cycles, 0.05, warmup=steps // 3).lasting(8))
        for cycles in (None, 9)
    )
    np.testing.assert_array_equal(endless.values(range(60)), ending.values(range(60)))
    again = Schedule.from_dict(json.loads(json.dumps(endless.to_dict())))
    assert again == endless
    optimizer = lrfast.SGD([torch.zeros(3, requires_grad=True)], lr=0.3, weight_decay=0.1)
    optimizer.set_schedule(endless)
    optimizer.step()
    assert optimizer.last_rates.tolist() == [0.3 * ending.at(0)]


@settings(max_examples=60)
@given(chains, chains)
@example(schedules.constant(), schedules.one_cycle(1))
@example(schedules.one_cycle(1), schedules.constant())
@example(schedules.constant(), schedules.one_cycle(5, pct_start=0.0))
def test_then_holds_a_momentum_that_only_one_sets(first: Schedule, second: Schedule) -> None:
    joined = first.then(second).momentum(STEPS)
    own, others = first.momentum(STEPS), second.momentum(STEPS)
    here = first.total_steps
    if own is None and others is None:
        assert joined is None
        return
    assert joined is not None
    if own is not None:
        assert joined[:here].tolist() == own[:here].tolist()
    else:
        assert others is not None
        assert (joined[:here] == others[0]).all()
    if others is not None:
        np.testing.assert_allclose(joined[here:], others[: len(STEPS) - here], rtol=TINY)
    else:
        assert own is not None
        assert (joined[here:] == own[here]).all()


@settings(max_examples=60)
@given(chains, chains.filter(lambda s: s.momentum_track is None))
def test_a_product_is_the_product(first: Schedule, second: Schedule) -> None:
    both = first * second
    assert both.total_steps == max(first.total_steps, second.total_steps)
    wanted = first.values(STEPS) * second.values(STEPS)
    np.testing.assert_allclose(both.values(STEPS), wanted, rtol=1e-15, atol=1e-300)
    momentum, own = both.momentum(STEPS), first.momentum(STEPS)
    assert (momentum is None) == (own is None)
    if momentum is not None and own is not None:
        assert momentum.tolist() == own.tolist()


@settings(max_examples=60)
@given(any_schedules)
def test_values_are_never_negative_and_held_at_the_end(schedule: Schedule) -> None:
    values = schedule.values(STEPS)
    assert (values >= 0).all() and np.isfinite(values).all()
    end = schedule.total_steps
    assert len({schedule.at(step) for step in (end, end + 1, end + 10**9)}) == 1
    momentum = schedule.momentum(STEPS)
    assert momentum is None or ((momentum >= 0) & (momentum < 1)).all()


@settings(max_examples=60)
@given(counts, st.floats(0, 1), st.sampled_from(["cos", "linear"]))
def test_one_cycle_rises_then_falls(total: int, pct_start: float, anneal: Any) -> None:
    schedule = schedules.one_cycle(total, pct_start, anneal=anneal)
    peak = max(round(pct_start * total) - 1, 0)
    values = schedule.values(range(total)).tolist()
    momentum = schedule.momentum(range(total))
    assert momentum is not None
    assert all(a < b for a, b in pairwise(values[: peak + 1]))
    assert all(a > b for a, b in pairwise(values[peak:]))
    assert all(a >= b for a, b in pairwise(momentum[: peak + 1]))
    assert all(a <= b for a, b in pairwise(momentum[peak:]))


def test_schedules_are_values() -> None:
    """Immutable, equal when made alike, usable as keys."""
    one, other = schedules.one_cycle(10), schedules.one_cycle(10)
    assert one == other and len({one, other, schedules.one_cycle(11)}) == 2
    with pytest.raises(FrozenInstanceError):
        one.total_steps = 3  # type: ignore[misc]


def test_describe_names_every_segment() -> None:
    schedule = schedules.linear(0.0, 1.0, 5).then(schedules.one_cycle(20))
    lines = schedule.describe().splitlines()
    assert lines[0] == "linear, then one-cycle: 25 steps"
    assert len(lines) == 1 + 3 + 3 and all("rate x" in line for line in lines[1:4])
    assert "steps      0 to      5  linear      0 -> 1" in lines[1]
    assert "momentum" in lines[4] and "0.95 -> 0.85" in lines[5]


def test_no_steps_no_values() -> None:
    assert schedules.cosine(5).values([]).shape == (0,)


def test_whole_numbers_of_numpy_count() -> None:
    assert schedules.cosine(np.int64(5)) == schedules.cosine(5)  # type: ignore[arg-type]
    assert math.isclose(schedules.cosine(5).at(np.int32(1)), schedules.cosine(5).at(1))  # type: ignore[arg-type]


def test_triangular2_halves_its_peaks() -> None:
    """Smith, arXiv:1506.01186: every cycle has half the height of the one before."""
    schedule = schedules.cyclic(5, base=0.2, mode="triangular2")
    assert schedule.values([0, 5, 10, 15, 20, 25]) == pytest.approx([0.2, 1.0, 0.2, 0.6, 0.2, 0.4])
