"""Bad arguments of the fine-tuner, and stages in which nothing would train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import cross_entropy, make_batches, make_model
from tuners import make_tuner

from lrfast import FineTuner, schedules

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"gradient_accumulation_steps": 0},
        "gradient_accumulation_steps must be a whole number, 1 or more, got 0",
    ),
    (
        {"gradient_accumulation_steps": 1.5},
        "gradient_accumulation_steps must be a whole number, 1 or more, got 1.5",
    ),
    (
        {"amp": torch.float64},
        "amp must be torch.bfloat16, torch.float16 or None, got torch.float64",
    ),
    ({"amp": True}, "amp must be torch.bfloat16, torch.float16 or None, got True"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and above 0, or None, got 0.0"),
    (
        {"max_grad_norm": -1.0, "optimizer": torch.optim.SGD},
        "max_grad_norm must be finite and above 0, or None, got -1.0",
    ),
    ({"ema_decay": 1.0}, r"ema_decay must be within \[0, 1\), or None, got 1.0"),
    (
        {"ema_decay": 0.9, "optimizer": torch.optim.AdamW},
        "ema_decay must be None with AdamW of torch.optim, which keeps no average, got 0.9",
    ),
    ({"keep_best": "f1"}, "keep_best must be one of valid_loss, accuracy, got 'f1'"),
    (
        {"keep_best": "accuracy", "val_loader": None},
        "keep_best needs a val_loader, got None",
    ),
    (
        {"keep_best": "accuracy", "best_mode": "low"},
        "mode must be 'min', 'max' or None, got 'low'",
    ),
    ({"loss_fn": None}, "metrics need loss_fn"),
    ({"compute_loss": lambda model, batch: 0}, "pass either loss_fn.*got both"),
    ({"norm_mode": "frozen"}, "norm_mode must be 'train', 'keep' or 'adapt', got 'frozen'"),
    ({"no_decay": ["nothing"]}, r"no_decay\[0\] must match the name of a parameter"),
    ({"train_loader": []}, "train_loader must hold at least one batch, got none"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuner(**{"kind": "sgd"} | options)


def test_nothing_to_train() -> None:
    tuner = make_tuner("sgd")
    for group in tuner.optimizer.param_groups:
        group["frozen"] = True
    before = [group["lr"] for group in tuner.optimizer.param_groups]
    with pytest.raises(ValueError, match=r"fit needs a layer group that trains.*unfreeze\(\)"):
        tuner.fit_one_cycle(1, 0.1)
    model = make_model().requires_grad_(False)
    tuner = FineTuner(model, make_batches(1), loss_fn=cross_entropy, progress=False)
    with pytest.raises(ValueError, match="fit needs a layer group that trains"):
        tuner.fit(1, schedules.constant())
    assert before == [0.05] * 3 and tuner.history.stages == []
    # What did not train before the tuner was made never does.
    with pytest.raises(ValueError, match="fit needs a layer group that trains"):
        tuner.fit(2, schedules.constant(), timetable={0: -1})
    tuner = make_tuner("sgd")
    for group in tuner.optimizer.param_groups:
        group["frozen"] = True
    assert tuner.fit(2, schedules.constant(), timetable={0: -1}).outcome == "completed"


@pytest.mark.parametrize(
    ("timetable", "message"),
    [
        ({2: 0}, "timetable must name epochs from 0 to 1, got 2"),
        ({-1: 0}, "timetable must name epochs from 0 to 1, got -1"),
        ({"a": 0}, "timetable must name epochs from 0 to 1, got 'a'"),
        ({0: 3}, "timetable must name layer groups from -3 to 2, got 3"),
        ({1: True}, "timetable must name layer groups from -3 to 2, got True"),
    ],
)
def test_bad_timetables(timetable: Any, message: str) -> None:
    tuner = make_tuner("sgd")
    with pytest.raises(ValueError, match=message):
        tuner.fit(2, schedules.constant(), lr=0.7, timetable=timetable)
    assert [group["lr"] for group in tuner.optimizer.param_groups] == [0.05] * 3


def test_data_that_can_be_iterated_only_once_end_the_second_epoch() -> None:
    # They have a length, so the schedule was planned for two passes.
    loader = torch.utils.data.DataLoader(list(make_batches(6)), batch_size=None)
    tuner = make_tuner(train_loader=iter(loader))
    with pytest.raises(ValueError, match="a batch in every epoch, got none in epoch 2; can it be"):
        tuner.fit_one_cycle(2, 1e-2)
    with pytest.raises(ValueError, match="got none in epoch 1"):
        tuner.fit_one_cycle(1, 1e-2)
