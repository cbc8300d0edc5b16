"""Random trees of schedules, at random steps, against the formulas in tests/reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import schedule_shapes as shapes
from reference import schedules as reference

import lrfast
from lrfast import schedules
from lrfast.schedules import Schedule

TINY = 1e-12  # relative, and absolute below 1


@dataclass(frozen=True)
class Pair:
    """A schedule and the formula that it must equal at every step from 0 on."""

    schedule: Schedule
    formula: Callable[[int], float]

    def __repr__(self) -> str:
        return self.schedule.describe()


counts = st.integers(1, 40)
shares = st.floats(0, 1)
factors = st.floats(0, 10)
ramps = st.sampled_from(["linear", "cosine", "sqrt"])


def pairs(make: Callable[..., Pair], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Pair]:
    return st.builds(make, *arguments)


def one_cycle(n: int, pct: float, div_factor: float, final_div_factor: float, three: bool) -> Pair:
    pct = pct / 2 if three else pct
    schedule = schedules.one_cycle(n, pct, div_factor, final_div_factor, None, three_phase=three)
    if three:
        return Pair(schedule, lambda t: shapes.three_phase(t, n, pct, div_factor, final_div_factor))
    return Pair(schedule, lambda t: reference.one_cycle(t, n, pct, div_factor, final_div_factor))


def cyclic(up: int, down: int, base: float, mode: Any, gamma: float) -> Pair:
    schedule = schedules.cyclic(up, down, base, mode, gamma)
    return Pair(schedule, lambda t: shapes.cyclic(t, up, down, base, mode, gamma))


def sgdr(units: int, unit: int, mult: float, cycles: int | None, low: float, warm: float) -> Pair:
    """Whole cycles of epochs of ``unit`` steps; with an end and without; fractional factors."""
    length = units * unit
    warmup = int(warm * (length - 1))
    lengths = [round(units * mult**cycle) * unit for cycle in range(cycles or 30)]
    if cycles is None and mult == 1:
        lengths *= 30
    schedule = schedules.sgdr(length, mult, cycles, low, warmup, unit)
    return Pair(schedule, lambda t: shapes.sgdr(t, lengths, low, warmup, cycles is None))


def wsd(
    warm: int, stable: int, fall: int, kinds: tuple[Any, Any], ends: tuple[float, float]
) -> Pair:
    sizes = (warm + stable + fall, warm, fall)
    return Pair(schedules.wsd(*sizes, *kinds, *ends), lambda t: shapes.wsd(t, sizes, kinds, ends))


def inverse_sqrt(warm: int, more: int, scale: float) -> Pair:
    schedule = schedules.inverse_sqrt(warm, warm + more, scale)
    return Pair(schedule, lambda t: shapes.inverse_sqrt(t, warm, warm + more, scale))


def multistep(milestones: list[int], gamma: float) -> Pair:
    milestones = sorted(milestones)
    schedule = schedules.multistep(milestones, gamma)
    return Pair(schedule, lambda t: shapes.multistep(t, milestones, gamma))


def simple(name: str, formula: Callable[..., float]) -> Callable[..., Pair]:
    """Of a maker and a formula that take the same arguments."""

    def make(*arguments: Any) -> Pair:
        schedule = getattr(schedules, name)(*arguments)
        return Pair(schedule, lambda t: formula(t, *arguments))

    return make


leaves = st.one_of(
    pairs(simple("constant", reference.constant), factors),
    pairs(simple("linear", reference.linear), factors, factors, counts),
    pairs(simple("cosine", reference.cosine), counts, factors),
    pairs(simple("exponential", reference.exponential), counts, st.floats(0.5, 1.5)),
    pairs(simple("polynomial", shapes.polynomial), counts, st.floats(0.3, 4), factors),
    pairs(simple("rex", shapes.rex), counts, factors),
    pairs(simple("step", shapes.steps), counts, shares),
    pairs(simple("staircase", shapes.staircase), counts, counts, st.floats(0, 1.2)),
    pairs(simple("flat_cosine", shapes.flat_cosine), counts, shares, factors),
    pairs(simple("slanted_triangular", shapes.slanted), counts, shares, st.floats(1, 40)),
    pairs(one_cycle, counts, shares, st.floats(1, 100), st.floats(1, 1e5), st.booleans()),
    pairs(multistep, st.lists(counts, min_size=1, max_size=5), st.floats(0, 2)),
    pairs(
        wsd,
        st.integers(0, 9),
        st.integers(0, 9),
        counts,
        st.tuples(ramps, ramps),
        st.tuples(factors, factors),
    ),
    pairs(inverse_sqrt, st.integers(0, 20), counts, st.floats(0.5, 500)),
    pairs(
        cyclic,
        counts,
        counts,
        shares,
        st.sampled_from(["triangular", "triangular2", "exp_range"]),
        st.floats(0.8, 1),
    ),
    pairs(
        sgdr,
        st.integers(1, 9),
        st.integers(1, 4),
        st.sampled_from([1.0, 1.3, 1.5, 2.0, 3.0]),
        st.none() | st.integers(1, 5),
        shares,
        st.floats(0, 0.9),
    ),
    pairs(
        lambda values: Pair(
            schedules.from_function(values.__getitem__, len(values)),
            lambda t: values[min(t, len(values) - 1)],
        ),
        st.lists(factors, min_size=1, max_size=30),
    ),
)


def then(one: Pair, other: Pair, more: int) -> Pair:
    here = one.schedule.total_steps + more
    schedule = one.schedule.lasting(here).then(other.schedule)
    return Pair(schedule, lambda t: one.formula(t) if t < here else other.formula(t - here))


def times(one: Pair, other: Pair) -> Pair:
    return Pair(one.schedule * other.schedule, lambda t: one.formula(t) * other.formula(t))


def repeated(pair: Pair, count: int) -> Pair:
    """The last time goes on past its end."""
    length = pair.schedule.total_steps
    return Pair(
        pair.schedule.repeat(count),
        lambda t: pair.formula(t - min(t // length, count - 1) * length),
    )


def held(pair: Pair, steps: int) -> Pair:
    schedule = schedules.per_epoch(pair.schedule, steps, stepwise=True)
    return Pair(schedule, lambda t: pair.formula(t // steps))


trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        pairs(then, inner, inner, st.integers(0, 5)),
        pairs(times, inner, inner),
        pairs(repeated, inner, st.integers(1, 4)),
        pairs(held, inner, st.integers(1, 5)),
    ),
    max_leaves=6,
)
jumps = st.lists(st.integers(0, 600), min_size=1, max_size=12)


@settings(max_examples=250, deadline=None)
@given(trees, jumps)
def test_any_tree_at_any_step_is_its_formula(pair: Pair, steps: list[int]) -> None:
    """Jumping to and fro, and across its last steps."""
    end = pair.schedule.total_steps
    steps = [*steps, max(end - 2, 0), end - 1, end, end + 1]
    wanted = [pair.formula(step) for step in steps]
    np.testing.assert_allclose(pair.schedule.values(steps), wanted, rtol=TINY, atol=TINY)
    again = Schedule.from_dict(json.loads(json.dumps(pair.schedule.to_dict())))
    assert again == pair.schedule and again.fingerprint() == pair.schedule.fingerprint()
    assert again.values(steps).tolist() == pair.schedule.values(steps).tolist()


@settings(max_examples=60, deadline=None)
@given(trees, trees, st.integers(0, 300))
def test_a_step_from_any_place_uses_its_rate(one: Pair, other: Pair, place: int) -> None:
    """The rates of two groups, and those of the next steps, bit for bit."""
    params = [torch.zeros(3, requires_grad=True) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(3)
    groups = [{"params": [params[0]], "lr": 0.3}, {"params": [params[1]], "lr": 0.07}]
    optimizer = lrfast.SGD(groups)
    optimizer.set_schedule([one.schedule, other.schedule], step=place)
    for step in range(place, place + 3):
        optimizer.step()
        wanted = [0.3 * one.schedule.at(step), 0.07 * other.schedule.at(step)]
        assert optimizer.last_rates.tolist() == wanted


@pytest.mark.parametrize("mult", [1.0, 1.5, 2.0])
def test_a_restart_of_random_trees_has_no_seam(mult: float) -> None:
    """Cycles of whole epochs, a warm-up in each, and the low value at the last step made."""
    schedule = schedules.sgdr(20, mult, 3, 0.05, warmup=4, unit=10)
    lengths = [round(2 * mult**cycle) * 10 for cycle in range(3)]
    assert schedule.total_steps == sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    assert schedule.values(starts).tolist() == [0.05] * 3
    assert schedule.values(starts + 4).tolist() == [1.0] * 3
    assert schedule.at(sum(lengths) - 1) == 0.05 < schedule.at(sum(lengths) - 2)
