"""Schedules against the formulas of fastai, optax, timm, transformers, Keras and ULMFiT."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import STATEFUL
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import schedule_peers as peers
from steps import new_parameters, step_with
from torch import rand_like

from lrfast import schedules
from lrfast.schedules import Schedule

TINY = 1e-12  # of the base rate
FASTAI = (1 / 25, 1.0, 1e-5)

ROWS: list[tuple[str, Schedule, Callable[[int], float]]] = [
    (
        "fastai-one-cycle",
        schedules.one_cycle(90, compat="fastai"),
        lambda t: peers.fastai_one_cycle(t, 90, 0.25, FASTAI),
    ),
    *(
        (
            f"optax-{total}-{linear}",
            schedules.one_cycle(
                total, 0.37, 20, 1e3, None, "linear" if linear else "cos", linear, compat="optax"
            ),
            lambda t, total=total, linear=linear: peers.optax_one_cycle(
                t, total, linear, 0.37, 20, 1e3
            ),
        )
        for total in (9, 93)
        for linear in (False, True)
    ),
    *(
        (
            f"flat-cosine-{total}-{pct}",
            schedules.flat_cosine(total, pct, 1e-5, compat="fastai"),
            lambda t, total=total, pct=pct: peers.fastai_flat_cosine(t, total, pct, 1e-5),
        )
        for total, pct in ((100, 0.75), (93, 0.41), (7, 0.0))
    ),
    *(
        (
            f"wsd-{up}-{down}",
            schedules.wsd(100, 13, 29, up, down, 0.1, 0.1),  # type: ignore[arg-type]
            lambda t, kinds=(up, down): peers.transformers_wsd(t, 13, 58, 29, kinds, 0.1),
        )
        for up in ("linear", "cosine", "sqrt")
        for down in ("linear", "cosine", "sqrt")
    ),
    *(
        (
            f"linear-with-warmup-{warm}",
            schedules.linear_with_warmup(warm, 120),
            lambda t, warm=warm: peers.transformers_linear(t, warm, 120),
        )
        for warm in (0, 1, 17, 119)
    ),
    *(
        (
            f"cosine-with-warmup-{warm}-{cycles}",
            schedules.cosine_with_warmup(warm, 93, cycles),
            lambda t, warm=warm, cycles=cycles: peers.transformers_cosine(t, warm, 93, cycles),
        )
        for warm, cycles in (
            (0, 0.5),
            (13, 0.5),
            (92, 0.4),
            (9, 0.3),
            (20, 1.0),
            (11, 3.7),
            (3, 45),
        )
    ),
    (
        "inverse-sqrt",
        schedules.inverse_sqrt(11, 1000),
        lambda t: peers.transformers_inverse_sqrt(t, 11, 11),
    ),
    (
        "inverse-sqrt-scale",
        schedules.inverse_sqrt(11, 1000, 300.0),
        lambda t: peers.transformers_inverse_sqrt(t, 11, 300),
    ),
    ("slanted", schedules.slanted_triangular(130), lambda t: peers.ulmfit_slanted(t, 130, 0.1, 32)),
    (
        "staircase",
        schedules.staircase(1000, 17, 0.8),
        lambda t: peers.keras_staircase(t, 17, 0.8),
    ),
    *(
        (
            f"cycles-{mult}",
            schedules.sgdr(10, mult, eta_min=0.01),
            lambda t, mult=mult: peers.timm_cosine_cycles(t, 10, mult, 0.01),
        )
        for mult in (2, 3, 10)
    ),
    ("rex", schedules.rex(100), lambda t: peers.rex(t, 100)),
]


@pytest.mark.parametrize(("name", "schedule", "formula"), ROWS, ids=[row[0] for row in ROWS])
def test_values_are_the_formulas(
    name: str, schedule: Schedule, formula: Callable[[int], float]
) -> None:
    endless = name.startswith("cycles")
    total = 30_000 if endless else schedule.total_steps
    steps = [t for t in (*range(130), 1209, 1210, 1211, 29_520, 29_999) if t < total]
    np.testing.assert_allclose(
        schedule.values(steps), [formula(t) for t in steps], rtol=0, atol=TINY
    )
    if not endless:
        ends = schedule.values([schedule.total_steps, schedule.total_steps + 1, 2**40])
        assert len(set(ends)) == 1


def test_fastais_momentum_mirrors_its_rate() -> None:
    momentum = schedules.one_cycle(90, compat="fastai").momentum(range(90))
    wanted = [peers.fastai_one_cycle(t, 90, 0.25, (0.95, 0.85, 0.95)) for t in range(90)]
    np.testing.assert_allclose(momentum, wanted, rtol=0, atol=TINY)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 50_000), st.floats(0, 1))
def test_jumps_into_growing_cycles(first: int, mult: int, step: int, low: float) -> None:
    wanted = peers.timm_cosine_cycles(step, first, mult, low)
    assert schedules.sgdr(first, mult, eta_min=low).at(step) == pytest.approx(wanted, abs=TINY)


@pytest.mark.parametrize("mult", [1, 1.5, 2])
def test_cycles_with_an_end(mult: float) -> None:
    """A factor of 1 divides by zero elsewhere, one of 1.5 does not add up."""
    lengths = [round(10 * mult**i) for i in range(3)]
    schedule = schedules.sgdr(10, mult, cycles=3, eta_min=0.1)
    assert schedule.total_steps == sum(lengths)
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    assert schedule.values(starts).tolist() == [1.0] * 3
    assert schedule.values([sum(lengths), sum(lengths) + 1, 2**40]).tolist() == [0.1] * 3


def test_the_flat_cosine_ends_at_the_last_step() -> None:
    for total, pct in ((100, 0.75), (93, 0.41), (7, 0.0), (5, 0.5)):
        schedule = schedules.flat_cosine(total, pct, 0.01)
        flat = round(pct * total)
        assert schedule.values(range(flat + 1)).tolist() == [1.0] * (flat + 1)
        assert schedule.values([total - 1, total, 2**40]).tolist() == [0.01] * 3
        fall = schedules.cosine(total - 1 - flat, 0.01).values(range(total - flat))
        np.testing.assert_allclose(schedule.values(range(flat, total)), fall, rtol=TINY)
    # No step is left for a fall.
    for total, pct in ((1, 0.0), (2, 0.5), (9, 1.0)):
        assert set(schedules.flat_cosine(total, pct, 0.01).values(range(total + 3))) == {1.0}


def test_cycles_of_whole_epochs() -> None:
    """Lengths are rounded to epochs, not to steps: 2, 3 and 4.5 of 7 steps."""
    schedule = schedules.sgdr(14, 1.5, cycles=3, unit=7)
    assert schedule.total_steps == (2 + 3 + 4) * 7
    assert schedule.values([0, 14, 35]).tolist() == [1.0] * 3
    assert schedule.values([62, 63, 10**9]).tolist() == [0.0] * 3
    assert schedules.sgdr(14, 1.5, cycles=3).total_steps == 14 + 21 + 32


def test_warm_up_at_each_restart() -> None:
    values = schedules.sgdr(10, eta_min=0.2, warmup=4).values(range(20))
    np.testing.assert_allclose(values[:4], [0.2, 0.4, 0.6, 0.8], atol=TINY)
    np.testing.assert_allclose(values[4:10], schedules.cosine(6, 0.2).values(range(6)), atol=TINY)
    assert values[10:].tolist() == values[:10].tolist()


def test_the_slanted_triangle_ends_where_the_paper_falls_below() -> None:
    assert peers.ulmfit_slanted(14, 15, 0.1, 32) < 0
    schedule = schedules.slanted_triangular(15)
    assert schedule.values(range(40)).min() == 1 / 32 == schedule.at(15)
    assert schedules.slanted_triangular(3, 0.1).at(0) == 1.0


def test_milestones_are_not_one_step_early() -> None:
    assert schedules.multistep([30, 60], 0.1).values([29, 30, 59, 60]).tolist() == [
        1.0,
        0.1,
        0.1,
        0.1**2,
    ]


@pytest.mark.parametrize(
    "schedule",
    [row[1] for row in ROWS[:1]]
    + [
        schedules.multistep([2, 3, 3], 0.5),
        schedules.step(3, 0.5),
        schedules.cyclic(2, 3, 0.1, "exp_range", 0.9, (0.95, 0.8)),
        schedules.sgdr(2, 2, eta_min=0.1),
        schedules.wsd(12, 3, 4, "sqrt", "sqrt"),
        schedules.inverse_sqrt(3, 10),
        schedules.linear_with_warmup(3, 9),
        schedules.cosine_with_warmup(3, 10, 1.2),
        schedules.polynomial(9, 2.5, 0.1),
        schedules.rex(9),
        schedules.from_function(lambda t: 1 / (1 + t), 9),
    ],
    ids=lambda s: s.name,
)
def test_the_step_on_the_device_has_its_rate(schedule: Schedule, device: Any) -> None:
    params = new_parameters(device)
    optimizer = STATEFUL[0].ours(params, lr=0.3, schedule=schedule)
    for step in range(16):
        step_with((optimizer,), [rand_like(p) for p in params])
        assert optimizer.last_rates.tolist() == [0.3 * schedule.at(step)]


ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: schedules.polynomial(0), "total_steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.polynomial(5, 0.0), "power must be finite and above 0, got 0.0"),
    (lambda: schedules.rex(5, -1), "end must be finite and not negative, got -1"),
    (lambda: schedules.step(0), "step_size must be a whole number, 1 or more, got 0"),
    (lambda: schedules.step(3, 1.5), r"gamma must lie in \[0, 1\], got 1.5"),
    (lambda: schedules.multistep([]), "milestones must hold one step at least, got none"),
    (lambda: schedules.multistep([5, 3]), r"milestones must not decrease, got \[5, 3\]"),
    (lambda: schedules.multistep([0]), "milestones must be a whole number, 1 or more, got 0"),
    (lambda: schedules.staircase(10**6, 1, 9.0), "must be a float, got 9.0"),
    (lambda: schedules.cyclic(0), "step_size_up must be a whole number"),
    (lambda: schedules.cyclic(3, 0), "step_size_down must be a whole number"),
    (lambda: schedules.cyclic(3, base=2), r"base must lie in \[0, 1\], got 2"),
    (lambda: schedules.cyclic(3, mode="x"), "mode must be 'triangular', .* got 'x'"),  # type: ignore[arg-type]
    (lambda: schedules.cyclic(3, gamma=1.1), "gamma must lie above 0 and be 1 or less, got 1.1"),
    (lambda: schedules.cyclic(3, momentum=(0.8, 0.9)), "momentum must be"),
    (lambda: schedules.sgdr(0), "cycle_len must be a whole number, 1 or more, got 0"),
    (lambda: schedules.sgdr(5, 0.9), "cycle_mult must be finite and 1 or more, got 0.9"),
    (lambda: schedules.sgdr(5, cycles=0), "cycles must be a whole number, 1 or more, got 0"),
    (lambda: schedules.sgdr(5, 2, cycles=60), "cycles must end before step"),
    (lambda: schedules.sgdr(5, 1.0001), "cycles must be 4096 or less .* got None"),
    (lambda: schedules.sgdr(5, warmup=5), r"warmup must be less than 5 \(cycle_len\), got 5"),
    (lambda: schedules.warmup(0), "steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.flat_cosine(5, 1.1), r"pct_start must lie in \[0, 1\], got 1.1"),
    (lambda: schedules.wsd(5, 3, 3), r"must be 5 \(total_steps\) or less, got 3 \+ 3"),
    (lambda: schedules.wsd(5, 1, 0), "decay_steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.wsd(5, 1, 1, "exp"), "warmup must be 'linear', .* got 'exp'"),  # type: ignore[arg-type]
    (lambda: schedules.linear_with_warmup(8, 8), r"warmup_steps must be less than 8 \(total_st"),
    (lambda: schedules.cosine_with_warmup(-1, 8), "warmup_steps must be a whole number, 0 or more"),
    (lambda: schedules.cosine_with_warmup(2, 8, 0), "num_cycles must be finite and above 0, got 0"),
    (lambda: schedules.cosine_with_warmup(2, 8, 3.5), "num_cycles must be 3.0 or less, .* got 3.5"),
    (lambda: schedules.inverse_sqrt(9, 8), r"warmup_steps must be 8 \(total_steps\) or less"),
    (lambda: schedules.inverse_sqrt(1, 8, 0.0), "timescale must be finite and above 0, got 0.0"),
    (lambda: schedules.slanted_triangular(5, -0.1), r"cut_frac must lie in \[0, 1\], got -0.1"),
    (lambda: schedules.slanted_triangular(5, ratio=0.5), "ratio must be finite and 1 or more"),
    (lambda: schedules.from_function(lambda t: -1.0 * t, 3), "got -1.0 at step 1"),
    (lambda: schedules.one_cycle(5, 0.6, three_phase=True), "pct_start must be 0.5 or less"),
    (lambda: schedules.sgdr(5, math.nan), "cycle_mult must be finite and 1 or more, got nan"),
    (lambda: schedules.sgdr(5, math.inf), "cycle_mult must be finite and 1 or more, got inf"),
    (lambda: schedules.sgdr(6, unit=4), r"unit must divide 6 \(cycle_len\), got 4"),
    (lambda: schedules.sgdr(6, unit=0), "unit must be a whole number, 1 or more, got 0"),
    (lambda: schedules.sgdr(5, warmup=-1), "warmup must be a whole number, 0 or more, got -1"),
    (lambda: schedules.sgdr(5, eta_min=-1), "eta_min must be finite and not negative, got -1"),
    (lambda: schedules.flat_cosine(0), "total_steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.flat_cosine(5, end=-1), "end must be finite and not negative, got -1"),
    (lambda: schedules.flat_cosine(5, compat="torch"), "compat must be 'fastai', got 'torch'"),  # type: ignore[arg-type]
    (lambda: schedules.slanted_triangular(0), "total_steps must be a whole number, 1 or more"),
    (lambda: schedules.staircase(0, 1, 0.5), "total_steps must be a whole number, 1 or more"),
    (lambda: schedules.staircase(5, 0, 0.5), "decay_steps must be a whole number, 1 or more"),
    (lambda: schedules.staircase(5, 1, -0.5), "gamma must be finite and not negative, got -0.5"),
    (lambda: schedules.wsd(5, -1, 1), "warmup_steps must be a whole number, 0 or more, got -1"),
    (lambda: schedules.wsd(5, 1, 1, end=-1), "end must be finite and not negative, got -1"),
    (lambda: schedules.inverse_sqrt(-1, 8), "warmup_steps must be a whole number, 0 or more"),
    (lambda: schedules.inverse_sqrt(0, 0), "total_steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.rex(0), "total_steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.one_cycle(5, -0.1), r"pct_start must lie in \[0, 1\], got -0.1"),
    (lambda: schedules.one_cycle(5, math.nan), r"pct_start must lie in \[0, 1\], got nan"),
    (lambda: schedules.from_function(float, 0), "total_steps must be a whole number, 1 or more"),
    (lambda: schedules.cosine(5).repeat(0), "times must be a whole number, 1 or more, or None"),
    (lambda: schedules.step(3).repeat(), "times must be a number for a schedule that repeats"),
    (lambda: schedules.cosine(5).lasting(0), "steps must be a whole number, 1 or more, got 0"),
    (lambda: schedules.one_cycle(5, compat="timm"), "compat must be .* got 'timm'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[row[1][:40] for row in ERRORS])
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
