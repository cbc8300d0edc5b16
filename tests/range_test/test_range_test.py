"""The range test: the rates it uses, the curve it records, the stop rule and what it suggests."""

from __future__ import annotations

import csv
import logging
import math
from collections import namedtuple
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    OPTIMIZERS,
    cross_entropy,
    ema,
    make_batches,
    make_model,
    make_scripted,
    trace,
    used_rates,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import lrfast
from lrfast import RangeTest, lr_find, suggest

RATES = (0.01, 0.3, 0.1)


def three_groups(kind: str) -> tuple[nn.Sequential, Any]:
    model = make_model()
    optimizer = OPTIMIZERS[kind](lrfast.discriminative(model, list(RATES)))
    return model, optimizer


def scripted(losses: Any, num_iter: int | None = None, **options: Any) -> RangeTest:
    """The range test that sees these losses, of weights of 0, whose size says nothing."""
    model = nn.Linear(2, 1).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return lr_find(
        model,
        lrfast.SGD(model.parameters(), lr=0.1),
        [None],
        compute_loss=make_scripted(losses),
        num_iter=len(losses) if num_iter is None else num_iter,
        progress=False,
        **options,
    )


def noisy_valley(points: int) -> np.ndarray:
    """Losses that fall from 2.3 to 0.4 and then rise beyond all bounds."""
    x = np.linspace(0, 1, points)
    noise = np.random.default_rng(3).normal(size=points)
    return 0.4 + 1.9 / (1 + np.exp(14 * (x - 0.45))) + np.exp(30 * (x - 0.85)) + 0.03 * noise


# The rates.


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_rates_used_are_the_rates_recorded(kind: str) -> None:
    model, optimizer = three_groups(kind)
    used = used_rates(optimizer)
    result = lr_find(
        model,
        optimizer,
        make_batches(4),
        cross_entropy,
        num_iter=30,
        diverge_threshold=1e9,
        progress=False,
    )
    assert len(result.lrs) == 30 and result.outcome == "completed"
    assert [rates[1] for rates in used] == result.lrs.tolist()
    ratios = [rate / 0.3 for rate in RATES]
    np.testing.assert_allclose(used, np.outer(result.lrs, ratios), rtol=1e-14)
    np.testing.assert_allclose(result.ratios, ratios, rtol=1e-15)


