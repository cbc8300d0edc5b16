"""Saved and resumed, a stage is bit for bit what it is without the interruption."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import CASES, Case, fit, fit_first, fit_second, left, make_tuner

from lrfast import FineTuner, schedules
from lrfast.finetune import Callback


def by_name(case: Case) -> str:
    return case.name


def loaded(case: Case, path: Path) -> FineTuner:
    """A tuner of a new process, whose random numbers are elsewhere, with what was saved."""
    tuner = make_tuner(case)
    for generator in (random.random, np.random.rand, lambda: torch.rand(3)):
        generator()
    tuner.load(path)
    return tuner


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_train_equals_save_load_resume(case: Case, tmp_path: Path) -> None:
    plain = make_tuner(case)
    fit(plain, case)
    wanted = left(plain)
    saving = make_tuner(case, tmp_path)
    fit(saving, case)
    assert left(saving) == wanted  # saving changes nothing
    moments = [f"step{step}" for step in range(1, case.steps() + 1)]
    moments += [f"{corner}{epoch}" for corner in ("begin", "epoch") for epoch in range(3)]
    for moment in moments:
        tuner = loaded(case, tmp_path / f"{moment}.pt")
        tuner.resume()
        found = left(tuner)
        different = [name for name in wanted if found[name] != wanted[name]]
        assert not different, f"{moment}: {different}"


def test_the_cases_bite() -> None:
    """Scalers skip steps, groups are frozen and thaw, nothing ends early."""
    for case in CASES:
        stage = fit(make_tuner(case), case)
        assert np.isfinite(stage.losses).all() and stage.outcome == "completed"
        skipped = case.steps() - len(stage.losses)
        assert (skipped >= 2) == (case.options.get("amp") is torch.float16), case.name
        assert bool(np.isnan(stage.rates).any()) == bool(case.freeze_to or "timetable" in case.fit)


def test_workers_replay_their_augmentations(tmp_path: Path) -> None:
    case = Case("workers", "sgd", workers=2)
    plain = make_tuner(case, tmp_path)
    fit(plain, case)
    wanted = left(plain)
    for moment in ("step2", "step9"):
        tuner = loaded(case, tmp_path / f"{moment}.pt")
        tuner.resume()
        assert left(tuner) == wanted


@pytest.mark.parametrize("case", CASES[:3], ids=by_name)
def test_what_lies_between_load_and_resume_leaves_no_trace(case: Case, tmp_path: Path) -> None:
    plain = make_tuner(case, tmp_path)
    fit(plain, case)
    wanted = left(plain)
    tuner = loaded(case, tmp_path / "step8.pt")
    assert tuner.optimizer.get_last_lr() == [0.02, 0.05, 0.1]  # no schedule until then
    tuner.lr_find(num_iter=5)
    tuner.validate()
    tuner.model.eval()
    random.random()
    torch.rand(2)
    tuner.resume()
    assert left(tuner) == wanted


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_between_stages(case: Case, tmp_path: Path) -> None:
    """What is trained after a load is what would have been trained without it."""
    plain = make_tuner(case)
    fit(plain, case)
    plain.save(tmp_path / "between.pt")
    plain.fit(1, schedules.cosine(9))
    wanted = left(plain)
    tuner = loaded(case, tmp_path / "between.pt")
    with pytest.raises(ValueError, match="resume needs an interrupted stage, got none"):
        tuner.resume()
    tuner.fit(1, schedules.cosine(9))
    assert left(tuner) == wanted


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_tuner_that_has_trained_something_else(case: Case, tmp_path: Path) -> None:
    plain = make_tuner(case, tmp_path)
    fit(plain, case)
    wanted = left(plain)
    tuner = make_tuner(case)
    tuner.fit_one_cycle(1, 0.3, momentum=(0.8, 0.1))
    tuner.freeze()
    tuner.load(tmp_path / "step5.pt")
    tuner.resume()
    assert left(tuner) == wanted


# Interruptions in the same process.


class Interrupter(Callback):
    """Ends a stage with Ctrl-C, or with an exception, at one of its corners."""

    def __init__(
        self,
        step: int = 0,
        epoch: int = -1,
        begin: int = -1,
        error: type[BaseException] | None = None,
    ) -> None:
        self.step, self.epoch, self.begin, self.error = step, epoch, begin, error

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        if epoch == self.begin:
            self.end()

    def on_step_end(self, tuner: FineTuner, step: int, loss: torch.Tensor) -> None:
        if step == self.step:
            self.end()

    def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
        if epoch == self.epoch:
            self.end()

    def end(self) -> None:
        self.step, self.epoch, self.begin = 0, -1, -1
        if self.error is not None:
            raise self.error("enough")
        signal.raise_signal(signal.SIGINT)


OBSERVED = [case for case in CASES if case.loss_schedule is not None]
WHERE = [{"step": 1}, {"step": 2}, {"step": 6}, {"epoch": 1}, {"begin": 0}, {"begin": 1}]


@pytest.mark.parametrize("error", [None, RuntimeError])
@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("case", CASES[2:5] + OBSERVED + CASES[-3:], ids=by_name)
def test_interrupted_and_resumed(case: Case, where: dict[str, int], error: Any) -> None:
    plain = make_tuner(case)
    fit(plain, case)
    wanted = left(plain)
    tuner = make_tuner(case)
    fit_first(tuner, case)
    tuner.callbacks.append(Interrupter(**where, error=error))
    with pytest.raises(error or KeyboardInterrupt):
        fit_second(tuner, case)
    assert tuner.running is None
    assert [stage.outcome for stage in tuner.history.stages] == ["completed", "interrupted"]
    assert [group["lr"] for group in tuner.optimizer.param_groups] == [0.02, 0.05, 0.1]
    torch.rand(5)
    random.random()
    tuner.model.eval()
    stage = tuner.resume()
    del tuner.callbacks[-1]
    assert tuner.history.stages[1] is stage and stage.outcome == "completed"
    assert left(tuner) == wanted
