"""Batches and losses as training loops meet them: moved to the device, turned into a scalar."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

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

    With neither function the model itself returns its loss.

    Raises:
        ValueError: If both are given.
    """
    if loss_fn is not None and compute_loss is not None:
        raise ValueError(
            "pass either loss_fn(outputs, targets), for batches (inputs, targets), or "
            "compute_loss(model, batch); got both"
        )
    if compute_loss is not None:
        return compute_loss
    if loss_fn is None:
        return _own_loss
    supervised = loss_fn

    def from_pair(model: nn.Module, batch: Any) -> Tensor:
        if isinstance(batch, list | tuple) and len(batch) > 2:
            *several, targets = batch
            return supervised(model(*several), targets)
        inputs, targets = split_pair(batch)
        return supervised(model(inputs), targets)

    return from_pair


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns: as it is, ``.loss``, ``["loss"]`` or the first of several."""
    named = batch if isinstance(batch, Mapping) else {}
    listed = batch if isinstance(batch, list | tuple) else () if named else (batch,)
    _check_call(model, listed, named)
    outputs = model(*listed, **named)
    loss = getattr(outputs, "loss", outputs)
    if isinstance(loss, Mapping):
        loss = loss.get("loss")
    elif isinstance(loss, list | tuple) and loss:
        loss = loss[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(
            "with neither loss_fn(outputs, targets) nor compute_loss(model, batch), the model must "
            "return its loss as a scalar, .loss, ['loss'] or first entry; got "
            f"{type(outputs).__name__}"
        )
    return loss


def _check_call(model: nn.Module, listed: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse a batch whose entries are not the model's arguments: a loss_fn may be missing."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # a traced module has none
        return
    try:
        signature.bind(*listed, **named)
    except TypeError as error:
        raise TypeError(
            "with neither loss_fn(outputs, targets) nor compute_loss(model, batch), a batch's "
            f"entries are the arguments of {type(model).__name__}: {error}"
        ) from error


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


def check_loss(loss: Any, needs_grad: bool = True) -> Tensor:
    """Return the loss, if it is one that a training step can start from, or has started from.

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
    if needs_grad and not loss.requires_grad:
        raise ValueError(
            "the loss must depend on a trainable parameter, got one without grad; is the model "
            "frozen, or the loss detached?"
        )
    return loss


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep the model in evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def size_of(batch: Any) -> int:
    """Return the rows of the first tensor in a batch; 1 if there is none."""
    return rows_of(batch) or 1


def rows_of(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    items = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, Mapping | list | tuple):
        return 0
    return next((rows for item in items if (rows := rows_of(item))), 0)


def targets_of(batch: Any) -> int:
    """Return the classes to predict: the elements of a batch's last tensor, if it has integers.

    0 where it has other numbers, or where there is no tensor.
    """
    last = _last_tensor(batch)
    if last is None or last.is_floating_point() or last.is_complex():
        return 0
    return last.numel()


def _last_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, Mapping | list | tuple):
        return None
    items = list(batch.values() if isinstance(batch, Mapping) else batch)
    found = (_last_tensor(item) for item in reversed(items))
    return next((tensor for tensor in found if tensor is not None), None)


def length_of(data: Iterable[Any]) -> int | None:
    """Return the number of batches in one pass, or None where the data do not say."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # also from a DataLoader over an iterable dataset
        return None


def generators_of(loader: object) -> list[torch.Generator]:
    """Return the generators that a DataLoader draws its order from, each once; else none."""
    if not isinstance(loader, torch.utils.data.DataLoader):
        return []
    inner = getattr(loader.batch_sampler, "sampler", None)
    owned = (getattr(owner, "generator", None) for owner in (loader, loader.sampler, inner))
    return list(dict.fromkeys(each for each in owned if isinstance(each, torch.Generator)))


class DataEnded(ValueError):
    """Data that can be iterated only once were fewer than asked for."""


def windows(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the batches in lists of ``size``; where data end early, what is left comes first."""
    while True:
        window: list[Any] = []
        try:
            for _ in range(size):
                window.append(next(batches))  # noqa: PERF401, for it may raise in between
        except DataEnded:
            if window:
                yield window
            raise
        yield window


class Replayed:
    """Data to be iterated several times, the same each time.

    A DataLoader is iterated again, for a snapshot puts its order back. Batches of anything else
    that is not a sequence are held on to: some data can be iterated only once, and some shuffle by
    means that no snapshot knows.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._is_held = not isinstance(data, torch.utils.data.DataLoader | Sequence)
        self._seen: list[Any] = []
        self._rest: Iterator[Any] | None = None

    def __len__(self) -> int:
        """Batches in one pass; TypeError where the data do not say."""
        return len(self._data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Yield one pass, of batches seen before as far as there are any."""
        if not self._is_held:
            yield from one_pass(self._data)
            return
        if self._rest is None:
            self._rest = iter(self._data)
        place = 0
        while True:
            if place == len(self._seen):
                try:
                    self._seen.append(next(self._rest))
                except StopIteration:
                    return
            yield self._seen[place]
            place += 1


def one_pass(data: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield the batches of one pass; a DataLoader's workers end with it, however it ends."""
    iterator = iter(data)
    try:
        yield from iterator
    finally:
        if not getattr(data, "persistent_workers", False):
            end_workers(iterator)


def close(*iterators: Iterator[Any]) -> None:
    """End generators where they stand, so that what they iterate over ends, too."""
    for iterator in iterators:
        if isinstance(iterator, Generator):
            iterator.close()


def end_workers(iterator: object) -> None:
    """End the workers of a DataLoader's iterator, if it has some.

    Without this they live as long as it does: an exception that has it in its traceback keeps them.
    """
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def cycled(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader again and again.

    Raises:
        ValueError: If the data yield nothing.
        DataEnded: If a later pass over them does.
    """
    passes = 0
    while True:
        empty = True
        for batch in one_pass(data):
            empty = False
            yield batch
        if empty and passes == 0:
            raise ValueError("data must yield at least one batch, got none")
        if empty:
            raise DataEnded(
                "data ended and cannot be iterated again; pass a loader or a list of batches"
            )
        passes += 1
