"""Re-tests during training: when they run, what they may cost, and what they change."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from retests import RATES, Finder, fake_lr_find, make_groups, make_retest, rates
from tiny import (
    OPTIMIZERS,
    Noisy,
    boom,
    cross_entropy,
    failing,
    make_batches,
    make_model,
    trace,
    train,
)
from torch import Tensor
from torch.optim import lr_scheduler as L
from torch.utils.data import DataLoader

import lrfast
from lrfast import Retest, schedules
from lrfast.range_test import _retest


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    return fake_lr_find(monkeypatch)


def test_groups_that_do_not_move_keep_their_rates(finder: Finder) -> None:
    model, optimizer = make_groups()
    model[0].requires_grad_(False)
    optimizer.param_groups[1]["lr"] = 0.0
    make_retest(finder, optimizer).epoch_end()
    assert rates(optimizer) == [0.1, 0.0, pytest.approx(1.2), 0.8]
    finder.vary = 2
    optimizer.param_groups[1]["lr"] = 0.5
    make_retest(finder, optimizer).epoch_end()
    assert rates(optimizer) == [0.1, 0.5, pytest.approx(3.6), 0.8]


def test_a_tensor_that_groups_share_is_scaled_once(finder: Finder) -> None:
    _, optimizer = make_groups(frozen=0)
    shared = torch.tensor(0.5, dtype=torch.float64)
    for group in optimizer.param_groups[:3]:
        group["lr"] = shared
    make_retest(finder, optimizer).epoch_end()
    assert rates(optimizer) == pytest.approx([1.5, 1.5, 1.5, 2.4])


@pytest.mark.parametrize(
    ("factor", "outcome", "used"),
    [
        (None, "declined", 1),
        (1.49, "kept", 1),
        (1 / 1.49, "kept", 1),
        (1.51, "applied", 1.51),
        (1 / 1.51, "applied", 1 / 1.51),
        (9.9, "applied", 9.9),
        (37.0, "applied", 10),
        (1 / 37.0, "applied", 0.1),
    ],
)
def test_what_a_suggestion_does(
    factor: float | None, outcome: str, used: float, finder: Finder
) -> None:
    finder.factor = factor
    _, optimizer = make_groups()
    entry = make_retest(finder, optimizer).epoch_end()
    assert entry is not None
    assert entry.outcome == outcome and entry.confidence == 0.9 and entry.seconds == 2.0
    assert entry.old == RATES and list(entry.new) == rates(optimizer)
    assert entry.new == pytest.approx([used * rate for rate in RATES[:3]] + [0.8])
    is_limited = factor is not None and max(factor, 1 / factor) > 10
    assert ("limited to a factor of 10" in entry.reason) == is_limited
    assert outcome == "kept" or "a reason" in entry.reason


def test_when_tests_run(finder: Finder) -> None:
    finder.factor = None
    retest = make_retest(finder, every=3)
    assert [retest.epoch_end() is not None for _ in range(7)] == [*[False, False, True] * 2, False]
    assert retest.unfrozen().trigger == "unfreeze"
    log = [(entry.epoch, entry.trigger) for entry in retest.log]
    assert log == [(3, "every"), (6, "every"), (7, "unfreeze")]
    assert make_retest(finder, every=None).epoch_end() is None


def test_a_plateau(finder: Finder) -> None:
    retest = make_retest(finder, every=None, patience=2)
    losses = [3.0, 2.0, 2.0, 1.5, torch.tensor([1.6]), float("nan"), 1.5, 1.5, 1.4, 1.45]
    for loss in losses:
        retest.epoch_end(loss)
    log = [(entry.epoch, entry.trigger) for entry in retest.log]
    assert log == [(6, "plateau"), (8, "plateau")]
    both = make_retest(finder, every=2, patience=1)
    both.epoch_end(1.0)
    assert both.epoch_end(1.0) is both.log[-1] and both.log[-1].trigger == "plateau"
    assert len(both.log) == 1


def test_without_patience_no_loss_is_read(finder: Finder) -> None:
    class Unread:
        def __float__(self) -> float:
            raise AssertionError("read")

    make_retest(finder).epoch_end(Unread())  # type: ignore[arg-type]


def test_the_budget(finder: Finder) -> None:
    retest = make_retest(finder, budget=0.1)
    clock = finder.clock
    outcomes = []
    # The first test costs 2 s. The second needs 40 s of training; then 5 s are
    # spent, and a third needs 80 s.
    for seconds in (1.0, 38.9, 0.2, 0.0, 39.8, 0.2):
        clock.now += seconds
        entry = retest.epoch_end()
        assert entry is not None
        outcomes.append(entry.outcome)
        finder.cost = 3.0
    assert outcomes == [
        "applied",
        "over budget",
        "applied",
        "over budget",
        "over budget",
        "applied",
    ]
    assert finder.calls == 3
    last = retest.log[-2]
    assert last.old == last.new and last.seconds == 0 and last.confidence is None
    assert last.reason == "range tests would have taken 8 s, and 0.1 of 80 s of training is less"
    assert retest.unfrozen().outcome == "over budget"


def test_a_plateau_over_budget_waits_for_its_test(finder: Finder) -> None:
    retest = make_retest(finder, every=None, patience=2, budget=0.1)
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        retest.epoch_end(loss)
    finder.clock.now += 100
    retest.epoch_end(1.0)
    outcomes = [entry.outcome for entry in retest.log]
    assert outcomes == ["applied", "over budget", "over budget", "applied"]


def test_ranks_decide_together(finder: Finder) -> None:
    class Others:
        is_alone = False

        def mean(self, value: Tensor) -> Tensor:
            return (value + 1.0) / 2  # the other one is over budget, and its loss is 1

    retest = make_retest(finder, every=None, patience=1, budget=0.1)
    retest._ranks = Others()  # type: ignore[assignment]
    assert retest.epoch_end(3.0) is None
    assert retest.epoch_end(2.0) is None and retest.state_dict()["best"] == 1.5
    entry = retest.epoch_end(2.0)
    assert entry is not None and entry.outcome == "over budget" and finder.calls == 0


def test_log_table_and_file(finder: Finder, tmp_path: Path) -> None:
    _, optimizer = make_groups()
    retest = make_retest(finder, optimizer)
    retest.epoch_end()
    finder.factor = None
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.3})
    retest.epoch_end()
    lines = retest.table().splitlines()
    assert lines[0].split()[:3] == ["epoch", "trigger", "outcome"] and len(lines) == 3
    assert lines[1].split()[:5] == ["1", "every", "applied", "1.0e-01", "2.0e-01"]
    retest.to_csv(tmp_path / "log.csv")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, retest.log, strict=True):
        for name, expected in (("old", entry.old), ("new", entry.new)):
            cells = [row[f"{name}_{group}"] for group in range(5)]
            assert [float(cell) for cell in cells if cell] == list(expected)
        assert (row["outcome"], int(row["epoch"])) == (entry.outcome, entry.epoch)


def test_a_checkpoint(finder: Finder) -> None:
    first = make_retest(finder, every=3, patience=4, budget=0.1)
    finder.clock.now += 10
    for loss in (2.0, 1.0, 1.0, 1.0):
        first.epoch_end(loss)
    state, file = first.state_dict(), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second = make_retest(finder, every=3, patience=4, budget=0.1)
    finder.clock.now += 1000  # not training
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.log == first.log and len(second.log) == 1
    assert second.epoch_end(1.0) is None
    entry = second.epoch_end(1.0)
    assert entry is not None
    assert (entry.epoch, entry.trigger, entry.outcome) == (6, "plateau", "over budget")
    third = make_retest(finder, budget=0.1)
    third.load_state_dict(state)  # 10 s of training, a test of 2 s
    finder.clock.now += 29.9
    assert third.epoch_end() is third.log[-1] and third.log[-1].outcome == "over budget"
    finder.clock.now += 0.2
    assert third.epoch_end() is third.log[-1] and third.log[-1].outcome == "applied"
    with pytest.raises(ValueError, match=r"state_dict must hold best, .* got log"):
        second.load_state_dict({"log": []})
    assert len(second.log) == 2


def make_scheduler(kind: str, optimizer: Any) -> Any:
    if kind == "one-cycle":
        return L.OneCycleLR(optimizer, [0.1, 0.2, 0.3], 40)
    if kind == "lambda":  # at 0 when the second test runs
        return L.LambdaLR(optimizer, lambda k: abs(k - 8) / 10)
    if kind == "ours":
        optimizer.set_schedule(schedules.one_cycle(40))
    return None


def run_with(kind: str, schedule: str, ending: str | None) -> list[dict[str, Any]]:
    """What three epochs leave, with re-tests that end in this way, or without any."""
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    model = make_model()
    optimizer = OPTIMIZERS[kind](lrfast.discriminative(model, [0.01, 0.02, 0.05]))
    scheduler = make_scheduler(schedule, optimizer)
    others = [] if scheduler is None else [scheduler]
    generator = torch.Generator().manual_seed(6)
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)
    retest = Retest(
        model,
        optimizer,
        loader,
        failing(9, boom) if ending == "raised" else cross_entropy,
        every=1,
        budget=None,
        tolerance=1e12,
        max_change=1e12,
        rule="minimum" if ending == "kept" else None,
        schedulers=others,
        num_iter=2 if ending == "declined" else 20,
        progress=False,
    )
    seen = []
    for steps in (5, 3, 3):
        train(model, optimizer, loader, steps, scheduler)
        if ending == "raised" and not seen:
            with pytest.raises(RuntimeError, match="boom"):
                retest.epoch_end()
        elif ending in ("kept", "declined"):
            entry = retest.epoch_end()
            assert entry is not None and entry.outcome == ending, entry
        seen.append(trace(model, optimizer, others))
    return seen


@pytest.mark.parametrize("ending", ["declined", "kept", "raised"])
@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        *(("adamw", schedule) for schedule in ("none", "ours", "one-cycle", "lambda")),
        *(("torch-sgd", schedule) for schedule in ("none", "one-cycle", "lambda")),
    ],
)
def test_training_goes_on_as_without_it(kind: str, schedule: str, ending: str) -> None:
    assert run_with(kind, schedule, ending) == run_with(kind, schedule, None)


def test_rates_far_too_low_rise() -> None:
    torch.manual_seed(0)
    model = make_model()
    optimizer = lrfast.SGD(model.parameters(), lr=1e-5)
    batches = make_batches(20)
    retest = Retest(model, optimizer, batches, cross_entropy, every=1, budget=None, progress=False)
    found = []
    for _ in range(3):
        train(model, optimizer, batches, 20)
        entry = retest.epoch_end()
        assert entry is not None
        found.append(entry)
    assert found[0].outcome == "applied" and found[0].new == pytest.approx([1e-4])
    assert all(a.new == b.old for a, b in pairwise(found))


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"every": 0}, r"every must be None or a whole number of epochs, 1 or more, got 0"),
    ({"every": True}, r"every must be .* got True"),
    ({"patience": 1.5}, r"patience must be .* got 1.5"),
    ({"budget": 0.0}, r"budget must be None, or finite and above 0, got 0.0"),
    ({"budget": "much"}, r"budget must be a number or None, got 'much'"),
    ({"tolerance": 0.9}, r"tolerance must be finite and 1 or more, got 0.9"),
    ({"max_change": 1.2}, r"max_change must be .* at least tolerance, got 1.2 with tolerance 1.5"),
    ({"max_change": 1, "tolerance": 1}, r"max_change must be finite, above 1"),
    ({"rule": "best"}, r"best"),
    ({"rule": "verified"}, r"rule 'verified' needs verify"),
    ({"num_iters": 3}, r"unexpected keyword argument 'num_iters'; did you mean num_iter?"),
    ({"data": []}, r"'data'; did you mean train_loader"),
    (
        {"schedulers": [schedules.cosine(3)]},
        r"schedulers.0. must be a torch.LRScheduler, got a Schedule",
    ),
    ({"train_loader": iter([])}, r"train_loader must be iterable more than once, got an iterator"),
    ({"optimizer": 3}, r"optimizer must be a torch.optim.Optimizer, got 3"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model, optimizer = make_groups()
    given = {"model": model, "optimizer": optimizer, "train_loader": [], "loss_fn": cross_entropy}
    with pytest.raises((TypeError, ValueError), match=message):
        Retest(**(given | arguments))


def test_schedulers_have_to_be_known(finder: Finder) -> None:
    model, optimizer = make_groups()
    early = make_retest(finder, optimizer)
    scheduler = L.CosineAnnealingLR(optimizer, 5)
    with pytest.raises(ValueError, match="schedulers must hold the schedulers attached"):
        Retest(model, optimizer, [], cross_entropy)
    with pytest.raises(ValueError, match="schedulers must hold the schedulers attached"):
        early.epoch_end()
    with pytest.raises(TypeError, match="schedulers must be a list, got a CosineAnnealingLR"):
        Retest(model, optimizer, [], schedulers=scheduler)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schedulers must be attached to optimizer"):
        Retest(model, make_groups()[1], [], schedulers=[scheduler])


@pytest.mark.parametrize(
    ("loss", "message"), [(None, "patience is 2; got None"), (torch.ones(2), r"shape \(2,\)")]
)
def test_a_bad_loss_counts_nothing(loss: Any, message: str, finder: Finder) -> None:
    retest = make_retest(finder, patience=2)
    before = retest.state_dict()
    with pytest.raises(ValueError, match=message):
        retest.epoch_end(loss)
    assert retest.state_dict() == before


def test_the_rule_asked_for_is_used(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    suggestion = lrfast.suggest.Suggestion(0.8, "valley", "the valley", 0.4)

    def find(*args: Any, **options: Any) -> Any:
        result = finder(*args, **options)
        found = MappingProxyType({**result.suggestions, "valley": suggestion})
        return replace(result, suggestions=found)

    retest = make_retest(finder, rule="valley")
    monkeypatch.setattr(_retest, "lr_find", find)
    entry = retest.unfrozen()
    assert entry.confidence == 0.4 and entry.reason == "the valley"
    assert entry.new[:3] == pytest.approx([0.2, 0.4, 0.8])
