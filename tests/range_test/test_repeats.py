"""Several sweeps in one: the first is the single one, the others differ, and nothing waits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from device_reads import NoDeviceReads
from sweep_setups import Setup, build
from tiny import (
    OPTIMIZERS,
    OURS,
    CountReads,
    bits,
    cross_entropy,
    make_batches,
    make_model,
    make_scripted,
)
from torch import nn
from torch.utils.data import DataLoader

import lrfast
from lrfast import RangeTest, lr_find

ALL = pytest.mark.parametrize("kind", OPTIMIZERS)
PLAIN: dict[str, Any] = {
    "diverge_threshold": None,
    "progress": False,
    "start_lr": 1e-3,
    "end_lr": 0.5,
}


def repeated(setup: Setup, repeats: int, data: Any = None, **options: Any) -> RangeTest:
    data = setup.loader if data is None else data
    settings = {"num_iter": 12, "repeats": repeats, **PLAIN} | options
    return lr_find(setup.model, setup.optimizer, data, cross_entropy, **settings)


@ALL
@pytest.mark.parametrize("own_generator", [True, False])
def test_the_first_sweep_is_the_single_one_and_the_others_differ(
    kind: str, own_generator: bool
) -> None:
    setup = build(kind, own_generator=own_generator)
    setup.train(4)
    before = setup.trace()
    single, result = repeated(setup, 1), repeated(setup, 4)
    assert setup.trace() == before
    assert single.repeats is None and single.band is None
    assert result.repeats is not None and result.repeats.shape == (4, 12)
    assert bits(result.repeats[0]) == bits(single.losses)
    assert len({row.tobytes() for row in result.repeats}) == 4
    np.testing.assert_array_equal(result.losses, np.median(result.repeats, axis=0))
    assert result.band is not None
    np.testing.assert_allclose(result.band, np.quantile(result.repeats, (0.25, 0.75), axis=0))
    again = repeated(setup, 4)
    assert bits(again.repeats) == bits(result.repeats)
    assert bits([again.losses, again.smoothed]) == bits([result.losses, result.smoothed])


@ALL
def test_every_sweep_begins_from_the_same_state(kind: str) -> None:
    """Without random numbers and shuffling, all of them are the same."""
    model = nn.Linear(4, 3)
    optimizer = OPTIMIZERS[kind](model.parameters())
    options = {"num_iter": 6, "repeats": 3, **PLAIN}
    result = lr_find(model, optimizer, make_batches(6), cross_entropy, **options)
    assert result.repeats is not None
    assert bits(result.repeats[0]) == bits(result.repeats[1]) == bits(result.repeats[2])


def test_the_order_of_the_data_differs_too() -> None:
    """A loader that shuffles, with a generator of its own and with the global one."""
    orders: list[list[int]] = []
    for generator in (torch.Generator().manual_seed(2**64 - 1), None):
        seen: list[int] = []

        def compute_loss(model: Any, batch: Any, seen: list[int] = seen) -> Any:
            seen.extend(batch.tolist())
            return model(torch.ones(1, 2)).sum()

        torch.manual_seed(8)
        loader: Any = DataLoader(range(24), batch_size=4, shuffle=True, generator=generator)
        model = nn.Linear(2, 1)
        optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        lr_find(model, optimizer, loader, compute_loss=compute_loss, num_iter=6, repeats=3, **PLAIN)
        passes = [seen[k : k + 24] for k in (0, 24, 48)]
        assert all(sorted(order) == list(range(24)) for order in passes)
        assert len({tuple(order) for order in passes}) == 3
        orders += passes
    assert len({tuple(order) for order in orders}) == 6


@ALL
def test_data_that_can_be_iterated_once(kind: str) -> None:
    """They are held, so that every sweep and every run of a race sees the same."""
    batches = make_batches(12)
    plain, setup = build(kind), build(kind)
    wanted = repeated(plain, 3, Unsized(batches), verify=4)
    result = repeated(setup, 3, iter(batches), verify=4)
    assert bits(result.repeats) == bits(wanted.repeats)
    assert wanted.race is not None and result.race is not None
    assert result.race.candidates == wanted.race.candidates


class Unsized:
    """Batches that do not say how many they are."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def scripted(sweeps: list[list[float]], **options: Any) -> RangeTest:
    """The range test whose sweeps see these losses."""
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    losses = make_scripted([loss for sweep in sweeps for loss in sweep])
    settings = {"beta": 0.0, "num_iter": 8, "repeats": len(sweeps), "progress": False} | options
    return lr_find(model, optimizer, [None], compute_loss=losses, **settings)


