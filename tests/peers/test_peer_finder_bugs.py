"""Traps that a finder of another library is in today, one test each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import start
from tiny import (
    OPTIMIZERS,
    boom,
    cross_entropy,
    failing,
    make_batches,
    make_model,
    make_scripted,
    trace,
    train,
    used_rates,
)
from torch import Tensor, nn

import lrfast
from lrfast import RangeTest, lr_find, schedules, suggest

# The curve that the traps with a known answer share: it falls fastest, per decade, at 10**-2.4.
RATES = np.geomspace(1e-7, 10, 100)
STEEPEST = -2.4
FALL = 2.3 - 1.9 / (1 + np.exp(-4 * (np.log10(RATES) - STEEPEST)))


def scripted(losses: Any, **options: Any) -> RangeTest:
    """The range test that sees these losses."""
    model = nn.Linear(2, 1).double()
    settings = {"num_iter": len(losses), "progress": False} | options
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    return lr_find(model, optimizer, [None], compute_loss=make_scripted(losses), **settings)


def test_the_average_of_equal_losses_is_that_loss() -> None:
    """Lightning's bias correction has an exponent too many: 0.505, 0.673, 0.758 and so on."""
    np.testing.assert_allclose(scripted(np.ones(20)).smoothed, np.ones(20), rtol=1e-14)


def test_the_best_loss_is_one_that_was_seen() -> None:
    """Lightning's begins at 0, where step 1 does not replace it: late in training it stops."""
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, make_batches(4), 50)
    losses = [3.0] * 10 + [11.9] * 5 + [12.1] * 5
    options: Any = {"num_iter": 20, "beta": 0.0, "progress": False}
    result = lr_find(model, optimizer, [None], compute_loss=make_scripted(losses), **options)
    assert result.outcome == "diverged" and len(result.losses) == 16


def test_slopes_are_over_the_logarithm_of_the_rate() -> None:
    """Per rate, as in Lightning, the noise at the lowest rates is the steepest of all."""
    noise = 0.02 * np.random.default_rng(5).normal(size=100)
    result = scripted(FALL + noise, beta=0.9, diverge_threshold=None)
    steepest = result.suggestions["steep"].lr
    assert steepest is not None and abs(math.log10(steepest) - STEEPEST) < 0.6
    kept = slice(10, -5)
    per_rate = np.gradient(result.smoothed[kept], result.lrs[kept])
    assert math.log10(result.lrs[kept][np.argmin(per_rate)]) < -5


@pytest.mark.parametrize("rule", ["steep", "valley", "slide"])
def test_indices_count_from_the_first_point(rule: str) -> None:
    """ktrain looks for the steepest point behind the first 32, and counts from there."""
    suggestion = scripted(FALL, diverge_threshold=None).suggestions[rule]
    assert suggestion.index is not None and suggestion.index > 10
    assert RATES[suggestion.index] == pytest.approx(suggestion.lr, rel=1e-12)


@pytest.mark.parametrize("module", [lrfast, torch.optim])
def test_recorded_rates_are_those_of_their_updates(module: Any) -> None:
    """ignite and granite record the rate of the step after."""
    model = nn.Linear(1, 1, bias=False).double()
    positions: list[float] = []
    scripted_loss = make_scripted(np.ones(13))

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        positions.append(next(model.parameters()).item())
        return scripted_loss(model, batch)  # whose gradient is 1

    optimizer = module.SGD(model.parameters(), lr=0.1)
    options: Any = {"start_lr": 1e-3, "num_iter": 12, "lag": 1, "progress": False}
    result = lr_find(model, optimizer, [None], compute_loss=compute_loss, **options)
    np.testing.assert_allclose(-np.diff(positions), result.lrs, rtol=1e-9)


