"""Greedy against transformers' rule restated, its published tests' numbers, and bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device_reads import NoDeviceReads
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_schedules import GreedyReference

import lrfast

# Powers of two: then a multiple of a rate is rounded as the rate's own multiple is.
RATES = [0.25, 0.125]


def make_sgd(**options: Any) -> lrfast.SGD:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": RATES[1]}]
    return lrfast.SGD(groups, lr=RATES[0], momentum=0.9, **options)


def reference(options: dict[str, Any]) -> GreedyReference:
    lowest = [options["min_factor"] * rate for rate in RATES]
    highest = [options["max_factor"] * rate for rate in RATES]
    return GreedyReference(RATES, lowest, highest, options)


OPTIONS: dict[str, Any] = {
    "mode": "min",
    "factor": 0.5,
    "patience": 1,
    "threshold": 1e-6,
    "threshold_mode": "abs",
    "cooldown": 2,
    "warmup": 1,
    "min_factor": 0.25,
    "max_factor": 3.0,
    "window": 1,
    "reset_start": 2,
}
SETTINGS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.sampled_from([0.1, 0.5, 0.95]),
        "patience": st.integers(0, 3),
        "threshold": st.sampled_from([0.0, 1e-6, 0.1]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
        "warmup": st.integers(0, 3),
        "min_factor": st.sampled_from([0.0, 0.3, 1.0]),
        "max_factor": st.sampled_from([1.0, 1.5, 10.0]),
        "window": st.integers(1, 4),
        "reset_start": st.integers(1, 3),
    }
)
# Runs of falling, rising and random values: each alone never raises and cuts.
VALUES = st.lists(
    st.one_of(
        st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=4),
        st.integers(3, 12).map(lambda n: [2.0**-k for k in range(n)]),
        st.integers(3, 12).map(lambda n: [1.0] * n),
        st.just([float("nan")]),
    ),
    min_size=1,
    max_size=8,
).map(lambda runs: [value for run in runs for value in run])


@settings(max_examples=150, deadline=None)
@given(SETTINGS, VALUES)
def test_equals_transformers(options: dict[str, Any], values: list[float]) -> None:
    optimizer, wanted = make_sgd(), reference(options)
    greedy = lrfast.Greedy(optimizer, **options)
    for value in values:
        greedy.observe(torch.tensor(value))
        wanted.step(value)
        assert optimizer.get_last_lr() == pytest.approx(wanted.rates, rel=1e-14)
    assert (greedy.raises, greedy.cuts, greedy.resets) == (
        wanted.raises,
        wanted.cuts,
        wanted.resets,
    )


def test_the_random_runs_raise_cut_and_reset() -> None:
    greedy, wanted = lrfast.Greedy(make_sgd(), **OPTIONS), reference(OPTIONS)
    for value in [2.0**-k for k in range(12)] + [1.0] * 40 + [0.5] * 5:
        greedy.observe(value)
        wanted.step(value)
    assert (greedy.raises, greedy.cuts, greedy.resets) == (2, 8, 3)
    assert wanted.resets == 3 and float(greedy.scale) == wanted.rates[0] / RATES[0]


@pytest.mark.parametrize(
    ("options", "values", "multiple"),
    [
        # transformers, tests/optimization/test_greedy_lr.py: what its tests expect of lr 0.1.
        ({"patience": 3}, [5.0] + [10.0] * 4, 0.9),
        ({"patience": 3}, [8.0, 6.4, 5.12, 4.096], 1 / 0.9),
        ({"patience": 1, "factor": 0.5, "min_factor": 0.1}, [1.0] + [10.0] * 50, 0.1),
        ({"patience": 1, "factor": 0.5, "max_factor": 2.0}, [0.8**k for k in range(50)], 2.0),
        ({"patience": 2, "cooldown": 3}, [5.0] + [10.0] * 6, 0.9),
        ({"patience": 2, "warmup": 3}, [0.8**k for k in range(6)], 1 / 0.9),
        (
            {"patience": 1, "factor": 0.5, "min_factor": 0.1, "reset_start": 2},
            [1.0] + [10.0] * 10,
            1.0,
        ),
        ({"patience": 2, "mode": "max"}, [10.0] + [1.0] * 3, 0.9),
        ({"patience": 2, "mode": "max"}, [1.5, 2.25, 3.375], 1 / 0.9),
    ],
)
def test_published_cases(options: dict[str, Any], values: list[float], multiple: float) -> None:
    defaults = {"factor": 0.9, "min_factor": 1e-5, "max_factor": 10.0}
    greedy = lrfast.Greedy(make_sgd(), **defaults | options)
    for value in values:
        greedy.observe(value)
    assert float(greedy.scale) == pytest.approx(multiple, rel=1e-14)


def test_a_nan_leaves_the_window() -> None:
    """A running sum, as transformers keeps it, would stay NaN for ever."""
    greedy = lrfast.Greedy(make_sgd(), factor=0.5, patience=0, window=3)
    for value in (1.0, float("nan"), 0.9, 0.8):
        greedy.observe(value)
    assert (greedy.raises, greedy.cuts) == (1, 3)
    for value in (0.7, 0.1):
        greedy.observe(value)
    assert greedy.raises == 3


def test_never_reads_the_device() -> None:
    optimizer = make_sgd()
    greedy = lrfast.Greedy(optimizer, factor=0.5, patience=0, warmup=1, window=3)
    with NoDeviceReads():
        for loss in (1.0, 0.5, 0.25, 3.0, 4.0):
            greedy.observe(torch.full((), loss))
            optimizer.step()
        greedy.reset()
        greedy.observe(1.0)
    assert (greedy.raises, greedy.cuts) == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "least"}, "mode must be 'min' or 'max', got 'least'"),
        ({"threshold_mode": "x"}, "threshold_mode must be 'rel' or 'abs', got 'x'"),
        ({"factor": 1.0}, r"factor must lie in \(0, 1\), got 1.0"),
        ({"factor": 0.0}, r"factor must lie in \(0, 1\), got 0.0"),
        ({"min_factor": 1.1}, r"min_factor must lie in \[0, 1\], got 1.1"),
        ({"max_factor": 0.9}, "max_factor must be finite and 1 or more, got 0.9"),
        ({"max_factor": float("inf")}, "max_factor must be finite and 1 or more, got inf"),
        ({"max_factor": float("nan")}, "max_factor must be finite and 1 or more, got nan"),
        ({"threshold": float("nan")}, "threshold must be finite and not negative, got nan"),
        ({"patience": -1}, "patience must be a whole number, 0 or more, got -1"),
        ({"cooldown": True}, "cooldown must be a whole number, 0 or more, got True"),
        ({"warmup": -2}, "warmup must be a whole number, 0 or more, got -2"),
        ({"window": 0}, "window must be a whole number, 1 or more, got 0"),
        ({"reset_start": 0}, "reset_start must be a whole number, 1 or more, got 0"),
        ({"reset_start": 2.5}, "reset_start must be a whole number, 1 or more, got 2.5"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    optimizer = make_sgd()
    with pytest.raises(ValueError, match=message):
        lrfast.Greedy(optimizer, **options)
    assert optimizer.loss_schedule is None  # nothing was attached
    lrfast.Plateau(optimizer)
    with pytest.raises(ValueError, match="one Plateau or Greedy at most, got one that has a Pl"):
        lrfast.Greedy(optimizer)


def test_refuses_other_optimizers_and_vectors() -> None:
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(TypeError, match=r"one of lrfast's, got SGD; lrfast\.wrap takes over one"):
        lrfast.Greedy(theirs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scalar, got shape \[2\]"):
        lrfast.Greedy(make_sgd()).observe(torch.ones(2))