def test_sweeps_that_end_early() -> None:
    """The median goes on up to where half of them have ended."""
    nan, inf = math.nan, math.inf
    long = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    late = [2.0, 2.0, 2.0, 2.0, 2.5, 90.0]  # the first five are not judged
    result = scripted([long, [3.0, 3.0, nan], late])
    assert result.outcome == "completed"  # each outcome came once: that of the first sweep
    assert result.losses.tolist() == late
    assert len(result.lrs) == len(result.smoothed) == len(result.derivative) == 6
    assert result.repeats is not None and result.repeats.shape == (3, 8)
    np.testing.assert_array_equal(result.repeats[1], [3.0, 3.0, *[nan] * 6])
    high = [1.0] * 5 + [90.0]
    result = scripted([high, high, long])
    assert result.outcome == "diverged" and result.losses.tolist() == high
    for bad in (nan, inf, -inf):
        assert len(scripted([[bad], [inf]]).losses) == 0
        result = scripted([[bad], long, [bad]])
        assert result.outcome == "non-finite" and len(result.losses) == len(result.lrs) == 0
        assert result.suggestion.lr is None


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_where_outcomes_are_equally_frequent_the_first_sweep_decides(order: Any) -> None:
    high, broken = [1.0] * 5 + [90.0], [1.0, math.nan]
    endings = [("diverged", high), ("non-finite", broken), ("completed", [1.0] * 8)]
    result = scripted([endings[k][1] for k in order])
    assert result.outcome == endings[order[0]][0]


# Nothing in the loop waits for the device.


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3},
        {"val_loader": make_batches(2)},
        {"lag": 1},
        {"same_batch": True},
        {"repeats": 3},
        {"mode": "linear", "vary": "same"},
        {"vary": 0},
        {
            "gradient_accumulation_steps": 2,
            "lag": 1,
            "same_batch": True,
            "repeats": 2,
            "progress": True,
        },
        {"gradient_accumulation_steps": 2, "val_loader": make_batches(2), "repeats": 2},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("kind", OURS)
def test_no_device_reads(kind: str, options: dict[str, Any], terminal: Any) -> None:
    setup = build(kind)
    setup.train(3)
    batches = make_batches(4)
    settings = {"num_iter": 30, **PLAIN} | options
    with NoDeviceReads():
        result = lr_find(setup.model, setup.optimizer, batches, cross_entropy, **settings)
        single = lr_find(
            setup.model, setup.optimizer, batches, cross_entropy, num_iter=30, progress=False
        )
    assert len(result.lrs) == len(single.lrs) == 30


def own_step(setup: Setup) -> Any:
    def step(batch: Any) -> Any:
        setup.optimizer.zero_grad()
        loss = cross_entropy(setup.model(batch[0]), batch[1])
        loss.backward()
        setup.optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("way", ["scaler", "scaler and valid", "step_fn", "step_fn, lag"])
@pytest.mark.parametrize("kind", OURS)
def test_reads_after_the_loop_only(kind: str, way: str) -> None:
    """Where steps may be skipped, their count is read once the sweep has gone through."""
    setup = build(kind)
    batches = make_batches(4)
    reads = []
    for num_iter in (10, 40):
        options: dict[str, Any] = {"num_iter": num_iter, **PLAIN}
        if way.startswith("scaler"):
            options["scaler"] = torch.amp.GradScaler("cpu", init_scale=4.0)
            options["loss_fn"] = cross_entropy
        else:
            options["step_fn"] = own_step(setup)
        options |= {"val_loader": batches} if "valid" in way else {"lag": 1} if "lag" in way else {}
        with CountReads() as counter:
            result = lr_find(setup.model, setup.optimizer, batches, **options)
        assert len(result.lrs) == num_iter
        reads.append(counter.reads)
    assert reads[0] == reads[1] < 10


def test_a_read_in_a_loop_would_be_counted() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["torch-sgd"](model.parameters())
    batches = make_batches(4)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with CountReads() as counter:
        lr_find(model, optimizer, batches, cross_entropy, num_iter=40, scaler=scaler, **PLAIN)
    assert counter.reads >= 40
