"""Batches on their way through training: iterated, moved to the device, made into a loss."""

from __future__ import annotations

import inspect
from collections import UserList
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import count, islice, tee
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

LossFunction = Callable[[Any, Any], Tensor]
ComputeLoss = Callable[[nn.Module, Any], Tensor]
StepFunction = Callable[[Any], Tensor]

Lists = (list, tuple, UserList)  # the classes of batches whose entries have places


@dataclass(frozen=True)
class DataSize:
    """How much data a training learns from; None if the data do not say."""

    batch_size: int | None = None  # rows per update
    targets: int | None = None  # classes to predict in one pass; None if targets are no classes


def check_weights(model: nn.Module) -> None:
    """Refuse a model all of whose trained parameters are on the meta device, without values."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and all(p.is_meta for p in trained):
        raise ValueError(
            "model must hold its weights, got trainable parameters on the meta device; call "
            "model.to_empty(device=...) and load them"
        )


class PlacedBatch(NamedTuple):
    """A batch with its place in a pass, for trainers whose steps depend on it."""

    batch: Any
    place: int  # from 0
    is_last: bool  # of its pass, whose last update takes what micro-batches are left


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter that has memory."""
    first = None
    for parameter in model.parameters():  # every step asks: look no further than needed
        if parameter.device.type != "meta":
            return parameter.device
        first = first or parameter.device
    if first is None:
        raise ValueError(f"model must have parameters, got {type(model).__name__} without any")
    return first


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch on the device: an object with a ``to`` by it, containers item by item."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")  # the CPU would read too early
    # A class of dicts may return its items as attributes.
    owner = type(batch) if isinstance(batch, Mapping) else batch
    if callable(getattr(owner, "to", None)):
        return batch.to(device)
    return with_items(batch, partial(to_device, device=device))


def with_items(container: Any, change: Callable[[Any], Any]) -> Any:
    """Return a new container of the same class with changed items; what is none, as it is."""
    if isinstance(container, tuple):
        return _with_entries(container, [change(item) for item in container])
    if isinstance(container, Mapping):
        return _with_values(container, {key: change(item) for key, item in container.items()})
    if isinstance(container, Lists):
        changed: Any = copy(container)  # with what it holds besides its items
        changed[:] = [change(item) for item in container]
        return changed
    if not is_dataclass(container) or isinstance(container, type):
        return container
    values = {field.name: getattr(container, field.name) for field in fields(container)}
    moved = {name: change(value) for name, value in values.items()}
    if all(moved[name] is value for name, value in values.items()):
        return container
    changed = copy(container)
    for name, value in moved.items():
        object.__setattr__(changed, name, value)  # its own refuses if it is frozen
    return changed


