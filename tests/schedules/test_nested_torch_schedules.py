"""torch's SequentialLR and ChainedScheduler, nested: by then and *, and taken over by value."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from torch.optim import lr_scheduler as lrs
from torch_schedules import TINY, Make, torch_optimizer, torch_run

from lrfast import schedules
from lrfast.schedules import Schedule

STEPS = 70

warm_up = schedules.warmup(6, 0.1)
decay = schedules.exponential(99, 0.9)
stairs = schedules.step(9, 0.5)
restarts = schedules.sgdr(7, 2, eta_min=0.05)
fall = schedules.cosine(20, 0.2)

ROWS: list[tuple[str, Schedule, Make]] = [
    (
        "warm-up, cosine, restarts",
        warm_up.then(fall).then(restarts),
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.LinearLR(o, 0.1, 1.0, 6),
                lrs.CosineAnnealingLR(o, 20, 0.2),
                lrs.CosineAnnealingWarmRestarts(o, 7, 2, 0.05),
            ],
            [6, 26],
        ),
    ),
    (
        "four in turn",
        warm_up.then(stairs.lasting(20)).then(decay.lasting(15)).then(schedules.constant(0.3)),
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.LinearLR(o, 0.1, 1.0, 6),
                lrs.StepLR(o, 9, 0.5),
                lrs.ExponentialLR(o, 0.9),
                lrs.ConstantLR(o, 0.3, 1000),
            ],
            [6, 26, 41],
        ),
    ),
    (
        "turns of turns",  # the same, composed in pairs
        warm_up.then(stairs.lasting(20)).then(decay.lasting(15).then(schedules.constant(0.3))),
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.LinearLR(o, 0.1, 1.0, 6),
                lrs.StepLR(o, 9, 0.5),
                lrs.ExponentialLR(o, 0.9),
                lrs.ConstantLR(o, 0.3, 1000),
            ],
            [6, 26, 41],
        ),
    ),
    (
        "chain of two",
        decay * stairs,
        lambda o: lrs.ChainedScheduler([lrs.ExponentialLR(o, 0.9), lrs.StepLR(o, 9, 0.5)]),
    ),
    (
        "chain of chains",
        warm_up * (decay * stairs),
        lambda o: lrs.ChainedScheduler(
            [
                lrs.LinearLR(o, 0.1, 1.0, 6),
                lrs.ChainedScheduler([lrs.ExponentialLR(o, 0.9), lrs.StepLR(o, 9, 0.5)]),
            ]
        ),
    ),
    (
        "chain of warm-up and a fall without a floor",
        warm_up * schedules.cosine(100),
        lambda o: lrs.ChainedScheduler(
            [lrs.LinearLR(o, 0.1, 1.0, 6), lrs.CosineAnnealingLR(o, 100)]
        ),
    ),
    (
        "chain of turns",
        warm_up.then(decay) * stairs,
        lambda o: lrs.ChainedScheduler(
            [
                lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1.0, 6), lrs.ExponentialLR(o, 0.9)], [6]),
                lrs.StepLR(o, 9, 0.5),
            ]
        ),
    ),
]
IDS = [row[0] for row in ROWS]


def turns(optimizer: Any) -> Any:
    parts = [lrs.LinearLR(optimizer, 0.1, 1.0, 6), lrs.ExponentialLR(optimizer, 0.9)]
    return lrs.SequentialLR(optimizer, parts, [6])


def turns_in_the_first_turn(optimizer: Any) -> Any:
    return lrs.SequentialLR(optimizer, [turns(optimizer), lrs.StepLR(optimizer, 9, 0.5)], [15])


@pytest.mark.parametrize(("name", "schedule", "make"), ROWS, ids=IDS)
def test_composed_it_is_torchs(name: str, schedule: Schedule, make: Make) -> None:
    rates, _ = torch_run(make, STEPS)
    np.testing.assert_allclose(schedule.values(range(STEPS)), rates, rtol=0, atol=TINY)


@pytest.mark.parametrize(
    "make", [row[2] for row in ROWS] + [turns_in_the_first_turn], ids=[*IDS, "turns in a turn"]
)
def test_taken_over_it_is_what_torch_does(make: Make) -> None:
    """Also where torch errs: what is taken over by value is its values."""
    rates, _ = torch_run(make, STEPS)
    optimizer = torch_optimizer()
    with warnings.catch_warnings():  # the inner one steps as it is made
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
    imported = schedules.from_torch(scheduler, STEPS)
    assert isinstance(imported, Schedule)
    base = optimizer.param_groups[0]["initial_lr"]
    np.testing.assert_allclose(
        imported.values(range(STEPS)) * base, rates, rtol=0, atol=TINY * base
    )


def test_turns_of_turns_are_one_table() -> None:
    one, other = ROWS[1][1], ROWS[2][1]
    assert one.factors == other.factors and one.fingerprint() != ROWS[0][1].fingerprint()


def test_torchs_turns_in_a_turn_are_a_step_ahead_and_ours_are_not() -> None:
    """pytorch#196243: the inner one skips a step where its own parts take turns."""
    inner = warm_up.then(decay)
    ours = inner.lasting(15).then(stairs).values(range(STEPS))
    np.testing.assert_allclose(ours[:15], inner.values(range(15)), rtol=0, atol=TINY)
    np.testing.assert_allclose(ours[15:], stairs.values(range(STEPS - 15)), rtol=0, atol=TINY)
    alone, _ = torch_run(turns, 15)
    np.testing.assert_allclose(ours[:15], alone, rtol=0, atol=TINY)
    nested, _ = torch_run(turns_in_the_first_turn, STEPS)
    assert nested[5] == pytest.approx(1.0) and ours[5] == pytest.approx(0.85)
    np.testing.assert_allclose(nested[5:14], ours[6:15], rtol=0, atol=TINY)


@pytest.mark.parametrize("inner", ["turns", "chain"])
def test_torch_cannot_come_to_turns_or_chains_later_and_ours_can(inner: str) -> None:
    def make(optimizer: Any) -> Any:
        parts = [lrs.LinearLR(optimizer, 0.1, 1.0, 6), lrs.ExponentialLR(optimizer, 0.9)]
        chain = lrs.ChainedScheduler(parts)
        later = turns(optimizer) if inner == "turns" else chain
        return lrs.SequentialLR(optimizer, [lrs.ConstantLR(optimizer, 0.5, 99), later], [9])

    with pytest.raises(NotImplementedError):
        torch_run(make, STEPS)
    later = warm_up.then(decay) if inner == "turns" else warm_up * decay
    ours = schedules.constant(0.5).lasting(9).then(later).values(range(STEPS))
    assert (ours[:9] == 0.5).all()
    np.testing.assert_allclose(ours[9:], later.values(range(STEPS - 9)), rtol=TINY)
