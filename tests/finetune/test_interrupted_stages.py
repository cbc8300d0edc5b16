"""Interrupted stages, longer ones, and checkpoints that do not fit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import CASES, Case, fit_first, fit_second, left
from resuming import make_tuner as make_resuming
from tiny import OPTIMIZERS, boom, cross_entropy, failing, make_batches, make_model, trace
from torch import Tensor, nn
from tuners import STEPS, Scripted, make_tuner

from lrfast import FineTuner, History, schedules
from lrfast.finetune import Callback, EarlyStop

# Interruptions.


class Raising(Callback):
    """Presses Ctrl-C while a step, or validation, is under way."""

    def __init__(self, tuner: FineTuner, at: int, in_validation: bool, times: int = 1) -> None:
        calls = 0
        loss_fn = tuner.loss_fn
        assert loss_fn is not None

        def pressing(outputs: Any, targets: Any) -> Tensor:
            nonlocal calls
            calls += torch.is_grad_enabled() != in_validation
            if calls == at:
                calls += 1
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return loss_fn(outputs, targets)

        tuner.loss_fn = pressing


@pytest.mark.parametrize("in_validation", [False, True])
@pytest.mark.parametrize("case", CASES[2:6], ids=lambda case: case.name)
def test_ctrl_c_in_the_middle_of_a_step(case: Case, in_validation: bool) -> None:
    plain = make_resuming(case)
    fit_first(plain, case)
    fit_second(plain, case)
    wanted = left(plain)
    tuner = make_resuming(case)
    fit_first(tuner, case)
    Raising(tuner, 4, in_validation)
    with pytest.raises(KeyboardInterrupt):
        fit_second(tuner, case)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    tuner.resume()
    assert left(tuner) == wanted


def test_a_second_ctrl_c_comes_through_at_once() -> None:
    tuner = make_tuner("sgd")
    Raising(tuner, 3, False, times=2)
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(2, 0.01)
    assert len(tuner.history.stages[0].losses) == 2


def test_what_fails_because_of_ctrl_c_is_ctrl_c() -> None:
    tuner = make_tuner("sgd", loss_fn=failing(4, boom))
    Raising(tuner, 4, False)
    with pytest.raises(KeyboardInterrupt) as caught:
        tuner.fit_one_cycle(1, 0.01)
    assert str(caught.value.__cause__) == "boom"
    assert tuner.history.stages[0].outcome == "interrupted"


def test_ctrl_c_after_the_last_step() -> None:
    class Late(Callback):
        def on_fit_end(self, tuner: FineTuner) -> None:
            signal.raise_signal(signal.SIGINT)

    tuner = make_tuner("sgd", callbacks=[Late()])
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(1, 0.01)
    assert tuner.history.stages[0].outcome == "completed"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_somebody_elses_handler_stays() -> None:
    seen = []
    own = signal.signal(signal.SIGINT, lambda *args: seen.append(1))
    try:
        tuner = make_tuner("sgd")
        Raising(tuner, 3, False)
        assert tuner.fit_one_cycle(1, 0.01).outcome == "completed" and seen == [1]
    finally:
        signal.signal(signal.SIGINT, own)


def test_a_new_stage_drops_the_interrupted_one() -> None:
    tuner = make_tuner("sgd")
    Raising(tuner, 3, False)
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(2, 0.01)
    tuner.fit_one_cycle(1, 0.01)
    assert [stage.outcome for stage in tuner.history.stages] == ["interrupted", "completed"]
    with pytest.raises(ValueError, match="resume needs an interrupted stage"):
        tuner.resume()


def test_stages_of_the_same_name() -> None:
    tuner = make_tuner("sgd")
    first = tuner.fit_one_cycle(1, 0.01)
    Raising(tuner, 3, False)
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(1, 0.01)
    second = tuner.resume()
    third = tuner.fit_one_cycle(1, 0.01)
    for stage, wanted in zip(tuner.history.stages, (first, second, third), strict=True):
        assert stage is wanted and stage.outcome == "completed"


# Longer stages, and checkpoints that do not fit.


def interrupted(step: int = 7, **options: Any) -> FineTuner:
    tuner = make_tuner(**{"kind": "sgd"} | options)
    Raising(tuner, step, False)
    with pytest.raises(KeyboardInterrupt):
        tuner.fit(3, schedules.linear(1.0, 0.1, 15), lr=0.1)
    return tuner


def test_a_longer_stage_goes_on_with_its_schedule() -> None:
    tuner = interrupted()
    longer = schedules.linear(1.0, 0.1, 25)
    stage = tuner.resume(epochs=5, schedule=longer)
    assert len(stage.epochs) == 5 and len(tuner.history.stages) == 1
    np.testing.assert_allclose(stage.rates[7:, 0], 0.1 * longer.values(range(7, 25)), rtol=1e-13)
    shorter = interrupted().resume(epochs=2, schedule=schedules.linear(1.0, 0.1, 15))
    np.testing.assert_allclose(
        shorter.rates[:, 0], 0.1 * schedules.linear(1.0, 0.1, 15).values(range(10)), rtol=1e-13
    )


def test_resumes_that_do_not_fit() -> None:
    tuner = interrupted()
    planned = schedules.linear(1.0, 0.1, 15)
    for options, message in (
        ({"epochs": 5}, "schedule must be given for 5 epochs instead of 3, got None"),
        ({"epochs": 1}, "epochs must be 2 or more, which have begun, got 1"),
        ({"schedule": schedules.cosine(15)}, "schedule must be the interrupted stage's"),
    ):
        with pytest.raises(ValueError, match=message):
            tuner.resume(**options)
    tuner.train_loader = make_batches(4)
    with pytest.raises(ValueError, match=r"train_loader must have 5 steps per epoch.*got 4"):
        tuner.resume()
    tuner.train_loader = make_batches(STEPS)
    assert tuner.resume(schedule=planned).outcome == "completed"


OTHER_KINDS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "adamw"}, r"same optimizer: wanted 'lrfast.AdamW', got 'lrfast.SGD'"),
    ({"kind": "torch-sgd"}, r"same optimizer: wanted 'torch.SGD', got 'lrfast.SGD'"),
    ({"gradient_accumulation_steps": 2}, "same steps per epoch: wanted 3, got 5"),
    (
        {"gradient_accumulation_steps": 2, "train_loader": make_batches(10)},
        "same gradient_accumulation_steps: wanted 2, got 1",
    ),
    ({"amp": torch.bfloat16}, "same amp: wanted 'torch.bfloat16', got 'None'"),
    ({"max_grad_norm": 1.0}, "same max_grad_norm: wanted 1.0, got None"),
    ({"ema_decay": 0.5}, "same ema_decay: wanted 0.5, got None"),
    ({"keep_best": "accuracy"}, r"same keep_best: wanted \['accuracy', 'max'\], got None"),
    ({"callbacks": [EarlyStop()]}, r"same callbacks: wanted \['EarlyStop'\], got \[\]"),
]


@pytest.mark.parametrize(("options", "message"), OTHER_KINDS)
def test_checkpoints_of_another_kind(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    interrupted().save(tmp_path / "half.pt")
    tuner = make_tuner(**{"kind": "sgd"} | options)
    before = trace(tuner.model, tuner.optimizer)
    with pytest.raises(ValueError, match=message):
        tuner.load(tmp_path / "half.pt")
    assert trace(tuner.model, tuner.optimizer) == before


def test_checkpoints_of_other_groups(tmp_path: Path) -> None:
    interrupted().save(tmp_path / "half.pt")
    model = make_model()
    groups = [[model[0], model[1]], [model[4], model[6]]]
    tuner = FineTuner(
        model,
        make_batches(STEPS),
        loss_fn=cross_entropy,
        optimizer=OPTIMIZERS["sgd"],
        groups=groups,
        progress=False,
    )
    with pytest.raises(ValueError, match=r"same groups: wanted .*4\.weight.*got"):
        tuner.load(tmp_path / "half.pt")
    wide = nn.Sequential(nn.Linear(4, 8), *list(make_model())[1:-1], nn.Linear(6, 5))
    tuner = FineTuner(
        wide, make_batches(5), loss_fn=cross_entropy, optimizer=OPTIMIZERS["sgd"], progress=False
    )
    with pytest.raises(ValueError, match="same shapes"):
        tuner.load(tmp_path / "half.pt")


def test_a_checkpoint_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = interrupted()
    path = tmp_path / "half.pt"
    tuner.save(path)
    before = path.read_bytes()
    save = torch.save

    def failing_save(data: Any, file: Any) -> None:
        file.write(b"half")
        boom(torch.zeros(()))

    monkeypatch.setattr(torch, "save", failing_save)
    with pytest.raises(RuntimeError, match="boom"):
        tuner.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(torch, "save", save)
    tuner.save(path)
    assert torch.load(path, weights_only=True)["format"] == 1


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for content in ({"model": {}}, [1, 2], {"format": 99}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="path must be a checkpoint of format 1"):
            make_tuner("sgd").load(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["load", "fit"])
def test_a_stage_that_runs_stands_alone(name: str, tmp_path: Path) -> None:
    class Caller(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            before = tuner.running
            args = (tmp_path / "any.pt",) if name == "load" else (1, schedules.constant())
            with pytest.raises(ValueError, match=f"{name} must wait until the stage has ended"):
                getattr(tuner, name)(*args)
            assert tuner.running is before

    stage = make_tuner("sgd", callbacks=[Caller()]).fit_one_cycle(1, 0.01)
    assert stage.outcome == "completed"


def test_an_early_stop_resumes_where_it_was(tmp_path: Path) -> None:
    class SaveAt(Callback):
        def on_epoch_end(self, tuner: FineTuner, epoch: int, row: dict[str, float]) -> None:
            if epoch == 2:
                tuner.save(tmp_path / "third.pt")

    def made(values: list[float]) -> FineTuner:
        return make_tuner(
            "sgd",
            val_loader=make_batches(1),
            metrics={"script": Scripted(values)},
            callbacks=[EarlyStop(patience=3, monitor="script"), SaveAt()],
        )

    assert len(made([5, 4, 4, 4, 9]).fit_one_cycle(5, 0.01).epochs) == 4
    tuner = made([4, 9])
    tuner.load(tmp_path / "third.pt")
    assert len(tuner.resume().epochs) == 4


def test_the_history_survives_a_checkpoint(tmp_path: Path) -> None:
    tuner = make_tuner("sgd")
    tuner.fit_one_cycle(1, 0.01)
    tuner.fit(1, schedules.constant(), timetable={0: -1})
    again = History.from_dict(tuner.history.to_dict())
    paths = [tmp_path / "one.csv", tmp_path / "other.csv"]
    tuner.history.to_csv(paths[0])
    again.to_csv(paths[1])
    assert paths[0].read_text() == paths[1].read_text()
    assert again.epochs == tuner.history.epochs
    assert [s.outcome for s in again.stages] == ["completed"] * 2
    assert [s.seconds for s in again.stages] == [s.seconds for s in tuner.history.stages]
