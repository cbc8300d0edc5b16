"""Batches and losses as training loops meet them: moved to the device, turned into a scalar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

LossFunction = Callable[[Any, Any], Tensor]
ComputeLoss = Callable[[nn.Module, Any], Tensor]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch on the device: what has a ``to`` by that, containers item by item."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if callable(move := getattr(batch, "to", None)):
        return move(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def upload(values: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    """Return host values as a tensor on the device, without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def make_compute_loss(
    loss_fn: LossFunction | None, compute_loss: ComputeLoss | None
) -> ComputeLoss:
    """Return the function that turns (model, batch) into a loss.

    Raises:
        ValueError: If not exactly one of the two is given.
    """
    if (loss_fn is None) == (compute_loss is None):
        both = "both" if loss_fn is not None else "neither"
        raise ValueError(
            "pass either loss_fn(outputs, targets), for batches (inputs, targets), or "
            f"compute_loss(model, batch); got {both}"
        )
    if compute_loss is not None:
        return compute_loss
    assert loss_fn is not None
    supervised = loss_fn

    def from_pair(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = split_pair(batch)
        return supervised(model(inputs), targets)

    return from_pair


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return a batch's inputs and targets.

    Raises:
        TypeError: If the batch is not a pair.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        got = f"{len(batch)} entries" if isinstance(batch, list | tuple) else type(batch).__name__
        raise TypeError(
            f"a batch must be (inputs, targets), got {got}; pass compute_loss(model, batch) for "
            "batches of another kind"
        )
    return batch[0], batch[1]


def check_loss(loss: Any) -> Tensor:
    """Return the loss, if it is one that a training step can start from.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it has more than one element, or no gradient.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"the loss must be a scalar, got shape {tuple(loss.shape)}; reduce it, for instance "
            "with reduction='mean'"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss must depend on a trainable parameter, got one without grad; is the model "
            "frozen, or the loss detached?"
        )
    return loss


def length_of(data: Iterable[Any]) -> int | None:
    """Return the number of batches in one pass, or None where the data do not say."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # also from a DataLoader over an iterable dataset
        return None


def cycled(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader again and again.

    Raises:
        ValueError: If a pass over the data yields nothing.
    """
    passes = 0
    while True:
        empty = True
        for batch in data:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "data must yield at least one batch, got none"
                if passes == 0
                else "data ended and cannot be iterated again; pass a loader or a list of batches"
            )
        passes += 1
