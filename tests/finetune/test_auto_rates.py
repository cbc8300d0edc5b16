"""Stages at learning rates "auto": their first steps are a range test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bits, cross_entropy, make_batches
from torch import Tensor, nn
from tuners import make_tuner

import lrfast
from lrfast import FineTuner, schedules
from lrfast.finetune import Callback
from lrfast.training._data import DataSize

EPOCHS, BATCHES = 4, 12
TOTAL = EPOCHS * BATCHES
SWEEP = 20


def auto_tuner(kind: str = "adamw", **options: Any) -> FineTuner:
    torch.manual_seed(3)
    return make_tuner(kind, train_loader=make_batches(BATCHES), **options)


def state(tuner: FineTuner) -> Any:
    optimizer = tuner.optimizer.state_dict()
    return bits([tuner.model.state_dict(), optimizer["state"], optimizer["param_groups"]])


def seen(tuner: FineTuner) -> Any:
    stage = tuner.history.stages[-1]
    facts = (stage.name, stage.outcome, stage.losses.tolist(), stage.rates.tolist())
    return repr((facts, stage.epochs, tuner.range_test and tuner.range_test.suggestions))


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_stage_is_the_loop_that_a_user_would_write(kind: str, capture: bool) -> None:
    tuner = auto_tuner(kind, capture=capture)
    stage = tuner.fit_one_cycle(EPOCHS, "auto", pct_start=0.4)
    other = auto_tuner(kind)
    optimizer = other.optimizer
    assert isinstance(optimizer, lrfast.SGD | lrfast.AdamW)
    plan = schedules.one_cycle(TOTAL, pct_start=0.4)
    search = lrfast.find_in_warmup(other.model, optimizer, plan)
    search.data_size = DataSize(8, 8 * BATCHES)
    losses = []
    other.model.train()
    for inputs, targets in EPOCHS * make_batches(BATCHES):
        loss = cross_entropy(other.model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        search.observe(loss)
    assert stage.losses.tolist() == losses and stage.outcome == "completed"
    assert bits(list(tuner.model.parameters())) == bits(list(other.model.parameters()))
    assert tuner.range_test is not None and search.result is not None
    assert tuner.range_test.suggestions == search.result.suggestions
    # The history has the sweep, and then the schedule in what is left.
    spent = search.spent
    assert 1 < spent <= SWEEP
    table = torch.from_numpy(search.result.sweep.table(spent))
    torch.testing.assert_close(torch.from_numpy(stage.rates[:spent]), table, rtol=1e-9, atol=0)
    rest = plan.extend_to(TOTAL - spent).values(range(TOTAL - spent))
    peaks = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
    expected = torch.from_numpy(rest)[:, None] * peaks
    torch.testing.assert_close(torch.from_numpy(stage.rates[spent:]), expected, rtol=1e-9, atol=0)


class CycleEnds(Callback):
    """Notes the epochs within which a cycle ended."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        assert tuner.running is not None
        self.epochs += [epoch] if tuner.running.is_cycle_end else []


@pytest.mark.parametrize(("cycle_mult", "ends"), [(1.0, [1, 3, 5]), (1.5, [1, 4, 8])])
def test_warm_restarts_stay_at_the_ends_of_epochs(cycle_mult: float, ends: list[int]) -> None:
    noted = CycleEnds()
    tuner = auto_tuner("sgd", callbacks=[noted])
    stage = tuner.fit_sgdr(3, 2, "auto", cycle_mult=cycle_mult, eta_min=0.2)
    assert stage.outcome == "completed" and stage.name == "sgdr" and noted.epochs == ends
    assert tuner.range_test is not None
    first = 2 * BATCHES
    spent = int(tuner.range_test.notes[-1].split()[0])
    assert 1 < spent <= SWEEP
    plan = schedules.sgdr(first, cycle_mult, 3, 0.2, unit=BATCHES)
    peaks = tuner.range_test.suggested_lrs()
    for group, peak in enumerate(peaks):
        later = peak * plan.values(range(first, plan.total_steps))
        np.testing.assert_allclose(stage.rates[first:, group], later, rtol=1e-12)
        rest = schedules.sgdr(first - spent, eta_min=0.2).values(range(first - spent))
        np.testing.assert_allclose(stage.rates[spent:first, group], peak * rest, rtol=1e-12)