class Ranked:
    """What one of two ranks has left after a sweep in which it alone sees these losses."""

    def __init__(self, rank: int) -> None:
        torch.manual_seed(0)
        model = nn.Linear(2, 1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        before = trace(model, optimizer)
        result = lr_find(
            model,
            optimizer,
            [None],
            compute_loss=make_scripted([1.0 + 2 * rank] * 8),
            num_iter=8,
            process_group=dist.group.WORLD,
            progress=False,
        )
        self.losses = result.losses.tolist()
        self.is_restored = trace(model, optimizer) == before


def _as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    file = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2)
    ranked = Ranked(rank)
    torch.save((ranked.losses, ranked.is_restored), Path(folder) / str(rank))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[float], bool]]:
    """Losses of a range test on either of two ranks, and whether it put everything back."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start(_as_rank, (str(folder),), 2)
    while not processes.join():
        pass
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.full
def test_ranks_see_their_mean_loss(ranks: list[tuple[list[float], bool]]) -> None:
    """ignite sums over the ranks."""
    assert [losses for losses, _ in ranks] == [[2.0] * 8] * 2


@pytest.mark.full
def test_every_rank_puts_its_optimizer_back(ranks: list[tuple[list[float], bool]]) -> None:
    """fastai does on rank 0 only."""
    assert [is_restored for _, is_restored in ranks] == [True, True]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everything_is_put_back_after_an_exception(kind: str) -> None:
    """ignite leaves the weights where the sweep was."""
    model = make_model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, make_batches(4), 3)
    before = trace(model, optimizer)
    with pytest.raises(RuntimeError, match="boom"):
        lr_find(model, optimizer, make_batches(4), failing(7, boom), progress=False)
    assert trace(model, optimizer) == before


def test_a_trace_that_is_compared_is_a_copy() -> None:
    """fastai's test compares a parameter with itself; ours has to see what a step does."""
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = trace(model, optimizer)
    seen: list[Any] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(trace(model, optimizer)["parameters"])
        return cross_entropy(outputs, targets)

    options: Any = {"start_lr": 1e-3, "num_iter": 5, "diverge_threshold": None, "progress": False}
    lr_find(model, optimizer, make_batches(4), loss_fn, **options)
    assert trace(model, optimizer) == before
    values = [[value for value, _, _ in parameters] for parameters in (before["parameters"], *seen)]
    assert all(one != other for one, other in pairwise(values[1:]))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_that_is_resumed_goes_on_in_its_schedule(kind: str) -> None:
    """fastai's fit_flat_cos forgets its start_epoch and begins at the top again."""
    schedule = schedules.constant().then(schedules.cosine(20))
    rates: list[list[float]] = []
    saved: dict[str, Any] = {}
    for steps, resumed in ((20, False), (8, False), (12, True)):
        model = make_model()
        optimizer: Any = OPTIMIZERS[kind](model.parameters())
        optimizer.set_schedule(schedule)
        if resumed:
            optimizer.load_state_dict(saved)
        used = used_rates(optimizer)
        train(model, optimizer, make_batches(4), steps)
        saved = optimizer.state_dict()
        rates.append([row[0] for row in used])
    whole, first, rest = rates
    assert first + rest == whole and rest[0] < first[0]


def test_the_first_point_is_a_suggestion_like_any_other() -> None:
    """Lightning's plot takes index 0 for none."""
    losses = [3.0, 1.0, 0.9, 0.8, 0.7, 0.6]
    result = scripted(losses, beta=0.0)
    steep = suggest.steep(result.lrs, losses)
    assert steep.index == 0 and steep.lr == result.lrs[0]
    figure = replace(result, suggestions=type(result.suggestions)({"auto": steep})).plot()
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert [line.get_xdata()[0] for line in marks] == [steep.lr]


def test_a_first_rate_of_zero_is_refused() -> None:
    """torch-lr-finder takes it for an argument left out, and begins at the optimizer's rate."""
    with pytest.raises(ValueError, match="start_lr must be finite and above 0, got 0"):
        scripted(np.ones(10), start_lr=0)


def test_a_scaler_is_put_back() -> None:
    """torch-lr-finder leaves the scale where the sweep's overflows took it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scales: list[float] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        scales.append(scaler.get_scale())
        return cross_entropy(outputs, targets)

    scaler.scale(torch.ones(()))  # a scaler has no state before its first loss
    before = scaler.state_dict()
    options: Any = {"num_iter": 10, "diverge_threshold": None, "scaler": scaler, "progress": False}
    lr_find(model, optimizer, make_batches(4), loss_fn, **options)
    assert len(set(scales)) > 2
    assert scaler.state_dict() == before


def test_modes_are_put_back_after_validation() -> None:
    """torch-lr-finder leaves the model in evaluation mode."""
    model = make_model()
    model[1].eval()
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    modes = [module.training for module in model.modules()]
    seen = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((model.training, model[1].training))
        return cross_entropy(outputs, targets)

    batches = make_batches(4)
    lr_find(model, optimizer, batches, loss_fn, val_loader=batches, num_iter=5, progress=False)
    # A norm that was put into evaluation mode stays there while the rest trains.
    assert seen == [(True, False), *[(False, False)] * 4] * 5
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_ratios_between_groups_last(kind: str) -> None:
    """In torch-lr-finder all groups end at one rate, in Lightning they begin there too."""
    model = make_model()
    optimizer = OPTIMIZERS[kind](lrfast.discriminative(model, [0.001, 0.01, 0.1]))
    used = used_rates(optimizer)
    options: Any = {"num_iter": 9, "diverge_threshold": None, "progress": False}
    result = lr_find(model, optimizer, make_batches(4), cross_entropy, **options)
    for rates in [*used, result.sweep.rates_at(0.03)]:
        np.testing.assert_allclose(np.array(rates) / rates[-1], [0.01, 0.1, 1.0], rtol=1e-12)


def _nan(losses: list[float], at: int) -> list[float]:
    return [*losses[:at], math.nan, *losses[at:]]


def _high(losses: list[float], at: int) -> list[float]:
    return [*losses[:at], 100.0, *losses[at:]]


@pytest.mark.parametrize(("spoil", "outcome"), [(_nan, "non-finite"), (_high, "diverged")])
@pytest.mark.parametrize("at", [5, 7, 8, 9, 13])
def test_a_new_pass_over_the_data_does_not_spare_a_bad_loss(
    spoil: Callable[[list[float], int], list[float]], outcome: str, at: int
) -> None:
    """keras_lr_finder ignores the first six batches of each pass: with few it never stops."""
    model = nn.Linear(2, 1).double()
    loss = make_scripted(spoil([1.0] * 19, at))
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    options: Any = {"num_iter": 20, "beta": 0.0, "progress": False}
    result = lr_find(model, optimizer, [None] * 4, compute_loss=loss, **options)
    assert result.outcome == outcome and len(result.lrs) == at + 1
