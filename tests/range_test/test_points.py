"""How a point comes about: windows of batches, validation, lag, data that end, the stop rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    OPTIMIZERS,
    OURS,
    bits,
    cross_entropy,
    make_batches,
    make_model,
    make_scripted,
    trace,
    used_rates,
)
from torch import Tensor, nn

import lrfast
from lrfast import RangeTest, lr_find
from lrfast.training._data import DataExhausted, PlacedBatches, accumulation_windows, cycle_data

ALL = pytest.mark.parametrize("kind", OPTIMIZERS)
PLAIN: dict[str, Any] = {
    "diverge_threshold": None,
    "progress": False,
    "start_lr": 1e-3,
    "end_lr": 0.5,
}


def linear(kind: str) -> tuple[nn.Linear, Any]:
    """A model without noise of its own."""
    torch.manual_seed(2)
    model = nn.Linear(4, 3).double()
    return model, OPTIMIZERS[kind](model.parameters())


def double(batches: Any) -> list[Any]:
    return [(inputs.double(), targets) for inputs, targets in batches]


def replay(kind: str, lrs: Any, losses: Callable[[nn.Module, int], Tensor]) -> list[float]:
    """The losses of a plain loop at these rates."""
    model, optimizer = linear(kind)
    seen = []
    for step, lr in enumerate(lrs):
        optimizer.zero_grad()
        loss = losses(model, step)
        seen.append(loss.item())
        loss.backward()
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
    return seen


# Several batches per update.


@pytest.mark.parametrize(
    ("size", "batches", "expected"), [(1, 5, 5), (2, 5, 3), (8, 100, 13), (8, 3, 1)]
)
def test_windows_of_data_that_end(size: int, batches: int, expected: int) -> None:
    ending = accumulation_windows(cycle_data(iter(range(batches))), size)
    found = [next(ending) for _ in range(expected)]
    with pytest.raises(DataExhausted):
        next(ending)
    assert [batch for window in found for batch in window] == list(range(batches))
    assert {len(window) for window in found[:-1]} <= {size}


def test_windows_of_data_that_are_cycled() -> None:
    found = accumulation_windows(cycle_data([0, 1, 2]), 2)
    assert [next(found) for _ in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]


@pytest.mark.parametrize("is_sized", [True, False])
def test_a_trainers_windows_end_with_a_pass(is_sized: bool) -> None:
    """Also if the trainer ends it early, and if the data have no length."""

    class Unsized:
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    data = PlacedBatches(range(5) if is_sized else Unsized(), [])
    windows = accumulation_windows(cycle_data(data), 2)
    found = [[(each.batch, each.place) for each in next(windows)] for _ in range(4)]
    assert found == [[(0, 0), (1, 1)], [(2, 2), (3, 3)], [(4, 4)], [(0, 0), (1, 1)]]
    data.is_ended = True
    assert [each.batch for each in next(windows)] == [0, 1]


@ALL
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_window_is_one_big_batch(kind: str, accumulate: int) -> None:
    batches = double(make_batches(6 * accumulate))
    calls = 0

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(outputs, targets)

    model, optimizer = linear(kind)
    used = used_rates(optimizer)
    result = lr_find(
        model,
        optimizer,
        batches,
        criterion,
        gradient_accumulation_steps=accumulate,
        num_iter=6,
        **PLAIN,
    )
    assert calls == 6 * accumulate and len(used) == 6 == len(result.lrs)

    def big(model: nn.Module, step: int) -> Tensor:
        window = batches[step * accumulate : (step + 1) * accumulate]
        inputs, targets = (torch.cat(part) for part in zip(*window, strict=True))
        return cross_entropy(model(inputs), targets)

    np.testing.assert_allclose(result.losses, replay(kind, result.lrs, big), rtol=1e-12)


def test_a_partial_window_at_the_end_of_the_data() -> None:
    batches = double(make_batches(5))
    model, optimizer = linear("adamw")
    options = {"gradient_accumulation_steps": 2, **PLAIN}
    result = lr_find(model, optimizer, iter(batches), cross_entropy, num_iter=3, **options)

    def mean(model: nn.Module, step: int) -> Tensor:
        window = batches[2 * step : 2 * step + 2]
        return torch.stack([cross_entropy(model(x), y) for x, y in window]).mean()

    np.testing.assert_allclose(result.losses, replay("adamw", result.lrs, mean), rtol=1e-12)
    before = trace(model, optimizer)
    with pytest.raises(ValueError, match="train_loader ended and cannot be iterated again"):
        lr_find(model, optimizer, iter(batches), cross_entropy, num_iter=4, **options)
    assert trace(model, optimizer) == before


# One batch for all, and losses after the update.


@ALL
def test_the_same_batch_for_all_updates(kind: str) -> None:
    batches = double(make_batches(9))
    model, optimizer = linear(kind)
    options = {"same_batch": True, "gradient_accumulation_steps": 2, "num_iter": 8, **PLAIN}
    result = lr_find(model, optimizer, batches, cross_entropy, **options)
    first = lr_find(model, optimizer, batches[:2], cross_entropy, **options)
    assert bits(result.losses) == bits(first.losses)
    assert result.notes == ()
    other = lr_find(model, optimizer, batches, cross_entropy, **options | {"same_batch": False})
    assert bits(other.losses[0]) == bits(result.losses[0])
    assert bits(other.losses) != bits(result.losses)


@ALL
@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_after_the_update(kind: str, accumulate: int) -> None:
    """lag=1 pairs rates with the losses that follow, for one forward pass and no update more."""
    batches = double(make_batches(8 * accumulate))
    model, optimizer = linear(kind)
    calls = []

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return cross_entropy(outputs, targets)

    options = {"gradient_accumulation_steps": accumulate, **PLAIN}
    before = lr_find(model, optimizer, batches, criterion, num_iter=7, **options)
    calls.clear()
    used = used_rates(optimizer)
    after = lr_find(model, optimizer, batches, criterion, num_iter=7, lag=1, **options)
    assert calls == [True] * 7 * accumulate + [False] * accumulate and len(used) == 7
    assert bits(after.lrs) == bits(before.lrs)
    assert bits(after.losses[:-1]) == bits(before.losses[1:])

    def window(model: nn.Module, step: int) -> Tensor:
        part = batches[step * accumulate : (step + 1) * accumulate]
        return torch.stack([cross_entropy(model(x), y) for x, y in part]).mean()

    plain = replay(kind, [*after.lrs, 1.0], window)
    np.testing.assert_allclose(after.losses, plain[1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("losses", "lag", "points", "outcome"),
    [
        ([math.nan] * 9, 0, 1, "non-finite"),
        ([math.nan] * 9, 1, 0, "non-finite"),
        ([1.0, 2.0, math.inf, 2.0], 1, 2, "non-finite"),
        ([1.0] * 8, 0, 8, "completed"),
        ([1.0] * 8, 1, 7, "completed"),
    ],
)
def test_short_and_flat_curves(losses: Any, lag: int, points: int, outcome: str) -> None:
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    result = lr_find(
        model,
        optimizer,
        [None],
        compute_loss=make_scripted(losses),
        num_iter=len(losses) - lag,
        lag=lag,
        progress=False,
    )
    assert (len(result.lrs), result.outcome) == (points, outcome)
    np.testing.assert_array_equal(result.losses, losses[lag : lag + points])
    assert {len(result.smoothed), len(result.derivative)} == {points}
    assert str(result).startswith("Range test: ")


# Validation.


@ALL
def test_validation_losses_after_the_update(kind: str) -> None:
    """The mean over all rows, of uneven batches, in evaluation mode."""
    inputs, targets = (torch.cat(part) for part in zip(*make_batches(3), strict=True))
    valid = [(inputs[a:b], targets[a:b]) for a, b in ((0, 2), (2, 13), (13, 24))]
    model = make_model()
    model[4].eval()
    optimizer = OPTIMIZERS[kind](lrfast.discriminative(model, [0.01, 0.02, 0.05]))
    modes = []
    seen: list[float] = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        with torch.random.fork_rng():
            flags = [module.training for module in model.modules()]
            model.eval()
            with torch.no_grad():
                seen.append(float(cross_entropy(model(inputs).double(), targets)))
            for module, flag in zip(model.modules(), flags, strict=True):
                module.training = flag

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        modes.append([module.training for module in model.modules()])
        return cross_entropy(outputs, targets)

    optimizer.register_step_post_hook(note)
    own = [module.training for module in model.modules()]
    batches = make_batches(6)
    before = trace(model, optimizer)
    result = lr_find(model, optimizer, batches, criterion, val_loader=valid, num_iter=6, **PLAIN)
    assert trace(model, optimizer) == before
    np.testing.assert_allclose(result.losses, seen, rtol=1e-6)
    assert modes == [own, *[[False] * len(own)] * 3] * 6
    assert own.count(False) == 1


# The data.


def endless() -> Any:
    return cycle(make_batches(5))


@ALL
def test_an_endless_iterator(kind: str) -> None:
    model = make_model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    results = [
        lr_find(model, optimizer, data, cross_entropy, num_iter=12, **PLAIN)
        for data in (endless(), make_batches(5))
    ]
    assert bits(results[0].losses) == bits(results[1].losses)
    assert [len(result.notes) for result in results] == [0, 1]


def test_one_batch_is_enough_and_none_is_not() -> None:
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    options: Any = {"num_iter": 5, "gradient_accumulation_steps": 3, "lag": 1, **PLAIN}
    assert len(lr_find(model, optimizer, make_batches(1), cross_entropy, **options).lrs) == 5
    for data in ([], iter([]), torch.utils.data.DataLoader([])):
        with pytest.raises(
            ValueError, match="train_loader must yield at least one batch, got none"
        ):
            lr_find(model, optimizer, data, cross_entropy, **options)


# The stop rule.


def scripted(losses: Any, **options: Any) -> RangeTest:
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    losses_of = make_scripted(losses)
    options = {"num_iter": len(losses), "progress": False} | options
    return lr_find(model, optimizer, [None], compute_loss=losses_of, **options)


def test_no_stop() -> None:
    losses = [*np.linspace(2, 1, 20), *np.geomspace(1, 1e30, 20)]
    assert scripted(losses).outcome == "diverged"
    result = scripted(losses, diverge_threshold=None)
    assert (result.outcome, len(result.lrs)) == ("completed", 40)
    losses[30] = math.nan
    result = scripted(losses, diverge_threshold=None)
    assert (result.outcome, len(result.lrs)) == ("non-finite", 31)


def test_losses_below_zero_stop_when_they_rise() -> None:
    """Peers either stop at once or never: a multiple of a best below 0 lies below it."""
    falling = list(np.linspace(-1.0, -3.0, 50))
    assert scripted(falling).outcome == "completed"
    result = scripted([*falling, *np.linspace(-3.0, 400.0, 50)], beta=0.5)
    assert result.outcome == "diverged" and 50 < len(result.lrs) < 60


@pytest.mark.parametrize("kind", OURS)
def test_a_loss_of_one_row_and_of_half_precision(kind: str) -> None:
    model, optimizer = linear(kind)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1]).bfloat16().reshape(1)

    batches = double(make_batches(8))
    result = lr_find(model, optimizer, batches, compute_loss=compute_loss, num_iter=8, **PLAIN)
    wanted = torch.tensor(result.losses).bfloat16().double().numpy()
    np.testing.assert_array_equal(result.losses, wanted)
