"""Which rates a range test visits: modes, what varies, ranges per group, applying the result."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from sweep_setups import Bench
from tiny import (
    OPTIMIZERS,
    boom,
    cross_entropy,
    make_batches,
    make_model,
    make_scripted,
    trace,
    used_rates,
)
from torch import nn

import lrfast
from lrfast import RangeTest, lr_find
from lrfast.suggest import Suggestion

RATES = (0.01, 0.3, 0.1)
ALL = pytest.mark.parametrize("kind", OPTIMIZERS)


def three_groups(kind: str, rates: Any = RATES) -> tuple[nn.Sequential, Any]:
    model = make_model()
    return model, OPTIMIZERS[kind](lrfast.discriminative(model, list(rates)))


def sweep(model: nn.Module, optimizer: Any, **options: Any) -> RangeTest:
    settings = {"num_iter": 12, "diverge_threshold": None, "progress": False} | options
    return lr_find(model, optimizer, make_batches(4), cross_entropy, **settings)


def suggesting(result: RangeTest, lr: float | None) -> RangeTest:
    """The result, if rule "auto" suggested this rate."""
    answer = Suggestion(lr, "auto", "the test says so", 1.0)
    return replace(result, suggestions=MappingProxyType({"auto": answer}))


# One group.


@ALL
@pytest.mark.parametrize(
    ("mode", "end", "rates"),
    [
        ("linear", 5e-5, [1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        ("exp", 0.1, [1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
    ],
)
def test_five_points(kind: str, mode: Any, end: float, rates: list[float]) -> None:
    """torch-lr-finder's own expectations."""
    model = nn.Linear(4, 3)
    optimizer = OPTIMIZERS[kind](model.parameters())
    used = used_rates(optimizer)
    result = sweep(model, optimizer, mode=mode, start_lr=1e-5, end_lr=end, num_iter=5)
    np.testing.assert_allclose(result.lrs, rates, rtol=1e-14)
    assert [row[0] for row in used] == result.lrs.tolist()


@pytest.mark.parametrize("mode", ["exp", "linear"])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
@pytest.mark.parametrize(("start", "end"), [(1e-7, 10.0), (3.3e-5, 0.7), (0.1, 0.3)])
@pytest.mark.parametrize("num_iter", [2, 3, 37])
def test_both_ends_are_hit(kind: str, mode: Any, start: float, end: float, num_iter: int) -> None:
    model = nn.Linear(2, 1).double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    used = used_rates(optimizer)
    losses = make_scripted(np.ones(num_iter))
    options: Any = {"mode": mode, "start_lr": start, "end_lr": end, "num_iter": num_iter}
    result = lr_find(model, optimizer, [None], compute_loss=losses, progress=False, **options)
    assert (result.lrs[0], result.lrs[-1], len(result.lrs)) == (start, end, num_iter)
    assert (used[0], used[-1]) == ([start], [end])
    spaced = np.geomspace if mode == "exp" else np.linspace
    np.testing.assert_allclose(result.lrs, spaced(start, end, num_iter), rtol=1e-12)


# Several groups: what the optimizer used, and what comes of a suggestion.

# Name: options, expected first and last rates of each group, the reference group.
VARIED: dict[str, tuple[dict[str, Any], Any, int]] = {
    "ratio": ({}, [(1e-5 / 3, 0.03), (1e-4, 0.9), (1e-4 / 3, 0.3)], 1),
    "same": ({"vary": "same"}, [(1e-4, 0.9)] * 3, 0),
    "first": ({"vary": 0}, [(1e-4, 0.9), (0.3, 0.3), (0.1, 0.1)], 0),
    "last": ({"vary": -1}, [(0.01, 0.01), (0.3, 0.3), (1e-4, 0.9)], 2),
    "lists": (
        {"start_lr": [1e-5, 1e-4, 1e-3], "end_lr": (0.9, 0.5, 0.2)},
        [(1e-5, 0.9), (1e-4, 0.5), (1e-3, 0.2)],
        0,
    ),
    "one start": (
        {"start_lr": 1e-4, "end_lr": [0.1, 0.5, 0.2]},
        [(1e-4, 0.1), (1e-4, 0.5), (1e-4, 0.2)],
        1,
    ),
    "one end": (
        {"start_lr": [1e-3, 1e-4, 1e-5], "end_lr": 0.9},
        [(1e-3, 0.9), (1e-4, 0.9), (1e-5, 0.9)],
        0,
    ),
    "lists in proportion": (
        {"start_lr": [1e-5, 1e-4, 3e-4], "end_lr": [0.01, 0.1, 0.3]},
        [(1e-5, 0.01), (1e-4, 0.1), (3e-4, 0.3)],
        2,
    ),
}


