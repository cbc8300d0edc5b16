"""Metrics and validation, on the device until the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrfast._utils.validation import short_repr
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

_IGNORED = -100  # the default ignore_index of torch's losses
_SUM_TOLERANCE = 1e-2  # of probabilities in half precision


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share, in [0, 1], of targets that the outputs predict.

    With one output per class the largest is the prediction. With one output per target, as of a
    binary classifier, class 1 is predicted above 0, or above 0.5 if all outputs of the batch lie in
    [0, 1], as probabilities do.

    Args:
        outputs: One per class, [batch, classes, ...] or [batch, ..., classes]; or one per target,
            [batch, ...] or [batch, 1, ...].
        targets: Class indices, [batch, ...]; or 0 and 1 of the outputs' shape; or probabilities of
            the classes, floating point [batch, classes, ...], which sum to 1, and whose largest is
            the class. Targets of -100 do not count, as in torch's losses.

    Returns:
        A float64 scalar on the outputs' device, without a host-device synchronisation; NaN if no
        target counts.

    Raises:
        TypeError: If an argument is no tensor.
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
        >>> accuracy(torch.tensor([[2.0], [-3.0]]), torch.tensor([1.0, 0.0])).item()
        1.0
    """
    for name, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise TypeError(f"{name} must be a tensor, got {got}; pass a metric of your own")
    given, wanted = outputs.shape, targets.shape
    if given[1:2] == (1,) and given[:1] + given[2:] == wanted:
        outputs = outputs.squeeze(1)
    elif wanted[1:2] == (1,) and wanted[:1] + wanted[2:] == given:
        targets = targets.squeeze(1)
    counts = targets != _IGNORED
    if outputs.shape == targets.shape:
        hits = _hits(outputs, targets)
    elif given[:1] + given[2:] == wanted:
        hits = outputs.argmax(1) == targets
    elif given[:-1] == wanted:
        hits = outputs.argmax(-1) == targets
    else:
        raise ValueError(
            "targets must be classes [batch] for outputs [batch, classes], or of the outputs' "
            f"shape, got shape {list(wanted)} for {list(given)}; pass a metric of your own"
        )
    return (hits & counts).sum().double() / counts.sum()


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Tell which targets are predicted by as many outputs: labels, or classes by probabilities."""
    if not outputs.is_floating_point():
        return outputs == targets
    are_probabilities = ((outputs >= 0) & (outputs <= 1)).all()
    labels = (outputs > torch.where(are_probabilities, 0.5, 0.0)) == (targets > 0.5)
    if outputs.ndim == 1 or outputs.shape[1] == 1 or not targets.is_floating_point():
        return labels
    are_classes = ((targets.sum(1) - 1).abs() < _SUM_TOLERANCE).all()
    return torch.where(are_classes, outputs.argmax(1, True) == targets.argmax(1, True), labels)


def mode_of(monitor: str, mode: str | None, argument: str = "mode") -> Literal["min", "max"]:
    """Return whether the lowest or the highest value of a measure is the best."""
    if mode == "min" or (mode is None and monitor == "valid_loss"):
        return "min"
    if mode == "max" or mode is None:
        return "max"
    raise ValueError(f"{argument} must be 'min', 'max' or None, got {short_repr(mode)}")


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
        names = ["the loss", *(f"metrics[{name!r}]" for name in metrics)]
        numbers = [_scalar(*pair, device) for pair in zip(names, values, strict=True)]
        return torch.stack(numbers), count

    with eval_mode(model):
        means = mean_over_batches(batches, measure).cpu().numpy()
    return dict(zip(["valid_loss", *metrics], means.tolist(), strict=True))


def _scalar(name: str, value: Any, device: torch.device) -> Tensor:
    """Return what a loss or a metric has returned as a float64 scalar on the device."""
    is_number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
    if not is_number:
        raise TypeError(f"{name} must return one number, got {short_repr(value)}")
    return torch.as_tensor(value, dtype=torch.float64, device=device).reshape(())