def _with_entries(container: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    try:
        changed = tuple.__new__(type(container), items)  # whatever its own constructor takes
    except TypeError:  # torch.Size and the named results of torch allow only their own
        return type(container)(items)
    getattr(changed, "__dict__", {}).update(getattr(container, "__dict__", {}))
    return changed


def _with_values(container: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    if not isinstance(container, MutableMapping):
        return type(container)(items)  # type: ignore[call-arg]
    try:
        changed = copy(container)
    except KeyError:  # from a ``__getattr__`` that looks for keys
        changed = type(container)(items)  # type: ignore[call-arg]
    for key, item in items.items():
        changed[key] = item
    return changed


def make_compute_loss(
    loss_fn: LossFunction | None, compute_loss: ComputeLoss | None
) -> ComputeLoss:
    """Return the function of (model, batch) that returns the loss; of neither, the model's own."""
    if loss_fn is not None and compute_loss is not None:
        raise ValueError(
            "pass either loss_fn(outputs, targets), for batches (inputs, targets), or "
            "compute_loss(model, batch); got both"
        )
    if compute_loss is not None:
        return compute_loss
    return _own_loss if loss_fn is None else partial(_supervised_loss, loss_fn)


def _supervised_loss(loss_fn: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = split_targets(batch)
    return loss_fn(model(*inputs), targets)


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns: as it is, ``.loss``, ``["loss"]`` or the first of several."""
    named = batch if isinstance(batch, Mapping) else {}
    listed = batch if isinstance(batch, Lists) else () if named else (batch,)
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


def split_targets(batch: Any) -> tuple[list[Any], Any]:
    """Return the model's inputs, all entries of a batch but the last, and the targets."""
    if isinstance(batch, Lists) and len(batch) > 2:
        return list(batch[:-1]), batch[-1]
    inputs, targets = split_pair(batch)
    return [inputs], targets


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return a batch's inputs and targets; TypeError if the batch is not a pair."""
    if not isinstance(batch, Lists) or len(batch) != 2:
        got = f"{len(batch)} entries" if isinstance(batch, Lists) else type(batch).__name__
        raise TypeError(
            f"a batch must be (inputs, targets), got {got}; pass compute_loss(model, batch) for "
            "batches of another kind"
        )
    return batch[0], batch[1]


def check_loss(loss: Any, needs_grad: bool = True) -> Tensor:
    """Return the loss; TypeError or ValueError if it is no scalar, or has no gradient."""
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
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Keep the model in evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer holds training weights and averaged ones, as schedulefree's do."""
    return "train_mode" in optimizer.param_groups[0]


def set_training(optimizer: Optimizer, is_training: bool) -> None:
    """Give the model of a schedule-free optimizer its training weights, or its averaged ones."""
    if is_schedule_free(optimizer):
        getattr(optimizer, "train" if is_training else "eval")()


@contextmanager
def weights_of_use(optimizer: Optimizer) -> Iterator[None]:
    """Give the model of a schedule-free optimizer its averaged weights for a while."""
    was_training = optimizer.param_groups[0].get("train_mode", False)
    set_training(optimizer, False)
    try:
        yield
    finally:
        set_training(optimizer, was_training)


def mean_over_batches(
    batches: Iterable[Any], measure: Callable[[Any], tuple[Tensor, int]]
) -> Tensor:
    """Return the mean over batches, without gradients, of a float64 measure with its rows."""
    total: Tensor | None = None
    rows = 0
    with torch.no_grad(), closing(iterate_once(batches)) as present:
        for batch in present:
            values, weight = measure(batch)
            total = weight * values if total is None else total + weight * values
            rows += weight
    if total is None:
        raise ValueError(
            "val_loader must yield at least one batch, got none: it is empty, or has ended and "
            "cannot be iterated again; pass a loader or a list of batches"
        )
    return total / rows


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists, tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, Lists):
        items = value
    elif is_dataclass(value) and not isinstance(value, type):
        items = (getattr(value, field.name) for field in fields(value))
    for item in items:
        yield from tensors_in(item)


def batch_size(batch: Any) -> int:
    """Return the rows of the first tensor in a batch; 1 if there is none."""
    return num_rows(batch) or 1


def num_rows(batch: Any) -> int:
    """Return the rows of the first tensor in a batch that has some; 0 if none has."""
    return next((len(each) for each in tensors_in(batch) if each.ndim and len(each)), 0)


def num_class_targets(batch: Any) -> int:
    """Return the elements of a batch's last tensor if they are classes, so integers; else 0."""
    last = [None, *tensors_in(batch)][-1]
    if last is None or last.is_floating_point() or last.is_complex():
        return 0
    return last.numel()


def num_batches(data: Iterable[Any]) -> int | None:
    """Return the number of batches in one pass; None if the data do not say."""
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


class DataExhausted(ValueError):
    """Data that can be iterated only once were fewer than asked for."""


def accumulation_windows(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield ``size`` batches at a time; if the data end early, the rest comes before the error.

    A :class:`PlacedBatch` that is the last of its pass ends a window.
    """
    while True:
        window: list[Any] = []
        try:
            for _ in range(size):
                window.append(next(batches))
                if isinstance(window[-1], PlacedBatch) and window[-1].is_last:
                    break
        except DataExhausted:
            if window:
                yield window
            raise
        yield window


class PlacedBatches:
    """Batches of loaders, each with its place in a pass, which a trainer may end early.

    Without a length one batch is drawn ahead, to know the last.
    """

    def __init__(self, batches: Iterable[Any], loaders: Sequence[Any]) -> None:
        self._batches = batches
        self.loaders = loaders  # that the batches come from
        self.is_ended = False  # whether the trainer leaves out the rest of the pass

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # num_batches sees a TypeError

    def __iter__(self) -> Iterator[PlacedBatch]:
        self.is_ended = False
        length = num_batches(self._batches)
        with closing(iterate_once(self._batches)) as present:
            ahead = list(islice(present, 0 if length else 1))
            for place in count():
                ahead.extend(islice(present, 1))
                if not ahead or self.is_ended:
                    return
                is_last = len(ahead) == 1 if length is None else place + 1 >= length
                yield PlacedBatch(ahead.pop(0), place, is_last)
                if is_last:
                    return


def _is_replayable(data: object) -> bool:
    if isinstance(data, PlacedBatches):
        return all(map(_is_replayable, data.loaders))
    return isinstance(data, torch.utils.data.DataLoader | Sequence)


class ReplayableLoader:
    """Data that yield the same batches each time that they are iterated.

    A DataLoader is iterated again, because a snapshot restores its order. Iterables that are
    neither loaders nor sequences are cached: they may be one-shot, or shuffle with a generator that
    no snapshot can restore.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._is_cached = not _is_replayable(data)
        self._start: Iterator[Any] | None = None

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]  # num_batches sees a TypeError

    def __iter__(self) -> Iterator[Any]:
        if not self._is_cached:
            return iterate_once(self._data)
        if self._start is None:
            self._start = iter(self._data)
        self._start, replay = tee(self._start)  # the first stays at the start, with all in between
        return replay


def iterate_once(data: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield the batches of one pass; a DataLoader's workers end with it, however it ends."""
    iterator = iter(data)
    try:
        yield from iterator
    finally:
        if not getattr(data, "persistent_workers", False):
            end_workers(iterator)


def end_workers(iterator: object) -> None:
    """End the workers of a DataLoader's iterator, which an exception's traceback may keep."""
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def cycle_data(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader again and again; DataExhausted if it yields them only once."""
    for passes in count():
        empty = True
        for batch in iterate_once(data):
            empty = False
            yield batch
        if empty and passes == 0:
            raise ValueError("train_loader must yield at least one batch, got none")
        if empty:
            raise DataExhausted(
                "train_loader ended and cannot be iterated again; pass a loader or a list of "
                "batches"
            )
