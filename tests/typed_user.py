"""What a user's typed code sees of lrfast. `make lint` checks it with mypy; nothing runs it.

Each assert_type fails where a name has lost its type, also to Any.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import assert_type

import lrfast
from lrfast import schedules as S
from lrfast.suggest import Suggestion


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float | None:
    """The README's path, with every result's type."""
    groups = lrfast.discriminative(model, slice(1e-5, 1e-3), weight_decay=0.01)
    groups += lrfast.lora_groups(model, 1e-3, ratio=8, names=("down", "up"))
    groups = lrfast.state_groups(model, groups, float32=("head",))
    sorted_ = lrfast.muon_groups(model, 0.02, 3e-4, adamw=("gate",))
    assert_type(lrfast.Muon(sorted_, adjust_lr_fn="match_rms_adamw"), lrfast.Muon)
    schedule = S.warmup(10).then(S.cosine(90)) * S.constant(0.5)
    optimizer = lrfast.AdamW(groups, schedule=schedule, max_grad_norm=1.0)
    also_torchs: torch.optim.Optimizer = optimizer
    result = lrfast.lr_find(model, optimizer, batches, nn.functional.mse_loss, num_iter=50)
    assert_type(schedule, S.Schedule)
    assert_type(schedule.at(3), float)
    assert_type(result, lrfast.RangeTest)
    assert_type(result.suggestion, Suggestion)
    assert_type(result.suggestion.lr, float | None)
    assert_type(result.losses, NDArray[np.float64])
    also_torchs = lrfast.wrap(also_torchs)
    return result.suggestion.lr


def fine_tune(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> lrfast.History:
    """A fine-tuner's stages and history."""
    tuner = lrfast.FineTuner(
        model, batches, batches, loss_fn=nn.functional.cross_entropy,
        optimizer=lrfast.AdamW, metrics={"accuracy": lrfast.accuracy},
    )  # fmt: skip
    tuner.freeze_to(-1)
    assert_type(tuner.fit_one_cycle(1, max_lr=slice(1e-5, 1e-3)), lrfast.Stage)
    assert_type(tuner.history, lrfast.History)
    return tuner.history


def record(losses: Iterator[Tensor]) -> Tensor:
    """A loss curve."""
    curve = lrfast.LossCurve(100)
    for loss in losses:
        curve.record(loss, lr=0.1)
    assert_type(curve.smoothed("ema", beta=0.9), Tensor)
    return curve.losses


def wrong() -> None:
    """mypy refuses these; an ignore that is not needed is an error."""
    S.one_cycle("100")  # type: ignore[arg-type]
    lrfast.LossCurve(3).smoothed("median of means")  # type: ignore[arg-type]
    lrfast.AdamW([nn.Parameter(torch.ones(1))], learning_rate=0.1)  # type: ignore[call-arg]
