"""No step of a fine-tuner waits for the device, whatever it does besides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_reads import ReadsOfSteps
from tiny import OPTIMIZERS, OURS, cross_entropy, make_batches, make_model
from torch import Tensor
from tuners import STEPS, make_tuner

from lrfast import FineTuner, accuracy
from lrfast.finetune import Callback, EarlyStop

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"amp": torch.bfloat16, "gradient_accumulation_steps": 2},
    "fp16": {"amp": torch.float16, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
    "all": {"ema_decay": 0.9, "max_grad_norm": 0.5, "keep_best": "accuracy", "progress": True},
}


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        assert not loss.requires_grad
        self.losses.append(loss)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [*OURS, "torch-sgd"])
def test_no_step_reads_from_the_device(kind: str, options: dict[str, Any], terminal: Any) -> None:
    if kind not in OURS:  # torch's own scaled step reads, and keeps no average
        options = {k: v for k, v in options.items() if k not in ("amp", "ema_decay")}
    losses = Losses()
    stop = EarlyStop(patience=9)
    tuner = make_tuner(kind, callbacks=[losses, stop], **options)
    # The product of the betas starts from the count, and a curve's length from the device's own
    # count where steps may be skipped: reads that do not grow with the steps.
    tuner.fit_one_cycle(1, 0.01)
    reads = ReadsOfSteps()
    tuner.callbacks.append(reads)
    losses.losses.clear()
    with reads.mode:
        stage = tuner.fit_one_cycle(3, 0.01, timetable={0: -1, 2: 0})
    assert reads.steps == 3 * tuner.epoch_steps
    assert stage.losses.tolist() == [loss.item() for loss in losses.losses]


def test_a_callback_that_reads_is_caught() -> None:
    class Reader(Callback):
        def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
            loss.item()

    reads = ReadsOfSteps()
    with reads.mode, pytest.raises(AssertionError, match="reads a value"):
        make_tuner(callbacks=[reads, Reader()]).fit_one_cycle(1, 0.01, momentum=None)


class SyncsOfSteps(Callback):
    """Lets torch raise on every wait for the GPU within the steps of an epoch."""

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step % tuner.epoch_steps == 0:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", OURS)
def test_no_step_waits_for_the_gpu(kind: str, options: dict[str, Any]) -> None:
    train = [(inputs.cuda(), targets.cuda()) for inputs, targets in make_batches(STEPS)]
    tuner = FineTuner(
        make_model().cuda(),
        train,
        train[:2],
        loss_fn=cross_entropy,
        optimizer=OPTIMIZERS[kind],
        metrics={"accuracy": accuracy},
        **{"progress": False} | options,
    )
    tuner.fit_one_cycle(1, 0.01)  # plans, states and averages are made, and cuBLAS starts
    tuner.callbacks.append(SyncsOfSteps())
    try:
        stage = tuner.fit_one_cycle(3, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stage.outcome == "completed" and np.isfinite(stage.losses).all()