class Interrupt(Callback):
    """Presses Ctrl-C after a step, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step == self.step:
            self.step = -1
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.8, "gradient_accumulation_steps": 2}], ids=["plain", "ema"]
)
@pytest.mark.parametrize("step", [1, 2, 11, 12, 19, 20, 21, 23, 27])
@pytest.mark.parametrize("by_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("stage", ["flat_cos", "sgdr"])
def test_resuming_within_and_after_the_sweep_changes_no_bit(
    stage: str, step: int, by_file: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    size = options.get("gradient_accumulation_steps", 1)

    def fit(tuner: FineTuner) -> None:
        if stage == "sgdr":
            tuner.fit_sgdr(2, 2 * size, "auto", cycle_mult=1.5, eta_min=0.2)
        else:
            tuner.fit_flat_cos(EPOCHS * size, "auto")

    whole = auto_tuner(callbacks=[Interrupt(-1)], **options)
    fit(whole)
    tuner = auto_tuner(callbacks=[Interrupt(step)], **options)
    with pytest.raises(KeyboardInterrupt):
        fit(tuner)
    if by_file:
        tuner.save(tmp_path / "tuner.pt")
        found = tuner.range_test
        tuner = auto_tuner(callbacks=[Interrupt(-1)], **options)
        tuner.load(tmp_path / "tuner.pt")
        tuner.range_test = found  # checkpoints do not hold it
    tuner.resume()
    assert state(tuner) == state(whole)
    assert seen(tuner) == seen(whole)


def test_a_second_stage_keeps_the_ratios_of_the_first() -> None:
    tuner = auto_tuner()
    tuner.fit_one_cycle(1, slice(1e-4, 1e-2))
    tuner.fit_one_cycle(EPOCHS, "auto")
    rates = [group["lr"] for group in tuner.optimizer.param_groups]
    assert rates == pytest.approx([rates[-1] / 100, rates[-1] / 10, rates[-1]])
    assert tuner.range_test is not None
    assert rates[-1] == pytest.approx(tuner.range_test.suggested_lrs()[-1])


def test_a_frozen_body_stays_as_it_is() -> None:
    tuner = auto_tuner()
    tuner.freeze()
    before = bits(tuner.optimizer.param_groups[0]["params"])
    tuner.fit_one_cycle(EPOCHS, "auto")
    assert bits(tuner.optimizer.param_groups[0]["params"]) == before


@pytest.mark.parametrize("step", [5, 10, 11])
def test_a_loss_that_is_not_finite_ends_the_sweep_and_not_the_stage(step: int) -> None:
    calls = [0]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        calls[0] += torch.is_grad_enabled()
        return loss * (math.nan if calls[0] == step + 1 else 1.0)

    tuner = auto_tuner(loss_fn=loss_fn)
    stage = tuner.fit_one_cycle(EPOCHS, "auto")
    assert stage.outcome == "completed" and len(stage.losses) == TOTAL
    assert tuner.range_test is not None and tuner.range_test.outcome == "non-finite"
    assert [i for i, loss in enumerate(stage.losses) if not math.isfinite(loss)] == [step]
    assert all(torch.isfinite(p).all() for p in tuner.model.parameters())


def test_bad_calls() -> None:
    with pytest.raises(TypeError, match=r'torch.optim, got "auto" with SGD; use an optimizer of'):
        auto_tuner("torch-sgd").fit_one_cycle(EPOCHS, "auto")
    tuner = auto_tuner()
    with pytest.raises(ValueError, match=r"more than 20 steps .* got 12; run lr_find before"):
        tuner.fit_one_cycle(1, "auto")
    with pytest.raises(
        ValueError, match=r"cycle_len must make more than 20 .*, got 1, which makes 12"
    ):
        tuner.fit_sgdr(3, 1, "auto")
    with pytest.raises(
        TypeError, match=r"max_lr must be learning rates, or .auto., got 'automatic'"
    ):
        tuner.fit_sgdr(3, 2, "automatic")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lr must be learning rates, or .auto., got 'automatic'"):
        tuner.fit(2, schedules.cosine(2 * BATCHES), "automatic")  # type: ignore[arg-type]
    tuner = auto_tuner()
    assert isinstance(tuner.optimizer, lrfast.AdamW)
    lrfast.Plateau(tuner.optimizer)
    with pytest.raises(ValueError, match="optimizer must have no loss schedule"):
        tuner.fit_one_cycle(EPOCHS, "auto")
    assert tuner.history.stages == []


def test_the_plan_stays_until_the_sweep_has_ended() -> None:
    tuner = auto_tuner(callbacks=[Interrupt(6)])
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(EPOCHS, "auto")
    with pytest.raises(ValueError, match="epochs and schedule must be left out until the range"):
        tuner.resume(epochs=5, schedule=schedules.cosine(60))
    tuner.resume()
    assert tuner.history.stages[-1].outcome == "completed"