@ALL
@pytest.mark.parametrize("mode", ["exp", "linear"])
@pytest.mark.parametrize("name", VARIED)
def test_the_rates_of_each_group(kind: str, mode: Any, name: str) -> None:
    options, ranges, reference = VARIED[name]
    model, optimizer = three_groups(kind)
    used = used_rates(optimizer)
    before = trace(model, optimizer)
    result = sweep(model, optimizer, **({"mode": mode, "start_lr": 1e-4, "end_lr": 0.9} | options))
    assert trace(model, optimizer) == before
    spaced = np.geomspace if mode == "exp" else np.linspace
    expected = np.stack([spaced(*ends, 12) for ends in ranges], axis=1)
    np.testing.assert_allclose(used, expected, rtol=1e-12)
    for group, (first, last) in enumerate(ranges):
        if first == last:
            assert [row[group] for row in used] == [first] * 12
    assert result.sweep.reference == reference
    assert [row[reference] for row in used] == result.lrs.tolist()

    for point in (0, 5, 11):
        found = suggesting(result, float(result.lrs[point]))
        np.testing.assert_allclose(found.suggested_lrs(), expected[point], rtol=1e-10)
        applied = found.apply(optimizer)
        now = [group["lr"] for group in optimizer.param_groups]
        assert now == list(applied) == found.suggested_lrs()
        assert applied.old == list(RATES)
        applied.undo()
        assert trace(model, optimizer) == before


@pytest.mark.parametrize(
    ("mode", "lr", "expected"),
    [
        # Halfway, and a quarter of the way before the start.
        ("exp", 1e-2, [1e-2, 1e-2, 0.1]),
        ("exp", 1e-5, [1e-5, 10**-3.5, 0.1]),
        ("linear", 0.50005, [0.50005, 0.0505, 0.1]),
        ("linear", 1e-5, [1e-5, 1e-3, 0.1]),
    ],
)
def test_rates_between_and_beyond_the_points(mode: Any, lr: float, expected: Any) -> None:
    ranges = ((1e-4, 1.0), (1e-3, 0.1), (0.1, 0.1))
    moved = lrfast.range_test.Sweep(mode, 9, ranges, 0).rates_at(lr)
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


@ALL
def test_a_group_at_zero_stays_there_in_proportion(kind: str) -> None:
    model, optimizer = three_groups(kind, (0.0, 0.3, 0.1))
    used = used_rates(optimizer)
    result = sweep(model, optimizer)
    assert {row[0] for row in used} == {0.0}
    assert suggesting(result, 0.5).suggested_lrs()[0] == 0.0


@ALL
def test_a_group_held_at_zero(kind: str) -> None:
    model, optimizer = three_groups(kind, (0.0, 0.3, 0.1))
    used = used_rates(optimizer)
    result = sweep(model, optimizer, vary=1)
    assert {row[0] for row in used} == {0.0} and {row[2] for row in used} == {0.1}
    assert suggesting(result, 0.5).suggested_lrs() == [0.0, 0.5, 0.1]


@ALL
def test_frozen_groups_are_no_reference(kind: str) -> None:
    model, optimizer = three_groups(kind, (5.0, 0.02, 0.1))
    lrfast.freeze_to(optimizer, 1)
    lists: Any = {"start_lr": [1e-3, 1e-4, 1e-5], "end_lr": [9.0, 1.0, 0.1]}
    assert sweep(model, optimizer, **lists).sweep.reference == 1
    assert sweep(model, optimizer).sweep.reference == 2
    assert sweep(model, optimizer, vary="same").sweep.reference == 1
    with pytest.raises(ValueError, match=r"index of a group that trains, one of \[1, 2\], got 0"):
        sweep(model, optimizer, vary=0)


