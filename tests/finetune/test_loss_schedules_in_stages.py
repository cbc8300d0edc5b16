"""Plateau and Greedy in the stages of a fine-tuner, and early stops at the ends of cycles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_reads import ReadsOfSteps
from resuming import CASES, fit
from resuming import make_tuner as make_resuming
from tiny import bits, make_batches, used_rates
from torch import Tensor
from tuners import STEPS, Scripted, make_tuner

import lrfast
from lrfast import FineTuner, schedules
from lrfast.finetune import Callback, EarlyStop, Observe


def scripted(values: list[float], kind: str = "sgd", **options: Any) -> FineTuner:
    return make_tuner(
        kind, val_loader=make_batches(1), metrics={"script": Scripted(values)}, **options
    )


def plateau_of(tuner: FineTuner, **options: Any) -> lrfast.Plateau:
    optimizer: Any = tuner.optimizer
    return lrfast.Plateau(optimizer, **{"factor": 0.5, "patience": 0} | options)


EACH = [schedules.one_cycle(30, momentum=None), schedules.cosine(30), schedules.linear(0.1, 1, 30)]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_epochs_metric_times_each_groups_schedule(kind: str) -> None:
    """The history shows the rates that the steps used, bit for bit."""
    tuner = scripted([1.0, 1.0, 2.0, 0.1, 0.5, 0.4], kind)
    plateau = plateau_of(tuner)
    tuner.callbacks.append(Observe(plateau, "script"))
    used = used_rates(tuner.optimizer)
    stage = tuner.fit(6, EACH, [0.1, 0.2, 0.4])
    assert stage.rates.tolist() == used
    factors = np.repeat([1.0, 1.0, 0.5, 0.25, 0.25, 0.125], STEPS)
    planned = [
        own * each.values(range(30)) for own, each in zip([0.1, 0.2, 0.4], EACH, strict=True)
    ]
    assert stage.rates.tolist() == (np.stack(planned, 1) * factors[:, None]).tolist()
    assert plateau.cuts == 4
    assert [group["lr"] for group in tuner.optimizer.param_groups] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("capture", [False, True])
def test_the_validation_loss_by_default(capture: bool) -> None:
    tuner = make_tuner("sgd", capture=capture)
    tuner.callbacks.append(Observe(plateau_of(tuner, threshold=10.0, threshold_mode="abs")))
    stage = tuner.fit(4, schedules.constant(), lr=0.1)
    assert stage.rates[::STEPS, 0].tolist() == [0.1, 0.1, 0.05, 0.025]


@pytest.mark.parametrize("every", [1, 3, 7])
def test_the_mean_training_loss_of_some_updates(every: int) -> None:
    tuner = make_tuner("sgd")
    greedy = lrfast.Greedy(tuner.optimizer, factor=0.8, patience=0, threshold=0.08)  # type: ignore[arg-type]
    tuner.callbacks.append(Observe(greedy, every=every))
    used = used_rates(tuner.optimizer)
    stage = tuner.fit(4, schedules.cosine(25), lr=0.1)
    assert stage.rates.tolist() == used
    again = lrfast.Greedy(make_tuner("sgd").optimizer, factor=0.8, patience=0, threshold=0.08)  # type: ignore[arg-type]
    factors = []
    for step in range(4 * STEPS):
        factors.append(float(again.scale))
        if (step + 1) % every == 0:
            again.observe(sum(stage.losses[step + 1 - every : step + 1]) / every)
    planned = 0.1 * schedules.cosine(25).values(range(4 * STEPS))
    np.testing.assert_array_equal(stage.rates[:, 0], planned * factors)
    assert len(set(factors)) > 1


def test_each_stage_begins_anew() -> None:
    tuner = scripted([1.0, 1.0, 1.0, 2.0, 2.0])
    plateau = plateau_of(tuner)
    tuner.callbacks.append(Observe(plateau, "script"))
    first = tuner.fit(3, schedules.constant(), lr=0.1)
    assert first.rates[-1, 0] == 0.05 and float(plateau.scale) == 0.25
    second = tuner.fit(2, schedules.constant(), lr=0.1)
    assert second.rates[:, 0].tolist() == [0.1] * 2 * STEPS and float(plateau.scale) == 0.5


def test_each_stage_forgets_the_losses_that_were_not_shown() -> None:
    tuner = make_tuner("sgd")
    plateau = plateau_of(tuner)
    tuner.callbacks.append(Observe(plateau, every=3))
    tuner.fit(1, schedules.constant(), lr=0.1)  # two of five losses are left
    losses = tuner.fit(1, schedules.constant(), lr=0.1).losses
    assert float(plateau.state_dict()["best"]) == sum(losses[:3]) / 3


def test_one_that_nobody_shows_anything_keeps_its_factor() -> None:
    """As one that the user's own callback or loop observes; also one made within the stage."""

    class Late(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            if step == 3:
                plateau = plateau_of(tuner)
                plateau.observe(1.0)
                plateau.observe(1.0)

    tuner = make_tuner("sgd", callbacks=[Late()])
    used = used_rates(tuner.optimizer)
    stage = tuner.fit(1, schedules.constant(), lr=0.1)
    assert stage.rates.tolist() == used and stage.rates[:, 0].tolist() == [0.1] * 3 + [0.05] * 2
    del tuner.callbacks[0]
    assert tuner.fit(1, schedules.constant(), lr=0.4).rates[:, 0].tolist() == [0.2] * STEPS


@pytest.mark.parametrize("options", [{}, {"verify": 8}], ids=["sweep", "verified"])
def test_rests_in_a_range_test_also_within_a_stage(options: dict[str, Any]) -> None:
    class Tester(Callback):
        def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
            if epoch == 2:
                before = bits(tuner.optimizer.state_dict())
                result = tuner.lr_find(num_iter=8, diverge_threshold=None, **options)
                assert result.lrs[0] == pytest.approx(1e-7)
                assert result.lrs[-1] == pytest.approx(10)
                assert bits(tuner.optimizer.state_dict()) == before

    stages, seen = [], []
    for callbacks in ([], [Tester()]):
        torch.manual_seed(4)  # for the dropout
        tuner = make_tuner("sgd")
        plateau = plateau_of(tuner, factor=0.9, patience=0, threshold=0.3)
        tuner.callbacks += [Observe(plateau, every=2), *callbacks]
        used = used_rates(tuner.optimizer)
        stages.append(tuner.fit(4, schedules.one_cycle(20), lr=0.1))
        seen.append(used)
        assert float(plateau.scale) < 1
    swept = len(seen[1]) - len(seen[0])
    begin = 3 * STEPS
    assert seen[1][:begin] + seen[1][begin + swept :] == seen[0] == stages[0].rates.tolist()
    assert swept >= 8 and seen[1][begin][2] == pytest.approx(1e-7)
    assert stages[1].rates.tolist() == seen[0]
    assert bits(stages[1].losses) == bits(stages[0].losses)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize(
    "options", [{}, {"progress": True}, {"amp": torch.float16}], ids=["plain", "bar", "fp16"]
)
def test_no_step_reads_from_the_device(
    options: dict[str, Any], every: int | None, terminal: Any
) -> None:
    tuner = make_tuner("adamw", **options)
    tuner.callbacks.append(Observe(plateau_of(tuner, threshold=0.3), every=every))
    tuner.fit_one_cycle(1, 0.01)
    reads = ReadsOfSteps()
    tuner.callbacks.append(reads)
    with reads.mode:
        tuner.fit_one_cycle(3, 0.01)
    assert reads.steps == 3 * STEPS and tuner.optimizer.loss_schedule.cuts > 0  # type: ignore[attr-defined]


def test_the_bar_shows_the_rate_that_is_used(
    terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrfast._utils.progress._INTERVAL_S", 0.0)
    tuner = scripted([1.0, 1.0, 1.0], progress=True)
    tuner.callbacks.append(Observe(plateau_of(tuner, factor=0.25), "script"))
    tuner.fit(3, schedules.constant(), lr=0.1)
    shown = terminal.take()
    assert "lr=1.0e-01" in shown and "lr=2.5e-02" in shown


def test_skipped_updates_leave_factors_with_their_losses() -> None:
    case = next(case for case in CASES if case.name == "greedy-fp16")
    tuner = make_resuming(case)
    used = used_rates(tuner.optimizer)
    before = len(fit(tuner, case).losses)
    stage = tuner.history.stages[-1]
    assert before < case.steps()  # some were skipped
    applied = used[-case.steps() :]
    assert len({tuple(rates) for rates in stage.rates.tolist()}) > 10
    for rates in stage.rates.tolist():
        assert rates in applied


def test_checkpoints_from_before_the_factors(tmp_path: Path) -> None:
    class Saver(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            if step == 7:
                tuner.save(tmp_path / "new.pt")

    plain = make_tuner("sgd", callbacks=[Saver()])
    wanted = plain.fit(2, schedules.cosine(10), lr=0.1)
    data = torch.load(tmp_path / "new.pt", weights_only=True)
    del data["run"]["factors"], data["kind"]["loss schedule"]
    torch.save(data, tmp_path / "old.pt")
    tuner = make_tuner("sgd", callbacks=[Saver()])
    tuner.load(tmp_path / "old.pt")
    assert bits(tuner.resume().rates) == bits(wanted.rates)


def test_checkpoints_of_tuners_with_another_loss_schedule(tmp_path: Path) -> None:
    def made(make: Callable[[FineTuner], object] | None) -> FineTuner:
        tuner = make_tuner("sgd")
        if make is not None:
            make(tuner)
        return tuner

    def other(tuner: FineTuner) -> object:
        return plateau_of(tuner, factor=0.3)

    made(plateau_of).save(tmp_path / "plateau.pt")
    made(None).save(tmp_path / "none.pt")
    for make, path, message in (
        (None, "plateau.pt", "same loss schedule: wanted None, got {'kind': 'Plateau'"),
        (plateau_of, "none.pt", "same loss schedule: wanted {'kind': 'Plateau'.*got None"),
        (
            lambda t: plateau_of(t, factor=0.3),
            "plateau.pt",
            "wanted .*'factor': 0.3.*got .*'factor': 0.5",
        ),
        (lambda t: lrfast.Greedy(t.optimizer), "plateau.pt", "wanted {'kind': 'Greedy'"),
    ):
        tuner = made(make)
        before = bits([tuner.model.state_dict(), tuner.optimizer.state_dict()])
        with pytest.raises(ValueError, match=message):
            tuner.load(tmp_path / path)
        assert bits([tuner.model.state_dict(), tuner.optimizer.state_dict()]) == before
    made(plateau_of).load(tmp_path / "plateau.pt")


def test_refuses() -> None:
    tuner, other = make_tuner("sgd"), make_tuner("sgd")
    plateau = plateau_of(tuner)
    for arguments, error, message in (
        (("plateau",), TypeError, "schedule must be an .*LossSchedule, got .plateau."),
        ((schedules.constant(),), TypeError, "schedule must be an .*LossSchedule, got a Schedule"),
        ((plateau, "valid_loss", 0), ValueError, "every must be a whole number, 1 or more, got 0"),
        ((plateau, "valid_loss", 2.0), ValueError, "every must be a whole number, 1 or more"),
        ((plateau, "accuracy", 2), ValueError, "every=2 .* monitor must be left out, got 'acc"),
        ((plateau, "accuracy", -1), ValueError, "every must be a whole number, 1 or more, got -1"),
    ):
        with pytest.raises(error, match=message):
            Observe(*arguments)  # type: ignore[arg-type]
    other.callbacks.append(Observe(plateau))
    with pytest.raises(ValueError, match="schedule must be the loss_schedule of the tuner's opt"):
        other.fit(1, schedules.constant())
    theirs = make_tuner("torch-sgd", callbacks=[Observe(plateau)])
    with pytest.raises(ValueError, match="schedule must be the loss_schedule of the tuner's opt"):
        theirs.fit(1, schedules.constant())
    tuner.callbacks.append(Observe(plateau, "f1"))
    with pytest.raises(ValueError, match=r"monitor must be what validation measures \(accuracy"):
        tuner.fit(1, schedules.constant())


# Early stops: until overfitting, looked at where a cycle ends.


def until_overfitting() -> EarlyStop:
    return EarlyStop(patience=1, monitor="script", mode="min", at="cycle")


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        # Cycles of 1, 2 and 4 epochs; what happens within a cycle does not matter.
        ([5, 9, 4, 9, 9, 9, 3], 7),  # better at each end
        ([5, 9, 4, 1, 1, 1, 4], 7),  # the third is no better; it is the last one
        ([5, 1, 6], 3),  # the second is worse than the first, whatever lay between
        ([5, 1, 5], 3),  # no better is not better
        ([5, 9, float("nan")], 3),
        ([float("nan")], 1),
    ],
)
def test_until_overfitting_with_warm_restarts(values: list[float], epochs: int) -> None:
    stop = until_overfitting()
    tuner = scripted(values, callbacks=[stop])
    stage = tuner.fit_sgdr(3, 1, 0.01, cycle_mult=2.0)
    assert len(stage.epochs) == epochs
    assert stage.outcome == ("completed" if stop.waited == 0 else "stopped")


@pytest.mark.parametrize("epoch", range(3))
def test_until_overfitting_survives_a_checkpoint(epoch: int, tmp_path: Path) -> None:
    """Saved in the middle of a cycle or at its end, it stops where it would have."""

    class SaveAt(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            if step == epoch * STEPS + 2:
                tuner.save(tmp_path / "half.pt")

    values = [5.0, 9.0, 6.0, 1.0, 1.0, 1.0, 1.0]
    plain = scripted(values, callbacks=[until_overfitting(), SaveAt()])
    wanted = plain.fit_sgdr(3, 1, 0.01)
    assert len(wanted.epochs) == 3 and wanted.outcome == "stopped"
    tuner = scripted(values[epoch:], callbacks=[until_overfitting(), SaveAt()])
    tuner.load(tmp_path / "half.pt")
    stage = tuner.resume()
    assert stage.outcome == "stopped" and len(stage.epochs) == 3
    assert bits(stage.losses) == bits(wanted.losses)


def test_until_overfitting_reads_nothing_in_a_step() -> None:
    tuner = make_tuner("adamw", callbacks=[EarlyStop(patience=9, at="cycle")])
    tuner.fit_one_cycle(1, 0.01)
    reads = ReadsOfSteps()
    tuner.callbacks.append(reads)
    with reads.mode:
        tuner.fit_sgdr(2, 1, 0.01)
    assert reads.steps == 3 * STEPS


def test_a_plateaus_cuts_end_no_cycle() -> None:
    """Cycles are the schedule's; the factor on top of it neither ends nor begins one."""
    stop = until_overfitting()
    tuner = scripted([5.0, 6.0, 7.0, 4.0], callbacks=[stop])
    tuner.callbacks.insert(0, Observe(plateau_of(tuner), "script"))
    stage = tuner.fit_sgdr(2, 2, 0.01, cycle_mult=1.0)
    assert len(stage.epochs) == 4 and stage.outcome == "completed" and stop.best == 4.0
