"""Range tests and fine-tuning whose updates are captured: nothing but the speed may differ."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from captures import ADAMW, Training, assert_same, make_batches
from torch import nn

import lrfast


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"same_batch": True, "lag": 1},
        {"repeats": 2},
        {"end_lr": 1e5},
    ],
    ids=str,
)
def test_a_captured_range_test(options: dict[str, Any], device: torch.device) -> None:
    results, memories = [], []
    for capture in (False, True):
        training = Training(partial(ADAMW, schedule=None), device)
        data = [*make_batches(4, device), *make_batches(1, device, rows=5)]
        torch.manual_seed(7)
        results.append(
            lrfast.lr_find(
                training.model,
                training.optimizer,
                data,
                nn.functional.cross_entropy,
                num_iter=40,
                progress=False,
                capture=capture,
                **options,
            )
        )
        memories.append(training.memory())
    eager, captured = results
    assert eager.losses.tolist() == captured.losses.tolist()
    assert eager.outcome == captured.outcome
    assert (eager.outcome == "diverged") == ("end_lr" in options) or len(eager.losses) == 40
    assert_same(*memories)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_loader": make_batches(1)}, "val_loader must be left out with capture=True"),
        ({"step_fn": lambda batch: batch[0].sum()}, "step_fn must be left out with capture=True"),
    ],
    ids=["valid", "step_fn"],
)
def test_range_tests_that_cannot_be_captured(options: dict[str, Any], message: str) -> None:
    training = Training()
    loss_fn = None if "step_fn" in options else nn.functional.cross_entropy
    with pytest.raises(ValueError, match=message):
        lrfast.lr_find(
            *(training.model, training.optimizer, make_batches(1), loss_fn),
            capture=True,
            progress=False,
            **options,
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "ema_decay": 0.8, "max_grad_norm": 0.3},
        {"norm_mode": "keep"},
    ],
    ids=str,
)
def test_a_captured_fine_tuner(options: dict[str, Any], device: torch.device) -> None:
    tuners = []
    for capture in (False, True):
        training = Training(device=device)
        data = [*make_batches(4, device), *make_batches(1, device, rows=5)]
        torch.manual_seed(7)
        tuner = lrfast.FineTuner(
            training.model,
            data,
            make_batches(2, device),
            loss_fn=nn.functional.cross_entropy,
            progress=False,
            capture=capture,
            **options,
        )
        tuner.freeze()
        tuner.fit_one_cycle(2, max_lr=1e-2)
        tuner.lr_find(num_iter=5)
        tuner.unfreeze()
        tuner.fit_one_cycle(2, max_lr=slice(1e-4, 1e-2))
        tuners.append(tuner)
    eager, captured = tuners
    assert_same(dict(captured.model.state_dict()), dict(eager.model.state_dict()))
    for mine, wanted in zip(captured.history.stages, eager.history.stages, strict=True):
        assert mine.losses.tolist() == wanted.losses.tolist()
        assert mine.epochs == wanted.epochs


def test_a_fine_tuner_of_torchs_optimizers_is_not_captured() -> None:
    with pytest.raises(TypeError, match="capture=True needs an optimizer of lrfast, got SGD"):
        lrfast.FineTuner(
            Training().model,
            make_batches(2),
            loss_fn=nn.functional.cross_entropy,
            optimizer=torch.optim.SGD,
            capture=True,
        )