@pytest.mark.parametrize("kind", ["sgd", "torch-sgd"])
def test_the_parameters_move_by_the_rates_recorded(kind: str) -> None:
    """Gradients of 1, no momentum: a step is the rate, and losses[k] comes before update k."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model = nn.ParameterList([weight])
    cls = lrfast.SGD if kind == "sgd" else torch.optim.SGD
    seen: list[Tensor] = []

    def compute_loss(model: Any, batch: Any) -> Tensor:
        seen.append(weight.detach().clone())
        return weight.sum()

    result = lr_find(
        model, cls([weight], lr=2.5), [None], compute_loss=compute_loss, num_iter=20, progress=False
    )
    before = np.array([float(w[0]) for w in seen])
    np.testing.assert_allclose(before, -np.cumsum([0.0, *result.lrs[:-1]]), rtol=1e-12)
    np.testing.assert_array_equal(result.losses, [float(w.sum()) for w in seen])


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
@pytest.mark.parametrize(("start", "end"), [(1e-7, 10.0), (3.3e-5, 0.7), (0.1, 0.3), (1e-300, 1.0)])
@pytest.mark.parametrize("num_iter", [2, 3, 100])
def test_both_ends_are_hit_and_the_sweep_is_geometric(
    kind: str, start: float, end: float, num_iter: int
) -> None:
    model = nn.Linear(2, 1).double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    used = used_rates(optimizer)
    result = lr_find(
        model,
        optimizer,
        [None],
        compute_loss=make_scripted(np.ones(num_iter)),
        start_lr=start,
        end_lr=end,
        num_iter=num_iter,
        progress=False,
    )
    assert result.lrs[0] == start and result.lrs[-1] == end
    assert used[0] == [start] and used[-1] == [end]
    steps = np.diff(np.log(result.lrs))
    np.testing.assert_allclose(steps, math.log(end / start) / (num_iter - 1), rtol=1e-11)


def test_defaults() -> None:
    model = nn.Linear(2, 1)
    result = lr_find(
        model,
        lrfast.SGD(model.parameters(), 0.1),
        [None] * 100,
        compute_loss=make_scripted(np.ones(100)),
    )
    assert (len(result.lrs), result.lrs[0], result.lrs[-1]) == (100, 1e-7, 10.0)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_groups_do_not_set_the_scale(kind: str) -> None:
    model = make_model()
    optimizer = OPTIMIZERS[kind](lrfast.discriminative(model, [5.0, 0.02, 0.1]))
    lrfast.freeze_to(optimizer, 1)
    used = used_rates(optimizer)
    result = lr_find(
        model,
        optimizer,
        make_batches(9),
        cross_entropy,
        num_iter=9,
        diverge_threshold=1e9,
        progress=False,
    )
    np.testing.assert_allclose(result.ratios, (50.0, 0.2, 1.0), rtol=1e-15)
    assert [rates[2] for rates in used] == result.lrs.tolist()


# The curve and the stop rule.


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98])
def test_smoothed_losses_are_the_bias_corrected_average(beta: float) -> None:
    losses = np.random.default_rng(0).uniform(1, 2, size=40)
    result = scripted(losses, beta=beta)
    assert result.losses.tolist() == losses.tolist()
    np.testing.assert_allclose(result.smoothed, ema(losses, beta), rtol=1e-13)


def test_the_derivative_is_per_natural_logarithm_of_the_rate() -> None:
    result = scripted(np.linspace(5, 1, 30), beta=0.5)
    x, y = np.log(result.lrs), result.smoothed
    inner = (y[2:] - y[:-2]) / (x[2:] - x[:-2])
    np.testing.assert_allclose(result.derivative[1:-1], inner, rtol=1e-12)
    np.testing.assert_allclose(result.derivative[0], (y[1] - y[0]) / (x[1] - x[0]), rtol=1e-12)
    np.testing.assert_allclose(result.derivative[-1], (y[-1] - y[-2]) / (x[-1] - x[-2]), rtol=1e-12)


@pytest.mark.parametrize("stop", [1.2, 2.0, 4.0])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.98])
def test_it_stops_at_the_first_loss_above_stop_times_the_best(stop: float, beta: float) -> None:
    losses = noisy_valley(80)
    smoothed = ema(losses, beta)
    stopped = next(k for k in range(80) if smoothed[k] > stop * min(smoothed[: k + 1]))
    result = scripted(losses, diverge_threshold=stop, beta=beta)
    assert result.outcome == "diverged"
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) == stopped + 1
    assert len(result.derivative) == stopped + 1 < 80
    assert result.losses.tolist() == losses[: stopped + 1].tolist()


def test_it_stops_at_four_times_the_best_by_default() -> None:
    losses = [1.0] * 10 + [3.99] * 400
    assert scripted(losses, beta=0.0).outcome == "completed"
    losses[20] = 4.01
    result = scripted(losses, beta=0.0)
    assert (result.outcome, len(result.lrs)) == ("diverged", 21)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 1, 12, 29])
def test_a_loss_that_is_not_finite_ends_it(bad: float, index: int) -> None:
    losses = np.linspace(3, 1, 30)
    losses[index] = bad
    result = scripted(losses, beta=0.9)
    assert result.outcome == "non-finite"
    points = (result.lrs, result.losses, result.smoothed, result.derivative)
    assert [len(column) for column in points] == [index + 1] * 4
    np.testing.assert_array_equal(result.losses, losses[: index + 1])
    np.testing.assert_allclose(result.smoothed[:index], ema(losses[:index], 0.9), rtol=1e-13)
    assert np.isfinite(result.derivative[: max(index - 1, 0)]).all()
    assert (result.suggestion.lr is None) == (index < 2)
    assert result.lrs[0] == 1e-7


# What it suggests.


@pytest.mark.parametrize("rule", suggest.names())
@pytest.mark.parametrize(("planned", "seen"), [(100, 100), (60, 60), (100, 40), (100, 17)])
def test_suggestions_are_what_the_rules_read(rule: str, planned: int, seen: int) -> None:
    """Raw losses, or smoothed ones without a tenth of the points planned and the last five."""
    losses = noisy_valley(100)[:planned].copy()
    if seen < planned:
        losses[seen - 1] = math.nan
    result = scripted(losses, diverge_threshold=1e9)
    assert len(result.lrs) == seen
    found = result.suggestions[rule]
    assert found.rule == rule
    if rule == "auto":
        assert found == suggest.auto(result.lrs, result.losses, typical=1.0, deviation=0.6)  # SGD's
        return
    if suggest.reads_raw(rule):
        assert found == suggest.get(rule)(result.lrs, result.losses)
        return
    skip = planned // 10
    kept = slice(skip, seen - 5)
    expected = suggest.get(rule)(result.lrs[kept], result.smoothed[kept])
    if expected.index is None:
        assert found == expected
    else:
        assert found == replace(expected, index=expected.index + skip)
        at_index = {"minimum": 10 * (found.lr or 0)}.get(rule, found.lr)
        assert result.lrs[found.index] == pytest.approx(at_index, rel=1e-14)


@pytest.mark.parametrize("seen", range(1, 18))
def test_short_curves_are_trimmed_as_far_as_they_go(seen: int) -> None:
    losses = np.linspace(3, 1, 100)
    losses[seen] = math.nan
    result = scripted(losses)
    assert list(result.suggestions) == list(suggest.names())
    assert (result.suggestions["steep"].lr is None) == (seen < 2)
    for suggestion in result.suggestions.values():
        assert suggestion.index is None or 0 <= suggestion.index < seen


def test_the_suggestion_is_auto() -> None:
    result = scripted(noisy_valley(100))
    assert result.suggestion is result.suggestions["auto"] and result.suggestion.lr is not None
    with pytest.raises(TypeError):
        result.suggestions["auto"] = result.suggestion


def test_rates_and_apply_keep_the_ratios() -> None:
    model, optimizer = three_groups("adamw")
    result = lr_find(model, optimizer, make_batches(20), cross_entropy, progress=False)
    for rule in ("auto", "steep"):
        lr = result.suggestions[rule].lr
        assert lr is not None
        rates = result.suggested_lrs(rule)
        np.testing.assert_allclose(rates, [lr / 30, lr, lr / 3], rtol=1e-14)
        assert result.apply(optimizer, rule) == rates
        assert [group["lr"] for group in optimizer.param_groups] == rates
    assert result.suggested_lrs() == result.suggested_lrs("auto")
    result.apply(optimizer)
    assert optimizer.get_last_lr() == result.suggested_lrs()


def test_apply_refuses_and_changes_nothing() -> None:
    model, optimizer = three_groups("sgd")
    declined = scripted(np.linspace(1, 2, 30))
    found = scripted(noisy_valley(100))
    before = trace(model, optimizer)
    with pytest.raises(ValueError, match="rule 'steep' suggests no rate: the loss never decreases"):
        declined.apply(optimizer, "steep")
    with pytest.raises(ValueError, match="must have the 1 param groups of the range test, got 3"):
        found.apply(optimizer)
    with pytest.raises(ValueError, match="got 'steap'; did you mean 'steep'"):
        found.apply(optimizer, "steap")
    assert trace(model, optimizer) == before


def test_csv_holds_every_digit(tmp_path: Any) -> None:
    losses = noisy_valley(30)
    losses[25] = math.nan
    result = scripted(losses)
    result.to_csv(tmp_path / "curve.csv")
    with open(tmp_path / "curve.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["lr", "loss", "smoothed", "derivative"]
    columns = (result.lrs, result.losses, result.smoothed, result.derivative)
    np.testing.assert_array_equal(np.array(rows, dtype=np.float64), np.stack(columns, axis=1))


# The data.


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(4), 1


def sweep_over(data: Any, num_iter: int = 10, **options: Any) -> RangeTest:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    loss = {"loss_fn": cross_entropy} if "compute_loss" not in options else {}
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    return lr_find(model, optimizer, data, num_iter=num_iter, progress=False, **loss, **options)


def test_kinds_of_data_give_the_same_curve() -> None:
    batches = make_batches(10)
    rows = [(x, y) for inputs, targets in batches for x, y in zip(inputs, targets, strict=True)]
    loader: Any = DataLoader(rows, batch_size=8)
    expected = sweep_over(batches)
    for data in (tuple(batches), iter(batches), [list(batch) for batch in batches], loader):
        result = sweep_over(data)
        np.testing.assert_array_equal(result.losses, expected.losses)
        assert result.notes == ()


def test_a_loader_without_a_length() -> None:
    assert len(sweep_over(DataLoader(Endless(), batch_size=4)).lrs) == 10


Pair = namedtuple("Pair", "inputs extras")


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.ones(4, 4), "name": "a batch"},
        Pair(torch.ones(4, 4), {"deep": [torch.ones(1)]}),
        torch.ones(4, 4),
    ],
    ids=["dict", "namedtuple", "tensor"],
)
def test_batches_of_other_kinds(batch: Any) -> None:
    seen = []

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch)
        inputs = batch["x"] if isinstance(batch, dict) else getattr(batch, "inputs", batch)
        return model(inputs).square().mean()

    result = sweep_over([batch], 5, compute_loss=compute_loss)
    assert len(result.lrs) == 5 and all(type(b) is type(batch) for b in seen)
    if isinstance(batch, Pair):
        assert seen[0].extras["deep"][0].tolist() == [1.0]


def test_a_short_loader_is_cycled_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def compute_loss(model: nn.Module, batch: int) -> Tensor:
        seen.append(batch)
        return model(torch.ones(4, 4)).square().mean()

    with caplog.at_level(logging.INFO, logger="lrfast"):
        result = sweep_over([0, 1, 2], 8, compute_loss=compute_loss)
    assert seen == [0, 1, 2, 0, 1, 2, 0, 1]
    note = "the loader's 3 batches were cycled for 8 steps"
    assert result.notes[0] == note and note in caplog.messages


def test_a_generator_that_ends_too_early() -> None:
    with pytest.raises(
        ValueError, match="train_loader ended and cannot be iterated again; pass a loader"
    ):
        sweep_over(iter(make_batches(9)))
    assert len(sweep_over(iter(make_batches(10))).lrs) == 10


def test_a_note_only_if_batches_were_seen_again() -> None:
    assert any("cycled" in note for note in scripted([1.0, math.nan, 1.0, 1.0]).notes)
    model = nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), 0.1)
    losses = make_scripted([1.0, math.nan, 1.0])
    result = lr_find(
        model, optimizer, [0, 1], compute_loss=losses, num_iter=3, beta=0.5, progress=False
    )
    assert not any("cycled" in note for note in result.notes)


def test_a_note_says_where_a_loss_is_not_finite() -> None:
    result = scripted([1.0, math.nan, 1.0, 1.0])
    note = f"the loss is nan at point 2, at lr {result.lrs[1]:.1e}"
    assert result.notes[0] == note and note in str(result)
    assert not any("the loss is" in note for note in scripted([1.0, 1.0, 1.0, 1.0]).notes)