@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_a_rate_in_a_tensor_stays_one(kind: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = OPTIMIZERS[kind](model.parameters())
    optimizer.param_groups[0]["lr"] = rate = torch.tensor(0.25, dtype=torch.float64)
    result = sweep(model, optimizer)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25
    suggesting(result, 0.5).apply(optimizer)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.5


# Bad input.

nan, inf = math.nan, math.inf
WHOLE = "must be a whole number"


def optimizer_of(b: Bench) -> Any:
    """Held by the bench's own model, but needing a closure."""
    return torch.optim.LBFGS(b.model.parameters())


Case = tuple[str, Callable[[Bench], Any], type[Exception], str]
CASES: list[Case] = [
    ("mode", lambda b: b.find(mode="geometric"), ValueError, "mode must be 'exp'.*'geometric'"),
    *[
        (f"vary {v!r}", lambda b, v=v: b.find(vary=v), ValueError, f"vary must be .*got {v!r}$")
        for v in ("ratios", None, 1.0, True, 3, -4)
    ],
    ("start text", lambda b: b.find(start_lr="1e-3"), TypeError, "start_lr must be a nu.*'1e-3'"),
    (
        "end none",
        lambda b: b.find(end_lr=None),
        TypeError,
        "end_lr must be a number or a list, got None",
    ),
    (
        "end bool",
        lambda b: b.find(end_lr=True),
        TypeError,
        "end_lr must be a number or a list, got True",
    ),
    ("starts", lambda b: b.find(start_lr=[1, 2]), ValueError, "start_lr must .*3 groups, got 2"),
    ("ends", lambda b: b.find(end_lr=[1.0] * 4), ValueError, "end_lr must .*3 groups, got 4 rates"),
    ("no end", lambda b: b.find(end_lr=[]), ValueError, "end_lr must be one .*got 0 rates"),
    (
        "one start nan",
        lambda b: b.find(start_lr=[0.1, nan, 0.1]),
        ValueError,
        r"start_lr\[1\] must be finite and above 0, got nan",
    ),
    (
        "one end none",
        lambda b: b.find(end_lr=[1.0, 1.0, None]),
        TypeError,
        r"end_lr\[2\] must be a number, got None",
    ),
    (
        "one end true",
        lambda b: b.find(end_lr=[True, 1.0, 1.0]),
        TypeError,
        r"end_lr\[0\] must be a number, got True",
    ),
    (
        "one end below",
        lambda b: b.find(start_lr=[0.1, 0.2, 0.3], end_lr=[0.2, 0.2, 1]),
        ValueError,
        r"end_lr\[1\] must be above start_lr\[1\], got 0.2 with start_lr\[1\] 0.2",
    ),
    (
        "lists and vary",
        lambda b: b.find(end_lr=[1.0] * 3, vary="same"),
        ValueError,
        "vary must be left out where a range per group is given, got 'same'",
    ),
    *[
        (f"lag {v!r}", lambda b, v=v: b.find(lag=v), ValueError, f"lag must be 0 or 1, got {v!r}")
        for v in (2, -1, None, 0.5)
    ],
    *[
        (
            f"{name} {v!r}",
            lambda b, name=name, v=v: b.find(**{name: v}),
            ValueError,
            f"{name} {WHOLE}.*got {v!r}",
        )
        for name in ("repeats", "gradient_accumulation_steps", "verify")
        for v in (-1, 2.0, True, None, "3")
    ],
    ("no repeat", lambda b: b.find(repeats=0), ValueError, f"repeats {WHOLE}, 1 or more, got 0"),
    (
        "nothing",
        lambda b: b.find(gradient_accumulation_steps=0),
        ValueError,
        f"gradient_accumulation_steps {WHOLE}, 1 or .*got 0",
    ),
    ("race of 1", lambda b: b.find(verify=1), ValueError, f"verify {WHOLE} of steps, 2 .*got 1"),
    (
        "lag, valid",
        lambda b: b.find(lag=1, val_loader=b.batches),
        ValueError,
        "lag must be 0 with va",
    ),
    (
        "empty valid",
        lambda b: b.find(val_loader=[]),
        ValueError,
        "val_loader must yield at least one batch",
    ),
    (
        "spent valid",
        lambda b: b.find(val_loader=iter(b.batches)),
        ValueError,
        "val_loader must yield at least one batch",
    ),
    *[
        (
            f"step_fn and {name}",
            lambda b, name=name, v=v: b.find(loss_fn=None, step_fn=boom, **{name: v}),
            ValueError,
            f"{name} must be left out with step_fn",
        )
        for name, v in (
            ("compute_loss", boom),
            ("gradient_accumulation_steps", 2),
            ("val_loader", [1]),
            ("verify", 2),
        )
    ],
    ("step and loss", lambda b: b.find(step_fn=boom), ValueError, "loss_fn must be left out with"),
    (
        "step boom",
        lambda b: b.find(loss_fn=None, step_fn=boom),
        RuntimeError,
        "^boom$",
    ),
    (
        "closure and scaler",
        lambda b: lr_find(
            b.model,
            optimizer_of(b),
            b.batches,
            cross_entropy,
            scaler=torch.amp.GradScaler("cpu"),
        ),
        ValueError,
        "scaler must be left out for an optimizer that needs a closure",
    ),
    ("where", lambda b: b.find(snapshot="disk"), ValueError, "'device' or 'host', got 'disk'"),
    ("others", lambda b: b.find(others=[3]), TypeError, r"others\[0\]: wanted an object with"),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_error(kind: str, case: Case) -> None:
    _, call, error, message = case
    bench = Bench(kind)
    before = trace(bench.model, bench.optimizer)
    with pytest.raises(error) as caught:
        call(bench)
    assert type(caught.value) is error
    assert re.search(message, str(caught.value)), str(caught.value)
    assert trace(bench.model, bench.optimizer) == before
