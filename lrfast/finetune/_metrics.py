"""Metrics and validation, on the device until the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrfast.training._data import (
    ComputeLoss,
    LossFunction,
    batch_size,
    device_of,
    eval_mode,
    mean_over_batches,
    split_targets,
    to_device,
)

Metric = Callable[[Any, Any], Tensor]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share, in [0, 1], of rows whose largest output is the target class.

    Args:
        outputs: Scores, [batch, classes].
        targets: Class indices, [batch].

    Returns:
        A float64 scalar on the outputs' device, without a host-device synchronisation.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
    """
    return (outputs.argmax(-1) == targets).double().mean()


def mode_of(monitor: str, mode: str | None) -> Literal["min", "max"]:
    """Return whether the lowest or the highest value of a measure is the best."""
    if mode == "min" or (mode is None and monitor == "valid_loss"):
        return "min"
    if mode == "max" or mode is None:
        return "max"
    raise ValueError(f"mode must be 'min', 'max' or None, got {mode!r}")


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Return whether a value beats the best one; NaN never does."""
    if best is None or math.isnan(best):
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta


def check_monitored(monitor: str, row: dict[str, float]) -> str:
    """Return the name of a measure, if validation measures it."""
    if monitor not in row:
        found = ", ".join(sorted(row.keys() - {"step"})) or "nothing, for there are no valid data"
        raise ValueError(f"monitor must be what validation measures ({found}), got {monitor!r}")
    return monitor


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    compute_loss: ComputeLoss,
    loss_fn: LossFunction | None,
    metrics: Mapping[str, Metric],
) -> dict[str, float]:
    """Return loss and metrics over the batches in evaluation mode; synchronises once."""
    device = device_of(model)

    def measure(batch: Any) -> tuple[Tensor, int]:
        moved = to_device(batch, device)
        if loss_fn is None:
            values, count = [compute_loss(model, moved)], batch_size(moved)
        else:
            inputs, targets = split_targets(moved)
            outputs = model(*inputs)
            values = [loss_fn(outputs, targets)]
            values += [metric(outputs, targets) for metric in metrics.values()]
            count = batch_size(targets)
        return torch.stack([value.double().reshape(()) for value in values]), count

    with eval_mode(model):
        means = mean_over_batches(batches, measure).cpu().numpy()
    return dict(zip(["valid_loss", *metrics], means.tolist(), strict=True))
