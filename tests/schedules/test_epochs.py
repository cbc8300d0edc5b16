"""Schedules counted in epochs, extended in mid-course, inspected and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfast import schedules
from lrfast.schedules import Schedule
from lrfast.schedules._schedule import first_cycle

KINDS = (
    schedules.one_cycle(20),
    schedules.one_cycle(20, 0.33, compat="torch"),
    schedules.wsd(20, 4, 6, "sqrt", "cosine"),
    schedules.multistep([3, 7, 15], 0.5),
    schedules.step(6, 0.5),
    schedules.cyclic(3, 4, mode="exp_range", gamma=0.9, momentum=(0.9, 0.8)),
    schedules.sgdr(5, 2, cycles=2, eta_min=0.1),
    schedules.warmup(4).then(schedules.cosine(9)) * schedules.inverse_sqrt(3, 20),
)


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s.name)
def test_every_epoch_begins_with_its_value(schedule: Schedule) -> None:
    epochs = np.arange(30)
    stretched = schedules.per_epoch(schedule, 7)
    assert stretched.total_steps == 7 * schedule.total_steps
    np.testing.assert_allclose(
        stretched.values(epochs * 7), schedule.values(epochs), rtol=0, atol=1e-12
    )
    momentum, own = stretched.momentum(epochs * 7), schedule.momentum(epochs)
    assert (momentum is None) == (own is None)
    if momentum is not None and own is not None:
        np.testing.assert_allclose(momentum, own, rtol=0, atol=1e-12)


def test_steps_jump_where_an_epoch_begins() -> None:
    values = schedules.per_epoch(schedules.step(2, 0.5), 3).values(range(18))
    assert values.tolist() == [1.0] * 6 + [0.5] * 6 + [0.25] * 6


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s.name)
def test_stairs_are_schedules_like_any_other(schedule: Schedule) -> None:
    """Chained, multiplied, stretched once more, described, through JSON, and in a checkpoint."""
    epochs = np.arange(30)
    stairs = schedules.per_epoch(schedule, 3, stepwise=True)
    wanted = schedule.values(epochs)
    assert stairs.values(epochs * 3 + 2).tolist() == wanted.tolist()
    later = schedules.constant(0.5).lasting(4).then(stairs)
    assert later.values(4 + 3 * epochs).tolist() == wanted.tolist()
    bare = replace(stairs, momentum_track=None)
    np.testing.assert_allclose((bare * stairs).values(3 * epochs), wanted**2, rtol=1e-14)
    twice = schedules.per_epoch(stairs, 2)
    assert twice.values(6 * epochs + 5).tolist() == wanted.tolist()
    assert "held for 3 steps each" in stairs.describe()
    assert Schedule.from_dict(json.loads(json.dumps(stairs.to_dict()))) == stairs
    assert stairs.fingerprint() != schedules.per_epoch(schedule, 3).fingerprint()
    assert max(row["step"] for row in stairs.table()) == stairs.total_steps


def test_stairs_repeat() -> None:
    stairs = schedules.per_epoch(schedules.linear(0.0, 1.0, 2), 3, stepwise=True)
    values = stairs.repeat().values(range(12)).tolist()
    assert values == ([0.0] * 3 + [0.5] * 3) * 2
    with pytest.raises(ValueError, match="times must be a number for a schedule that repeats"):
        stairs.lasting(7).repeat()


def test_tables_of_before_there_were_strides_load() -> None:
    old = schedules.cosine(5).to_dict()
    begin, period, gain, decay, floor, stride, segments = old["rate"][0][0]
    assert stride == 1
    old["rate"] = [[(begin, period, gain, decay, floor, segments)]]
    assert Schedule.from_dict(old) == schedules.cosine(5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 19), st.integers(1, 60))
def test_extended_it_is_the_same_until_then_and_ends_later(
    schedule: Schedule, step: int, more: int
) -> None:
    extended = schedule.extend_to(schedule.total_steps + more, step)
    assert extended.total_steps == schedule.total_steps + more
    early = range(step + 1)
    np.testing.assert_allclose(extended.values(early), schedule.values(early), rtol=0, atol=1e-12)
    if all(table.is_plain for track in schedule.factors for table in track):
        end = schedule.total_steps
        assert extended.at(end + more) == pytest.approx(schedule.at(end), abs=1e-15)


@pytest.mark.parametrize("total", [173, 250])
def test_extended_one_cycle_still_hits_peak_and_end(total: int) -> None:
    extended = schedules.one_cycle(100).extend_to(total, step=10)
    assert extended.values(range(total)).max() == 1.0
    last = total - 1
    assert extended.at(last) == 1 / 25 / 1e4 == extended.at(10**6) < extended.at(last - 1)
    assert extended.at(10) == schedules.one_cycle(100).at(10)
    momentum = extended.momentum(range(total))
    assert momentum is not None and momentum.min() == 0.85 and momentum[last] == 0.95


def test_what_repeats_goes_on_and_milestones_move() -> None:
    assert schedules.step(6, 0.5).extend_to(99, 3).values(range(40)).tolist() == (
        schedules.step(6, 0.5).values(range(40)).tolist()
    )
    moved = schedules.multistep([4, 8], 0.5).extend_to(12, step=4)
    assert moved.values([3, 4, 11, 12]).tolist() == [1.0, 0.5, 0.5, 0.25]


CYCLES = {  # with the end of their first cycle
    "alike": (schedules.sgdr(9, 1, 4, 0.1), 9),
    "alike without end": (schedules.sgdr(9, warmup=2).lasting(40), 9),
    "longer and longer": (schedules.sgdr(9, 1.5, 3, 0.1, warmup=3), 9),
    "triangles": (schedules.cyclic(4, 5, 0.2, momentum=(0.9, 0.7)).lasting(40), 9),
    "after a warm-up": (schedules.warmup(4).then(schedules.sgdr(7, 2, 2, 0.3)), 11),
    "one after the other": (schedules.one_cycle(9).then(schedules.one_cycle(9)), 9),
    "with a decay": (schedules.sgdr(9, 1, 3, 0.1) * schedules.constant(0.7), 9),
}


@pytest.mark.parametrize("length", [5, 13])
@pytest.mark.parametrize("name", CYCLES)
def test_cycles_after_a_longer_or_shorter_one_stay_as_they_are(name: str, length: int) -> None:
    schedule, first = CYCLES[name]
    more, total = length - first, schedule.total_steps
    changed = schedule.extend_to(total + more, until=first)
    assert changed.total_steps == total + more
    later = range(first, total + 9)
    assert changed.values([k + more for k in later]).tolist() == schedule.values(later).tolist()
    momentum, own = changed.momentum([k + more for k in later]), schedule.momentum(later)
    assert (momentum is None) == (own is None)
    if momentum is not None and own is not None:
        assert momentum.tolist() == own.tolist()
    places = np.arange(length)
    wanted = np.interp(places * first / length, np.arange(first), schedule.values(range(first)))
    bends = 0.2 if length > first else 0.35  # a line between two steps is no cosine
    np.testing.assert_allclose(changed.values(places), wanted, rtol=0, atol=bends)
    assert changed.at(0) == schedule.at(0)
    if length < first:
        return
    half = schedule.extend_to(total + more, step=2, until=first)
    assert half.values([0, 1, 2]).tolist() == schedule.values([0, 1, 2]).tolist()
    assert half.values([k + more for k in later]).tolist() == schedule.values(later).tolist()


def test_a_shortened_cycle_is_a_cycle_of_that_length() -> None:
    for cycle_mult, length in ((1, 5), (2, 5), (1, 14), (1.5, 14)):
        schedule = schedules.sgdr(9, cycle_mult, 3, 0.1)
        changed = schedule.extend_to(schedule.total_steps + length - 9, until=9)
        wanted = schedules.sgdr(length, eta_min=0.1).values(range(length))
        np.testing.assert_allclose(changed.values(range(length)), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", CYCLES)
def test_where_the_second_cycle_begins(name: str) -> None:
    schedule, first = CYCLES[name]
    assert first_cycle(schedule) == first
    assert first_cycle(schedules.one_cycle(first)) == first


@pytest.mark.parametrize("until", [4, 0, 21, 2.5])
def test_bad_ends_of_what_is_stretched(until: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"until must be a whole number.* 5 to 20, "):
        schedules.cosine(20).extend_to(30, step=4, until=until)


def test_extension_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"behind step 15, got 10, which puts it at 10"):
        schedules.cosine(20).extend_to(10, step=15)
    with pytest.raises(ValueError, match="step must be a whole number, 0 or more, got -1"):
        schedules.cosine(20).extend_to(30, step=-1)
    with pytest.raises(ValueError, match="total_steps must be a whole number, 1 or more, got 0"):
        schedules.cosine(20).extend_to(0)
    with pytest.raises(ValueError, match="steps_per_epoch must be a whole number, 1 or more, got"):
        schedules.per_epoch(schedules.cosine(20), 0)
    looked_up = schedules.from_function(lambda t: 1 / (1 + t), 9)
    for call in (lambda: looked_up.extend_to(20), lambda: schedules.per_epoch(looked_up, 2)):
        with pytest.raises(ValueError, match="got one with a lookup"):
            call()


def test_stairs_are_extended_in_epochs() -> None:
    stairs = schedules.per_epoch(schedules.cosine(5), 3, stepwise=True)
    with pytest.raises(
        ValueError, match=r"extended in epochs before per_epoch.*got cosine of held"
    ):
        stairs.extend_to(30)


def test_table_has_a_row_per_turn() -> None:
    rows = schedules.one_cycle(100).table(rates=[0.1, 2.0])
    assert [row["step"] for row in rows] == [0, 29, 99, 100]
    assert rows[1] == {
        "step": 29,
        "factor": 1.0,
        "rate 0": 0.1,
        "rate 1": 2.0,
        "momentum": 0.85,
    }
    assert [row["factor"] for row in schedules.cosine(4).table([0, 4])] == [1.0, 0.0]


def test_fingerprints_tell_schedules_apart_and_outlive_json() -> None:
    marks = {schedule.fingerprint() for schedule in KINDS}
    assert len(marks) == len(KINDS) and all(len(mark) == 16 for mark in marks)
    data: Any = json.loads(json.dumps(KINDS[0].to_dict()))
    assert Schedule.from_dict(data).fingerprint() == KINDS[0].fingerprint()
    assert schedules.cosine(5).fingerprint() != schedules.cosine(6).fingerprint()


def test_difference_in_words() -> None:
    assert schedules.cosine(9).difference(schedules.cosine(9)) == ""
    words = schedules.one_cycle(10).difference(schedules.one_cycle(12, momentum=None))
    assert "total steps: 10 against 12" in words and "momentum: only the first sets it" in words
    one, other = schedules.multistep([3, 7], 0.5), schedules.multistep([3, 6, 7], 0.5)
    assert one.difference(other) == "rate: differs from step 6, most at step 6: 0.5 against 0.25"
